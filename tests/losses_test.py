import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_jax import (
  errors,
  losses,
  reward_losses,
  types,
)


def packed_batch(first: float, second: float) -> types.Batch:
  """The worked example of `types.Batch`, with the weights of its two pairs."""
  return types.Batch(
    encoder_input_tokens=jnp.array([[5, 6, 1, 8, 1, 0]]),
    decoder_input_tokens=jnp.array([[0, 7, 0, 9, 9, 0]]),
    decoder_target_tokens=jnp.array([[7, 1, 9, 9, 1, 0]]),
    decoder_loss_weights=jnp.array([[first, first, *[second] * 3, 0.0]]),
    encoder_segment_ids=jnp.array([[1, 1, 1, 2, 2, 0]]),
    decoder_segment_ids=jnp.array([[1, 1, 2, 2, 2, 0]]),
  )


def scores_of(probabilities: list[float]) -> types.TokenScores:
  """Scores over a vocabulary of two tokens, one row."""
  p = jnp.array([probabilities])
  return types.TokenScores(
    log_probs=jnp.log(p),
    log_normalizers=jnp.full_like(p, 3.0),
    mean_log_probs=(jnp.log(p) + jnp.log(1 - p)) / 2,
  )


def test_bc_is_minus_log_probability():
  values = losses.negative_log_likelihood(jnp.log(jnp.array([0.5, 0.25, 1.0])))
  np.testing.assert_allclose(values, [math.log(2), math.log(4), 0.0], rtol=1e-6)


def test_label_smoothing_is_cross_entropy_to_smoothed_targets():
  scores = scores_of([0.8])
  loss = losses.BehavioralCloning(label_smoothing=0.1)
  # Of two tokens the right one gets 0.9 + 0.05 and the other 0.05.
  expected = -(0.95 * math.log(0.8) + 0.05 * math.log(0.2))
  value = loss(scores, packed_batch(1.0, 1.0))
  np.testing.assert_allclose(value, [[expected]], rtol=1e-6)


def test_z_loss_adds_squared_log_normalizer():
  value = losses.BehavioralCloning(z_loss=0.01)(
    scores_of([0.5]), packed_batch(1.0, 1.0)
  )
  np.testing.assert_allclose(value, [[math.log(2) + 0.09]], rtol=1e-6)


@pytest.mark.parametrize(
  ('first', 'second', 'tokens', 'sequences', 'count'),
  [
    (1.0, 1.0, 5.0, 2.0, 5),
    (0.5, 2.0, 7.0, 2.5, 5),
    (0.0, 1.0, 3.0, 1.0, 3),
    (-1.0, 1.0, 5.0, 2.0, 5),
    (0.0, 0.0, 0.0, 0.0, 0),
  ],
)
def test_normalizers_of_a_packed_row(first, second, tokens, sequences, count):
  batch = packed_batch(first, second)
  assert losses.loss_normalizer(batch, 'tokens') == tokens
  assert losses.loss_normalizer(batch, 'sequences') == sequences
  assert losses.count_tokens(batch) == count


@given(st.floats(0.01, 0.99), st.floats(0.0, 0.9))
def test_smoothing_is_least_where_the_policy_equals_the_targets(p, epsilon):
  def smoothed(probability):
    scores = scores_of([probability])
    return float(
      losses.label_smoothing(-scores.log_probs, scores.mean_log_probs, epsilon)[
        0, 0
      ]
    )

  best = min(1 - epsilon / 2, 1 - 1e-6)
  assert smoothed(p) >= smoothed(best) - 1e-5


@pytest.mark.parametrize(
  'setting',
  [
    {'label_smoothing': 1.0},
    {'label_smoothing': -0.1},
    {'z_loss': -1e-4},
    {'z_loss': math.nan},
  ],
)
def test_settings_out_of_range_name_the_binding(setting):
  (name,) = setting
  with pytest.raises(
    errors.ConfigurationError, match=f'BehavioralCloning.{name}'
  ):
    losses.BehavioralCloning(**setting)


def test_regression_is_the_squared_distance_to_the_level():
  batch = packed_batch(1.0, 1.0).replace(
    decoder_target_tokens=jnp.array(
      [
        [reward_losses.level_of(s) for s in (0.0, 1.0, 0.25, 0.5, 0.123456)]
        + [0]
      ]
    )
  )
  scores = jnp.array([[0.5, 0.5, 0.25, 2.0, 0.123456, 9.0]])
  values = reward_losses.Regression()(scores, batch)
  np.testing.assert_allclose(
    values[0, :5], [0.25, 0.25, 0.0, 2.25, 0.0], atol=1e-6
  )


def test_a_preference_costs_minus_log_sigma_of_its_margin():
  # Two packed pairs and padding.
  batch = packed_batch(1.0, 1.0).replace(
    decoder_target_tokens=jnp.array([[2, 1, 2, 1, 0, 0]])
  )
  scores = jnp.array([[1.0, 0.5, -2.0, 1.0, 7.0, -7.0]])
  values = reward_losses.BradleyTerry()(scores, batch)
  first, second = math.log1p(math.exp(-0.5)), math.log1p(math.exp(3.0))
  np.testing.assert_allclose(
    values[0, :4], [first, first, second, second], rtol=1e-6
  )


def test_what_training_asks_of_a_loss():
  for loss in (
    losses.BehavioralCloning(),
    reward_losses.Regression(),
    reward_losses.BradleyTerry(),
  ):
    assert isinstance(loss, losses.TokenLoss)
    assert hash(loss) == hash(type(loss)())


def test_linear_weights_are_the_rewards():
  rewards = np.array([0.0, 0.25, 1.0], np.float32)
  weights = losses.RewardWeighted(weighting='linear').row_weights(rewards)
  np.testing.assert_array_equal(weights, rewards)


def test_exponential_weights_stand_to_each_other_as_exp_of_reward_over_beta():
  rewards = np.array([0.5, 0.75, 1.0], np.float32)
  weights = losses.RewardWeighted(beta=0.25).row_weights(rewards)
  np.testing.assert_allclose(
    weights / weights[0], [1.0, math.e, math.e**2], rtol=1e-6
  )
  assert weights.dtype == np.float32
  # A small β neither overflows nor leaves the best row without weight.
  small = losses.RewardWeighted(beta=1e-4).row_weights(rewards)
  np.testing.assert_allclose(small, [0.0, 0.0, 1.0], atol=1e-30)


def test_plain_bc_weighs_all_rows_alike():
  weights = losses.BehavioralCloning().row_weights(np.array([0.1, 0.9]))
  np.testing.assert_array_equal(weights, [1.0, 1.0])
  assert losses.BehavioralCloning().fits_references
  assert not losses.RewardWeighted().fits_references


@pytest.mark.parametrize(
  'setting', [{'beta': 0.0}, {'beta': math.inf}, {'z_loss': -1.0}]
)
def test_reward_weighted_settings_out_of_range(setting):
  with pytest.raises(errors.ConfigurationError, match=next(iter(setting))):
    losses.RewardWeighted(**setting)
