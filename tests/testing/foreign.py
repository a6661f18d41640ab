"""Writes tiny checkpoints as other programs do, for tests to read."""

import json
import struct

import jax
import numpy as np
import tensorstore
from flax import serialization, traverse_util

from rest_jax.checkpoint import names

DTYPES = {'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16'}


def flat(params):
  """Our name → numpy array."""
  return {
    name: np.asarray(leaf)
    for name, leaf in traverse_util.flatten_dict(params, sep='/').items()
  }


def safetensors(path, tensors):
  """Writes a safetensors file."""
  header, start = {'__metadata__': {'format': 'pt'}}, 0
  for name, value in tensors.items():
    end = start + value.nbytes
    header[name] = {
      'dtype': DTYPES[value.dtype.name],
      'shape': value.shape,
      'data_offsets': [start, end],
    }
    start = end
  text = json.dumps(header).encode()
  data = b''.join(value.tobytes() for value in tensors.values())
  path.write_bytes(struct.pack('<Q', len(text)) + text + data)


def hugging_face_tensors(params):
  """Their name → array."""
  tensors = {}
  for ours, value in flat(params).items():
    theirs, turned = names.to_huggingface(ours)
    tensors[theirs] = np.ascontiguousarray(value.T if turned else value)
  return tensors


def hugging_face_config(config, **others):
  """config.json of a model."""
  gated = len(config.mlp_activations) > 1
  return {
    'model_type': 'umt5' if config.relpos_per_layer else 't5',
    'vocab_size': config.vocab_size,
    'd_model': config.emb_dim,
    'd_kv': config.head_dim,
    'd_ff': config.mlp_dim,
    'num_heads': config.num_heads,
    'num_layers': config.num_encoder_layers,
    'num_decoder_layers': config.num_decoder_layers,
    'feed_forward_proj': 'gated-gelu' if gated else 'relu',
    'tie_word_embeddings': config.logits_via_embedding,
  } | others


def zarr(path, value):
  """Writes one array as T5X does; returns how its index says so."""
  metadata = {
    'shape': list(value.shape),
    'chunks': [max(1, size // 2) for size in value.shape],
    'compressor': {'id': 'gzip', 'level': 1},
  }
  spec = {
    'driver': 'zarr',
    'dtype': value.dtype.name,
    'kvstore': {'driver': 'file', 'path': f'{path}/'},
    'metadata': metadata,
  }
  tensorstore.open(spec, create=True).result().write(value).result()
  return spec | {'kvstore': {'driver': 'gfile', 'path': f'{path.name}/'}}


def t5x(folder, arrays, state=True):
  """Writes a T5X directory checkpoint from our name → array."""
  folder.mkdir(parents=True)
  target = {
    name: zarr(folder / f'target.{name.replace("/", ".")}', value)
    for name, value in arrays.items()
  }
  index = {'target': traverse_util.unflatten_dict(target, sep='/')}
  if state:
    moments = {
      name: zarr(folder / f'state.param_states.{name.replace("/", ".")}', value)
      for name, value in list(arrays.items())[:2]
    }
    index['state'] = {'step': np.int32(3), 'param_states': moments}
  (folder / 'checkpoint').write_bytes(
    serialization.msgpack_serialize({'version': 3, 'optimizer': index})
  )


def stacked(params, axis=1):
  """Our parameters as a T5X scan_layers tree: its name → array."""
  arrays, layers = {}, {}
  for name, value in flat(params).items():
    side, _, rest = name.partition('/')
    if rest.startswith('layers_'):
      layer, _, rest = rest.partition('/')
      where = f'{side}/{side}/{rest}'
      layers.setdefault(where, {})[int(layer.removeprefix('layers_'))] = value
    else:
      arrays[name] = value
  for name, by_layer in layers.items():
    arrays[name] = np.stack([by_layer[i] for i in sorted(by_layer)], axis)
  return arrays


def random_params(policy, seed=0):
  """Parameters of which no two values are alike."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
    policy.abstract_params(),
  )
