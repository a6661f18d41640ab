"""What each Improve step would train on, before any training."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from rest_jax import rows as rows_lib
from rest_jax import selection

# What `preview` reads besides what the selections need.
NEEDS = frozenset({'text_ids'})


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
    distinct_samples: kept samples that differ in text, within their source.
    duplicates: kept samples that repeat an earlier one of their source.
    mean_reward: of the kept samples, in [0, 1]; NaN if there are none.
    mean_length: of the kept samples, target tokens with EOS; NaN likewise.
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


def preview(
  stream: Iterable[rows_lib.Rows],
  steps: Sequence[Sequence[selection.Selection]],
) -> list[StepPreview]:
  """Counts what each step keeps, in one pass and constant memory.

  Args:
    stream: row groups of whole sources, with the fields that `NEEDS` and
      `selection.needs_of` of every step name.
    steps: the selections of each Improve step.

  Returns:
    One preview a step.
  """
  counts = np.zeros((len(steps), len(_COUNTS)), np.int64)
  sums = np.zeros((len(steps), 2), np.float64)
  for rows in stream:
    for number, selections in enumerate(steps):
      more_counts, more_sums = _tally(rows, selections)
      counts[number] += more_counts
      sums[number] += more_sums
  return [_preview(*figures) for figures in zip(counts, sums, strict=True)]


_COUNTS = (
  'samples',
  'sources',
  'kept_samples',
  'kept_references',
  'kept_sources',
  'distinct_samples',
)


def _tally(
  rows: rows_lib.Rows, selections: Sequence[selection.Selection]
) -> tuple[np.ndarray, np.ndarray]:
  kept = selection.select(selections, rows)
  samples = ~rows.is_reference
  kept_samples = kept & samples
  distinct = rows_lib.first_occurrences(rows, kept_samples)
  counts = [
    np.count_nonzero(samples),
    np.count_nonzero(rows.count(samples)),
    np.count_nonzero(kept_samples),
    np.count_nonzero(kept & rows.is_reference),
    np.count_nonzero(rows.count(kept_samples)),
    np.count_nonzero(distinct),
  ]
  sums = [
    rows.reward[kept_samples].sum(dtype=np.float64),
    rows.lengths[kept_samples].sum(dtype=np.int64),
  ]
  return np.asarray(counts), np.asarray(sums, np.float64)


def _preview(counts: np.ndarray, sums: np.ndarray) -> StepPreview:
  named = dict(zip(_COUNTS, (int(count) for count in counts), strict=True))
  kept = named['kept_samples']
  reward, length = (float(s) / kept if kept else float('nan') for s in sums)
  return StepPreview(
    **named,
    starved_sources=named['sources'] - named['kept_sources'],
    duplicates=kept - named['distinct_samples'],
    mean_reward=reward,
    mean_length=length,
  )
