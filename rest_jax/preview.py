"""What each Improve step would train on, before any training."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from rest_jax import rows as rows_lib
from rest_jax import selection

# What `preview` reads besides what the selections need.
NEEDS = frozenset({'text_ids', 'source_lengths'})

Select = Callable[[Sequence[selection.Selection], rows_lib.Rows], np.ndarray]


@dataclasses.dataclass(frozen=True)
class StepPreview:
  """What one selection keeps of a store.

  Attributes:
    samples: samples in the store (references not counted).
    sources: sources with a sample.
    kept_samples: samples kept.
    kept_references: references kept.
    kept_sources: sources with a sample kept.
    starved_sources: sources of whose samples none is kept.
    distinct_samples: kept samples that differ in text, within their source and
      store.
    duplicates: kept samples that repeat an earlier one of these.
    mean_reward: of the kept samples, in [0, 1]; NaN if there are none.
    mean_length: of the kept samples, target tokens with EOS; NaN likewise.
    kept_by_length: share of samples kept, by decile of source length (in
      characters, over samples), shortest first; NaN for a decile that sources
      of one length leave empty.
  """

  samples: int
  sources: int
  kept_samples: int
  kept_references: int
  kept_sources: int
  starved_sources: int
  distinct_samples: int
  duplicates: int
  mean_reward: float
  mean_length: float
  kept_by_length: tuple[float, ...] = dataclasses.field(
    default=(), compare=False
  )


def preview(
  stream: Iterable[rows_lib.Rows],
  steps: Sequence[Sequence[selection.Selection]],
  select: Select = selection.select,
  *,
  repeated: bool = False,
) -> list[StepPreview]:
  """Counts what each step keeps, in one pass and constant memory.

  Args:
    stream: row groups of whole sources, with the fields that `NEEDS` and
      `selection.needs_of` of every step name.
    steps: the selections of each Improve step.
    select: the rows that selections choose.
    repeated: whether a source may come again, as it does where stores follow
      each other; costs memory of 8 bytes a source and step.

  Returns:
    One preview a step.
  """
  counts = np.zeros((len(steps), len(_COUNTS)), np.int64)
  sums = np.zeros((len(steps), 2), np.float64)
  # Of all, then of each.
  lengths = [_Histogram() for _ in range(len(steps) + 1)]
  sources = [_Sources(repeated) for _ in range(len(steps) + 1)]
  for rows in stream:
    lengths[-1].add(rows.source_lengths[~rows.is_reference])
    sources[-1].add(rows, ~rows.is_reference)
    for number, selections in enumerate(steps):
      kept = select(selections, rows)
      more_counts, more_sums = _tally(rows, kept)
      counts[number] += more_counts
      sums[number] += more_sums
      lengths[number].add(rows.source_lengths[kept & ~rows.is_reference])
      sources[number].add(rows, kept & ~rows.is_reference)
  return [
    _preview(
      counts[number],
      sums[number],
      sources[-1].count(),
      sources[number].count(),
      _by_decile(lengths[-1], lengths[number]),
    )
    for number in range(len(steps))
  ]


class _Sources:
  """How many sources have a row."""

  def __init__(self, repeated: bool):
    self._ids: list[np.ndarray] | None = [] if repeated else None
    self._count = 0

  def add(self, rows: rows_lib.Rows, mask: np.ndarray) -> None:
    there = rows.count(mask) > 0
    self._count += int(np.count_nonzero(there))
    if self._ids is not None:
      self._ids.append(rows.source_ids[there])

  def count(self) -> int:
    if not self._ids:
      return self._count
    self._ids = [np.unique(np.concatenate(self._ids))]
    return len(self._ids[0])


class _Histogram:
  """How many samples there are of each source length."""

  def __init__(self):
    self.counts = np.zeros(1, np.int64)

  def add(self, lengths: np.ndarray) -> None:
    more = np.bincount(lengths, minlength=len(self.counts))
    more[: len(self.counts)] += self.counts
    self.counts = more


def _by_decile(everything: _Histogram, kept: _Histogram) -> tuple[float, ...]:
  counts = everything.counts
  # A length belongs to the decile in which the middle of its samples lies.
  middle = np.cumsum(counts) - counts / 2
  decile = np.minimum(10 * middle / max(counts.sum(), 1), 9).astype(int)
  total = np.bincount(decile, counts, minlength=10)
  left = np.zeros_like(counts)
  left[: len(kept.counts)] = kept.counts
  chosen = np.bincount(decile, left, minlength=10)
  return tuple(
    float(a / b) if b else float('nan')
    for a, b in zip(chosen, total, strict=True)
  )


_COUNTS = (
  'samples',
  'kept_samples',
  'kept_references',
  'distinct_samples',
)


def _tally(
  rows: rows_lib.Rows, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  samples = ~rows.is_reference
  kept_samples = kept & samples
  distinct = rows_lib.first_occurrences(rows, kept_samples)
  counts = [
    np.count_nonzero(samples),
    np.count_nonzero(kept_samples),
    np.count_nonzero(kept & rows.is_reference),
    np.count_nonzero(distinct),
  ]
  sums = [
    rows.reward[kept_samples].sum(dtype=np.float64),
    rows.lengths[kept_samples].sum(dtype=np.int64),
  ]
  return np.asarray(counts), np.asarray(sums, np.float64)


def _preview(
  counts: np.ndarray,
  sums: np.ndarray,
  sources: int,
  kept_sources: int,
  shares: tuple[float, ...],
) -> StepPreview:
  named = dict(zip(_COUNTS, (int(count) for count in counts), strict=True))
  kept = named['kept_samples']
  reward, length = (float(s) / kept if kept else float('nan') for s in sums)
  return StepPreview(
    **named,
    sources=sources,
    kept_sources=kept_sources,
    starved_sources=sources - kept_sources,
    duplicates=kept - named['distinct_samples'],
    mean_reward=reward,
    mean_length=length,
    kept_by_length=shares,
  )
