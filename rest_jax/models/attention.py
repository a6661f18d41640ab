"""Multi-head attention, over whole sequences and one cached token at a time."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Bool, Float

from rest_jax.models import lanes
from rest_jax.models import memory as memory_lib
from rest_jax.models.config import T5Config
from rest_jax.models.layers import ATTENTION_INIT, Dense, dropout
from rest_jax.sharding import Placement

# Added to masked logits: finite, so that a row of padding alone stays finite.
MASKED = -1e10


class Attention(nn.Module):
  """T5's attention: no bias, no scaling of logits by 1/√head_dim.

  Vaswani et al. 2017, arXiv:1706.03762, section 3.2, with the scaling folded
  into the initialiser of the queries.
  """

  config: T5Config
  placement: Placement

  def setup(self):
    cfg = self.config
    joined = cfg.num_heads * cfg.head_dim

    def query_init(*args):
      return ATTENTION_INIT(*args) / jnp.sqrt(cfg.head_dim)

    def project(init):
      return Dense(cfg.emb_dim, joined, ('embed', 'joined_kv'), init, cfg.dtype)

    self.query = project(query_init)
    self.key = project(ATTENTION_INIT)
    self.value = project(ATTENTION_INIT)
    self.out = Dense(
      joined, cfg.emb_dim, ('joined_kv', 'embed'), ATTENTION_INIT, cfg.dtype
    )

  def __call__(
    self,
    inputs: Float[Array, 'b q e'],
    memory: Float[Array, 'b k e'],
    mask: Bool[Array, '#b 1 #q k'],
    bias: Float[Array, '1 h q k'] | None = None,
  ) -> Float[Array, 'b q e']:
    """Attends from every position of `inputs` to `memory` where mask is true.

    Args:
      inputs: float, what the queries are made from.
      memory: float, what the keys and values are made from.
      mask: bool, true where a query may see a key.
      bias: float, added to the logits.
    """
    query = self._heads(self.query(inputs))
    key = self._heads(self.key(memory))
    value = self._heads(self.value(memory))
    query, key = self._logit_dtype(query), self._logit_dtype(key)
    logits = jnp.einsum('bqhd,bkhd->bhqk', query, key)
    if bias is not None:
      logits = logits + bias
    weights = self._softmax(logits, mask)
    weights = dropout(self, weights, self.config.dropout_rate)
    return self.out(_join(jnp.einsum('bhqk,bkhd->bqhd', weights, value)))

  def project_memory(
    self, memory: Float[Array, 'b k e']
  ) -> tuple[Float[Array, 'b h d k'], Float[Array, 'b h k d']]:
    """Returns the keys and values of `memory`, to be used at every step."""
    key = self._heads(self.key(memory)).transpose(0, 2, 3, 1)
    value = self._heads(self.value(memory)).swapaxes(1, 2)
    return key, value

  def step_memory(
    self,
    inputs: Float[Array, 'b n e'],
    key: Float[Array, 'b h d k'],
    value: Float[Array, 'b h k d'],
    mask: Bool[Array, 'b 1 1 k'],
  ) -> Float[Array, 'b n e']:
    """Attends from one token of n samples to the memory that they share."""
    query = self._heads(self.query(inputs))
    query, key = self._logit_dtype(query), self._logit_dtype(key)
    weights = self._softmax(memory_lib.dot_keys(query, key), mask)
    return self.out(_join(memory_lib.mix_values(weights, value)))

  def step_self(
    self,
    inputs: Float[Array, 'b n e'],
    keys: Float[Array, 'g t d l'],
    values: Float[Array, 'g t d l'],
    ring: lanes.Ring,
    bias: Float[Array, '1 t h'],
  ) -> tuple[
    Float[Array, 'b n e'],
    Float[Array, 'g t d l'],
    Float[Array, 'g t d l'],
  ]:
    """Attends from one token to those before it, and adds it to them.

    Args:
      inputs: float, the current token of every sample.
      keys: float, keys of the tokens before, see `lanes`.
      values: float, values likewise.
      ring: which of them each sample sees, and where the current token goes.
      bias: float, of each key's place relative to the current token.

    Returns:
      The output, and keys and values with the current token.
    """
    groups, _, _, width = keys.shape

    def project(dense):
      return lanes.to_lanes(self._heads(dense(inputs)), groups)

    query = project(self.query)
    keys = self._write(keys, project(self.key), ring.place)
    values = self._write(values, project(self.value), ring.place)
    # Summed in float32, as a matrix unit does.
    logits = lanes.dot_keys(_wide(keys), _wide(query))
    logits = logits.astype(self._logit_dtype(query).dtype)
    logits = _wide(logits + lanes.over_lanes(bias, width))
    logits = jnp.where(ring.seen, logits, MASKED)
    weights = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
    output = lanes.mix_values(_wide(values), weights, ring)
    output = lanes.from_lanes(
      output.astype(self.config.dtype), len(inputs), self.config.num_heads
    )
    return self.out(_join(output)), keys, values

  def _write(
    self, cache: jax.Array, token: jax.Array, place: jax.Array
  ) -> jax.Array:
    # [g, d, l] into [g, t, d, l]; inside a loop this happens in place.
    token = token.astype(cache.dtype)[:, None]
    cache = jax.lax.dynamic_update_slice(cache, token, (0, place, 0, 0))
    cache = self.placement.constrain(cache, *lanes.AXES)
    # Left to choose, a TPU's compiler turns every cache round at both ends of
    # a loop, and holds it twice.
    return with_layout_constraint(cache, Layout(range(cache.ndim)))

  def _heads(self, x: jax.Array) -> jax.Array:
    cfg = self.config
    x = x.reshape(*x.shape[:-1], cfg.num_heads, cfg.head_dim)
    return self.placement.constrain(x, 'batch', 'length', 'heads', 'kv')

  def _logit_dtype(self, x: jax.Array) -> jax.Array:
    return x.astype(
      jnp.float32 if self.config.float32_attention_logits else x.dtype
    )

  def _softmax(self, logits: jax.Array, mask: jax.Array) -> jax.Array:
    weights = jax.nn.softmax(jnp.where(mask, logits, MASKED))
    return weights.astype(self.config.dtype)


def _wide(x: jax.Array) -> jax.Array:
  return x.astype(jnp.float32)


def _join(x: jax.Array) -> jax.Array:
  return x.reshape(*x.shape[:-2], -1)
