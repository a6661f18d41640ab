"""Samples whole sequences; knows neither the model nor the tokenizer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Key

from rest_jax.decoding.sampling import Sampling
from rest_jax.types import Samples

# (int32 [b, n] tokens, cache) → (float32 [b, n, v] logits, cache)
DecodeStep = Callable[[jax.Array, Any], tuple[jax.Array, Any]]


@struct.dataclass
class _State:
  """What the loop carries from step to step.

  Attributes:
    step: int32 [], tokens drawn so far.
    tokens: int32 [b, n], the last token of each sample.
    finished: bool [b, n], whether it has ended with EOS.
    lengths: int32 [b, n], its tokens, EOS counted.
    outputs: int32, float32, float32 [t, b, n], tokens and both of their
      log-probabilities; time first, so that a step writes one block.
    cache: the model's.
  """

  step: jax.Array
  tokens: jax.Array
  finished: jax.Array
  lengths: jax.Array
  outputs: tuple[jax.Array, jax.Array, jax.Array]
  cache: Any


def sample(
  decode_step: DecodeStep,
  cache: Any,
  keys: Key[Array, 'b n'],
  *,
  sampling: Sampling,
  max_decode_len: int,
  num_tokens: int | None = None,
  temperature: Float[Array, ''] | None = None,
  eos_id: int = 1,
) -> Samples:
  """Draws n samples of every source, until EOS or `max_decode_len` tokens.

  The number behind a token depends on its sample's key and its position only.
  The loop ends when all samples have.

  Args:
    decode_step: takes the last token of each sample and the cache, returns the
      logits of the next one and the cache.
    cache: the model's, before any token; the first step is given token 0.
    keys: one a sample; a greedy `sampling` only reads their shape.
    sampling: how to draw.
    max_decode_len: most tokens a sample may have, EOS counted.
    num_tokens: size of the tokenizer; ids from it on, and 0, are never drawn.
    temperature: instead of that of `sampling`, see there.
    eos_id: the id that ends a sample.
  """
  shape = keys.shape

  def body(state: _State) -> _State:
    logits, cache = decode_step(state.tokens, state.cache)
    uniform = None if sampling.is_greedy else _uniform(keys, state.step)
    draw = sampling(logits, uniform, num_tokens, temperature)
    kept = [jnp.where(state.finished, 0, x).astype(x.dtype) for x in draw]
    outputs = tuple(
      jax.lax.dynamic_update_index_in_dim(output, x, state.step, 0)
      for output, x in zip(state.outputs, kept, strict=True)
    )
    finished = state.finished | (kept[0] == eos_id)
    lengths = state.lengths + ~state.finished
    return _State(state.step + 1, kept[0], finished, lengths, outputs, cache)

  def goes_on(state: _State) -> jax.Array:
    return (state.step < max_decode_len) & ~jnp.all(state.finished)

  zeros = jnp.zeros((max_decode_len, *shape), jnp.float32)
  start = _State(
    step=jnp.zeros((), jnp.int32),
    tokens=jnp.zeros(shape, jnp.int32),
    finished=jnp.zeros(shape, bool),
    lengths=jnp.zeros(shape, jnp.int32),
    outputs=(zeros.astype(jnp.int32), zeros, zeros),
    cache=cache,
  )
  end = jax.lax.while_loop(goes_on, body, start)
  tokens, log_probs, sampling_log_probs = (
    jnp.moveaxis(output, 0, -1) for output in end.outputs
  )
  return Samples(
    tokens=tokens,
    token_log_probs=log_probs,
    token_sampling_log_probs=sampling_log_probs,
    lengths=end.lengths,
    finished=end.finished,
  )


def _uniform(keys: jax.Array, position: jax.Array) -> jax.Array:
  def one(key):
    return jax.random.uniform(jax.random.fold_in(key, position))

  return jax.vmap(jax.vmap(one))(keys)
