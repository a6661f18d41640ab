"""How the self-attention cache of decoding lies in memory.

A vector unit works on rows of 128 lanes, and an array's last axis fills them:
64 features of a head would leave half of every row empty, in memory and in
time. So the last axis is heads × samples, the features stand before it and the
positions before these: `[groups, t, d, lanes]`. A step writes one position, a
block of its own, and reads each number once, without a matrix product, since
no two samples share a key. Where one source's samples do not fill the rows,
several sources form a group; self-attention never asks which source a sample
belongs to.
"""

import jax
import jax.numpy as jnp

LANES = 128


def sources_in_group(sources: int, width: int) -> int:
  """Returns how many sources share a row of lanes: a divisor of `sources`.

  The least number among those that leave the smallest share of lanes empty.

  >>> sources_in_group(8, 128), sources_in_group(64, 16)
  (1, 8)

  Args:
    sources: on one device.
    width: heads × samples a source, on one device.
  """

  def empty(count: int) -> float:
    used = count * width
    return -(-used // LANES) * LANES / used

  divisors = [m for m in range(1, sources + 1) if sources % m == 0]
  return min(divisors, key=lambda count: (empty(count), count))


def to_lanes(x: jax.Array, groups: int) -> jax.Array:
  """Returns [b, n, h, d] as [groups, d, lanes], heads slowest."""
  _, _, heads, features = x.shape
  x = x.reshape(groups, -1, heads, features)
  return x.transpose(0, 3, 2, 1).reshape(groups, features, -1)


def from_lanes(x: jax.Array, sources: int, heads: int) -> jax.Array:
  """Returns [groups, d, lanes] as [b, n, h, d]: undoes `to_lanes`."""
  groups, features, _ = x.shape
  x = x.reshape(groups, features, heads, -1).transpose(0, 3, 2, 1)
  return x.reshape(sources, -1, heads, features)


def over_lanes(x: jax.Array, lanes: int) -> jax.Array:
  """Returns [1, t, h] as [1, t, lanes], the same for all samples."""
  _, length, heads = x.shape
  x = jnp.broadcast_to(x[..., None], (1, length, heads, lanes // heads))
  return x.reshape(1, length, lanes)


def dot_keys(keys: jax.Array, query: jax.Array) -> jax.Array:
  """Returns Σ_d keys[g, t, d, l] · query[g, d, l] as [g, t, l]."""
  # XLA fuses a product into its sum, and on a CPU does not vectorise a sum over
  # any but the last axis: terms added one by one are up to ten times faster.
  return jax.lax.platform_dependent(
    keys,
    query,
    cpu=lambda keys, query: sum(
      keys[:, :, i] * query[:, None, i] for i in range(keys.shape[2])
    ),
    default=lambda keys, query: jnp.sum(keys * query[:, None], axis=2),
  )


def mix_values(values: jax.Array, weights: jax.Array) -> jax.Array:
  """Returns Σ_t values[g, t, d, l] · weights[g, t, l] as [g, d, l]."""

  def add(values, weights):
    def one(t, total):
      value = jax.lax.dynamic_index_in_dim(values, t, 1, keepdims=False)
      weight = jax.lax.dynamic_index_in_dim(weights, t, 1)
      return total + value * weight

    zeros = jnp.zeros_like(values[:, 0])
    return jax.lax.fori_loop(0, values.shape[1], one, zeros)

  return jax.lax.platform_dependent(
    values,
    weights,
    cpu=add,
    default=lambda values, weights: jnp.sum(
      values * weights[:, :, None], axis=1
    ),
  )
