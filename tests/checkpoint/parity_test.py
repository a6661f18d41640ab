"""What foreign checkpoints answer, read as a run reads them.

`goldens/hf_*` are tiny models that transformers 4.57.6 made and ran
(goldens/make_hugging_face.py); the larger fixtures are read where they lie
beside the checkout.
"""

import json
import pathlib

import jax
import numpy as np
import pytest

from rest_jax.checkpoint import formats, huggingface
from rest_jax.models.config import T5Config
from rest_jax.policy import Policy
from rest_jax.sharding import Layout
from rest_jax.types import Batch

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
FIXTURES = (pathlib.Path(__file__).parents[2] / '../shared/fixtures').resolve()
FOLDERS = {
  'mt5': GOLDENS / 'hf_mt5',
  'byt5': GOLDENS / 'hf_byt5',
  'umt5': GOLDENS / 'hf_umt5',
  't5_v1_0': FIXTURES / 'hf_t5_v1_0_tiny',
  't5_v1_1': FIXTURES / 'hf_t5_v1_1_tiny',
}


def run(policy, params, batch):
  """Encoder output, logits and the log-probability of every sequence."""
  model, apply = policy._model, policy._model.apply

  @jax.jit
  def forward(params, batch):
    sources = batch.encoder_input_tokens
    variables = {'params': params}
    encoded = apply(variables, sources, method=model.encode)
    logits = apply(
      variables,
      encoded,
      sources,
      batch.decoder_input_tokens,
      method=model.decode,
    )
    scores = policy.score(params, batch).log_probs
    return encoded, logits, scores * batch.decoder_loss_weights

  return [np.asarray(x) for x in forward(params, batch)]


@pytest.fixture(scope='module', params=list(FOLDERS))
def opened(request):
  folder = FOLDERS[request.param]
  if not folder.exists():
    pytest.skip('the fixtures do not lie beside this checkout')
  policy = Policy(huggingface.read_config(folder), Layout(data=1))
  params = huggingface.restore_params(folder, policy.placed_params())
  return policy, params, np.load(folder / 'expected.npz')


def test_encoder_output_and_logits_are_the_origins(opened):
  policy, params, expected = opened
  targets = expected['decoder_target_tokens']
  batch = Batch(
    encoder_input_tokens=expected['encoder_input_tokens'],
    decoder_input_tokens=expected['decoder_input_tokens'],
    decoder_target_tokens=targets,
    decoder_loss_weights=(targets > 0).astype(np.float32),
  )
  encoded, logits, _ = run(policy, params, batch)
  for got, known, where in (
    (encoded, expected['encoded'], batch.encoder_input_tokens > 0),
    (logits, expected['logits'], targets > 0),
  ):
    scale = max(1, np.abs(known[where]).max())
    np.testing.assert_allclose(
      got[where], known[where], rtol=0, atol=1e-4 * scale
    )


def test_greedy_outputs_are_the_origins(opened):
  policy, params, expected = opened
  known = expected['greedy_tokens']
  known = known[:, 1:] if (known[:, 0] == 0).all() else known
  greedy = policy.greedy(
    params, expected['encoder_input_tokens'], max_decode_len=known.shape[1]
  )
  np.testing.assert_array_equal(greedy.tokens[:, 0], known)


def test_beams_are_the_origins(opened):
  policy, params, expected = opened
  known = expected['beam4_tokens']
  if known.ndim == 2:  # The best of each source, after the start id.
    known = known[:, None, 1:]
  found = policy.beam_search(
    params,
    expected['encoder_input_tokens'],
    num_beams=4,
    alpha=0.0,
    max_decode_len=known.shape[-1],
  )
  ours, scores = np.asarray(found.tokens), np.asarray(found.scores)
  if 'beam4_scores' not in expected:
    np.testing.assert_array_equal(ours[:, 0], known[:, 0])
    return
  # The rules differ twice. transformers ranks what has not ended at the last
  # step with what has; we and T5X keep the ended alone, where any has. And it
  # lets a hypothesis end only among the best k continuations of a step, we and
  # T5X among the best 2k, so ours may be more probable.
  for row in range(len(ours)):
    ended = (known[row] == 1).any(axis=1)
    if not ended.any():
      np.testing.assert_array_equal(ours[row], known[row])
      continue
    theirs, of_theirs = known[row][ended], expected['beam4_scores'][row][ended]
    np.testing.assert_array_equal(ours[row, 0], theirs[0])
    assert (scores[row, : len(theirs)] >= of_theirs - 1e-4).all()
    for tokens, score in zip(theirs, of_theirs, strict=True):
      if score > scores[row, -1] + 1e-4:
        found_at = (ours[row] == tokens).all(axis=1)
        np.testing.assert_allclose(scores[row][found_at], [score], rtol=1e-4)


def test_t5xs_checkpoint_answers_as_t5x():
  folder = FIXTURES / 't5x_v1_1_tiny'
  if not folder.exists():
    pytest.skip('the fixtures do not lie beside this checkout')
  config = T5Config(**json.loads((folder / 'config.json').read_text()))
  policy = Policy(config, Layout(data=1))
  found = formats.find(folder)
  assert found.path.name == 'checkpoint_0'
  params = formats.restore(found, policy.placed_params())
  expected = np.load(folder / 'expected.npz')
  sources, targets = (
    expected['encoder_input_tokens'],
    expected['decoder_target_tokens'],
  )
  batch = Batch(
    encoder_input_tokens=sources,
    decoder_input_tokens=expected['decoder_input_tokens'],
    decoder_target_tokens=targets,
    decoder_loss_weights=(targets > 0).astype(np.float32),
  )
  encoded, logits, log_probs = run(policy, params, batch)
  for got, known, atol in (
    (encoded[sources > 0], expected['encoded'][sources > 0], 1e-4),
    # T5X itself, compiled here, is 1.5e-4 away; see docs/log.md.
    (logits[targets > 0], expected['logits'][targets > 0], 2e-4),
    (log_probs.sum(1), expected['sequence_log_probs'], 1e-4),
  ):
    np.testing.assert_allclose(got, known, rtol=1e-5, atol=atol)
  beams = policy.beam_search(params, sources, max_decode_len=12)
  np.testing.assert_array_equal(beams.tokens[:, ::-1], expected['beam4_tokens'])
  greedy = policy.greedy(params, sources, max_decode_len=12)
  np.testing.assert_array_equal(greedy.tokens, expected['greedy_tokens'])
