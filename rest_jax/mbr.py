"""Minimum Bayes risk: the sample that agrees best with the others.

  ŷ = argmax_{y ∈ H} 1/|H| Σ_{y' ∈ H} u(y, y')

over the samples H of a source (Kumar and Byrne 2004; with samples Eikema and
Aziz, Is MAP Decoding All You Need?, 2020, arXiv:2005.10283).
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float64

from rest_jax import errors
from rest_jax import rows as rows_lib
from rest_jax.rewards import lexical

# (n candidates, n references) → n numbers, higher is better.
Utility = Callable[[list[str], list[str]], np.ndarray]


def expected_utilities(
  groups: Sequence[Sequence[str]], utility: Utility
) -> list[Float64[np.ndarray, ' n']]:
  """The mean utility of each text, held against all texts of its group.

  Equal texts are held against others once, and count as often as they are
  there. A text is held against itself too, as is usual: it has, after all, the
  probability that it was drawn with.

  Args:
    groups: the samples of each source.
    utility: u(y, y') of any number of pairs.

  Returns:
    For each group float64 [n], in its order.
  """
  distinct = [list(dict.fromkeys(group)) for group in groups]
  candidates = [y for ys in distinct for y in ys for _ in ys]
  references = [other for ys in distinct for _ in ys for other in ys]
  values = np.asarray(utility(candidates, references), np.float64)
  out, start = [], 0
  for group, ys in zip(groups, distinct, strict=True):
    size = len(ys)
    table = values[start : start + size * size].reshape(size, size)
    start += size * size
    place = {y: i for i, y in enumerate(ys)}
    inverse = np.array([place[y] for y in group], np.int64)
    counts = np.bincount(inverse, minlength=size)
    out.append((table @ counts / max(len(group), 1))[inverse])
  return out


def chrf(candidates: list[str], references: list[str]) -> np.ndarray:
  """Sentence chrF for a utility, float32 [n], 0–100."""
  return lexical.SentenceChrf().score(candidates, candidates, references)


@dataclasses.dataclass(frozen=True)
class MinimumBayesRisk:
  """Keeps the k samples of each source that agree best with all of them.

  The selection of MBR finetuning (Finkelstein and Freitag 2023,
  arXiv:2309.10966), with chrF for the utility. Rewards are not looked at, nor
  are imported rows, which are no samples of the policy. References stay.

  Attributes:
    k: at least 1.
  """

  k: int = 1

  needs = frozenset({'utilities', 'text_ids'})
  uses_rewards = False

  def __post_init__(self):
    if isinstance(self.k, bool) or int(self.k) != self.k or self.k < 1:
      raise errors.ConfigurationError(
        f'MinimumBayesRisk.k = {self.k!r} must be a whole number from 1'
      )

  def keep(
    self, rows: rows_lib.Rows, alive: Bool[np.ndarray, 'm']
  ) -> Bool[np.ndarray, 'm']:
    """See `selection.Selection.keep`."""
    own = rows_lib.first_occurrences(rows, alive)
    own &= rows.origin == rows_lib.POLICY
    best = rows_lib.first_of_each(rows, own, -rows.utilities, int(self.k))
    return best | (alive & rows.is_reference)
