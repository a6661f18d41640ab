"""What a policy has cost, over all that it was made from."""

import io

import pytest
from etils import epath

from rest_jax import ledger, run_directory
from rest_jax.context import Context
from rest_jax.models.config import T5Config
from rest_jax.progress import Progress
from rest_jax.sharding import Layout

# Name → counts and inputs, of a run whose Improve steps restart from BC.
_STAGES = {
  'supervised': ({'train_tokens': 100}, ['data']),
  'grow_1/samples': ({'samples': 8, 'tokens': 40}, ['data', 'supervised']),
  'grow_1/reward': ({'rows': 8}, ['grow_1/samples']),
  'grow_1/value': (
    {'train_tokens': 10},
    ['data', 'supervised', 'grow_1/samples', 'grow_1/reward'],
  ),
  'grow_1/improve_1': (
    {'train_tokens': 20, 'select_samples': 2, 'select_tokens': 9},
    ['data', 'supervised', 'grow_1/samples', 'grow_1/reward', 'grow_1/value'],
  ),
  'grow_2/samples': (
    {'samples': 4, 'tokens': 20},
    ['data', 'grow_1/improve_1'],
  ),
  'grow_2/reward': ({'rows': 4}, ['grow_2/samples']),
  'grow_2/improve_1': (
    {'train_tokens': 30, 'select_samples': 2, 'select_tokens': 7},
    ['data', 'supervised', 'grow_2/samples', 'grow_2/reward'],
  ),
  'continued/grow_1/improve_1': (
    {'train_tokens': 5, 'select_samples': 2, 'select_tokens': 8},
    ['data', 'supervised', 'grow_1/improve_1'],
  ),
}


# Learned from files, as REWARD_ROWS = @reward_rows.ScoredFile() has it.
_LEARNED = {
  'reward': ({'updates': 3}, ['data', 'TrainReward.rows.path']),
  'imported/samples': ({'samples': 2}, ['data', 'IMPORTED_SAMPLES']),
  'imported/reward': ({'rows': 2}, ['imported/samples', 'reward']),
  'grow_3/improve_1': (
    {'train_tokens': 7, 'select_samples': 2, 'select_tokens': 3},
    ['data', 'supervised', 'imported/reward', 'reward'],
  ),
}


@pytest.fixture(scope='module')
def context(tmp_path_factory):
  """A run directory of these stages, with nothing in them."""
  folder = epath.Path(tmp_path_factory.mktemp('run'))
  directory = run_directory.RunDirectory(folder)
  for name, (counts, inputs) in (_STAGES | _LEARNED).items():
    stage = directory.stage(name)
    if name == 'reward':
      stage.made_on = {'devices': 16, 'machine': 'X'}
    stage.begin({}, dict.fromkeys(inputs, 'fingerprint'))
    stage.commit(counts, 2.0)
  (folder / 'run.json').write_text('{"devices": ["a", "b"]}')
  return Context(
    directory=directory,
    elsewhere={},
    model=T5Config(384, 8, 1, 1, 1, 8, 8),
    layout=Layout(data=1),
    seed=0,
    progress=Progress(io.StringIO()),
  )


def test_who_restarts_pays_for_what_drew_its_samples(context):
  spent = ledger.spent(context, 'grow_2/improve_1')
  # BC, the value model and the policy of the first Grow step, and its own.
  assert spent.train_tokens == 100 + 10 + 20 + 30
  assert spent.samples_grown == 12
  assert spent.samples_drawn == 12 + 4
  assert spent.decoded_tokens == 60 + 16
  assert spent.reward_calls == 12 + 4
  assert spent.device_seconds == 8 * 2.0 * 2


def test_a_control_does_not_pay_for_its_twin(context):
  spent = ledger.spent(context, 'continued/grow_1/improve_1')
  assert (spent.train_tokens, spent.samples_grown) == (105, 0)


def test_files_outside_of_the_run_cost_nothing(context):
  spent = ledger.spent(context, 'grow_3/improve_1')
  assert (spent.train_tokens, spent.reward_calls) == (107, 4)


def test_seconds_count_the_devices_that_a_stage_was_made_on(context):
  # BC, imported samples, their reward and the policy; and the reward.
  spent = ledger.spent(context, 'grow_3/improve_1')
  assert spent.device_seconds == 4 * 2.0 * 2 + 2.0 * 16
