"""A run's learned reward, exported by the public command and read again."""

import dataclasses
import json
import pathlib
import shutil
import unittest.mock

import jax.numpy as jnp
import numpy as np
import pytest
import running
from etils import epath

from rest_jax import config, errors, progress, run_policy, train_reward
from rest_jax.checkpoint import huggingface, names, transformers_peer
from rest_jax.context import Context
from rest_jax.data import packing, reward_rows
from rest_jax.data.tokenizer import ByteTokenizer, SentencePieceTokenizer
from rest_jax.models.config import T5Config
from rest_jax.policy import Policy
from rest_jax.rewards import base, learned
from rest_jax.rewards.exported import Exported
from rest_jax.rewards.regressor import Buckets
from rest_jax.run_directory import RunDirectory
from rest_jax.sharding import Layout
from rest_jax.training import early_stopping, optimizer

MODEL = T5Config(
  vocab_size=384,
  emb_dim=16,
  num_heads=2,
  num_encoder_layers=1,
  num_decoder_layers=2,
  head_dim=8,
  mlp_dim=16,
  # So that an output of its own must be made for it.
  logits_via_embedding=True,
)
SPIECE = pathlib.Path(__file__).parent / 'goldens/metricx/spiece.model'
ONE = Layout(data=1)
SCORE_ID = MODEL.vocab_size - 11
SOURCES = ['ab', 'b', 'ab', '']
CANDIDATES = ['aabb', 'b', 'far too long, in any tokens', 'ba']


def made(folder, rows, num_members, tokenizer):
  """A run that has learned a reward, and how it was learned."""
  settings = train_reward.TrainReward(
    rows=rows,
    model=MODEL,
    training=early_stopping.Training(
      optimizer.Optimizer(name='adamw', learning_rate=0.01),
      packing.Packing(source_length=64, target_length=8, rows_per_batch=2),
    ),
    stopping=early_stopping.Stopping(2, 1, 1),
    pair=learned.PairFormat(max_source_length=4, max_candidate_length=8),
    buckets=Buckets(lengths=(14,), tokens_per_batch=56),
    num_members=num_members,
    held_out=0.3,
  )
  directory = RunDirectory(folder)
  data = directory.stage('data')
  data.begin({}, {})
  tokenizer.save(data.folder)
  data.commit({}, 0.0, {'language_pair': 'de-en'})
  (folder / 'run.json').write_text('{}')
  (folder / 'config.gin').write_text('# as given\n')
  context = Context(
    directory=directory,
    elsewhere={},
    model=MODEL,
    layout=ONE,
    seed=0,
    progress=progress.Progress(tensorboard=None),
  )
  # How well they are trained is no matter here; tests/learned_run_test.py
  # exports what a real run has trained.
  stage = directory.stage('reward')
  inputs = {'data': data.fingerprint, 'TrainReward.rows.path': 'f' * 64}
  stage.begin(config.flatten(settings, 'TrainReward'), inputs)
  with unittest.mock.patch.object(early_stopping, 'train', _untrained):
    train_reward.run(context, stage, settings)
  context.progress.close()
  return folder, train_reward.open_ensemble(context, settings), stage


def _untrained(network, start, *args, **settings):
  evaluation = early_stopping.Evaluation(1, -0.5, 9)
  return early_stopping.Outcome(start(), evaluation, (evaluation,))


@pytest.fixture(scope='module')
def one(tmp_path_factory):
  """A reward of one network, learned from preferences."""
  folder = tmp_path_factory.mktemp('one')
  lines = ['source\tbetter\tworse']
  lines += [f'{i}\t{"a" * (1 + i % 7)}\tb' for i in range(12)]
  (folder / 'rows.tsv').write_text('\n'.join(lines) + '\n')
  rows = reward_rows.PreferredFile(str(folder / 'rows.tsv'))
  tokenizer = SentencePieceTokenizer(SPIECE)
  return made(folder / 'run', rows, 1, tokenizer)


@pytest.fixture(scope='module')
def three(tmp_path_factory):
  """A reward of three networks, learned from scores."""
  folder = tmp_path_factory.mktemp('three')
  lines = ['source\tcandidate\tscore']
  lines += [f'{i}\t{"a" * (1 + i % 8)}\t{i % 8 / 7}' for i in range(12)]
  (folder / 'rows.tsv').write_text('\n'.join(lines) + '\n')
  rows = reward_rows.ScoredFile(str(folder / 'rows.tsv'))
  return made(folder / 'run', rows, 3, ByteTokenizer())


@pytest.fixture(scope='module')
def exports(three, tmp_path_factory):
  """Folders of Hugging Face of the three."""
  folder, _, _ = three
  out = tmp_path_factory.mktemp('exports')
  for member in range(3):
    convert(folder / f'reward/params_{member}', out / str(member))
  return [out / str(member) for member in range(3)]


def _alone(export, folder):
  """A copy of an export as if it were all of a reward."""
  shutil.copytree(export, folder)
  form = json.loads((folder / 'reward.json').read_text())
  form |= {'member': 0, 'members': 1, 'trained_on': ['wmt19']}
  (folder / 'reward.json').write_text(json.dumps(form))
  return str(folder)


def convert(source, target, to='huggingface', expected=0, verify='tensors'):
  ended = running.within(
    '--run_mode=convert',
    f'--input={source}',
    f'--output={target}',
    f'--format={to}',
    f'--verify={verify}',
  )
  assert ended.code == expected, ended.stderr
  return ended.stdout if expected == 0 else ended.stderr


def test_an_export_scores_as_the_run_does(one, tmp_path):
  folder, ensemble, _ = one
  said = convert(folder / 'reward', tmp_path / 'out', verify='logits')
  assert 'logits, read back: differ by at most 0,' in said
  reward = Exported((str(tmp_path / 'out'),), layout=ONE)
  given = reward.score(SOURCES, CANDIDATES)
  np.testing.assert_array_equal(given, ensemble.rewards(SOURCES, CANDIDATES)[0])
  assert len(set(given.tolist())) > 2
  assert given[2] == 0  # Too long to be read.
  assert isinstance(reward, base.RewardModel)
  config.check_types(reward)


def test_several_networks_are_exported_one_by_one(three, exports, tmp_path):
  folder, ensemble, _ = three
  said = convert(folder / 'reward', tmp_path / 'all', expected=2)
  for member in range(3):
    assert str(folder / f'reward/params_{member}') in said
  assert not (tmp_path / 'all').exists()
  raw = dataclasses.replace(ensemble, bounded=False)
  texts = ensemble.pair.encode(ByteTokenizer(), SOURCES[:2], CANDIDATES[:2])
  for member, export in enumerate(exports):
    alone = _alone(export, tmp_path / str(member))
    given = Exported((alone,), layout=ONE).score(SOURCES, CANDIDATES)
    np.testing.assert_array_equal(
      given, ensemble.rewards(SOURCES, CANDIDATES)[member]
    )
    # Not only where both are clipped to the same end: the raw scores.
    source = huggingface.Source(export)
    read = huggingface.restore_params(
      export, ensemble.regressor.placed_params(), score_id=SCORE_ID
    )
    scores = ensemble.regressor.scores(read, texts, ensemble.buckets)
    np.testing.assert_array_equal(
      learned.to_reward(scores, False),
      raw.rewards(SOURCES[:2], CANDIDATES[:2])[member],
    )
    assert names.SCORE in source.shapes
  mean = learned.Learned()
  mean.open(lambda: ensemble)
  np.testing.assert_array_equal(
    Exported(tuple(map(str, exports)), layout=ONE).score(SOURCES, CANDIDATES),
    mean.score(SOURCES, CANDIDATES),
  )


def test_the_score_is_a_logit_of_an_ordinary_t5(three, exports):
  """What any program sees that knows T5 alone: MetricX's form."""
  _, ensemble, _ = three
  values = json.loads((exports[1] / 'config.json').read_text())
  assert values['score_token_id'] == SCORE_ID
  assert values['architectures'] == ['T5ForConditionalGeneration']
  assert not values['tie_word_embeddings']
  shape = dataclasses.replace(MODEL, logits_via_embedding=False)
  plain = exports[1].parent / 'plain'
  plain.mkdir()
  (plain / 'model.safetensors').symlink_to(exports[1] / 'model.safetensors')
  del values['score_token_id']
  (plain / 'config.json').write_text(json.dumps(values))
  policy = Policy(shape, ONE)
  params = huggingface.restore_params(plain, policy.placed_params())
  texts = ensemble.pair.encode(ByteTokenizer(), SOURCES[:2], CANDIDATES[:2])
  tokens = np.zeros((2, 14), np.int32)
  for row, text in zip(tokens, texts, strict=True):
    row[: len(text)] = text
  cache = policy.start_cache(params, tokens, num_samples=1, max_decode_len=1)
  out, _ = policy.decode_step(params, jnp.zeros((2, 1), jnp.int32), cache)
  np.testing.assert_allclose(
    np.asarray(out)[:, 0, SCORE_ID],
    ensemble.regressor.scores(ensemble.members[1], texts, ensemble.buckets),
    rtol=1e-5,
    atol=1e-5,
  )


@pytest.mark.slow
def test_transformers_gives_the_score(three, exports):
  if transformers_peer.why_not():
    pytest.skip(transformers_peer.why_not())
  _, ensemble, _ = three
  texts = ensemble.pair.encode(ByteTokenizer(), SOURCES[:2], CANDIDATES[:2])
  sources = [text + [0] * (14 - len(text)) for text in texts]
  (found,) = running.in_transformers(
    [{'folder': str(exports[2]), 'sources': sources, 'inputs': [[0], [0]]}]
  )
  assert found['architecture'] == 'T5ForConditionalGeneration'
  assert found['warnings'] == []
  np.testing.assert_allclose(
    np.array(found['logits'])[:, 0, SCORE_ID],
    ensemble.regressor.scores(ensemble.members[2], texts, ensemble.buckets),
    atol=1e-4,
  )


def test_a_run_that_took_a_reward_finds_what_it_was_made_from(one, tmp_path):
  folder, _, stage = one
  (tmp_path / 'config.gin').write_text(f"REWARD_FROM = '{folder}'\n")
  found = run_policy.stage_of(epath.Path(tmp_path), 'reward')
  assert found.fingerprint == stage.fingerprint


def test_of_two_runs_it_finds_the_one_it_was_made_from(tmp_path):
  made = {}
  for name in ('bc', 'reward', 'own'):
    root = tmp_path / name
    stage = RunDirectory(epath.Path(root)).stage('supervised')
    stage.begin({'T5Config.vocab_size': len(name)}, {})
    stage.commit({}, 0.0)
    made[name] = stage.fingerprint
  (tmp_path / 'own/supervised/stage.json').unlink()
  (tmp_path / 'own/config.gin').write_text(
    f"REWARD_FROM = '{tmp_path}/reward'\nSUPERVISED_FROM = '{tmp_path}/bc'\n"
  )
  for name in ('bc', 'reward'):
    found = run_policy.stage_of(
      epath.Path(tmp_path / 'own'), 'supervised', made[name]
    )
    assert found.folder == epath.Path(tmp_path / name / 'supervised')
  with pytest.raises(errors.ConfigurationError, match='is in none of'):
    run_policy.stage_of(epath.Path(tmp_path / 'own'), 'supervised', 'other')


def test_the_model_card_says_what_it_is_and_of_what(three, exports):
  folder, _, stage = three
  card = (exports[2] / 'README.md').read_text()
  assert 'A reward model for translations, not a policy' in card
  assert 'network 2 of 3 (stage `reward` of the run `run`)' in card
  assert f'first logit of the id {SCORE_ID}' in card
  assert 'clipped to [0, 1]' in card
  for name, fingerprint in stage.manifest['inputs'].items():
    assert fingerprint in card, name
  assert stage.manifest['config']['TrainReward.rows.path'] in card
  assert stage.fingerprint[:16] in card
  assert f'{stage.manifest["counts"]["disagreement"]:.4f}' in card
  assert 'pipeline_tag: translation' not in card
  assert (
    'suppress_tokens' not in (exports[2] / 'generation_config.json').read_text()
  )
  assert (exports[2] / 'config.gin').read_bytes() == (
    folder / 'config.gin'
  ).read_bytes()


def test_it_goes_through_every_format(one, tmp_path):
  folder, ensemble, _ = one
  convert(folder / 'reward/params_0', tmp_path / 'checkpoint_1', 't5x')
  card = (tmp_path / 'checkpoint_1/README.md').read_text()
  assert f'first logit of the id {SCORE_ID}' in card
  assert 'σ of it' in card
  convert(tmp_path / 'checkpoint_1', tmp_path / 'through_t5x')
  convert(folder / 'reward', tmp_path / 'native', 'native')
  assert 'A reward model' in (tmp_path / 'native/README.md').read_text()
  convert(tmp_path / 'native', tmp_path / 'through_native')
  expected = ensemble.rewards(SOURCES, CANDIDATES)[0]
  for name in ('through_t5x', 'through_native'):
    reward = Exported((str(tmp_path / name),), layout=ONE)
    np.testing.assert_array_equal(reward.score(SOURCES, CANDIDATES), expected)
  convert(tmp_path / 'through_t5x', tmp_path / 'again')
  assert (tmp_path / 'again/reward.json').read_bytes() == (
    tmp_path / 'through_t5x/reward.json'
  ).read_bytes()


def test_what_an_export_must_be(one, exports, tmp_path):
  folder, _, _ = one
  convert(folder / 'reward', tmp_path / 'one')
  path = str(tmp_path / 'one')
  for paths, message in (
    ((), 'give the folders'),
    ((str(folder / 'reward/params_0'),), 'is no export of a learned reward'),
    ((str(exports[0]), path), 'separator_id is 111 in .*one, and 259'),
    ((str(exports[1]),), r'networks \[1\] of a reward that has \[0, 1, 2\]'),
    (
      [str(exports[i]) for i in (0, 0, 1)],
      r'networks \[0, 0, 1\] of a reward',
    ),
  ):
    with pytest.raises(errors.ConfigurationError, match=message):
      Exported(tuple(paths)).score(SOURCES, CANDIDATES)
  other = _alone(exports[0], tmp_path / 'alone')
  form = json.loads((tmp_path / 'alone/reward.json').read_text())
  mixed = form | {'members': 2, 'member': 1, 'stage_fingerprint': 'other'}
  shutil.copytree(tmp_path / 'alone', tmp_path / 'mixed')
  (tmp_path / 'mixed/reward.json').write_text(json.dumps(mixed))
  with pytest.raises(errors.ConfigurationError, match='members is 2 in'):
    assert Exported((other, str(tmp_path / 'mixed'))).info
  assert Exported((other,)).info.trained_on == ('wmt19',)
  assert Exported((path,)).info.trained_on == ()
  versions = {
    Exported(tuple(map(str, paths))).info.version
    for paths in (
      [path], [other], [_alone(exports[1], tmp_path / 'second')], exports
    )
  }  # fmt: skip
  assert len(versions) == 4
  form = json.loads((tmp_path / 'one/reward.json').read_text())
  for change, message in (
    ({'separator_id': 300}, r'tokenizer of \d+ ids'),
    (None, 'lacks max_source_length'),
  ):
    text = json.dumps({} if change is None else form | change)
    (tmp_path / 'one/reward.json').write_text(text)
    with pytest.raises(errors.DataError, match=message):
      Exported((path,)).score(SOURCES, CANDIDATES)
