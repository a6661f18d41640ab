"""Samples whole sequences; knows neither the model nor the tokenizer.

A slot holds the n samples of one source. All slots decode together, a token a
step; one whose samples have all ended may be filled again with another source
while the others go on. `sample` fills all slots once and decodes until they
have ended.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from rest_jax.decoding.sampling import Sampling
from rest_jax.types import DecodeCache, Leaf, Memory, Samples

# (int32 [b, n] tokens, cache) → (float32 [b, n, v] logits, cache)
DecodeStep = Callable[[jax.Array, DecodeCache], tuple[jax.Array, DecodeCache]]


@struct.dataclass
class Slots:
  """b slots of n samples each, somewhere in their decoding.

  Attributes:
    keys: random keys [b, n], one a sample.
    tokens: int32 [b, n], the last token of each sample.
    finished: bool [b, n], whether it has ended with EOS.
    lengths: int32 [b, n], its tokens, EOS counted.
    outputs: int32, float32, float32 [t, b, n], tokens and both of their
      log-probabilities, a ring as the cache's keys are; time first, so that a
      step writes one block.
    cache: the model's.
  """

  keys: Leaf
  tokens: Leaf
  finished: Leaf
  lengths: Leaf
  outputs: tuple[Leaf, Leaf, Leaf]
  cache: DecodeCache

  @property
  def ages(self) -> Int[Array, ' b']:
    """Steps that each slot has made; at least t where it was never filled."""
    return self.cache.step - self.cache.begun

  @property
  def ended(self) -> Bool[Array, ' b']:
    """Which slots have nothing left to decode."""
    return jnp.all(self.finished, axis=1) | (self.ages >= len(self.outputs[0]))


def begin(
  cache: DecodeCache, keys: Key[Array, 'b n'], max_decode_len: int
) -> Slots:
  """Returns slots before their first step.

  Args:
    cache: the model's, with room for n samples of `max_decode_len` tokens.
    keys: one a sample.
    max_decode_len: most tokens a sample may have, t, EOS counted.
  """
  shape = keys.shape
  zeros = jnp.zeros((max_decode_len, *shape), jnp.float32)
  return Slots(
    keys=keys,
    tokens=jnp.zeros(shape, jnp.int32),
    finished=jnp.zeros(shape, bool),
    lengths=jnp.zeros(shape, jnp.int32),
    outputs=(zeros.astype(jnp.int32), zeros, zeros),
    cache=cache,
  )


def vacate(slots: Slots) -> Slots:
  """Returns slots that all have ended, with no sample."""
  begun = jnp.full_like(slots.cache.begun, -len(slots.outputs[0]))
  return slots.replace(cache=slots.cache.replace(begun=begun))


def fill(
  slots: Slots,
  places: Int[Array, ' p'],
  memory: Memory,
  keys: Key[Array, 'p n'],
) -> Slots:
  """Begins the samples of p sources in place of those in p slots.

  Args:
    slots: b slots.
    places: int32, which; one that is not below b is left out.
    memory: of the sources.
    keys: one a sample.
  """

  def put(old, new):
    return old.at[places].set(new, mode='drop')

  cache = slots.cache
  return slots.replace(
    keys=put(slots.keys, keys),
    tokens=put(slots.tokens, 0),
    finished=put(slots.finished, False),
    lengths=put(slots.lengths, 0),
    cache=cache.replace(
      cross_keys=tuple(map(put, cache.cross_keys, memory.cross_keys)),
      cross_values=tuple(map(put, cache.cross_values, memory.cross_values)),
      source_mask=put(cache.source_mask, memory.source_mask),
      begun=put(cache.begun, cache.step),
    ),
  )


def decode(
  decode_step: DecodeStep,
  slots: Slots,
  num_ended: Int[Array, ''] | int,
  *,
  sampling: Sampling,
  num_tokens: int | None = None,
  temperature: Float[Array, ''] | None = None,
  eos_id: int = 1,
) -> Slots:
  """Draws tokens until so many slots have ended.

  The number behind a token depends on its sample's key and its position only.

  Args:
    decode_step: takes the last token of each sample and the cache, returns the
      logits of the next one and the cache.
    slots: the first step of a sample is given token 0.
    num_ended: at most b; what had ended before counts.
    sampling: how to draw.
    num_tokens: size of the tokenizer; ids from it on, and 0, are never drawn.
    temperature: instead of that of `sampling`, see there.
    eos_id: the id that ends a sample.
  """
  length = len(slots.outputs[0])

  def body(slots: Slots) -> Slots:
    idle = slots.finished | slots.ended[:, None]
    logits, cache = decode_step(slots.tokens, slots.cache)
    uniform = None if sampling.is_greedy else _uniform(slots.keys, slots.ages)
    draw = sampling(logits, uniform, num_tokens, temperature)
    place = jnp.mod(slots.cache.step, length)

    def note(output, drawn):
      # What an ended slot has is kept until somebody takes it.
      old = jax.lax.dynamic_index_in_dim(output, place, 0, keepdims=False)
      new = jnp.where(idle, old, drawn).astype(output.dtype)
      return jax.lax.dynamic_update_index_in_dim(output, new, place, 0)

    tokens = jnp.where(idle, 0, draw.tokens).astype(jnp.int32)
    return slots.replace(
      tokens=tokens,
      finished=slots.finished | (tokens == eos_id),
      lengths=slots.lengths + ~idle,
      outputs=tuple(map(note, slots.outputs, draw)),
      cache=cache,
    )

  def goes_on(slots: Slots) -> jax.Array:
    return jnp.sum(slots.ended) < num_ended

  return jax.lax.while_loop(goes_on, body, slots)


def samples(slots: Slots) -> Samples:
  """Returns what every slot has drawn so far."""
  length = len(slots.outputs[0])
  positions = jnp.arange(length)[:, None, None]
  # Where in the ring each position of a slot's samples stands.
  index = jnp.mod(slots.cache.begun[None, :, None] + positions, length)
  drawn = positions < slots.lengths[None]

  def take(output):
    output = jnp.take_along_axis(output, index, axis=0)
    return jnp.moveaxis(jnp.where(drawn, output, 0), 0, -1)

  tokens, log_probs, sampling_log_probs = map(take, slots.outputs)
  return Samples(
    tokens=tokens,
    token_log_probs=log_probs,
    token_sampling_log_probs=sampling_log_probs,
    lengths=slots.lengths,
    finished=slots.finished,
  )


def sample(
  decode_step: DecodeStep,
  cache: DecodeCache,
  keys: Key[Array, 'b n'],
  *,
  sampling: Sampling,
  max_decode_len: int,
  num_tokens: int | None = None,
  temperature: Float[Array, ''] | None = None,
  eos_id: int = 1,
) -> Samples:
  """Draws n samples of every source, until EOS or `max_decode_len` tokens.

  Args:
    decode_step: as in `decode`.
    cache: the model's, before any token.
    keys: one a sample; a greedy `sampling` only reads their shape.
    sampling: how to draw.
    max_decode_len: most tokens a sample may have, EOS counted.
    num_tokens: as in `decode`.
    temperature: as in `decode`.
    eos_id: as in `decode`.
  """
  slots = decode(
    decode_step,
    begin(cache, keys, max_decode_len),
    keys.shape[0],
    sampling=sampling,
    num_tokens=num_tokens,
    temperature=temperature,
    eos_id=eos_id,
  )
  return samples(slots)


def _uniform(keys: jax.Array, positions: jax.Array) -> jax.Array:
  def one(key, position):
    return jax.random.uniform(jax.random.fold_in(key, position))

  return jax.vmap(jax.vmap(one, (0, None)))(keys, positions)
