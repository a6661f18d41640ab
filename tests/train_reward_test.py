"""Training of rewards from files, in this process, on tiny networks."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from rest_jax import errors, progress, train_reward
from rest_jax.checkpoint import native
from rest_jax.context import Context
from rest_jax.data import packing, reward_rows
from rest_jax.data.tokenizer import ByteTokenizer
from rest_jax.models.config import T5Config
from rest_jax.rewards import learned
from rest_jax.rewards.regressor import Buckets
from rest_jax.run_directory import RunDirectory
from rest_jax.sharding import Layout
from rest_jax.training import early_stopping, optimizer

MODEL = T5Config(
  vocab_size=384,
  emb_dim=16,
  num_heads=2,
  num_encoder_layers=1,
  num_decoder_layers=1,
  head_dim=8,
  mlp_dim=16,
  dropout_rate=0.0,
)
PAIR = learned.PairFormat(max_source_length=4, max_candidate_length=8)


def settings(rows, **changes):
  return train_reward.TrainReward(
    rows=rows,
    model=MODEL,
    training=early_stopping.Training(
      optimizer.Optimizer(name='adamw', learning_rate=0.01),
      packing.Packing(source_length=64, target_length=8, rows_per_batch=4),
    ),
    stopping=early_stopping.Stopping(max_steps=80, eval_every=20, patience=2),
    pair=PAIR,
    buckets=Buckets(lengths=(14,), tokens_per_batch=448),
    held_out=0.2,
    **changes,
  )


@pytest.fixture
def context(tmp_path):
  directory = RunDirectory(tmp_path / 'run')
  data = directory.stage('data')
  data.begin({}, {})
  ByteTokenizer().save(data.folder)
  data.commit({}, 0.0)
  made = Context(
    directory=directory,
    elsewhere={},
    model=MODEL,
    layout=Layout(data=1),
    seed=0,
    progress=progress.Progress(tensorboard=None),
  )
  yield made
  made.progress.close()


def trained(context, chosen):
  stage = context.directory.stage('reward')
  stage.begin({}, {})
  train_reward.run(context, stage, chosen)
  return stage


def texts(count, rng):
  """Words of a and b; what is good in them is that they have many a."""
  return [''.join(rng.choice(['a', 'b'], 8)) for _ in range(count)]


def goodness(text):
  return text.count('a') / 8


@pytest.fixture(scope='module')
def scored(tmp_path_factory):
  rng = np.random.default_rng(0)
  path = tmp_path_factory.mktemp('scored') / 'rows.tsv'
  lines = ['source\tcandidate\tscore']
  lines += [
    f's{i // 4}\t{t}\t{goodness(t)}' for i, t in enumerate(texts(400, rng))
  ]
  lines.append('s0\tfar too long\t1.0')
  path.write_text('\n'.join(lines) + '\n')
  return str(path)


@pytest.fixture(scope='module')
def preferred(tmp_path_factory):
  rng = np.random.default_rng(0)
  path = tmp_path_factory.mktemp('preferred') / 'rows.tsv'
  lines = ['source\tbetter\tworse']
  pairs = zip(texts(400, rng), texts(400, rng), strict=True)
  for i, pair in enumerate(pairs):
    worse, better = sorted(pair, key=goodness)
    if goodness(worse) < goodness(better):
      lines.append(f's{i // 4}\t{better}\t{worse}')
  path.write_text('\n'.join(lines) + '\n')
  return str(path)


def new_pairs():
  candidates = texts(60, np.random.default_rng(1))
  return (
    [f's{i}' for i in range(60)],
    candidates,
    list(map(goodness, candidates)),
  )


def test_a_source_of_two_documents_is_on_one_side(context, scored):
  rows = [
    reward_rows.Example(f'source {i % 13}', ('a',), 0.5, f'document {i % 10}')
    for i in range(130)
  ]
  chosen = settings(reward_rows.ScoredFile(scored))
  train, kept = train_reward._split(chosen, iter(rows[:40]))
  assert train and kept
  assert not {r.source for r in train} & {r.source for r in kept}
  with pytest.raises(errors.DataError, match='have all sources'):
    train_reward._split(chosen, iter(rows))


@pytest.mark.slow
def test_an_ensemble_learns_scores(context, scored):
  chosen = settings(reward_rows.ScoredFile(scored), num_members=2)
  stage = trained(context, chosen)
  counts = stage.manifest['counts']
  assert counts['members'] == 2
  assert counts['too_long'] == 1
  assert counts['rows'] + counts['held_out'] == 400
  # A quarter of the pairs are tied in the scores; all others are right.
  assert counts['accuracy'] == pytest.approx(0.75, abs=0.02)
  assert counts['tau_within'] > 0.7
  assert 0 < counts['disagreement'] < 0.2

  reward = learned.Learned()
  reward.open(lambda: train_reward.open_ensemble(context, chosen))
  sources, candidates, wanted = new_pairs()
  given = reward.score(sources, candidates)
  assert np.corrcoef(given, wanted)[0, 1] > 0.85
  np.testing.assert_array_equal(
    reward.score(sources[::-1], candidates[::-1]), given[::-1]
  )
  # What was held out is there to be looked at, and whole sources were.
  held_out = pq.read_table(stage.folder / 'held_out.parquet').to_pydict()
  assert len(held_out['source']) == counts['held_out']
  assert all(held_out['source'].count(s) == 4 for s in held_out['source'])


def test_preferences_are_learned(context, preferred):
  chosen = settings(reward_rows.PreferredFile(preferred))
  stage = trained(context, chosen)
  assert stage.manifest['counts']['accuracy'] > 0.9
  ensemble = train_reward.open_ensemble(context, chosen)
  sources, candidates, wanted = new_pairs()
  given = ensemble.rewards(sources, candidates)[0]
  assert np.corrcoef(given, wanted)[0, 1] > 0.85
  assert np.all((given > 0) & (given < 1))


@pytest.mark.slow
def test_bfloat16_learns_too(context, scored):
  chosen = settings(reward_rows.ScoredFile(scored))
  chosen = dataclasses.replace(
    chosen, model=dataclasses.replace(MODEL, dtype='bfloat16')
  )
  counts = trained(context, chosen).manifest['counts']
  assert counts['accuracy'] == pytest.approx(0.75, abs=0.02)  # As above.


def test_rows_that_cannot_be_learned_are_an_error(context, tmp_path):
  path = tmp_path / 'rows.tsv'
  path.write_text('source\tcandidate\tscore\nx\ta\t0\nx\tb\t1\n')
  chosen = settings(reward_rows.ScoredFile(str(path)))
  with pytest.raises(
    errors.DataError, match='1 different sources or documents'
  ):
    trained(context, chosen)
  assert not context.directory.stage('reward').committed


def test_a_member_whose_network_was_deleted_is_not_made(tmp_path):
  stage = RunDirectory(tmp_path).stage('reward')
  stage.begin({}, {})
  stage.write_part(train_reward._info(0), b'{}', {'seed': 1})
  assert train_reward._made(stage, 0) is None
  native.save_params(
    stage.folder / train_reward.params_folder(0), {'a': np.zeros(2, np.float32)}
  )
  assert train_reward._made(stage, 0) == {'seed': 1}


def test_settings_that_do_not_fit(context, scored):
  rows = reward_rows.ScoredFile(scored)
  for changes, message in (
    ({'num_members': 0}, r'num_members = 0'),
    ({'buckets': Buckets(lengths=(13,))}, r'buckets\.lengths has room for 13'),
    ({'pair': learned.PairFormat()}, 'has room for'),
    ({'held_out': 1.0}, r'held_out = 1\.0'),
  ):
    with pytest.raises(errors.ConfigurationError, match=message):
      dataclasses.replace(settings(rows), **changes)
  two = reward_rows.PreferredFile(scored)
  with pytest.raises(errors.ConfigurationError, match='may need 28'):
    dataclasses.replace(
      settings(two),
      training=dataclasses.replace(
        settings(two).training, packing=packing.Packing(16, 8, 4)
      ),
    )
  small = dataclasses.replace(MODEL, vocab_size=ByteTokenizer().size)
  with pytest.raises(errors.ConfigurationError, match='one more separates'):
    trained(context, dataclasses.replace(settings(rows), model=small))


def test_every_member_says_what_it_was(context, scored):
  chosen = settings(reward_rows.ScoredFile(scored))
  chosen = dataclasses.replace(
    chosen, stopping=early_stopping.Stopping(2, 1, 1)
  )
  stage = trained(context, chosen)
  info = json.loads((stage.folder / 'member_0.json').read_text())
  assert stage.manifest['extra']['members'] == [info]
  assert stage.manifest['contents'] == {'params_0': info['content']}
  assert info['updates'] <= 2
