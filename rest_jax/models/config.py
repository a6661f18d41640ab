"""The shape of a T5 policy."""

import dataclasses
from collections.abc import Sequence

from rest_jax.errors import ConfigurationError

ACTIVATIONS = ('gelu', 'linear', 'relu', 'silu', 'swish', 'tanh', 'sigmoid')
DTYPES = ('float32', 'bfloat16')
REMAT = ('none', 'minimal', 'full')


@dataclasses.dataclass(frozen=True)
class T5Config:
  """Sizes and variants of a T5 network, named as T5X names them.

  T5 1.0 is `mlp_activations=('relu',)` with `logits_via_embedding=True`
  (Raffel et al. 2020, arXiv:1910.10683); T5 1.1 and mT5 are the defaults here,
  and UMT5 (Chung et al. 2023, arXiv:2304.09151) adds `relpos_per_layer=True`.

  Attributes:
    vocab_size: rows of the embedding, padding beyond the tokenizer's included.
    emb_dim: features between layers.
    num_heads: attention heads.
    num_encoder_layers: layers of the encoder.
    num_decoder_layers: layers of the decoder.
    head_dim: features of one head; num_heads × head_dim need not be emb_dim.
    mlp_dim: features inside a feed-forward layer.
    mlp_activations: names of functions whose values are multiplied: one is a
      plain feed-forward layer, two are a gated one.
    dropout_rate: probability that a feature is dropped in training.
    logits_via_embedding: whether the output is the input embedding transposed.
    dtype: of activations, 'float32' or 'bfloat16'; parameters, normalisation
      and logits stay float32.
    float32_attention_logits: whether attention logits are float32 in any case.
    relpos_num_buckets: buckets of relative positions.
    relpos_max_distance: distance from which all positions share a bucket.
    relpos_per_layer: whether every layer has relative position biases of its
      own (UMT5, and T5X's scalable_t5), not one set for all of a side.
    eos_id: the id that ends a text: 1, and 2 for MADLAD-400.
    remat: 'full' computes a layer's activations again in the backward pass
      instead of keeping them; 'minimal' keeps the products with parameters and
      computes the rest again; 'none' keeps all.
    scan_layers: whether training compiles the layers of a side as one loop, so
      that compiling takes as long for many layers as for few. Names and shapes
      of parameters are the same. Decoding is written out in any case, since a
      loop would copy its caches and parameters.
  """

  vocab_size: int
  emb_dim: int = 512
  num_heads: int = 8
  num_encoder_layers: int = 6
  num_decoder_layers: int = 6
  head_dim: int = 64
  mlp_dim: int = 2048
  mlp_activations: Sequence[str] = ('gelu', 'linear')
  dropout_rate: float = 0.1
  logits_via_embedding: bool = False
  dtype: str = 'float32'
  float32_attention_logits: bool = False
  relpos_num_buckets: int = 32
  relpos_max_distance: int = 128
  relpos_per_layer: bool = False
  eos_id: int = 1
  remat: str = 'none'
  scan_layers: bool = False

  def __post_init__(self):
    object.__setattr__(self, 'mlp_activations', tuple(self.mlp_activations))
    for name in (
      'vocab_size',
      'emb_dim',
      'num_heads',
      'num_encoder_layers',
      'num_decoder_layers',
      'head_dim',
      'mlp_dim',
      'eos_id',
    ):
      value = getattr(self, name)
      if not isinstance(value, int) or value < 1:
        raise ConfigurationError(
          f'T5Config.{name} = {value!r}: set a whole number of at least 1.'
        )
    if not 0 <= self.dropout_rate < 1:
      raise ConfigurationError(
        f'T5Config.dropout_rate = {self.dropout_rate!r}: set it in [0, 1).'
      )
    if not self.mlp_activations:
      raise ConfigurationError(
        "T5Config.mlp_activations is empty: set ('relu',) or "
        "('gelu', 'linear')."
      )
    for name in self.mlp_activations:
      self._check_choice('mlp_activations', name, ACTIVATIONS)
    self._check_choice('dtype', self.dtype, DTYPES)
    self._check_choice('remat', self.remat, REMAT)
    self._check_relative_positions()

  def _check_choice(self, field: str, value: str, choices: tuple[str, ...]):
    if value not in choices:
      raise ConfigurationError(
        f'T5Config.{field} = {value!r}: choose one of {choices}.'
      )

  def _check_relative_positions(self):
    buckets, distance = self.relpos_num_buckets, self.relpos_max_distance
    if buckets < 4 or buckets % 4:
      raise ConfigurationError(
        f'T5Config.relpos_num_buckets = {buckets!r}: set a multiple of 4, half '
        'of the buckets for each direction, half of these one position wide.'
      )
    if distance <= buckets // 2:
      raise ConfigurationError(
        f'T5Config.relpos_max_distance = {distance!r}: set more than half of '
        f'relpos_num_buckets ({buckets // 2}).'
      )
