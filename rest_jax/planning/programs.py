"""The programs of a run, lowered for devices that need not be there."""

import dataclasses

import jax
import jax.numpy as jnp

from rest_jax import generation
from rest_jax.decoding.sampling import Sampling
from rest_jax.models.config import T5Config
from rest_jax.policy import Policy
from rest_jax.sharding import Layout
from rest_jax.training import early_stopping
from rest_jax.training import state as state_lib
from rest_jax.training import step as step_lib
from rest_jax.types import Batch


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
    policy = Policy(config, layout)
    step = step_lib.make_train_step(
      policy,
      self.training.optimizer,
      self.training.loss,
      num_microbatches=self.num_microbatches,
    )
    step.check_rows(self.rows)
    state = state_lib.abstract_state(policy, self.training.optimizer)
    scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=state.step.sharding)
    key = self._dropout_key(policy)
    return step.jitted.lower(state, self._batch(policy), key, scale)

  def lower_gradient(
    self, config: T5Config, layout: Layout
  ) -> jax.stages.Lowered:
    """The gradient of one microbatch alone, without the update."""
    policy = Policy(config, layout)
    step = step_lib.make_train_step(
      policy, self.training.optimizer, self.training.loss
    )

    def gradient(params, batch, key):
      return step.gradient(params, batch, key)[0]

    return jax.jit(gradient, out_shardings=policy.param_shardings()).lower(
      policy.placed_params(), self._batch(policy), self._dropout_key(policy)
    )

  def _dropout_key(self, policy: Policy) -> jax.ShapeDtypeStruct | None:
    if not policy.config.dropout_rate:
      return None
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.ShapeDtypeStruct(
      (), key.dtype, sharding=policy.placement.sharding()
    )

  def _batch(self, policy: Policy) -> Batch:
    packing = self.training.packing
    sharding = step_lib.batch_sharding(policy)

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
    )


@dataclasses.dataclass(frozen=True)
class Sample:
  """One batch of Grow; every host decodes batches of its own.

  Attributes:
    sources: of the batch, over all chips of a host.
    num_samples: samples of each that are drawn at once.
    source_length: tokens that a source is padded to.
    max_decode_len: steps of decoding.
    sampling: how tokens are drawn.
  """

  sources: int
  num_samples: int
  source_length: int
  max_decode_len: int
  sampling: Sampling

  @classmethod
  def of(
    cls,
    policy: Policy,
    batching: generation.Batching,
    num_samples: int,
    sampling: Sampling,
    num_hosts: int,
  ) -> 'Sample':
    """The batch that a host makes in Grow of the longest sources."""
    group = batching.group(num_samples)
    share = -(-(batching.rows // group) // num_hosts)
    return cls(
      sources=policy.whole_batches(share),
      num_samples=group,
      source_length=batching.source_buckets[-1],
      max_decode_len=batching.max_decode_len,
      sampling=sampling,
    )

  def lower(self, config: T5Config, layout: Layout) -> jax.stages.Lowered:
    """The real program: encodes the sources, then decodes in a loop."""
    policy = Policy(config, layout)
    return policy.lower_sample(
      policy.placed_decode_params(),
      self.sources,
      self.source_length,
      self.num_samples,
      sampling=self.sampling,
      max_decode_len=self.max_decode_len,
      num_tokens=config.vocab_size,
    )

  def lower_start(self, config: T5Config, layout: Layout) -> jax.stages.Lowered:
    """What of it comes before the loop."""
    policy = Policy(config, layout)
    tokens = jax.ShapeDtypeStruct(
      (self.sources, self.source_length),
      jnp.int32,
      sharding=policy.placement.sharding('batch', None),
    )

    def start(params, tokens):
      return policy.start_cache(
        params,
        tokens,
        num_samples=self.num_samples,
        max_decode_len=self.max_decode_len,
      )

    return jax.jit(start).lower(policy.placed_decode_params(), tokens)
