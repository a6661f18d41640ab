"""Safetensors files, read by name and row, no more than is asked for.

A file is the length of its header (8 bytes, little endian), the header (JSON:
name → dtype, shape, first and last byte), and the tensors one after another
(https://huggingface.co/docs/safetensors). Nothing in it is ever run.
"""

import dataclasses
import json
import math
import struct
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from rest_jax import errors, storage

DTYPES = {
  'F64': np.dtype(np.float64),
  'F32': np.dtype(np.float32),
  'F16': np.dtype(np.float16),
  'BF16': np.dtype(ml_dtypes.bfloat16),
}
_MOST_HEADER = 100_000_000  # Bytes; the format's own limit.


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor in a file, not yet read.

  Attributes:
    path: of the file.
    shape: its shape.
    dtype: its dtype in the file.
    offset: of its first byte in the file.
  """

  path: epath.Path
  shape: tuple[int, ...]
  dtype: np.dtype
  offset: int

  @property
  def num_bytes(self) -> int:
    """Bytes in the file."""
    return math.prod(self.shape) * self.dtype.itemsize

  def read(self, rows: slice = slice(None)) -> np.ndarray:
    """Reads some rows (all by default) in the dtype of the file.

    Args:
      rows: a slice of the first axis, of step 1.

    Raises:
      DataError: the file ends before the tensor does.
    """
    if not self.shape:
      return self._read(self.offset, ())
    first, last, _ = rows.indices(self.shape[0])
    row = math.prod(self.shape[1:]) * self.dtype.itemsize
    shape = (max(last - first, 0), *self.shape[1:])
    return self._read(self.offset + first * row, shape)

  def _read(self, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    value = np.empty(shape, self.dtype)
    buffer = memoryview(value.reshape(-1).view(np.uint8))
    with self.path.open('rb') as file:
      file.seek(offset)
      while buffer:
        block = file.read(min(len(buffer), 1 << 24))
        if not block:
          raise _truncated(self.path)
        buffer[: len(block)] = block
        buffer = buffer[len(block) :]
    return value


def read_header(path: storage.PathLike) -> dict[str, Tensor]:
  """Name → tensor of everything in a file.

  Raises:
    DataError: it is no safetensors file, or it was truncated.
  """
  path = epath.Path(path)
  try:
    size = path.stat().length
    with path.open('rb') as file:
      (length,) = struct.unpack('<Q', file.read(8))
      if length > _MOST_HEADER:
        raise ValueError(f'a header of {length} bytes')
      text = file.read(length)
    if len(text) < length:
      raise _truncated(path)
    header = json.loads(text)
    header.pop('__metadata__', None)
    tensors = {
      name: _tensor(path, name, entry, 8 + length)
      for name, entry in header.items()
    }
  except FileNotFoundError as error:
    raise errors.DataError(
      f'{path} is missing: fetch the checkpoint again'
    ) from error
  except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
    raise errors.DataError(
      f'{path} is no readable safetensors file ({error}): fetch it again'
    ) from error
  end = max(
    (
      t.offset + math.prod(t.shape) * t.dtype.itemsize for t in tensors.values()
    ),
    default=0,
  )
  if size < end:
    raise _truncated(path)
  return tensors


def _tensor(
  path: epath.Path, name: str, entry: dict[str, Any], start: int
) -> Tensor:
  shape = tuple(int(size) for size in entry['shape'])
  first, last = entry['data_offsets']
  if entry['dtype'] not in DTYPES:
    raise errors.DataError(
      f'{path}: {name} has the dtype {entry["dtype"]}; convert it to one of '
      f'{", ".join(DTYPES)} first'
    )
  dtype = DTYPES[entry['dtype']]
  if (
    first < 0
    or any(size < 0 for size in shape)
    or last - first != math.prod(shape) * dtype.itemsize
  ):
    raise ValueError(f'{name} has {last - first} bytes for the shape {shape}')
  return Tensor(path, shape, dtype, start + first)


def _truncated(path: epath.Path) -> errors.DataError:
  return errors.DataError(
    f'{path} is truncated: fetch it again (and compare its size)'
  )
