import pytest
from etils import epath

from rest_jax import errors, fingerprints, run_directory, stage_plan


@pytest.fixture
def stage(tmp_path):
  """A Grow step that was made from the fourth policy of the one before it."""
  directory = run_directory.RunDirectory(epath.Path(tmp_path))
  made = directory.stage('grow_2/samples')
  inputs = {'data': 'd' * 64, 'grow_1/improve_4': 'p' * 64}
  made.begin({'Grow.num_samples': 8}, inputs | {'FILE': 'f' * 64})
  made.commit({'samples': 0, 'tokens': 0}, 0.0)
  return directory.stage('grow_2/samples')


def plan(*inputs, num_samples=8, **files):
  def execute(context, stage):
    raise AssertionError('nothing is run')

  config = {'Grow.num_samples': num_samples}
  return stage_plan.StagePlan(
    'grow_2/samples', 'grow', inputs, config, execute, files=files
  )


def check(plan, stage):
  inputs = fingerprints.changed(plan, stage)
  if inputs is not None:
    stage.begin(plan.config, inputs, 'branch')
    raise AssertionError('that is refused')


def test_what_is_as_it_was_made_stands(stage):
  check(plan('data', 'grow_1/improve_4', FILE='gone'), stage)


def test_another_stage_to_read_is_found_before_that_is_made(stage):
  with pytest.raises(errors.ConfigurationError) as caught:
    check(plan('data', 'grow_1/improve_5', FILE='gone'), stage)
  assert 'the input grow_1/improve_4' in str(caught.value)
  assert 'the input grow_1/improve_5 nothing' in str(caught.value)
  assert str(caught.value).endswith('or branch')


def test_so_is_one_of_a_stage_that_reads_nothing(tmp_path):
  directory = run_directory.RunDirectory(epath.Path(tmp_path))
  made = directory.stage('grow_2/samples')
  made.begin({'Grow.num_samples': 8}, {})
  made.commit({}, 0.0)
  with pytest.raises(errors.ConfigurationError, match='num_samples = 8, now 4'):
    check(plan(num_samples=4), directory.stage('grow_2/samples'))


def test_another_setting_is_found(stage):
  with pytest.raises(errors.ConfigurationError, match='num_samples = 8, now 4'):
    check(plan('data', 'grow_1/improve_4', num_samples=4, FILE='x'), stage)
