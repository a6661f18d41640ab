import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rest_jax.decoding.sampling import Sampling
from rest_jax.errors import ConfigurationError

LOGITS = np.log(np.array([[0.1, 0.2, 0.3, 0.4]], np.float32))


@functools.partial(jax.jit, static_argnums=(0, 3))
def draw_rows(sampling, logits, uniform, num_tokens=None):
  return sampling(logits, uniform, num_tokens)


def draws(sampling, logits, uniforms, num_tokens=None):
  rows = np.broadcast_to(logits, (len(uniforms), logits.shape[-1]))
  return draw_rows(sampling, rows, np.asarray(uniforms, np.float32), num_tokens)


def test_the_uniform_number_is_a_place_in_the_cumulative_distribution():
  draw = draws(Sampling(1.0), LOGITS, [0.0, 0.09, 0.11, 0.29, 0.31, 0.61, 0.99])
  np.testing.assert_array_equal(draw.tokens, [0, 0, 1, 1, 2, 3, 3])
  expected = np.log([0.1, 0.1, 0.2, 0.2, 0.3, 0.4, 0.4])
  np.testing.assert_allclose(draw.log_probs, expected, rtol=1e-6)
  np.testing.assert_allclose(draw.sampling_log_probs, expected, rtol=1e-6)


def test_temperature_squares_probabilities_and_log_probs_stay_untempered():
  # T = 0.5: 1 : 4 : 9 : 16 of 30.
  draw = draws(Sampling(0.5), LOGITS, [0.03, 0.16, 0.46, 0.47])
  np.testing.assert_array_equal(draw.tokens, [0, 1, 2, 3])
  np.testing.assert_allclose(
    draw.log_probs, np.log([0.1, 0.2, 0.3, 0.4]), rtol=1e-5
  )
  np.testing.assert_allclose(
    draw.sampling_log_probs, np.log(np.array([1, 4, 9, 16]) / 30), rtol=1e-5
  )


@pytest.mark.parametrize(
  ('sampling', 'kept'),
  [
    (Sampling(1.0, top_k=2), [2, 3]),
    (Sampling(1.0, top_k=1), [3]),
    (Sampling(1.0, top_k=4), [0, 1, 2, 3]),
    (Sampling(1.0, top_k=9), [0, 1, 2, 3]),
    (Sampling(1.0, top_p=0.39), [3]),
    (Sampling(1.0, top_p=0.41), [2, 3]),
    (Sampling(1.0, top_p=0.69), [2, 3]),
    (Sampling(1.0, top_p=0.71), [1, 2, 3]),
    (Sampling(1.0, top_p=0.91), [0, 1, 2, 3]),
    (Sampling(1.0, epsilon=0.15), [1, 2, 3]),
    (Sampling(1.0, epsilon=0.9), [3]),
    # 0.3 and 0.4 of the best two are 0.43 and 0.57 once renormalised.
    (Sampling(1.0, top_k=2, top_p=0.56), [3]),
    (Sampling(1.0, top_k=2, top_p=0.58), [2, 3]),
    # T = 0.5 gives 0.03, 0.13, 0.3 and 0.53.
    (Sampling(0.5, epsilon=0.15), [2, 3]),
    (Sampling(0.5, top_p=0.52), [3]),
  ],
)
def test_truncations_keep_exactly_their_tokens(sampling, kept):
  draw = draws(sampling, LOGITS, np.linspace(0, 0.9999, 400))
  assert sorted(set(np.asarray(draw.tokens).tolist())) == kept
  weights = np.exp(LOGITS[0] / sampling.temperature)[kept]
  expected = np.log(weights / weights.sum())
  index = np.searchsorted(kept, draw.tokens)
  np.testing.assert_allclose(
    draw.sampling_log_probs, expected[index], atol=2e-6
  )
  np.testing.assert_allclose(
    draw.log_probs, LOGITS[0][np.asarray(draw.tokens)], atol=2e-6
  )


def test_padding_of_the_vocabulary_and_id_0_are_never_drawn():
  logits = jnp.array([[9.0, 0.0, 0.0, 0.0, 9.0, 9.0]])
  draw = draws(Sampling(1.0), logits, np.linspace(0, 0.9999, 50), num_tokens=4)
  assert set(np.asarray(draw.tokens).tolist()) == {1, 2, 3}
  np.testing.assert_allclose(draw.sampling_log_probs, np.log(1 / 3), rtol=1e-6)
  # The scorer's softmax is over everything, and so is this one.
  total = np.log(3 + 3 * np.exp(9.0))
  np.testing.assert_allclose(draw.log_probs, -total, rtol=1e-6)
  greedy = draws(Sampling(0.0), logits, [0.5], num_tokens=4)
  assert greedy.tokens[0] == 1


@pytest.mark.parametrize('vocab', [5, 16, 37, 2048, 2500, 4096])
def test_greedy_is_argmax_whatever_the_vocabulary(vocab):
  rng = np.random.default_rng(vocab)
  # Rounded, so that ties occur; of those the first counts.
  logits = rng.normal(size=(64, vocab)).round(1).astype(np.float32)
  draw = draw_rows(Sampling(0.0), logits, None)
  np.testing.assert_array_equal(draw.tokens, logits.argmax(-1))
  np.testing.assert_allclose(
    draw.log_probs,
    np.take_along_axis(
      np.asarray(jax.nn.log_softmax(logits)), draw.tokens[:, None], 1
    )[:, 0],
    rtol=1e-5,
  )
  np.testing.assert_array_equal(draw.sampling_log_probs, 0.0)


@pytest.mark.parametrize('vocab', [37, 2500])
def test_top_1_is_greedy(vocab):
  rng = np.random.default_rng(vocab)
  logits = jnp.asarray(rng.normal(size=(64, vocab)), jnp.float32)
  uniform = jnp.asarray(rng.uniform(size=64), jnp.float32)
  top = draw_rows(Sampling(0.7, top_k=1), logits, uniform)
  greedy = draw_rows(Sampling(0.0), logits, None)
  np.testing.assert_array_equal(top.tokens, greedy.tokens)
  np.testing.assert_allclose(top.log_probs, greedy.log_probs, rtol=1e-5)
  np.testing.assert_allclose(top.sampling_log_probs, 0.0, atol=1e-6)


def test_any_leading_axes():
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 20)))
  uniform = jnp.full((2, 3), 0.4)
  draw = draw_rows(Sampling(1.0), logits, uniform)
  assert draw.tokens.shape == draw.log_probs.shape == (2, 3)
  row = draw_rows(Sampling(1.0), logits[1, 2], uniform[1, 2])
  assert draw.tokens[1, 2] == row.tokens


@pytest.mark.parametrize('vocab', [16, 4096])
def test_frequencies_follow_the_softmax(vocab):
  """χ² of 10⁵ tokens against the exact distribution, at a fixed seed."""
  rng = np.random.default_rng(3)
  logits = (3 * rng.normal(size=(1, vocab))).astype(np.float32)
  sampling = Sampling(0.8, epsilon=1e-4)
  count, rows = 100_000, 2_000
  step = jax.jit(
    lambda u: sampling(jnp.broadcast_to(logits, (rows, vocab)), u).tokens
  )
  uniforms = rng.uniform(size=(count // rows, rows)).astype(np.float32)
  tokens = np.concatenate([step(u) for u in uniforms])
  exact = np.exp(logits[0].astype(np.float64) / 0.8)
  exact /= exact.sum()
  exact[exact < 1e-4] = 0
  exact /= exact.sum()
  observed = np.bincount(tokens, minlength=vocab)
  assert np.all(observed[exact == 0] == 0)
  expected = count * exact[exact > 0]
  common = expected >= 5
  chi2 = np.sum(
    (observed[exact > 0] - expected)[common] ** 2 / expected[common]
  )
  degrees = common.sum() - 1
  # The 99.9 % quantile, by Wilson and Hilferty's cube.
  scale = 2 / (9 * degrees)
  assert chi2 < degrees * (1 - scale + 3.09 * np.sqrt(scale)) ** 3


@settings(deadline=None, max_examples=200)
@given(
  logits=hnp.arrays(
    np.float32,
    21,
    elements=st.floats(-40, 40, width=32) | st.just(np.float32(-np.inf)),
  ).filter(lambda x: np.isfinite(x[1:19]).any()),
  uniform=st.floats(0, 1, exclude_max=True, width=32),
  sampling=st.sampled_from(
    [
      Sampling(0.3),
      Sampling(2.0, top_k=3),
      Sampling(0.8, top_p=0.9),
      Sampling(1.0, top_k=5, top_p=0.2, epsilon=0.1),
    ]
  ),
)
def test_what_is_drawn_was_possible(logits, uniform, sampling):
  draw = draw_rows(sampling, logits, np.float32(uniform), 19)
  token = int(draw.tokens)
  assert 0 < token < 19
  assert np.isfinite(logits[token])
  assert -np.inf < float(draw.sampling_log_probs) < 1e-5
  if sampling.top_k:
    assert np.sum(logits[1:19] > logits[token]) < sampling.top_k


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('temperature', -0.1),
    ('top_k', -1),
    ('top_p', 0.0),
    ('top_p', 1.1),
    ('epsilon', 1.0),
    ('epsilon', -0.1),
  ],
)
def test_an_impossible_setting_is_named(field, value):
  with pytest.raises(ConfigurationError, match=f'Sampling.{field}'):
    Sampling(**{field: value})
