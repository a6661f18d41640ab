"""The rows that a training stage learns from, as flat arrays.

A random row of Parquet costs milliseconds; so a stage first writes the rows
that its selection kept here, in order, and training reads them at random.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from rest_jax import errors, storage

_ARRAYS = {
  'source_tokens': np.int32,
  'target_tokens': np.int32,
  'source_offsets': np.int64,
  'target_offsets': np.int64,
  'weights': np.float32,
  'is_original': np.bool_,
}
_INDEX = 'rows.json'

Tokens = Sequence[int] | np.ndarray


@dataclasses.dataclass(eq=False)
class TrainingRows:
  """Training pairs, read at random: on a local disk, or few in memory.

  Attributes:
    source_tokens: int32 [all source tokens], of all rows one after another.
    target_tokens: int32 [all target tokens], likewise.
    source_offsets: int64 [n + 1], where each row's source begins.
    target_offsets: int64 [n + 1], where each row's target begins.
    weights: float32 [n], the loss weight of each row, never 0.
    is_original: bool [n], whether a row comes from the original data D (else
      it was grown).
    group: rows that must share a packed row, one after another: 2 for pairs of
      a better and a worse sample, else 1.
    figures: name → float32 [all target tokens], what a loss needs besides.
  """

  source_tokens: np.ndarray
  target_tokens: np.ndarray
  source_offsets: np.ndarray
  target_offsets: np.ndarray
  weights: np.ndarray
  is_original: np.ndarray
  group: int = 1
  figures: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

  @classmethod
  def open(cls, folder: str | os.PathLike[str]) -> 'TrainingRows':
    """Opens rows that `write_rows` has finished.

    Args:
      folder: a folder on a local disk.

    Raises:
      CorruptStateError: when the rows are missing, unfinished or cut short.
    """
    folder = pathlib.Path(folder)
    try:
      index = storage.read_json(folder / _INDEX)
      arrays = {}
      for name, dtype in _ARRAYS.items():
        array = _open_array(folder / f'{name}.npy')
        if array.dtype != dtype or len(array) != index['lengths'][name]:
          raise ValueError(f'{name}.npy has another length or type')
        arrays[name] = array
      rows = cls(**arrays, group=index['group'])
      for name in index['figures']:
        values = _open_array(_figure_path(folder, name))
        if len(values) != len(rows.target_tokens):
          raise ValueError(f'{name} has another length than the targets')
        rows.figures[name] = values
    except (errors.CorruptStateError, OSError, ValueError, KeyError) as error:
      raise errors.CorruptStateError(
        f'Training rows in {folder} cannot be read ({error}): delete the '
        'folder and start again, which writes them anew.'
      ) from error
    return rows

  @classmethod
  def of_samples(
    cls, sources: Sequence[Tokens], samples: Sequence[Tokens]
  ) -> 'TrainingRows':
    """Rows of weight 1 in memory, one a sample.

    Args:
      sources: the source of each sample, EOS included.
      samples: the samples, at least one, none of them empty.
    """
    sides = (sources, samples)
    source_tokens, target_tokens = (
      np.concatenate([np.asarray(x, np.int32) for x in side]) for side in sides
    )
    source_offsets, target_offsets = (
      np.cumsum([0, *map(len, side)], dtype=np.int64) for side in sides
    )
    return cls(
      source_tokens,
      target_tokens,
      source_offsets,
      target_offsets,
      weights=np.ones(len(samples), np.float32),
      is_original=np.zeros(len(samples), bool),
    )

  def __len__(self) -> int:
    return len(self.weights)

  @property
  def source_lengths(self) -> np.ndarray:
    """int64 [n], tokens of each source, EOS counted."""
    return np.diff(self.source_offsets)

  @property
  def target_lengths(self) -> np.ndarray:
    """int64 [n], tokens of each target, EOS counted."""
    return np.diff(self.target_offsets)

  def add_figure(
    self, name: str, values: Float32[np.ndarray, ' tokens']
  ) -> None:
    """Adds a figure of every target token, in memory alone."""
    if len(values) != len(self.target_tokens):
      raise ValueError(f'{len(values)} of {len(self.target_tokens)} tokens')
    self.figures[name] = values

  def row(self, index: int) -> tuple[np.ndarray, np.ndarray, float, bool]:
    """Returns source tokens, target tokens, weight and is_original of a row."""
    source, target = self.source_offsets, self.target_offsets
    return (
      self.source_tokens[source[index] : source[index + 1]],
      self.target_tokens[target[index] : target[index + 1]],
      float(self.weights[index]),
      bool(self.is_original[index]),
    )


def write_rows(
  folder: str | os.PathLike[str],
  rows: Iterable[tuple[Any, ...]],
  *,
  figures: Sequence[str] = (),
  group: int = 1,
) -> TrainingRows:
  """Writes training rows in constant memory; rows of weight 0 are dropped.

  The index is written last: a folder without it is unfinished, and is written
  over.

  Args:
    folder: a folder on a local disk; made where it is missing.
    rows: source tokens and target tokens (EOS included, no padding), loss
      weight, whether the row comes from the original data, and for each of
      `figures` as many numbers as the target has tokens.
    figures: names of what a loss needs to know of each target token.
    group: how many rows, one after another, must share a packed row.

  Returns:
    The rows, opened.

  Raises:
    DataError: when a row has no tokens, a token below 1, or a weight that is
      not finite, or when no row is left.
    StorageError: when the folder cannot be written.
  """
  folder = pathlib.Path(folder)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _INDEX).unlink(missing_ok=True)
    files = {
      name: _ArrayFile(folder / f'{name}.npy', dtype)
      for name, dtype in _ARRAYS.items()
    }
    for name in figures:
      files[name] = _ArrayFile(_figure_path(folder, name), np.float32)
    try:
      dropped = _write_all(files, rows, figures)
    finally:
      for file in files.values():
        file.close()
    lengths = {name: file.length for name, file in files.items()}
    if not lengths['weights']:
      raise errors.DataError(
        f'No training row is left for {folder} ({dropped} had weight 0): '
        'lower the threshold, or grow more samples.'
      )
    storage.write_json_atomic(
      folder / _INDEX,
      {
        'lengths': lengths,
        'group': group,
        'figures': list(figures),
      },
    )
  except OSError as error:
    raise errors.StorageError(
      f'Cannot write training rows to {folder} ({error}): free space there '
      'or choose another MODEL_DIR.'
    ) from error
  return TrainingRows.open(folder)


def _figure_path(folder: pathlib.Path, name: str) -> pathlib.Path:
  return folder / f'figure_{name}.npy'


def _write_all(files, rows, figures) -> int:
  """Appends all rows to the arrays' files; returns how many were dropped."""
  ends = {'source': 0, 'target': 0}
  for side in ends:
    files[f'{side}_offsets'].append([0])
  dropped = 0
  for number, row in enumerate(rows):
    source, target, weight, is_original, *values = row
    if not np.isfinite(weight):
      raise errors.DataError(
        f'Training row {number} has weight {weight}: it must be finite; '
        'look at the selection or loss that gave it.'
      )
    if weight == 0:
      dropped += 1
      continue
    for side, tokens in (('source', source), ('target', target)):
      if not len(tokens) or min(tokens) < 1:
        raise errors.DataError(
          f'Training row {number} has {side} tokens {list(tokens)[:8]}: '
          'they must be at least one, and none of them padding (0).'
        )
      files[f'{side}_tokens'].append(tokens)
      ends[side] += len(tokens)
      files[f'{side}_offsets'].append([ends[side]])
    for name, numbers in zip(figures, values, strict=True):
      if len(numbers) != len(target):
        raise ValueError(f'{name}: {len(numbers)} of {len(target)} tokens')
      files[name].append(numbers)
    files['weights'].append([weight])
    files['is_original'].append([is_original])
  return dropped


class _ArrayFile:
  """A growing .npy file; numpy's header leaves room for its length."""

  _BUFFERED = 1 << 16

  def __init__(self, path: pathlib.Path, dtype):
    self._dtype = np.dtype(dtype)
    self._file = open(path, 'wb')  # noqa: SIM115, closed by close().
    self._buffer = []
    self.length = 0
    self._write_header()

  def _write_header(self):
    self._file.seek(0)
    np.lib.format.write_array_header_1_0(
      self._file,
      {
        'descr': np.lib.format.dtype_to_descr(self._dtype),
        'fortran_order': False,
        'shape': (self.length,),
      },
    )

  def append(self, values: Sequence | np.ndarray):
    self._buffer.extend(values)
    self.length += len(values)
    if len(self._buffer) >= self._BUFFERED:
      self._flush()

  def _flush(self):
    self._file.write(np.asarray(self._buffer, self._dtype).tobytes())
    self._buffer.clear()

  def close(self):
    with self._file:
      self._flush()
      self._write_header()
      self._file.flush()
      os.fsync(self._file.fileno())


def _open_array(path: pathlib.Path) -> np.ndarray:
  return np.load(path, mmap_mode='r', allow_pickle=False)
