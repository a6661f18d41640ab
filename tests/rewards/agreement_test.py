import math

import numpy as np
import pytest

from rest_jax import errors
from rest_jax.rewards.agreement import (
  agreement,
  kendall_tau,
  kendall_untied,
  spearman,
)


def array(*values):
  return np.array(values, np.float64)


def test_tau_b_counts_pairs_and_ties():
  # Pairs of (1, 2, 2, 3) with (1, 3, 2, 2): C = 3, D = 1, one tie each.
  tau = kendall_tau(array(1, 2, 2, 3), array(1, 3, 2, 2))
  assert tau == pytest.approx((3 - 1) / math.sqrt(5 * 5))
  assert kendall_tau(array(1, 2, 3), array(10, 20, 30)) == 1
  assert kendall_tau(array(1, 2, 3), array(3, 2, 1)) == -1
  assert math.isnan(kendall_tau(array(1, 1), array(1, 2)))
  assert math.isnan(kendall_tau(array(1, 2), array(1, 1)))
  assert math.isnan(kendall_tau(array(1), array(1)))


def test_accuracy_by_hand():
  # Source 0: pairs (a, b) tied by people, the others ordered; the metric sees
  # a 0.1 above b, and c and d swapped. Source 1 is right, source 2 alone.
  human = array(-1, -1, -2, -5, 0, -1, -3)
  metric = array(0.9, 0.8, 0.1, 0.4, 0.7, 0.2, 0.5)
  groups = np.array([0, 0, 0, 0, 1, 1, 2])
  found = agreement(human, metric, groups)
  # C = 4 of a–c, a–d, b–c, b–d; D = 1 of c–d; T_h = 1 of a–b.
  assert found.accuracy == pytest.approx((4 / 6 + 1) / 2)
  # ε = 0.1 makes a–b the tie that it is, and nothing else.
  assert found.epsilon == pytest.approx(0.1)
  assert found.calibrated_accuracy == pytest.approx((5 / 6 + 1) / 2)
  within = (4 - 1) / math.sqrt(5 * 6)
  assert found.tau_within == pytest.approx((within + 1) / 2)
  assert (found.rows, found.groups) == (7, 2)


def test_a_tie_that_people_do_not_see_costs():
  found = agreement(array(1, 2, 3), array(5, 5, 6), np.array([4, 4, 4]))
  assert found.accuracy == pytest.approx(2 / 3)
  assert (found.epsilon, found.calibrated_accuracy) == (0.0, found.accuracy)


def test_a_constant_metric_is_right_about_human_ties_alone():
  human, groups = array(0, 0, 0, -1), np.zeros(4, np.int64)
  found = agreement(human, np.ones(4), groups)
  assert math.isnan(found.tau) and math.isnan(found.tau_within)
  assert found.accuracy == found.calibrated_accuracy == 0.5
  # Any metric is as good once ε ties everything.
  spread = agreement(human, array(3, 2, 1, 9), groups)
  assert spread.accuracy == 0.0
  assert (spread.epsilon, spread.calibrated_accuracy) == (2.0, 0.5)


def test_equal_gaps_become_ties_together():
  # Both gaps are 1: the human tie cannot be had without spoiling b–c.
  found = agreement(array(1, 1, 2), array(1, 2, 3), np.zeros(3, np.int64))
  assert (found.epsilon, found.accuracy) == (0.0, pytest.approx(2 / 3))


def test_the_search_finds_what_trying_every_epsilon_finds():
  rng = np.random.default_rng(1)
  for _ in range(20):
    groups = rng.integers(0, 5, 30)
    human = -rng.integers(0, 4, 30).astype(np.float64)
    metric = human + rng.integers(-8, 9, 30) / 4
    rows = [np.flatnonzero(groups == g) for g in range(5)]
    rows = [r for r in rows if len(r) > 1]

    def accuracy(epsilon, human=human, metric=metric, rows=rows):
      means = []
      for r in rows:
        right = []
        for i, a in enumerate(r):
          for b in r[i + 1 :]:
            gap = metric[a] - metric[b]
            gap = 0 if abs(gap) <= epsilon else gap
            right.append(np.sign(gap) == np.sign(human[a] - human[b]))
        means.append(np.mean(right))
      return np.mean(means)

    found = agreement(human, metric, groups)
    tried = {e: accuracy(e) for e in np.arange(0, 8, 0.25)}
    assert found.accuracy == pytest.approx(tried[0.0])
    assert found.calibrated_accuracy == pytest.approx(max(tried.values()))
    assert found.calibrated_accuracy == pytest.approx(tried[found.epsilon])


def test_order_of_rows_and_names_of_groups_do_not_matter():
  rng = np.random.default_rng(2)
  human = -rng.integers(0, 4, 40).astype(np.float64)
  metric, groups = rng.normal(size=40), rng.integers(0, 9, 40)
  there = agreement(human, metric, groups)
  order = rng.permutation(40)
  other = agreement(human[order], metric[order], 100 - groups[order])
  for field in ('tau', 'tau_within', 'accuracy', 'calibrated_accuracy'):
    assert getattr(other, field) == pytest.approx(getattr(there, field))
  assert other.epsilon == there.epsilon


def test_bad_scores_are_named():
  groups = np.zeros(3, np.int64)
  with pytest.raises(errors.RewardError, match='metric score of row 1 is nan'):
    agreement(array(1, 2, 3), array(1, math.nan, 3), groups)
  with pytest.raises(errors.RewardError, match='human score of row 2 is inf'):
    agreement(array(1, 2, math.inf), array(1, 2, 3), groups)
  with pytest.raises(errors.RewardError, match='no source has two of the 3'):
    agreement(array(1, 2, 3), array(1, 2, 3), np.arange(3))


def test_spearman_shares_the_ranks_of_ties():
  wanted = np.array([0.1, 0.2, 0.2, 0.9])
  found = np.array([1.0, 5.0, 3.0, 9.0])
  # Ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4.
  expected = 4.5 / math.sqrt(4.5 * 5.0)
  assert spearman(wanted, found) == pytest.approx(expected)
  assert math.isnan(spearman(wanted, np.ones(4)))
  two = spearman(np.array([1.0, 2.0]), np.array([3.0, 1.0]))
  assert two == pytest.approx(-1)


def test_where_rewards_tie_the_pairs_that_differ_are_ordered_wholly():
  wanted = np.array([0.2, 0.9, 1.0, 1.0, 1.0])
  found = np.array([0.1, 0.2, 0.3, 0.5, 0.4])
  assert kendall_untied(wanted, found) == 1.0
  assert kendall_tau(wanted, found) < 0.9
  # Of seven pairs one is wrong, one tied.
  found = np.array([0.3, 0.2, 0.3, 0.5, 0.4])
  assert kendall_untied(wanted, found) == pytest.approx(4 / 7)
  assert math.isnan(kendall_untied(np.ones(3), np.arange(3.0)))
  assert kendall_untied(np.arange(3.0), np.ones(3)) == 0
  broken = np.array([1.0, math.nan, 2.0])
  assert math.isnan(kendall_untied(np.arange(3.0), broken))
