"""Attention to the memory that all samples of a source share.

For every source and head it is a product of few rows, one a sample. A matrix
unit takes them all together. On a CPU each is a call of its own, which costs
more than its numbers do; terms that are added one by one, for all sources and
heads at once, are three to ten times faster.
"""

import math

import jax
import jax.numpy as jnp

# What the axes are, for their layout over devices.
KEY_AXES = ('batch', 'heads', 'kv', 'length')
VALUE_AXES = ('batch', 'heads', 'length', 'kv')
# Terms of a sum that are written out; more would take long to compile.
_TERMS = 32


def dot_keys(query: jax.Array, keys: jax.Array) -> jax.Array:
  """Returns Σ_d query[b, n, h, d] · keys[b, h, d, s] as [b, h, n, s]."""

  def add(query, keys):
    rows, wide = _wide(query.swapaxes(1, 2)), _wide(keys)
    found = sum(
      rows[..., i, None] * wide[:, :, None, i] for i in range(keys.shape[2])
    )
    return found.astype(query.dtype)

  def product(query, keys):
    return jnp.einsum('bnhd,bhds->bhns', query, keys)

  return jax.lax.platform_dependent(query, keys, cpu=add, default=product)


def mix_values(weights: jax.Array, values: jax.Array) -> jax.Array:
  """Returns Σ_s weights[b, h, n, s] · values[b, h, s, d] as [b, n, h, d].

  For decoding: on a CPU it has no gradient in reverse mode.
  """

  def add(weights, values):
    length, features = values.shape[2:]
    terms = math.gcd(length, _TERMS)

    def some(turn, total):
      part, rows = (
        jax.lax.dynamic_slice_in_dim(x, turn * terms, terms, axis)
        for x, axis in ((weights, 3), (values, 2))
      )
      return total + sum(
        _wide(part[..., i, None]) * _wide(rows[:, :, None, i])
        for i in range(terms)
      )

    none = jnp.zeros((*weights.shape[:3], features), jnp.float32)
    # Hidden, or one turn would be no loop but be fused with the turn of axes
    # below, which takes two to five times as long.
    turns = jax.lax.optimization_barrier(jnp.int32(length // terms))
    total = jax.lax.fori_loop(0, turns, some, none)
    return total.swapaxes(1, 2).astype(weights.dtype)

  def product(weights, values):
    return jnp.einsum('bhns,bhsd->bnhd', weights, values)

  return jax.lax.platform_dependent(weights, values, cpu=add, default=product)


def _wide(x: jax.Array) -> jax.Array:
  return x.astype(jnp.float32)
