"""How the self-attention cache of decoding lies in memory.

A vector unit works on rows of 128 lanes, and an array's last axis fills them:
64 features of a head would leave half of every row empty, in memory and in
time. So the last axis is heads × samples, the features stand before it and the
positions before these: `[groups, t, d, lanes]`. A step writes one position, a
block of its own, and reads each number once, without a matrix product, since
no two samples share a key. Where one source's samples do not fill the rows,
several sources form a group; self-attention never asks which source a sample
belongs to.

The positions are a ring: see `Ring`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

LANES = 128
# What the axes of keys and values are, for their layout over devices.
AXES = ('batch', 'length', 'kv', 'heads')


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


class Ring(NamedTuple):
  """Which places of a ring of keys the current tokens go to and see.

  All samples write to the same place, one after another, and begin again with
  the first after the last. So samples may begin at different steps: what a
  place held before a sample began is not seen by it.

  Attributes:
    place: int32 [], of the current tokens.
    ages: int32 [t], how many steps ago each place was written; 0: now.
    oldest: int32 [], the greatest age that any sample sees.
    seen: bool [groups, t, lanes].
  """

  place: jax.Array
  ages: jax.Array
  oldest: jax.Array
  seen: jax.Array


def ring(
  keys: jax.Array, step: jax.Array, begun: jax.Array, heads: int
) -> Ring:
  """Returns where the tokens of a step stand among the keys.

  Args:
    keys: [groups, t, d, lanes] or the shape of it.
    step: int32 [], steps made before.
    begun: int32 [b, n], at which step each sample began, fewer than t ago.
    heads: of the network.
  """
  groups, length = keys.shape[:2]
  ages = jnp.mod(step - jnp.arange(length), length)
  own = step - begun
  # A broadcast over heads is fused into the product with the keys, and keeps a
  # CPU from vectorising that: it takes two to four times as long.
  of_lanes = jnp.concatenate([own.reshape(groups, 1, -1)] * heads, axis=-1)
  return Ring(
    place=jnp.mod(step, length),
    ages=ages,
    oldest=jnp.max(own),
    seen=ages[None, :, None] <= of_lanes,
  )


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


def mix_values(values: jax.Array, weights: jax.Array, ring: Ring) -> jax.Array:
  """Returns the mean of values [g, t, d, l], weighted, as [g, d, l].

  On a CPU in the order of their ages, so that a sample gets the same bits
  wherever in the ring it stands.

  Args:
    values: float32.
    weights: float32 [g, t, l], at least 0, and 0 where a value is not seen.
    ring: the order.
  """

  def add(values, weights, place, oldest):
    def one(age, sums):
      at = jnp.mod(place - age, values.shape[1])
      value = jax.lax.dynamic_index_in_dim(values, at, 1, keepdims=False)
      weight = jax.lax.dynamic_index_in_dim(weights, at, 1)
      return sums[0] + value * weight, sums[1] + weight

    zeros = jnp.zeros_like(values[:, 0]), jnp.zeros_like(weights[:, :1])
    total, weight = jax.lax.fori_loop(0, oldest + 1, one, zeros)
    return total / weight

  def reduce(values, weights, *_):
    total = jnp.sum(values * weights[:, :, None], axis=1)
    return total / jnp.sum(weights, axis=1, keepdims=True)

  return jax.lax.platform_dependent(
    values, weights, ring.place, ring.oldest, cpu=add, default=reduce
  )
