"""How well a metric's scores agree with people's: Kendall's τ and accuracy.

The definitions are those of google-research/mt-metrics-eval. Of every pair of
translations it is asked whether people's scores h and the metric's m order
them alike:

  C    concordant: h and m order the pair the same way
  D    discordant: the opposite way
  T_h  tied in h alone;  T_m  tied in m alone;  T_hm  tied in both

  τ_b = (C − D) / sqrt((C + D + T_h) · (C + D + T_m))          (Kendall 1945)
  acc_eq = (C + T_hm) / (C + D + T_h + T_m + T_hm)

People's scores are full of ties, which a metric of real numbers never gives.
So acc_eq is taken as the best over a threshold ε, where scores that differ by
at most ε are a tie of the metric (Deutsch et al. 2023, arXiv:2305.14324).
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float, Int

from rest_jax import errors


@dataclasses.dataclass(frozen=True)
class Agreement:
  """What `agreement` finds.

  Attributes:
    tau: τ_b over all pairs of all rows; NaN where either side is constant.
    tau_within: the mean of τ_b within each group; groups in which it is not
      defined (one row, or a constant side) are left out. NaN where all are.
    accuracy: the mean of acc_eq within each group of two rows or more.
    calibrated_accuracy: likewise, at the ε that makes it greatest.
    epsilon: that ε, in the metric's own unit; the smallest where several do.
    rows: how many were compared.
    groups: how many of them had a pair.
  """

  tau: float
  tau_within: float
  accuracy: float
  calibrated_accuracy: float
  epsilon: float
  rows: int
  groups: int


def agreement(
  human: Float[np.ndarray, 'n'],
  metric: Float[np.ndarray, 'n'],
  groups: Int[np.ndarray, 'n'],
) -> Agreement:
  """Compares a metric's scores with people's; both higher is better.

  Args:
    human: what people gave.
    metric: what the metric gave to the same translations.
    groups: number of the source of each.

  Raises:
    RewardError: a score is NaN or infinite, or no group has two rows.
  """
  for name, values in (('human', human), ('metric', metric)):
    if not np.isfinite(values).all():
      at = int(np.flatnonzero(~np.isfinite(values))[0])
      raise errors.RewardError(
        f'agreement: the {name} score of row {at} is {values[at]}: give finite'
        ' scores'
      )
  pairs = _pairs(human, metric, groups)
  if not len(pairs.gap):
    raise errors.RewardError(
      f'agreement: no source has two of the {len(human)} translations: give'
      ' several translations a source'
    )
  epsilon, calibrated = _calibrate(pairs)
  return Agreement(
    tau=kendall_tau(human, metric),
    tau_within=_tau_within(human, metric, groups),
    accuracy=float(pairs.share @ pairs.right),
    calibrated_accuracy=calibrated,
    epsilon=epsilon,
    rows=len(human),
    groups=pairs.groups,
  )


def kendall_tau(
  human: Float[np.ndarray, 'n'], metric: Float[np.ndarray, 'n']
) -> float:
  """Kendall's τ_b over all pairs.

  Returns:
    τ_b in [−1, 1]; NaN where either side is constant, n < 2, or a number is
    NaN.
  """
  from scipy import stats  # Slow to import.

  if len(human) < 2:
    return math.nan
  return float(stats.kendalltau(human, metric, variant='b').statistic)


def kendall_untied(
  wanted: Float[np.ndarray, ' n'], found: Float[np.ndarray, ' n']
) -> float:
  """(C − D) / (C + D + T): Kendall's τ over the pairs that `wanted` orders.

  Somers' d: T are the pairs among them that `found` ties. It is 1 for a perfect
  order however many of `wanted` are equal.

  >>> kendall_untied(np.array([1.0, 1, 1, 3]), np.array([0.1, 0.3, 0.2, 0.9]))
  1.0

  Returns:
    In [−1, 1]; NaN where all of `wanted` are equal, or a number is NaN.
  """
  if not (ordered := _untied_pairs(wanted)):
    return math.nan
  if not (told := _untied_pairs(found)):
    return 0.0
  # τ_b is C − D, a whole number, by the geometric mean of the two.
  tau = kendall_tau(wanted, found)
  if math.isnan(tau):
    return tau
  return round(tau * math.sqrt(told * ordered)) / ordered


def _untied_pairs(values: Float[np.ndarray, ' n']) -> int:
  _, counts = np.unique(values, return_counts=True)
  return math.comb(len(values), 2) - sum(math.comb(int(n), 2) for n in counts)


def spearman(
  wanted: Float[np.ndarray, ' n'], found: Float[np.ndarray, ' n']
) -> float:
  """Spearman's ρ: the correlation of ranks, equal numbers sharing theirs.

  >>> round(spearman(np.array([1.0, 2, 3]), np.array([1.0, 9, 3])), 2)
  0.5

  Returns:
    In [−1, 1]; NaN where either side is constant or n < 2.
  """
  from scipy import stats  # Slow to import.

  if not (_untied_pairs(wanted) and _untied_pairs(found)):
    return math.nan
  ranks = [stats.rankdata(values) for values in (wanted, found)]
  return float(np.corrcoef(*ranks)[0, 1])


def _tau_within(human, metric, groups) -> float:
  taus = [kendall_tau(human[rows], metric[rows]) for rows in _members(groups)]
  defined = [tau for tau in taus if not np.isnan(tau)]
  return float(np.mean(defined)) if defined else float('nan')


@dataclasses.dataclass(frozen=True, eq=False)
class _Pairs:
  """All pairs of rows of the same group.

  Attributes:
    gap: how far the metric's scores are apart.
    right: whether human and metric order it alike, or both tie it.
    tied: whether the human scores are tied, so that a tie of the metric's
      would be right.
    share: what the pair weighs: groups count alike, and so do their pairs.
    groups: how many groups have a pair.
  """

  gap: Float[np.ndarray, 'p']
  right: Bool[np.ndarray, 'p']
  tied: Bool[np.ndarray, 'p']
  share: Float[np.ndarray, 'p']
  groups: int


def _pairs(human, metric, groups) -> _Pairs:
  first, second, counts = [], [], []
  for rows in _members(groups):
    a, b = np.triu_indices(len(rows), k=1)
    first.append(rows[a])
    second.append(rows[b])
    counts.append(np.full(len(a), len(a), np.int64))
  a, b = np.concatenate(first), np.concatenate(second)
  h, m = human[a] - human[b], metric[a] - metric[b]
  there = sum(len(count) > 0 for count in counts)
  return _Pairs(
    gap=np.abs(m),
    right=np.sign(h) == np.sign(m),
    tied=h == 0,
    share=1.0 / (np.concatenate(counts) * max(there, 1)),
    groups=there,
  )


def _calibrate(pairs: _Pairs) -> tuple[float, float]:
  """The ε that makes the mean acc_eq greatest, and that accuracy."""
  order = np.argsort(pairs.gap, kind='stable')
  gaps = pairs.gap[order]
  # What turning a pair into a tie of the metric's gains or costs.
  change = (pairs.tied.astype(np.float64) - pairs.right) * pairs.share
  gained = np.cumsum(change[order])
  # ε takes whole runs of equal gaps. ε = 0 changes nothing: gaps of 0 are ties.
  last = np.append(gaps[1:] != gaps[:-1], True)
  epsilons = np.append(0.0, gaps[last])
  accuracies = pairs.share @ pairs.right + np.append(0.0, gained[last])
  # Sums of the same pairs in another order differ in their last digits.
  best = int(np.argmax(accuracies >= accuracies.max() - 1e-12))
  return float(epsilons[best]), float(accuracies[best])


def _members(groups) -> list[Int[np.ndarray, '_']]:
  """The rows of each group."""
  order = np.argsort(groups, kind='stable')
  cuts = np.flatnonzero(np.diff(groups[order])) + 1
  return np.split(order, cuts)
