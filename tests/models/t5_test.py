"""Parity with T5X's own network and search.

`t5x_golden.npz` was written by T5X's `network.Transformer` and `decoding` for
two networks of random weights; `checkpoint/parity_test.py` has larger ones.
"""

import pathlib

import jax
import numpy as np
import pytest
from flax import traverse_util

from rest_jax.models.config import T5Config
from rest_jax.policy import Policy
from rest_jax.sharding import Layout

ONE = Layout(data=1)
TINY = {
  'vocab_size': 24,
  'emb_dim': 8,
  'num_heads': 2,
  'num_encoder_layers': 2,
  'num_decoder_layers': 2,
  'head_dim': 6,
  'mlp_dim': 12,
}
VARIANTS = {
  't5_1_0': {'mlp_activations': ('relu',), 'logits_via_embedding': True},
  't5_1_1': {'mlp_activations': ('gelu', 'linear')},
}
SOURCES = np.array([[5, 9, 3, 1, 7, 1, 0], [4, 4, 8, 2, 6, 1, 0]], np.int32)
SOURCE_SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 0], [1] * 6 + [0]], np.int32)
TARGETS = np.array([[6, 2, 1, 8, 3, 1], [9, 5, 7, 2, 1, 0]], np.int32)
INPUTS = np.array([[0, 6, 2, 0, 8, 3], [0, 9, 5, 7, 2, 0]], np.int32)
TARGET_SEGMENTS = np.array([[1, 1, 1, 2, 2, 2], [1] * 5 + [0]], np.int32)


def logits_of(policy, params, sources, inputs, *segments):
  def run(model, sources, inputs, source_segments=None, target_segments=None):
    encoded = model.encode(sources, source_segments)
    logits = model.decode(
      encoded, sources, inputs, source_segments, target_segments
    )
    return encoded, logits

  model = policy._model
  return jax.jit(
    lambda params, *args: model.apply({'params': params}, *args, method=run)
  )(params, sources, inputs, *segments)


def assert_close_where(mask, got, expected, atol=1e-4):
  mask = np.asarray(mask)
  np.testing.assert_allclose(
    np.asarray(got)[mask], np.asarray(expected)[mask], rtol=1e-5, atol=atol
  )


@pytest.fixture(scope='module', params=list(VARIANTS))
def golden(request):
  file = np.load(pathlib.Path(__file__).with_name('t5x_golden.npz'))
  prefix = f'{request.param}/'
  values = {
    name.removeprefix(prefix): file[name]
    for name in file.files
    if name.startswith(prefix)
  }
  flat = {
    name.removeprefix('params/'): value
    for name, value in values.items()
    if name.startswith('params/')
  }
  policy = Policy(T5Config(**TINY, **VARIANTS[request.param]), ONE)
  params = traverse_util.unflatten_dict(flat, sep='/')
  return policy, params, values


def test_names_and_shapes_are_t5xs(golden):
  policy, params, _ = golden
  assert jax.tree.map(np.shape, params) == jax.tree.map(
    lambda x: x.shape, policy.abstract_params()
  )


def test_logits_equal_t5xs(golden):
  policy, params, values = golden
  _, packed = logits_of(
    policy, params, SOURCES, INPUTS, SOURCE_SEGMENTS, TARGET_SEGMENTS
  )
  assert_close_where(TARGET_SEGMENTS > 0, packed, values['packed_logits'])
  sources, inputs, targets = SOURCES.copy(), INPUTS.copy(), TARGETS.copy()
  sources[0, 4:], inputs[0, 3:], targets[0, 3:] = 0, 0, 0
  _, padded = logits_of(policy, params, sources, inputs)
  assert_close_where(targets > 0, padded, values['padded_logits'])
  # The first of two packed pairs is the same pair alone.
  assert_close_where(targets > 0, packed, padded)


def test_searches_equal_t5xs(golden):
  policy, params, values = golden
  sources = SOURCES.copy()
  sources[0, 4:] = 0
  beams = policy.beam_search(
    params, sources, num_beams=3, alpha=0.6, max_decode_len=8
  )
  # T5X puts the best last.
  np.testing.assert_array_equal(beams.tokens[:, ::-1], values['beam_tokens'])
  np.testing.assert_allclose(
    beams.scores[:, ::-1], values['beam_scores'], rtol=1e-5
  )
  greedy = policy.greedy(params, sources, max_decode_len=8)
  np.testing.assert_array_equal(greedy.tokens, values['greedy_tokens'])
