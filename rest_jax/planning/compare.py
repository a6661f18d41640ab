"""Compares slices and layouts by hand counts alone, in a moment.

What is counted is what must be there and must happen; the compiler adds to it.
So a slice that is picked here is to be planned for by itself, which compiles.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from rest_jax.models.config import T5Config
from rest_jax.planning import counts, programs
from rest_jax.planning.chips import Chip, Slice
from rest_jax.training.optimizer import Optimizer

# Left free for what is not counted: padding, buffers of exchanges, the program.
_MARGIN = 0.8


@dataclasses.dataclass(frozen=True)
class Choice:
  """A slice with a layout for training and one for decoding.

  Attributes:
    where: the slice.
    model: chips that split each layer in training.
    fsdp: whether parameters are split over data too.
    num_microbatches: parts of a batch.
    grow_model: chips that split each layer in decoding.
    update_bytes: of a chip's memory, for an update.
    grow_bytes: likewise for a batch of Grow.
    update_seconds: of an update, at its floor.
    samples_per_second: of Grow, at its floor.
  """

  where: Slice
  model: int
  fsdp: bool
  num_microbatches: int
  grow_model: int
  update_bytes: float
  grow_bytes: float
  update_seconds: float
  samples_per_second: float


@dataclasses.dataclass(frozen=True)
class Training:
  """A way to lay an update out over a slice.

  Attributes:
    config: the network.
    update: the program.
    data: chips that split a batch.
    model: chips that split each layer.
    fsdp: whether parameters are split over data too.
    parts: microbatches.
  """

  config: T5Config
  update: programs.Update
  data: int
  model: int
  fsdp: bool
  parts: int

  @property
  def bytes(self) -> float:
    """Parameters, optimizer, gradients, activations and logits of a chip."""
    config, packing = self.config, self.update.training.packing
    size = _size(config)
    params = counts.num_params(config) / self.model
    shard = params / (self.data if self.fsdp else 1)
    gradients = 4 * shard * (2 if self.parts > 1 else 1)
    state = (4 + _state_bytes(self.update.training.optimizer)) * shard
    layer = counts.weights(config).decoder_layer / self.model
    working = size * (2 * layer if self.fsdp else params)
    rows = self.update.rows / self.data / self.parts
    s, t = packing.source_length, packing.target_length
    one = rows * _layer_activations(config, max(s, t), size, self.model)
    encoder, decoder = config.num_encoder_layers, config.num_decoder_layers
    if config.remat == 'full':
      between = rows * size * config.emb_dim * (encoder * s + decoder * t)
      activations = one + between
    else:
      activations = one * (encoder + decoder)
    logits = 2 * 4 * rows * t * config.vocab_size / self.model
    return state + gradients + working + activations + logits

  def seconds(self, chip: Chip) -> float:
    """The larger of the operations' time and that of what is exchanged."""
    config, packing = self.config, self.update.training.packing
    s, t = packing.source_length, packing.target_length
    flops = counts.train_flops(config, self.update.rows, s, t)
    params = counts.num_params(config) / self.model
    passes = 3 if config.remat == 'full' else 2
    others = (self.data - 1) / self.data
    if self.fsdp:  # Each pass gathers weights, one scatters gradients.
      sent = self.parts * (passes * _size(config) + 4) * params * others
    else:
      sent = self.parts * 2 * 4 * params * others
    # Each sublayer sums its output, and the gradient of its input.
    tokens = (
      2 * s * config.num_encoder_layers + 3 * t * config.num_decoder_layers
    )
    summed = self.update.rows / self.data * tokens * config.emb_dim
    sent += passes * 2 * summed * _size(config) * (self.model - 1) / self.model
    return max(flops / (self.data * self.model) / chip.flops, sent / chip.links)


def best(
  where: Slice,
  config: T5Config,
  update: programs.Update,
  sample: programs.Sample,
) -> Choice | None:
  """The fastest layouts that fit into a slice; None where none does."""
  room = _MARGIN * where.chip.memory
  trained = [
    (
      layout.seconds(where.chip),
      layout.parts,
      layout.model,
      layout.fsdp,
      layout,
    )
    for layout in _trainings(where, config, update)
    if layout.bytes <= room
  ]
  decoded = [
    layout for layout in _decodings(where, config, sample) if layout[-1] <= room
  ]
  if not trained or not decoded:
    return None
  # The fastest; among equals the fewest microbatches, the least splitting.
  seconds, *_, layout = min(trained, key=lambda found: found[:-1])
  slowness, grow_model, grow_bytes = min(decoded)
  return Choice(
    where=where,
    model=layout.model,
    fsdp=layout.fsdp,
    num_microbatches=layout.parts,
    grow_model=grow_model,
    update_bytes=layout.bytes,
    grow_bytes=grow_bytes,
    update_seconds=seconds,
    samples_per_second=1 / slowness,
  )


def pick(found: Sequence[Choice]) -> Choice | None:
  """The choice of the fewest chips; among these the fastest in Grow."""
  if not found:
    return None
  return min(found, key=lambda c: (c.where.num_chips, -c.samples_per_second))


def _splits(chips: int, config: T5Config) -> Iterator[int]:
  """How many of some chips may split a layer."""
  model = 1
  while model <= config.num_heads:
    sizes = (chips, config.num_heads, config.mlp_dim)
    if all(size % model == 0 for size in (*sizes, config.vocab_size)):
      yield model
    model *= 2


def _trainings(
  where: Slice, config: T5Config, update: programs.Update
) -> Iterator[Training]:
  for model in _splits(where.num_chips, config):
    data = where.num_chips // model
    for fsdp in (False, True) if data > 1 else (False,):
      parts = 1
      while update.rows % (parts * data) == 0:
        yield Training(config, update, data, model, fsdp, parts)
        parts *= 2


def _decodings(
  where: Slice, config: T5Config, sample: programs.Sample
) -> Iterator[tuple[float, int, float]]:
  """Seconds a sample, chips that split a layer, bytes of a chip."""
  chip, params = where.chip, counts.num_params(config)
  for model in _splits(where.host_chips, config):
    data = where.num_chips // model  # Each host decodes by itself.
    sources = -(-sample.sources // data)  # Of a chip; Grow rounds up too.
    rows = sources * sample.lanes
    step = counts.decode_step(
      config,
      sources,
      sample.lanes,
      sample.source_length,
      sample.max_decode_len,
      model,
    )
    summed = rows * config.emb_dim * _size(config)
    sent = 2 * 3 * config.num_decoder_layers * summed * (model - 1) / model
    encode = counts.encode_flops(config, sources, sample.source_length)
    seconds = encode / model / chip.flops + sample.steps * max(
      step.flops / chip.flops, step.bytes / chip.bandwidth, sent / chip.links
    )
    weights = _size(config) * params / model
    caches = step.self_bytes + step.cross_bytes
    logits = 2 * 4 * rows * config.vocab_size / model
    drawn = sources * sample.num_samples * data
    yield seconds / drawn, model, weights + caches + logits


def _size(config: T5Config) -> int:
  return 2 if config.dtype == 'bfloat16' else 4


def _state_bytes(optimizer: Optimizer) -> int:
  """Bytes of the optimizer's state a parameter."""
  if optimizer.name == 'adamw':
    return 8
  return 0 if optimizer.factored else 4


def _layer_activations(
  config: T5Config, length: int, size: int, model: int
) -> float:
  """Bytes that a layer keeps of a row for its backward pass."""
  joined = config.num_heads * config.head_dim
  hidden = (len(config.mlp_activations) + 1) * config.mlp_dim
  features = 6 * config.emb_dim + (8 * joined + hidden) / model
  attention = 2 * config.num_heads * length / model
  return size * length * (features + attention)
