import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest_jax.decoding import loop
from rest_jax.decoding.loop import sample
from rest_jax.decoding.sampling import Sampling
from rest_jax.types import Memory

# Test folders are not packages: the stub is read from beside this file.
_SPEC = importlib.util.spec_from_file_location(
  'stub', pathlib.Path(__file__).with_name('stub.py')
)
stub = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(stub)

CHAIN = np.full((6, 6), -20.0, np.float32)
for _now, _next in [(0, 2), (2, 3), (3, 4), (4, 1), (1, 5), (5, 5)]:
  CHAIN[_now, _next] = 20.0


PLAIN = Sampling(1.0)


def draw(table, keys, max_decode_len, sampling=PLAIN, **kwargs):
  return jax.jit(
    lambda keys: sample(
      stub.table_step(table),
      stub.empty_cache(*keys.shape, max_decode_len),
      keys,
      sampling=sampling,
      **kwargs,
    )
  )(keys)


def keys_of(seed, *shape):
  return jax.random.split(jax.random.key(seed), shape)


def test_a_chain_is_followed_to_its_end():
  samples = draw(CHAIN, keys_of(0, 2, 3), 6)
  assert samples.tokens.shape == (2, 3, 6)
  np.testing.assert_array_equal(samples.tokens[1, 2], [2, 3, 4, 1, 0, 0])
  np.testing.assert_array_equal(samples.lengths, 4)
  assert np.all(samples.finished)
  np.testing.assert_array_equal(samples.token_log_probs[..., 4:], 0.0)


def test_what_does_not_end_is_cut_and_says_so():
  samples = draw(CHAIN, keys_of(0, 1, 2), 3)
  np.testing.assert_array_equal(samples.tokens[0, 0], [2, 3, 4])
  np.testing.assert_array_equal(samples.lengths, 3)
  assert not np.any(samples.finished)


def test_another_end_of_sequence():
  samples = draw(CHAIN, keys_of(0, 1, 1), 5, eos_id=3)
  np.testing.assert_array_equal(samples.tokens[0, 0], [2, 3, 0, 0, 0])


def test_log_probs_are_the_tables():
  table = stub.random_table(1)
  temperature = 0.7
  samples = draw(table, keys_of(3, 4, 5), 7, Sampling(temperature))
  tokens = np.asarray(samples.tokens)
  before = np.concatenate([np.zeros_like(tokens[..., :1]), tokens], -1)[
    ..., :-1
  ]
  alive = np.arange(7) < np.asarray(samples.lengths)[..., None]
  for got, logits in (
    (samples.token_log_probs, table),
    (samples.token_sampling_log_probs, table / temperature),
  ):
    expected = np.where(alive, stub.log_softmax(logits)[before, tokens], 0.0)
    np.testing.assert_allclose(got, expected, atol=1e-5)
  assert 0 < np.asarray(samples.finished).sum() < 20


def test_a_sample_depends_on_its_key_alone():
  table = stub.random_table(2)
  keys = keys_of(5, 4, 3)
  together = draw(table, keys, 8)
  shuffled = draw(table, keys[::-1, ::-1], 8)
  np.testing.assert_array_equal(together.tokens, shuffled.tokens[::-1, ::-1])
  alone = draw(table, keys[2:3, 1:2], 8)
  np.testing.assert_array_equal(together.tokens[2:3, 1:2], alone.tokens)
  assert len(np.unique(np.asarray(together.tokens).reshape(12, 8), axis=0)) > 3


def test_the_loop_stops_when_all_have_ended():
  steps = []

  def counted(tokens, cache):
    jax.debug.callback(lambda: steps.append(1))
    return stub.table_step(CHAIN)(tokens, cache)

  samples = sample(
    counted,
    stub.empty_cache(1, 2, 50),
    keys_of(0, 1, 2),
    sampling=Sampling(1.0),
  )
  jax.block_until_ready(samples)
  jax.effects_barrier()
  assert len(steps) == 4


def in_two_slots(table, keys, max_decode_len, num_lanes, order):
  """Draws for all sources in turn, two slots for all of them."""
  count, num_samples = keys.shape
  cache = stub.empty_cache(2, num_lanes, max_decode_len)
  slots = loop.empty(cache, num_samples)
  decode = jax.jit(
    lambda slots, num_free: loop.decode(
      stub.table_step(table), slots, num_free, sampling=PLAIN
    )
  )
  waiting, held = list(order), [None, None]
  tokens = np.zeros((count, num_samples * max_decode_len), np.int32)
  while waiting or held != [None, None]:
    for place in range(2):
      if held[place] is None and waiting:
        held[place] = waiting.pop(0)
        slots = loop.fill(
          slots,
          # The second is left out: there is no such slot.
          jnp.array([place, 2]),
          Memory((), (), jnp.ones((2, 1), bool)),
          keys[np.array([held[place], 0])],
        )
    slots, drawn = decode(slots, 1 if waiting else 2)
    for place, source in enumerate(held):
      there = drawn.places[:, place] >= 0
      if source is None:
        assert not there.any()
        continue
      assert not tokens[source, drawn.places[:, place][there]].any()
      tokens[source, drawn.places[:, place][there]] = drawn.tokens[:, place][
        there
      ]
      if slots.free[place]:
        held[place] = None
  return tokens.reshape(count, num_samples, max_decode_len), slots


@pytest.mark.parametrize('num_lanes', [1, 2, 3, 5])
def test_slots_and_lanes_filled_again_draw_what_their_keys_say(num_lanes):
  table = stub.random_table(2)
  keys = keys_of(5, 7, 3)
  expected = draw(table, keys, 8).tokens
  for order in (range(7), range(6, -1, -1)):
    drawn, slots = in_two_slots(table, keys, 8, num_lanes, order)
    np.testing.assert_array_equal(drawn, expected)
  assert slots.cache.step > 8  # The ring went round.


@pytest.mark.parametrize('num_lanes', [1, 3, 8])
def test_short_and_long_samples_take_turns(num_lanes):
  # From 0 on at once to the end, or else on for ever.
  table = np.full((4, 4), -30.0, np.float32)
  table[0, 1:3] = table[2, 2] = 10.0
  keys = keys_of(0, 1, 8)
  drawn = draw(table, keys, 5)
  assert 0 < np.sum(drawn.finished) < 8
  lengths = np.where(drawn.finished, 1, 5)
  np.testing.assert_array_equal(drawn.lengths, lengths)
  in_turn, slots = in_two_slots(table, keys, 5, num_lanes, [0])
  np.testing.assert_array_equal(in_turn, drawn.tokens)
  # No lane waits while a sample is left: the first free one takes the next.
  ends = np.zeros(num_lanes, int)
  for length in lengths[0]:
    ends[ends.argmin()] += length
  assert slots.cache.step == ends.max()
  # Idle lanes see no key but their own, however long they wait.
  assert np.all(slots.cache.begun == slots.cache.step)


def test_a_call_ends_after_as_many_steps_as_a_sample_may_have():
  table = np.full((4, 4), -30.0, np.float32)
  table[:, 2] = 10.0  # Nothing ends.
  slots = loop.empty(stub.empty_cache(1, 1, 5), 3)
  memory = Memory((), (), jnp.ones((1, 1), bool))
  slots = loop.fill(slots, jnp.array([0]), memory, keys_of(0, 1, 3))
  for turn in range(3):
    assert not slots.free[0]
    slots, drawn = loop.decode(stub.table_step(table), slots, 1, sampling=PLAIN)
    np.testing.assert_array_equal(
      drawn.places[:, 0, 0], 5 * turn + np.arange(5)
    )
  assert slots.free[0]


def test_slots_that_were_never_filled_are_free():
  assert not np.any(
    loop.begin(stub.empty_cache(3, 2, 4), keys_of(0, 3, 2)).free
  )
  slots = loop.empty(stub.empty_cache(3, 2, 4), 5)
  assert np.all(slots.free)
  slots, drawn = loop.decode(stub.table_step(CHAIN), slots, 3, sampling=PLAIN)
  assert np.all(drawn.places < 0)
  assert slots.cache.step == 0
