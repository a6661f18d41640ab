import math

import numpy as np

from rest_jax import preview, rows
from rest_jax.selection import Deduplicate, Threshold, Unfiltered


def group(first_id, counts, origin, reward, text, lengths):
  number = len(reward)
  return rows.Rows(
    source_ids=np.arange(first_id, first_id + len(counts), dtype=np.int64),
    offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    sample_index=np.arange(number, dtype=np.int32),
    origin=np.asarray(origin, np.int8),
    reward=np.asarray(reward, np.float32),
    finished=np.asarray([length < 9 for length in lengths]),
    lengths=np.asarray(lengths, np.int32),
    text_ids=np.asarray(text, np.int32),
  )


def stream():
  # A reference and three samples (two equal); a reference alone; two samples,
  # of which one never ended.
  yield group(
    0,
    [4, 1],
    [1, 0, 0, 0, 1],
    [1.0, 0.5, 0.5, 0.25, 0.75],
    [0, 1, 1, 2, 3],
    [4, 2, 2, 6, 3],
  )
  yield group(2, [2], [0, 0], [0.25, 1.0], [0, 1], [4, 9])


def test_figures_by_hand():
  steps = [(Unfiltered(),), (Threshold(0.4),), (Deduplicate(), Threshold(0.4))]
  everything, filtered, distinct = preview.preview(stream(), steps)
  assert everything == preview.StepPreview(
    samples=5,
    sources=2,
    kept_samples=4,
    kept_references=2,
    kept_sources=2,
    starved_sources=0,
    distinct_samples=3,
    duplicates=1,
    mean_reward=0.375,
    mean_length=3.5,
  )
  assert filtered == preview.StepPreview(
    samples=5,
    sources=2,
    kept_samples=2,
    kept_references=2,
    kept_sources=1,
    starved_sources=1,
    distinct_samples=1,
    duplicates=1,
    mean_reward=0.5,
    mean_length=2.0,
  )
  assert (distinct.kept_samples, distinct.duplicates) == (1, 0)


def test_nothing_kept_and_nothing_there():
  (nothing,) = preview.preview(stream(), [(Threshold(0.99),)])
  assert (nothing.kept_samples, nothing.starved_sources) == (0, 2)
  assert math.isnan(nothing.mean_reward)
  assert math.isnan(nothing.mean_length)
  (empty,) = preview.preview(iter(()), [(Unfiltered(),)])
  assert (empty.samples, empty.sources) == (0, 0)
