"""From any checkpoint's tensors to parameters on their devices, one by one."""

import re
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from rest_jax import errors
from rest_jax.checkpoint import names
from rest_jax.types import Params

_MOST_SHOWN = 20  # Problems that an error lists by name.

Index = tuple[slice, ...]


@runtime_checkable
class Source(Protocol):
  """The parameters of a checkpoint, by our names, not yet read.

  Attributes:
    where: the folder or file, for errors.
    shapes: name, such as 'decoder/decoder_norm/scale' → shape.
  """

  where: str
  shapes: Mapping[str, tuple[int, ...]]

  def read(self, name: str, index: Index = ()) -> np.ndarray:
    """Part of a parameter (all by default), in the checkpoint's dtype."""


def restore(
  source: Source, abstract: Params, tokenizer_size: int | None = None
) -> Params:
  """Reads every parameter straight into its shards.

  The host never holds more than the shards of its own devices and what is read
  of one tensor.

  Args:
    source: the checkpoint.
    abstract: nested dict of `jax.ShapeDtypeStruct`, with shardings where the
      parameters shall lie on a mesh.
    tokenizer_size: ids of the tokenizer, for which there must be embeddings.

  Returns:
    The parameters, with the dtypes of `abstract`.

  Raises:
    ConfigurationError: names or shapes are not those of `abstract`, or there
      are fewer embeddings than ids; all of it is listed.
    DataError: a file is damaged.
  """
  leaves = traverse_util.flatten_dict(abstract, sep='/')
  check(source, {k: v.shape for k, v in leaves.items()}, tokenizer_size)
  # The largest first, while little else is held.
  by_size = sorted(leaves, key=lambda name: leaves[name].size, reverse=True)
  read = {name: _restore(source, name, leaves[name]) for name in by_size}
  params = {name: read[name] for name in leaves}
  return traverse_util.unflatten_dict(params, sep='/')


def check(
  source: Source,
  wanted: Mapping[str, tuple[int, ...]],
  tokenizer_size: int | None = None,
) -> None:
  """Compares the names and shapes of a checkpoint with those of a model.

  Raises:
    ConfigurationError: they differ, or there are fewer embeddings than
      `tokenizer_size`; all of it is listed.
  """
  found = names.problems(dict(wanted), dict(source.shapes))
  rows = source.shapes.get(names.EMBEDDING, (0,))[0]
  if tokenizer_size is not None and rows < tokenizer_size:
    found.append(
      f'{names.EMBEDDING} has {rows} rows for the {tokenizer_size} ids of the'
      ' tokenizer'
    )
  if found:
    more = len(found) - _MOST_SHOWN
    raise errors.ConfigurationError(
      f'The checkpoint {source.where} is not of this model: '
      f'{"; ".join(found[:_MOST_SHOWN])}'
      f'{f"; and {more} more" if more > 0 else ""}. Bind the model size, '
      'vocabulary and tokenizer that it was trained with.'
    )


def _restore(
  source: Source, name: str, leaf: jax.ShapeDtypeStruct
) -> jax.Array:
  if leaf.sharding is None:
    return jax.numpy.asarray(source.read(name), leaf.dtype)
  shards: dict[tuple, np.ndarray] = {}  # Replicas are read once.

  def shard(index: Index) -> np.ndarray:
    key = tuple((part.start, part.stop) for part in index)
    if key not in shards:
      shards[key] = np.asarray(source.read(name, index), leaf.dtype)
    return shards[key]

  return jax.make_array_from_callback(leaf.shape, leaf.sharding, shard)


def kvstore(folder: epath.Path) -> dict[str, str]:
  """A folder as tensorstore's key-value stores name it."""
  match = re.fullmatch(r'gs://([^/]+)/?(.*)', str(folder))
  if match:
    bucket, path = match.groups()
    return {'driver': 'gcs', 'bucket': bucket, 'path': f'{path}/'}
  return {'driver': 'file', 'path': f'{folder.resolve()}/'}
