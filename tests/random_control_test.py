import dataclasses

import numpy as np
import pytest

from rest_jax import random_control, selection, top_share
from rest_jax.rows import POLICY, REFERENCE, Rows

DEDUPLICATE = selection.Deduplicate()


def one_source(origins, rewards):
  """Rows of one source, all finished."""
  count = len(origins)
  return Rows(
    source_ids=np.array([7], np.int64),
    offsets=np.array([0, count], np.int64),
    sample_index=np.arange(-1, count - 1, dtype=np.int32),
    origin=np.array(origins, np.int8),
    reward=np.array(rewards, np.float32),
    finished=np.ones(count, bool),
    lengths=np.full(count, 3, np.int32),
  )


@pytest.mark.parametrize('with_references', [False, True])
def test_the_random_control_draws_from_what_the_filter_chose_among(
  with_references,
):
  rows = one_source([REFERENCE] + [POLICY] * 3, [1.0, 0.9, 0.1, 0.2])
  chosen = (selection.Threshold(0.5),)
  if not with_references:
    chosen = (selection.SamplesOnly(), *chosen)
  kept = [
    selection.select(random_control.like(chosen, 0, seed), rows)
    for seed in range(50)
  ]
  assert {int(k.sum()) for k in kept} == {1 + with_references}
  drawn = set(np.flatnonzero(np.any(kept, axis=0)))
  assert drawn == ({0, 1, 2, 3} if with_references else {1, 2, 3})


def test_the_random_control_respects_what_stands_before_the_filter():
  rows = one_source([POLICY] * 4, [0.9, 0.8, 0.1, 0.2])
  chosen = (
    selection.Cap(2, by='reward'),
    selection.Threshold(0.85),
    selection.Unfiltered(),
  )
  for seed in range(20):
    control = random_control.like(chosen, 1, seed)
    kept = selection.select(control, rows)
    assert kept.sum() == 1
    assert not kept[2:].any()


def many_sources(count, samples, right, seed):
  """Sources of several samples each, a share of them right, by chance."""
  rng = np.random.default_rng(seed)
  size = count * samples
  return Rows(
    source_ids=np.arange(count, dtype=np.int64),
    offsets=np.arange(0, size + 1, samples, dtype=np.int64),
    sample_index=np.tile(np.arange(samples, dtype=np.int32), count),
    origin=np.full(size, POLICY, np.int8),
    reward=(rng.random(size) < right).astype(np.float32),
    finished=np.ones(size, bool),
    lengths=np.full(size, 3, np.int32),
    text_ids=np.tile(np.arange(samples, dtype=np.int32), count),
    length_ratios=np.ones(size, np.float32),
    copies=np.zeros(size, bool),
  )


@pytest.mark.parametrize(
  'chosen',
  [top_share.TopShare(1.0, 0.25), selection.Cap(2), selection.TopK(2)],
)
def test_the_draw_knows_no_reward_whatever_the_seeds(chosen):
  rows = many_sources(5000, 8, 0.5, seed=0)
  right = rows.count(rows.reward > 0)
  for seed in (0, 1):
    (control,) = random_control.like((chosen,), 0, seed)
    kept = selection.select((control,), rows)
    number = rows.count(selection.select((chosen,), rows))
    np.testing.assert_array_equal(rows.count(kept), number)
    # Neither is it the twin's own choice: of the rows that this keeps it has
    # as many as chance gives.
    twin = selection.select((chosen,), rows)
    by_chance = (number**2 / 8).sum() / number.sum()
    assert (kept & twin).sum() / twin.sum() == pytest.approx(
      by_chance, abs=0.02
    )
    # A blind draw of so many from each source.
    blind = (number * right / 8).sum() / number.sum()
    assert rows.reward[kept].mean() == pytest.approx(blind, abs=0.02)


@pytest.mark.parametrize(
  'chosen', [(selection.TopK(2),), (selection.Threshold(0.5), DEDUPLICATE)]
)
def test_the_draw_repeats_no_text_where_the_twin_repeats_none(chosen):
  rows = many_sources(200, 8, 0.5, seed=0)
  # Four texts a source, each drawn twice, with its reward.
  rows = dataclasses.replace(
    rows,
    text_ids=rows.text_ids // 2,
    reward=np.repeat(rows.reward[::2], 2),
  )
  control = random_control.like(chosen, len(chosen) - 1, seed=0)
  kept = selection.select(control, rows)
  assert (
    rows.count(kept).sum() == rows.count(selection.select(chosen, rows)).sum()
  )
  texts = rows.source_of_row[kept] * 4 + rows.text_ids[kept]
  assert len(set(texts.tolist())) == len(texts)


@pytest.mark.parametrize(
  ('chosen', 'num_after'),
  [
    ((selection.TopK(1),), 0),
    ((selection.Cap(1, by='reward'), DEDUPLICATE), 1),
    ((DEDUPLICATE, selection.Cap(1, by='reward')), 0),
  ],
)
def test_a_text_is_drawn_as_often_as_the_policy_drew_it(chosen, num_after):
  # A right text twenty times, and twelve wrong ones once each.
  rows = many_sources(3000, 32, 0.5, seed=0)
  rows = dataclasses.replace(
    rows,
    text_ids=np.maximum(rows.sample_index - 19, 0),
    reward=(rows.sample_index < 20).astype(np.float32),
  )
  kept = selection.select(random_control.like(chosen, num_after, seed=0), rows)
  assert (rows.count(kept) == 1).all()
  # Blind, 20 of 32; by texts it would be 1 of 13.
  assert rows.reward[kept].mean() == pytest.approx(20 / 32, abs=0.03)


def test_what_an_earlier_store_gave_is_neither_kept_nor_drawn():
  rows = many_sources(500, 8, 0.5, seed=0)
  rows = dataclasses.replace(rows, given=rows.sample_index < 4)
  chosen = (selection.Threshold(0.5), DEDUPLICATE)
  twin = selection.select(chosen, rows)
  np.testing.assert_array_equal(twin, (rows.reward > 0.5) & ~rows.given)
  kept = selection.select(random_control.like(chosen, 1, seed=0), rows)
  assert not kept[rows.given].any()
  np.testing.assert_array_equal(rows.count(kept), rows.count(twin))


@pytest.mark.parametrize('by', ['random', 'reward'])
def test_what_was_given_does_not_fill_a_cap(by):
  rows = many_sources(100, 8, 1.0, seed=0)
  rows = dataclasses.replace(rows, given=rows.sample_index < 4)
  kept = selection.select((DEDUPLICATE, selection.Cap(3, by=by)), rows)
  assert (rows.count(kept) == 3).all()


def test_what_is_not_valid_is_not_drawn():
  rows = many_sources(50, 8, 0.5, seed=0)
  rows = dataclasses.replace(rows, copies=rows.sample_index % 2 == 0)
  chosen = (selection.Threshold(0.5), selection.Valid())
  control = random_control.like(chosen, 1, seed=0)
  kept = selection.select(control, rows)
  assert kept.any()
  assert not rows.copies[kept].any()
