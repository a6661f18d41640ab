"""Scored samples as selections see them: numpy columns of whole sources."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int8, Int32, Int64, UInt64

POLICY, REFERENCE, IMPORTED = 0, 1, 2  # Codes of `Rows.origin`.


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
  """Scored rows of k whole sources, m rows in all; those of a source together.

  Attributes:
    source_ids: int64 [k].
    offsets: int64 [k + 1], where each source's rows start, and m.
    sample_index: int32 [m], −1 for references.
    origin: int8 [m], POLICY, REFERENCE or IMPORTED.
    reward: float32 [m], in [0, 1], higher is better.
    finished: bool [m], whether EOS was reached; True for references.
    lengths: int32 [m], target tokens, EOS counted.
    text_ids: int32 [m], equal where the target texts are equal.
    copies: bool [m], whether the target is the source, but for outer spaces.
    length_ratios: float32 [m], characters of target over those of source.
    source_lengths: int32 [m], characters of each row's source.
    repetitions: int32 [m], how often the most repeated phrase (of up to 8
      tokens) follows itself without a break; 1 is no repetition.
    utilities: float32 [m], mean chrF of each policy row, held against all of
      its source; 0 for other rows.
    log_ratios: float32 [m], log π(y|x) − log π_BC(y|x) in nats, π being the
      policy that drew the sample; 0 for rows that none drew.
    given: bool [m], samples whose text an earlier store has given: they count
      wherever rewards are compared, and are not chosen again.
  """

  source_ids: Int64[np.ndarray, 'k']
  offsets: Int64[np.ndarray, 'k+1']
  sample_index: Int32[np.ndarray, 'm']
  origin: Int8[np.ndarray, 'm']
  reward: Float32[np.ndarray, 'm']
  finished: Bool[np.ndarray, 'm']
  lengths: Int32[np.ndarray, 'm']
  text_ids: Int32[np.ndarray, 'm'] | None = None
  copies: Bool[np.ndarray, 'm'] | None = None
  length_ratios: Float32[np.ndarray, 'm'] | None = None
  source_lengths: Int32[np.ndarray, 'm'] | None = None
  repetitions: Int32[np.ndarray, 'm'] | None = None
  utilities: Float32[np.ndarray, 'm'] | None = None
  log_ratios: Float32[np.ndarray, 'm'] | None = None
  given: Bool[np.ndarray, 'm'] | None = None

  @property
  def num_sources(self) -> int:
    """The number of sources, k."""
    return len(self.source_ids)

  @functools.cached_property
  def source_of_row(self) -> Int64[np.ndarray, 'm']:
    """The place in `source_ids` of each row's source."""
    return np.repeat(np.arange(self.num_sources), np.diff(self.offsets))

  @functools.cached_property
  def is_reference(self) -> Bool[np.ndarray, 'm']:
    """Whether a row is a reference; the others are samples."""
    return self.origin == REFERENCE

  @functools.cached_property
  def samples_by_text(self) -> tuple[np.ndarray, np.ndarray]:
    """Rows of all samples, equal texts of a source together, and those texts.

    Policy rows stand before imported ones, else rows in their order. (int64
    [n] both; a text is a number that is equal where source and text are.)
    """
    samples = np.flatnonzero(~self.is_reference)
    texts = np.int64(self.text_ids.max(initial=0)) + 1
    keys = self.source_of_row[samples] * texts + self.text_ids[samples]
    order = np.lexsort((self.origin[samples], keys))
    return samples[order], keys[order]

  def count(self, mask: Bool[np.ndarray, 'm']) -> Int64[np.ndarray, 'k']:
    """How many rows of each source a mask holds."""
    rows = self.source_of_row[mask]
    return np.bincount(rows, minlength=self.num_sources)


# Fields of `Rows` that are computed for who needs them.
OPTIONAL = frozenset(
  field.name for field in dataclasses.fields(Rows) if field.default is None
) - {'given'}


def first_occurrences(
  rows: Rows, alive: Bool[np.ndarray, 'm']
) -> Bool[np.ndarray, 'm']:
  """Rows alive whose text no earlier sample of their source has.

  References neither count nor are dropped; of a sample of the policy and an
  imported one with the same text, the policy's stays.
  """
  samples, texts = rows.samples_by_text
  there = alive[samples]
  samples, texts = samples[there], texts[there]
  first = np.ones(len(samples), bool)
  first[1:] = texts[1:] != texts[:-1]
  distinct = alive & rows.is_reference
  distinct[samples[first]] = True
  return distinct


def least_of_text(
  rows: Rows, alive: Bool[np.ndarray, 'm'], order: np.ndarray
) -> np.ndarray:
  """An order in which each sample stands where the first of its text does.

  So that to take distinct texts in this order is to draw samples and pass over
  those whose text was drawn before.

  Args:
    rows: with `text_ids`.
    alive: the samples that count.
    order: a number a row.
  """
  samples, texts = rows.samples_by_text
  there = alive[samples]
  samples, texts = samples[there], texts[there]
  out = order.copy()
  if len(samples):
    starts = np.flatnonzero(np.append(True, texts[1:] != texts[:-1]))
    least = np.minimum.reduceat(order[samples], starts)
    out[samples] = np.repeat(least, np.diff(np.append(starts, len(samples))))
  return out


@dataclasses.dataclass(frozen=True, eq=False)
class Ranked:
  """Rewards of some rows, sorted within each source.

  Attributes:
    rewards: float64 [n], ascending within a source.
    starts: int64 [k], where each source's begin.
    counts: int64 [k].
  """

  rewards: Float[np.ndarray, 'n']
  starts: Int[np.ndarray, 'k']
  counts: Int[np.ndarray, 'k']

  @classmethod
  def of(cls, rows: Rows, mask: Bool[np.ndarray, 'm']) -> 'Ranked':
    chosen = np.flatnonzero(mask)
    order = np.lexsort((rows.reward[chosen], rows.source_of_row[chosen]))
    counts = rows.count(mask)
    rewards = rows.reward[chosen[order]].astype(np.float64)
    return cls(rewards, np.cumsum(counts) - counts, counts)

  def at(self, rank: np.ndarray) -> Float[np.ndarray, 'k']:
    """The reward of a rank (from 0) in each source; 0 in empty ones."""
    padded = np.append(self.rewards, 0.0)
    filled = self.counts > 0
    place = self.starts + np.asarray(rank, np.int64)
    return padded[np.where(filled, place, len(self.rewards))]

  @property
  def means(self) -> Float[np.ndarray, 'k']:
    """The mean reward of each source; 0 in empty ones."""
    source = np.repeat(np.arange(len(self.counts)), self.counts)
    sums = np.bincount(source, self.rewards, minlength=len(self.counts))
    return sums / np.maximum(self.counts, 1)


def yardstick(
  rows: Rows, distinct: Bool[np.ndarray, 'm']
) -> Bool[np.ndarray, 'm']:
  """Rows that per-source statistics are taken from; see `selection`."""
  policy = distinct & (rows.origin == POLICY)
  without = rows.count(policy) == 0
  return policy | (
    distinct & (rows.origin == IMPORTED) & without[rows.source_of_row]
  )


def reaches(
  rows: Rows,
  bars: Float[np.ndarray, 'k'],
  counts: Int[np.ndarray, 'k'],
) -> Bool[np.ndarray, 'm']:
  """Rows whose reward is at least their source's bar, or that have no bar."""
  bars = np.where(counts > 0, bars, -np.inf)
  return rows.reward.astype(np.float64) >= bars[rows.source_of_row]


def first_of_each(
  rows: Rows,
  among: Bool[np.ndarray, 'm'],
  order: np.ndarray,
  number: int | Int[np.ndarray, 'k'],
) -> Bool[np.ndarray, 'm']:
  """The `number` rows of each source that come first in `order`, of `among`."""
  chosen = np.flatnonzero(among)
  source = rows.source_of_row[chosen]
  ranked = np.lexsort((rows.sample_index[chosen], order[chosen], source))
  counts = rows.count(among)
  rank = np.arange(len(chosen)) - np.repeat(np.cumsum(counts) - counts, counts)
  limit = np.broadcast_to(number, counts.shape)[source[ranked]]
  kept = np.zeros(len(among), bool)
  kept[chosen[ranked[rank < limit]]] = True
  return kept


def random_order(rows: Rows, seed: int) -> UInt64[np.ndarray, 'm']:
  """A random number a row, a function of (seed, source, sample) alone."""
  state = _mix(np.uint64(seed % 2**64) + np.zeros(1, np.uint64))
  state = _mix(state + rows.source_ids[rows.source_of_row].astype(np.uint64))
  return _mix(state + rows.sample_index.astype(np.uint64))


def permuted_rewards(
  rows: Rows, seed: int, *, by_text: bool = False
) -> Float32[np.ndarray, 'm']:
  """Rewards that have changed places among each source's finished samples.

  And among the references of all sources here, since each has but one. What
  was not finished keeps its own. A function of seed and rows alone.

  Args:
    rows: whole sources.
    seed: of the permutation.
    by_text: whether the distinct texts of a source change places, copies
      together, as a reward without meaning would have it. Else equal texts get
      different rewards, and a rule that compares texts keeps more of them.
  """
  moving = rows.finished
  if by_text:
    moving = first_occurrences(rows, moving)
  moved = np.flatnonzero(moving)
  pool = np.where(rows.is_reference, -1, rows.source_of_row)[moved]
  order = np.lexsort((random_order(rows, seed)[moved], pool))
  out = rows.reward.copy()
  out[moved[np.argsort(pool, kind='stable')]] = rows.reward[moved[order]]
  if by_text:
    samples, texts = rows.samples_by_text
    samples, texts = (each[rows.finished[samples]] for each in (samples, texts))
    _, first, text = np.unique(texts, return_index=True, return_inverse=True)
    out[samples] = out[samples[first]][text]
  return out


def _mix(x: UInt64[np.ndarray, '_']) -> UInt64[np.ndarray, '_']:
  """SplitMix64 (Steele, Lea and Flood 2014): a bijective mixing of 64 bits."""
  x = x + np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))
