"""Minimum Bayes risk: the sample that agrees best with the others.

  ŷ = argmax_{y ∈ H} 1/|H| Σ_{y' ∈ H} u(y, y')

over the samples H of a source (Kumar and Byrne 2004; with samples Eikema and
Aziz, Is MAP Decoding All You Need?, 2020, arXiv:2005.10283).
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64

from rest_jax import errors, pairwise_chrf
from rest_jax import rows as rows_lib

# n texts → [n, n]: u(y, y') of each y, a row, against each y', a column.
Utility = Callable[[list[str]], Float[np.ndarray, 'n n']]


def expected_utilities(
  group: Sequence[str], utility: Utility = pairwise_chrf.table
) -> Float64[np.ndarray, ' n']:
  """The mean utility of each text, held against all texts of its source.

  Equal texts are held against others once, and count as often as they are
  there. A text is held against itself too, as is usual: it has, after all, the
  probability that it was drawn with.

  Args:
    group: the n samples of a source.
    utility: u(y, y') of each two texts, higher is better.

  Returns:
    float64 [n].
  """
  distinct = list(dict.fromkeys(group))
  place = {y: i for i, y in enumerate(distinct)}
  inverse = np.array([place[y] for y in group], np.int64)
  counts = np.bincount(inverse, minlength=len(distinct))
  table = np.asarray(utility(distinct), np.float64)
  return (table @ counts / max(len(group), 1))[inverse]


def best(group: Sequence[str]) -> int:
  """The place of the sample that agrees best, by chrF; of equals the first."""
  return int(np.argmax(expected_utilities(group)))


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
