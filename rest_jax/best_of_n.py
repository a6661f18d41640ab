"""Best-of-N from stored samples: what choosing by reward would have given.

For each source n samples with their rewards are known, n at least 2·N. The
samples must be fresh ones, of D_report or test data: Grow's own sources have
been trained on.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float64

from rest_jax import mbr
from rest_jax.errors import DataError

_ROUNDING = 1e-12  # Of a mean: equal samples must reach it.
SCORE = 'score_'  # Begins the columns of what is held out, among the samples.


def winner_weights(n: int, size: int) -> Float64[np.ndarray, ' n']:
  """The chance C(i−1, N−1) / C(n, N) that rank i wins among N of n samples.

  Ranks ascend from 1: N samples drawn without replacement have the i-th lowest
  for their best when the other N − 1 come from the i − 1 below it.

  >>> winner_weights(4, 2) * 6
  array([0., 1., 2., 3.])

  Args:
    n: samples there are.
    size: N, from 1 to n.

  Returns:
    float64 [n], whose sum is 1.

  Raises:
    DataError: N is not within 1 … n.
  """
  if not 1 <= size <= n:
    raise DataError(
      f'best-of-{size} from {n} samples a source: N must be from 1 to that;'
      ' evaluate with more samples (Evaluate.num_samples).'
    )
  every = math.comb(n, size)
  return np.array([math.comb(i, size - 1) / every for i in range(n)])


def estimate(
  rewards: Float[np.ndarray, 'k n'],
  size: int,
  held_out: Float[np.ndarray, 'k n'] | None = None,
) -> Float64[np.ndarray, ' k']:
  """E[max of N rewards] of each source, or what else the winner scores.

  Unbiased: Σ_i r_(i) · C(i−1, N−1) / C(n, N), the mean over all subsets of N of
  the n samples (Stiennon et al. 2020, arXiv:2009.01325, and Nakano et al. 2021,
  arXiv:2112.09332, section 3, for best-of-n and its estimator). Samples of
  equal reward win alike often.

  Args:
    rewards: [k, n], by which the best is chosen.
    size: N.
    held_out: [k, n], what of the chosen one is averaged; the reward by default.

  Returns:
    float64 [k].

  Raises:
    DataError: N is not within 1 … n.
  """
  rewards = np.asarray(rewards, np.float64)
  k, n = rewards.shape
  weights = winner_weights(n, size)
  order = np.argsort(rewards, axis=1, kind='stable')
  ranked = np.take_along_axis(rewards, order, axis=1)
  if held_out is None:
    return ranked @ weights
  values = np.take_along_axis(np.asarray(held_out, np.float64), order, axis=1)
  # Of equal rewards each rank stands for all: their weights are shared.
  new = np.ones((k, n), bool)
  new[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
  tie = (np.cumsum(new, axis=1) - 1) + n * np.arange(k)[:, None]
  tie = tie.reshape(-1)
  shared = np.bincount(tie, np.tile(weights, k), minlength=k * n)
  counts = np.bincount(tie, minlength=k * n)
  each = (shared / np.maximum(counts, 1))[tie].reshape(k, n)
  return (values * each).sum(axis=1)


def equal_size(
  rewards: Float[np.ndarray, 'k n'], aim: float, largest: int
) -> int | None:
  """The least N at which best-of-N reaches an aim (the ReST paper's figure 6).

  Args:
    rewards: [k, n], of BC's samples.
    aim: a mean reward, such as another policy's.
    largest: N at most; n should be at least twice as many.

  Returns:
    N; None where best-of-`largest` falls short.

  Raises:
    DataError: `largest` is not within 1 … n.
  """
  aim -= _ROUNDING
  if estimate(rewards, largest).mean() < aim:
    return None
  low, high = 1, largest
  while low < high:  # E[max of N] never falls as N grows.
    middle = (low + high) // 2
    if estimate(rewards, middle).mean() >= aim:
      high = middle
    else:
      low = middle + 1
  return low


@dataclasses.dataclass(frozen=True)
class Row:
  """What best-of-N gives of one policy's samples.

  Attributes:
    policy: its name in the results.
    size: N.
    chosen_by: 'reward', or 'mbr' for the sample that agrees best with the
      others by chrF.
    reward: mean reward of the best, × 100.
    held_out: metric → its mean of the best by reward, on its own scale.
    size_of_bc: the least N at which best-of-N of BC's samples has as much
      reward; None where half of BC's samples do not, and for BC itself.
  """

  policy: str
  size: int
  chosen_by: str
  reward: float
  held_out: dict[str, float]
  size_of_bc: int | None = None


def rows(
  policy: str,
  rewards: Float[np.ndarray, 'k n'],
  held_out: Mapping[str, Float[np.ndarray, 'k n']],
  of_bc: Float[np.ndarray, 'k m'] | None = None,
) -> list[Row]:
  """Best-of-N for N = 1, 2, 4 … up to half of the samples there are.

  Args:
    policy: its name in the results.
    rewards: of its samples.
    held_out: metric → theirs.
    of_bc: rewards of BC's samples, to say which N of BC equals each row.
  """

  def size_of_bc(size: int) -> int | None:
    if of_bc is None:
      return None
    aim = float(estimate(rewards, size).mean())
    return equal_size(of_bc, aim, of_bc.shape[1] // 2)

  sizes = [1]
  while 4 * sizes[-1] <= rewards.shape[1]:
    sizes.append(2 * sizes[-1])
  return [
    Row(
      policy,
      size,
      'reward',
      100 * float(estimate(rewards, size).mean()),
      {
        name: float(estimate(rewards, size, values).mean())
        for name, values in held_out.items()
      },
      size_of_bc(size),
    )
    for size in sizes
  ]


def mbr_row(
  policy: str,
  texts: Sequence[Sequence[str]],
  rewards: Float[np.ndarray, 'k n'],
  held_out: Mapping[str, Float[np.ndarray, 'k n']],
) -> Row:
  """What MBR decoding by chrF gives: of n samples the one that agrees best.

  Args:
    policy: its name in the results.
    texts: the n samples of each of k sources.
    rewards: theirs.
    held_out: metric → theirs.
  """
  best = np.array([mbr.best(of_source) for of_source in texts])
  each = np.arange(len(best))
  return Row(
    policy,
    rewards.shape[1],
    'mbr',
    100 * float(rewards[each, best].mean(dtype=np.float64)),
    {k: float(v[each, best].mean()) for k, v in held_out.items()},
  )
