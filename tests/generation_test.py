import dataclasses

import jax
import numpy as np
import pytest
import tiny_policy

from rest_jax import generation, slots
from rest_jax.decoding.sampling import Sampling
from rest_jax.errors import ConfigurationError, DataError
from rest_jax.policy import Policy
from rest_jax.sharding import AxisRules, Layout

SOURCES = [[5, 6, 1], [7, 1], [5, 6, 7, 8, 9, 1], [9, 1]]
IDS = np.array([3, 1, 4, 15])


@pytest.fixture(scope='module')
def policy():
  config = dataclasses.replace(tiny_policy.CONFIG, dropout_rate=0.0)
  return Policy(config, Layout(data=1))


@pytest.fixture(scope='module')
def params(policy):
  return policy.init(0)


def draw(policy, params, order, num_samples=3, rows=6, length=5):
  return generation.generate(
    policy,
    params,
    [SOURCES[i] for i in order],
    np.arange(len(order)) if len(order) > 12 else IDS[order],
    seed=0,
    purpose='grow',
    step=1,
    num_samples=num_samples,
    sampling=Sampling(),
    batching=generation.Batching(
      max_decode_len=length, rows=rows, source_buckets=(4, 8)
    ),
    num_tokens=12,
  )


def test_samples_belong_to_their_source_whatever_the_order(policy, params):
  straight = draw(policy, params, [0, 1, 2, 3])
  turned = draw(policy, params, [3, 2, 1, 0])
  np.testing.assert_array_equal(straight.tokens, turned.tokens[::-1])
  assert straight.tokens.max() < 12
  assert len(np.unique(straight.tokens.reshape(12, -1), axis=0)) > 3


def test_a_sample_is_the_same_to_the_bit_whatever_is_beside_it(
  policy, params, optimized
):
  order = np.arange(12) % 4
  together = draw(policy, params, order, num_samples=9, rows=9)
  for source in range(4):
    alone = draw(policy, params, [source], num_samples=9, rows=9)
    for field in dataclasses.fields(generation.Generated):
      both = getattr(together, field.name)[order == source]
      one = getattr(alone, field.name)
      np.testing.assert_array_equal(both, np.repeat(one, 3, axis=0))


def test_slots_are_compiled_once_a_bucket(policy, params):
  programs = slots.programs(policy)
  fills = programs.fill._cache_size()
  decodes = programs.decode._cache_size()
  draw(policy, params, np.arange(8) % 4, num_samples=2, rows=10)
  draw(policy, params, [0, 1], num_samples=2, rows=10)
  assert programs.fill._cache_size() == fills + 2
  assert programs.decode._cache_size() == decodes + 2


def test_slots_do_not_wait_for_the_longest_sample(policy, params, monkeypatch):
  steps = []

  def decode(*args, **kwargs):
    drawn = decode_slots(*args, **kwargs)
    steps.append(int(drawn[0].cache.step))
    return drawn

  decode_slots = slots.decode
  monkeypatch.setattr(slots, 'decode', decode)
  drawn = draw(policy, params, [0] * 80, num_samples=1, rows=8, length=40)
  longest = drawn.lengths.reshape(-1, 8).max(axis=1)
  # With the tail, when no source is left, slots are not always full.
  assert drawn.lengths.sum() / 8 <= steps[-1] < 0.7 * longest.sum()


@pytest.mark.parametrize(
  ('num_samples', 'rows', 'lanes'),
  [(1, 8, 1), (2, 8, 2), (3, 8, 2), (8, 8, 2), (25, 256, 7), (100, 8, 8)],
)
def test_lanes_are_a_quarter_of_the_samples(num_samples, rows, lanes):
  batching = generation.Batching(rows=rows, source_buckets=(8,))
  assert batching.lanes(num_samples) == lanes


def test_a_process_fills_as_many_slots_a_device_whatever_there_are():
  # Of four devices' 228 slots one process has all, or four have 57 each.
  assert generation._filled_at_once(228, 4) == 32
  assert generation._filled_at_once(57, 1) == 8
  assert generation._filled_at_once(3, 1) == 1


def test_what_is_scored_at_once_has_few_logits(policy):
  few = generation.Batching(rows=64, max_decode_len=16)
  assert generation.scored_at_once(policy, few) == policy.whole_batches(64)
  large = dataclasses.replace(
    policy, config=dataclasses.replace(policy.config, vocab_size=1 << 18)
  )
  assert generation.scored_at_once(large, few) == policy.whole_batches(8)


def test_logits_scored_at_once_are_as_many_a_device_in_every_process(
  policy, monkeypatch
):
  many = generation.Batching(rows=512, max_decode_len=16)
  large = dataclasses.replace(policy.config, vocab_size=1 << 18)
  split = Policy(large, Layout(model=2))
  assert generation.scored_at_once(split, many) == 8 * len(jax.devices())
  local = dataclasses.replace(split, local=True)
  monkeypatch.setattr(jax, 'process_count', lambda: 4)
  assert generation.scored_at_once(local, many) == 8 * len(jax.devices())
  few = dataclasses.replace(many, rows=64)
  assert generation.scored_at_once(local, few) == 64 // 4
  # Where each device has the whole vocabulary, half as many.
  whole = dataclasses.replace(
    split, layout=Layout(model=2, rules=AxisRules(vocab=None))
  )
  assert generation.scored_at_once(whole, many) == 4 * len(jax.devices())
  # One row a shard of the batch at least.
  huge = Policy(dataclasses.replace(large, vocab_size=1 << 26), Layout())
  assert generation.scored_at_once(huge, many) == len(jax.devices())


def test_many_samples_are_drawn_in_turn_the_same_samples(policy, params):
  together = draw(policy, params, [0, 1], num_samples=9, rows=18)
  in_turn = draw(policy, params, [0, 1], num_samples=9, rows=1)
  np.testing.assert_array_equal(together.tokens, in_turn.tokens)


def test_lengths_count_what_is_there(policy, params):
  drawn = draw(policy, params, [0, 1, 2, 3])
  np.testing.assert_array_equal(
    drawn.lengths, np.count_nonzero(drawn.tokens, axis=-1)
  )
  last = np.take_along_axis(drawn.tokens, drawn.lengths[..., None] - 1, -1)
  np.testing.assert_array_equal(drawn.finished, last[..., 0] == 1)


def test_beams_come_in_the_order_of_the_sources(policy, params):
  batching = generation.Batching(
    max_decode_len=5, rows=4, source_buckets=(4, 8)
  )

  def search(sources):
    return generation.generate_beam(
      policy,
      params,
      sources,
      num_beams=2,
      alpha=0.6,
      batching=batching,
      num_tokens=12,
    )

  straight, turned = search(SOURCES), search(SOURCES[::-1])
  for a, b in zip(straight, turned[::-1], strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_source_longer_than_all_buckets_is_an_error(policy, params):
  SOURCES.append([5] * 9)
  try:
    with pytest.raises(DataError, match='9 tokens'):
      generation.generate_beam(
        policy,
        params,
        SOURCES,
        num_beams=2,
        alpha=0.6,
        batching=generation.Batching(source_buckets=(4, 8)),
        num_tokens=12,
      )
  finally:
    SOURCES.pop()


@pytest.mark.parametrize('buckets', [(), (8, 4), (4, 4)])
def test_buckets_must_rise(buckets):
  with pytest.raises(ConfigurationError, match='source_buckets'):
    generation.Batching(source_buckets=buckets)
