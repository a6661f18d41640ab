import dataclasses
import json

import pytest
from etils import epath

from rest_jax import errors
from rest_jax.checkpoint import formats, native
from rest_jax.checkpoint.trained_in import TrainedIn
from rest_jax.models.config import T5Config
from rest_jax.policy import Policy
from rest_jax.sharding import Layout

TINY = T5Config(
  vocab_size=32, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=16,
  num_encoder_layers=1, num_decoder_layers=1,
)  # fmt: skip


@pytest.fixture
def stage(tmp_path):
  """A stage of a run whose tokenizer and model are told."""
  run = tmp_path / 'run'
  policy = Policy(TINY, Layout(data=1))
  native.save_params(run / 'grow_1/improve_1/params', policy.init(0))
  (run / 'run.json').write_text('{}')
  manifests = {
    'data': {'extra': {'tokenizer': {'fingerprint': 'known', 'size': 32}}},
    'supervised': {
      'config': {
        'T5Config.mlp_activations[0]': 'gelu',
        'T5Config.mlp_activations[1]': 'linear',
        'T5Config.relpos_max_distance': 128,
      }
    },
  }
  for name, manifest in manifests.items():
    (run / name).mkdir()
    (run / name / 'stage.json').write_text(json.dumps(manifest))
  return run / 'grow_1/improve_1'


def test_the_tokenizer_of_the_run_is_known(stage):
  found = TrainedIn.find(formats.find(stage).path)
  found.check_tokenizer('known')
  path = stage.parents[1] / 'data' / 'tokenizer.model'
  with pytest.raises(errors.ConfigurationError, match='TOKENIZER') as error:
    found.check_tokenizer('another')
  assert str(path) in str(error.value)


def test_sentinels_prefix_and_bytes_are_part_of_the_advice(stage):
  found = TrainedIn.find(formats.find(stage).path)
  kept = stage.parents[1] / 'data' / 'tokenizer.json'
  kept.write_text(json.dumps({'tokenizer': 'bytes', 'source_prefix': '<2de> '}))
  with pytest.raises(errors.ConfigurationError) as error:
    found.check_tokenizer('another')
  assert '@prepare.Bytes(), prepare.Bytes.source_prefix = ' in str(error.value)
  kept.write_text(json.dumps({'extra_ids': 100}))
  with pytest.raises(errors.ConfigurationError) as error:
    found.check_tokenizer('another')
  assert 'prepare.GivenTokenizer.extra_ids = 100' in str(error.value)


@pytest.mark.parametrize(
  ('field', 'value'),
  [('mlp_activations', ('relu',)), ('relpos_max_distance', 64)],
)
def test_a_model_of_another_function_is_refused(stage, field, value):
  found = formats.find(stage)
  formats.check_model(found, TINY)
  with pytest.raises(errors.ConfigurationError, match=rf'T5Config\.{field}'):
    formats.check_model(found, dataclasses.replace(TINY, **{field: value}))


def test_outside_of_a_run_nothing_is_known(tmp_path):
  assert TrainedIn.find(epath.Path(tmp_path / 'params')) is None


def test_a_run_that_does_not_tell_is_passed_over(tmp_path):
  (tmp_path / 'run.json').write_text('{}')
  found = TrainedIn.find(epath.Path(tmp_path / 'supervised/params'))
  found.check_tokenizer('any')
  found.check_model(TINY)
