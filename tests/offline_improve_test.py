"""Losses of Improve on a real store: what a policy grew, and what follows."""

import dataclasses
import io
import math

import numpy as np
import pytest
from etils import epath

from rest_jax import (
  annotate,
  errors,
  evaluate,
  generation,
  grow,
  grown_data,
  improve,
  losses,
  offline_losses,
  run_directory,
  supervised,
)
from rest_jax.checkpoint import native
from rest_jax.context import PARAMS, Context
from rest_jax.data import loader, store, tokenizer
from rest_jax.data.packing import Packing
from rest_jax.decoding.sampling import Sampling
from rest_jax.models.config import T5Config
from rest_jax.progress import Progress
from rest_jax.rewards import base
from rest_jax.schedule import PerSource
from rest_jax.sharding import Layout
from rest_jax.training import early_stopping, optimizer, step

PACKING = Packing(32, 32, rows_per_batch=8)
BATCHING = generation.Batching(max_decode_len=8, rows=16, source_buckets=(8,))
SOURCES = 6
SAMPLES = 4


@dataclasses.dataclass(frozen=True)
class Bytes:
  """Scores a candidate by its UTF-8 bytes, which differ among samples."""

  info = base.RewardInfo('bytes', '1', 0.0, 40.0)

  def score(self, sources, candidates, references=None):
    del sources, references
    return np.array([len(y.encode()) for y in candidates], np.float32)


def encode(text):
  return [*tokenizer.ByteTokenizer().encode(text), tokenizer.EOS_ID]


def begun(context, name):
  stage = context.directory.stage(name)
  stage.begin({}, {})
  return stage


@pytest.fixture(scope='module')
def context(tmp_path_factory):
  """A run whose BC is untrained, and whose samples of it have rewards."""
  directory = run_directory.RunDirectory(
    epath.Path(tmp_path_factory.mktemp('run'))
  )
  context = Context(
    directory=directory,
    elsewhere={},
    model=T5Config(384, 8, 1, 1, 1, 8, 8),
    layout=Layout(data=1),
    seed=0,
    progress=Progress(io.StringIO()),
  )
  data = begun(context, 'data')
  for number, split in enumerate(('train', 'grow', 'select')):
    texts = [f'{split[0]}{i}' for i in range(SOURCES)]
    rows = [
      {
        'source_id': 10**10 * number + i,
        'source': text,
        'target': 'x',
        'source_tokens': encode(text),
        'target_tokens': encode('x'),
      }
      for i, text in enumerate(texts)
    ]
    store.write_sources(data.folder / split, rows)
  tokenizer.ByteTokenizer().save(data.folder)
  data.commit({}, 0.0)
  for seed, name in enumerate(('supervised', 'other')):
    stage = begun(context, name)
    params = context.policy.init(seed)
    content = native.save_params(stage.folder / PARAMS, params)
    stage.commit({'updates': 0}, 0.0, contents={PARAMS: content})
  samples = begun(context, 'grow_1/samples')
  settings = grow.Grow(SAMPLES, Sampling(temperature=1.0), BATCHING)
  grow.run(
    context, samples, settings, policy_name='supervised', grow_step=1
  )  # fmt: skip
  scores = begun(context, 'grow_1/scores/bytes')
  annotate.run_scores(context, scores, Bytes(), samples, 64)
  reward = begun(context, 'grow_1/reward')
  annotate.run_reward(context, reward, Bytes(), scores)
  return context


def settings(loss, **changed):
  return improve.Improve(
    training=early_stopping.Training(
      optimizer.Optimizer(learning_rate=0.01), PACKING, loss
    ),
    stopping=early_stopping.Stopping(2, 2, 1),
    schedule=PerSource('top_k', (2,)),
    original_data='none',
    allow_tau_below_mean=True,
    **changed,
  )


def written(context, folder, loss, start='supervised'):
  """The rows of Improve step 0 or, for pairs, 1, with all their figures."""
  grown = grown_data.GrownData(context, settings(loss), ('grow_1',))
  chosen = grown.selections(1)[1 if loss.paired else 0]
  rows = loader.write_rows(
    folder,
    grown.training_rows(chosen, loss),
    figures=grown_data.stored_figures(loss),
    group=2 if loss.paired else 1,
  )
  improve._score_rows(
    context, rows, settings(loss).training, improve.Step(start, 1, 0, ())
  )
  return rows


def loss_at(context, rows, loss, policy='supervised'):
  batches = loader.TrainingBatches(rows, PACKING, seed=0)
  return step.evaluate_loss(
    step.make_eval_step(context.policy, loss),
    context.params(policy),
    batches.once(),
  )


def test_at_the_policy_that_grew_them_every_ratio_is_one(context, tmp_path):
  loss = offline_losses.ClippedImportance()
  rows = written(context, tmp_path, loss)
  found = loss_at(context, rows, loss)
  assert found['loss'] == pytest.approx(-1.0, abs=1e-5)
  # At another policy they differ.
  assert abs(loss_at(context, rows, loss, 'other')['loss'] + 1.0) > 1e-3


@pytest.mark.parametrize('form', ['dpo', 'ipo'])
def test_at_the_policy_that_grew_them_no_margin_is_there(
  context, tmp_path, form
):
  loss = offline_losses.Preference(form, beta=0.5)
  rows = written(context, tmp_path, loss)
  at_reference = {'dpo': math.log(2), 'ipo': 1.0}[form]
  found = loss_at(context, rows, loss)['loss']
  assert found == pytest.approx(at_reference, abs=1e-4)
  # The margins at another policy, from its own scores of whole sequences.
  batches = loader.TrainingBatches(rows, PACKING, seed=0)
  params = context.params('other')
  scores = batches.each_token(
    lambda batch: step.target_log_probs(context.policy, params, batch)
  )
  ratios = scores - rows.figures['grown_log_probs']
  sums = np.add.reduceat(ratios, rows.target_offsets[:-1])
  margins = sums[::2] - sums[1::2]
  pair = {'dpo': offline_losses.dpo, 'ipo': offline_losses.ipo}[form]
  expected = float(np.mean(pair(margins, 0.5)))
  found = loss_at(context, rows, loss, 'other')['loss']
  assert found == pytest.approx(expected, rel=1e-4)
  assert abs(found - at_reference) > 1e-4


def test_the_better_of_a_pair_comes_first(context, tmp_path):
  rows = written(context, tmp_path, offline_losses.Preference())
  decode = tokenizer.ByteTokenizer().decode
  sizes = [
    len(decode(rows.row(i)[1].tolist()).encode()) for i in range(len(rows))
  ]
  assert len(sizes) % 2 == 0
  assert all(a > b for a, b in zip(sizes[::2], sizes[1::2], strict=True))
  for first in range(0, len(rows), 2):
    np.testing.assert_array_equal(rows.row(first)[0], rows.row(first + 1)[0])


def test_policies_score_rows_as_they_did_when_they_grew_them(context, tmp_path):
  class Both(offline_losses.Gold):
    needs = ('bc_log_probs', 'start_log_probs', 'grown_log_probs')

  rows = written(context, tmp_path, Both(), start='other')
  np.testing.assert_allclose(
    rows.figures['bc_log_probs'], rows.figures['grown_log_probs'], atol=1e-4
  )
  difference = rows.figures['start_log_probs'] - rows.figures['bc_log_probs']
  assert np.abs(difference).max() > 1e-2


def test_rows_of_higher_reward_weigh_more(context, tmp_path):
  rows = written(context, tmp_path, losses.RewardWeighted(beta=0.5))
  decode = tokenizer.ByteTokenizer().decode
  rewards = np.array(
    [
      len(decode(rows.row(i)[1].tolist()).encode()) / 40
      for i in range(len(rows))
    ]
  )
  np.testing.assert_allclose(
    rows.weights, np.exp((rewards - 1) / 0.5), rtol=1e-5
  )


@pytest.mark.parametrize(
  'loss', [offline_losses.Preference('dpo', 0.5), offline_losses.Gold()]
)
def test_an_improve_step_trains_with_the_loss(context, loss):
  stage = begun(context, f'grow_1/improve_{loss.name}')
  chosen = evaluate.Evaluate(
    'en', sampling=Sampling(1.0), batching=BATCHING, select_sources=4,
    select_samples=2,
  )  # fmt: skip
  improve.run(
    context, stage, settings(loss), chosen, Bytes(),
    improve.Step('supervised', 1, 1, ('grow_1',)),
  )  # fmt: skip
  counts = stage.manifest['counts']
  assert counts['updates'] == 2
  assert counts['select_samples'] == 2 * 8
  assert counts['select_tokens'] >= 2 * 8
  assert ('pairs' in counts) == loss.paired
  assert counts['references'] == 0


def test_a_store_without_pairs_is_an_error(context, tmp_path):
  loss = offline_losses.Preference()
  grown = grown_data.GrownData(context, settings(loss), ('grow_1',))
  none = improve.selection.Threshold(0.999)
  with pytest.raises(errors.DataError, match=r"no pair for the loss 'dpo'"):
    list(grown.training_rows((none,), loss))


def test_the_control_that_sees_no_sample_trains_by_bc():
  chosen = settings(offline_losses.Gold())
  bc = improve.loss_of(chosen, 'continued')
  assert bc == losses.BehavioralCloning()
  for control in ('none', 'random', 'permuted'):
    assert improve.loss_of(chosen, control).name == 'gold'
  smooth = settings(losses.BehavioralCloning(label_smoothing=0.1))
  assert improve.loss_of(smooth, 'continued').label_smoothing == 0.1


def test_bc_itself_cannot_be_trained_by_what_only_samples_have():
  training = settings(offline_losses.Gold()).training
  with pytest.raises(
    errors.ConfigurationError, match=r'Supervised\.training\.loss = Gold'
  ):
    supervised.Supervised(training, early_stopping.Stopping(1, 1, 1))
  with pytest.raises(
    errors.ConfigurationError, match=r'Improve\.training\.loss = Regression'
  ):
    settings(losses.Regression())


def test_samples_of_all_grow_steps_need_samples_alone():
  with pytest.raises(errors.ConfigurationError, match=r'Improve\.accumulate'):
    dataclasses.replace(
      settings(losses.BehavioralCloning(), accumulate=True),
      original_data='filtered',
    )
