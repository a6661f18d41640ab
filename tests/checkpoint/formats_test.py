"""Recognising checkpoints."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from foreign import (
  flat,
  hugging_face_config,
  hugging_face_tensors,
  random_params,
  safetensors,
  t5x,
)

from rest_jax import errors
from rest_jax.checkpoint import formats, native
from rest_jax.models.config import T5Config
from rest_jax.policy import Policy
from rest_jax.sharding import Layout

TINY = T5Config(
  vocab_size=24,
  emb_dim=8,
  num_heads=2,
  num_encoder_layers=1,
  num_decoder_layers=1,
  head_dim=4,
  mlp_dim=12,
)


@pytest.fixture(scope='module')
def policy():
  return Policy(TINY, Layout(data=1))


@pytest.fixture(scope='module')
def params(policy):
  return random_params(policy)


def write_hugging_face(folder, params):
  folder.mkdir(exist_ok=True)
  config = hugging_face_config(TINY, dropout_rate=0.25)
  (folder / 'config.json').write_text(json.dumps(config))
  safetensors(folder / 'model.safetensors', hugging_face_tensors(params))


def write(kind, path, params):
  """Writes a checkpoint of some kind; returns what is given and found."""
  if kind == 'huggingface':
    write_hugging_face(path, params)
  elif kind == 't5x':
    t5x(path, flat(params))
  elif kind == 't5x steps':
    for step in (9, 100, 20):
      t5x(path / f'checkpoint_{step}', flat(params))
    (path / 'checkpoint_200.tmp').mkdir()
    return path, path / 'checkpoint_100'
  elif kind == 'native':
    native.save_params(path, params)
  elif kind == 'stage':
    native.save_params(path / 'params', params)
    return path, path / 'params'
  elif kind == 'native steps':
    for step in (1, 2):
      native.Checkpoints(path).save(step, params)
    return path, path / '2'
  return path, path


@pytest.mark.parametrize(
  'kind, format_',
  [
    ('huggingface', 'huggingface'),
    ('t5x', 't5x'),
    ('t5x steps', 't5x'),
    ('native', 'native'),
    ('stage', 'native'),
    ('native steps', 'native'),
  ],
)
def test_each_is_found_and_read(tmp_path, policy, params, kind, format_):
  given, meant = write(kind, tmp_path / 'given', params)
  found = formats.find(given)
  assert (found.format, str(found.path)) == (format_, str(meant))
  assert (meant.name in found.note) == ('steps' in kind)
  restored = formats.restore(found, policy.placed_params())
  jax.tree.map(np.testing.assert_array_equal, restored, params)


@pytest.mark.parametrize('kind', ['huggingface', 't5x', 'native'])
def test_a_fingerprint_tells_contents_alone(tmp_path, params, kind):
  one, _ = write(kind, tmp_path / 'one', params)
  other = jax.tree.map(lambda x: x, params)
  other['encoder']['encoder_norm']['scale'] = np.ones(8, np.float32)
  two, _ = write(kind, tmp_path / 'two', other)
  prints = [formats.fingerprint(formats.find(path)) for path in (one, two)]
  assert prints[0] != prints[1]
  (tmp_path / 'one').rename(tmp_path / 'moved')
  assert formats.fingerprint(formats.find(tmp_path / 'moved')) == prints[0]


def test_no_checkpoint_is_an_error_that_names_the_binding(tmp_path):
  for path in (tmp_path, tmp_path / 'nowhere'):
    with pytest.raises(errors.ConfigurationError, match='START_FROM'):
      formats.find(path, 'START_FROM')


def test_a_model_takes_its_shape_from_the_checkpoint(tmp_path, params):
  write_hugging_face(tmp_path, params)
  assert formats.model(str(tmp_path)) == T5Config(
    **vars(TINY) | {'dropout_rate': 0.25}
  )
  changed = formats.model(
    str(tmp_path), dropout_rate=0.0, dtype='bfloat16', remat='full'
  )
  assert changed == T5Config(
    **vars(TINY) | {'dropout_rate': 0.0, 'dtype': 'bfloat16', 'remat': 'full'}
  )


def test_t5xs_checkpoints_tell_no_shape(tmp_path, params):
  t5x(tmp_path / 'checkpoint_1', flat(params))
  with pytest.raises(errors.ConfigurationError, match='t5_1_1_small'):
    formats.model(str(tmp_path))
  with pytest.raises(errors.ConfigurationError, match='INITIAL_CHECKPOINT'):
    formats.model(None)


def test_what_no_shape_shows_is_held_against_the_checkpoint(tmp_path, params):
  write_hugging_face(tmp_path / 'hf', params)
  found = formats.find(tmp_path / 'hf')
  formats.check_model(found, dataclasses.replace(TINY, dropout_rate=0.3))
  for field, value in (
    ('mlp_activations', ('relu', 'linear')),
    ('relpos_max_distance', 256),
    ('eos_id', 2),
  ):
    other = dataclasses.replace(TINY, **{field: value})
    assert shapes(other) == shapes(TINY)
    message = rf'T5Config\.{field} = .*config\.json says .*from_checkpoint'
    with pytest.raises(errors.ConfigurationError, match=message):
      formats.check_model(found, other)


def test_a_checkpoint_that_tells_no_model_is_passed_over(tmp_path, params):
  t5x(tmp_path / 't5x', flat(params))
  found = formats.find(tmp_path / 't5x')
  formats.check_model(found, dataclasses.replace(TINY, eos_id=2))
  fields = dataclasses.asdict(TINY) | {'relpos_max_distance': 64}
  (found.path / 'config.json').write_text(json.dumps(fields))
  with pytest.raises(errors.ConfigurationError, match=r'= 128, and .* says 64'):
    formats.check_model(found, TINY)


def shapes(config):
  tree = Policy(config, Layout(data=1)).abstract_params()
  return jax.tree.map(lambda leaf: leaf.shape, tree)


def test_the_config_of_another_program_beside_t5x_is_passed_over(
  tmp_path, params
):
  t5x(tmp_path / 't5x', flat(params))
  found = formats.find(tmp_path / 't5x')
  (found.path / 'config.json').write_text('{"d_model": 8}')
  formats.check_model(found, TINY)


def test_an_export_of_our_own_form_tells_its_model(tmp_path, params):
  native.save_params(tmp_path / 'own', params)
  fields = dataclasses.asdict(TINY) | {'mlp_activations': ['silu', 'linear']}
  (tmp_path / 'own' / 'config.json').write_text(json.dumps(fields))
  with pytest.raises(errors.ConfigurationError, match='mlp_activations'):
    formats.check_model(formats.find(tmp_path / 'own'), TINY)
