"""Hugging Face folders of T5, read without torch or transformers.

A folder is `config.json` and one `model.safetensors`, or several files and
their index. T5 1.0 and 1.1, Flan-T5, ByT5 and MADLAD-400 say they are `t5`, mT5
`mt5`, UMT5 `umt5`.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from rest_jax import errors, storage
from rest_jax.checkpoint import names, restoring, safetensors
from rest_jax.checkpoint.safetensors import Tensor
from rest_jax.models.config import T5Config
from rest_jax.types import Params

CONFIG = 'config.json'
WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
# The id of the output that is a reward; ours, since their config has none.
SCORE_ID = 'score_token_id'

# What transformers takes where config.json is silent, by model_type.
_T5 = {
  'd_model': 512,
  'd_kv': 64,
  'd_ff': 2048,
  'num_layers': 6,
  'num_heads': 8,
  'feed_forward_proj': 'relu',
  'tie_word_embeddings': True,
  'vocab_size': 32128,
  'relative_attention_num_buckets': 32,
  'relative_attention_max_distance': 128,
  'dropout_rate': 0.1,
  'layer_norm_epsilon': 1e-6,
  'decoder_start_token_id': 0,
  'eos_token_id': 1,
}
_MT5 = _T5 | {
  'd_ff': 1024,
  'num_layers': 8,
  'num_heads': 6,
  'feed_forward_proj': 'gated-gelu',
  'tie_word_embeddings': False,
  'vocab_size': 250112,
}
_DEFAULTS = {'t5': _T5, 'mt5': _MT5, 'umt5': _MT5}
# Their functions → ours. `gelu` is the exact one of them, which no T5 uses,
# save in `gated-gelu`, which means gelu_new to every T5.
_ACTIVATIONS = {
  'gelu_new': 'gelu',
  'gelu_pytorch_tanh': 'gelu',
  'linear': 'linear',
  'relu': 'relu',
  'sigmoid': 'sigmoid',
  'silu': 'silu',
  'swish': 'swish',
  'tanh': 'tanh',
}
_BLOCK = 1 << 24  # Bytes of a tensor that are compared at a time.


def is_checkpoint(folder: storage.PathLike) -> bool:
  """Whether a folder is, or tries to be, one of Hugging Face."""
  folder = epath.Path(folder)
  return (folder / CONFIG).exists() and any(
    (folder / name).exists() for name in (WEIGHTS, INDEX, *_PICKLES)
  )


_PICKLES = ('pytorch_model.bin', 'pytorch_model.bin.index.json')


def read_config(folder: storage.PathLike) -> T5Config:
  """The shape of the model in a folder, of its `config.json` and its tensors.

  Whether the output layer is the embedding is told by the file, not by the
  config: a model without `lm_head.weight`, or with one that is the embedding
  over again although the config ties them, is tied. Where transformers 5 has
  tied a model whose logits are not divided by √d_model, the output layer is one
  of its own here, and starts as the embedding.

  Raises:
    ConfigurationError: it is no T5, or one with a part that rest_jax has not.
    DataError: a file is missing or damaged.
  """
  return _config_of(folder, _read_json(epath.Path(folder) / CONFIG))[0]


def tensors(folder: storage.PathLike) -> dict[str, Tensor]:
  """Name → tensor, not yet read, of all of a folder's safetensors files.

  Raises:
    ConfigurationError: there are pickled weights only.
    DataError: a file is missing, truncated, or outside of the folder.
  """
  folder = epath.Path(folder)
  if (folder / INDEX).exists():
    return _indexed_tensors(folder)
  if (folder / WEIGHTS).exists():
    return safetensors.read_header(folder / WEIGHTS)
  if any((folder / name).exists() for name in _PICKLES):
    raise errors.ConfigurationError(
      f'{folder} has its weights in .bin files, which are pickled: loading them'
      ' could run any code, so they are not read; fetch the revision that has'
      ' model.safetensors, or make one by to_safetensors.py of'
      ' docs/guide/metricx.md (save_pretrained of transformers 5 would lose'
      " mT5's output layer)."
    )
  raise errors.DataError(
    f'{folder} has neither {WEIGHTS} nor {INDEX}: give the folder of a model'
  )


class Source:
  """The parameters of a folder, by our names; see `restoring.Source`."""

  def __init__(self, folder: storage.PathLike, score_id: int | None = None):
    """Reads headers, not tensors.

    Args:
      folder: a folder of Hugging Face.
      score_id: which output is the reward, for a reward model's read-out; by
        default what the config says in `score_token_id`, else there is none.

    Raises:
      ConfigurationError, DataError: as `read_config` and `tensors`.
    """
    self.where = str(folder)
    raw = _read_json(epath.Path(folder) / CONFIG)
    self.config, self._tensors = _config_of(folder, raw)
    self._score_id = raw.get(SCORE_ID) if score_id is None else score_id
    self._names: dict[str, str] = {}
    for theirs in self._tensors:
      ours = names.from_huggingface(theirs, self.config.relpos_per_layer)
      if theirs == names.LM_HEAD and self._score_id is not None:
        ours = names.SCORE
      # What is unknown keeps its name, so that it is listed as unknown.
      self._names[ours or theirs] = theirs
    self.shapes: Mapping[str, tuple[int, ...]] = {
      ours: self._shape(ours) for ours in self._names
    }
    self._check_score_id()

  def read(self, name: str, index: restoring.Index = ()) -> np.ndarray:
    """Part of a parameter, in the dtype of the file."""
    tensor = self._tensors[self._names[name]]
    index = index + (slice(None),) * (len(self.shapes[name]) - len(index))
    if name == names.SCORE:
      row = slice(self._score_id, self._score_id + 1)
      return tensor.read(row).T[index]
    if name in self._names and self._turned(name):
      rows, columns = reversed(index)
      return tensor.read(rows)[:, columns].T
    return tensor.read(index[0])[(slice(None), *index[1:])]

  def _turned(self, name: str) -> bool:
    return name != self._names[name] and names.to_huggingface(name)[1]

  def _shape(self, name: str) -> tuple[int, ...]:
    shape = self._tensors[self._names[name]].shape
    if name == names.SCORE:
      return (shape[1], 1)
    return shape[::-1] if self._turned(name) else shape

  def _check_score_id(self):
    if names.SCORE in self._names:
      rows = self._tensors[names.LM_HEAD].shape[0]
      if not 0 <= self._score_id < rows:
        raise errors.ConfigurationError(
          f'{self.where}: the reward is output {self._score_id} of {rows}: set'
          f' {SCORE_ID} in its {CONFIG} to one there is.'
        )


def restore_params(
  folder: storage.PathLike,
  abstract: Params,
  *,
  score_id: int | None = None,
  tokenizer_size: int | None = None,
) -> Params:
  """Reads a folder's parameters, straight into the shards of `abstract`.

  Args:
    folder: a folder of Hugging Face.
    abstract: nested dict of `jax.ShapeDtypeStruct`; see `restoring.restore`.
    score_id: which output is the reward; see `Source`.
    tokenizer_size: ids of the tokenizer, for which there must be embeddings.

  Raises:
    ConfigurationError: the parameters are not those of `abstract`.
    DataError: a file is missing or damaged.
  """
  return restoring.restore(Source(folder, score_id), abstract, tokenizer_size)


def _read_json(path: epath.Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_bytes())
    if not isinstance(value, dict):
      raise ValueError('no object')
    return value
  except FileNotFoundError as error:
    raise errors.DataError(
      f'{path} is missing: give the folder of a model'
    ) from error
  except (OSError, ValueError) as error:
    raise errors.DataError(
      f'{path} is not readable as JSON ({error}): fetch it again'
    ) from error


def _indexed_tensors(folder: epath.Path) -> dict[str, Tensor]:
  path = folder / INDEX
  files = _read_json(path).get('weight_map')
  if not isinstance(files, dict):
    raise errors.DataError(f'{path} has no weight_map: fetch it again')
  headers = {}
  for name in sorted(set(map(str, files.values()))):
    # One folder deep, no way out: what any tool writes.
    if name in ('', '.', '..') or '/' in name or '\\' in name:
      raise errors.DataError(
        f'{path} names {name!r}, which is not a file of its folder: do not'
        ' trust this checkpoint'
      )
    headers[name] = safetensors.read_header(folder / name)
  lost = [name for name, file in files.items() if name not in headers[file]]
  if lost:
    raise errors.DataError(
      f'{path} names tensors that its files have not: {", ".join(lost[:6])}:'
      ' fetch the checkpoint again'
    )
  return {name: headers[file][name] for name, file in files.items()}


def _config_of(
  folder: storage.PathLike, raw: dict[str, Any]
) -> tuple[T5Config, dict[str, Tensor]]:
  """The config, and the tensors that are parameters of their own."""
  path = epath.Path(folder) / CONFIG
  kind = raw.get('model_type')
  if kind not in _DEFAULTS:
    raise errors.ConfigurationError(
      f"{path}: model_type = '{kind}' is none of {', '.join(_DEFAULTS)}: give"
      ' the folder of a T5, mT5 or UMT5.'
    )
  theirs = _DEFAULTS[kind] | {k: v for k, v in raw.items() if v is not None}
  for name in ('layer_norm_epsilon', 'decoder_start_token_id'):
    if theirs[name] != _T5[name]:
      raise errors.ConfigurationError(
        f'{path}: {name} = {theirs[name]!r}, and rest_jax has {_T5[name]!r}'
        ' only: this model cannot be read.'
      )
  scaled = _is_scaled(raw, theirs)
  found = _without_copies(folder, tensors(folder), scaled)
  if names.LM_HEAD not in found and not scaled:
    if not theirs['tie_word_embeddings']:
      raise errors.DataError(
        f'{path}: tie_word_embeddings is false, but no file holds'
        f' {names.LM_HEAD}: this model has no output layer; fetch or save it'
        ' again as one ForConditionalGeneration'
      )
    if names.SHARED in found:
      found[names.LM_HEAD] = found[names.SHARED]
  config = T5Config(
    vocab_size=theirs['vocab_size'],
    emb_dim=theirs['d_model'],
    num_heads=theirs['num_heads'],
    num_encoder_layers=theirs['num_layers'],
    num_decoder_layers=theirs.get('num_decoder_layers', theirs['num_layers']),
    head_dim=theirs['d_kv'],
    mlp_dim=theirs['d_ff'],
    mlp_activations=_activations(path, theirs['feed_forward_proj']),
    dropout_rate=float(theirs['dropout_rate']),
    logits_via_embedding=names.LM_HEAD not in found,
    relpos_num_buckets=theirs['relative_attention_num_buckets'],
    relpos_max_distance=theirs['relative_attention_max_distance'],
    relpos_per_layer=kind == 'umt5',
    eos_id=theirs['eos_token_id'],
  )
  return config, found


def _activations(path: epath.Path, projection: str) -> tuple[str, ...]:
  gated = projection.startswith('gated-')
  name = projection.removeprefix('gated-')
  if projection == 'gated-gelu':
    name = 'gelu_new'
  if name not in _ACTIVATIONS:
    raise errors.ConfigurationError(
      f"{path}: feed_forward_proj = '{projection}' is unknown; rest_jax has"
      f' {", ".join(_ACTIVATIONS)} and gated-gelu, each also as gated-….'
    )
  return (_ACTIVATIONS[name], 'linear') if gated else (_ACTIVATIONS[name],)


def _is_scaled(raw: dict[str, Any], theirs: dict[str, Any]) -> bool:
  """Whether logits are divided by √d_model, as a tied T5 is trained.

  transformers 4 does so where `tie_word_embeddings` is true. transformers 5
  sets that to true always, and says of a T5 in `scale_decoder_outputs` what it
  was; an mT5 or UMT5 it never scales.
  """
  if raw.get('scale_decoder_outputs') is not None:
    return bool(raw['scale_decoder_outputs'])
  major = str(raw.get('transformers_version', '')).partition('.')[0]
  if major.isdecimal() and int(major) >= 5 and raw['model_type'] != 't5':
    return False
  return bool(theirs['tie_word_embeddings'])


def _without_copies(
  folder: storage.PathLike,
  found: dict[str, Tensor],
  scaled: bool,
) -> dict[str, Tensor]:
  """The tensors without those that are the embedding over again."""
  found = {k: v for k, v in found.items() if k not in names.IGNORED}
  copies = [name for name in names.EMBEDDING_COPIES if name in found]
  if names.SHARED not in found and copies:
    found[names.SHARED] = found.pop(copies.pop(0))
  for name in copies:
    if not _equal(found[name], found[names.SHARED]):
      raise errors.DataError(
        f'{folder}: {name} differs from {names.SHARED}, and a T5 has one'
        ' embedding: this checkpoint cannot be read'
      )
    del found[name]
  if (
    scaled
    and names.LM_HEAD in found
    and names.SHARED in found
    and _equal(found[names.LM_HEAD], found[names.SHARED])
  ):
    del found[names.LM_HEAD]
  return found


def _equal(one: Tensor, other: Tensor) -> bool:
  if one.shape != other.shape or not one.shape:
    return False
  size = one.shape[0]
  step = max(1, _BLOCK // max(1, 4 * int(np.prod(one.shape[1:]))))
  return all(
    np.array_equal(one.read(slice(i, i + step)), other.read(slice(i, i + step)))
    for i in range(0, size, step)
  )
