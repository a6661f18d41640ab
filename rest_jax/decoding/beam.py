"""Beam search by T5X's rules; knows neither the model nor the tokenizer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from rest_jax.decoding.loop import DecodeStep
from rest_jax.decoding.sampling import drawable
from rest_jax.types import DecodeCache

# The score of what does not exist: beams not started, slots not filled.
NOTHING = -1.0e7


class Beams(NamedTuple):
  """The hypotheses found, best first.

  Attributes:
    tokens: int32 [b, k, t], ended by EOS where finished, then 0; all 0 in slots
      that no hypothesis filled, their scores being `NOTHING`.
    scores: float32 [b, k], log-probability over the brevity penalty of
      hypotheses that ended; a source of which none did has its unfinished ones
      here, scored by their log-probability alone.
  """

  tokens: jax.Array
  scores: jax.Array


@struct.dataclass
class _State:
  """What the search carries from step to step.

  Attributes:
    step: int32 [], tokens of every live beam.
    live_tokens: int32 [b, k, t], beams that have not ended, best first.
    live_log_probs: float32 [b, k], their summed log-probabilities.
    ended_tokens: int32 [b, k, t], the best hypotheses that have, best first.
    ended_scores: float32 [b, k], `NOTHING` where there is none yet.
    cache: the model's, in the order of the live beams.
  """

  step: jax.Array
  live_tokens: jax.Array
  live_log_probs: jax.Array
  ended_tokens: jax.Array
  ended_scores: jax.Array
  cache: Any


def brevity_penalty(alpha: float, length: jax.Array | int) -> jax.Array:
  """Returns ((5 + length) / 6)^α (Wu et al. 2016, arXiv:1609.08144, eq. 14)."""
  return jnp.power((5.0 + length) / 6.0, alpha)


def beam_search(
  decode_step: DecodeStep,
  cache: Any,
  *,
  batch_size: int,
  num_beams: int,
  alpha: float = 0.6,
  max_decode_len: int,
  num_tokens: int | None = None,
  eos_id: int = 1,
) -> Beams:
  """Searches the best k sequences of every source.

  Each step takes the best 2k continuations of the k live beams: as at most k of
  them end, k always live on. The search ends at `max_decode_len`, or when no
  live beam could still beat the worst ended hypothesis of any source.

  Args:
    decode_step: takes the last token of each beam and the cache, returns the
      logits of the next one and the cache.
    cache: the model's, before any token, with k samples a source.
    batch_size: sources, b.
    num_beams: beams, k.
    alpha: exponent of the brevity penalty; 0: none.
    max_decode_len: most tokens a hypothesis may have, EOS counted.
    num_tokens: size of the tokenizer; ids from it on, and 0, are never taken.
      None: all ids may be taken.
    eos_id: the id that ends a hypothesis.
  """
  shape = (batch_size, num_beams)
  empty = jnp.zeros((*shape, max_decode_len), jnp.int32)
  nothing = jnp.full(shape, NOTHING)
  start = _State(
    step=jnp.zeros((), jnp.int32),
    live_tokens=empty,
    live_log_probs=nothing.at[:, 0].set(0.0),
    ended_tokens=empty,
    ended_scores=nothing,
    cache=cache,
  )

  def goes_on(state: _State) -> jax.Array:
    # T5X counts the start token here, hence + 1.
    bound = state.live_log_probs[:, 0] / brevity_penalty(
      alpha, max_decode_len + 1
    )
    settled = jnp.all(state.ended_scores[:, -1] > bound)
    return (state.step < max_decode_len) & ~settled

  def body(state: _State) -> _State:
    last = jax.lax.dynamic_index_in_dim(
      state.live_tokens, jnp.maximum(state.step - 1, 0), 2, keepdims=False
    )
    logits, cache = decode_step(last, state.cache)
    candidates = _candidates(state, logits, num_tokens)
    return _advance(state, cache, *candidates, alpha, eos_id)

  end = jax.lax.while_loop(goes_on, body, start)
  any_ended = jnp.any(end.ended_scores > NOTHING, axis=1, keepdims=True)
  return Beams(
    jnp.where(any_ended[..., None], end.ended_tokens, end.live_tokens),
    jnp.where(any_ended, end.ended_scores, end.live_log_probs),
  )


def _candidates(state: _State, logits: jax.Array, num_tokens: int | None):
  """Returns log-probability, beam and token of the best 2k continuations."""
  num_beams, vocab = logits.shape[1:]
  log_probs = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
  if num_tokens is not None:
    log_probs = jnp.where(drawable(vocab, num_tokens), log_probs, NOTHING)
  log_probs = log_probs + state.live_log_probs[..., None]
  # The best 2k of all beams are among the best 2k of each of them.
  count = min(2 * num_beams, vocab)
  log_probs, tokens = jax.lax.top_k(log_probs, count)
  flat = (log_probs.shape[0], num_beams * count)
  log_probs, index = jax.lax.top_k(log_probs.reshape(flat), 2 * num_beams)
  tokens = jnp.take_along_axis(tokens.reshape(flat), index, axis=1)
  return log_probs, index // count, tokens


def _advance(state, cache, log_probs, beams, tokens, alpha, eos_id) -> _State:
  """Sorts 2k continuations into the live and the ended."""
  sequences = _gather(state.live_tokens, beams)
  sequences = jax.lax.dynamic_update_index_in_dim(
    sequences, tokens, state.step, 2
  )
  ends = tokens == eos_id
  live_log_probs, live = jax.lax.top_k(
    log_probs + jnp.where(ends, NOTHING, 0.0), state.live_log_probs.shape[1]
  )
  scores = log_probs / brevity_penalty(alpha, state.step + 1)
  scores = jnp.where(ends, scores, NOTHING)
  ended_scores, ended = jax.lax.top_k(
    jnp.concatenate([state.ended_scores, scores], axis=1),
    state.ended_scores.shape[1],
  )
  ended_tokens = jnp.concatenate([state.ended_tokens, sequences], axis=1)
  return _State(
    step=state.step + 1,
    live_tokens=_gather(sequences, live),
    live_log_probs=live_log_probs,
    ended_tokens=_gather(ended_tokens, ended),
    ended_scores=ended_scores,
    cache=_reorder(cache, _gather(beams, live)),
  )


def _gather(x: jax.Array, index: jax.Array) -> jax.Array:
  """Returns [b, j, …] of [b, i, …], row by row."""
  index = index.reshape(index.shape + (1,) * (x.ndim - 2))
  return jnp.take_along_axis(x, index, axis=1)


def _reorder(cache: DecodeCache, beams: jax.Array) -> DecodeCache:
  """Puts the self-attention caches in the order of the live beams.

  Whatever is kept once a source stays as it is.
  """
  return cache.replace(
    self_keys=tuple(_gather_lanes(x, beams) for x in cache.self_keys),
    self_values=tuple(_gather_lanes(x, beams) for x in cache.self_values),
  )


def _gather_lanes(x: jax.Array, beams: jax.Array) -> jax.Array:
  """Takes beams [b, k] of [groups, …, heads × sources of a group × k].

  By a product with a permutation matrix, whose sums have one term. A gather
  moves single numbers, which takes a CPU twice as long; and heads, an axis of
  their own here, stay where they are, where over lanes as they lie a mesh that
  has split the heads would send the whole cache around in every step.
  """
  groups, count = x.shape[0], beams.shape[1]
  width = beams.size // groups  # Lanes of a head.
  first = (jnp.arange(width) // count * count)[None, :]
  source = first + beams.reshape(groups, width)
  chosen = source[:, None, :] == jnp.arange(width)[None, :, None]
  return jnp.einsum(
    'g...hi,gij->g...hj',
    x.reshape(*x.shape[:-1], -1, width),
    chosen.astype(x.dtype),
    precision=jax.lax.Precision.HIGHEST,  # All bits of float32 on a TPU, too.
  ).reshape(x.shape)
