"""What is planned is what is trained, whatever the loss asks for."""

import jax
import pytest

from rest_jax import constrained_losses, generation, losses, offline_losses
from rest_jax.data.packing import Packing
from rest_jax.decoding.sampling import Sampling
from rest_jax.models.config import T5Config
from rest_jax.planning import measure, programs
from rest_jax.policy import Policy
from rest_jax.sharding import Layout
from rest_jax.training import early_stopping
from rest_jax.training.optimizer import Optimizer

_CONFIG = T5Config(64, 8, 1, 1, 1, 8, 8, dropout_rate=0.1)


@pytest.mark.parametrize(
  ('loss', 'networks', 'dropped'),
  [
    (losses.BehavioralCloning(), 1, True),
    (offline_losses.Gold(), 1, True),
    (offline_losses.ClippedImportance(), 1, False),
    (constrained_losses.BVMPO(), 3, False),
  ],
  ids=lambda value: getattr(value, 'name', None),
)
def test_an_update_is_lowered_with_all_that_its_loss_needs(
  loss, networks, dropped
):
  training = early_stopping.Training(
    Optimizer(learning_rate=0.01), Packing(8, 8, 2), loss
  )
  update = programs.Update(training, rows=2, num_microbatches=1)
  lowered = update.lower(_CONFIG, Layout(data=1))
  state, batch, key, _ = lowered.args_info[0]
  leaves = jax.tree.leaves(state.params)
  # The dual variables, two scalars, stand beside three networks.
  duals = len(loss.duals)
  one = len(jax.tree.leaves(_params(losses.BehavioralCloning())))
  assert len(leaves) == networks * one + duals
  planned = jax.tree.leaves(update.state(_CONFIG, Layout(data=1)).params)
  assert len(planned) == len(leaves)
  assert set(batch.decoder_figures) == set(loss.needs)
  assert (key is not None) == dropped
  assert update.lower_gradient(_CONFIG, Layout(data=1))


def test_of_fewer_samples_a_source_more_sources_are_held_at_once():
  policy = Policy(_CONFIG, Layout(data=1))
  batching = generation.Batching(rows=64, max_decode_len=4)

  def held(num_samples):
    sample = programs.Sample.of(policy, batching, num_samples, Sampling(), 1)
    return sample.sources, measure.cache_bytes(sample, policy)

  sources, grow = held(32)
  more_sources, greedy = held(1)
  assert (sources, more_sources) == (8, 64)
  # Keys and values of 128 positions, two heads of one layer, in float32.
  of_a_source = 2 * 128 * _CONFIG.num_heads * _CONFIG.head_dim * 4
  longest = batching.source_buckets[-1] / 128
  assert greedy - grow == pytest.approx(56 * of_a_source * longest)


def _params(loss):
  training = early_stopping.Training(
    Optimizer(learning_rate=0.01), Packing(8, 8, 2), loss
  )
  update = programs.Update(training, rows=2, num_microbatches=1)
  return update.lower(_CONFIG, Layout(data=1)).args_info[0][0].params
