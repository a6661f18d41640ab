"""Writes Hugging Face folders that transformers 4.57 opens without a warning.

  config.json  generation_config.json  tokenizer files
  model.safetensors                     or, above a size,
  model-00001-of-00002.safetensors …  model.safetensors.index.json

A safetensors file is 8 bytes with the length of a JSON header, the header, and
the arrays one after the other. The library `safetensors` writes it from a dict
of all arrays of the file; it is written here, array by array and in parts of
them, because no more than one array shall be in memory.
"""

import dataclasses
import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from etils import epath

from rest_jax import errors, storage
from rest_jax.checkpoint import names
from rest_jax.checkpoint.exports import part_shape, read
from rest_jax.checkpoint.restoring import Source
from rest_jax.models.config import T5Config

MAX_SHARD_BYTES = 5_000_000_000  # As transformers has it.
_BLOCK_BYTES = 16 << 20  # Of an array that is turned round and written.
_TRANSFORMERS = '4.57.6'  # The version whose configurations these are.


def model_config(
  config: T5Config,
  origin: Mapping[str, Any] | None = None,
  score_id: int | None = None,
) -> dict[str, Any]:
  """The content of `config.json`.

  Args:
    config: shape of the model.
    origin: the `config.json` that the model came with, if it came from such a
      folder: what does not concern the shape is kept, mT5's model type too.
    score_id: for a reward model, the id whose logit is its value.

  Raises:
    ConfigurationError: transformers has no such feed-forward layer.
  """
  kept = {
    name: value
    for name, value in (origin or {}).items()
    if name not in ('_name_or_path', 'torch_dtype', 'num_hidden_layers')
  }
  model_type = 'umt5' if config.relpos_per_layer else 't5'
  if kept.get('model_type') == 'mt5' and model_type == 't5':
    model_type = 'mt5'
  projection = _projection(config.mlp_activations)
  activation = projection.removeprefix('gated-')
  out = {
    'is_encoder_decoder': True,
    'pad_token_id': 0,
    'eos_token_id': config.eos_id,
    'decoder_start_token_id': 0,
    'layer_norm_epsilon': 1e-6,
    'initializer_factor': 1.0,
    'use_cache': True,
    'transformers_version': _TRANSFORMERS,
    **kept,
    'architectures': [ARCHITECTURES[model_type]],
    'model_type': model_type,
    'dtype': 'float32',
    'vocab_size': config.vocab_size,
    'd_model': config.emb_dim,
    'd_kv': config.head_dim,
    'd_ff': config.mlp_dim,
    'num_heads': config.num_heads,
    'num_layers': config.num_encoder_layers,
    'num_decoder_layers': config.num_decoder_layers,
    'dropout_rate': config.dropout_rate,
    'relative_attention_num_buckets': config.relpos_num_buckets,
    'relative_attention_max_distance': config.relpos_max_distance,
    'feed_forward_proj': projection,
    'is_gated_act': projection.startswith('gated-'),
    'dense_act_fn': 'gelu_new' if activation == 'gelu' else activation,
    'tie_word_embeddings': config.logits_via_embedding,
  }
  if score_id is not None:
    out['score_token_id'] = score_id
  return out


def generation_config(
  origin: Mapping[str, Any] | None = None,
  suppressed: Sequence[int] = (),
  max_new_tokens: int | None = None,
  eos_id: int = 1,
) -> dict[str, Any]:
  """The content of `generation_config.json`.

  Args:
    origin: one to keep.
    suppressed: ids that are never drawn, such as those beyond the tokenizer's.
    max_new_tokens: most tokens of an output; transformers' default is 20.
    eos_id: the id that ends an output, where `origin` does not say it.
  """
  out = {
    'decoder_start_token_id': 0,
    'eos_token_id': eos_id,
    'pad_token_id': 0,
    'transformers_version': _TRANSFORMERS,
    **(origin or {}),
  }
  if suppressed:
    out['suppress_tokens'] = list(suppressed)
  if max_new_tokens is not None:
    out['max_new_tokens'] = max_new_tokens
  return out


ARCHITECTURES = {
  't5': 'T5ForConditionalGeneration',
  'mt5': 'MT5ForConditionalGeneration',
  'umt5': 'UMT5ForConditionalGeneration',
}


def _projection(activations: Sequence[str]) -> str:
  """`feed_forward_proj` for T5Config.mlp_activations."""
  # flax's gelu is the approximation by tanh; so is 'gelu' where it is gated.
  theirs = {'gelu': 'gelu_new', 'swish': 'silu'}
  match tuple(activations):
    case ('gelu', 'linear'):
      return 'gated-gelu'
    case (name, 'linear'):
      return f'gated-{theirs.get(name, name)}'
    case (name,):
      return theirs.get(name, name)
  raise errors.ConfigurationError(
    f'T5Config.mlp_activations = {tuple(activations)}: transformers knows one'
    " function, or one and 'linear'; use --format=t5x or native."
  )


def write(
  folder: storage.PathLike,
  config: T5Config,
  source: Source,
  *,
  origin: Mapping[str, Any] | None = None,
  generation: Mapping[str, Any] | None = None,
  score_id: int | None = None,
  max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
  """Writes configuration and weights, float32.

  Args:
    folder: where, on a local disk.
    config: shape of the model.
    source: its arrays, read one by one.
    origin: see `model_config`.
    generation: content of `generation_config.json`; None takes the plain one.
    score_id: see `model_config`.
    max_shard_bytes: size above which the weights are split over files; a
      larger array has a file of its own.

  Raises:
    ConfigurationError: transformers has no such model.
    StorageError: the folder cannot be written.
  """
  folder = epath.Path(folder)
  values = model_config(config, origin, score_id)
  storage.write_json_atomic(folder / 'config.json', values)
  if generation is None:
    generation = generation_config(eos_id=config.eos_id)
  storage.write_json_atomic(folder / 'generation_config.json', dict(generation))
  entries = sorted(_entries(source), key=lambda entry: entry.name)
  shards = list(_shards(entries, max_shard_bytes))
  weight_map = {}
  with storage.reporting(folder):
    for number, shard in enumerate(shards, 1):
      name = 'model.safetensors'
      if len(shards) > 1:
        name = f'model-{number:05d}-of-{len(shards):05d}.safetensors'
      with (folder / name).open('wb') as file:
        _write_file(file, shard, source)
      storage.sync(folder / name)
      weight_map |= {entry.name: name for entry in shard}
  if len(shards) > 1:
    total = sum(entry.num_bytes for entry in entries)
    index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
    storage.write_json_atomic(folder / 'model.safetensors.index.json', index)


@dataclasses.dataclass(frozen=True)
class _Entry:
  """An array of a file.

  Attributes:
    name: Hugging Face's.
    ours: our name.
    shape: Hugging Face's.
    turned: whether it is ours transposed.
  """

  name: str
  ours: str
  shape: tuple[int, ...]
  turned: bool

  @property
  def num_bytes(self) -> int:
    """In float32."""
    return 4 * math.prod(self.shape)


def _entries(source: Source) -> Iterator[_Entry]:
  for ours, shape in source.shapes.items():
    name, turned = names.to_huggingface(ours)
    yield _Entry(name, ours, shape[::-1] if turned else shape, turned)


def _shards(
  entries: Iterable[_Entry], max_bytes: int
) -> Iterator[list[_Entry]]:
  """Cuts a list of arrays into files."""
  shard: list[_Entry] = []
  size = 0
  for entry in entries:
    if shard and size + entry.num_bytes > max_bytes:
      yield shard
      shard, size = [], 0
    shard.append(entry)
    size += entry.num_bytes
  yield shard


def _write_file(
  file: BinaryIO, entries: Sequence[_Entry], source: Source
) -> None:
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  at = 0
  for entry in entries:
    header[entry.name] = {
      'dtype': 'F32',
      'shape': list(entry.shape),
      'data_offsets': [at, at + entry.num_bytes],
    }
    at += entry.num_bytes
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)  # The arrays begin at a multiple of 8.
  file.write(struct.pack('<Q', len(text)) + text)
  for entry in entries:
    shape, part = entry.shape, part_shape(entry.shape)
    rows = part[0] if part[1:] == list(shape[1:]) else shape[0]
    for start in range(0, shape[0], rows):
      index = (slice(start, start + rows),)
      if entry.turned:  # Their rows are our columns.
        index = (slice(None), *index)
      array = read(source, entry.ours, index)
      _write_rows(file, array.T if entry.turned else array)


def _write_rows(file: BinaryIO, array: np.ndarray) -> None:
  """Writes an array in row-major order, whatever its order in memory is."""
  rows = max(1, _BLOCK_BYTES // max(1, 4 * math.prod(array.shape[1:])))
  for start in range(0, array.shape[0], rows):
    block = np.ascontiguousarray(array[start : start + rows], '<f4')
    file.write(block.data.cast('B'))
