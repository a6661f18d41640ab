import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest_jax import errors, sharding, types
from rest_jax.checkpoint.native import Checkpoints
from rest_jax.data import loader
from rest_jax.losses import BehavioralCloning
from rest_jax.models.config import T5Config
from rest_jax.policy import Policy
from rest_jax.training import state as state_lib
from rest_jax.training.fit import CheckpointDue, StepDone, fit
from rest_jax.training.optimizer import Optimizer
from rest_jax.training.step import make_train_step


def counting_state(step=0):
  return types.TrainState(step=jnp.int32(step), params={}, opt_state=())


def counting_step(state, batch, dropout_key, learning_rate_scale):
  """Takes numbers for batches; the loss of batch −1 is NaN."""
  del dropout_key
  metrics = {
    'loss': jnp.float32(math.nan if batch < 0 else batch),
    'grad_norm': jnp.float32(1.0),
    'param_norm': jnp.float32(1.0),
    'learning_rate': jnp.float32(learning_rate_scale),
    'finite': jnp.bool_(batch >= 0),
  }
  return state.replace(step=state.step + 1), metrics


def names(events):
  return [(type(event).__name__, event.step) for event in events]


def run(batches, start=0, **kwargs):
  return fit(counting_state(start), counting_step, iter(batches), **kwargs)


def test_events_come_in_order():
  events = names(run(itertools.count(), num_steps=5, checkpoint_every=2))
  assert events == [
    ('StepDone', 1),
    ('StepDone', 2),
    ('CheckpointDue', 2),
    ('StepDone', 3),
    ('StepDone', 4),
    ('CheckpointDue', 4),
    ('StepDone', 5),
    ('CheckpointDue', 5),
  ]


def test_each_step_has_its_own_metrics_and_each_checkpoint_its_state():
  for event in run(itertools.count(10), num_steps=4, checkpoint_every=3):
    if isinstance(event, StepDone):
      assert event.metrics['loss'] == 9 + event.step
    else:
      assert event.state.step == event.step


@pytest.mark.parametrize('start', [3, 4])
def test_nothing_left_to_do_still_gives_the_state(start):
  events = run([], start, num_steps=3, checkpoint_every=1)
  assert names(events) == [('CheckpointDue', start)]


def test_it_goes_on_from_the_step_of_its_state():
  events = names(run(itertools.count(), 3, num_steps=5, checkpoint_every=4))
  assert events == [
    ('StepDone', 4),
    ('CheckpointDue', 4),
    ('StepDone', 5),
    ('CheckpointDue', 5),
  ]


@pytest.mark.parametrize('bad', [0, 1, 2, 3])
def test_nan_stops_before_its_checkpoint(bad):
  batches = [1, 1, 1, 1]
  batches[bad] = -1
  seen = []
  with pytest.raises(
    errors.NonFiniteError, match=f'improve_2, update {bad + 1}: loss nan'
  ):
    for event in run(
      batches, num_steps=4, checkpoint_every=1, where='grow_1/improve_2'
    ):
      seen.append(event)
  assert all(event.step <= bad for event in seen)
  assert len(seen) == 2 * bad


@pytest.mark.parametrize(
  'setting',
  [
    {'num_steps': -1, 'checkpoint_every': 1},
    {'num_steps': 1, 'checkpoint_every': 0},
  ],
)
def test_settings_out_of_range(setting):
  with pytest.raises(errors.ConfigurationError, match='num_steps'):
    next(run([], **setting))


def test_a_network_that_diverges_is_named():
  policy = Policy(
    T5Config(
      vocab_size=8,
      emb_dim=8,
      num_heads=1,
      num_encoder_layers=1,
      num_decoder_layers=1,
      head_dim=8,
      mlp_dim=8,
    ),
    sharding.Layout(data=1),
  )
  optimizer = Optimizer(name='adamw', learning_rate=1e38)
  ones = np.ones((1, 2), np.int32)
  batch = types.Batch(ones, ones * 0, ones, ones.astype(np.float32))
  with pytest.raises(errors.NonFiniteError, match=r'LEARNING_RATE'):
    list(
      fit(
        state_lib.init_state(policy, optimizer, policy.init(0)),
        make_train_step(policy, optimizer, BehavioralCloning()),
        itertools.repeat(batch),
        num_steps=5,
        checkpoint_every=5,
      )
    )


def test_resumed_equals_uninterrupted(tmp_path):
  """Left after a checkpoint and started again, to the last bit."""
  policy = Policy(
    T5Config(
      vocab_size=32,
      emb_dim=16,
      num_heads=2,
      num_encoder_layers=1,
      num_decoder_layers=1,
      head_dim=8,
      mlp_dim=16,
    ),
    sharding.Layout(data=2, model=2),
  )
  optimizer = Optimizer(learning_rate=0.05, warmup_steps=3)
  rng = np.random.default_rng(0)
  rows = loader.write_rows(
    tmp_path / 'rows',
    (
      ([*rng.integers(2, 32, 4), 1], [*rng.integers(2, 32, 3), 1], 1.0, i < 9)
      for i in range(30)
    ),
  )
  batches = loader.TrainingBatches(rows, loader.Packing(16, 16, 4), 3)
  checkpoints = Checkpoints(tmp_path / 'checkpoints')
  train_step = make_train_step(policy, optimizer, BehavioralCloning())

  def train(state):
    return fit(
      state,
      train_step,
      batches.starting_at(int(state.step)),
      num_steps=8,
      checkpoint_every=3,
      dropout_key=jax.random.key(4),
    )

  start = state_lib.init_state(policy, optimizer, policy.init(0))
  for event in train(start):
    if isinstance(event, CheckpointDue):
      checkpoints.save(event.step, event.state)
  uninterrupted = jax.device_get(event.state)
  checkpoints.delete(8)
  latest = checkpoints.latest()
  assert latest == 6
  state = checkpoints.restore(
    latest, state_lib.abstract_state(policy, optimizer)
  )
  *_, last = train(state)
  jax.tree.map(
    np.testing.assert_array_equal, uninterrupted, jax.device_get(last.state)
  )
