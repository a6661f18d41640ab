"""The rising thresholds τ_1 < … < τ_I of a Grow step's Improve steps."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from rest_jax import errors, mbr, penalised, selection

RewardStream = Callable[[], Iterable[Float32[np.ndarray, '_']]]


@runtime_checkable
class Schedule(Protocol):
  """The filters of Improve steps 1 … I, rising.

  What a schedule may have besides: see `kl_penalty` and `compares_texts`.
  """

  @property
  def num_steps(self) -> int:
    """I."""

  def first(self, steps: int) -> 'Schedule':
    """The schedule of the first `steps` Improve steps alone."""

  def label(self, step: int) -> str:
    """What step `step` (from 1) keeps, for people."""

  def filters(self, rewards: RewardStream) -> list[selection.Selection]:
    """The filter of each step.

    Args:
      rewards: gives the rewards of D_g, anew each time it is called: float32
        arrays, in [0, 1].
    """


def kl_penalty(schedule: Schedule) -> float:
  """β of filters that take β log(π/π_BC) off the reward; 0: none does.

  A schedule with such filters (`penalised.Penalised`) has this attribute: BC's
  log-probabilities of all samples are then stored before its first step.
  """
  return getattr(schedule, 'kl_penalty', 0.0)


def compares_texts(schedule: Schedule) -> bool:
  """Whether its filters take each distinct text of a source once.

  A schedule whose filters do has this attribute: the control with permuted
  rewards then keeps as many rows as the true ones do.
  """
  return getattr(schedule, 'compares_texts', False)


@dataclasses.dataclass(frozen=True)
class Thresholds:
  """τ as numbers on the reward's [0, 1] scale, as in the paper.

  Attributes:
    taus: τ_1 … τ_I.
  """

  taus: tuple[float, ...]

  def __post_init__(self):
    # As soon as they are set, not after hours of Grow; V is not known yet.
    check_schedule(self.taus, mean_reward=-math.inf)

  def resolve(self, rewards: RewardStream) -> tuple[float, ...]:
    """τ_1 … τ_I; the rewards are not looked at."""
    del rewards
    return tuple(float(tau) for tau in self.taus)

  @property
  def num_steps(self) -> int:
    """I."""
    return len(self.taus)

  def first(self, steps: int) -> 'Thresholds':
    """See `Schedule.first`."""
    return Thresholds(self.taus[:steps])

  def label(self, step: int) -> str:
    """See `Schedule.label`."""
    return f'R > {self.taus[step - 1]:g}'

  def filters(self, rewards: RewardStream) -> list[selection.Selection]:
    """See `Schedule.filters`."""
    return [selection.Threshold(tau) for tau in self.resolve(rewards)]


@dataclasses.dataclass(frozen=True)
class Quantiles:
  """τ as quantiles of the rewards in D_g, for rewards of any scale.

  Attributes:
    levels: in [0, 1). Level q gives the smallest reward that at least the
      share q of rows do not exceed, so at most 1 − q of them pass it.
  """

  levels: tuple[float, ...]

  def __post_init__(self):
    for level in self.levels:
      if not 0.0 <= level < 1.0:
        raise errors.ConfigurationError(
          f'Quantiles.levels holds {level!r}: each must be in [0, 1)'
        )
    if any(b <= a for a, b in itertools.pairwise(self.levels)):
      raise errors.ConfigurationError(
        f'Quantiles.levels = {self.levels} must rise from step to step'
      )

  @property
  def num_steps(self) -> int:
    """I."""
    return len(self.levels)

  def first(self, steps: int) -> 'Quantiles':
    """See `Schedule.first`."""
    return Quantiles(self.levels[:steps])

  def label(self, step: int) -> str:
    """See `Schedule.label`."""
    return f'R > quantile {self.levels[step - 1]:g}'

  def filters(self, rewards: RewardStream) -> list[selection.Selection]:
    """See `Schedule.filters`."""
    return [selection.Threshold(tau) for tau in self.resolve(rewards)]

  def resolve(self, rewards: RewardStream) -> tuple[float, ...]:
    """See `quantiles`.

    Raises:
      DataError: there is no reward at all.
      ConfigurationError: a quantile is 1, which no reward exceeds.
    """
    taus = quantiles(rewards, self.levels)
    for level, tau in zip(self.levels, taus, strict=True):
      if tau >= 1.0:
        raise errors.ConfigurationError(
          f'Quantiles.levels holds {level:g}, but so many rewards are '
          f'{tau:g} that no row exceeds that quantile: give lower levels, '
          'Thresholds, or TopShares, which keeps some of those that are equal'
        )
    return taus


def quantiles(
  rewards: RewardStream, levels: Sequence[float]
) -> tuple[float, ...]:
  """Finds quantiles exactly, in two passes and constant memory.

  Args:
    rewards: gives the rewards anew each time: float32 arrays, in [0, 1].
    levels: in [0, 1).

  Returns:
    For each level q the smallest reward that at least the share q of rows do
    not exceed.

  Raises:
    DataError: there is no reward at all.
  """
  if not levels:
    return ()
  # Non-negative floats order as their bits do; count by the upper half of
  # the bits first, then by the lower half where a quantile fell.
  upper = np.zeros(1 << 16, np.int64)
  for values in rewards():
    upper += np.bincount(_bits(values) >> 16, minlength=1 << 16)
  total = int(upper.sum())
  if not total:
    raise errors.DataError(
      'no scored sample to take quantiles of: run grow and annotate first'
    )
  # Rounded, for 0.07 · 100 is a hair above 7.
  ranks = [max(0, math.ceil(round(q * total, 6)) - 1) for q in levels]
  below = np.cumsum(upper)
  bins = np.searchsorted(below, ranks, side='right')
  lower = {int(b): np.zeros(1 << 16, np.int64) for b in bins}
  for values in rewards():
    bits = _bits(values)
    for b, counts in lower.items():
      inside = bits[bits >> 16 == b] & 0xFFFF
      counts += np.bincount(inside, minlength=1 << 16)
  taus = []
  for b, rank in zip(bins, ranks, strict=True):
    rest = rank - (int(below[b]) - int(upper[b]))
    low = np.searchsorted(np.cumsum(lower[int(b)]), rest, side='right')
    word = np.asarray([(int(b) << 16) | int(low)], np.uint32)
    taus.append(float(word.view(np.float32)[0]))
  return tuple(taus)


@dataclasses.dataclass(frozen=True)
class PerSource:
  """A bar for each source of its own, from its samples' rewards.

  Attributes:
    rule: 'percentile' (values in [0, 100]), 'interpolated' (γ in [0, 1]),
      'top_k' (samples a source; falling, as fewer is stricter) or 'mbr'
      (likewise, but those that agree best with the others by chrF, whatever
      their rewards).
    values: the rule's value in Improve steps 1 … I.
    kl_penalty: β, with which rows are ranked by R − β log(π/π_BC) instead of by
      R; see `penalised.Penalised`.
  """

  rule: Literal['percentile', 'interpolated', 'top_k', 'mbr']
  values: tuple[float | int, ...]
  kl_penalty: float | int = 0.0

  def __post_init__(self):
    if self.rule not in ('percentile', 'interpolated', 'top_k', 'mbr'):
      raise errors.ConfigurationError(
        f"PerSource.rule = {self.rule!r} must be 'percentile', 'interpolated', "
        "'top_k' or 'mbr'"
      )
    counts = self.rule in ('top_k', 'mbr')
    sign = -1 if counts else 1
    for before, after in itertools.pairwise(self.values):
      if sign * after <= sign * before:
        raise errors.ConfigurationError(
          f'PerSource.values = {self.values} must get stricter from step to '
          f'step for the rule {self.rule!r}'
        )
    if counts and any(k != int(k) for k in self.values):
      raise errors.ConfigurationError(
        f'PerSource.values = {self.values} must be whole numbers for'
        f' {self.rule!r}'
      )
    if self.kl_penalty and (self.rule == 'mbr' or self.kl_penalty < 0):
      raise errors.ConfigurationError(
        f'PerSource.kl_penalty = {self.kl_penalty!r} with the rule'
        f' {self.rule!r}: it must be at least 0, and 0 where rewards do not'
        ' rank.'
      )
    self.filters(lambda: ())  # Each selection checks its value's range.

  @property
  def num_steps(self) -> int:
    """I."""
    return len(self.values)

  @property
  def compares_texts(self) -> bool:
    """Whether the filters take each distinct text of a source once."""
    return 'text_ids' in selection.needs_of(self.filters(lambda: ()))

  def first(self, steps: int) -> 'PerSource':
    """See `Schedule.first`."""
    return dataclasses.replace(self, values=self.values[:steps])

  def label(self, step: int) -> str:
    """See `Schedule.label`."""
    label = f'{self.rule} {self.values[step - 1]:g} a source'
    penalty = f', R − {self.kl_penalty:g} log π/π_BC' if self.kl_penalty else ''
    return label + penalty

  def filters(self, rewards: RewardStream) -> list[selection.Selection]:
    """See `Schedule.filters`; the rewards are not looked at."""
    del rewards
    make = {
      'percentile': selection.Percentile,
      'interpolated': selection.Interpolated,
      'top_k': lambda k: selection.TopK(int(k)),
      'mbr': lambda k: mbr.MinimumBayesRisk(int(k)),
    }[self.rule]
    filters = [make(value) for value in self.values]
    if not self.kl_penalty:
      return filters
    return [penalised.Penalised(each, self.kl_penalty) for each in filters]


def check_filters(
  filters: Sequence[selection.Selection],
  mean_reward: float,
  *,
  allow_below_mean: bool = False,
) -> None:
  """`check_schedule` for those filters that are global thresholds."""
  taus = [f.tau for f in filters if isinstance(f, selection.Threshold)]
  check_schedule(taus, mean_reward, allow_below_mean=allow_below_mean)


def _bits(values: np.ndarray) -> np.ndarray:
  # Adding 0 turns −0.0, whose bits are not ordered, into 0.0.
  positive = np.ascontiguousarray(values, np.float32) + np.float32(0.0)
  return positive.view(np.uint32).astype(np.int64)


def check_schedule(
  taus: Sequence[float],
  mean_reward: float,
  *,
  allow_below_mean: bool = False,
) -> None:
  """Holds τ_1 … τ_I against what the paper asks: V < τ_1 < τ_2 < ….

  (arXiv:2308.08998, section 3: τ_1 > V = E_{D_g}[R], τ_{i+1} > τ_i.)

  Args:
    taus: τ_1 … τ_I on the scale of the rewards.
    mean_reward: V, the mean reward of D_g.
    allow_below_mean: whether τ_1 ≤ V is accepted.

  Raises:
    ConfigurationError: a τ is outside [0, 1), does not rise, or τ_1 ≤ V.
  """
  for number, tau in enumerate(taus, start=1):
    if not 0.0 <= tau < 1.0:
      raise errors.ConfigurationError(
        f'THRESHOLDS: tau_{number} = {tau:g} is outside [0, 1), the scale of '
        'the reward: no row, or every row, would pass it'
      )
  for number, (tau, after) in enumerate(itertools.pairwise(taus), start=1):
    if not after > tau:
      raise errors.ConfigurationError(
        f'the thresholds must rise, but tau_{number} = {tau:g} and '
        f'tau_{number + 1} = {after:g}: give rising THRESHOLDS, or fewer '
        'Quantiles.levels'
      )
  if taus and taus[0] <= mean_reward and not allow_below_mean:
    raise errors.ConfigurationError(
      f'tau_1 = {taus[0]:g} is not above V = {mean_reward:g}, the mean reward '
      'of D_g, so it would keep worse rows than the average: raise it '
      '(THRESHOLDS, Quantiles.levels), or allow it '
      '(Improve.allow_tau_below_mean = True)'
    )
