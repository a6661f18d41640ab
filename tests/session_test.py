"""What is left of a stage that fails."""

import pytest
import small_run

from rest_jax import fingerprints, hosts, session
from rest_jax.errors import (
  ConfigurationError,
  DataError,
  RewardError,
  StorageError,
)
from rest_jax.progress import Progress
from rest_jax.stage_plan import StagePlan

PART = 'part-00000.parquet'


@pytest.fixture
def ran(tmp_path, monkeypatch):
  """Runs a stage that writes a part and fails; gives the stage."""
  context = small_run.make(tmp_path)
  one = object.__new__(session.Session)
  one._context, one._progress = context, context.progress
  monkeypatch.setattr(hosts, 'fail', lambda error: None)
  monkeypatch.setattr(fingerprints, 'check_inputs', lambda plan, stage: None)

  def begin(self, plan):
    stage = context.stage(plan.name)
    stage.begin(plan.config, {})
    return stage

  monkeypatch.setattr(session.Session, '_begin', begin)
  monkeypatch.setattr(
    session.Session,
    '_execute',
    lambda self, plan, stage: plan.execute(context, stage),
  )

  def run(error, *, begun):
    stage = context.stage('thing')
    if begun:
      stage.begin({}, {})
      stage.write_part(PART, b'of an earlier start', {'rows': 1})

    def execute(context, stage):
      if not begun:
        stage.write_part(PART, b'of this start', {'rows': 2})
      raise error

    with pytest.raises(type(error)):
      one._run_stage(StagePlan('thing', 'data', (), {}, execute))
    return context.stage('thing')

  return run


@pytest.mark.parametrize('error', [DataError('x'), ConfigurationError('x')])
def test_what_other_settings_would_mend_leaves_nothing(ran, error):
  stage = ran(error, begun=False)
  assert not stage.begun
  assert not (stage.folder / PART).exists()


@pytest.mark.parametrize('error', [DataError('x'), ConfigurationError('x')])
def test_what_an_earlier_start_left_is_kept(ran, error):
  stage = ran(error, begun=True)
  assert stage.begun
  assert stage.part(PART) == {'rows': 1}
  assert (stage.folder / PART).read_bytes() == b'of an earlier start'


def test_what_passes_by_itself_keeps_what_was_made(ran):
  stage = ran(RewardError('x'), begun=False)
  assert stage.part(PART) == {'rows': 2}


@pytest.mark.parametrize(
  ('ended', 'closing', 'seen'),
  [
    (None, None, None),
    (None, StorageError('disk'), StorageError),
    (RewardError('x'), None, RewardError),
    # What ended the run is told, and not what failed on the way out.
    (RewardError('x'), StorageError('disk'), RewardError),
  ],
)
def test_an_error_of_closing_hides_no_other(ended, closing, seen):
  closed = []

  def close():
    closed.append(True)
    if closing:
      raise closing

  class Closing(Progress):
    def __init__(self):
      self.close = close

  def run():
    with session._closed_at_the_end(Closing()):
      if ended:
        raise ended

  if seen is None:
    run()
  else:
    with pytest.raises(seen):
      run()
  assert closed == [True]
