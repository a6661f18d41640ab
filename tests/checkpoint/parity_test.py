"""What foreign checkpoints answer, read as a run reads them.

`goldens/hf_*` are tiny models that transformers 4.57.6 made and ran
(goldens/make_hugging_face.py); the larger fixtures are read where they lie
beside the checkout.
"""

import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
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


EOS = 1


class Rule(NamedTuple):
  """How a beam search of k beams treats what has ended, and what has not.

  Attributes:
    ends_among: how many times k; of so many of the best continuations of a step
      those that are EOS end a hypothesis.
    ranks_unfinished: whether, at the last step, what has not ended is ranked
      with what has; else it is an answer only where nothing has ended.
  """

  ends_among: int
  ranks_unfinished: bool


# transformers 4.57.6, generation/utils.py: `_update_finished_beams` lets only
# the best k of the 2k continuations finish (`top_num_beam_mask`), and at
# `max_length` the stopping criteria count each of these as finished.
TRANSFORMERS = Rule(ends_among=1, ranks_unfinished=True)
# T5X, decoding.py: `beam_search` takes ended ones among all 2k, and live ones
# only for a source of which none has ended.
T5X = Rule(ends_among=2, ranks_unfinished=False)


def log_probs_of(policy, params, sources, *, num_beams, steps):
  """A function: tokens so far → log-probabilities of the next one.

  It decodes all of a hypothesis anew, without a cache.
  """
  model, apply = policy._model, policy._model.apply
  repeated = jnp.repeat(jnp.asarray(sources), num_beams, axis=0)

  @jax.jit
  def decoded(params, inputs):
    variables = {'params': params}
    encoded = apply(variables, repeated, method=model.encode)
    logits = apply(variables, encoded, repeated, inputs, method=model.decode)
    return jax.nn.log_softmax(logits, axis=-1)

  def next_log_probs(beams):
    """Of beams int32 [b, k, t]: float32 [b, k, v]."""
    length = beams.shape[-1]
    inputs = np.zeros((len(repeated), steps), np.int32)
    inputs[:, 1 : 1 + length] = beams.reshape(len(repeated), length)
    log_probs = decoded(params, jnp.asarray(inputs))[:, length]
    return np.asarray(log_probs).reshape(*beams.shape[:2], -1)

  return next_log_probs


def plain_beam_search(next_log_probs, num_sources, num_beams, steps, rule):
  """Beam search without a length penalty, a source after the other.

  Returns:
    tokens int32 [b, k, t], 0 after EOS, best first; scores float32 [b, k]. With
    T5X's rule slots that nothing fills have tokens 0 and the score -1e7.
  """
  live = np.zeros((num_sources, num_beams, 0), np.int32)
  scores = np.full((num_sources, num_beams), -1e7, np.float32)
  scores[:, 0] = 0.0
  ended = [[] for _ in range(num_sources)]
  for step in range(steps):
    sums = next_log_probs(live) + scores[..., None]
    following = np.zeros((num_sources, num_beams, step + 1), np.int32)
    for source, of_source in enumerate(sums):
      best = np.argsort(-of_source, axis=None, kind='stable')[: 2 * num_beams]
      kept = 0
      for rank, place in enumerate(best):
        beam, token = np.unravel_index(place, of_source.shape)
        tokens = [*live[source, beam], token]
        total = of_source[beam, token]
        last = rule.ranks_unfinished and step == steps - 1
        if (token == EOS or last) and rank < rule.ends_among * num_beams:
          ended[source].append((total, tokens))
        if token != EOS and kept < num_beams:
          following[source, kept], scores[source, kept] = tokens, total
          kept += 1
    live = following
  found = np.zeros((num_sources, num_beams, steps), np.int32)
  for source, hypotheses in enumerate(ended):
    if not hypotheses:
      found[source] = live[source]
      continue
    scores[source] = -1e7
    hypotheses.sort(key=lambda pair: -pair[0])
    for slot, (total, tokens) in enumerate(hypotheses[:num_beams]):
      found[source, slot, : len(tokens)] = tokens
      scores[source, slot] = total
  return found, scores


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


def test_beams_differ_from_the_origins_by_two_rules_alone(opened):
  """Where the searches differ, it is for these two rules and nothing else.

  One plain search with transformers' rules over our network finds what
  transformers found, and with T5X's what ours finds.
  """
  policy, params, expected = opened
  known, sources = expected['beam4_tokens'], expected['encoder_input_tokens']
  best_alone = known.ndim == 2  # Of each source, after the start id.
  steps = known.shape[-1] - best_alone
  next_log_probs = log_probs_of(
    policy, params, sources, num_beams=4, steps=steps
  )
  theirs, scores = plain_beam_search(
    next_log_probs, len(sources), 4, steps, TRANSFORMERS
  )
  if best_alone:
    np.testing.assert_array_equal(theirs[:, 0], known[:, 1:])
  else:
    np.testing.assert_array_equal(theirs, known)
    np.testing.assert_allclose(scores, expected['beam4_scores'], rtol=1e-4)
  tokens, scores = plain_beam_search(
    next_log_probs, len(sources), 4, steps, T5X
  )
  ours = policy.beam_search(
    params, sources, num_beams=4, alpha=0.0, max_decode_len=steps
  )
  np.testing.assert_array_equal(ours.tokens, tokens)
  np.testing.assert_allclose(ours.scores, scores, rtol=1e-4)


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
  np.testing.assert_allclose(
    beams.scores[:, ::-1], expected['beam4_scores'], rtol=1e-5
  )
  greedy = policy.greedy(params, sources, max_decode_len=12)
  np.testing.assert_array_equal(greedy.tokens, expected['greedy_tokens'])
