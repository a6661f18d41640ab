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

from typing import Any

import numpy as np
import tensorstore
from etils import epath
from flax import serialization

from rest_jax import storage
from rest_jax.checkpoint.exports import (
  part_shape,
  parts,
  plain_config,
  read,
)
from rest_jax.checkpoint.restoring import Source
from rest_jax.models.config import T5Config

INDEX = 'checkpoint'
CONFIG = 'config.json'
_VERSION = 3  # T5X's, of the index.


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
      'chunks': part_shape(shape),
      'compressor': {'id': 'gzip', 'level': 1},
      'shape': list(shape),
    },
  }


def _write_array(
  folder: epath.Path, spec: dict[str, Any], source: Source, name: str
) -> None:
  """Writes an array, a chunk at a time."""
  path = f'{folder}/{spec["kvstore"]["path"]}'
  absolute = spec | {'kvstore': {'driver': 'file', 'path': path}}
  store = tensorstore.open(absolute, create=True, open=False).result()
  for index in parts(source.shapes[name]):
    store[index].write(read(source, name, index)).result()
