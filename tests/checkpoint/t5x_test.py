"""Reading T5X's checkpoints, in all of their layouts."""

import pathlib

import jax
import ml_dtypes
import msgpack
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization, traverse_util
from foreign import flat, random_params, stacked, t5x, zarr

from rest_jax import errors
from rest_jax.checkpoint import t5x as reader
from rest_jax.models.config import T5Config
from rest_jax.policy import Policy
from rest_jax.sharding import AxisRules, Layout

SHARED = (pathlib.Path(__file__).parents[2] / '../shared').resolve()
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
SCALABLE = T5Config(**vars(TINY) | {'relpos_per_layer': True})


@pytest.fixture(scope='module')
def policy():
  return Policy(TINY, Layout(data=1))


@pytest.fixture(scope='module')
def params(policy):
  return random_params(policy)


@pytest.fixture
def folder(tmp_path, params):
  t5x(tmp_path / 'checkpoint_3', flat(params))
  return tmp_path / 'checkpoint_3'


def assert_same(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_directory_comes_back_bit_for_bit(folder, policy, params):
  assert reader.is_checkpoint(folder)
  assert_same(reader.restore_params(folder, policy.placed_params()), params)


def test_bfloat16_without_optimizer_state(tmp_path, policy, params):
  arrays = {k: v.astype(ml_dtypes.bfloat16) for k, v in flat(params).items()}
  t5x(tmp_path / 'checkpoint_0', arrays, state=False)
  restored = reader.restore_params(
    tmp_path / 'checkpoint_0', policy.placed_params()
  )
  expected = jax.tree.map(
    lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), params
  )
  assert_same(restored, expected)


def test_shards_are_read_where_they_lie(folder, params):
  layout = Layout(data=2, model=2, rules=AxisRules(embed='data'))
  sharded = Policy(TINY, layout)
  restored = reader.restore_params(folder, sharded.placed_params())
  assert_same(restored, params)
  shardings = jax.tree.map(lambda x: x.sharding, restored)
  assert shardings == sharded.param_shardings()


def test_a_legacy_file_comes_back(tmp_path, policy, params):
  path = tmp_path / 'model.checkpoint_0'
  tree = {'version': 3, 'optimizer': {'target': params, 'state': {'step': 0}}}
  path.write_bytes(serialization.msgpack_serialize(tree))
  assert reader.is_checkpoint(path)
  assert_same(reader.restore_params(path, policy.placed_params()), params)


@pytest.mark.parametrize('axis', [0, 1])
def test_stacked_layers_are_unstacked(tmp_path, axis):
  policy = Policy(SCALABLE, Layout(data=1))
  params = random_params(policy)
  t5x(tmp_path / 'checkpoint_0', stacked(params, axis))
  assert_same(
    reader.restore_params(tmp_path / 'checkpoint_0', policy.placed_params()),
    params,
  )


@pytest.mark.parametrize('ocdbt', [True, False])
@pytest.mark.filterwarnings('ignore')  # orbax's own.
def test_orbax_folders_come_back(tmp_path, policy, params, ocdbt):
  tree = {'target': params, 'state': {'step': np.int32(3)}}
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt)) as orbax:
    orbax.save(tmp_path / 'checkpoint_3/state', args=ocp.args.PyTreeSave(tree))
  for folder in (tmp_path / 'checkpoint_3', tmp_path / 'checkpoint_3/state'):
    assert reader.is_checkpoint(folder)
    assert_same(reader.restore_params(folder, policy.placed_params()), params)


@pytest.mark.parametrize('above', [('target',), ('_optimizer', 'target')])
def test_orbax_folders_of_old_have_placeholders(
  tmp_path, policy, params, above
):
  prefix = '.'.join(above)
  target = {}
  for name, value in flat(params).items():
    array = f'{prefix}.{name.replace("/", ".")}'
    zarr(tmp_path / array, value)
    target[name] = f'PLACEHOLDER://{array}'
  tree = traverse_util.unflatten_dict(
    {above: traverse_util.unflatten_dict(target, sep='/')}
  )
  (tmp_path / 'checkpoint').write_bytes(serialization.msgpack_serialize(tree))
  assert_same(reader.restore_params(tmp_path, policy.placed_params()), params)


def test_all_that_does_not_fit_is_listed(folder):
  other = Policy(
    T5Config(**vars(TINY) | {'vocab_size': 32, 'num_encoder_layers': 4}),
    Layout(data=1),
  )
  with pytest.raises(errors.ConfigurationError) as caught:
    reader.restore_params(folder, other.placed_params(), tokenizer_size=30)
  for phrase in (
    'token_embedder/embedding has shape (24, 8), not (32, 8)',
    'encoder/layers_3/mlp/wo/kernel is missing',
    '24 rows for the 30 ids',
  ):
    assert phrase in str(caught.value)


@pytest.mark.parametrize('harm', ['lost', 'truncated'])
def test_a_chunk_that_is_lost_or_truncated_is_named(folder, policy, harm):
  chunk = folder / 'target.decoder.logits_dense.kernel/1.0'
  if harm == 'lost':
    chunk.unlink()
  else:
    chunk.write_bytes(chunk.read_bytes()[:9])
  with pytest.raises(errors.DataError, match=r'logits_dense\.kernel/1\.0'):
    reader.restore_params(folder, policy.placed_params())


def test_a_truncated_index_is_named(folder, policy):
  index = folder / 'checkpoint'
  index.write_bytes(index.read_bytes()[:200])
  with pytest.raises(errors.DataError, match='checkpoint_3/checkpoint is'):
    reader.restore_params(folder, policy.placed_params())


@pytest.mark.parametrize('path', ['../other/', '/etc/', 'a/../../b', '..'])
def test_an_index_that_leaves_its_folder_is_refused(folder, policy, path):
  index = msgpack.unpackb((folder / 'checkpoint').read_bytes())
  norm = index['optimizer']['target']['encoder']['encoder_norm']
  norm['scale']['kvstore']['path'] = path
  (folder / 'checkpoint').write_bytes(msgpack.packb(index))
  with pytest.raises(errors.DataError, match='not in its folder'):
    reader.restore_params(folder, policy.placed_params())


def test_an_index_with_other_drivers_is_read_as_plain_arrays(
  folder, policy, params
):
  index = msgpack.unpackb((folder / 'checkpoint').read_bytes())
  norm = index['optimizer']['target']['encoder']['encoder_norm']
  norm['scale'] |= {'driver': 'json', 'context': {'cache_pool': {}}}
  norm['scale']['kvstore']['driver'] = 'http'
  (folder / 'checkpoint').write_bytes(msgpack.packb(index))
  assert_same(reader.restore_params(folder, policy.placed_params()), params)


def test_t5xs_own_test_checkpoints():
  folder = SHARED / 'data/t5x_checkpoints'
  if not folder.exists():
    pytest.skip('the data do not lie beside this checkout')
  legacy = folder / 'test_t5_tiny.checkpoint_0'
  assert reader.is_checkpoint(legacy)
  source = reader.Source(legacy)
  vocab, emb = source.shapes['token_embedder/embedding']
  layers = {n.split('/')[1] for n in source.shapes if '/layers_' in n}
  heads = source.shapes['decoder/relpos_bias/rel_embedding'][0]
  joined = source.shapes['decoder/layers_0/self_attention/query/kernel'][1]
  config = T5Config(
    vocab_size=vocab,
    emb_dim=emb,
    num_heads=heads,
    num_encoder_layers=len(layers),
    num_decoder_layers=len(layers),
    head_dim=joined // heads,
    mlp_dim=source.shapes['encoder/layers_0/mlp/wo/kernel'][0],
  )
  policy = Policy(config, Layout(data=1))
  params = reader.restore_params(legacy, policy.placed_params())
  tree = serialization.msgpack_restore(legacy.read_bytes())
  assert_same(params, tree['optimizer']['target'])
  # These two, as T5X has them, are states of an optimizer without parameters.
  for name in ('tiny_t5/checkpoint_1', 'tiny_orbax/1'):
    assert reader.is_checkpoint(folder / name)
    with pytest.raises(errors.DataError, match='optimizer state'):
      reader.Source(folder / name)
