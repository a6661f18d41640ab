"""The index of a checkpoint of ours: what is in it, and what commits it.

`checkpoint.json` has names, shapes and dtypes of the arrays, size and SHA-256
of every file, and what the caller wanted to remember.
"""

from typing import Any

import jax
import numpy as np
from etils import epath

from rest_jax import errors, storage

FILE = 'checkpoint.json'
STATE = 'state'  # Folder of orbax's files beside it.
FORMAT = 1

Tree = Any


def describe(tree: Tree) -> dict[str, list]:
  """Name → [shape, dtype] of every array of a tree."""
  return {
    name_of(path): [
      list(leaf.shape),
      np.dtype(leaf.dtype).name,
    ]
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def name_of(path) -> str:
  """The name of an array, from its path in the tree."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def check_names(folder: epath.Path, wanted: dict, stored: dict):
  """Compares names and shapes; dtypes may differ, and are converted.

  Raises:
    ConfigurationError: they are others; says which.
  """
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


def read(folder: epath.Path) -> dict[str, Any]:
  """The index of a checkpoint: its `arrays`, `files` and `extra`.

  Raises:
    CorruptStateError: there is none, or it is damaged.
  """
  path = folder / FILE
  try:
    index = storage.read_json(path)
    if index['format'] != FORMAT:
      raise ValueError(f'format {index["format"]} instead of {FORMAT}')
    return {key: index[key] for key in ('arrays', 'files', 'extra')}
  except (
    errors.CorruptStateError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
  ) as error:
    raise errors.CorruptStateError(
      f'There is no readable checkpoint in {folder} ({first_line(error)}): '
      'delete it and start again from the one before.'
    ) from error


def checksums(folder: epath.Path) -> dict[str, list]:
  """Path relative to the folder → [size, SHA-256] of all files in it."""
  names = storage.files_below(folder)
  sums = storage.of_each(lambda name: storage.checksum(folder / name), names)
  return {name: list(found) for name, found in zip(names, sums, strict=True)}


def check_files(folder: epath.Path, files: dict[str, list]):
  """Holds the files of a checkpoint against its index's `files`.

  Raises:
    CorruptStateError: one is missing or was altered; it is named.
  """

  def check(name: str) -> None:
    path = folder / STATE / name
    try:
      intact = list(storage.checksum(path)) == files[name]
    except OSError:
      intact = False
    if not intact:
      raise errors.CorruptStateError(
        f'{path} is missing or was altered since the checkpoint was saved: '
        f'delete {folder} and start again from the one before.'
      )

  storage.of_each(check, files)


def first_line(error: BaseException) -> str:
  """The first line of what an error says."""
  return (str(error).splitlines() or [type(error).__name__])[0]
