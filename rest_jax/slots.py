"""Slots of a policy: one program that decodes any number of sources.

A lane that has drawn a sample begins the next one of its source, and a slot
that has drawn all of them is filled with the next source, while the others go
on: nothing waits for the longest sample of a batch. See `decoding.loop`. What
comes out is what `Policy.sample` draws.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout
from jaxtyping import Array, Bool, Int, Key

from rest_jax.decoding import loop
from rest_jax.decoding.loop import Drawn, Slots
from rest_jax.decoding.sampling import Sampling
from rest_jax.models import lanes, memory
from rest_jax.policy import Policy
from rest_jax.types import DecodeCache, Params


class Shape(NamedTuple):
  """Sizes of slots; each of them compiles its own programs.

  Attributes:
    num_sources: b, what divides over the mesh.
    source_length: tokens that sources are padded to.
    num_lanes: n, samples of a source that are drawn at a time.
    num_samples: N, samples of a source.
    max_decode_len: most tokens of a sample, EOS counted.
  """

  num_sources: int
  source_length: int
  num_lanes: int
  num_samples: int
  max_decode_len: int


def empty(policy: Policy, shape: Shape) -> Slots:
  """Returns slots of a policy, all of them free."""
  return programs(policy).empty(shape)


def fill(
  policy: Policy,
  params: Params,
  slots: Slots,
  places: Int[np.ndarray, ' p'],
  encoder_input_tokens: Int[np.ndarray, 'p s'],
  keys: Key[Array, 'p N'],
) -> Slots:
  """Begins the samples of p sources; uses up the slots given.

  Args:
    policy: whose slots.
    params: its parameters.
    slots: b slots.
    places: int32, the free slot of each source; b: none, it is left out.
    encoder_input_tokens: int32, sources; 0 is padding. p is what divides over
      the mesh.
    keys: one a sample, see `sample_keys`.
  """
  tokens, keys = policy.place(encoder_input_tokens), policy.place(keys)
  places = jnp.asarray(places)
  return programs(policy).fill(params, slots, places, tokens, keys)


def decode(
  policy: Policy,
  params: Params,
  slots: Slots,
  num_free: int,
  *,
  sampling: Sampling,
  num_tokens: int | None = None,
) -> tuple[Slots, Bool[Array, ' b'], Drawn]:
  """Draws tokens until so many slots are free; uses up the slots given.

  It may stop before, when each lane has made as many steps as a sample has
  tokens at most.

  Args:
    policy: whose slots.
    params: its parameters.
    slots: b slots.
    num_free: at most b.
    sampling: how to draw. Temperatures above 0 share their compilation.
    num_tokens: as in `Policy.sample`.

  Returns:
    The slots, which of them are free, and what was drawn.

  Raises:
    ConfigurationError: num_tokens exceeds the vocabulary.
  """
  policy.check_num_tokens(num_tokens)
  temperature, sampling = sampling.traced()
  return programs(policy).decode(
    params, slots, jnp.int32(num_free), temperature, sampling, num_tokens
  )


def lower_decode(
  policy: Policy,
  params: Params,
  shape: Shape,
  *,
  sampling: Sampling,
  num_tokens: int | None = None,
) -> jax.stages.Lowered:
  """Lowers what `decode` runs, to be compiled for devices of any kind.

  Args:
    policy: whose slots.
    params: shapes with shardings, as `Policy.placed_params` gives them.
    shape: of the slots.
    sampling: as in `decode`.
    num_tokens: as in `decode`.
  """
  policy.check_num_tokens(num_tokens)
  return programs(policy).decode.lower(
    params,
    placed(policy, shape),
    jax.ShapeDtypeStruct((), jnp.int32),
    jax.ShapeDtypeStruct((), jnp.float32),
    sampling.traced()[1],
    num_tokens,
  )


def placed(policy: Policy, shape: Shape) -> Slots:
  """Returns shapes with shardings of slots of this `shape`."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    jax.eval_shape(functools.partial(_empty, policy, shape)),
    shardings(policy),
  )


def shardings(policy: Policy) -> Slots:
  """Returns how a policy's slots lie: shardings, and formats of the caches.

  The loop has its keys and values in the order of their axes. A TPU's default
  may be another, and each call of `decode` would turn all of them round twice.
  """
  place = policy.placement.sharding
  rows, layers = place('batch', None), policy.config.num_decoder_layers
  own = Format(Layout(range(len(lanes.AXES))), place(*lanes.AXES))
  return Slots(
    keys=rows,
    samples=rows,
    tokens=rows,
    cache=DecodeCache(
      self_keys=(own,) * layers,
      self_values=(own,) * layers,
      cross_keys=(place(*memory.KEY_AXES),) * layers,
      cross_values=(place(*memory.VALUE_AXES),) * layers,
      source_mask=rows,
      step=place(),
      begun=rows,
    ),
  )


class Programs(NamedTuple):
  """What is compiled for a policy, once a shape and setting.

  Slots go in and come out laid out alike, so that they compile nothing again.
  """

  empty: Any
  fill: Any
  decode: Any


@functools.cache
def programs(policy: Policy) -> Programs:
  """Returns what `empty`, `fill` and `decode` run."""
  laid_out = shardings(policy)
  return Programs(
    empty=jax.jit(
      functools.partial(_empty, policy),
      static_argnums=0,
      out_shardings=laid_out,
    ),
    fill=jax.jit(
      functools.partial(_fill, policy), donate_argnums=1, out_shardings=laid_out
    ),
    decode=jax.jit(
      functools.partial(_decode, policy),
      static_argnums=(4, 5),
      donate_argnums=1,
      out_shardings=(laid_out, None, None),
    ),
  )


def _empty(policy, shape):
  cache = policy.empty_cache(
    shape.num_sources,
    shape.source_length,
    num_samples=shape.num_lanes,
    max_decode_len=shape.max_decode_len,
  )
  return loop.empty(cache, shape.num_samples)


def _fill(policy, params, slots, places, tokens, keys):
  params = policy.inference_params(params)
  sources = policy.project_memory(params, tokens)
  return loop.fill(slots, places, sources, keys)


def _decode(policy, params, slots, num_free, temperature, sampling, num_tokens):
  params = policy.inference_params(params)
  slots, drawn = loop.decode(
    functools.partial(policy.decode_step, params),
    slots,
    num_free,
    sampling=sampling,
    num_tokens=num_tokens,
    temperature=temperature,
    eos_id=policy.config.eos_id,
  )
  return slots, slots.free, drawn
