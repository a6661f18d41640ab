"""A whole run on a reward that it learns, through the real main."""

import shutil

import numpy as np
import pyarrow as pa
import pytest
import running

from rest_jax.data import scored
from rest_jax.rewards.exported import Exported
from rest_jax.run_directory import RunDirectory

_SEARCH = f'--gin_search_paths={running.TESTING}'
_REWARD = ('data', 'supervised', 'reward_data')
pytestmark = pytest.mark.slow


def _command(folder, *arguments):
  line = running.command(folder, _SEARCH, *arguments)
  return [running.LEARNED if a == running.TINY else a for a in line]


@pytest.fixture(scope='module')
def learned_run(compiled, tmp_path_factory):
  folder = tmp_path_factory.mktemp('learned') / 'run'
  running.start(_command(folder), cache=compiled)
  return folder


def _fingerprint(folder, name):
  return RunDirectory(folder).stage(name).fingerprint


def test_every_policy_is_judged_by_all_metrics(learned_run):
  rows = running.results(learned_run)
  assert [row['policy'] for row in rows] == ['BC', 'G1 I0', 'G1 I1']
  for row in rows:
    assert 0 <= float(row['reward_mean']) <= 100
    for name in ('shared_letters', 'learned_std'):
      assert 0 <= float(row[f'{name}_mean']) <= 1
      assert 0 <= float(row[f'{name}_greedy']) <= 1
    assert float(row['chrf']) >= 0


def test_what_is_scored_depends_on_the_reward_and_what_it_learned_from(
  learned_run,
):
  reward = _fingerprint(learned_run, 'reward')
  for name in (
    'grow_1/scores/learned',
    'grow_1/scores/learned_std',
    'grow_1/improve_1',
    'grow_1/improve_1/evaluation/report',
  ):
    inputs = RunDirectory(learned_run).stage(name).manifest['inputs']
    assert inputs['reward'] == reward, name
  scores = RunDirectory(learned_run).stage('grow_1/scores/shared_letters')
  assert 'reward' not in scores.manifest['inputs']
  inputs = RunDirectory(learned_run).stage('reward').manifest['inputs']
  assert set(inputs) == {
    'data', 'reward_data/samples', 'reward_data/scores/shared_letters'
  }  # fmt: skip


def test_its_networks_exported_give_the_scores_of_the_run(
  learned_run, tmp_path
):
  for member in range(2):
    ended = running.within(
      '--run_mode=convert',
      f'--input={learned_run}/reward/params_{member}',
      f'--output={tmp_path}/{member}',
      '--format=huggingface',
      '--verify=tensors',
    )
    assert ended.code == 0, ended.stderr
  reward = Exported((f'{tmp_path}/0', f'{tmp_path}/1'))
  tables = scored.iter_scored(
    learned_run / 'grow_1/samples',
    {'score': learned_run / 'grow_1/scores/learned'},
    ('source', 'target'),
  )
  rows = pa.concat_tables(tables).to_pydict()
  np.testing.assert_allclose(
    reward.score(rows['source'], rows['target']), rows['score'], atol=1e-5
  )
  assert np.ptp(rows['score']) > 0.01
  card = (tmp_path / '1/README.md').read_text()
  assert 'network 1 of 2 (stage `reward` of the run `run`)' in card
  for name in ('data', 'reward_data/samples'):
    assert _fingerprint(learned_run, name) in card


def test_samples_are_judged_again_by_a_reward_that_was_learned_otherwise(
  learned_run, compiled, tmp_path
):
  """Its own settings are the same: what it learned with is not."""
  branch = tmp_path / 'branch'
  changed = (f'--gin.GROW_FROM={learned_run}', '--gin.REWARD_STEPS=6')
  running.start(_command(branch, *changed), cache=compiled)
  for name in ('reward', 'grow_1/scores/learned', 'grow_1/reward'):
    assert (branch / name / 'stage.json').exists(), name
  for name in ('grow_1/samples', 'grow_1/scores/shared_letters', 'supervised'):
    assert not (branch / name / 'stage.json').exists(), name


def test_training_a_reward_killed_three_times_ends_as_one_never_killed(
  learned_run, compiled, tmp_path
):
  run = tmp_path / 'run'
  for name in _REWARD:
    shutil.copytree(learned_run / name, run / name)
  command = _command(run, '--run_mode=train_reward')
  for pattern in (
    r'/reward/\.work/checkpoints_0/2/checkpoint\.json$',
    r'/reward/\.parts/member_0\.json\.json$',  # Kept, but not yet known to be.
    r'/reward/\.work/checkpoints_1/4/checkpoint\.json$',
  ):
    killed = running.instrument(command, kill=[pattern, 1])
    running.start(killed, cache=compiled, expected=-9)
    assert not (run / 'reward' / 'stage.json').exists()
  running.start(command, cache=compiled)
  assert _fingerprint(run, 'reward') == _fingerprint(learned_run, 'reward')
  expected = RunDirectory(learned_run).stage('reward').manifest
  made = RunDirectory(run).stage('reward').manifest
  assert made['contents'] == expected['contents']
  assert made['extra'] == expected['extra']
  assert running.digests(run / 'reward') == running.digests(
    learned_run / 'reward'
  )
  assert not list((run / 'reward').rglob('.work'))


def test_another_run_takes_the_reward(learned_run, compiled, tmp_path):
  run = tmp_path / 'branch'
  line = _command(run, f'--gin.REWARD_FROM={learned_run}')
  shown = running.start([*line, '--dry_run'], cache=compiled).stdout
  states = dict(row.split()[:2] for row in shown.splitlines() if 'e' in row)
  assert {states[name] for name in ('data', 'supervised', 'reward')} == {
    'elsewhere'
  }
  assert states['grow_1/samples'] != 'elsewhere'
  # Trained otherwise, it is not the reward that was asked for.
  other = running.start(
    [*line, '--gin.REWARD_STEPS=6', '--run_mode=check_reward'],
    cache=compiled,
    expected=2,
  )
  assert 'TrainReward.stopping.max_steps = 4, now 6' in other.stderr


def test_what_a_learned_reward_needs(learned_run):
  for changed, message in (
    ('TRAIN_REWARD=None', 'but nothing trains it'),
    ("REWARD_SPLIT=''", 'need each other'),
    ('REWARD_CANDIDATE_LENGTH=8', 'REWARD_CANDIDATE_LENGTH = 8'),
  ):
    ended = running.within(
      *_command(learned_run)[3:], f'--gin.{changed}', '--run_mode=status'
    )
    assert ended.code == 2
    assert message in ended.stderr
    assert ended.stderr.count('\n') == 1


def test_a_reward_that_could_not_be_trained_is_refused_before_bc(tmp_path):
  ended = running.within(
    *_command(tmp_path / 'run')[3:],
    '--gin.reward/early_stopping.Training.num_microbatches=5',
  )
  assert ended.code == 2
  assert 'set REWARD_BATCH_ROWS to a multiple' in ended.stderr
  assert not (tmp_path / 'run' / 'data').exists()
