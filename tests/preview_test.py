import math

import numpy as np

from rest_jax import preview, rows
from rest_jax.selection import Deduplicate, Threshold, Unfiltered


def group(first_id, counts, origin, reward, text, lengths, source_length):
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
    source_lengths=np.full(number, source_length, np.int32),
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
    3,
  )
  yield group(2, [2], [0, 0], [0.25, 1.0], [0, 1], [4, 9], 30)


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
  assert all(math.isnan(share) for share in empty.kept_by_length)


def test_kept_shares_by_decile_of_source_length():
  everything, filtered = preview.preview(
    stream(), [(Unfiltered(),), (Threshold(0.4),)]
  )
  # Three samples of the short source, then two of the long one: the middles
  # of both are at 1.5 and 4 of 5 samples, in the fourth and ninth decile.
  assert len(everything.kept_by_length) == 10
  assert (everything.kept_by_length[3], filtered.kept_by_length[3]) == (
    1.0,
    2 / 3,
  )
  assert (everything.kept_by_length[8], filtered.kept_by_length[8]) == (0.5, 0)
  others = set(range(10)) - {3, 8}
  assert all(math.isnan(everything.kept_by_length[d]) for d in others)


def test_ten_sources_of_rising_length_fill_ten_deciles():
  rewards = [0.9, 0.1, 0.9, 0.9, 0.1, 0.1, 0.1, 0.9, 0.1, 0.1]
  groups = [
    group(i, [1], [0], [rewards[i]], [0], [3], 5 * i + 1) for i in range(10)
  ]
  (found,) = preview.preview(iter(groups[::-1]), [(Threshold(0.4),)])
  assert found.kept_by_length == tuple(float(r > 0.4) for r in rewards)


def test_a_source_that_comes_again_is_one_source():
  """As where Improve trains on the samples of all Grow steps."""

  def counted(**how):
    steps = [(Threshold(0.4),)]
    twice = (rows for _ in range(2) for rows in stream())
    (found,) = preview.preview(twice, steps, **how)
    return found

  (once,) = preview.preview(stream(), [(Threshold(0.4),)])
  both = counted(repeated=True)
  assert both.kept_samples == 2 * once.kept_samples
  for name in ('sources', 'kept_sources', 'starved_sources'):
    assert getattr(both, name) == getattr(once, name)
    assert getattr(counted(), name) == 2 * getattr(once, name)
