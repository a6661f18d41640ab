import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest_jax import errors, losses, online_losses, types


def batch_of(**figures):
  shape = np.asarray(next(iter(figures.values()))).shape
  ones = np.ones(shape, np.int32)
  return types.Batch(
    encoder_input_tokens=ones,
    decoder_input_tokens=ones,
    decoder_target_tokens=ones,
    decoder_loss_weights=ones.astype(np.float32),
    decoder_figures={k: np.asarray(v, np.float32) for k, v in figures.items()},
  )


def test_leave_one_out_by_hand():
  rewards = np.array([[1.0, 0.0, 0.5], [0.2, 0.2, 0.2]])
  found = online_losses.leave_one_out(rewards)
  wanted = [[0.75, -0.75, 0.0], [0.0, 0.0, 0.0]]
  np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_generalized_advantages_by_hand():
  # One token of reward at the end; γ = 0.5, λ = 0.5. Backwards from the end:
  # δ_2 = 1 − 0.5 = 0.5; δ_1 = 0.5·0.5 − 0.2 = 0.05; δ_0 = 0.5·0.2 − 0.1 = 0.
  rewards = np.array([[0.0, 0.0, 1.0, 0.0]], np.float32)
  values = np.array([[0.1, 0.2, 0.5, 9.0]], np.float32)
  counted = np.array([[True, True, True, False]])
  found = online_losses.generalized_advantages(
    rewards, values, counted, 0.5, 0.5
  )
  first = 0.0 + 0.25 * (0.05 + 0.25 * 0.5)
  expected = [[first, 0.05 + 0.25 * 0.5, 0.5, 0.0]]
  np.testing.assert_allclose(found, expected, atol=1e-7)


def test_without_discount_or_bootstrap_they_are_return_less_value():
  rng = np.random.default_rng(0)
  rewards, values = rng.random((2, 3, 5)).astype(np.float32)
  counted = np.arange(5) < np.array([[5], [3], [1]])
  rewards *= counted
  found = online_losses.generalized_advantages(
    rewards, values, counted, 1.0, 1.0
  )
  returns = np.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]
  np.testing.assert_allclose(
    found, np.where(counted, returns - values, 0.0), atol=1e-6
  )


def test_the_policy_gradient_weighs_by_the_advantage():
  scores = types.TokenScores(jnp.array([[-1.0, -2.0]]), None, None)
  loss = online_losses.PolicyGradient()
  values = loss(scores, batch_of(advantages=[[0.5, -0.25]]))
  np.testing.assert_allclose(values, [[0.5, -0.5]])


def test_the_surrogate_is_clipped_where_it_would_go_on():
  ratios = np.array([[0.5, 1.5, 0.5, 1.5]])
  values = online_losses.clipped_surrogate(
    jnp.log(ratios * 0.4),
    jnp.log(jnp.full((1, 4), 0.4)),
    jnp.array([[2.0, 2.0, -2.0, -2.0]]),
    0.2,
  )
  expected = [[-0.5 * 2, -1.2 * 2, 0.8 * 2, 1.5 * 2]]
  np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_ppo_adds_half_of_the_squared_error_of_values():
  batch = batch_of(
    advantages=[[1.0]], grown_log_probs=[[-1.0]], returns=[[0.75]]
  )
  scores = online_losses.ActorScores(jnp.array([[-1.0]]), jnp.array([[0.25]]))
  loss = online_losses.ProximalPolicy(value_coefficient=0.5)
  np.testing.assert_allclose(
    loss(scores, batch), [[-1.0 + 0.5 * 0.5 * 0.25]], rtol=1e-6
  )

  def total(value):
    return jnp.sum(loss(scores.replace(values=value), batch))

  np.testing.assert_allclose(
    jax.grad(total)(jnp.array([[0.25]])), [[0.5 * (0.25 - 0.75)]]
  )
  assert isinstance(loss, losses.TokenLoss)


@pytest.mark.parametrize(
  'setting', [{'epsilon': 1.0}, {'value_coefficient': -1.0}]
)
def test_settings_out_of_range_name_the_binding(setting):
  (name,) = setting
  with pytest.raises(errors.ConfigurationError, match=f'ProximalPolicy.{name}'):
    online_losses.ProximalPolicy(**setting)
