"""What is written for transformers, held against what transformers wrote."""

import dataclasses
import json
import math
import pathlib
import struct

import numpy as np
import pytest

from rest_jax import errors, proof
from rest_jax.checkpoint import (
  exports,
  huggingface,
  huggingface_export,
  names,
  t5x,
  t5x_export,
)
from rest_jax.models.config import T5Config

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
FIXTURES = (pathlib.Path(__file__).parents[2] / '../shared/fixtures').resolve()
MODELS = [
  GOLDENS / 'hf_mt5',
  GOLDENS / 'hf_byt5',
  GOLDENS / 'hf_umt5',
  FIXTURES / 'hf_t5_v1_0_tiny',
  FIXTURES / 'hf_t5_v1_1_tiny',
]


def stored(path):
  """Name → (dtype, shape, bytes), by the format's description alone."""
  data = path.read_bytes()
  (length,) = struct.unpack('<Q', data[:8])
  header = json.loads(data[8 : 8 + length])
  assert header.pop('__metadata__') == {'format': 'pt'}
  body = data[8 + length :]
  return {
    name: (
      entry['dtype'],
      entry['shape'],
      body[slice(*entry['data_offsets'])],
    )
    for name, entry in header.items()
  }


def read_json(path):
  return json.loads(path.read_text())


@pytest.fixture(params=MODELS, ids=lambda path: path.name)
def model(request):
  if not request.param.exists():
    pytest.skip(f'{request.param} is not beside this checkout')
  return request.param


def test_a_model_goes_out_as_it_came_in(model, tmp_path):
  """Every tensor's bytes are those of the file that transformers wrote."""
  source = huggingface.Source(model)
  origin = read_json(model / 'config.json')
  huggingface_export.write(tmp_path, source.config, source, origin=origin)
  assert stored(tmp_path / 'model.safetensors') == stored(
    model / 'model.safetensors'
  )
  written = read_json(tmp_path / 'config.json')
  assert origin.items() <= written.items()
  # Where transformers leaves out what is its default, ours is the default.
  assert {k: v for k, v in written.items() if k not in origin} in (
    {},
    {'tie_word_embeddings': True},
  )


def test_the_configuration_needs_no_origin(model, tmp_path):
  source = huggingface.Source(model)
  written = huggingface_export.model_config(source.config)
  origin = read_json(model / 'config.json')
  family = 'umt5' if origin['model_type'] == 'umt5' else 't5'
  assert written['model_type'] == family
  assert written['architectures'] == [huggingface_export.ARCHITECTURES[family]]
  for name in set(written) & set(origin) - {'model_type', 'architectures'}:
    assert written[name] == origin[name], name


def test_large_models_are_split_into_files(tmp_path):
  source = huggingface.Source(GOLDENS / 'hf_mt5')
  limit = 30_000
  huggingface_export.write(
    tmp_path, source.config, source, max_shard_bytes=limit
  )
  index = read_json(tmp_path / 'model.safetensors.index.json')
  files = sorted(tmp_path.glob('model-*.safetensors'))
  count = len(files)
  assert count > 2
  assert [file.name for file in files] == [
    f'model-{i:05d}-of-{count:05d}.safetensors' for i in range(1, count + 1)
  ]
  assert not (tmp_path / 'model.safetensors').exists()
  found, total = {}, 0
  for file in files:
    tensors = stored(file)
    size = sum(len(tensor[2]) for tensor in tensors.values())
    assert size <= limit or len(tensors) == 1
    total += size
    assert {index['weight_map'][name] for name in tensors} == {file.name}
    found |= tensors
  assert index['metadata'] == {'total_size': total}
  assert found == stored(GOLDENS / 'hf_mt5/model.safetensors')
  proof.compare_tensors(source, huggingface.Source(tmp_path))


def test_an_array_is_written_in_blocks_of_any_size(tmp_path, monkeypatch):
  source = huggingface.Source(GOLDENS / 'hf_byt5')
  monkeypatch.setattr(huggingface_export, '_BLOCK_BYTES', 100)
  huggingface_export.write(tmp_path, source.config, source)
  assert stored(tmp_path / 'model.safetensors') == stored(
    GOLDENS / 'hf_byt5/model.safetensors'
  )


@pytest.mark.parametrize(
  ('activations', 'projection', 'function'),
  [
    (('relu',), 'relu', 'relu'),
    (('gelu',), 'gelu_new', 'gelu_new'),
    (('gelu', 'linear'), 'gated-gelu', 'gelu_new'),
    (('swish', 'linear'), 'gated-silu', 'silu'),
  ],
)
def test_feed_forward_layers_keep_their_function(
  activations, projection, function
):
  config = T5Config(vocab_size=128, mlp_activations=activations)
  written = huggingface_export.model_config(config)
  assert written['feed_forward_proj'] == projection
  assert written['dense_act_fn'] == function
  assert written['is_gated_act'] == (len(activations) == 2)


def test_what_ends_a_text_goes_along(tmp_path):
  source = huggingface.Source(GOLDENS / 'hf_mt5')
  config = dataclasses.replace(source.config, eos_id=2)  # As MADLAD-400's.
  huggingface_export.write(tmp_path, config, source)
  assert huggingface.read_config(tmp_path) == config
  assert read_json(tmp_path / 'generation_config.json')['eos_token_id'] == 2


def test_a_layer_that_transformers_lacks_is_refused(tmp_path):
  config = T5Config(vocab_size=128, mlp_activations=('gelu', 'relu'))
  with pytest.raises(errors.ConfigurationError, match='format=t5x or native'):
    huggingface_export.model_config(config)


class InMemory:
  """Parameters as a `restoring.Source`."""

  where = 'reward'

  def __init__(self, arrays):
    self.shapes = {name: array.shape for name, array in arrays.items()}
    self._arrays = arrays

  def read(self, name, index=()):
    return np.asarray(self._arrays[name])[index]


def reward_model():
  """A reward model of the size of hf_mt5, and its read-out."""
  given = huggingface.Source(GOLDENS / 'hf_mt5')
  arrays = {
    name: given.read(name) for name in given.shapes if name != names.LOGITS
  }
  rng = np.random.default_rng(5)
  read_out = rng.normal(size=(given.config.emb_dim, 1)).astype(np.float32)
  arrays[names.SCORE] = read_out
  return InMemory(arrays), given.config, read_out


def test_a_reward_model_is_one_row_of_lm_head(tmp_path):
  source, config, read_out = reward_model()
  written, shape, score_id = exports.as_model(source, config)
  huggingface_export.write(tmp_path, shape, written, score_id=score_id)
  assert score_id == config.vocab_size - 11
  assert read_json(tmp_path / 'config.json')['score_token_id'] == score_id
  dtype, (rows, columns), data = stored(tmp_path / 'model.safetensors')[
    'lm_head.weight'
  ]
  lm_head = np.frombuffer(data, '<f4').reshape(rows, columns)
  assert (dtype, rows, columns) == ('F32', config.vocab_size, config.emb_dim)
  np.testing.assert_array_equal(lm_head[score_id], read_out[:, 0])
  assert not np.delete(lm_head, score_id, axis=0).any()
  # Read again, it is the reward model that it was.
  again = huggingface.Source(tmp_path)
  proof.compare_tensors(source, again)
  assert not again.config.logits_via_embedding


def test_a_tied_model_gets_an_output_of_its_own_for_a_reward():
  source, config, _ = reward_model()
  tied = dataclasses.replace(config, logits_via_embedding=True)
  _, shape, _ = exports.as_model(source, tied)
  assert not shape.logits_via_embedding


@pytest.mark.parametrize(
  ('vocab_size', 'score_id'),
  # mT5's, where MetricX has it; T5's, whose sentinels end at 32099; tiny.
  [(250112, 250089), (32100, 32089), (64, 53), (8, 0)],
)
def test_the_reward_answers_at_a_sentinel(vocab_size, score_id):
  assert exports.score_id_of(vocab_size) == score_id


class Watched:
  """A source that keeps the bytes of the largest part it was asked for."""

  def __init__(self, inner):
    self.where, self.shapes, self._inner = inner.where, inner.shapes, inner
    self.largest = 0

  def read(self, name, index=()):
    value = self._inner.read(name, index)
    self.largest = max(self.largest, value.nbytes)
    return value


@pytest.mark.parametrize('name', ['hf_mt5', 'hf_umt5'])
def test_large_arrays_are_passed_on_in_parts(tmp_path, monkeypatch, name):
  source = huggingface.Source(GOLDENS / name)
  whole = max(4 * math.prod(shape) for shape in source.shapes.values())
  limit = 4096
  monkeypatch.setattr(exports, 'PART_BYTES', limit)
  watched = Watched(source)
  huggingface_export.write(tmp_path / 'hf', source.config, watched)
  assert whole > 4 * limit >= 4 * watched.largest
  assert stored(tmp_path / 'hf/model.safetensors') == stored(
    GOLDENS / name / 'model.safetensors'
  )
  t5x_export.write(tmp_path / 'checkpoint_0', source.config, watched)
  written = Watched(t5x.Source(tmp_path / 'checkpoint_0'))
  proof.compare_tensors(watched, written)
  assert max(watched.largest, written.largest) <= limit
  huggingface_export.write(tmp_path / 'back', source.config, written)
  assert written.largest <= limit
  assert stored(tmp_path / 'back/model.safetensors') == stored(
    GOLDENS / name / 'model.safetensors'
  )
