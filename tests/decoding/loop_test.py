import importlib.util
import pathlib

import jax
import numpy as np

from rest_jax.decoding.loop import sample
from rest_jax.decoding.sampling import Sampling

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
