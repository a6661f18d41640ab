"""T5X's directories, as its own Checkpointer writes and reads them."""

import dataclasses
import importlib.util
import json
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import running
import tensorstore
from flax import serialization, traverse_util

from rest_jax import proof
from rest_jax.checkpoint import (
  exports,
  huggingface,
  native,
  restoring,
  t5x,
  t5x_export,
)
from rest_jax.policy import Policy
from rest_jax.sharding import Layout

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
FIXTURE = (
  pathlib.Path(__file__).parents[2] / '../shared/fixtures/t5x_v1_1_tiny'
).resolve()
PEER = pathlib.Path(running.__file__).with_name('t5x_peer.py')


@pytest.fixture
def fixture():
  if not FIXTURE.exists():
    pytest.skip(f'{FIXTURE} is not beside this checkout')
  return FIXTURE / 'checkpoint_0'


def index_of(folder):
  data = (folder / 'checkpoint').read_bytes()
  return serialization.msgpack_restore(data)


def leaves(target):
  """Name → spec of every array of an index."""
  return traverse_util.flatten_dict(
    target, is_leaf=lambda _, x: 'driver' in x, sep='/'
  )


def arrays(folder):
  """Name → array, as tensorstore opens it by the index alone."""
  found = {}
  for name, spec in leaves(index_of(folder)['optimizer']['target']).items():
    path = f'{folder}/{spec["kvstore"]["path"]}'
    spec = spec | {'kvstore': {'driver': 'file', 'path': path}}
    found[name] = tensorstore.open(spec, open=True).result().read().result()
  return found


def test_the_layout_is_t5xs(fixture, tmp_path):
  """Index and arrays are those that T5X wrote, less its optimizer's state."""
  source = t5x.Source(fixture)
  config = huggingface.Source(GOLDENS / 'hf_mt5').config
  t5x_export.write(tmp_path / 'checkpoint_7', config, source, step=7)
  ours, theirs = index_of(tmp_path / 'checkpoint_7'), index_of(fixture)
  assert set(ours) == set(theirs)
  assert ours['version'] == theirs['version']
  assert ours['optimizer']['target'] == theirs['optimizer']['target']
  step = ours['optimizer']['state']['step']
  assert (step, step.dtype) == (7, np.int32)
  written, given = arrays(tmp_path / 'checkpoint_7'), arrays(fixture)
  assert written.keys() == given.keys()
  for name, array in given.items():
    np.testing.assert_array_equal(written[name], array, name)
  proof.compare_tensors(source, t5x.Source(tmp_path / 'checkpoint_7'))


def test_large_arrays_are_cut_evenly():
  for shape in ((250112, 4096), (4096, 10240), (512,), (65536, 7)):
    chunks = exports.part_shape(shape)
    assert 4 * np.prod(chunks) <= 64 << 20
    assert not any(np.remainder(shape, chunks))
    # Not smaller than need be.
    assert chunks == list(shape) or 4 * np.prod(chunks) > 1 << 20


def test_hugging_faces_go_through_t5xs_format(tmp_path):
  source = huggingface.Source(GOLDENS / 'hf_byt5')
  t5x_export.write(tmp_path / 'out', source.config, source)
  proof.compare_tensors(source, t5x.Source(tmp_path / 'out'))
  values = json.loads((tmp_path / 'out/config.json').read_text())
  values['mlp_activations'] = tuple(values['mlp_activations'])
  assert values == dataclasses.asdict(source.config)


@pytest.mark.t5x
def test_t5x_restores_and_runs_what_we_write(fixture, tmp_path):
  """Its Checkpointer, its network.Transformer and its decoding, live."""
  if importlib.util.find_spec('t5x') is None:
    pytest.skip('t5x is not installed; docs/t5x.md has the recipe')
  folder = tmp_path / 'checkpoint_3'
  given = t5x.Source(fixture)
  values = json.loads((FIXTURE / 'config.json').read_text())
  from rest_jax.models.config import T5Config

  config = T5Config(**values)
  t5x_export.write(folder, config, given, step=3)
  expected = np.load(FIXTURE / 'expected.npz')
  tokens = {
    name: expected[name]
    for name in ('encoder_input_tokens', 'decoder_input_tokens')
  }
  np.savez(tmp_path / 'in.npz', **tokens, steps=12, num_beams=4)
  subprocess.run(
    [
      sys.executable,
      str(PEER),
      str(folder),
      str(tmp_path / 'in.npz'),
      str(tmp_path / 'out.npz'),
    ],
    env=running.environment(),
    check=True,
    timeout=running.SECONDS,
  )
  theirs = np.load(tmp_path / 'out.npz')
  assert theirs['step'] == 3
  for name in given.shapes:
    np.testing.assert_array_equal(
      theirs[f'params/{name}'], given.read(name), name
    )
  policy = Policy(config, Layout(data=1))
  params = restoring.restore(given, policy.abstract_params())
  cache = policy.start_cache(
    params,
    tokens['encoder_input_tokens'],
    num_samples=1,
    max_decode_len=9,
  )
  logits = []
  for step in range(9):
    column = jnp.asarray(tokens['decoder_input_tokens'][:, step : step + 1])
    out, cache = policy.decode_step(params, column, cache)
    logits.append(np.asarray(out[:, 0]))
  np.testing.assert_allclose(
    np.stack(logits, 1), theirs['logits'], rtol=1e-5, atol=1e-4
  )
  beams = policy.beam_search(
    params, tokens['encoder_input_tokens'], num_beams=4, max_decode_len=12
  )
  real = theirs['beam_scores'] > -1e6  # Else T5X found fewer hypotheses.
  np.testing.assert_array_equal(
    np.asarray(beams.tokens)[real], theirs['beam_tokens'][real]
  )
  greedy = policy.greedy(
    params, tokens['encoder_input_tokens'], max_decode_len=12
  )
  np.testing.assert_array_equal(
    np.asarray(greedy.tokens)[:, 0], theirs['greedy_tokens']
  )


def test_our_own_format_goes_round_too(tmp_path):
  source = huggingface.Source(GOLDENS / 'hf_umt5')
  params = traverse_util.unflatten_dict(
    {name: jnp.asarray(source.read(name)) for name in source.shapes}, sep='/'
  )
  native.save_params(tmp_path / 'native', params, {'step': 4})
  stored = native.Source(tmp_path / 'native')
  assert stored.extra == {'step': 4}
  proof.compare_tensors(source, stored)
  name = 'token_embedder/embedding'
  np.testing.assert_array_equal(
    stored.read(name, (slice(3, 5), slice(None))),
    source.read(name)[3:5],
  )
