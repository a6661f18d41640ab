"""Checkpoints in rest_jax's own format: orbax arrays and a checksummed index.

A checkpoint is a folder with orbax's files in `state/` and `checkpoint.json`,
written last, which commits it: names, shapes and dtypes of the arrays, sizes
and SHA-256 of all files (orbax itself does not see a flipped bit), and what the
caller wants to remember. A folder without it is what a killed process left
behind, and is not a checkpoint.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath

from rest_jax import errors, hosts, storage
from rest_jax.checkpoint import restoring

_INDEX = 'checkpoint.json'
_STATE = 'state'
_FORMAT = 1
_OVERHEAD = 1 << 20  # Bytes that orbax writes beside the arrays, at most.
_CHUNK_BYTES = 16 << 20  # What is read at a time, and so buffered, at least.
_NO_SPACE = ('No space left', 'RESOURCE_EXHAUSTED', 'PERMISSION_DENIED')

Tree = Any
PathLike = storage.PathLike


class Checkpoints:
  """The checkpoints of one training stage, by step."""

  def __init__(self, folder: PathLike):
    """Args: folder: holds one folder a step; made at the first `save`."""
    self._folder = epath.Path(folder)

  def path(self, step: int) -> epath.Path:
    """The folder of the checkpoint of a step."""
    return self._folder / str(step)

  def steps(self) -> list[int]:
    """The steps that have a finished checkpoint, rising."""
    if not self._folder.is_dir():
      return []
    return sorted(
      int(path.name)
      for path in self._folder.iterdir()
      if path.name.isdecimal() and (path / _INDEX).exists()
    )

  def latest(self) -> int | None:
    """The last step that has a finished checkpoint, or None."""
    return max(self.steps(), default=None)

  def save(self, step: int, tree: Tree, extra: dict[str, Any] | None = None):
    """Saves a tree and returns when it is on disk; replaces one of that step.

    Args:
      step: its number.
      tree: a pytree of arrays, such as a `TrainState`.
      extra: JSON values to remember with it.

    Raises:
      StorageError: when the folder cannot be written.
    """
    _write(self.path(step), tree, extra)

  def extra(self, step: int) -> dict[str, Any]:
    """What was remembered with the checkpoint of a step.

    Raises:
      CorruptStateError: when there is none, or its index is damaged.
    """
    return _read_index(self.path(step))['extra']

  def restore(self, step: int, abstract: Tree) -> Tree:
    """Restores the tree of a step.

    Args:
      step: its number.
      abstract: a pytree of `jax.ShapeDtypeStruct`, with shardings where arrays
        shall lie on a mesh.

    Returns:
      The tree, as `abstract` says.

    Raises:
      CorruptStateError: when there is none, or a file of it was altered.
      ConfigurationError: when names or shapes are not those of `abstract`.
    """
    return _read(self.path(step), abstract)

  def restore_params(self, step: int, abstract: Tree) -> Tree:
    """Restores no more than `params` of a step's `TrainState`.

    Raises:
      CorruptStateError, ConfigurationError: as `restore`.
    """
    return _read_params(self.path(step), abstract)

  def delete(self, step: int):
    """Deletes the checkpoint of a step, where there is one."""
    _clear(self.path(step))

  def keep(self, steps: Collection[int]):
    """Deletes the checkpoints of all other steps."""
    for step in self.steps():
      if step not in steps:
        self.delete(step)


class Source:
  """The parameters of a checkpoint, read one by one; see `restoring.Source`."""

  def __init__(self, folder: PathLike):
    """Reads the index, and holds all files against their checksums.

    Args:
      folder: of `save_params`, or one step's of `Checkpoints`.

    Raises:
      CorruptStateError: there is no checkpoint, or a file of it was altered.
    """
    self._folder = epath.Path(folder)
    self.where = str(self._folder)
    index = _read_index(self._folder)
    _check_files(self._folder, index['files'])
    self.extra = index['extra']
    arrays = {
      name: tuple(shape) for name, (shape, _) in index['arrays'].items()
    }
    # A training state has more than parameters.
    inner = any(name.startswith('params/') for name in arrays)
    self._prefix = 'params/' if inner else ''
    self.shapes: Mapping[str, tuple[int, ...]] = {
      name.removeprefix(self._prefix): shape
      for name, shape in arrays.items()
      if name.startswith(self._prefix)
    }

  def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
    """Part of a parameter, in the checkpoint's dtype."""
    # orbax reads whole arrays, and with them three times the memory.
    place = (self._prefix + name).replace('/', '.')
    base = restoring.kvstore(_state_path(self._folder))
    spec = {
      'driver': 'zarr',
      'kvstore': {'driver': 'ocdbt', 'base': base, 'path': f'{place}/'},
      'fill_missing_data_reads': False,
    }
    array = tensorstore.open(spec, open=True, read=True).result()
    return array[(*index, ...)].read().result()


def save_params(
  folder: PathLike, params: Tree, extra: dict[str, Any] | None = None
) -> str:
  """Saves a policy's parameters, as float32.

  Args:
    folder: where; replaced if it holds a checkpoint already.
    params: nested dict of arrays.
    extra: JSON values to remember with them.

  Returns:
    SHA-256 of names, shapes and values: equal parameters, equal digest, which
    the files, with orbax's random names and times, have not.

  Raises:
    StorageError: when the folder cannot be written.
  """
  float32 = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  _write(epath.Path(folder), float32, extra)
  return hosts.on_first(lambda: _digest(epath.Path(folder), float32))


def _digest(folder: epath.Path, tree: Tree) -> str:
  digest = hashlib.sha256(json.dumps(_describe(tree)).encode())
  source = None
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    if not _all_here(leaf):
      # Other processes hold parts of it; all of it is on disk now.
      source = source or Source(folder)
      leaf = source.read(_name(path))
    digest.update(np.ascontiguousarray(leaf).data)
  return digest.hexdigest()


def _all_here(leaf: jax.Array | np.ndarray) -> bool:
  return isinstance(leaf, np.ndarray) or (
    leaf.is_fully_addressable or leaf.is_fully_replicated
  )


def restore_params(folder: PathLike, abstract: Tree) -> Tree:
  """Restores what `save_params` saved; see `Checkpoints.restore`."""
  return _read(epath.Path(folder), abstract)


def read_extra(folder: PathLike) -> dict[str, Any]:
  """What was remembered by `save_params`.

  Raises:
    CorruptStateError: when there is no checkpoint, or its index is damaged.
  """
  return _read_index(epath.Path(folder))['extra']


def index_path(folder: PathLike) -> epath.Path:
  """The file that commits a checkpoint, and has the checksums of the others."""
  return epath.Path(folder) / _INDEX


def is_checkpoint(folder: PathLike) -> bool:
  """Whether a folder holds a finished checkpoint of ours."""
  return index_path(folder).exists()


def restore_initial(path: PathLike, abstract: Tree) -> Tree:
  """Reads parameters to start a run from.

  Args:
    path: a folder of `save_params`, or one step's folder of `Checkpoints`.
    abstract: the policy's parameters, as `jax.ShapeDtypeStruct`.

  Returns:
    The parameters.

  Raises:
    ConfigurationError: its names or shapes are not those of the policy.
    CorruptStateError: there is no checkpoint, or a file of it was altered.
  """
  folder = epath.Path(path)
  if any(name.startswith('params/') for name in _read_index(folder)['arrays']):
    return _read_params(folder, abstract)
  return _read(folder, abstract)


def _write(folder: epath.Path, tree: Tree, extra: dict[str, Any] | None):
  def prepare() -> None:
    _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _require_space(folder, tree)

  def commit() -> None:
    index = {
      'format': _FORMAT,
      'arrays': _describe(tree),
      'files': _checksums(folder / _STATE),
      'extra': extra or {},
    }
    storage.write_json_atomic(folder / _INDEX, index)

  try:
    hosts.on_first(prepare)
    with _checkpointer(tree) as checkpointer:
      args = jax.tree.map(
        lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree
      )
      checkpointer.save(
        _state_path(folder),
        args=ocp.args.PyTreeSave(
          tree, save_args=args, ocdbt_target_data_file_size=_CHUNK_BYTES
        ),
      )
    hosts.on_first(commit)
  except (OSError, ValueError) as error:
    if isinstance(error, ValueError) and not any(
      sign in str(error) for sign in _NO_SPACE
    ):
      raise
    raise errors.StorageError(
      f'Cannot write the checkpoint {folder} ({_first_line(error)}): free '
      'space there or choose another MODEL_DIR.'
    ) from error


def _read_params(folder: epath.Path, abstract: Tree) -> Tree:
  return _read(folder, {'params': abstract}, prefix='params/')['params']


def _require_space(folder: epath.Path, tree: Tree):
  """Fails before orbax does: it would complain from all of its threads."""
  if not storage.is_local(folder):
    return
  needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) + _OVERHEAD
  free = shutil.disk_usage(folder).free
  if free < needed:
    raise errors.StorageError(
      f'cannot write the checkpoint {folder}: it needs {needed / 1e6:,.0f} MB'
      f' and {free / 1e6:,.0f} MB are free: free some space and run again'
    )


def _read(folder: epath.Path, abstract: Tree, prefix: str = '') -> Tree:
  index = _read_index(folder)
  wanted = _describe(abstract)
  stored = {
    name: value
    for name, value in index['arrays'].items()
    if name.startswith(prefix)
  }
  _check_names(folder, wanted, stored)
  if hosts.is_first():  # One that finds damage ends all.
    _check_files(folder, index['files'])
  restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
  with _checkpointer(abstract) as checkpointer:
    return checkpointer.restore(
      _state_path(folder),
      args=ocp.args.PyTreeRestore(
        abstract, restore_args=restore_args, partial_restore=bool(prefix)
      ),
    )


def _checkpointer(tree: Tree) -> ocp.Checkpointer:
  """What saves or restores a tree: every process, or this one for itself.

  Where all is this process's own, orbax must not wait for the others; else it
  waits by barriers with a time limit.
  """
  options = ocp.options.MultiprocessingOptions()
  if hosts.count() > 1:
    shardings = [leaf.sharding for leaf in jax.tree.leaves(tree)]
    options = _of_all() if _spans_processes(shardings) else _of_this_one()
  # It copies one of the largest arrays at a time, not all.
  largest = max(
    math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
    for leaf in jax.tree.leaves(tree)
  )
  limit = 1 + max(largest, _CHUNK_BYTES)  # More than any, orbax asks.
  handler = ocp.PyTreeCheckpointHandler(
    handler_impl=ocp.BasePyTreeCheckpointHandler(
      save_concurrent_bytes=limit,
      save_device_host_concurrent_bytes=limit,
      multiprocessing_options=options,
    ),
    multiprocessing_options=options,
  )
  return ocp.Checkpointer(handler, multiprocessing_options=options)


def _spans_processes(shardings: list[jax.sharding.Sharding | None]) -> bool:
  return not all(one is None or one.is_fully_addressable for one in shardings)


def _of_all() -> ocp.options.MultiprocessingOptions:
  return ocp.options.MultiprocessingOptions(
    active_processes=set(range(hosts.count()))
  )


def _of_this_one() -> ocp.options.MultiprocessingOptions:
  me = jax.process_index()
  return ocp.options.MultiprocessingOptions(
    primary_host=me,
    active_processes={me},
    barrier_sync_key_prefix=f'process_{me}',
  )


def _state_path(folder: epath.Path) -> epath.Path:
  """Where orbax writes and reads; it refuses relative paths."""
  return (folder / _STATE).resolve()


def _describe(tree: Tree) -> dict[str, list]:
  """Name → [shape, dtype] of every array of a tree."""
  return {
    _name(path): [
      list(leaf.shape),
      np.dtype(leaf.dtype).name,
    ]
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _check_names(folder: epath.Path, wanted: dict, stored: dict):
  """Compares names and shapes; dtypes may differ, and are converted."""
  problems = [f'{name} is missing' for name in wanted if name not in stored]
  problems += [f'{name} is unknown' for name in stored if name not in wanted]
  problems += [
    f'{name} has shape {tuple(stored[name][0])}, not {tuple(shape)}'
    for name, (shape, _) in wanted.items()
    if name in stored and stored[name][0] != shape
  ]
  if problems:
    shown = '; '.join(problems[:6])
    more = f'; and {len(problems) - 6} more' if len(problems) > 6 else ''
    raise errors.ConfigurationError(
      f'The checkpoint {folder} is not of this model or optimiser: '
      f'{shown}{more}. Bind the settings it was trained with (model size, '
      'vocabulary, optimiser), or give another checkpoint.'
    )


def _read_index(folder: epath.Path) -> dict[str, Any]:
  path = folder / _INDEX
  try:
    index = storage.read_json(path)
    if index['format'] != _FORMAT:
      raise ValueError(f'format {index["format"]} instead of {_FORMAT}')
    return {key: index[key] for key in ('arrays', 'files', 'extra')}
  except (
    errors.CorruptStateError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
  ) as error:
    raise errors.CorruptStateError(
      f'There is no readable checkpoint in {folder} ({_first_line(error)}): '
      'delete it and start again from the one before.'
    ) from error


def _checksums(folder: epath.Path, prefix: str = '') -> dict[str, list]:
  """Path relative to the folder → [size, SHA-256] of all files in it."""
  files = {}
  for path in sorted(folder.iterdir()):
    name = prefix + path.name
    if path.is_dir():
      files |= _checksums(path, f'{name}/')
    else:
      files[name] = list(storage.checksum(path))
  return files


def _check_files(folder: epath.Path, files: dict[str, list]):
  for name, expected in files.items():
    path = folder / _STATE / name
    try:
      intact = list(storage.checksum(path)) == expected
    except OSError:
      intact = False
    if not intact:
      raise errors.CorruptStateError(
        f'{path} is missing or was altered since the checkpoint was saved: '
        f'delete {folder} and start again from the one before.'
      )


def _clear(folder: epath.Path):
  """Deletes a checkpoint; its index first, so that no half of it counts."""
  (folder / _INDEX).unlink(missing_ok=True)
  if folder.exists():
    folder.rmtree()


def _first_line(error: BaseException) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0]
