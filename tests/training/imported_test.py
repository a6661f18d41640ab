"""Fine-tuning from a foreign checkpoint: what is trained, and in what."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from rest_jax import errors
from rest_jax.checkpoint import formats
from rest_jax.losses import BehavioralCloning
from rest_jax.policy import Policy
from rest_jax.sharding import Layout
from rest_jax.training import state as state_lib
from rest_jax.training import step as step_lib
from rest_jax.training.optimizer import Optimizer
from rest_jax.types import Batch

GOLDEN = pathlib.Path(__file__).parents[1] / 'goldens/hf_mt5'
FROZEN = ('token_embedder/*', '*/relpos_bias/*')
UPDATES = 4


@pytest.fixture(scope='module')
def opened():
  config = formats.model(str(GOLDEN), dropout_rate=0.0, dtype='bfloat16')
  policy = Policy(config, Layout(data=1))
  params = formats.restore(formats.find(GOLDEN), policy.placed_params())
  expected = np.load(GOLDEN / 'expected.npz')
  targets = expected['decoder_target_tokens']
  batch = Batch(
    encoder_input_tokens=expected['encoder_input_tokens'],
    decoder_input_tokens=expected['decoder_input_tokens'],
    decoder_target_tokens=targets,
    decoder_loss_weights=(targets > 0).astype(np.float32),
  )
  return policy, params, batch


def train(opened, optimizer):
  policy, params, batch = opened
  state = state_lib.init_state(policy, optimizer, params)
  step = step_lib.make_train_step(policy, optimizer, BehavioralCloning())
  losses = []
  for _ in range(UPDATES):
    state, metrics = step(state, batch)
    losses.append(float(metrics['loss']))
  names = traverse_util.flatten_dict(
    jax.tree.map(
      lambda old, new: bool((old == new).all()), params, state.params
    ),
    sep='/',
  )
  assert {x.dtype for x in jax.tree.leaves(state.params)} == {
    jnp.dtype('float32')
  }
  return losses, {name for name, same in names.items() if same}


ADAFACTOR = Optimizer(learning_rate=0.02, min_dim_size_to_factor=8)


@pytest.mark.slow
def test_all_parameters_train_in_bfloat16(opened):
  losses, same = train(opened, ADAFACTOR)
  assert losses[-1] < losses[0]
  assert not same


def test_frozen_parameters_keep_every_bit(opened):
  losses, same = train(opened, dataclasses.replace(ADAFACTOR, frozen=FROZEN))
  assert losses[-1] < losses[0]
  assert same == {
    'token_embedder/embedding',
    'encoder/relpos_bias/rel_embedding',
    'decoder/relpos_bias/rel_embedding',
  }


def test_a_pattern_that_names_nothing_is_an_error(opened):
  with pytest.raises(errors.ConfigurationError, match='token_embeder'):
    train(opened, dataclasses.replace(ADAFACTOR, frozen=('token_embeder/*',)))
