"""Layers of one form, one after another: written out, or as one loop.

A loop compiles its body once, so compiling takes as long for 24 layers as for
2. Parameters keep T5X's names, `layers_0`, `layers_1` …; the loop stacks them
when it starts, which copies them once a pass.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


def run(layers: Sequence[nn.Module], x: jax.Array, *args: Any) -> jax.Array:
  """Returns x after each of the layers: layer(x, *args) for all in turn.

  Args:
    layers: bound modules.
    x: what goes through them.
    *args: what each of them also takes.
  """
  for layer in layers:
    x = layer(x, *args)
  return x


def run_as_loop(
  caller: nn.Module, layers: Sequence[nn.Module], x: jax.Array, *args: Any
) -> jax.Array:
  """Does the same as `run` by one loop over layers of one form.

  Numbers are those of `run` but for dropout, whose keys are split for the loop.

  Args:
    caller: the module that the layers belong to, for its dropout keys.
    layers: as in `run`, with parameters.
    x: as in `run`.
    *args: as in `run`.
  """
  layer = layers[0].clone(parent=None, name=None)
  params = jax.tree.map(
    lambda *leaves: jnp.stack(leaves),
    *[each.variables['params'] for each in layers],
  )
  keys = None
  if caller.has_rng('dropout'):
    keys = jax.random.split(caller.make_rng('dropout'), len(layers))

  def body(x, this):
    params, key = this
    rngs = None if key is None else {'dropout': key}
    return layer.apply({'params': params}, x, *args, rngs=rngs), None

  return jax.lax.scan(body, x, (params, keys))[0]
