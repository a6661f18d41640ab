"""Runs that are killed, and started again with the same command."""

import json
import pathlib
import shutil

import pytest
import running

_POLICIES = (
  'supervised',
  'grow_1/improve_0',
  'grow_1/improve_1',
  'continued/grow_1/improve_0',
  'continued/grow_1/improve_1',
  'random/grow_1/improve_1',
)
# Stage → the renames before which its processes are killed, each in turn.
_PART = r'/part-00001\.parquet$'
_SIDECAR = r'/\.parts/part-00001\.parquet\.json$'
_TRAINING = (
  r'/checkpoints/0/checkpoint\.json$',  # Before any update is kept.
  r'/checkpoints/4/checkpoint\.json$',  # In the midst of a checkpoint.
  r'/params/checkpoint\.json$',  # Trained, not yet kept.
  r'/stage\.json$',  # Kept, not yet committed.
)
_KILLS = {
  'data': (
    r'/data/begun\.json$',
    r'/data/tokenizer\.model$',
    r'/data/grow/part-',
    r'/data/stage\.json$',
  ),
  'supervised': _TRAINING,
  'grow_1/samples': (
    _PART,  # Inside a chunk: its samples are drawn, and lost.
    _SIDECAR,  # Between two chunks.
    r'/part-00005\.parquet$',  # Amid the references.
    r'/stage\.json$',
  ),
  'grow_1/scores/shared_letters': (_PART, _SIDECAR, r'/stage\.json$'),
  'grow_1/reward': (_PART, r'/stage\.json$'),
  'check_reward/candidates': (r'/spoiled\.parquet$',),
  'grow_1/improve_1': _TRAINING,
  'random/grow_1/improve_1': _TRAINING[1:2],
  'grow_1/improve_1/evaluation/report': (
    r'/samples\.parquet$',
    r'/beam\.parquet$',
    r'/stage\.json$',
  ),
}


_TERMINATED = (
  ('data', r'/data/grow/part-'),
  ('supervised', r'/checkpoints/2/checkpoint\.json$'),
  ('grow_1/samples', _SIDECAR),
  ('grow_1/scores/shared_letters', _PART),
  ('grow_1/improve_1', r'/checkpoints/0/checkpoint\.json$'),
  ('grow_1/improve_1/evaluation/report', r'/samples\.parquet$'),
)


def _killed(command, pattern, cache):
  """Starts a command that is killed on its way."""
  command = running.instrument(command, kill=[pattern, 1])
  return running.start(command, cache=cache, expected=-9)


def _manifest(stage):
  """What a stage says of itself, without what no two runs share."""
  manifest = json.loads((stage / 'stage.json').read_text())
  keys = ('config', 'counts', 'extra')
  return {key: manifest[key] for key in keys}


def test_a_run_killed_in_two_stages_ends_as_one_never_killed(
  whole_run, compiled, tmp_path
):
  run = tmp_path / 'run'
  # Its data are there: they take long, and are killed in a test below.
  shutil.copytree(whole_run.folder / 'data', run / 'data')
  for pattern in (
    r'/grow_1/samples/part-00001\.parquet$',
    r'/grow_1/improve_1/\.work/checkpoints/2/checkpoint\.json$',
  ):
    _killed(running.command(run), pattern, compiled)
    assert not (run / 'results.csv').exists()
  done = running.start(running.command(run), cache=compiled)
  # What was committed before a kill was not made again.
  assert '[grow_1/samples] starting' not in done.stderr
  assert '[grow_1/improve_1] starting' in done.stderr

  assert running.digests(run) == running.digests(whole_run.folder)
  assert running.results(run) == running.results(whole_run.folder)
  for policy in _POLICIES:
    running.assert_equal_parameters(run / policy, whole_run.folder / policy)
    assert _manifest(run / policy) == _manifest(whole_run.folder / policy)
  left = {path.name for path in run.rglob('*')} & {
    *('begun.json', '.parts', '.work')
  }
  assert not left
  assert not [path for path in run.rglob('.*') if '.tmp-' in path.name]


def _without(run: pathlib.Path, stage: str, kept: pathlib.Path) -> None:
  """Takes a stage out of a run, and lays what is nested in it by."""
  for path in (run / stage).glob('evaluation'):
    path.rename(kept / path.name)
  shutil.rmtree(run / stage)


def _assert_made_again(
  run: pathlib.Path,
  stage: str,
  kept: pathlib.Path,
  whole_run: pathlib.Path,
) -> None:
  """Checks that a run is whole again, and as it was."""
  made, expected = run / stage, whole_run / stage
  assert _manifest(made) == _manifest(expected)
  for path in kept.glob('evaluation'):
    path.rename(made / path.name)
  assert running.digests(run) == running.digests(whole_run)
  if stage in _POLICIES:
    running.assert_equal_parameters(made, expected)


@pytest.mark.slow
@pytest.mark.parametrize('stage', _KILLS)
def test_a_stage_killed_again_and_again_ends_as_one_never_killed(
  stage, whole_run, compiled, tmp_path
):
  run = running.copy_of(whole_run.folder, tmp_path / 'run')
  _without(run, stage, tmp_path)
  command = running.command(run, f'--stage={stage}')
  for pattern in _KILLS[stage]:
    _killed(command, pattern, compiled)
    assert not (run / stage / 'stage.json').exists()
  running.start(command, cache=compiled)
  _assert_made_again(run, stage, tmp_path, whole_run.folder)


@pytest.mark.slow
@pytest.mark.parametrize('stage, pattern', _TERMINATED)
def test_a_stage_that_is_told_to_end_saves_and_goes_on(
  stage, pattern, whole_run, compiled, tmp_path
):
  run = running.copy_of(whole_run.folder, tmp_path / 'run')
  _without(run, stage, tmp_path)
  command = running.command(run, f'--stage={stage}')
  told = running.start(
    running.instrument(command, terminate=[pattern, 1]),
    cache=compiled,
    expected=75,
  )
  said = told.stderr.splitlines()[-1]
  assert said.startswith('PreemptionError: SIGTERM: what was made is saved')
  assert not (run / stage / 'stage.json').exists()
  if stage in _POLICIES:
    # One update more than what was being saved.
    saved = {
      int(path.name) for path in run.glob(f'{stage}/.work/checkpoints/*')
    }
    assert max(saved) in (1, 3)
  running.start(command, cache=compiled)
  _assert_made_again(run, stage, tmp_path, whole_run.folder)
