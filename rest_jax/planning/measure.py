"""Compiles a run's programs for a slice and takes down what they cost.

Memory comes from the whole program. Operations, bytes and collectives come from
the same program with one and with two layers, extrapolated: the compiler counts
the body of a loop once, whether it runs over layers, microbatches or tokens.
"""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from rest_jax import errors
from rest_jax.models.config import T5Config
from rest_jax.planning import costs as costs_lib
from rest_jax.planning import programs
from rest_jax.planning.costs import Costs, Memory
from rest_jax.policy import Policy
from rest_jax.sharding import Layout

Lower = Callable[[T5Config, Layout], Any]
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
# What is needed, in either of two messages for a program that does not fit.
_TOO_LARGE = re.compile(
  r'(?:Used |for HLO temporaries \()([\d.]+)([KMGT]?)(?: of [\d.]+\w? hbm|\))'
)


@dataclasses.dataclass(frozen=True)
class Whole:
  """The compiler's word on a whole program.

  Attributes:
    memory: what it needs, or None where that is more than a chip has.
    needed: bytes of a chip's memory, in either case.
    seconds: that compiling took on this machine.
  """

  memory: Memory | None
  needed: float
  seconds: float


@dataclasses.dataclass(frozen=True)
class UpdatePlan:
  """An update of an Improve step, on one chip.

  Attributes:
    whole: the compiled program.
    params: bytes of parameters.
    optimizer: bytes of the optimizer's state.
    costs: of an update, all of its microbatches.
  """

  whole: Whole
  params: float
  optimizer: float
  costs: Costs


@dataclasses.dataclass(frozen=True)
class SamplePlan:
  """A batch of Grow, on one chip.

  Attributes:
    whole: the compiled program.
    params: bytes of parameters, in the dtypes that decoding reads.
    cache: bytes of keys and values, of samples and of sources.
    evaluation: bytes that evaluations have more of them than Grow: of fewer
      samples a source they decode more sources at once.
    start: costs of encoding the sources.
    step: costs of drawing one token of every sample.
  """

  whole: Whole
  params: float
  cache: float
  evaluation: float
  start: Costs
  step: Costs


def update(
  program: programs.Update, config: T5Config, layout: Layout
) -> UpdatePlan:
  """Compiles an update: whole, and by layers.

  Raises:
    ConfigurationError: the batch or the network does not divide.
  """
  state = program.state(config, layout)
  whole = compile_whole(program.lower(config, layout))
  count = program.num_microbatches
  part = dataclasses.replace(
    program, rows=program.rows // count, num_microbatches=1
  )
  costs = _by_layers(part.lower, config, layout)
  if count > 1:
    more = _by_layers(part.lower_gradient, config, layout)
    costs = costs + more * (count - 1)
  return UpdatePlan(
    whole, shard_bytes(state.params), shard_bytes(state.opt_state), costs
  )


def sample(
  program: programs.Sample,
  config: T5Config,
  layout: Layout,
  evaluations: Sequence[programs.Sample] = (),
) -> SamplePlan:
  """Compiles a batch of Grow: whole, and by layers.

  Args:
    program: Grow's.
    config: of the policy.
    layout: of decoding.
    evaluations: what else is decoded, whose memory is worked out from shapes.
  """
  policy = Policy(config, layout)
  cache = cache_bytes(program, policy)
  others = [cache_bytes(other, policy) for other in evaluations]
  return SamplePlan(
    compile_whole(program.lower(config, layout)),
    shard_bytes(policy.placed_inference_params()),
    cache,
    max([cache, *others]) - cache,
    _by_layers(program.lower_start, config, layout),
    _by_layers(program.lower_step, config, layout),
  )


def cache_bytes(program: programs.Sample, policy: Policy) -> float:
  """Bytes of the keys and values of some slots on one chip."""
  cache = program.placed_cache(policy)
  keys = (cache.self_keys, cache.cross_keys)
  return shard_bytes((keys, cache.self_values, cache.cross_values))


def shard_bytes(tree: Any) -> float:
  """Bytes of a tree of placed arrays on one chip, without padding."""
  return float(
    sum(
      math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(tree)
    )
  )


def _by_layers(lower: Lower, config: T5Config, layout: Layout) -> Costs:
  """Costs of a program from those of one and of two layers a side."""

  def with_layers(encoder: int, decoder: int) -> Costs:
    small = dataclasses.replace(
      config,
      num_encoder_layers=encoder,
      num_decoder_layers=decoder,
      scan_layers=False,
    )
    try:
      compiled = lower(small, layout).compile()
    except jax.errors.JaxRuntimeError as error:
      raise errors.ConfigurationError(
        f'even {max(encoder, decoder)} of the layers need'
        f' {_needed(error) / 1e9:,.1f} GB of a chip: set BATCH_ROWS or'
        ' generation.Batching.rows smaller, or name a larger --topology.'
      ) from error
    return costs_lib.costs_of(compiled)

  encoder, decoder = config.num_encoder_layers, config.num_decoder_layers
  one = with_layers(1, 1)
  if encoder == decoder:
    return costs_lib.extrapolate(one, with_layers(2, 2), decoder)
  of_encoder = costs_lib.extrapolate(one, with_layers(2, 1), encoder)
  of_decoder = costs_lib.extrapolate(one, with_layers(1, 2), decoder)
  return of_encoder + of_decoder - one


def compile_whole(lowered: Any) -> Whole:
  """Compiles a whole program, for its memory."""
  began = time.monotonic()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    return Whole(None, _needed(error), time.monotonic() - began)
  memory = costs_lib.memory_of(compiled)
  return Whole(memory, memory.total, time.monotonic() - began)


def _needed(error: jax.errors.JaxRuntimeError) -> float:
  """Bytes that a program needs that does not fit; raises any other error."""
  found = _TOO_LARGE.search(str(error))
  if found is None:
    raise error
  return float(found[1]) * _UNITS[found[2]]
