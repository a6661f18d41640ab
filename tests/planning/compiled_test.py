"""Held against the TPU's own compiler, where libtpu is installed.

One file, since libtpu is loaded by one process at a time.
"""

import dataclasses
import importlib.util
import math
import re

import jax
import jax.numpy as jnp
import pytest

from rest_jax import losses
from rest_jax import policy as policy_lib
from rest_jax.data.packing import Packing
from rest_jax.decoding.sampling import Sampling
from rest_jax.errors import ConfigurationError
from rest_jax.models.config import T5Config
from rest_jax.planning import chips, costs, counts, measure, programs, topology
from rest_jax.policy import Policy
from rest_jax.sharding import AxisRules, Layout
from rest_jax.training import early_stopping
from rest_jax.training.optimizer import Optimizer

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None,
    reason='libtpu is not installed: pip install ".[plan]" (Linux alone)',
  ),
]

LARGE = T5Config(
  vocab_size=32128,
  emb_dim=1024,
  num_heads=16,
  num_encoder_layers=1,  # No part of a decode step.
  num_decoder_layers=24,
  head_dim=64,
  mlp_dim=2816,
  dtype='bfloat16',
)
SOURCES, SAMPLES, LENGTH = 32, 8, 128


@pytest.fixture(scope='module')
def devices():
  return topology.devices(chips.parse('v5e:2x2'))


@pytest.fixture(scope='module')
def decode_step(devices):
  """The decode step of T5 1.1 large, data-parallel over 4 chips of v5e."""
  policy = Policy(LARGE, topology.OnSlice.of(Layout(), devices))
  program = programs.Sample(
    SOURCES, SAMPLES, SAMPLES, LENGTH, LENGTH, Sampling()
  )
  cache = program.placed_cache(policy)
  tokens = jax.ShapeDtypeStruct(
    (SOURCES, SAMPLES),
    jnp.int32,
    sharding=policy.placement.sharding('batch', None),
  )
  step = jax.jit(policy.decode_step, donate_argnums=2)
  params = policy.placed_inference_params()
  return step.lower(params, tokens, cache).compile(), cache


def test_a_decode_step_of_t5_1_1_large_costs_what_it_must(decode_step):
  """Measured: see docs/decisions/0015."""
  compiled, _ = decode_step
  found = costs.costs_of(compiled)
  floor = counts.decode_step(
    LARGE, SOURCES / 4, SAMPLES, LENGTH, LENGTH, output_bytes=2
  )
  assert floor.flops == pytest.approx(51.7e9, rel=1e-3)
  assert floor.flops <= found.flops <= 1.1 * floor.flops
  assert found.bytes <= 6.7e9
  assert not found.collectives


def test_no_cache_is_copied_or_transposed(decode_step):
  compiled, cache = decode_step
  assert not whole_copies(compiled.as_text(), cache)


def whole_copies(text, cache):
  """Instructions that write as much as a whole cache of a layer anew.

  Fetching into the chip's own memory, S(1), is reading; what comes back from
  there, as a copy of its own, is not.
  """
  least = min(
    math.prod(leaf.sharding.shard_shape(leaf.shape))
    for leaf in (cache.self_keys[0], cache.cross_keys[0])
  )
  written = re.compile(
    r' = \(?(\w+)\[([\d,]+)\](\{[^}]*\})?.* (copy|transpose|copy-start)\('
  )
  found = []
  for line in text.splitlines():
    match = written.search(line)
    if match is None or 'S(1)' in (match[3] or ''):
      continue
    if math.prod(map(int, match[2].split(','))) >= least:
      found.append(line.strip()[:300])
  return found


def test_a_copy_back_is_seen(decode_step):
  _, cache = decode_step
  shape = 'bf16[8,128,64,128]{3,2,1,0:T(8,128)(2,1)'
  for line, count in (
    (f'%a = {shape}}} copy(%x)', 1),
    (f'%a = {shape}S(1)}} copy(%x)', 0),
    (f'%a = ({shape}}}, {shape}S(1)}}, u32[]) copy-start(%x)', 1),
    (f'%a = ({shape}S(1)}}, {shape}}}, u32[]) copy-start(%x)', 0),
    ('%a = bf16[8,64]{1,0} copy(%x)', 0),
  ):
    assert len(whole_copies(line, cache)) == count, line


SMALL = T5Config(
  vocab_size=1024,
  emb_dim=256,
  num_heads=8,
  num_encoder_layers=3,
  num_decoder_layers=3,
  head_dim=64,
  mlp_dim=512,
  dropout_rate=0.0,
  dtype='bfloat16',
)


def test_beams_change_places_where_their_heads_are(devices):
  """Measured: see docs/decisions/0015."""
  policy = Policy(SMALL, topology.OnSlice.of(Layout(model=4), devices))
  tokens = jax.ShapeDtypeStruct(
    (32, 128), jnp.int32, sharding=policy.placement.sharding('batch', None)
  )
  search = policy_lib._beam_search.lower(
    policy, policy.placed_inference_params(), tokens, 4, 0.6, 128, 1024
  )
  found = costs.collectives_in(search.compile().as_text())
  # A chip's share of the keys of a layer.
  cache = 2 * (32 * 4) * 128 * SMALL.head_dim * SMALL.num_heads // 4
  assert found
  assert max(collective.bytes for collective in found) < cache


def small_update(rows, count, **changed):
  training = early_stopping.Training(
    Optimizer(), Packing(128, 128, rows), losses.BehavioralCloning(), count
  )
  config = dataclasses.replace(SMALL, **changed)
  return programs.Update(training, rows, count), config


@pytest.fixture(scope='module')
def fsdp(devices):
  layout = Layout(rules=AxisRules(embed='data'))
  return topology.OnSlice.of(layout, devices)


def test_an_update_is_what_it_is_by_hand(devices):
  layout = topology.OnSlice.of(Layout(), devices)
  update, config = small_update(64, 1)
  plan = measure.update(update, config, layout)
  by_hand = counts.train_flops(config, 64, 128, 128) / 4
  assert plan.costs.flops == pytest.approx(by_hand, rel=0.1)
  # Gradients of all parameters are summed over 4 chips.
  (count, size, sent) = plan.costs.collectives['all-reduce']
  assert count >= 1 and sent == pytest.approx(1.5 * size)
  # Those of layers in bfloat16, as they are made; of the tables in float32.
  assert 2 * counts.num_params(config) < size < 4 * counts.num_params(config)
  # Worked out from shapes, as the compiler says but for padding.
  memory = plan.whole.memory
  batch = 16 * 128 * 4 * 6
  expected = plan.params + plan.optimizer + batch
  assert plan.params == 4 * counts.num_params(config)
  assert memory.arguments == pytest.approx(expected, rel=0.05)
  assert memory.total <= chips.CHIPS['v5e'].memory


def test_extrapolated_layers_are_the_layers(devices):
  """Three layers from one and two, as the compiler counts three."""
  layout = topology.OnSlice.of(Layout(), devices)
  update, config = small_update(32, 1)
  plan = measure.update(update, config, layout)
  whole = costs.costs_of(update.lower(config, layout).compile())
  assert plan.costs.flops == pytest.approx(whole.flops, rel=0.02)
  assert plan.costs.bytes == pytest.approx(whole.bytes, rel=0.1)
  assert plan.costs.moved == pytest.approx(whole.moved, rel=0.02)


def test_microbatches_multiply_what_is_theirs(devices):
  layout = topology.OnSlice.of(Layout(), devices)
  one = measure.update(*small_update(64, 1), layout)
  four = measure.update(*small_update(64, 4), layout)
  assert four.costs.flops == pytest.approx(one.costs.flops, rel=0.05)
  # Each part sums its gradients anew.
  assert four.costs.moved == pytest.approx(4 * one.costs.moved, rel=0.1)


def test_fsdp_gathers_weights_and_keeps_a_part(devices, fsdp):
  update, config = small_update(64, 1)
  plan = measure.update(update, config, fsdp)
  assert plan.params == pytest.approx(counts.num_params(config), rel=0.01)
  # Each part in bfloat16 for the forward and again for the backward pass, but
  # for embeddings, of which rows are sent instead.
  gathered = plan.costs.collectives['all-gather'][1]
  assert 0 < gathered <= 4 * counts.num_params(config)


def test_a_batch_of_grow_is_what_it_is_by_hand(devices):
  layout = topology.OnSlice.of(Layout(), devices)
  # Caches larger than what a chip holds beside its main memory.
  program = programs.Sample(1024, 8, 8, 128, 32, Sampling())
  plan = measure.sample(program, SMALL, layout)
  step = counts.decode_step(SMALL, 256, 8, 128, 32)
  assert plan.step.flops == pytest.approx(step.flops, rel=0.15)
  start = counts.encode_flops(SMALL, 256, 128)
  cross = 2 * 256 * 128 * counts.weights(SMALL).cross * 3
  assert plan.start.flops == pytest.approx(start + cross, rel=0.1)
  assert plan.cache == pytest.approx(step.self_bytes + step.cross_bytes)
  assert plan.whole.memory.arguments >= plan.cache


def test_slots_turn_no_cache_round(devices):
  layout = topology.OnSlice.of(Layout(), devices)
  # 4 sources × 25 samples × 8 heads a chip: they fill no whole rows of lanes,
  # so that a TPU's default order of the axes is another than the loop's.
  program = programs.Sample(16, 25, 100, 128, 128, Sampling())
  cache = program.placed_cache(Policy(SMALL, layout))
  compiled = program.lower(SMALL, layout).compile()
  copies = whole_copies(compiled.as_text(), cache)
  # So small a cache may stay in the chip's own memory, and be written back.
  assert not [line for line in copies if ' copy-start(' not in line]
  held = measure.shard_bytes((cache.self_keys, cache.self_values))
  assert costs.memory_of(compiled).temporaries < 0.5 * held


def test_what_does_not_fit_is_said_and_not_raised(devices):
  layout = topology.OnSlice.of(Layout(), devices)
  update, config = small_update(4096, 1, vocab_size=32768)
  whole = measure.compile_whole(update.lower(config, layout))
  assert whole.memory is None
  assert whole.needed > chips.CHIPS['v5e'].memory
  with pytest.raises(ConfigurationError, match='even 1 of the layers need 2'):
    measure.update(update, config, layout)
