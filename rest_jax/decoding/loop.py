"""Samples whole sequences; knows neither the model nor the tokenizer.

A slot holds one source and n lanes, each of which draws one of its samples at a
time. All lanes make a step together, a token each. One whose sample has ended
begins the next sample of the same source; a slot that has none left is free,
and may be filled with another source while the others go on. `sample` has a
lane for each sample.
"""

from collections.abc import Callable
from typing import NamedTuple

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
  """b slots of n lanes each, somewhere in their decoding.

  Attributes:
    keys: random keys [b, N], one a sample of each slot's source.
    samples: int32 [b, n], which sample each lane draws; N: none.
    tokens: int32 [b, n], the last token of each lane's sample, 0 before any.
    cache: the model's.
  """

  keys: Leaf
  samples: Leaf
  tokens: Leaf
  cache: DecodeCache

  @property
  def idle(self) -> Bool[Array, 'b n']:
    """Which lanes have no sample."""
    return self.samples == self.keys.shape[1]

  @property
  def free(self) -> Bool[Array, ' b']:
    """Which slots have nothing left to draw."""
    return jnp.all(self.idle, axis=1)


class Drawn(NamedTuple):
  """What the lanes drew, a row a step.

  Attributes:
    places: int32 [t, b, n], sample · t + position of each token among those of
      its source; −1 where a lane had no sample.
    tokens: int32 [t, b, n].
    token_log_probs: float32 [t, b, n], nats, untempered.
    token_sampling_log_probs: float32 [t, b, n], nats, as drawn.
  """

  places: Leaf
  tokens: Leaf
  token_log_probs: Leaf
  token_sampling_log_probs: Leaf


def begin(cache: DecodeCache, keys: Key[Array, 'b N']) -> Slots:
  """Returns slots with a lane for each sample, before their first step.

  Args:
    cache: the model's, with room for N samples of each source.
    keys: one a sample.
  """
  return Slots(
    keys=keys,
    samples=_first_samples(*keys.shape, keys.shape[1]),
    tokens=jnp.zeros(keys.shape, jnp.int32),
    cache=cache,
  )


def empty(cache: DecodeCache, num_samples: int) -> Slots:
  """Returns slots that are all free.

  Args:
    cache: the model's, with room for n samples of each of b sources.
    num_samples: N, of each source.
  """
  lanes = cache.begun.shape
  return Slots(
    keys=jax.random.split(jax.random.key(0), (lanes[0], num_samples)),
    samples=jnp.full(lanes, num_samples, jnp.int32),
    tokens=jnp.zeros(lanes, jnp.int32),
    cache=cache,
  )


def fill(
  slots: Slots,
  places: Int[Array, ' p'],
  memory: Memory,
  keys: Key[Array, 'p N'],
) -> Slots:
  """Begins the samples of p sources in free slots.

  Args:
    slots: b slots.
    places: int32, which; one that is not below b is left out.
    memory: of the sources.
    keys: one a sample.
  """

  def put(old, new):
    return old.at[places].set(new, mode='drop')

  cache, num_lanes = slots.cache, slots.samples.shape[1]
  return slots.replace(
    keys=put(slots.keys, keys),
    samples=put(slots.samples, _first_samples(*keys.shape, num_lanes)),
    cache=cache.replace(
      cross_keys=tuple(map(put, cache.cross_keys, memory.cross_keys)),
      cross_values=tuple(map(put, cache.cross_values, memory.cross_values)),
      source_mask=put(cache.source_mask, memory.source_mask),
    ),
  )


def decode(
  decode_step: DecodeStep,
  slots: Slots,
  num_free: Int[Array, ''] | int,
  *,
  sampling: Sampling,
  num_tokens: int | None = None,
  temperature: Float[Array, ''] | None = None,
  eos_id: int = 1,
) -> tuple[Slots, Drawn]:
  """Draws tokens until so many slots are free, t steps at most.

  The number behind a token depends on its sample's key and its position only.

  Args:
    decode_step: takes the last token of each sample and the cache, returns the
      logits of the next one and the cache.
    slots: the first step of a sample is given token 0.
    num_free: at most b; what was free before counts.
    sampling: how to draw.
    num_tokens: size of the tokenizer; ids from it on, and 0, are never drawn.
    temperature: instead of that of `sampling`, see there.
    eos_id: the id that ends a sample.
  """
  length = slots.cache.max_decode_len

  def draw(slots: Slots) -> tuple[Slots, Drawn]:
    positions = slots.cache.step - slots.cache.begun
    logits, cache = decode_step(slots.tokens, slots.cache)
    uniform = None if sampling.is_greedy else _uniform(slots, positions)
    found = sampling(logits, uniform, num_tokens, temperature)
    tokens = found.tokens.astype(jnp.int32)
    places = jnp.where(slots.idle, -1, slots.samples * length + positions)
    ended = (tokens == eos_id) | (positions + 1 >= length)
    drawn = Drawn(places, tokens, found.log_probs, found.sampling_log_probs)
    return _next(slots.replace(tokens=tokens, cache=cache), ended), drawn

  def body(carry):
    steps, slots, before = carry
    slots, drawn = draw(slots)

    def note(rows, row):
      row = row.astype(rows.dtype)
      return jax.lax.dynamic_update_index_in_dim(rows, row, steps, 0)

    return steps + 1, slots, Drawn(*map(note, before, drawn))

  def goes_on(carry) -> jax.Array:
    steps, slots, _ = carry
    return (steps < length) & (jnp.sum(slots.free) < num_free)

  none = jnp.full((length, *slots.tokens.shape), -1, jnp.int32)
  zeros = jnp.zeros(none.shape, jnp.float32)
  carry = (jnp.int32(0), slots, Drawn(none, none, zeros, zeros))
  _, slots, drawn = jax.lax.while_loop(goes_on, body, carry)
  return slots, drawn


def sample(
  decode_step: DecodeStep,
  cache: DecodeCache,
  keys: Key[Array, 'b n'],
  *,
  sampling: Sampling,
  num_tokens: int | None = None,
  temperature: Float[Array, ''] | None = None,
  eos_id: int = 1,
) -> Samples:
  """Draws n samples of every source, until EOS or t tokens.

  Args:
    decode_step: as in `decode`.
    cache: the model's, before any token, with room for t of each sample.
    keys: one a sample; a greedy `sampling` only reads their shape.
    sampling: how to draw.
    num_tokens: as in `decode`.
    temperature: as in `decode`.
    eos_id: as in `decode`.
  """
  _, drawn = decode(
    decode_step,
    begin(cache, keys),
    keys.shape[0],
    sampling=sampling,
    num_tokens=num_tokens,
    temperature=temperature,
    eos_id=eos_id,
  )
  there = drawn.places >= 0

  def take(rows):
    return jnp.moveaxis(jnp.where(there, rows, 0), 0, -1)

  tokens, log_probs, sampling_log_probs = map(take, drawn[1:])
  return Samples(
    tokens=tokens,
    token_log_probs=log_probs,
    token_sampling_log_probs=sampling_log_probs,
    lengths=jnp.sum(there, axis=0, dtype=jnp.int32),
    finished=jnp.any(tokens == eos_id, axis=-1),
  )


def _first_samples(num_sources: int, num_samples: int, num_lanes: int):
  """The samples [b, n] that lanes begin with."""
  first = jnp.minimum(jnp.arange(num_lanes, dtype=jnp.int32), num_samples)
  return jnp.broadcast_to(first, (num_sources, num_lanes))


def _next(slots: Slots, ended: Bool[Array, 'b n']) -> Slots:
  """Gives lanes whose sample has ended the next ones of their source."""
  none = slots.keys.shape[1]
  ended &= ~slots.idle
  # Samples are begun in their order; where a lane is idle, none is left.
  first = jnp.max(slots.samples, axis=1, keepdims=True) + 1
  following = first + jnp.cumsum(ended, axis=1, dtype=jnp.int32) - 1
  samples = jnp.where(ended, jnp.minimum(following, none), slots.samples)
  # Idle lanes stay before their first step: they see no key but their own.
  fresh = ended | slots.idle
  begun = jnp.where(fresh, slots.cache.step, slots.cache.begun)
  return slots.replace(
    samples=samples,
    tokens=jnp.where(fresh, 0, slots.tokens),
    cache=slots.cache.replace(begun=begun),
  )


def _uniform(slots: Slots, positions: Int[Array, 'b n']) -> Float[Array, 'b n']:
  """The numbers behind the next tokens."""

  def one(key, position):
    return jax.random.uniform(jax.random.fold_in(key, position))

  # Multiplied and summed instead of looked up: nothing for a mesh to gather.
  data = jax.random.key_data(slots.keys)
  own = jax.nn.one_hot(slots.samples, data.shape[1], dtype=data.dtype)
  data = jnp.sum(own[..., None] * data[:, None], axis=2, dtype=data.dtype)
  keys = jax.random.wrap_key_data(data, impl=jax.random.key_impl(slots.keys))
  return jax.vmap(jax.vmap(one))(keys, positions)
