"""Operations and bytes of a T5 step, counted by hand.

What the compiler reports is held against these, and where nothing is compiled
they stand alone. Only matrix products are counted: with a = heads × head_dim,
e features, m features inside the feed-forward layer, k + 1 matrices there, v
ids, a layer of the encoder has 4ea + (k + 1)em weights and one of the decoder
8ea + (k + 1)em; a weight costs 2 operations a token, and attention 4a a pair of
query and key.
"""

import dataclasses

from rest_jax.models.config import T5Config

_BYTES = {'float32': 4, 'bfloat16': 2}


@dataclasses.dataclass(frozen=True)
class Weights:
  """Weights of the matrices that multiply activations.

  Attributes:
    encoder_layer: of one layer.
    decoder_layer: of one layer, cross-attention with keys and values.
    cross: of these, the keys and values of cross-attention, which are applied
      to sources and not to targets.
    output: of the output layer.
  """

  encoder_layer: int
  decoder_layer: int
  cross: int
  output: int


def weights(config: T5Config) -> Weights:
  """The weights of a network's matrices."""
  joined = config.num_heads * config.head_dim
  square = config.emb_dim * joined
  mlp = (len(config.mlp_activations) + 1) * config.emb_dim * config.mlp_dim
  return Weights(
    encoder_layer=4 * square + mlp,
    decoder_layer=8 * square + mlp,
    cross=2 * square,
    output=config.emb_dim * config.vocab_size,
  )


def num_params(config: T5Config) -> int:
  """All parameters, norms and position biases included."""
  w = weights(config)
  enc, dec = config.num_encoder_layers, config.num_decoder_layers
  tables = 1 if config.logits_via_embedding else 2
  norms = config.emb_dim * (2 * enc + 3 * dec + 2)
  sides = enc + dec if config.relpos_per_layer else 2
  biases = sides * config.relpos_num_buckets * config.num_heads
  return (
    enc * w.encoder_layer
    + dec * w.decoder_layer
    + tables * w.output
    + norms
    + biases
  )


def encode_flops(config: T5Config, rows: int, length: int) -> float:
  """Operations of the encoder, forward."""
  w, joined = weights(config), config.num_heads * config.head_dim
  layer = 2 * rows * length * w.encoder_layer + 4 * rows * joined * length**2
  return float(config.num_encoder_layers * layer)


def train_flops(
  config: T5Config, rows: int, source_length: int, target_length: int
) -> float:
  """Operations of an update: forward, and twice as many backward.

  With `remat='full'` the layers are computed forward twice; the encoder's and
  the decoder's outputs are kept, so the output layer is not.
  """
  w, joined = weights(config), config.num_heads * config.head_dim
  s, t = source_length, target_length
  layer = (
    2 * rows * t * (w.decoder_layer - w.cross)
    + 2 * rows * s * w.cross
    + 4 * rows * joined * t * (t + s)
  )
  layers = encode_flops(config, rows, s) + config.num_decoder_layers * layer
  output = 2 * rows * t * w.output
  forward = 4 if config.remat == 'full' else 3
  return float(forward * layers + 3 * output)


@dataclasses.dataclass(frozen=True)
class DecodeStep:
  """One step of decoding on one chip.

  Attributes:
    flops: operations.
    weight_bytes: of the decoder, its output layer included, read once.
    self_bytes: of the keys and values of the samples' tokens, read once.
    cross_bytes: of the keys and values of the sources, read once.
    written_bytes: the keys and values of the new tokens.
  """

  flops: float
  weight_bytes: float
  self_bytes: float
  cross_bytes: float
  written_bytes: float

  @property
  def bytes(self) -> float:
    """What must move between memory and chip."""
    caches = self.self_bytes + self.cross_bytes
    return self.weight_bytes + caches + self.written_bytes


def decode_step(
  config: T5Config,
  sources: int | float,
  num_samples: int,
  source_length: int,
  target_length: int,
  model: int = 1,
  output_bytes: int = 4,
) -> DecodeStep:
  """Counts one step.

  Args:
    config: the network.
    sources: on this chip's part of the data axis.
    num_samples: samples a source.
    source_length: tokens of a source.
    target_length: tokens that the cache has room for, all of which are read.
    model: chips that split the layers.
    output_bytes: of a weight of the output layer, which is float32.
  """
  w, joined = weights(config), config.num_heads * config.head_dim
  layers, size = config.num_decoder_layers, _BYTES[config.dtype]
  rows = sources * num_samples
  matrices = layers * (w.decoder_layer - w.cross)
  attention = 4 * rows * joined * (target_length + source_length)
  flops = 2 * rows * (matrices + w.output) + layers * attention
  keys_and_values = 2 * layers * joined * size / model
  return DecodeStep(
    flops=flops / model,
    weight_bytes=(size * matrices + output_bytes * w.output) / model,
    self_bytes=keys_and_values * rows * target_length,
    cross_bytes=keys_and_values * sources * source_length,
    written_bytes=keys_and_values * rows,
  )
