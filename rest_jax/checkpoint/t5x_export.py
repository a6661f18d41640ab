"""Writes T5X's checkpoint directories: a msgpack index beside zarr arrays.

  checkpoint_0/
    checkpoint                        {'version': 3, 'optimizer': {'state': …,
                                      'target': …}}, msgpack
    target.encoder.encoder_norm.scale/   .zarr, one folder an array
    config.json                       fields of T5Config, for people and for us

This is the layout of `t5x.checkpoints.Checkpointer`, which restores it: arrays
are gzipped in chunks of at most 64 MiB, and the index names their folders
relative to itself. No optimizer state is written, only the step: a T5X run that
starts from here needs `fallback_to_scratch = True` for the rest.
"""

import math
from typing import Any

import numpy as np
import tensorstore
from etils import epath
from flax import serialization

from rest_jax import storage
from rest_jax.checkpoint.exports import parts, plain_config, read
from rest_jax.checkpoint.restoring import Source
from rest_jax.models.config import T5Config

INDEX = 'checkpoint'
CONFIG = 'config.json'
_VERSION = 3  # T5X's, of the index.
_CHUNK_BYTES = 64 << 20


def write(
  folder: storage.PathLike, config: T5Config, source: Source, step: int = 0
) -> None:
  """Writes a checkpoint directory; the index, which commits it, comes last.

  Args:
    folder: where, on a local disk; T5X finds it by itself under the name
      `checkpoint_<step>`.
    config: shape of the model.
    source: its arrays, read one by one.
    step: the number of updates that the index states.

  Raises:
    StorageError: the folder cannot be written.
  """
  folder = epath.Path(folder)
  target: dict[str, Any] = {}
  with storage.reporting(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, shape in source.shapes.items():
      spec = _spec(name, shape)
      _write_array(folder, spec, source, name)
      *above, last = name.split('/')
      inner = target
      for part in above:
        inner = inner.setdefault(part, {})
      inner[last] = spec
  storage.write_json_atomic(folder / CONFIG, plain_config(config))
  state = {'step': np.int32(step)}
  index = {'version': _VERSION, 'optimizer': {'state': state, 'target': target}}
  # Not `to_bytes`, which would make dicts of the lists.
  storage.write_atomic(folder / INDEX, serialization.msgpack_serialize(index))


def _spec(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
  """How tensorstore opens an array, its path relative to the index."""
  return {
    'driver': 'zarr',
    'dtype': 'float32',
    'kvstore': {
      'driver': 'file',
      'path': f'target.{name.replace("/", ".")}/',
    },
    'metadata': {
      'chunks': _chunks(shape),
      'compressor': {'id': 'gzip', 'level': 1},
      'shape': list(shape),
    },
  }


def _chunks(shape: tuple[int, ...]) -> list[int]:
  """Splits the largest axes evenly until a chunk is small enough."""
  chunks = list(shape)
  while math.prod(chunks) * 4 > _CHUNK_BYTES:
    axis = int(np.argmax(chunks))
    size = shape[axis]
    # The next smaller length that divides the axis, so that none is ragged.
    chunks[axis] = max(n for n in range(1, chunks[axis]) if size % n == 0)
  return chunks


def _write_array(
  folder: epath.Path, spec: dict[str, Any], source: Source, name: str
) -> None:
  """Writes whole chunks at a time, as many as are a part."""
  path = f'{folder}/{spec["kvstore"]["path"]}'
  absolute = spec | {'kvstore': {'driver': 'file', 'path': path}}
  store = tensorstore.open(absolute, create=True, open=False).result()
  shape, chunks = spec['metadata']['shape'], spec['metadata']['chunks']
  axis = int(np.argmax(shape)) if shape else 0
  for index in parts(shape, axis, chunks[axis] if chunks else 1):
    store[index].write(read(source, name, index)).result()
