import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

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
      max_decode_len=max_decode_len,
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
    max_decode_len=50,
  )
  jax.block_until_ready(samples)
  jax.effects_barrier()
  assert len(steps) == 4


def in_two_slots(table, keys, max_decode_len, order):
  """Draws for all sources in turn, two slots for all of them."""
  count, num_samples = keys.shape
  slots = loop.vacate(
    loop.begin(
      stub.empty_cache(2, num_samples, max_decode_len),
      keys[:2],
      max_decode_len,
    )
  )
  decode = jax.jit(
    lambda slots, num_ended: loop.decode(
      stub.table_step(table), slots, num_ended, sampling=PLAIN
    )
  )
  waiting, held, tokens = list(order), [None, None], {}
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
    slots = decode(slots, 1 if waiting else 2)
    drawn = loop.samples(slots)
    for place in np.flatnonzero(np.asarray(slots.ended)):
      if held[place] is not None:
        tokens[held[place]] = np.asarray(drawn.tokens[place])
        held[place] = None
  return np.stack([tokens[source] for source in range(count)]), slots


def test_a_slot_filled_again_draws_what_its_keys_say():
  table = stub.random_table(2)
  keys = keys_of(5, 7, 3)
  expected = draw(table, keys, 8).tokens
  for order in (range(7), range(6, -1, -1)):
    drawn, slots = in_two_slots(table, keys, 8, order)
    np.testing.assert_array_equal(drawn, expected)
  assert slots.cache.step > 8  # The ring went round.


def test_what_has_ended_is_kept_while_others_go_on():
  # From 0 on at once to the end, or else on for ever.
  table = np.full((4, 4), -30.0, np.float32)
  table[0, 1:3] = table[2, 2] = 10.0
  keys = keys_of(0, 8, 1)
  drawn = draw(table, keys, 5)
  assert 0 < np.sum(drawn.finished) < 8
  ends = np.asarray(drawn.finished)[:, 0]
  short, long = np.flatnonzero(ends)[0], np.flatnonzero(~ends)[:3]
  order = [short, *long]
  in_turn, _ = in_two_slots(table, keys[np.array(order)], 5, range(4))
  np.testing.assert_array_equal(in_turn, drawn.tokens[np.array(order)])


def test_slots_that_were_never_filled_are_free():
  slots = loop.begin(stub.empty_cache(3, 2, 4), keys_of(0, 3, 2), 4)
  assert not np.any(slots.ended)
  slots = loop.vacate(slots)
  assert np.all(slots.ended)
  assert not np.any(loop.samples(slots).lengths)
