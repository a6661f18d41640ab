"""T5X's checkpoints, read without t5x.

Three layouts, and `scan_layers` trees in any of them:

- A folder with a msgpack index, `checkpoint`, and one zarr array a parameter.
- The legacy single file, the whole tree in msgpack.
- Orbax folders: parameters in one OCDBT store or in zarr arrays, beside an
  index of placeholders or of JSON, often in a `state` folder.

Only parameters (`target`) are read; the optimizer's state is left alone. The
arrays' places are made from their names, whatever else an index says, so that
it cannot point outside of its folder. A chunk that is missing is an error; the
reader of zarr would take it for zeros.
"""

import math
import posixpath
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorstore
from etils import epath
from flax import serialization, traverse_util

from rest_jax import errors, storage
from rest_jax.checkpoint import names, restoring
from rest_jax.types import Params

INDEX = 'checkpoint'
ORBAX_STATE = 'state'
_ORBAX_INDEX = '_METADATA'
_OCDBT = 'manifest.ocdbt'
_PLACEHOLDER = 'PLACEHOLDER://'
# Where a tree keeps its parameters, by the age of the program that wrote it.
_TARGETS = (('optimizer', 'target'), ('target',), ('_optimizer', 'target'))
_ARRAY_FILES = ('/.zarray', '/zarr.json')

Array = np.ndarray | tensorstore.TensorStore


def is_checkpoint(path: storage.PathLike) -> bool:
  """Whether a path is one of T5X: an index's folder, or a file of its own."""
  path = epath.Path(path)
  if path.is_dir():
    return (path / INDEX).is_file() or _orbax_folder(path) is not None
  # A msgpack map of the few keys there are begins with this byte.
  return path.is_file() and _begins_as_msgpack(path)


class Source:
  """The parameters of a T5X checkpoint; see `restoring.Source`."""

  def __init__(self, path: storage.PathLike):
    """Reads the index and the arrays' headers.

    Args:
      path: a checkpoint's folder, or the file of one (which is read whole).

    Raises:
      DataError: it is damaged, or has no parameters.
    """
    path = epath.Path(path)
    self.where = str(path)
    stored = _open(path)
    if not stored:
      raise errors.DataError(
        f'{path} holds no parameters (target), perhaps an optimizer state'
        ' alone: give the folder of a whole checkpoint'
      )
    axis = _stacking_axis(stored)
    # Our name → the array, and where in it: None, or the axis and the layer.
    self._arrays: dict[str, tuple[Array, tuple[int, int] | None]] = {}
    self.shapes: dict[str, tuple[int, ...]] = {}
    for name, array in stored.items():
      for ours, place in _layers(name, array.shape, axis):
        self._arrays[ours] = (array, place)
        shape = tuple(array.shape)
        if place is not None:
          shape = shape[:axis] + shape[axis + 1 :]
        self.shapes[ours] = shape

  def read(self, name: str, index: restoring.Index = ()) -> np.ndarray:
    """Part of a parameter, in the dtype of the checkpoint.

    Raises:
      DataError: a chunk is missing or truncated.
    """
    array, place = self._arrays[name]
    index = index + (slice(None),) * (len(self.shapes[name]) - len(index))
    if place is not None:
      axis, layer = place
      index = (*index[:axis], layer, *index[axis:])
    if isinstance(array, np.ndarray):
      return array[index]
    try:
      return array[index].read().result()
    except ValueError as error:
      raise _damaged(self.where, error) from error


def restore_params(
  path: storage.PathLike,
  abstract: Params,
  *,
  tokenizer_size: int | None = None,
) -> Params:
  """Reads a checkpoint's parameters, straight into the shards of `abstract`.

  Shapes tell everything of a model but these, which the run's `T5Config` has to
  say as the checkpoint was trained: activations, `relpos_max_distance`, dropout
  and dtype.

  Args:
    path: a checkpoint's folder, or the file of one.
    abstract: nested dict of `jax.ShapeDtypeStruct`; see `restoring.restore`.
    tokenizer_size: ids of the tokenizer, for which there must be embeddings.

  Raises:
    ConfigurationError: the parameters are not those of `abstract`.
    DataError: a file is missing or damaged.
  """
  return restoring.restore(Source(path), abstract, tokenizer_size)


def _open(path: epath.Path) -> dict[str, Array]:
  """Name in the tree of parameters → array, not yet read."""
  if not path.is_dir():
    return _arrays_in(path, _read_index(path), path.parent)
  folder = _orbax_folder(path)
  if folder is not None:
    return _orbax_arrays(folder)
  return _arrays_in(path / INDEX, _read_index(path / INDEX), path)


def _read_index(path: epath.Path) -> dict[str, Any]:
  try:
    tree = serialization.msgpack_restore(path.read_bytes())
    if not isinstance(tree, dict):
      raise ValueError('no tree')
    return tree
  except FileNotFoundError as error:
    raise errors.DataError(
      f'{path} is missing: give the folder of a T5X checkpoint'
    ) from error
  except errors.PreemptionError:
    raise
  except Exception as error:  # msgpack's own have no common base.
    raise errors.DataError(
      f'{path} is truncated or no index of T5X'
      f' ({str(error) or type(error).__name__}): fetch it again'
    ) from error


def _arrays_in(
  path: epath.Path, tree: dict[str, Any], folder: epath.Path
) -> dict[str, Array]:
  target = next(filter(None, (_within(tree, keys) for keys in _TARGETS)), {})
  flat = traverse_util.flatten_dict(target, is_leaf=_is_leaf, sep='/')
  return _opened(
    path,
    {
      name: value
      if isinstance(value, np.ndarray)
      else _spec(path, folder, _relative_path(path, name, value))
      for name, value in flat.items()
    },
  )


def _within(tree: Any, keys: Iterable[str]) -> Any:
  for key in keys:
    tree = tree.get(key) if isinstance(tree, dict) else None
  return tree


def _is_leaf(_: Any, value: Any) -> bool:
  return not isinstance(value, dict) or 'kvstore' in value


def _relative_path(path: epath.Path, name: str, value: Any) -> str:
  """The folder of an array, relative to the checkpoint's."""
  if isinstance(value, str) and value.startswith(_PLACEHOLDER):
    return value.removeprefix(_PLACEHOLDER)
  if isinstance(value, dict):
    inner = value['kvstore']
    # Older versions of tensorstore had the path beside the store.
    found = inner.get('path') if isinstance(inner, dict) else None
    found = found or value.get('path')
    if isinstance(found, str):
      return found
  raise errors.DataError(
    f'{path}: {name} is no array that T5X writes: fetch the checkpoint again'
  )


def _spec(path: epath.Path, folder: epath.Path, relative: str) -> dict:
  """How to open an array that lies in the folder of its checkpoint."""
  inner = posixpath.normpath(relative)
  if (
    inner in ('', '.', '..')
    or inner.startswith(('/', '../'))
    or '\\' in inner
    or '://' in relative
  ):
    raise errors.DataError(
      f'{path} names {relative!r}, which is not in its folder: do not trust'
      ' this checkpoint'
    )
  return {'driver': 'zarr', 'kvstore': restoring.kvstore(folder / inner)}


def _opened(
  path: epath.Path, specs: dict[str, np.ndarray | dict]
) -> dict[str, Array]:
  """Opens all arrays at once, which reads their headers."""
  futures = {
    name: spec
    if isinstance(spec, np.ndarray)
    else tensorstore.open(
      spec | {'fill_missing_data_reads': False}, open=True, read=True
    )
    for name, spec in specs.items()
  }
  try:
    return {
      name: future if isinstance(future, np.ndarray) else future.result()
      for name, future in futures.items()
    }
  except ValueError as error:
    raise _damaged(str(path), error) from error


def _orbax_folder(path: epath.Path) -> epath.Path | None:
  for folder in (path / ORBAX_STATE, path):
    if (folder / _ORBAX_INDEX).is_file() or (folder / _OCDBT).is_file():
      return folder
  return None


def _orbax_arrays(folder: epath.Path) -> dict[str, Array]:
  """The arrays below `target` of a folder that orbax wrote."""
  store: dict[str, Any] = restoring.kvstore(folder)
  if (folder / _OCDBT).is_file():
    store = {'driver': 'ocdbt', 'base': store}
  try:
    keys = tensorstore.KvStore.open(store).result().list().result()
  except ValueError as error:
    raise _damaged(str(folder), error) from error
  specs = {}
  for key in keys:
    name = key.decode()
    for ending in _ARRAY_FILES:
      if name.startswith('target.') and name.endswith(ending):
        array = name.removesuffix(ending)
        inside = f'{array}/'
        inner = store | {'path': store.get('path', '') + inside}
        driver = 'zarr' if ending == _ARRAY_FILES[0] else 'zarr3'
        ours = array.removeprefix('target.').replace('.', '/')
        specs[ours] = {'driver': driver, 'kvstore': inner}
  return _opened(folder, specs)


def _layers(
  name: str, shape: tuple[int, ...], axis: int
) -> Iterator[tuple[str, tuple[int, int] | None]]:
  """Our names of an array and where it has them; one, unless it is stacked."""
  if names.unstacked(name, 0) is None or len(shape) <= axis:
    yield name, None
    return
  for layer in range(shape[axis]):
    yield names.unstacked(name, layer), (axis, layer)


def _stacking_axis(stored: dict[str, Array]) -> int:
  """Which axis a `scan_layers` tree stacks its layers along.

  T5X's default is 1; another is told by a norm's scale, whose other axis is
  that of the features.
  """
  features = stored[names.EMBEDDING].shape[1:] if _has(stored) else ()
  for name, array in stored.items():
    if names.unstacked(name, 0) and name.endswith('_layer_norm/scale'):
      by_axis = {1: array.shape[:1], 0: array.shape[1:]}
      return next((a for a, rest in by_axis.items() if rest == features), 1)
  return 1


def _has(stored: dict[str, Array]) -> bool:
  embedding = stored.get(names.EMBEDDING)
  return embedding is not None and math.prod(embedding.shape) > 0


def _begins_as_msgpack(path: epath.Path) -> bool:
  with path.open('rb') as file:
    first = file.read(1)
  # A map of at most 15 entries, or one whose length follows.
  return bool(first) and (0x80 < first[0] <= 0x8F or first[0] in (0xDE, 0xDF))


def _damaged(where: str, error: Exception) -> errors.DataError:
  reason = str(error).splitlines()[0]
  return errors.DataError(
    f'{where} is damaged: {reason[:300]}: fetch the checkpoint again'
  )
