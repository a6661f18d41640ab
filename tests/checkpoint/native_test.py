import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import PartitionSpec

from rest_jax import errors, sharding, storage, types
from rest_jax.checkpoint import native, native_index
from rest_jax.training.optimizer import Optimizer


def params_of(seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
  return {'encoder': {'kernel': draw(4, 8), 'scale': draw(8)}, 'out': draw(8)}


def state_of(seed=0, optimizer=Optimizer(min_dim_size_to_factor=4)):  # noqa: B008
  params = params_of(seed)
  return types.TrainState(
    step=jnp.int32(7),
    params=params,
    opt_state=optimizer.direction.init(params),
  )


def abstract(tree):
  return jax.eval_shape(lambda: tree)


def assert_same(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_training_state_comes_back(tmp_path):
  checkpoints = native.Checkpoints(tmp_path / 'checkpoints')
  assert checkpoints.latest() is None
  state = state_of()
  checkpoints.save(7, state, {'reward': 0.5, 'history': [1, 2]})
  restored = checkpoints.restore(7, abstract(state))
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  assert_same(restored, state)
  assert checkpoints.extra(7) == {'reward': 0.5, 'history': [1, 2]}


def test_equal_parameters_have_equal_digests(tmp_path):
  digest = native.save_params(tmp_path / 'a', params_of(1))
  assert native.save_params(tmp_path / 'b', params_of(1)) == digest
  assert native.save_params(tmp_path / 'c', params_of(2)) != digest


def test_paths_may_be_relative(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  native.save_params('run/supervised/params', params_of())
  restored = native.restore_params(
    'run/supervised/params', abstract(params_of())
  )
  assert_same(restored, params_of())


def test_steps_are_numbers_not_words(tmp_path):
  checkpoints = native.Checkpoints(tmp_path)
  for step in (9, 10, 100):
    checkpoints.save(step, {'x': jnp.arange(step)})
  (tmp_path / 'notes').mkdir()
  assert checkpoints.steps() == [9, 10, 100]
  checkpoints.delete(100)
  checkpoints.delete(55)
  assert checkpoints.latest() == 10


def test_what_is_remembered_changes_without_the_arrays(tmp_path):
  checkpoints = native.Checkpoints(tmp_path)
  checkpoints.save(3, params_of(), {'history': [1]})
  before = {
    path: path.stat().st_ino for path in (tmp_path / '3' / 'state').rglob('*')
  }
  checkpoints.amend(3, {'history': [1, 2]})
  assert checkpoints.extra(3) == {'history': [1, 2]}
  assert_same(checkpoints.restore(3, abstract(params_of())), params_of())
  assert before == {path: path.stat().st_ino for path in before}
  with pytest.raises(errors.CorruptStateError):
    checkpoints.amend(4, {})


def test_saving_a_step_again_replaces_it(tmp_path):
  checkpoints = native.Checkpoints(tmp_path)
  checkpoints.save(1, {'x': jnp.zeros(3)})
  checkpoints.save(1, {'x': jnp.ones(2)})
  tree = {'x': jax.ShapeDtypeStruct((2,), jnp.float32)}
  assert_same(checkpoints.restore(1, tree), {'x': jnp.ones(2)})


def test_it_restores_onto_another_mesh(tmp_path):
  params = {'kernel': jnp.arange(32.0).reshape(4, 8)}
  native.save_params(tmp_path / 'params', params)
  mesh = sharding.Layout(data=2, model=4).mesh()
  placed = jax.sharding.NamedSharding(mesh, PartitionSpec('data', 'model'))
  restored = native.restore_params(
    tmp_path / 'params',
    {'kernel': jax.ShapeDtypeStruct((4, 8), jnp.float32, sharding=placed)},
  )
  assert restored['kernel'].sharding == placed
  assert_same(restored, params)


def test_sharded_arrays_are_saved_whole(tmp_path):
  mesh = sharding.Layout(data=2, model=4).mesh()
  placed = jax.sharding.NamedSharding(mesh, PartitionSpec('data', 'model'))
  whole = np.arange(32.0, dtype=np.float32).reshape(4, 8)
  native.save_params(tmp_path / 'p', {'x': jax.device_put(whole, placed)})
  restored = native.restore_params(
    tmp_path / 'p', {'x': jax.ShapeDtypeStruct((4, 8), jnp.float32)}
  )
  assert_same(restored, {'x': whole})


def test_params_are_saved_as_float32(tmp_path):
  params = {'x': jnp.array([0.5, 1.5], jnp.bfloat16)}
  native.save_params(tmp_path / 'p', params, {'vocab': 3})
  tree = {'x': jax.ShapeDtypeStruct((2,), jnp.float32)}
  restored = native.restore_params(tmp_path / 'p', tree)
  assert restored['x'].dtype == jnp.float32
  assert_same(restored, {'x': np.array([0.5, 1.5], np.float32)})
  assert native.Source(tmp_path / 'p').extra == {'vocab': 3}


def test_every_altered_or_missing_file_is_seen(tmp_path):
  """One flipped bit anywhere, or one file less."""
  checkpoints = native.Checkpoints(tmp_path)
  params = params_of()
  checkpoints.save(1, params)
  files = [p for p in (tmp_path / '1' / 'state').rglob('*') if p.is_file()]
  assert len(files) > 4
  for path in files:
    data = path.read_bytes()
    if data:
      flipped = bytearray(data)
      flipped[len(data) // 2] ^= 1
      path.write_bytes(bytes(flipped))
      with pytest.raises(errors.CorruptStateError, match='was altered'):
        checkpoints.restore(1, abstract(params))
    path.unlink()
    with pytest.raises(errors.CorruptStateError, match=path.name):
      checkpoints.restore(1, abstract(params))
    path.write_bytes(data)
  assert_same(checkpoints.restore(1, abstract(params)), params)


@pytest.mark.parametrize('text', ['', '{"format": 1', '{"format": 2}', '[]'])
def test_a_damaged_index_is_named(tmp_path, text):
  checkpoints = native.Checkpoints(tmp_path)
  checkpoints.save(3, {'x': jnp.zeros(2)})
  (tmp_path / '3' / 'checkpoint.json').write_text(text)
  tree = {'x': jax.ShapeDtypeStruct((2,), jnp.float32)}
  with pytest.raises(errors.CorruptStateError, match=str(tmp_path / '3')):
    checkpoints.restore(3, tree)


def test_a_checkpoint_of_another_model_lists_the_differences(tmp_path):
  checkpoints = native.Checkpoints(tmp_path)
  checkpoints.save(1, params_of())
  other = {
    'encoder': {
      'kernel': jax.ShapeDtypeStruct((4, 16), jnp.float32),
      'wide': jax.ShapeDtypeStruct((8,), jnp.float32),
    },
    'out': jax.ShapeDtypeStruct((8,), jnp.float32),
  }
  with pytest.raises(errors.ConfigurationError) as caught:
    checkpoints.restore(1, other)
  message = str(caught.value)
  assert 'encoder/wide is missing' in message
  assert 'encoder/scale is unknown' in message
  assert 'encoder/kernel has shape (4, 8), not (4, 16)' in message
  assert 'out' not in message.split(':', 1)[1].split('.')[0].split()
  assert '\n' not in message


def test_many_differences_are_counted(tmp_path):
  checkpoints = native.Checkpoints(tmp_path)
  checkpoints.save(1, {f'x{i}': jnp.zeros(2) for i in range(20)})
  tree = {'y': jax.ShapeDtypeStruct((2,), jnp.float32)}
  with pytest.raises(errors.ConfigurationError, match='and 15 more'):
    checkpoints.restore(1, tree)


def test_an_unfinished_save_is_no_checkpoint(tmp_path, monkeypatch):
  """Stopped just before the commit, the one before is still the last."""
  checkpoints = native.Checkpoints(tmp_path)
  tree = {'x': jnp.arange(3)}
  checkpoints.save(1, tree)

  def killed(path, value):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(storage, 'write_json_atomic', killed)
    with pytest.raises(KeyboardInterrupt):
      checkpoints.save(2, tree)
  assert checkpoints.steps() == [1]
  with pytest.raises(errors.CorruptStateError, match='no readable checkpoint'):
    checkpoints.restore(2, abstract(tree))
  # Nor does it stay when others are kept.
  checkpoints.keep([1])
  assert [path.name for path in tmp_path.iterdir()] == ['1']
  checkpoints.save(2, tree)
  assert_same(checkpoints.restore(2, abstract(tree)), tree)


_SAVE_FOR_EVER = """
import itertools, sys
import jax.numpy as jnp
from rest_jax.checkpoint.native import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
for step in itertools.count(1):
  checkpoints.save(step, {'x': jnp.full((200, 200), step)})
"""


def test_a_process_killed_while_saving_leaves_whole_checkpoints(tmp_path):
  root = pathlib.Path(__file__).parents[2]
  checkpoints = native.Checkpoints(tmp_path)
  process = subprocess.Popen(
    [sys.executable, '-c', _SAVE_FOR_EVER, str(tmp_path)],
    env={**os.environ, 'PYTHONPATH': str(root), 'JAX_PLATFORMS': 'cpu'},
  )
  try:
    deadline = time.monotonic() + 120
    while len(checkpoints.steps()) < 3 and time.monotonic() < deadline:
      assert process.poll() is None
      time.sleep(0.01)
  finally:
    process.send_signal(signal.SIGKILL)
    process.wait()
  steps = checkpoints.steps()
  assert steps == list(range(1, len(steps) + 1))
  assert len(steps) >= 3
  tree = {'x': jax.ShapeDtypeStruct((200, 200), jnp.int32)}
  latest = checkpoints.latest()
  assert (checkpoints.restore(latest, tree)['x'] == latest).all()
  checkpoints.save(latest + 1, {'x': jnp.zeros((200, 200), jnp.int32)})
  assert checkpoints.latest() == latest + 1


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(errors.StorageError, match='MODEL_DIR'):
    native.save_params(tmp_path / 'file' / 'params', params_of())


@pytest.mark.parametrize('kind', ['params', 'step'])
def test_a_run_may_start_from_any_of_our_checkpoints(tmp_path, kind):
  params = params_of(3)
  path = tmp_path / 'given'
  if kind == 'params':
    native.save_params(path, params)
  else:
    native.Checkpoints(path).save(2, state_of(3))
    path = path / '2'
  assert native.is_checkpoint(path)
  assert_same(native.restore_initial(path, abstract(params)), params)


def test_a_start_of_another_shape_or_none_is_an_error(tmp_path):
  native.Checkpoints(tmp_path / 'run').save(1, state_of())
  other = {'out': jax.ShapeDtypeStruct((9,), jnp.float32)}
  with pytest.raises(errors.ConfigurationError, match='not of this model'):
    native.restore_initial(tmp_path / 'run/1', other)
  assert not native.is_checkpoint(tmp_path / 'nowhere')


def test_arrays_of_several_chunks_come_back_whole_and_in_parts(tmp_path):
  rng = np.random.default_rng(0)
  params = {
    'a': {'kernel': jnp.asarray(rng.random((4096, 1536), np.float32))},
    'b': {'kernel': jnp.asarray(rng.random((4096, 1536), np.float32))},
    'c': {'scale': jnp.asarray(rng.random(8, np.float32))},
  }
  native.save_params(tmp_path / 'params', params)
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    params,
  )
  restored = native.restore_params(tmp_path / 'params', abstract)
  jax.tree.map(np.testing.assert_array_equal, restored, params)
  source = native.Source(tmp_path / 'params')
  kernel = np.asarray(params['b']['kernel'])
  np.testing.assert_array_equal(source.read('b/kernel'), kernel)
  part = (slice(1000, 3000), slice(7, 9))
  np.testing.assert_array_equal(source.read('b/kernel', part), kernel[part])
  rows = (slice(0, 5),)
  np.testing.assert_array_equal(source.read('b/kernel', rows), kernel[rows])


def test_everything_is_on_disk_before_the_index_says_so(tmp_path, monkeypatch):
  done = []
  sync, write = storage.sync, storage.write_json_atomic
  monkeypatch.setattr(
    storage, 'sync', lambda path: (done.append(str(path)), sync(path))
  )
  monkeypatch.setattr(
    storage,
    'write_json_atomic',
    lambda path, value: (done.append('index'), write(path, value)),
  )
  folder = tmp_path / 'params'
  native.save_params(folder, {'a': jnp.arange(4.0)})
  files = native_index.read(epath.Path(folder))['files']
  before = done[: done.index('index')]
  assert {str(folder / 'state' / name) for name in files} <= set(before)
  assert str(folder / 'state') in before
