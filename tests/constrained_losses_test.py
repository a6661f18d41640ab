import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest_jax import anchored, constrained_losses, errors, types

ADVANTAGES = jnp.array([[0.4, -0.2, 0.1, -0.5, 9.0]])
COUNTED = jnp.array([[True, True, True, True, False]])
LOG_PROBS = jnp.array([[-1.0, -2.0, -3.0, -4.0, -5.0]])


def test_the_top_half_leaves_out_what_does_not_count():
  chosen = constrained_losses.top_half(ADVANTAGES, COUNTED)
  assert chosen.tolist() == [[True, False, True, False, False]]


def test_psi_is_the_softmax_of_scaled_advantages_over_the_top_half():
  chosen = constrained_losses.top_half(ADVANTAGES, COUNTED)
  values = constrained_losses.policy_loss(
    LOG_PROBS, ADVANTAGES, chosen, jnp.float32(0.5)
  )
  a, b = math.exp(0.4 / 0.5), math.exp(0.1 / 0.5)
  expected = [[a / (a + b) * 1.0, 0.0, b / (a + b) * 3.0, 0.0, 0.0]]
  np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_psi_is_a_weight_that_no_gradient_passes():
  """Song et al. 2019, arXiv:1909.12238: η is learned by its dual alone."""
  chosen = constrained_losses.top_half(ADVANTAGES, COUNTED)

  def loss(eta, advantages):
    return jnp.sum(
      constrained_losses.policy_loss(LOG_PROBS, advantages, chosen, eta)
    )

  of_eta, of_advantages = jax.grad(loss, (0, 1))(jnp.float32(0.5), ADVANTAGES)
  assert of_eta == 0
  np.testing.assert_array_equal(of_advantages, 0)


def dual(eta, epsilon=0.1):
  chosen = constrained_losses.top_half(ADVANTAGES, COUNTED)
  return constrained_losses.temperature_loss(ADVANTAGES, chosen, eta, epsilon)


def test_the_dual_of_the_temperature_by_hand():
  mean = (math.exp(0.4 / 0.5) + math.exp(0.1 / 0.5)) / 2
  expected = 0.5 * 0.1 + 0.5 * math.log(mean)
  assert float(dual(jnp.float32(0.5))) == pytest.approx(expected, rel=1e-6)


def test_at_its_minimum_psi_is_epsilon_from_uniform():
  low, high = 0.05, 5.0
  slope = jax.jit(jax.grad(dual))
  for _ in range(60):  # The dual is convex in η.
    middle = math.sqrt(low * high)
    low, high = (low, middle) if slope(middle) > 0 else (middle, high)
  psi = np.exp(np.array([0.4, 0.1]) / low)
  psi /= psi.sum()
  assert np.sum(psi * np.log(psi * 2)) == pytest.approx(0.1, rel=1e-3)


def test_the_multiplier_rises_where_the_divergence_is_too_large():
  kl = jnp.array([[0.5, 0.1]])

  def loss(alpha, kl):
    return jnp.sum(constrained_losses.constraint_loss(kl, alpha, 0.3))

  of_alpha, of_kl = jax.grad(loss, (0, 1))(jnp.float32(2.0), kl)
  # Descent goes against the gradient: ε − KL, summed.
  assert of_alpha == pytest.approx((0.3 - 0.5) + (0.3 - 0.1), abs=1e-6)
  np.testing.assert_allclose(of_kl, [[2.0, 2.0]])
  values = constrained_losses.constraint_loss(kl, jnp.float32(2.0), 0.3)
  np.testing.assert_allclose(values, [[0.6, 0.6]], rtol=1e-6)


def test_divergences_from_an_anchor_by_hand():
  p, q = [0.5, 0.5], [0.25, 0.75]
  found = anchored.divergence_from(
    jnp.log(jnp.array([[p, q]])), jnp.log(jnp.array([[q, q]]))
  )
  by_hand = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
  np.testing.assert_allclose(found, [[by_hand, 0.0]], atol=1e-6)


def scores_of(**divergences):
  return anchored.AnchoredScores(
    log_probs=LOG_PROBS,
    log_normalizers=jnp.zeros_like(LOG_PROBS),
    mean_log_probs=jnp.zeros_like(LOG_PROBS),
    divergences={k: jnp.array([v]) for k, v in divergences.items()},
    duals={'eta': jnp.float32(1.0), 'alpha': jnp.float32(1.1)},
  )


def batch():
  zeros = np.zeros((1, 5), np.int32)
  return types.Batch(
    encoder_input_tokens=zeros,
    decoder_input_tokens=zeros,
    decoder_target_tokens=zeros,
    decoder_loss_weights=np.asarray(COUNTED, np.float32),
    decoder_figures={
      'returns': np.asarray(ADVANTAGES) + np.float32(0.25),
      'values': np.full((1, 5), 0.25, np.float32),
    },
  )


def test_v_mpo_is_the_sum_of_its_three_losses():
  loss = constrained_losses.VMPO(
    eta=0.5, epsilon_eta=0.1, alpha=2.0, epsilon_alpha=0.3, dual_rate=10.0
  )
  start = [0.5, 0.1, 0.0, 0.2, 7.0]
  values = loss(scores_of(start=start), batch())
  a, b = math.exp(0.4 / 0.5), math.exp(0.1 / 0.5)
  of_policy = (a / (a + b)) * 1.0 + b / (a + b) * 3.0
  alpha = 2.0 * math.exp(10.0 * 0.1)
  # Its value is α ε, wherever the divergences are.
  expected = of_policy + alpha * 0.3 + float(dual(jnp.float32(0.5)))
  counted = np.asarray(COUNTED)
  assert np.asarray(values)[counted].mean() == pytest.approx(expected, rel=1e-5)


def test_bvmpo_adds_a_penalty_that_falls_geometrically():
  loss = constrained_losses.BVMPO(lambda_steps=10)
  for update, expected in ((0, 1.0), (5, 10**-2.5), (10, 1e-5), (99, 1e-5)):
    assert float(loss.lambda_at(update)) == pytest.approx(expected, rel=1e-4)
  start, bc = [0.0] * 5, [0.5, 0.1, 0.0, 0.2, 7.0]
  scores = scores_of(start=start, bc=bc)
  plain = constrained_losses.VMPO()(scores, batch())
  np.testing.assert_allclose(
    loss.at(jnp.int32(5))(scores, batch()) - plain,
    10**-2.5 * np.array([bc]),
    atol=1e-5,
  )
  # What is traced is no part of what a loss is.
  assert loss.at(jnp.int32(5)) == loss
  assert hash(loss.at(jnp.int32(5))) == hash(loss)


@pytest.mark.parametrize('name', ['eta', 'epsilon_alpha', 'last_lambda'])
def test_settings_out_of_range_name_the_binding(name):
  with pytest.raises(errors.ConfigurationError, match=rf'BVMPO\.{name}'):
    constrained_losses.BVMPO(**{name: 0.0})
