"""What is planned is what is trained, whatever the loss asks for."""

import jax
import pytest

from rest_jax import constrained_losses, losses, offline_losses
from rest_jax.data.packing import Packing
from rest_jax.models.config import T5Config
from rest_jax.planning import programs
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
  assert set(batch.decoder_figures) == set(loss.needs)
  assert (key is not None) == dropped
  assert update.lower_gradient(_CONFIG, Layout(data=1))


def _params(loss):
  training = early_stopping.Training(
    Optimizer(learning_rate=0.01), Packing(8, 8, 2), loss
  )
  update = programs.Update(training, rows=2, num_microbatches=1)
  return update.lower(_CONFIG, Layout(data=1)).args_info[0][0].params
