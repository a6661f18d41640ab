"""T5X's layouts through the public command: `--run_mode=convert`."""

import dataclasses
import json
import pathlib

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import running
from flax import serialization, traverse_util
from foreign import flat, random_params, stacked, t5x

from rest_jax.checkpoint import formats, native
from rest_jax.checkpoint import t5x as reader
from rest_jax.models.config import T5Config
from rest_jax.policy import Policy
from rest_jax.sharding import Layout

DATA = (
  pathlib.Path(__file__).parents[1] / '../shared/data/t5x_checkpoints'
).resolve()
TINY = T5Config(
  vocab_size=24,
  emb_dim=8,
  num_heads=2,
  num_encoder_layers=3,
  num_decoder_layers=2,
  head_dim=4,
  mlp_dim=12,
)
# scalable_t5, whose trees may be stacked, has a bias in every layer.
SCALABLE = dataclasses.replace(TINY, relpos_per_layer=True)


def orbax(folder, params, ocdbt):
  tree = {'target': params, 'state': {'step': np.int32(3)}}
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt)) as saver:
    saver.save(folder / 'state', args=ocp.args.PyTreeSave(tree))


def legacy(path, params):
  tree = {'version': 3, 'optimizer': {'target': params, 'state': {'step': 0}}}
  path.write_bytes(serialization.msgpack_serialize(tree))


LAYOUTS = {
  'directory': (TINY, lambda path, params: t5x(path, flat(params))),
  'without state': (
    TINY,
    lambda path, params: t5x(path, flat(params), state=False),
  ),
  'ocdbt': (TINY, lambda path, params: orbax(path, params, True)),
  'orbax': (TINY, lambda path, params: orbax(path, params, False)),
  'legacy': (TINY, legacy),
  'scan 0': (SCALABLE, lambda path, params: t5x(path, stacked(params, 0))),
  'scan 1': (SCALABLE, lambda path, params: t5x(path, stacked(params, 1))),
  'scan ocdbt': (
    SCALABLE,
    lambda path, params: orbax(path, unflat(stacked(params)), True),
  ),
  'scan legacy': (
    SCALABLE,
    lambda path, params: legacy(path, unflat(stacked(params))),
  ),
}


def unflat(arrays):
  return traverse_util.unflatten_dict(arrays, sep='/')


def size_file(folder, config):
  """A gin file with the shape of a model, as those of gin/models."""
  fields = {
    name: value
    for name, value in vars(config).items()
    if value != getattr(T5Config(vocab_size=1), name)
  }
  lines = ''.join(f'  {name} = {value!r}\n' for name, value in fields.items())
  (folder / 'size.gin').write_text(
    'from __gin__ import dynamic_registration\n'
    'from rest_jax.models import config as t5\n'
    f't5.T5Config:\n{lines}'
  )
  return f'--gin_file={folder / "size.gin"}'


def convert(source, target, to, *more, expected=0):
  ended = running.within(
    '--run_mode=convert',
    f'--input={source}',
    f'--output={target}',
    f'--format={to}',
    *more,
  )
  assert ended.code == expected, ended.stderr
  return ended


def assert_holds(source, arrays):
  assert set(source.shapes) == set(arrays)
  for name, array in arrays.items():
    np.testing.assert_array_equal(
      np.asarray(source.read(name), np.float32).view(np.uint32),
      np.asarray(array, np.float32).view(np.uint32),
      name,
    )


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.filterwarnings('ignore')  # orbax's own.
def test_every_layout_becomes_a_directory_of_t5xs(tmp_path, layout):
  config, write = LAYOUTS[layout]
  params = random_params(Policy(config, Layout(data=1)))
  write(tmp_path / 'checkpoint_3', params)
  out = tmp_path / 'out/checkpoint_3'
  out.parent.mkdir()
  convert(
    tmp_path / 'checkpoint_3',
    out,
    't5x',
    size_file(tmp_path, config),
    '--verify=tensors',
  )
  assert_holds(reader.Source(out), flat(params))
  index = serialization.msgpack_restore((out / 'checkpoint').read_bytes())
  assert index['optimizer']['state'] == {'step': 3}


def test_logits_are_compared_of_stacked_layers_in_bfloat16(tmp_path):
  params = {
    name: value.astype(ml_dtypes.bfloat16)
    for name, value in flat(
      random_params(Policy(SCALABLE, Layout(data=1)))
    ).items()
  }
  t5x(tmp_path / 'checkpoint_0', stacked(unflat(params)))
  # A config.json beside the checkpoint tells its shape, too.
  (tmp_path / 'config.json').write_text(json.dumps(vars(SCALABLE)))
  said = convert(tmp_path / 'checkpoint_0', tmp_path / 'out', 'huggingface')
  assert 'logits, read back: differ by at most 0,' in said.stdout
  assert 'not compared with the origin' in said.stdout
  convert(tmp_path / 'out', tmp_path / 'ours', 'native', '--verify=tensors')
  assert_holds(native.Source(tmp_path / 'ours'), params)


@pytest.mark.slow
def test_t5xs_own_test_checkpoints(tmp_path):
  if not DATA.exists():
    pytest.skip('the data do not lie beside this checkout')
  path = DATA / 'test_t5_tiny.checkpoint_0'
  tree = serialization.msgpack_restore(path.read_bytes())
  arrays = flat(tree['optimizer']['target'])
  heads = arrays['decoder/relpos_bias/rel_embedding'].shape[0]
  kernel = arrays['decoder/layers_0/self_attention/query/kernel']
  layers = {n.split('/')[1] for n in arrays if '/layers_' in n}
  vocab, emb_dim = arrays['token_embedder/embedding'].shape
  config = T5Config(
    vocab_size=vocab,
    emb_dim=emb_dim,
    num_heads=heads,
    num_encoder_layers=len(layers),
    num_decoder_layers=len(layers),
    head_dim=kernel.shape[1] // heads,
    mlp_dim=arrays['encoder/layers_0/mlp/wo/kernel'].shape[0],
  )
  size = size_file(tmp_path, config)
  said = convert(path, tmp_path / 'out', 'huggingface', size)
  assert 'logits, read back: differ by at most 0,' in said.stdout
  convert(tmp_path / 'out', tmp_path / 'checkpoint_0', 't5x')
  assert_holds(reader.Source(tmp_path / 'checkpoint_0'), arrays)
  # These two, as T5X has them, are states of an optimizer without parameters.
  for name in ('tiny_t5/checkpoint_1', 'tiny_orbax/1'):
    ended = convert(DATA / name, tmp_path / 'no', 'native', size, expected=3)
    assert 'optimizer state' in ended.stderr
    assert ended.stderr.count('\n') == 1
  assert not (tmp_path / 'no').exists()


def test_another_size_is_an_error_that_lists_what_differs(tmp_path):
  params = random_params(Policy(TINY, Layout(data=1)))
  legacy(tmp_path / 'model.checkpoint_1', params)
  other = dataclasses.replace(TINY, num_decoder_layers=3, vocab_size=32)
  ended = convert(
    tmp_path / 'model.checkpoint_1',
    tmp_path / 'out',
    'native',
    size_file(tmp_path, other),
    expected=2,
  )
  assert 'decoder/layers_2/mlp/wo/kernel is missing' in ended.stderr
  assert 'shape (24, 8), not (32, 8)' in ended.stderr
  assert ended.stderr.count('\n') == 1
  assert not (tmp_path / 'out').exists()


def test_the_last_of_several_is_taken(tmp_path):
  params = random_params(Policy(TINY, Layout(data=1)))
  later = random_params(Policy(TINY, Layout(data=1)), seed=1)
  for step, arrays in ((9, params), (10, later)):
    t5x(tmp_path / f'run/checkpoint_{step}', flat(arrays))
  convert(
    tmp_path / 'run', tmp_path / 'out', 'native', size_file(tmp_path, TINY),
    '--verify=tensors',
  )  # fmt: skip
  source = native.Source(formats.find(tmp_path / 'out').path)
  assert_holds(source, flat(later))
  assert source.extra == {'step': 10}
