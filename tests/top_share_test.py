"""The best share of all samples, whatever their sources."""

import dataclasses

import numpy as np
import pytest

from rest_jax import errors, rows, schedule, selection, top_share


def stream(*chunks):
  return lambda: (np.asarray(chunk, np.float32) for chunk in chunks)


def scored_rows(rewards):
  """A source with a sample of each reward."""
  count = len(rewards)
  return rows.Rows(
    source_ids=np.zeros(1, np.int64),
    offsets=np.array([0, count]),
    sample_index=np.arange(count, dtype=np.int32),
    origin=np.zeros(count, np.int8),
    reward=np.asarray(rewards, np.float32),
    finished=np.ones(count, bool),
    lengths=np.ones(count, np.int32),
  )


def kept(shares, rewards, seed=0):
  """How many of `rewards` each step keeps."""
  half = len(rewards) // 2
  filters = top_share.TopShares(shares, seed).filters(
    stream(rewards[:half], rewards[half:])
  )
  found = scored_rows(rewards)
  return [int(selection.select((f,), found).sum()) for f in filters]


def test_of_different_rewards_the_best_stay():
  rewards = np.random.default_rng(0).permutation(400) / 400
  assert kept((0.5, 0.25, 0.125), rewards) == [200, 100, 50]
  (best,) = top_share.TopShares((0.125,)).filters(stream(rewards))
  found = scored_rows(rewards)
  chosen = selection.select((best,), found)
  assert found.reward[chosen].min() > found.reward[~chosen].max()


def test_where_most_rewards_are_right_the_share_stays_what_it_is():
  rewards = np.r_[np.ones(3000), np.linspace(0.0, 0.9, 1000)]
  # Quantiles end here: no reward exceeds 1.
  with pytest.raises(errors.ConfigurationError, match='TopShares'):
    schedule.Quantiles((0.875,)).filters(stream(rewards))
  first, *others = kept((0.9, 0.5, 0.125), rewards)
  assert first == 3600  # Among different rewards.
  np.testing.assert_allclose(others, [2000, 500], rtol=0.12)
  # Which of them is chance, and the same chance again.
  (some,) = top_share.TopShares((0.125,)).filters(stream(rewards))
  found = scored_rows(rewards)
  others = dataclasses.replace(some, seed=1)
  chosen, again, other = (
    selection.select((f,), found) for f in (some, some, others)
  )
  assert (chosen == again).all()
  assert (chosen != other).any()


def test_a_stricter_share_keeps_some_of_what_a_laxer_one_keeps():
  rewards = np.repeat([0.25, 0.5, 1.0], 200)
  filters = top_share.TopShares((0.9, 0.5, 0.2)).filters(stream(rewards))
  found = scored_rows(rewards)
  before = np.ones(600, bool)
  for each in filters:
    now = selection.select((each,), found)
    assert not (now & ~before).any()
    assert now.sum() < before.sum()
    before = now


def test_everything_may_stay():
  assert kept((1.0,), np.array([0.0, 0.5, 0.5, 1.0])) == [4]


@pytest.mark.parametrize(
  ('shares', 'message'),
  [((0.0,), 'must be in'), ((1.5,), 'must be in'), ((0.2, 0.5), 'must fall')],
)
def test_shares_out_of_range(shares, message):
  with pytest.raises(errors.ConfigurationError, match=message):
    top_share.TopShares(shares)


def test_it_is_a_schedule():
  steps = top_share.TopShares((0.5, 0.125))
  assert isinstance(steps, schedule.Schedule)
  assert (steps.num_steps, steps.label(2)) == (2, 'best 12.5 % of all')
  assert steps.first(1) == top_share.TopShares((0.5,))
