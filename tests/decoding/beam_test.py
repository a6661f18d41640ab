import importlib.util
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rest_jax.decoding import beam
from rest_jax.decoding.beam import NOTHING, beam_search, brevity_penalty

_SPEC = importlib.util.spec_from_file_location(
  'stub', pathlib.Path(__file__).with_name('stub.py')
)
stub = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(stub)


def search(table, num_beams, max_decode_len, num_sources=1, **kwargs):
  return jax.jit(
    lambda: beam_search(
      stub.table_step(table),
      stub.empty_cache(num_sources, num_beams, max_decode_len),
      batch_size=num_sources,
      num_beams=num_beams,
      max_decode_len=max_decode_len,
      **kwargs,
    )
  )()


def ended_hypotheses(table, max_decode_len, alpha):
  """All sequences that end in time, best first, by enumeration."""
  log_probs = stub.log_softmax(table)
  found = []
  for length in range(1, max_decode_len + 1):
    for body in itertools.product((0, 2, 3), repeat=length - 1):
      tokens = (*body, 1)
      score = sum(
        log_probs[a, b] for a, b in zip((0, *tokens[:-1]), tokens, strict=True)
      )
      found.append((score / ((5 + length) / 6) ** alpha, tokens))
  return sorted(found, reverse=True)


def test_the_penalty_by_hand():
  np.testing.assert_allclose(brevity_penalty(0.6, 1), 1.0)
  np.testing.assert_allclose(brevity_penalty(1.0, 7), 2.0)
  np.testing.assert_allclose(brevity_penalty(0.0, 100), 1.0)


@pytest.mark.parametrize('alpha', [0.0, 0.6, 1.0])
def test_a_beam_as_wide_as_the_tree_finds_the_best(alpha):
  max_decode_len = 4
  for seed in range(3):
    table = stub.random_table(seed, vocab=4)
    beams = search(table, 27, max_decode_len, alpha=alpha)
    expected = ended_hypotheses(table, max_decode_len, alpha)
    np.testing.assert_allclose(
      beams.scores[0, :10], [score for score, _ in expected[:10]], rtol=1e-5
    )
    # Sequences of the same transitions tie: hold each against its own score.
    score_of = {tokens: score for score, tokens in expected}
    found = [tuple(row) for row in np.asarray(beams.tokens)[0, :10].tolist()]
    found = [row[: row.index(1) + 1] for row in found]
    assert len(set(found)) == 10
    np.testing.assert_allclose(
      beams.scores[0, :10], [score_of[row] for row in found], rtol=1e-5
    )


def test_one_beam_without_penalty_is_greedy():
  table = stub.random_table(4)
  table[:, 1] = -9.0
  beams = search(table, 1, 6, alpha=0.0)
  tokens = [0]
  for _ in range(6):
    tokens.append(int(table[tokens[-1]].argmax()))
  np.testing.assert_array_equal(beams.tokens[0, 0], tokens[1:])


def test_best_first_and_every_source_alike():
  beams = search(stub.random_table(5), 3, 6, num_sources=4)
  assert np.all(np.diff(beams.scores, axis=1) <= 0)
  np.testing.assert_array_equal(beams.tokens, beams.tokens[:1].repeat(4, 0))


def test_unfinished_beams_where_none_ended():
  table = np.zeros((4, 4), np.float32)
  table[:, 1] = -1e9
  table[:, 2] = 1.0
  beams = search(table, 2, 3, alpha=0.6)
  np.testing.assert_array_equal(beams.tokens[0, 0], [2, 2, 2])
  expected = 3 * stub.log_softmax(table)[0, 2]
  np.testing.assert_allclose(beams.scores[0, 0], expected, rtol=1e-5)


def test_slots_stay_empty_where_too_few_ended():
  table = np.full((4, 4), -50.0, np.float32)
  table[:, 1] = 50.0
  table[:, 2] = 0.0
  beams = search(table, 3, 1)
  np.testing.assert_array_equal(beams.tokens[0], [[1], [0], [0]])
  np.testing.assert_allclose(beams.scores[0, 1:], NOTHING)


def test_padding_of_the_vocabulary_is_never_taken():
  table = stub.random_table(6, vocab=6)
  table[:, 0] = 5.0
  table[:, 4:] = 5.0
  beams = search(table, 3, 5, num_tokens=4)
  tokens = np.asarray(beams.tokens)
  assert tokens.max() < 4
  lengths = (tokens > 0).sum(-1)
  for row, length in zip(tokens[0], lengths[0], strict=True):
    assert np.all(row[:length] > 0)


def test_the_cache_follows_its_beam():
  """Logits made from the cached history equal those made from the beam."""
  table = stub.random_table(7)
  decode_step = stub.table_step(table)

  def from_history(tokens, cache):
    logits, cache = decode_step(tokens, cache)
    history = jnp.moveaxis(cache.self_keys[0], 1, 2)
    weights = jnp.arange(1, history.shape[-1] + 1)[None, None, :]
    mixed = jnp.sum(history * weights, axis=-1) % 5
    return logits + 2.0 * jax.nn.one_hot(mixed, 6), cache

  max_decode_len = 5
  beams = jax.jit(
    lambda: beam_search(
      from_history,
      stub.empty_cache(1, 4, max_decode_len),
      batch_size=1,
      num_beams=4,
      alpha=0.0,
      max_decode_len=max_decode_len,
    )
  )()
  for tokens, score in zip(beams.tokens[0], beams.scores[0], strict=True):
    if score <= NOTHING / 2:
      continue
    total, history = 0.0, [0]
    for token in np.asarray(tokens):
      mixed = sum((i + 1) * t for i, t in enumerate(history)) % 5
      logits = table[history[-1]] + 2.0 * np.eye(6)[mixed]
      total += stub.log_softmax(logits)[token]
      history.append(int(token))
      if token == 1:
        break
    np.testing.assert_allclose(score, total, rtol=1e-4)


@pytest.mark.parametrize(
  ('groups', 'sources', 'heads', 'beams'), [(2, 1, 3, 4), (1, 4, 2, 3)]
)
def test_lanes_are_reordered_within_each_source_and_head(
  groups, sources, heads, beams
):
  rng = np.random.default_rng(0)
  shape = (groups, 5, 2, heads, sources, beams)
  cache = rng.normal(size=shape).astype(np.float32)
  chosen = rng.integers(0, beams, (groups, sources, beams), dtype=np.int32)
  expected = np.empty_like(cache)
  for group, source in np.ndindex(groups, sources):
    expected[group, ..., source, :] = cache[group, ..., source, :][
      ..., chosen[group, source]
    ]
  lanes = jnp.asarray(cache.reshape(groups, 5, 2, -1))
  got = beam._gather_lanes(lanes, jnp.asarray(chosen.reshape(-1, beams)))
  np.testing.assert_array_equal(got, expected.reshape(lanes.shape))


def test_no_cache_is_sent_around_where_heads_are_split():
  devices = np.array(jax.devices()[:4]).reshape(2, 2)
  mesh = jax.sharding.Mesh(devices, ('data', 'model'))

  def placed(shape, dtype, *axes):
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  # Two groups of 4 heads × 3 sources × 4 beams.
  lanes = placed((2, 5, 16, 48), jnp.float32, 'data', None, None, 'model')
  beams = placed((6, 4), jnp.int32, 'data')
  reorder = jax.jit(beam._gather_lanes, out_shardings=lanes.sharding)
  program = reorder.lower(lanes, beams).compile().as_text()
  for sent in ('all-gather', 'all-reduce', 'all-to-all', 'permute('):
    assert sent not in program
