import itertools

import numpy as np
import pytest

from rest_jax import best_of_n, errors

REWARDS = np.array([[0.1, 0.9, 0.5, 0.7], [0.4, 0.2, 0.2, 0.4]])
METRIC = np.array([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 40.0, 80.0]])


def test_two_of_four_by_hand():
  # Of six pairs: .5 wins one (.1), .7 two (.1, .5), .9 three.
  by_hand = (0.5 + 2 * 0.7 + 3 * 0.9) / 6
  found = best_of_n.estimate(REWARDS, 2)
  np.testing.assert_allclose(found, [by_hand, (0.2 + 5 * 0.4) / 6])
  # Their metrics: 3 for .5, 4 for .7, 2 for .9. In the second source a pair of
  # equal rewards is decided by a coin.
  first = (3.0 + 2 * 4.0 + 3 * 2.0) / 6
  second = (30.0 + 45.0 + 2 * 10.0 + 2 * 80.0) / 6
  found = best_of_n.estimate(REWARDS, 2, METRIC)
  np.testing.assert_allclose(found, [first, second])


def test_one_is_the_mean_and_all_is_the_maximum():
  np.testing.assert_allclose(
    best_of_n.estimate(REWARDS, 1), REWARDS.mean(axis=1)
  )
  np.testing.assert_allclose(
    best_of_n.estimate(REWARDS, 4), REWARDS.max(axis=1)
  )
  np.testing.assert_allclose(
    best_of_n.estimate(REWARDS, 1, METRIC), METRIC.mean(axis=1)
  )


@pytest.mark.parametrize('size', [1, 2, 3, 5, 7])
def test_it_is_the_mean_over_all_subsets(size):
  rng = np.random.default_rng(size)
  rewards = rng.integers(0, 4, (3, 7)) / 4  # With ties.
  metric = rng.normal(size=(3, 7))
  subsets = list(itertools.combinations(range(7), size))
  for row, values, found, chosen in zip(
    rewards,
    metric,
    best_of_n.estimate(rewards, size),
    best_of_n.estimate(rewards, size, metric),
    strict=True,
  ):
    best = [row[list(s)].max() for s in subsets]
    assert found == pytest.approx(np.mean(best))
    won = [
      np.mean([values[i] for i in s if row[i] == most])
      for s, most in zip(subsets, best, strict=True)
    ]
    assert chosen == pytest.approx(np.mean(won))


def test_large_n_neither_overflows_nor_loses_weight():
  weights = best_of_n.winner_weights(400, 200)
  assert weights.sum() == pytest.approx(1.0)
  assert (np.diff(weights) >= 0).all()


def curve_of(rewards):
  sizes = range(1, 9)
  return np.array([best_of_n.estimate(rewards, n).mean() for n in sizes])


def test_a_curve_never_falls_and_tells_where_it_reaches_an_aim():
  rewards = np.random.default_rng(0).random((40, 16))
  curve = curve_of(rewards)
  assert (np.diff(curve) > 0).all()
  for size in (1, 4, 8):
    aim = curve[size - 1]
    assert best_of_n.equal_size(rewards, aim, 8) == size
    assert best_of_n.equal_size(rewards, aim - 1e-6, 8) == size
  assert best_of_n.equal_size(rewards, curve[3] + 1e-6, 8) == 5
  assert best_of_n.equal_size(rewards, 1.0, 8) is None


@pytest.mark.parametrize('reward', [0.7, 1.0])
def test_a_solved_task_is_reached_by_one_sample(reward):
  # Weights of a mean of equal numbers add up to 1 but for rounding.
  rewards = np.full((5, 8), reward)
  assert best_of_n.equal_size(rewards, rewards.mean(), 4) == 1


@pytest.mark.parametrize('size', [0, 5])
def test_more_than_there_are_is_an_error(size):
  with pytest.raises(errors.DataError, match=f'best-of-{size} from 4 samples'):
    best_of_n.estimate(REWARDS, size)


def test_rows_go_up_to_half_of_the_samples():
  rewards = np.random.default_rng(0).random((5, 12))
  rows = best_of_n.rows('BC', rewards, {'score_x': 1 - rewards})
  assert [row.size for row in rows] == [1, 2, 4]
  for row in rows:
    assert row.reward == pytest.approx(
      100 * best_of_n.estimate(rewards, row.size).mean()
    )
    assert row.held_out['score_x'] == pytest.approx(1 - row.reward / 100)


def test_rows_say_which_n_of_bc_they_equal():
  of_bc = np.random.default_rng(0).random((5, 16))
  assert [row.size_of_bc for row in best_of_n.rows('BC', of_bc, {})] == [
    None
  ] * 4
  curve = curve_of(of_bc)
  # A policy with samples just below BC's best of three, then far above it.
  near = np.full((5, 4), curve[2] - 1e-6)
  rows = best_of_n.rows('G1 I0', near, {}, of_bc)
  assert [(row.size, row.size_of_bc) for row in rows] == [(1, 3), (2, 3)]
  (row, _) = best_of_n.rows('G1 I1', np.ones((5, 4)), {}, of_bc)
  assert row.size_of_bc is None


def test_mbr_takes_the_sample_that_agrees_best():
  texts = [['a cat sat', 'the cat sat', 'the cat sits'], ['x', 'one', 'one']]
  rewards = np.array([[0.9, 0.2, 0.5], [1.0, 0.4, 0.4]])
  row = best_of_n.mbr_row('BC', texts, rewards, {'score_x': 10 * rewards})
  assert (row.size, row.chosen_by) == (3, 'mbr')
  assert row.reward == pytest.approx(100 * (0.2 + 0.4) / 2)
  assert row.held_out['score_x'] == pytest.approx(10 * (0.2 + 0.4) / 2)
