"""Whether two policies differ: paired tests, intervals, Holm's correction."""

import math
import os
from collections.abc import Sequence

import numpy as np
import sacrebleu
from jaxtyping import Float
from sacrebleu import significance
from scipy import special

from rest_jax.errors import ConfigurationError

_SEED = 12345  # sacrebleu's too.
_TIED = 1 - 1e-9  # Of a difference: what rounding alone sets apart.
_CHUNK = 500  # Trials at a time: their signs take _CHUNK · k numbers.
_SACREBLEU_SEED = 'SACREBLEU_SEED'
METRICS = ('bleu', 'chrf')  # Of `corpus_tests`.


def t_interval(
  values: Sequence[float], coverage: float = 0.95
) -> tuple[float, float] | None:
  """Student's interval of the mean of a few seeds.

  mean ± t_{n−1} · s / √n with s² = Σ(x − mean)² / (n − 1), for values that are
  normal and independent (Student 1908, "The probable error of a mean").

  Args:
    values: one a seed.
    coverage: probability mass inside.

  Returns:
    Lower and upper end; None for fewer than two values.
  """
  if len(values) < 2:
    return None
  n, mean = len(values), float(np.mean(values))
  error = float(np.std(values, ddof=1)) / math.sqrt(n)
  half = float(special.stdtrit(n - 1, (1 + coverage) / 2)) * error
  return mean - half, mean + half


def paired_bootstrap(
  differences: Float[np.ndarray, ' k'], num_resamples: int = 1000
) -> tuple[float, float, float]:
  """Interval and p of a mean difference, by drawing sources with replacement.

  The interval holds 95 % of the resampled means d*. p is two-sided, of the
  resamples moved to a difference of 0: (1 + #{|d* − d| ≥ |d|}) / (1 + B)
  (Efron & Tibshirani 1993, chapters 13 and 16; in translation Koehn 2004,
  "Statistical significance tests for machine translation evaluation"). Seeded.

  Args:
    differences: float [k], of each source, between the same two policies.
    num_resamples: B.

  Returns:
    Lower end, upper end, p.
  """
  rng = np.random.default_rng(_SEED)
  k = len(differences)
  means = np.array(
    [differences[rng.integers(0, k, k)].mean() for _ in range(num_resamples)]
  )
  mean = differences.mean()
  low, high = np.quantile(means, [0.025, 0.975])
  further = np.abs(means - mean) >= abs(mean) * _TIED
  return float(low), float(high), _p_value(further)


def approximate_randomisation(
  differences: Float[np.ndarray, ' k'], num_trials: int = 10000
) -> float:
  """The p of a mean difference, by exchanging the two policies at random.

  Of each source the two change places with probability ½, which turns the sign
  of its difference: (1 + #{|d'| ≥ |d|}) / (1 + R), two-sided (Noreen 1989; in
  translation Riezler & Maxwell 2005, "On some pitfalls in automatic evaluation
  and significance testing for MT"). Seeded.

  Args:
    differences: float [k], of each source, between the same two policies.
    num_trials: R.
  """
  rng = np.random.default_rng(_SEED)
  k, least = len(differences), abs(differences.mean()) * _TIED
  further = []
  for first in range(0, num_trials, _CHUNK):
    shape = (min(_CHUNK, num_trials - first), k)
    signs = 2.0 * rng.integers(0, 2, shape) - 1
    further.append(np.abs(signs @ differences / k) >= least)
  return _p_value(np.concatenate(further))


def _p_value(further: np.ndarray) -> float:
  return (1 + int(further.sum())) / (1 + len(further))


def holm(p_values: Sequence[float]) -> list[float]:
  """Corrects p values for their number, so that none is found falsely.

  Of m sorted p values the i-th becomes max_{j ≤ i} (m − j + 1) · p_(j), at most
  1 (Holm 1979, "A simple sequentially rejective multiple test procedure").
  Nothing is assumed of how they depend on each other.

  >>> holm([0.01, 0.04, 0.03])
  [0.03, 0.06, 0.06]
  """
  order = sorted(range(len(p_values)), key=lambda i: p_values[i])
  corrected, most = [0.0] * len(p_values), 0.0
  for rank, index in enumerate(order):
    most = max(most, min(1.0, (len(p_values) - rank) * p_values[index]))
    corrected[index] = most
  return corrected


def merged(p_values: Sequence[float]) -> float:
  """One p of several of the same hypothesis that may depend on each other.

  Twice their mean, at most 1, is a p value whatever their dependence (Vovk &
  Wang 2020, "Combining p-values via averaging", arXiv:1212.4966). One p value
  stays as it is.
  """
  if len(p_values) == 1:
    return p_values[0]
  return min(1.0, 2 * math.fsum(p_values) / len(p_values))


def check_seed() -> None:
  """Raises where sacrebleu would not repeat its own tests.

  Raises:
    ConfigurationError: its environment variable is no positive number; with 0
      its tests are random although their signature says otherwise.
  """
  given = os.environ.get(_SACREBLEU_SEED, str(_SEED))
  if not given.isdecimal() or int(given) == 0:
    raise ConfigurationError(
      f'{_SACREBLEU_SEED} = {given} in the environment: sacrebleu would not'
      ' give the same p values twice; unset it, or give a positive number.'
    )


def corpus_tests(
  first: Sequence[str],
  second: Sequence[str],
  references: Sequence[str],
  target_language: str,
  *,
  num_resamples: int = 1000,
  num_trials: int = 10000,
) -> dict[str, tuple[float, float, float]]:
  """Runs sacrebleu's own paired tests of two policies' translations.

  A difference of exactly 0 gets p = 1: sacrebleu counts differences that are
  larger, of which two equal outputs have none.

  Args:
    first: translations by one policy.
    second: translations of the same sources by another.
    references: of these.
    target_language: chooses BLEU's tokeniser.
    num_resamples: of the paired bootstrap.
    num_trials: of approximate randomisation.

  Returns:
    'bleu' and 'chrf' → `second` less `first` (0–100), p of the paired
    bootstrap, p of approximate randomisation.
  """
  found: dict[str, list[float]] = {}
  for kind, number in (('bs', num_resamples), ('ar', num_trials)):
    metrics = (sacrebleu.BLEU(trg_lang=target_language), sacrebleu.CHRF())
    _, scores = significance.PairedTest(
      [('first', first), ('second', second)],
      dict(zip(METRICS, metrics, strict=True)),
      [references],
      test_type=kind,
      n_samples=number,
    )()
    del scores['System']
    # sacrebleu names them anew, and keeps their order.
    for name, (one, other) in zip(METRICS, scores.values(), strict=True):
      difference = float(other.score - one.score)
      p = 1.0 if difference == 0 else float(other.p_value)
      found.setdefault(name, [difference]).append(p)
  return {name: (d, p, q) for name, (d, p, q) in found.items()}
