"""The random key of every sample, the same wherever it is drawn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

# The numbers are part of the keys of stored samples: never change them.
PURPOSES = {'grow': 1, 'evaluate': 2, 'online': 3, 'translate': 4}


def sample_keys(
  seed: int,
  purpose: str,
  step: int,
  source_ids: Int[np.ndarray, ' b'],
  num_samples: int,
) -> Key[Array, 'b n']:
  """Returns the key of every sample, independent of its batch and place.

  Folded from seed, purpose, step, source id and sample index; the position of
  each token is folded in while decoding.

  Args:
    seed: the run's.
    purpose: one of `PURPOSES`.
    step: the Grow step or the update; else 0.
    source_ids: int64, at least 0.
    num_samples: samples a source, n.

  Raises:
    ValueError: an unknown purpose.
  """
  if purpose not in PURPOSES:
    raise ValueError(f'purpose = {purpose!r}: one of {tuple(PURPOSES)}.')
  key = jax.random.fold_in(jax.random.key(seed), PURPOSES[purpose])
  key = jax.random.fold_in(key, step)
  ids = np.asarray(source_ids, np.int64)
  # JAX's integers have 32 bits here: fold both halves of an id.
  halves = np.stack([ids & 0xFFFFFFFF, ids >> 32], axis=1).astype(np.uint32)
  return _fold_samples(key, halves, num_samples)


@functools.partial(jax.jit, static_argnums=2)
def _fold_samples(key, halves, num_samples):
  def source(half):
    of_source = jax.random.fold_in(jax.random.fold_in(key, half[0]), half[1])
    return jax.vmap(functools.partial(jax.random.fold_in, of_source))(
      jnp.arange(num_samples)
    )

  return jax.vmap(source)(halves)
