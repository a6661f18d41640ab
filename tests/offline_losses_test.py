import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest_jax import (
  errors,
  losses,
  offline_losses,
  types,
  values,
)


def scores_of(log_probs):
  values = jnp.array([log_probs], jnp.float32)
  return types.TokenScores(
    log_probs=values,
    log_normalizers=jnp.zeros_like(values),
    mean_log_probs=jnp.zeros_like(values),
  )


def batch_of(segments, weights=None, **figures):
  """A packed row of sequences with these numbers; 0 is padding."""
  segments = np.array([segments], np.int32)
  if weights is None:
    weights = (segments[0] != 0).astype(np.float32)
  first = np.diff(segments, axis=1, prepend=0) != 0
  return types.Batch(
    encoder_input_tokens=np.ones_like(segments),
    decoder_input_tokens=np.where(first, 0, 5) * (segments != 0),
    decoder_target_tokens=5 * (segments != 0),
    decoder_loss_weights=np.array([weights], np.float32),
    encoder_segment_ids=np.ones_like(segments),
    decoder_segment_ids=segments,
    decoder_figures={
      name: np.array([values], np.float32) for name, values in figures.items()
    },
  )


def test_clipped_importance_by_hand():
  # Ratios 0.5, 1, 1.5 with a positive weight, then with a negative one.
  ratios = np.array([[0.5, 1.0, 1.5, 0.5, 1.0, 1.5]])
  values = offline_losses.clipped_importance(
    jnp.log(ratios * 0.4),
    jnp.log(jnp.full((1, 6), 0.4)),
    jnp.array([[1.0, 1.0, 1.0, -1.0, -1.0, -1.0]]),
    0.2,
  )
  expected = [[-0.5, -1.0, -1.2, -0.8, -1.0, -1.5]]
  np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_a_clipped_token_has_no_gradient_and_others_that_of_their_ratio():
  batch = batch_of(
    [1, 1],
    grown_log_probs=[math.log(0.4)] * 2,
    sampling_log_probs=[math.log(0.25)] * 2,
  )
  loss = offline_losses.ClippedImportance(epsilon=0.2)

  def total(log_probs):
    return jnp.sum(loss(scores_of(log_probs), batch))

  gradient = jax.grad(total)(jnp.log(jnp.array([0.2, 0.6])))
  np.testing.assert_allclose(gradient, [-0.5 * 1.6, 0.0], rtol=1e-6)


def test_no_token_is_clipped_at_the_policy_that_drew_it_at_a_temperature():
  old = np.array([0.9, 0.1])
  tempered = old**1.25 / np.sum(old**1.25)  # T = 0.8.
  batch = batch_of(
    [1, 1],
    grown_log_probs=np.log(old),
    sampling_log_probs=np.log(tempered),
  )

  def total(log_probs):
    loss = offline_losses.ClippedImportance(epsilon=0.2)
    return jnp.sum(loss(scores_of(log_probs), batch))

  gradient = jax.grad(total)(jnp.log(jnp.asarray(old, jnp.float32)))
  np.testing.assert_allclose(gradient, -old / tempered, rtol=1e-5)


def gold_of_the_authors(log_probs, lagged, bc, *, low, base, floor, steps):
  """Their formula for one sequence, as a loop: ended tokens are certain."""
  out = []
  for t in range(len(log_probs)):
    total = 0.0
    for j in range(steps + 1):
      probability = bc[t + j] if t + j < len(bc) else 1.0
      total += max(math.log(probability) - base, floor)
    weight = min(max(lagged[t], low), 1.0)
    out.append(-weight * total * log_probs[t])
  return out


def test_gold_by_hand():
  # One token answers for itself and the next: (2 + ln .5) + (2 + ln .25).
  loss = offline_losses.Gold(low=0.2, steps=1, baseline=-2.0)
  batch = batch_of(
    [1, 1],
    bc_log_probs=[math.log(0.5), math.log(0.25)],
    start_log_probs=[math.log(0.5), math.log(0.1)],
  )
  values = loss(scores_of([math.log(0.3), math.log(0.6)]), batch)
  first = 0.5 * (4 + math.log(0.125)) * -math.log(0.3)
  # Beyond the end log 1 = 0; and 0.1 is raised to 0.2.
  second = 0.2 * (4 + math.log(0.25)) * -math.log(0.6)
  np.testing.assert_allclose(values, [[first, second]], rtol=1e-6)


def test_gold_is_that_of_the_authors_in_every_packed_sequence():
  rng = np.random.default_rng(0)
  lengths = [3, 9, 1]
  pi, lagged, bc = rng.uniform(0.001, 1.0, (3, sum(lengths)))
  settings = {'low': 0.2, 'steps': 5}
  expected, start = [], 0
  for length in lengths:
    span = slice(start, start + length)
    start += length
    expected += gold_of_the_authors(
      np.log(pi[span]), lagged[span], bc[span], base=-4.0, floor=0.1, **settings
    )
  padding = [0.0, 0.0]
  batch = batch_of(
    [*np.repeat([1, 2, 3], lengths), 0, 0],
    bc_log_probs=[*np.log(bc), *padding],
    start_log_probs=[*np.log(lagged), *padding],
  )
  loss = offline_losses.Gold(baseline=-4.0, floor=0.1, **settings)
  values = loss(scores_of([*np.log(pi), *padding]), batch)
  np.testing.assert_allclose(values[0, :-2], expected, rtol=1e-5)


def test_gold_differentiates_the_policy_alone():
  batch = batch_of(
    [1], bc_log_probs=[math.log(0.5)], start_log_probs=[math.log(0.5)]
  )
  loss = offline_losses.Gold(steps=0, baseline=-1.0)
  gradient = jax.grad(lambda x: jnp.sum(loss(scores_of([x]), batch)))(-0.3)
  assert gradient == pytest.approx(-0.5 * (1 + math.log(0.5)), rel=1e-6)


def test_oac_by_hand():
  batch = batch_of(
    [1, 1, 2], returns=[0.75, 0.75, 0.25], values=[0.5, 1.0, 0.25]
  )
  log_probs = [-1.0, -2.0, -3.0]
  values = offline_losses.ActorCritic()(scores_of(log_probs), batch)
  np.testing.assert_allclose(values, [[0.25 * 1.0, -0.25 * 2.0, 0.0]])


def test_values_are_held_against_the_return_of_each_prefix():
  batch = batch_of([1, 1], returns=[0.75, 0.75])
  loss = values.ValueRegression()
  found = loss(jnp.array([[0.25, 1.0]]), batch)
  np.testing.assert_allclose(found, [[0.25, 0.0625]])
  np.testing.assert_allclose(loss.plain(jnp.array([[0.25, 1.0]]), batch), found)


# Two pairs. Better − worse of the first: (0.5 − 0.1) − (−0.2) = 0.6.
_SEGMENTS = [1, 1, 2, 3, 4, 4, 0]
_GROWN = [-1.0, -1.0, -2.0, -3.0, -1.0, -1.0, 0.0]
_RATIOS = [0.5, -0.1, -0.2, -1.0, 0.25, 0.25, 9.0]
_MARGINS = [0.6, 0.6, 0.6, -1.5, -1.5, -1.5]


def preference(form, beta=0.5):
  batch = batch_of(_SEGMENTS, grown_log_probs=_GROWN)
  log_probs = jnp.array(_GROWN) + jnp.array(_RATIOS)
  return offline_losses.Preference(form, beta), scores_of(log_probs), batch


def test_margins_of_packed_pairs():
  _, scores, batch = preference('dpo')
  margins = offline_losses.pair_margins(
    scores.log_probs - batch.decoder_figures['grown_log_probs'],
    jnp.array(batch.decoder_loss_weights) != 0,
    jnp.array(batch.decoder_segment_ids),
  )
  np.testing.assert_allclose(margins[0, :-1], _MARGINS, rtol=1e-5)


def test_dpo_costs_minus_log_sigma_of_the_scaled_margin():
  loss, scores, batch = preference('dpo')
  first = -math.log(1 / (1 + math.exp(-0.5 * 0.6)))
  second = -math.log(1 / (1 + math.exp(0.5 * 1.5)))
  values = loss(scores, batch)
  expected = [[first, 0, first, second, second, 0, 0]]
  np.testing.assert_allclose(values, expected, rtol=1e-5)
  # The trainer's mean over sequences is the mean over pairs.
  normalizer = losses.loss_normalizer(
    jax.tree.map(jnp.asarray, batch), loss.normalization
  )
  assert values.sum() / normalizer == pytest.approx((first + second) / 2)


def test_ipo_costs_the_squared_distance_to_its_aim():
  loss, scores, batch = preference('ipo', beta=0.25)
  values = loss(scores, batch)
  first, second = (0.6 - 2.0) ** 2, (-1.5 - 2.0) ** 2
  expected = [[first, 0, first, second, second, 0, 0]]
  np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_at_the_reference_dpo_pushes_both_texts_by_half_of_beta():
  batch = batch_of([1, 1, 2], grown_log_probs=[-1.0, -2.0, -3.0])
  loss = offline_losses.Preference('dpo', 0.5)

  def mean(log_probs):
    return jnp.sum(loss(scores_of(log_probs), batch)) / 2

  gradient = jax.grad(mean)(jnp.array([-1.0, -2.0, -3.0]))
  np.testing.assert_allclose(gradient, [-0.25, -0.25, 0.25], rtol=1e-6)


@pytest.mark.parametrize(
  'loss',
  [
    offline_losses.ClippedImportance(),
    offline_losses.Gold(),
    offline_losses.Preference('ipo'),
    offline_losses.ActorCritic(),
  ],
)
def test_what_improve_asks_of_a_loss(loss):
  assert isinstance(loss, losses.TokenLoss)
  assert isinstance(loss, losses.PolicyLoss)
  assert hash(loss) == hash(type(loss)(**vars(loss)))
  assert set(loss.needs) <= {
    *losses.STORED,
    losses.RETURNS,
    *losses.SCORED,
  }
  assert not loss.fits_references
  np.testing.assert_allclose(
    loss.plain(scores_of([-0.5]), batch_of([1])), [[0.5]]
  )


@pytest.mark.parametrize(
  ('kind', 'setting'),
  [
    (offline_losses.ClippedImportance, {'epsilon': 0.0}),
    (offline_losses.Gold, {'low': 1.5}),
    (offline_losses.Gold, {'baseline': 1.0}),
    (offline_losses.Gold, {'steps': -1}),
    (offline_losses.Preference, {'beta': 0.0}),
    (offline_losses.Preference, {'form': 'dop'}),
  ],
)
def test_settings_out_of_range_name_the_binding(kind, setting):
  (name,) = setting
  with pytest.raises(
    errors.ConfigurationError, match=f'{kind.__name__}.{name}'
  ):
    kind(**setting)
