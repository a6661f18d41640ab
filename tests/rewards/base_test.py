import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rest_jax import errors
from rest_jax.rewards import base
from rest_jax.rewards.numerals import NumeralValue

CHRF = base.RewardInfo('chrf', '1', 0.0, 100.0, needs_reference=True)
METRICX = base.RewardInfo('metricx', '1', 0.0, 25.0, higher_is_better=False)


def test_rewards_lie_in_the_unit_interval_and_higher_is_better():
  scores = np.array([0.0, 5.0, 25.0], np.float32)
  np.testing.assert_allclose(
    base.to_unit_interval(scores, METRICX), [1.0, 0.8, 0.0], rtol=1e-6
  )
  np.testing.assert_allclose(
    base.to_unit_interval(scores, CHRF), [0.0, 0.05, 0.25], rtol=1e-6
  )
  assert base.to_unit_interval(scores, CHRF).dtype == np.float32


@settings(deadline=None)
@given(hnp.arrays(np.float32, 5, elements=st.floats(0, 25, width=32)))
def test_the_order_of_an_error_rate_is_turned_round(scores):
  rewards = base.to_unit_interval(scores, METRICX)
  assert ((rewards >= 0) & (rewards <= 1)).all()
  i, j = np.argmin(scores), np.argmax(scores)
  assert rewards[i] == rewards.max()
  assert rewards[j] == rewards.min()


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, -0.1, 100.1])
def test_a_score_that_cannot_be_is_named(value):
  scores = np.array([50.0, value, 50.0])
  with pytest.raises(errors.RewardError, match=r"'chrf' gave .* for row 1025"):
    base.check_scores(scores, CHRF, 3, first_row=1024)
  texts = [('a', 'b'), ('Haus', 'house'), ('c', 'd')]
  with pytest.raises(errors.RewardError, match="'Haus', candidate 'house'"):
    base.check_scores(scores, CHRF, 3, texts=texts)


@pytest.mark.parametrize('shape', [(2,), (4,), (3, 1), ()])
def test_another_number_of_scores_is_an_error(shape):
  with pytest.raises(errors.RewardError, match='for 3 rows'):
    base.check_scores(np.zeros(shape), CHRF, 3)


def test_good_scores_pass_and_rounding_at_the_ends_is_cut():
  scores = np.array([0.0, 33.3, 100.0000001])
  checked = base.check_scores(scores, CHRF, 3)
  assert checked.dtype == np.float32
  np.testing.assert_array_equal(checked, np.float32([0.0, 33.3, 100.0]))


def test_missing_references_are_an_error():
  assert base.check_references(CHRF, ['a']) == ['a']
  with pytest.raises(errors.RewardError, match="'chrf' needs references"):
    base.check_references(CHRF, None)


@pytest.mark.parametrize('name', ['', 'a/b', 'a b', '.hidden'])
def test_a_name_must_be_able_to_name_a_folder(name):
  with pytest.raises(errors.ConfigurationError, match='cannot name a folder'):
    base.RewardInfo(name, '1', 0.0, 1.0)


@pytest.mark.parametrize(
  ('low', 'high'), [(1.0, 0.0), (0.0, 0.0), (0.0, np.inf), (np.nan, 1.0)]
)
def test_a_range_must_be_finite_and_not_empty(low, high):
  with pytest.raises(errors.ConfigurationError, match='range'):
    base.RewardInfo('m', '1', float(low), float(high))


def test_a_class_of_the_users_is_a_reward_model():
  class Length:
    info = base.RewardInfo('length', '1', 0.0, 1.0)

    def score(self, sources, candidates, references=None):
      return np.array([min(len(c) / 10, 1) for c in candidates], np.float32)

  assert isinstance(Length(), base.RewardModel)
  assert isinstance(NumeralValue(), base.RewardModel)
  assert not isinstance(object(), base.RewardModel)
