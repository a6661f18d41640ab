"""The programs of a run, lowered for devices that need not be there."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from rest_jax import anchored, generation, slots
from rest_jax.decoding.sampling import Sampling
from rest_jax.models.config import T5Config
from rest_jax.policy import Policy
from rest_jax.sharding import Layout
from rest_jax.training import early_stopping
from rest_jax.training import state as state_lib
from rest_jax.training import step as step_lib
from rest_jax.types import Batch, DecodeCache, TrainState


@dataclasses.dataclass(frozen=True)
class Update:
  """One update of an Improve step.

  Attributes:
    training: its settings.
    rows: packed rows of a batch, over all chips.
    num_microbatches: parts of the batch.
  """

  training: early_stopping.Training
  rows: int
  num_microbatches: int

  def lower(self, config: T5Config, layout: Layout) -> jax.stages.Lowered:
    """The real train step.

    Raises:
      ConfigurationError: the batch or the network does not divide.
    """
    network, training = self._network(config, layout)
    step = step_lib.make_train_step(
      network,
      training.optimizer,
      training.loss,
      num_microbatches=self.num_microbatches,
    )
    step.check_rows(self.rows)
    state = state_lib.abstract_state(network, training.optimizer)
    scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=state.step.sharding)
    key = self._dropout_key(network)
    return step.jitted.lower(state, self._batch(network), key, scale)

  def state(self, config: T5Config, layout: Layout) -> TrainState:
    """What is trained, with what its loss holds beside it; abstract."""
    network, training = self._network(config, layout)
    return state_lib.abstract_state(network, training.optimizer)

  def lower_gradient(
    self, config: T5Config, layout: Layout
  ) -> jax.stages.Lowered:
    """The gradient of one microbatch alone, without the update."""
    network, training = self._network(config, layout)
    step = step_lib.make_train_step(network, training.optimizer, training.loss)

    def gradient(params, batch, key):
      return step.gradient(params, batch, key)[0]

    params = state_lib.abstract_state(network, training.optimizer).params
    return jax.jit(gradient, out_shardings=network.param_shardings()).lower(
      params, self._batch(network), self._dropout_key(network)
    )

  def _network(
    self, config: T5Config, layout: Layout
  ) -> tuple[Policy | anchored.Anchored, early_stopping.Training]:
    """What is trained, and how: the policy, or with what its loss asks for."""
    policy, training = Policy(config, layout), self.training
    network = anchored.network_for(policy, training.loss)
    if network is None:
      return policy, training
    return network, anchored.frozen_in(training)

  def _dropout_key(self, network) -> jax.ShapeDtypeStruct | None:
    key = jax.eval_shape(
      lambda: early_stopping.dropout_key(network, self.training.loss, 0)
    )
    if key is None:
      return None
    return jax.ShapeDtypeStruct(
      (), key.dtype, sharding=network.placement.sharding()
    )

  def _batch(self, network) -> Batch:
    packing, loss = self.training.packing, self.training.loss
    sharding = step_lib.batch_sharding(network)

    def side(length: int, dtype=jnp.int32) -> jax.ShapeDtypeStruct:
      shape = (self.rows, length)
      return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    source, target = packing.source_length, packing.target_length
    return Batch(
      encoder_input_tokens=side(source),
      decoder_input_tokens=side(target),
      decoder_target_tokens=side(target),
      decoder_loss_weights=side(target, jnp.float32),
      encoder_segment_ids=side(source),
      decoder_segment_ids=side(target),
      decoder_figures={name: side(target, jnp.float32) for name in loss.needs},
    )


@dataclasses.dataclass(frozen=True)
class Sample:
  """The slots of Grow; every host decodes in slots of its own.

  Attributes:
    sources: at a time, over all chips of a host.
    lanes: samples of each that are drawn at a time.
    num_samples: samples of each in all.
    source_length: tokens that a source is padded to.
    max_decode_len: most tokens of a sample.
    sampling: how tokens are drawn.
  """

  sources: int
  lanes: int
  num_samples: int
  source_length: int
  max_decode_len: int
  sampling: Sampling

  @property
  def rows(self) -> int:
    """Samples that are drawn at a time."""
    return self.sources * self.lanes

  @property
  def steps(self) -> int:
    """Of decoding until all samples are drawn, each as long as it may be."""
    return -(-self.num_samples // self.lanes) * self.max_decode_len

  @classmethod
  def of(
    cls,
    policy: Policy,
    batching: generation.Batching,
    num_samples: int,
    sampling: Sampling,
    num_hosts: int,
  ) -> 'Sample':
    """The slots of a host in Grow of the longest sources."""
    lanes = batching.lanes(num_samples)
    share = -(-(batching.rows // lanes) // num_hosts)
    return cls(
      sources=policy.whole_batches(share),
      lanes=lanes,
      num_samples=num_samples,
      source_length=batching.source_buckets[-1],
      max_decode_len=batching.max_decode_len,
      sampling=sampling,
    )

  def lower(self, config: T5Config, layout: Layout) -> jax.stages.Lowered:
    """The real program: decodes in a loop until slots are free."""
    policy = Policy(config, layout)
    return slots.lower_decode(
      policy,
      policy.placed_inference_params(),
      self._shape,
      sampling=self.sampling,
      num_tokens=config.vocab_size,
    )

  def lower_start(self, config: T5Config, layout: Layout) -> jax.stages.Lowered:
    """What fills the slots: sources are encoded, for all steps."""
    policy = Policy(config, layout)
    start = functools.partial(
      policy.start_cache,
      num_samples=self.lanes,
      max_decode_len=self.max_decode_len,
    )
    return jax.jit(start).lower(
      policy.placed_inference_params(), self._tokens(policy, self.source_length)
    )

  def lower_step(self, config: T5Config, layout: Layout) -> jax.stages.Lowered:
    """One turn of the loop: a token of every sample."""
    policy = Policy(config, layout)
    params = policy.placed_inference_params()
    cache = self.placed_cache(policy)

    def step(params, tokens, uniform, cache):
      logits, cache = policy.decode_step(params, tokens, cache)
      return self.sampling(logits, uniform, config.vocab_size).tokens, cache

    return jax.jit(step, donate_argnums=3).lower(
      params,
      self._tokens(policy, self.lanes),
      self._tokens(policy, self.lanes, jnp.float32),
      cache,
    )

  def placed_cache(self, policy: Policy) -> DecodeCache:
    """Shapes and shardings of the keys and values."""
    return slots.placed(policy, self._shape).cache

  @property
  def _shape(self) -> slots.Shape:
    return slots.Shape(
      self.sources,
      self.source_length,
      self.lanes,
      self.num_samples,
      self.max_decode_len,
    )

  def _tokens(
    self, policy: Policy, length: int, dtype=jnp.int32
  ) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(
      (self.sources, length),
      dtype,
      sharding=policy.placement.sharding('batch', None),
    )
