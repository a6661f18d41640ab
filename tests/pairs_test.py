import dataclasses

import numpy as np
import pytest

from rest_jax import pairs, preview, selection
from rest_jax import rows as rows_lib
from rest_jax.rows import IMPORTED, POLICY, REFERENCE, Rows


def rows_of(*sources, seed_ids=None):
  """Rows of sources, each a list of (origin, reward, finished[, text])."""
  flat = [row for source in sources for row in source]
  offsets = np.cumsum([0, *(len(source) for source in sources)])
  index = [i for source in sources for i in range(len(source))]
  ids = seed_ids or range(len(sources))
  return Rows(
    source_ids=np.array(list(ids), np.int64),
    offsets=offsets.astype(np.int64),
    sample_index=np.array(index, np.int32),
    origin=np.array([row[0] for row in flat], np.int8),
    reward=np.array([row[1] for row in flat], np.float32),
    finished=np.array([row[2] for row in flat], bool),
    lengths=np.full(len(flat), 3, np.int32),
    # A source's texts all differ, unless a row names its own.
    text_ids=np.array(
      [row[3] if len(row) > 3 else i for i, row in enumerate(flat)], np.int32
    ),
  )


def test_pairs_by_hand():
  rows = rows_of(
    # A reference and imported rows are no part of a pair; ties to the first.
    [
      (REFERENCE, 1.0, True),
      (POLICY, 0.2, True),
      (POLICY, 0.8, True),
      (POLICY, 0.8, True),
      (POLICY, 0.2, True),
      (IMPORTED, 0.9, True),
      (IMPORTED, 0.0, True),
    ],
    [(POLICY, 0.5, True), (POLICY, 0.5, True)],  # No difference, no pair.
    [(POLICY, 0.9, True)],
    # What never ended is neither the best nor the worst.
    [(POLICY, 0.1, False), (POLICY, 0.4, True), (POLICY, 0.6, True),
     (POLICY, 0.9, False)],
  )  # fmt: skip
  better, worse = pairs.best_and_worst(rows, np.ones(14, bool))
  assert better.tolist() == [2, 12]
  assert worse.tolist() == [1, 11]


def test_the_better_sample_passes_the_filter_and_the_worse_need_not():
  rows = rows_of(
    [(POLICY, 0.3, True), (POLICY, 0.7, True), (POLICY, 0.5, True)],
    [(POLICY, 0.2, True), (POLICY, 0.1, True)],
  )
  better, worse = pairs.best_and_worst(rows, rows.reward > np.float32(0.4))
  assert (better.tolist(), worse.tolist()) == ([1], [0])


def test_a_text_is_not_paired_with_itself():
  # Rewards that were permuted differ where texts do not.
  rows = rows_of(
    [(POLICY, 1.0, True, 7), (POLICY, 0.0, True, 7), (POLICY, 0.5, True, 8)],
    [(POLICY, 1.0, True, 7), (POLICY, 0.0, True, 7)],
  )
  better, worse = pairs.best_and_worst(rows, np.ones(5, bool))
  assert (better.tolist(), worse.tolist()) == ([0], [2])


def test_rewards_of_references_change_places_among_all_of_them():
  # Each source has one, which alone could go nowhere.
  sources = [
    [(REFERENCE, 0.01 * i, True), (POLICY, 0.9, True)] for i in range(60)
  ]
  rows = rows_of(*sources)
  rewards = rows_lib.permuted_rewards(rows, seed=3)
  assert (rewards[1::2] == np.float32(0.9)).all()
  assert sorted(rewards[::2]) == sorted(rows.reward[::2])
  assert (rewards[::2] == rows.reward[::2]).mean() < 0.2


def test_what_pairs_train_on_is_counted_as_kept():
  def source(number, length, *rewards):
    rows = rows_of([(POLICY, r, True) for r in rewards], seed_ids=[number])
    lengths = np.full(len(rewards), length, np.int32)
    return dataclasses.replace(rows, source_lengths=lengths)

  sources = [
    source(0, 3, 0.3, 0.7, 0.6),
    source(1, 30, 0.2, 0.1),  # No sample passes the filter.
    source(2, 60, 0.8, 0.8),  # No sample is worse.
  ]
  chosen = (selection.Threshold(0.5),)
  (kept,) = preview.preview(iter(sources), [chosen])
  assert (kept.kept_samples, kept.starved_sources) == (4, 1)
  (trained,) = preview.preview(iter(sources), [chosen], pairs.select)
  assert (trained.kept_samples, trained.kept_sources) == (2, 1)
  assert (trained.distinct_samples, trained.starved_sources) == (2, 2)
  shares = [share for share in trained.kept_by_length if share == share]
  np.testing.assert_allclose(shares, [2 / 3, 0, 0])


def test_permuted_rewards_stay_within_their_source():
  sources = [
    [(REFERENCE, 1.0, True)]
    + [(POLICY, 0.1 * i, True) for i in range(8)]
    + [(POLICY, 0.95, False)]
    for _ in range(50)
  ]
  rows = rows_of(*sources)
  rewards = rows_lib.permuted_rewards(rows, seed=3).reshape(50, 10)
  given = rows.reward.reshape(50, 10)
  # References and what never ended keep theirs; the others' are the same set.
  np.testing.assert_array_equal(rewards[:, [0, 9]], given[:, [0, 9]])
  np.testing.assert_array_equal(np.sort(rewards[:, 1:9]), given[:, 1:9])
  # As likely in one place as in another: about 50 / 8 stay where they were.
  stayed = (rewards[:, 1:9] == given[:, 1:9]).sum(axis=0)
  assert stayed.sum() < 100
  again = rows_lib.permuted_rewards(rows, seed=3).reshape(50, 10)
  np.testing.assert_array_equal(rewards, again)
  other = rows_lib.permuted_rewards(rows, seed=4).reshape(50, 10)
  assert (rewards != other).any()


def test_permuted_by_text_copies_move_together_and_as_many_pass():
  # As drawn: a right text three times, three wrong ones, one never finished.
  source = [
    *[(POLICY, 1.0, True, 4)] * 2,
    (POLICY, 0.0, True, 5),
    (POLICY, 0.0, False, 4),
    (POLICY, 1.0, True, 4),
    (POLICY, 0.1, True, 6),
    (POLICY, 0.2, True, 7),
  ]
  rows = rows_of(*[source] * 400)
  found = rows_lib.permuted_rewards(rows, seed=3, by_text=True)
  moved = found.reshape(400, 7)
  np.testing.assert_array_equal(moved[:, 3], 0)  # Kept its own.
  assert (moved[:, [1, 4]] == moved[:, [0]]).all()
  texts = np.sort(moved[:, [0, 2, 5, 6]])
  np.testing.assert_array_equal(texts, np.float32([[0.0, 0.1, 0.2, 1.0]] * 400))
  # One of four, however often a text was drawn.
  assert (moved[:, 0] == 1).mean() == pytest.approx(0.25, abs=0.06)
  permuted = dataclasses.replace(rows, reward=found)
  rules = (
    (selection.Threshold(0.15), selection.Deduplicate()),
    (selection.Percentile(50.0),),
    (selection.TopK(2),),
  )
  for chosen in rules:
    np.testing.assert_array_equal(
      rows.count(selection.select(chosen, permuted)),
      rows.count(selection.select(chosen, rows)),
    )
  # Sample by sample, texts that pass by chance are kept beside the right one.
  apart = dataclasses.replace(
    rows, reward=rows_lib.permuted_rewards(rows, seed=3)
  )
  more = [
    rows.count(selection.select(rules[0], each)).sum() for each in (apart, rows)
  ]
  assert more[0] > more[1]


def test_permuting_does_not_depend_on_how_the_store_is_cut():
  source = [(POLICY, 0.1 * i, True) for i in range(6)]
  both = rows_lib.permuted_rewards(rows_of(source, source), seed=1)
  second = rows_lib.permuted_rewards(rows_of(source, seed_ids=[1]), seed=1)
  np.testing.assert_array_equal(both[6:], second)
