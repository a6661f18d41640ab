"""Checkpoints in rest_jax's own format: orbax arrays and a checksummed index.

A checkpoint is a folder with orbax's files in `state/` and `checkpoint.json`,
written last, which commits it: names, shapes and dtypes of the arrays, sizes
and SHA-256 of all files (orbax itself does not see a flipped bit), and what the
caller wants to remember. A folder without it is what a killed process left
behind, and is not a checkpoint.
"""

import functools
import hashlib
import json
import shutil
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from etils import epath

from rest_jax import errors, hosts, storage
from rest_jax.checkpoint import native_index, restoring

_OVERHEAD = 1 << 20  # Bytes that orbax writes beside the arrays, at most.
# What orbax says, as a ValueError, where the storage failed it.
_NOT_WRITTEN = (
  'No space left', 'RESOURCE_EXHAUSTED', 'PERMISSION_DENIED', 'UNAVAILABLE',
  'UNAUTHENTICATED', 'ABORTED', 'DEADLINE_EXCEEDED', 'NOT_FOUND',
)  # fmt: skip

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
      if path.name.isdecimal() and (path / native_index.FILE).exists()
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

  def amend(self, step: int, extra: dict[str, Any]):
    """Remembers other JSON values with the checkpoint of a step.

    Raises:
      CorruptStateError: when there is none, or its index is damaged.
      StorageError: when the folder cannot be written.
    """
    folder = self.path(step)
    index = (
      {'format': native_index.FORMAT}
      | native_index.read(folder)
      | {'extra': extra}
    )
    storage.write_json_atomic(folder / native_index.FILE, index)

  def extra(self, step: int) -> dict[str, Any]:
    """What was remembered with the checkpoint of a step.

    Raises:
      CorruptStateError: when there is none, or its index is damaged.
    """
    return native_index.read(self.path(step))['extra']

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
    """Deletes the checkpoints of all other steps, and what is unfinished."""
    if not self._folder.is_dir():
      return
    for path in self._folder.iterdir():
      if path.name.isdecimal() and int(path.name) not in steps:
        self.delete(int(path.name))


class Source:
  """The parameters of a checkpoint, read one by one; see `restoring.Source`."""

  def __init__(self, folder: PathLike, *, check: bool = True):
    """Reads the index, and holds all files against their checksums.

    Args:
      folder: of `save_params`, or one step's of `Checkpoints`.
      check: not where it was written just now.

    Raises:
      CorruptStateError: there is no checkpoint, or a file of it was altered.
    """
    self._folder = epath.Path(folder)
    self.where = str(self._folder)
    index = native_index.read(self._folder)
    if check:
      native_index.check_files(self._folder, index['files'])
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
  digest = hashlib.sha256(json.dumps(native_index.describe(tree)).encode())
  source = None
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    if not _all_here(leaf):
      # Other processes hold parts of it; all of it is on disk now.
      source = source or Source(folder, check=False)
      leaf = source.read(native_index.name_of(path))
    digest.update(np.ascontiguousarray(leaf).data)
  return digest.hexdigest()


def _all_here(leaf: jax.Array | np.ndarray) -> bool:
  return isinstance(leaf, np.ndarray) or (
    leaf.is_fully_addressable or leaf.is_fully_replicated
  )


def restore_params(folder: PathLike, abstract: Tree) -> Tree:
  """Restores what `save_params` saved; see `Checkpoints.restore`."""
  return _read(epath.Path(folder), abstract)


def index_path(folder: PathLike) -> epath.Path:
  """The file that commits a checkpoint, and has the checksums of the others."""
  return epath.Path(folder) / native_index.FILE


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
  if _prefix_of(native_index.read(folder)['arrays']):
    return _read_params(folder, abstract)
  return _read(folder, abstract)


def check_initial(path: PathLike, abstract: Tree) -> None:
  """Raises what `restore_initial` would for names or shapes; reads no array."""
  folder = epath.Path(path)
  arrays = native_index.read(folder)['arrays']
  prefix = _prefix_of(arrays)
  wanted = native_index.describe({'params': abstract} if prefix else abstract)
  native_index.check_names(folder, wanted, _under(arrays, prefix))


def _prefix_of(arrays: dict[str, Any]) -> str:
  """What names of parameters begin with: of training they are not alone."""
  return 'params/' * any(name.startswith('params/') for name in arrays)


def _under(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
  """What an index says of the arrays whose names begin so."""
  return {k: v for k, v in arrays.items() if k.startswith(prefix)}


def _write(folder: epath.Path, tree: Tree, extra: dict[str, Any] | None):
  from rest_jax.checkpoint import native_arrays  # Slow to import.

  def prepare() -> None:
    _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _require_space(folder, tree)

  def commit() -> None:
    # Of a file that a power cut empties the index must not say what it held.
    storage.sync_folder(folder / native_index.STATE)
    index = {
      'format': native_index.FORMAT,
      'arrays': native_index.describe(tree),
      'files': native_index.checksums(folder / native_index.STATE),
      'extra': extra or {},
    }
    storage.write_json_atomic(folder / native_index.FILE, index)

  try:
    hosts.on_first(prepare)
    native_arrays.save(_state_path(folder), tree)
    hosts.on_first(commit)
  except (ValueError, *storage.failures()) as error:
    if isinstance(error, ValueError) and not any(
      sign in str(error) for sign in _NOT_WRITTEN
    ):
      raise
    reason = native_index.first_line(error)
    raise errors.StorageError(
      f'Cannot write the checkpoint {folder} ({reason}): free '
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
  from rest_jax.checkpoint import native_arrays  # Slow to import.

  index = native_index.read(folder)
  wanted = native_index.describe(abstract)
  native_index.check_names(folder, wanted, _under(index['arrays'], prefix))
  check = functools.partial(native_index.check_files, folder, index['files'])
  # One that finds damage ends all.
  if native_arrays.of_several(abstract):
    hosts.on_first(check)  # orbax's barriers would not wait so long.
  elif hosts.is_first():
    check()  # Processes read what is their own at their own times.
  return native_arrays.restore(
    _state_path(folder), abstract, partial=bool(prefix)
  )


def _state_path(folder: epath.Path) -> epath.Path:
  """Where orbax writes and reads; it refuses relative paths."""
  return storage.absolute(folder / native_index.STATE)


def _clear(folder: epath.Path):
  """Deletes a checkpoint; its index first, so that no half of it counts."""
  (folder / native_index.FILE).unlink(missing_ok=True)
  storage.remove_folder(folder)
