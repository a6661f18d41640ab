"""Multi-head attention, over whole sequences and one cached token at a time."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

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
  ) -> tuple[Float[Array, 'b h k d'], Float[Array, 'b h k d']]:
    """Returns the keys and values of `memory`, to be used at every step."""
    key = self._heads(self.key(memory)).swapaxes(1, 2)
    value = self._heads(self.value(memory)).swapaxes(1, 2)
    return key, value

  def step_memory(
    self,
    inputs: Float[Array, 'b n e'],
    key: Float[Array, 'b h k d'],
    value: Float[Array, 'b h k d'],
    mask: Bool[Array, 'b 1 1 k'],
  ) -> Float[Array, 'b n e']:
    """Attends from one token of n samples to the memory that they share."""
    query = self._heads(self.query(inputs))
    query, key = self._logit_dtype(query), self._logit_dtype(key)
    logits = jnp.einsum('bnhd,bhkd->bhnk', query, key)
    weights = self._softmax(logits, mask)
    return self.out(_join(jnp.einsum('bhnk,bhkd->bnhd', weights, value)))

  def step_self(
    self,
    inputs: Float[Array, 'b n e'],
    keys: Float[Array, 'b n h t d'],
    values: Float[Array, 'b n h t d'],
    step: Int[Array, ''],
    bias: Float[Array, '1 1 h t'],
  ) -> tuple[
    Float[Array, 'b n e'],
    Float[Array, 'b n h t d'],
    Float[Array, 'b n h t d'],
  ]:
    """Attends from one token to those before it, and adds it to them.

    Args:
      inputs: float, the current token of every sample.
      keys: float, keys of the tokens before; positions ≥ step are unset.
      values: float, values likewise.
      step: int32, position of the current token.
      bias: float, of each key position relative to `step`.

    Returns:
      The output, and keys and values with the current token at `step`.
    """
    query = self._logit_dtype(self._heads(self.query(inputs)))
    keys = _write(keys, self._heads(self.key(inputs)), step)
    values = _write(values, self._heads(self.value(inputs)), step)
    axes = ('batch', None, 'heads', 'length', 'kv')
    keys = self.placement.constrain(keys, *axes)
    values = self.placement.constrain(values, *axes)
    logits = jnp.einsum('bnhd,bnhtd->bnht', query, self._logit_dtype(keys))
    seen = jnp.arange(keys.shape[3]) <= step
    weights = self._softmax(logits + bias, seen[None, None, None, :])
    output = self.out(_join(jnp.einsum('bnht,bnhtd->bnhd', weights, values)))
    return output, keys, values

  def _heads(self, x: jax.Array) -> jax.Array:
    cfg = self.config
    x = x.reshape(*x.shape[:-1], cfg.num_heads, cfg.head_dim)
    return self.placement.constrain(x, 'batch', 'length', 'heads', 'kv')

  def _logit_dtype(self, x: jax.Array) -> jax.Array:
    return x.astype(
      jnp.float32 if self.config.float32_attention_logits else x.dtype
    )

  def _softmax(self, logits: jax.Array, mask: jax.Array) -> jax.Array:
    weights = jax.nn.softmax(jnp.where(mask, logits, MASKED), axis=-1)
    return weights.astype(self.config.dtype)


def _write(cache: jax.Array, token: jax.Array, step: jax.Array) -> jax.Array:
  # [b, n, h, d] into [b, n, h, t, d]; inside a loop this happens in place.
  token = token.astype(cache.dtype)[:, :, :, None, :]
  return jax.lax.dynamic_update_slice(cache, token, (0, 0, 0, step, 0))


def _join(x: jax.Array) -> jax.Array:
  return x.reshape(*x.shape[:-2], -1)
