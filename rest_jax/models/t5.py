"""T5 (Raffel et al. 2020, arXiv:1910.10683) with T5X's parameter tree.

The tree is `token_embedder`, `encoder/layers_0/attention/query/kernel`,
`decoder/layers_0/encoder_decoder_attention/…`, so a T5X checkpoint is read as
it is. Three ways in: `encode`; `decode`, over whole targets at once for
training; `start_cache` and `decode_step`, one token of every sample at a time.
Dropout acts where the network is applied with a key named `dropout`.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from rest_jax.models import lanes, scan
from rest_jax.models import memory as memory_lib
from rest_jax.models.attention import Attention
from rest_jax.models.config import T5Config
from rest_jax.models.layers import (
  Dense,
  Embed,
  Mlp,
  RelativePositionBias,
  RMSNorm,
  dropout,
)
from rest_jax.sharding import Placement
from rest_jax.types import DecodeCache, Memory

__all__ = ['T5Config', 'Transformer']


def _mlp(cfg: T5Config, placement: Placement) -> Mlp:
  return Mlp(
    cfg.emb_dim,
    cfg.mlp_dim,
    cfg.mlp_activations,
    cfg.dropout_rate,
    cfg.dtype,
    placement,
  )


def _norm(cfg: T5Config) -> RMSNorm:
  return RMSNorm(cfg.emb_dim, cfg.dtype)


def _relpos(cfg: T5Config, bidirectional: bool) -> RelativePositionBias:
  return RelativePositionBias(
    cfg.num_heads,
    cfg.relpos_num_buckets,
    cfg.relpos_max_distance,
    bidirectional,
    cfg.dtype,
  )


def _remat(layer: type[nn.Module], cfg: T5Config) -> type[nn.Module]:
  """The layer, or one that keeps less for the backward pass; see `T5Config`."""
  if cfg.remat == 'none':
    return layer
  policy = None
  if cfg.remat == 'minimal':
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  # In a loop nothing outside its body could be merged with what it does again.
  return nn.remat(layer, policy=policy, prevent_cse=not cfg.scan_layers)


def _run_layers(side: nn.Module, x: jax.Array, *args) -> jax.Array:
  """Runs the layers of the encoder or decoder as its configuration says."""
  if side.config.scan_layers and not side.is_initializing():
    return scan.run_as_loop(side, side.layers, x, *args)
  return scan.run(side.layers, x, *args)


class EncoderLayer(nn.Module):
  """Self-attention and a feed-forward layer, each normed first and added."""

  config: T5Config
  placement: Placement

  def setup(self):
    if self.config.relpos_per_layer:
      self.relpos_bias = _relpos(self.config, bidirectional=True)
    self.pre_attention_layer_norm = _norm(self.config)
    self.attention = Attention(self.config, self.placement)
    self.pre_mlp_layer_norm = _norm(self.config)
    self.mlp = _mlp(self.config, self.placement)

  def __call__(self, x, mask, bias):
    rate = self.config.dropout_rate
    if self.config.relpos_per_layer:
      bias = self.relpos_bias(x.shape[1])
    y = self.pre_attention_layer_norm(x)
    x = x + dropout(self, self.attention(y, y, mask, bias), rate)
    x = x + dropout(self, self.mlp(self.pre_mlp_layer_norm(x)), rate)
    return self.placement.constrain(x, 'batch', 'length', 'act_embed')


class DecoderLayer(nn.Module):
  """Attention to the targets before, to the source, and a feed-forward."""

  config: T5Config
  placement: Placement

  def setup(self):
    if self.config.relpos_per_layer:
      self.relpos_bias = _relpos(self.config, bidirectional=False)
    self.pre_self_attention_layer_norm = _norm(self.config)
    self.self_attention = Attention(self.config, self.placement)
    self.pre_cross_attention_layer_norm = _norm(self.config)
    self.encoder_decoder_attention = Attention(self.config, self.placement)
    self.pre_mlp_layer_norm = _norm(self.config)
    self.mlp = _mlp(self.config, self.placement)

  def __call__(self, x, encoded, mask, cross_mask, bias):
    rate = self.config.dropout_rate
    if self.config.relpos_per_layer:
      bias = self.relpos_bias(x.shape[1])
    y = self.pre_self_attention_layer_norm(x)
    x = x + dropout(self, self.self_attention(y, y, mask, bias), rate)
    y = self.pre_cross_attention_layer_norm(x)
    y = self.encoder_decoder_attention(y, encoded, cross_mask)
    x = x + dropout(self, y, rate)
    x = x + dropout(self, self.mlp(self.pre_mlp_layer_norm(x)), rate)
    return self.placement.constrain(x, 'batch', 'length', 'act_embed')

  def step(self, x, self_cache, cross_cache, source_mask, ring, bias):
    """Does the same for one token of each sample; returns x and its cache."""
    if self.config.relpos_per_layer:
      bias = _ring_bias(self.relpos_bias, ring)
    y = self.pre_self_attention_layer_norm(x)
    y, *self_cache = self.self_attention.step_self(y, *self_cache, ring, bias)
    x = x + y
    y = self.pre_cross_attention_layer_norm(x)
    x = x + self.encoder_decoder_attention.step_memory(
      y, *cross_cache, source_mask
    )
    x = x + self.mlp(self.pre_mlp_layer_norm(x))
    return self.placement.constrain(x, 'batch', None, 'act_embed'), self_cache


class Encoder(nn.Module):
  """The layers of the encoder over embedded sources."""

  config: T5Config
  placement: Placement

  def setup(self):
    cfg = self.config
    layer = _remat(EncoderLayer, cfg)
    if not cfg.relpos_per_layer:
      self.relpos_bias = _relpos(cfg, bidirectional=True)
    self.layers = [
      layer(cfg, self.placement) for _ in range(cfg.num_encoder_layers)
    ]
    self.encoder_norm = _norm(cfg)

  def __call__(self, x, mask):
    rate = self.config.dropout_rate
    bias = None
    if not self.config.relpos_per_layer:
      bias = self.relpos_bias(x.shape[1])
    x = dropout(self, x, rate)
    x = _run_layers(self, x, mask, bias)
    return dropout(self, self.encoder_norm(x), rate)


class Decoder(nn.Module):
  """The layers of the decoder over embedded targets, and the output layer."""

  config: T5Config
  placement: Placement

  def setup(self):
    cfg = self.config
    layer = _remat(DecoderLayer, cfg)
    if not cfg.relpos_per_layer:
      self.relpos_bias = _relpos(cfg, bidirectional=False)
    self.layers = [
      layer(cfg, self.placement) for _ in range(cfg.num_decoder_layers)
    ]
    self.decoder_norm = _norm(cfg)
    if not cfg.logits_via_embedding:
      # float32 whatever the activations are, as T5X has it, for stability.
      self.logits_dense = Dense(cfg.emb_dim, cfg.vocab_size, ('embed', 'vocab'))

  def __call__(self, x, encoded, mask, cross_mask):
    rate = self.config.dropout_rate
    bias = None
    if not self.config.relpos_per_layer:
      bias = self.relpos_bias(x.shape[1])
    x = dropout(self, x, rate)
    x = _run_layers(self, x, encoded, mask, cross_mask, bias)
    return dropout(self, self.decoder_norm(x), rate)

  def project_memory(self, encoded):
    """Returns the cross-attention keys and the values of every layer."""
    pairs = [
      layer.encoder_decoder_attention.project_memory(encoded)
      for layer in self.layers
    ]
    return tuple(zip(*pairs, strict=True))

  def step(self, x, cache: DecodeCache):
    """Runs one token of each sample; returns hidden states and the cache."""
    ring = lanes.ring(
      cache.self_keys[0], cache.step, cache.begun, self.config.num_heads
    )
    bias = None
    if not self.config.relpos_per_layer:
      bias = _ring_bias(self.relpos_bias, ring)
    source_mask = cache.source_mask[:, None, None, :]
    keys, values = list(cache.self_keys), list(cache.self_values)
    for i, layer in enumerate(self.layers):
      x, (keys[i], values[i]) = layer.step(
        x,
        (keys[i], values[i]),
        (cache.cross_keys[i], cache.cross_values[i]),
        source_mask,
        ring,
        bias,
      )
    return self.decoder_norm(x), cache.replace(
      self_keys=tuple(keys), self_values=tuple(values), step=cache.step + 1
    )


def _ring_bias(relpos: RelativePositionBias, ring: lanes.Ring):
  """Biases [1, t, h] of the places of a ring, for the current token."""
  length = len(ring.ages)
  # by_offset[:, i] belongs to offset i − (length − 1), key minus query.
  by_offset = relpos.by_offset(1 - length, 0)
  return by_offset.T[None, length - 1 - ring.ages]


class Transformer(nn.Module):
  """The whole network; all of its methods are used through `apply`."""

  config: T5Config
  placement: Placement

  def setup(self):
    cfg = self.config
    self.token_embedder = Embed(cfg.vocab_size, cfg.emb_dim, cfg.dtype)
    self.encoder = Encoder(cfg, self.placement)
    self.decoder = Decoder(cfg, self.placement)

  def encode(
    self,
    tokens: Int[Array, 'b s'],
    segment_ids: Int[Array, 'b s'] | None = None,
  ) -> Float[Array, 'b s e']:
    """Encodes sources; 0 is padding, segments do not see each other."""
    return self.encoder(self._embed(tokens), segment_mask(tokens, segment_ids))

  def decode(
    self,
    encoded: Float[Array, 'b s e'],
    encoder_input_tokens: Int[Array, 'b s'],
    decoder_input_tokens: Int[Array, 'b t'],
    encoder_segment_ids: Int[Array, 'b s'] | None = None,
    decoder_segment_ids: Int[Array, 'b t'] | None = None,
  ) -> Float[Array, 'b t v']:
    """Returns float32 logits of the token after each of the given ones.

    Padding comes after all targets, so the causal mask alone hides it.
    """
    length = decoder_input_tokens.shape[1]
    causal = jnp.tril(jnp.ones((1, 1, length, length), bool))
    if decoder_segment_ids is not None:
      causal &= _same(decoder_segment_ids, decoder_segment_ids)
    cross_mask = segment_mask(
      encoder_input_tokens, encoder_segment_ids, decoder_segment_ids
    )
    x = self._embed(decoder_input_tokens)
    return self.logits(self.decoder(x, encoded, causal, cross_mask))

  def project_memory(self, encoder_input_tokens: Int[Array, 'b s']) -> Memory:
    """Encodes sources, as far as all steps of their samples share it."""
    encoded = self.encode(encoder_input_tokens)
    return Memory(
      *self.decoder.project_memory(encoded), encoder_input_tokens > 0
    )

  def empty_cache(
    self,
    num_sources: int,
    source_length: int,
    num_samples: int,
    max_decode_len: int,
  ) -> DecodeCache:
    """Room for n samples of t tokens of b sources of s tokens each."""
    cfg = self.config
    width = cfg.num_heads * num_samples
    together = lanes.sources_in_group(
      max(1, num_sources // self.placement.num_shards('batch')),
      width // self.placement.num_shards('heads'),
    )

    def layers(shape, *axes):
      empty = jnp.zeros(shape, cfg.dtype)
      # An array of its own a layer: each can be written in place.
      return tuple(
        self.placement.constrain(empty, *axes)
        for _ in range(cfg.num_decoder_layers)
      )

    own = (
      (num_sources // together, max_decode_len, cfg.head_dim, width * together),
      *lanes.AXES,
    )
    sizes = {
      'batch': num_sources,
      'heads': cfg.num_heads,
      'length': source_length,
      'kv': cfg.head_dim,
    }

    def shared(*axes):
      return layers([sizes[name] for name in axes], *axes)

    return DecodeCache(
      self_keys=layers(*own),
      self_values=layers(*own),
      cross_keys=shared(*memory_lib.KEY_AXES),
      cross_values=shared(*memory_lib.VALUE_AXES),
      source_mask=jnp.zeros((num_sources, source_length), bool),
      step=jnp.zeros((), jnp.int32),
      begun=jnp.zeros((num_sources, num_samples), jnp.int32),
    )

  def start_cache(
    self,
    encoder_input_tokens: Int[Array, 'b s'],
    num_samples: int,
    max_decode_len: int,
  ) -> DecodeCache:
    """Encodes sources, with room for n samples of t tokens of each."""
    cache = self.empty_cache(
      *encoder_input_tokens.shape, num_samples, max_decode_len
    )
    memory = self.project_memory(encoder_input_tokens)
    return cache.replace(**memory._asdict())

  def decode_step(
    self, tokens: Int[Array, 'b n'], cache: DecodeCache
  ) -> tuple[Float[Array, 'b n v'], DecodeCache]:
    """Returns float32 logits of the token after the given, and the cache."""
    x, cache = self.decoder.step(self._embed(tokens), cache)
    return self.logits(x), cache

  def logits(self, x: Float[Array, 'b l e']) -> Float[Array, 'b l v']:
    """Returns the float32 logits of decoder outputs."""
    if self.config.logits_via_embedding:
      logits = self.token_embedder.attend(x)
    else:
      logits = self.decoder.logits_dense(x)
    return self.placement.constrain(logits, 'batch', 'length', 'vocab')

  def __call__(self, encoder_input_tokens, decoder_input_tokens):
    """Encodes and decodes; `init` goes through here."""
    encoded = self.encode(encoder_input_tokens)
    return self.decode(encoded, encoder_input_tokens, decoder_input_tokens)

  def _embed(self, tokens: jax.Array) -> jax.Array:
    return embed(self.token_embedder, tokens, self.placement)


def embed(
  embedder: Embed, tokens: jax.Array, placement: Placement
) -> Float[Array, 'b l e']:
  """Returns the tokens' embeddings, placed as activations are."""
  return placement.constrain(embedder(tokens), 'batch', 'length', 'act_embed')


def _same(queries: jax.Array, keys: jax.Array) -> Bool[Array, 'b 1 q k']:
  return queries[:, None, :, None] == keys[:, None, None, :]


def segment_mask(tokens, segment_ids, query_segment_ids=None):
  """Which keys a query sees: [b, 1, 1, k], or [b, 1, q, k] when packed."""
  if segment_ids is None:
    return (tokens > 0)[:, None, None, :]
  if query_segment_ids is None:
    query_segment_ids = segment_ids
  return _same(query_segment_ids, segment_ids)
