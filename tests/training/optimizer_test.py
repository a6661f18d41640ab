import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rest_jax import errors
from rest_jax.training.optimizer import Optimizer


def rates(optimizer, *updates):
  """Learning rates of updates counted from 1."""
  return [float(optimizer.learning_rate_at(k - 1)) for k in updates]


def test_constant_with_warmup():
  optimizer = Optimizer(learning_rate=0.4, warmup_steps=4)
  np.testing.assert_allclose(
    rates(optimizer, 1, 2, 4, 5, 1000), [0.1, 0.2, 0.4, 0.4, 0.4], rtol=1e-6
  )


def test_constant_without_warmup():
  np.testing.assert_allclose(
    rates(Optimizer(learning_rate=0.4), 1, 9), [0.4, 0.4], rtol=1e-6
  )


def test_rsqrt():
  optimizer = Optimizer(learning_rate=0.8, warmup_steps=4, schedule='rsqrt')
  np.testing.assert_allclose(
    rates(optimizer, 2, 4, 16, 64), [0.4, 0.8, 0.4, 0.2], rtol=1e-6
  )


@pytest.mark.parametrize('schedule', ['linear', 'cosine'])
def test_schedules_that_end(schedule):
  optimizer = Optimizer(
    learning_rate=1.0, warmup_steps=2, schedule=schedule, decay_steps=10
  )
  np.testing.assert_allclose(
    rates(optimizer, 1, 2, 6, 10, 11), [0.5, 1.0, 0.5, 0.0, 0.0], atol=1e-6
  )
  quarter = {'linear': 0.75, 'cosine': (1 + math.cos(math.pi / 4)) / 2}
  np.testing.assert_allclose(
    rates(optimizer, 4), [quarter[schedule]], rtol=1e-6
  )


def first_direction(optimizer, params, grads):
  state = optimizer.direction.init(params)
  return optimizer.direction.update(grads, state, params)[0]


def test_first_adamw_step_is_the_sign_of_the_gradient():
  optimizer = Optimizer(name='adamw', clip_norm=0.0)
  params = {'w': jnp.zeros((2, 2)), 'scale': jnp.zeros(2)}
  grads = {'w': jnp.array([[3.0, -2.0], [0.5, -7.0]]), 'scale': jnp.ones(2)}
  direction = first_direction(optimizer, params, grads)
  np.testing.assert_allclose(direction['w'], jnp.sign(grads['w']), rtol=1e-5)


def test_weight_decay_is_decoupled_and_spares_vectors():
  optimizer = Optimizer(name='adamw', clip_norm=0.0, weight_decay=0.1)
  params = {'w': jnp.full((2, 2), 5.0), 'scale': jnp.full(2, 5.0)}
  direction = first_direction(
    optimizer, params, jax.tree.map(jnp.zeros_like, params)
  )
  np.testing.assert_allclose(direction['w'], jnp.full((2, 2), 0.5), rtol=1e-6)
  np.testing.assert_allclose(direction['scale'], jnp.zeros(2))


@pytest.mark.parametrize('factored', [True, False])
def test_adafactor_step_is_relative_to_the_parameter(factored):
  """Its root mean square is that of the parameter, or 1e-3 of a small one."""
  optimizer = Optimizer(min_dim_size_to_factor=2, factored=factored)
  big = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
  params = {'big': jnp.asarray(big * 20), 'zero': jnp.zeros((8, 4))}
  grads = {'big': jnp.asarray(big), 'zero': jnp.ones((8, 4))}
  direction = first_direction(optimizer, params, grads)
  rms = jax.tree.map(lambda x: float(jnp.sqrt(jnp.mean(x**2))), direction)
  size = float(jnp.sqrt(jnp.mean(params['big'] ** 2)))
  assert rms['big'] == pytest.approx(size, rel=0.2)
  assert rms['big'] <= size * (1 + 1e-5)
  assert rms['zero'] == pytest.approx(1e-3, rel=1e-4)


def test_adafactor_equals_optax():
  optimizer = Optimizer(clip_norm=0.0, min_dim_size_to_factor=4)
  reference = optax.adafactor(0.01, min_dim_size_to_factor=4)
  rng = np.random.default_rng(1)
  draw = lambda: {'w': jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)}  # noqa: E731
  ours = theirs = draw()
  state, their_state = optimizer.direction.init(ours), reference.init(theirs)
  for _ in range(3):
    grads = draw()
    direction, state = optimizer.direction.update(grads, state, ours)
    ours = jax.tree.map(lambda p, d: p - 0.01 * d, ours, direction)
    updates, their_state = reference.update(grads, their_state, theirs)
    theirs = optax.apply_updates(theirs, updates)
  np.testing.assert_allclose(ours['w'], theirs['w'], rtol=1e-5)


def test_clipping_bounds_the_global_norm():
  """AdamW's second moment shows the clipped gradient: (1 − b2) g²."""
  optimizer = Optimizer(name='adamw', clip_norm=1.0)
  params = {'a': jnp.zeros(1), 'b': jnp.zeros(1)}
  grads = {'a': jnp.array([30.0]), 'b': jnp.array([40.0])}
  state = optimizer.direction.update(
    grads, optimizer.direction.init(params), params
  )[1]
  moments = optax.tree.get(state, 'nu')
  np.testing.assert_allclose(moments['a'], [0.02 * 0.36], rtol=1e-4)
  np.testing.assert_allclose(moments['b'], [0.02 * 0.64], rtol=1e-4)


@pytest.mark.parametrize(
  'setting',
  [
    {'learning_rate': 0.0},
    {'learning_rate': math.inf},
    {'warmup_steps': -1},
    {'clip_norm': -1.0},
    {'weight_decay': math.nan},
    {'b2': 1.0},
    {'decay_rate': 0.0},
    {'eps': 0.0},
  ],
)
def test_settings_out_of_range_name_the_binding(setting):
  (name,) = setting
  with pytest.raises(errors.ConfigurationError, match=f'Optimizer.{name}'):
    Optimizer(**setting)


@pytest.mark.parametrize(
  ('setting', 'missing'),
  [
    ({'schedule': 'linear'}, 'decay_steps'),
    (
      {'schedule': 'cosine', 'decay_steps': 5, 'warmup_steps': 5},
      'decay_steps',
    ),
    ({'schedule': 'rsqrt'}, 'warmup_steps'),
  ],
)
def test_schedules_ask_for_what_they_need(setting, missing):
  with pytest.raises(errors.ConfigurationError, match=f'Optimizer.{missing}'):
    Optimizer(**setting)


@pytest.mark.parametrize('name', ['adafactor', 'adamw'])
def test_what_is_frozen_gets_no_update_and_counts_in_no_norm(name):
  made = Optimizer(name=name, frozen='a/*', weight_decay=0.1)
  params = {'a': {'b': jnp.ones((2, 2))}, 'c': jnp.ones((2, 2))}
  grads = {'a': {'b': jnp.full((2, 2), 1e6)}, 'c': jnp.full((2, 2), 0.1)}
  directions, _ = made.direction.update(
    grads, made.direction.init(params), params
  )
  alone = Optimizer(name=name, weight_decay=0.1)
  rest = {'c': params['c']}
  expected, _ = alone.direction.update(
    {'c': grads['c']}, alone.direction.init(rest), rest
  )
  np.testing.assert_array_equal(directions['a']['b'], 0.0)
  np.testing.assert_allclose(directions['c'], expected['c'], rtol=1e-6)
