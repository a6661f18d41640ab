"""How BC is trained, and the figure that tells it when to stop."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
import small_run
from small_run import PACKING, begun

from rest_jax import losses, supervised
from rest_jax.checkpoint import native
from rest_jax.data import loader
from rest_jax.errors import ConfigurationError
from rest_jax.policy import Policy
from rest_jax.training import early_stopping, optimizer, step

TRAINING = early_stopping.Training(
  optimizer.Optimizer(),
  PACKING,
  losses.BehavioralCloning(label_smoothing=0.1, z_loss=0.01),
)


@pytest.fixture(scope='module')
def context(tmp_path_factory):
  return small_run.make(tmp_path_factory.mktemp('run'))


def test_the_figure_is_the_plain_negative_nll(context, tmp_path):
  rows = loader.write_rows(
    tmp_path / 'rows', supervised.original_rows(context, 'select')
  )
  batches = loader.TrainingBatches(rows, PACKING, 0)
  figure = supervised.dev_loss(context, TRAINING, batches)
  # All logits are equal where parameters are 0, whatever is smoothed.
  zeros = jax.tree.map(np.zeros_like, context.params('supervised'))
  assert figure(zeros) == pytest.approx(-math.log(384), rel=1e-5)


def test_bc_keeps_the_update_of_the_least_dev_loss(context, monkeypatch):
  seen, values = [], iter([3.0, 2.0, 4.0])

  def evaluate_loss(eval_step, params, batches):
    seen.append([batch.encoder_input_tokens for batch in batches])
    return {'nll': next(values)}

  monkeypatch.setattr(step, 'evaluate_loss', evaluate_loss)
  stage = begun(context, 'supervised_again')
  settings = supervised.Supervised(
    training=dataclasses.replace(TRAINING),
    stopping=early_stopping.Stopping(max_steps=2, eval_every=1, patience=9),
  )
  context.params('supervised')
  supervised.run(context, stage, settings)
  assert context._params is None  # Devices have room for one set of them.
  assert stage.manifest['counts']['best_update'] == 1
  assert stage.manifest['counts']['updates'] == 2
  # The sources of D_select, s0 … s5, and of nothing else.
  first = small_run.encode('s')[0]
  tokens = np.concatenate(seen[0])
  starts = tokens[(tokens > 0) & (np.roll(tokens, 1, axis=1) <= 1)]
  assert set(starts.tolist()) == {first}


def test_a_checkpoint_of_another_model_is_found_before_rows_are_written(
  context, tmp_path
):
  other = dataclasses.replace(context.model, emb_dim=16)
  native.save_params(tmp_path / 'other', Policy(other, context.layout).init(0))
  stage = begun(context, 'supervised_from_another')
  settings = supervised.Supervised(
    training=TRAINING,
    stopping=early_stopping.Stopping(max_steps=2, eval_every=1, patience=9),
    initial_checkpoint_path=str(tmp_path / 'other'),
  )
  with pytest.raises(ConfigurationError, match=r'has shape .*16'):
    supervised.run(context, stage, settings)
  assert not stage.work.exists()


def test_a_policy_of_a_run_with_another_tokenizer_is_refused(context, tmp_path):
  other = tmp_path / 'other'
  native.save_params(other / 'supervised/params', context.policy.init(0))
  manifest = {'extra': {'tokenizer': {'fingerprint': 'another'}}}
  (other / 'data').mkdir()
  (other / 'data' / 'stage.json').write_text(json.dumps(manifest))
  (other / 'run.json').write_text('{}')
  for steps in (0, 2):  # It is refused where nothing is trained, too.
    stage = begun(context, f'supervised_{steps}')
    settings = supervised.Supervised(
      training=TRAINING,
      stopping=early_stopping.Stopping(steps, eval_every=1, patience=9),
      initial_checkpoint_path=str(other / 'supervised'),
    )
    with pytest.raises(ConfigurationError, match='ids stand for other texts'):
      supervised.run(context, stage, settings)
