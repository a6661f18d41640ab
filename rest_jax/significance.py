"""Whether two policies differ: paired tests, intervals, Holm's correction."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import sacrebleu
from jaxtyping import Float
from sacrebleu.metrics.base import Metric

from rest_jax import language

_SEED = 12345  # sacrebleu's too.
_TIED = 1 - 1e-9  # Of a difference: what rounding alone sets apart.
_CHUNK = 500  # Trials at a time: they take _CHUNK · k numbers.
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
  from scipy import special  # Slow to import.

  if len(values) < 2:
    return None
  n, mean = len(values), float(np.mean(values))
  error = float(np.std(values, ddof=1)) / math.sqrt(n)
  half = float(special.stdtrit(n - 1, (1 + coverage) / 2)) * error
  return mean - half, mean + half


def bootstrap_interval(
  per_source: Float[np.ndarray, ' n'],
) -> tuple[float, float]:
  """A 95 % percentile interval of a mean, of 1,000 bootstrap samples.

  Samples of one source are alike, so sources are drawn, not samples (Efron &
  Tibshirani 1993, chapter 13). Seeded: equal input, equal interval.

  >>> bootstrap_interval(np.array([0.5, 0.5, 0.5]))
  (0.5, 0.5)

  Args:
    per_source: float [n], the mean of each source.

  Returns:
    Lower and upper end.
  """
  return _percentiles(_resampled_means(per_source, 1000))


def _resampled_means(values: np.ndarray, num_resamples: int) -> np.ndarray:
  rng = np.random.default_rng(_SEED)
  n = len(values)
  return np.array(
    [values[rng.integers(0, n, n)].mean() for _ in range(num_resamples)]
  )


def _percentiles(means: np.ndarray) -> tuple[float, float]:
  low, high = np.quantile(means, [0.025, 0.975])
  return float(low), float(high)


def paired_bootstrap(
  differences: Float[np.ndarray, ' k'], num_resamples: int = 1000
) -> tuple[float, float, float]:
  """Interval and p of a mean difference, by drawing sources with replacement.

  The interval holds 95 % of the resampled means d*. p is two-sided, of the
  resamples moved to a difference of 0: (1 + #{|d* − d| ≥ |d|}) / (1 + B)
  (Efron & Tibshirani 1993, chapters 13 and 16; in translation Koehn 2004,
  "Statistical significance tests for machine translation evaluation"). Of a
  single source p is 1. Seeded.

  Args:
    differences: float [k], of each source, between the same two policies.
    num_resamples: B.

  Returns:
    Lower end, upper end, p.
  """
  means = _resampled_means(differences, num_resamples)
  p = _bootstrap_p(means, differences.mean(), len(differences))
  return *_percentiles(means), p


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
  for number in _chunks(num_trials):
    signs = 2.0 * rng.integers(0, 2, (number, k)) - 1
    further.append(np.abs(signs @ differences / k) >= least)
  return _p_value(np.concatenate(further))


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


@dataclasses.dataclass(frozen=True)
class CorpusTest:
  """Whether two policies differ by a corpus metric.

  Attributes:
    differences: second less first (0–100), one a pair of runs.
    interval: 95 %, of their mean, by the paired bootstrap.
    p_bootstrap: of the paired bootstrap.
    p_randomisation: of approximate randomisation.
  """

  differences: tuple[float, ...]
  interval: tuple[float, float]
  p_bootstrap: float
  p_randomisation: float


def corpus_tests(
  pairs: Sequence[tuple[Sequence[str], Sequence[str]]],
  references: Sequence[str],
  target_language: str,
  *,
  num_resamples: int = 1000,
  num_trials: int = 10000,
) -> dict[str, CorpusTest]:
  """Tests BLEU and chrF of two policies' translations, over several runs.

  As `paired_bootstrap` and `approximate_randomisation`, with the metric of the
  drawn or exchanged sources in place of the mean, averaged over the pairs:
  these share their sources, so that a source is drawn, or changes places, in
  all of them. Counts and scores of a corpus are sacrebleu's. Its own tests are
  not used: they count differences that are larger, where integer counts often
  give the same one again, and their bootstrap is one-sided.

  Args:
    pairs: translations of the same sources by the one and the other policy.
    references: of these sources.
    target_language: chooses BLEU's tokeniser.
    num_resamples: of the paired bootstrap.
    num_trials: of approximate randomisation.

  Returns:
    'bleu' and 'chrf' → what was found.
  """
  cached = {'references': [references]}
  metrics = (
    sacrebleu.BLEU(trg_lang=language.primary(target_language), **cached),
    sacrebleu.CHRF(**cached),
  )
  return {
    name: _corpus_test(metric, pairs, num_resamples, num_trials)
    for name, metric in zip(METRICS, metrics, strict=True)
  }


def _corpus_test(
  metric: Metric,
  pairs: Sequence[tuple[Sequence[str], Sequence[str]]],
  num_resamples: int,
  num_trials: int,
) -> CorpusTest:
  # [runs, k, counts]; whole numbers, which float64 adds without rounding.
  first, second = (
    np.array(
      [metric._extract_corpus_statistics(texts, None) for texts in policy],
      np.float64,
    )
    for policy in zip(*pairs, strict=True)
  )

  def scores(counts: np.ndarray) -> np.ndarray:
    return np.array(
      [
        [metric._compute_score_from_stats(list(one)).score for one in run]
        for run in counts
      ]
    )

  def differences(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[runs, trials] of weights [trials, k] of own and exchanged sources."""
    return scores(own @ second + other @ first) - scores(
      own @ first + other @ second
    )

  k = first.shape[1]
  observed = differences(np.ones((1, k)), np.zeros((1, k)))[:, 0]
  mean, rng = observed.mean(), np.random.default_rng(_SEED)
  drawn = rng.multinomial(k, np.full(k, 1 / k), num_resamples)
  means = differences(drawn, np.zeros_like(drawn)).mean(axis=0)
  low, high = np.quantile(means, [0.025, 0.975])
  further = []
  for number in _chunks(num_trials):
    exchanged = rng.integers(0, 2, (number, k))
    found = differences(1 - exchanged, exchanged).mean(axis=0)
    further.append(np.abs(found) >= abs(mean) * _TIED)
  return CorpusTest(
    tuple(observed.tolist()),
    (float(low), float(high)),
    _bootstrap_p(means, mean, k),
    _p_value(np.concatenate(further)),
  )


def _chunks(total: int) -> Iterator[int]:
  """Sizes of at most `_CHUNK` that add up."""
  for done in range(0, total, _CHUNK):
    yield min(_CHUNK, total - done)


def _bootstrap_p(means: np.ndarray, mean: float, sources: int) -> float:
  """Of resampled means, moved to a difference of 0; see `paired_bootstrap`."""
  if sources < 2:
    return 1.0  # There is nothing to draw.
  return _p_value(np.abs(means - mean) >= abs(mean) * _TIED)


def _p_value(further: np.ndarray) -> float:
  return (1 + int(further.sum())) / (1 + len(further))
