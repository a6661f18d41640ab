"""Draws the next token from logits.

One uniform number a row and step, turned into a token through the inverse of
the cumulative distribution in two levels: first the block of the vocabulary,
then the token in it. Exponentials are only summed by blocks and those of the
chosen block are computed again, so nothing of the vocabulary's size is stored.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rest_jax.errors import ConfigurationError


class Draw(NamedTuple):
  """Tokens drawn, one a row.

  Attributes:
    tokens: int32 [...].
    log_probs: float32 [...], nats, of the untempered softmax over all logits.
    sampling_log_probs: float32 [...], nats, of the distribution drawn from.
  """

  tokens: jax.Array
  log_probs: jax.Array
  sampling_log_probs: jax.Array


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How to draw: temperature first, then every truncation that is set.

  All truncations read the tempered distribution over the tokens that may be
  drawn; what survives all of them is renormalised. Tokens that tie with the
  last one kept are kept.

  Attributes:
    temperature: divides the logits; 0 takes the most probable token.
    top_k: keeps the k most probable tokens (Fan et al. 2018,
      arXiv:1805.04833); 0: all.
    top_p: keeps the smallest set of tokens whose probability, renormalised
      after top-k, reaches p (nucleus, Holtzman et al. 2020, arXiv:1904.09751);
      1: all.
    epsilon: keeps tokens of at least this probability, and always the most
      probable one (Hewitt et al. 2022, arXiv:2210.15191); 0: all.
  """

  temperature: float = 0.8
  top_k: int = 0
  top_p: float = 1.0
  epsilon: float = 0.0

  def __post_init__(self):
    for name, value, valid, allowed in (
      ('temperature', self.temperature, self.temperature >= 0, 'at least 0'),
      ('top_k', self.top_k, self.top_k >= 0, 'a count, or 0 for all'),
      ('top_p', self.top_p, 0 < self.top_p <= 1, 'in (0, 1]'),
      ('epsilon', self.epsilon, 0 <= self.epsilon < 1, 'in [0, 1)'),
    ):
      if not valid:
        raise ConfigurationError(
          f'Sampling.{name} = {value!r}: set it {allowed}.'
        )

  @property
  def is_greedy(self) -> bool:
    """Whether the most probable token is taken and no number drawn."""
    return self.temperature == 0

  def traced(self) -> tuple[Float[Array, ''], 'Sampling']:
    """Returns the temperature, and the rest of what is to be static.

    Programs are compiled for the rest; temperatures above 0 share them.
    """
    temperature = jnp.float32(self.temperature)
    if self.is_greedy:
      return temperature, self
    return temperature, dataclasses.replace(self, temperature=1.0)

  def __call__(
    self,
    logits: Float[Array, '*r v'],
    uniform: Float[Array, '*r'] | None,
    num_tokens: int | None = None,
    temperature: Float[Array, ''] | None = None,
  ) -> Draw:
    """Draws one token a row.

    Args:
      logits: float32, of every row.
      uniform: float32 in [0, 1), one a row; not used when greedy.
      num_tokens: ids from this on, which only pad the vocabulary, and id 0 are
        never drawn; None: all ids may be drawn.
      temperature: float32, above 0, instead of `self.temperature`: a traced
        one, so that another temperature needs no compilation.
    """
    rows = logits.shape[:-1]
    logits = logits.reshape(-1, logits.shape[-1]).astype(jnp.float32)
    if self.is_greedy:
      draw = _take_best(logits, num_tokens)
    else:
      if temperature is None:
        temperature = self.temperature
      draw = self._draw(logits, uniform.reshape(-1), num_tokens, temperature)
    return Draw(*(x.reshape(rows) for x in draw))

  def _draw(self, logits, uniform, num_tokens, temperature):
    allowed = only_drawn(logits, num_tokens)
    best = jnp.max(allowed, axis=-1, keepdims=True)
    tempered = (allowed - best) / temperature
    tempered = self._truncate(tempered)
    blocks = _as_blocks(tempered)
    mass = jnp.sum(jnp.exp(blocks), axis=-1)
    target = uniform[:, None] * jnp.sum(mass, axis=-1, keepdims=True)
    block, below = _invert(mass, target)
    weights = jnp.exp(_take_block(blocks, block))
    # Rounding may carry it below 0, before a first token of weight 0.
    inside, _ = _invert(weights, jnp.maximum(target - below, 0.0))
    tokens = block * blocks.shape[-1] + inside
    chosen = _take(logits, tokens)
    log_probs = chosen - jax.nn.logsumexp(logits, axis=-1)
    sampling_log_probs = (chosen - best[:, 0]) / temperature - jnp.log(
      jnp.sum(mass, axis=-1)
    )
    return tokens, log_probs, sampling_log_probs

  def _truncate(self, scores: jax.Array) -> jax.Array:
    """Sets what the truncations drop to −inf; the best score is 0."""
    cut = jnp.full((scores.shape[0], 1), -jnp.inf)
    if 0 < self.top_k < scores.shape[-1]:
      cut = jax.lax.top_k(scores, self.top_k)[0][:, -1:]
    if self.top_p < 1:
      cut = _nucleus_cut(jnp.where(scores >= cut, scores, -jnp.inf), self.top_p)
    if self.epsilon > 0:
      normalizer = jax.nn.logsumexp(scores, axis=-1, keepdims=True)
      epsilon_cut = jnp.log(self.epsilon) + normalizer
      cut = jnp.maximum(cut, jnp.minimum(epsilon_cut, 0.0))
    return jnp.where(scores >= cut, scores, -jnp.inf)


def drawable(vocab_size: int, num_tokens: int) -> Bool[Array, ' v']:
  """Which ids may be drawn: not padding, which is 0 and those of no token."""
  ids = jnp.arange(vocab_size)
  return (ids > 0) & (ids < num_tokens)


def only_drawn(
  logits: Float[Array, '*r v'], num_tokens: int | None
) -> Float[Array, '*r v']:
  """Logits that are −inf for what is never drawn.

  Args:
    logits: of every row.
    num_tokens: as in `Sampling.__call__`.
  """
  if num_tokens is None:
    return logits
  return jnp.where(drawable(logits.shape[-1], num_tokens), logits, -jnp.inf)


def _take_best(logits: jax.Array, num_tokens: int | None):
  """Argmax in two levels: a plain one costs far more than max on a CPU."""
  blocks = _as_blocks(only_drawn(logits, num_tokens))
  best = jnp.max(blocks, axis=-1)
  block = jnp.argmax(best, axis=-1, keepdims=True).astype(jnp.int32)
  inside = jnp.argmax(_take_block(blocks, block[:, 0]), axis=-1)
  tokens = block[:, 0] * blocks.shape[-1] + inside.astype(jnp.int32)
  log_probs = _take(logits, tokens) - jax.nn.logsumexp(logits, axis=-1)
  return tokens, log_probs, jnp.zeros_like(log_probs)


def _as_blocks(scores: jax.Array) -> jax.Array:
  """Cuts [r, v] into [r, blocks, size], −inf where the last block ends."""
  vocab = scores.shape[-1]
  size = 128 if vocab > 2048 else 16
  padding = -vocab % size
  if padding:
    scores = jnp.pad(scores, ((0, 0), (0, padding)), constant_values=-jnp.inf)
  return scores.reshape(scores.shape[0], -1, size)


def _take_block(blocks: jax.Array, block: jax.Array) -> jax.Array:
  return jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]


def _take(scores: jax.Array, index: jax.Array) -> jax.Array:
  return jnp.take_along_axis(scores, index[:, None], axis=-1)[:, 0]


def _invert(weights: jax.Array, target: jax.Array):
  """Returns where the running sum passes the target, and the sum before it.

  Args:
    weights: float32 [r, m], at least 0, not all 0.
    target: float32 [r, 1], in [0, Σ weights) up to rounding.

  Returns:
    int32 [r] of weight > 0, and float32 [r, 1], the sum of those before it.
  """
  sums = jnp.cumsum(weights, axis=-1)
  # Sums in pieces may rise by rounding where weights are 0, and rounding may
  # carry the target past the last sum: never to a weight of 0.
  positions = jnp.arange(weights.shape[-1])[None, :]
  positive = weights > 0
  last = jnp.max(jnp.where(positive, positions, 0), axis=-1, keepdims=True)
  passed = jnp.where(positive & (sums > target), positions, last)
  index = jnp.min(passed, axis=-1, keepdims=True).astype(jnp.int32)
  before = jnp.take_along_axis(sums - weights, index, axis=-1)
  return index[:, 0], before


def _nucleus_cut(scores: jax.Array, top_p: float) -> jax.Array:
  """Returns the largest cut such that what is ≥ it has probability ≥ top_p.

  Bisects the bit patterns of the scores, which order as the numbers do, so
  the cut is exact after 31 sums and nothing is sorted.

  Args:
    scores: float32 [r, v], at most 0, −inf where dropped before.
    top_p: in (0, 1).
  """
  probabilities = jax.nn.softmax(scores, axis=-1)
  # −score is a float ≥ 0, and of those the bits, read as int32, keep the order.
  bits = jax.lax.bitcast_convert_type(jnp.abs(scores), jnp.int32)

  def halve(_, bounds):
    low, high = bounds
    middle = low + (high - low) // 2
    mass = jnp.sum(
      jnp.where(bits <= middle, probabilities, 0.0), axis=-1, keepdims=True
    )
    enough = mass >= top_p
    return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

  low = jnp.zeros((scores.shape[0], 1), jnp.int32)
  high = jnp.full_like(low, 0x7F800000)  # the bits of +inf: everything is kept
  _, high = jax.lax.fori_loop(0, 31, halve, (low, high))
  return -jax.lax.bitcast_convert_type(high, jnp.float32)
