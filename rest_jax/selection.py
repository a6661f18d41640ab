"""Filters over scored samples: which rows of D_g an Improve step trains on.

A selection is a small frozen dataclass; a tuple of them is applied in turn,
each seeing what the ones before it left. They look at a row group of whole
sources at once, as numpy columns, so a store of any size streams through.

  selections = (Valid(), Percentile(90.0), Cap(10))
  kept = select(selections, rows)

Decided for all of them:
- A sample that never reached EOS is never kept, whatever the selections.
- `Threshold`, the paper's filter F(x, y; τ) = 1[R(x, y) > τ], is strict.
- Rules that compare the samples of one source (`Percentile`, `Interpolated`,
  `TopK`) drop duplicates first, take their statistics from rows that the
  policy wrote (from imported ones where it wrote none), hold references and
  imported rows against the resulting bar, and keep what reaches it (≥):
  otherwise γ = 1, or a source solved by every sample, would keep nothing. A
  source without any sample has no bar, and its reference stays. `TopK` ranks
  imported rows with the policy's.
"""

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

from rest_jax import errors
from rest_jax import rows as rows_lib
from rest_jax.rows import Rows

_NOTHING = frozenset()
_TEXTS = frozenset({'text_ids'})


@runtime_checkable
class Selection(Protocol):
  """A rule that keeps some rows."""

  @property
  def needs(self) -> frozenset[str]:
    """Optional fields of `Rows` that `keep` reads."""

  def keep(
    self, rows: Rows, alive: Bool[np.ndarray, 'm']
  ) -> Bool[np.ndarray, 'm']:
    """Which rows to keep.

    Args:
      rows: whole sources.
      alive: bool [m], rows that earlier selections left; all finished.

    Returns:
      bool [m]; what it says of rows that are not alive does not matter.
    """


def select(
  selections: Sequence[Selection], rows: Rows
) -> Bool[np.ndarray, 'm']:
  """Applies selections in turn, to the finished rows.

  Args:
    selections: none keeps every finished row (`G=1, I=0` of the paper).
    rows: whole sources, with the fields that `needs_of(selections)` names.

  Returns:
    bool [m], the rows to train on.
  """
  kept = rows.finished.copy()
  for selection in selections:
    kept &= selection.keep(rows, kept)
  return kept if rows.given is None else kept & ~rows.given


def needs_of(selections: Sequence[Selection]) -> frozenset[str]:
  """Optional fields of `Rows` that some selections read.

  Raises:
    ConfigurationError: a selection names a field that there is not.
  """
  for selection in selections:
    if unknown := selection.needs - rows_lib.OPTIONAL:
      raise errors.ConfigurationError(
        f'{type(selection).__name__}.needs names {sorted(unknown)}; of rows'
        f' there are {sorted(rows_lib.OPTIONAL)} to ask for, and what'
        ' rest_jax.rows.Rows always has.'
      )
  return _NOTHING.union(*(selection.needs for selection in selections))


def uses_rewards(selections: Sequence[Selection]) -> bool:
  """Whether some selections may read rewards; those that do not say so may."""
  return any(getattr(each, 'uses_rewards', True) for each in selections)


@dataclasses.dataclass(frozen=True)
class Unfiltered:
  """Keeps every finished row: the paper's I = 0, where no filter applies.

  (A strict > with τ_0 = 0 would drop rewards that are clipped to 0.)
  """

  needs = _NOTHING
  uses_rewards = False

  def keep(
    self, rows: Rows, alive: Bool[np.ndarray, 'm']
  ) -> Bool[np.ndarray, 'm']:
    del rows
    return alive


@dataclasses.dataclass(frozen=True)
class SamplesOnly:
  """Drops references."""

  needs = _NOTHING
  uses_rewards = False

  def keep(
    self, rows: Rows, alive: Bool[np.ndarray, 'm']
  ) -> Bool[np.ndarray, 'm']:
    """See `Selection.keep`."""
    return alive & ~rows.is_reference


@dataclasses.dataclass(frozen=True)
class Threshold:
  """F(x, y; τ) = 1[R(x, y) > τ] of ReST (arXiv:2308.08998, section 3).

  Attributes:
    tau: τ in [0, 1), on rewards scaled to [0, 1]; strict.
  """

  tau: float | int

  needs = _NOTHING

  def __post_init__(self):
    right = _is_number(self.tau) and 0.0 <= self.tau < 1.0
    _check(right, self, 'tau', 'a number in [0, 1)')

  def keep(
    self, rows: Rows, alive: Bool[np.ndarray, 'm']
  ) -> Bool[np.ndarray, 'm']:
    del alive
    # In float32, as rewards are: float32(0.8) is above 0.8, and a reward of
    # exactly 0.8 must not pass τ = 0.8.
    return rows.reward > np.float32(self.tau)


@dataclasses.dataclass(frozen=True)
class Percentile:
  """Keeps rows that reach a percentile of their own source's samples.

  Attributes:
    p: in [0, 100]; between two samples the bar is interpolated linearly.
  """

  p: float | int

  needs = _TEXTS

  def __post_init__(self):
    right = _is_number(self.p) and 0.0 <= self.p <= 100.0
    _check(right, self, 'p', 'a number in [0, 100]')

  def keep(
    self, rows: Rows, alive: Bool[np.ndarray, 'm']
  ) -> Bool[np.ndarray, 'm']:
    distinct = rows_lib.first_occurrences(rows, alive)
    sample = rows_lib.Ranked.of(rows, rows_lib.yardstick(rows, distinct))
    # Rounded, for 25 · 0.28 is a hair above 7.
    place = np.round(np.maximum(sample.counts - 1, 0) * (self.p / 100.0), 9)
    low, high = sample.at(np.floor(place)), sample.at(np.ceil(place))
    bars = low + (place - np.floor(place)) * (high - low)
    return distinct & rows_lib.reaches(
      rows, np.minimum(bars, high), sample.counts
    )


@dataclasses.dataclass(frozen=True)
class Interpolated:
  """Keeps rows with R ≥ γ·max + (1 − γ)·mean over their source's samples.

  (arXiv:2308.08998, appendix, "interpolated" thresholds.)

  Attributes:
    gamma: γ in [0, 1]: 0 keeps what reaches the mean, 1 the best alone.
  """

  gamma: float | int

  needs = _TEXTS

  def __post_init__(self):
    right = _is_number(self.gamma) and 0.0 <= self.gamma <= 1.0
    _check(right, self, 'gamma', 'a number in [0, 1]')

  def keep(
    self, rows: Rows, alive: Bool[np.ndarray, 'm']
  ) -> Bool[np.ndarray, 'm']:
    distinct = rows_lib.first_occurrences(rows, alive)
    sample = rows_lib.Ranked.of(rows, rows_lib.yardstick(rows, distinct))
    best = sample.at(sample.counts - 1)
    bars = self.gamma * best + (1.0 - self.gamma) * sample.means
    # Rounding may lift the mean of equal rewards above every one of them.
    return distinct & rows_lib.reaches(
      rows, np.minimum(bars, best), sample.counts
    )


@dataclasses.dataclass(frozen=True)
class TopK:
  """Keeps the k best distinct samples of each source (RAFT: best of K, k = 1).

  Ties go to the sample that was drawn first. A reference is kept when its
  reward reaches the k-th best sample's.

  Attributes:
    k: at least 1.
  """

  k: int

  needs = _TEXTS

  def __post_init__(self):
    _check(_is_count(self.k), self, 'k', 'a whole number from 1')

  def keep(
    self, rows: Rows, alive: Bool[np.ndarray, 'm']
  ) -> Bool[np.ndarray, 'm']:
    distinct = rows_lib.first_occurrences(rows, alive)
    samples = distinct & ~rows.is_reference
    sample = rows_lib.Ranked.of(rows, samples)
    bars = sample.at(np.maximum(sample.counts - self.k, 0))
    best = rows_lib.first_of_each(rows, samples, -rows.reward, self.k)
    reaching = rows_lib.reaches(rows, bars, sample.counts)
    return best | (distinct & rows.is_reference & reaching)


@dataclasses.dataclass(frozen=True)
class Cap:
  """Keeps at most k samples a source; references are not counted.

  Attributes:
    k: at least 1.
    by: 'random', or 'reward' for the best (ties to the one drawn first).
    seed: of the random choice, which depends besides only on source and
      sample, not on how the store is cut into files.
  """

  k: int
  by: str = 'random'
  seed: int = 0

  needs = _NOTHING

  def __post_init__(self):
    _check(_is_count(self.k), self, 'k', 'a whole number from 1')
    _check(self.by in ('random', 'reward'), self, 'by', "'random' or 'reward'")

  @property
  def uses_rewards(self) -> bool:
    """See the function of that name."""
    return self.by == 'reward'

  def keep(
    self, rows: Rows, alive: Bool[np.ndarray, 'm']
  ) -> Bool[np.ndarray, 'm']:
    random = self.by == 'random'
    order = rows_lib.random_order(rows, self.seed) if random else -rows.reward
    samples = alive & ~rows.is_reference
    if rows.given is not None:  # They would fill it, and are not chosen.
      samples &= ~rows.given
    return rows.is_reference | rows_lib.first_of_each(
      rows, samples, order, self.k
    )


@dataclasses.dataclass(frozen=True)
class Deduplicate:
  """Keeps each text of a source once, among its samples; references stay."""

  needs = _TEXTS
  uses_rewards = False

  def keep(
    self, rows: Rows, alive: Bool[np.ndarray, 'm']
  ) -> Bool[np.ndarray, 'm']:
    return rows_lib.first_occurrences(rows, alive)


@dataclasses.dataclass(frozen=True)
class Valid:
  """Drops rows, references too, that no reward should be trusted on.

  Attributes:
    forbid_empty: drops targets without a character other than spaces.
    forbid_copy: drops targets that are their source.
    max_length: target tokens at most, EOS counted.
    min_length_ratio: characters of target over source at least.
    max_length_ratio: characters of target over source at most. Both depend on
      the two scripts: Chinese → English is about 3 to 4.
    max_repetition: how often at most a phrase of up to 8 tokens may follow
      itself (`no no no` is 3).
  """

  forbid_empty: bool = True
  forbid_copy: bool = True
  max_length: int | None = None
  min_length_ratio: float | int = 0.0
  max_length_ratio: float | int = math.inf
  max_repetition: int | None = None

  def __post_init__(self):
    _check(
      _is_number(self.min_length_ratio)
      and _is_number(self.max_length_ratio)
      and 0.0 <= self.min_length_ratio <= self.max_length_ratio,
      self,
      'min_length_ratio',
      'a number from 0 to max_length_ratio',
    )
    for name in ('max_length', 'max_repetition'):
      value = getattr(self, name)
      right = value is None or _is_count(value)
      _check(right, self, name, 'a whole number from 1, or None')

  uses_rewards = False

  @property
  def needs(self) -> frozenset[str]:
    ratios = self.forbid_empty or self._bounds_ratio
    wanted = {
      'length_ratios': ratios,
      'copies': self.forbid_copy,
      'repetitions': self.max_repetition is not None,
    }
    return frozenset(name for name, needed in wanted.items() if needed)

  @property
  def _bounds_ratio(self) -> bool:
    return self.min_length_ratio > 0 or self.max_length_ratio < math.inf

  def keep(
    self, rows: Rows, alive: Bool[np.ndarray, 'm']
  ) -> Bool[np.ndarray, 'm']:
    kept = alive.copy()
    if self.forbid_empty:
      kept &= rows.length_ratios > 0
    if self.forbid_copy:
      kept &= ~rows.copies
    if self.max_length is not None:
      kept &= rows.lengths <= self.max_length
    if self._bounds_ratio:
      kept &= rows.length_ratios >= self.min_length_ratio
      kept &= rows.length_ratios <= self.max_length_ratio
    if self.max_repetition is not None:
      kept &= rows.repetitions <= self.max_repetition
    return kept


def _is_number(value: object) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
  whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
  return whole and value >= 1


def _check(right: bool, selection: Selection, name: str, wanted: str) -> None:
  if not right:
    kind = type(selection).__name__
    raise errors.ConfigurationError(
      f'{kind}.{name} = {getattr(selection, name)!r} must be {wanted}'
    )
