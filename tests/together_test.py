"""Jobs of several real processes, which find each other over the loopback."""

import json
import os
import pathlib
import re
import shutil
import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import running

_POLICIES = (
  'supervised',
  'grow_1/improve_0',
  'grow_1/improve_1',
  'continued/grow_1/improve_1',
  'random/grow_1/improve_1',
)
# A machine with two cores runs four processes of two devices each.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
# The CPU's collectives, written in C++, say on standard output who found whom,
# and threads mix what they say, piece by piece.
_GLOO = re.compile(
  r'\[Gloo\] Rank |is connected to|peer ranks\.|\d+'
  r'|Expected number of connected peer ranks is :'
)
# Of 24 sources, so that there is one for each of four processes.
_PARTS = '--gin.grow.Grow.samples_per_part=8'


def _await(path: pathlib.Path, started) -> None:
  """Waits for a file that the processes will write."""
  deadline = time.monotonic() + running.SECONDS
  while not path.exists():
    assert time.monotonic() < deadline, path
    assert all(process.poll() is None for process in started), path
    time.sleep(0.02)


def _at(path: pathlib.Path, number: int, sent: signal.Signals):
  """Sends a signal to one of the processes once a file is there."""

  def signalled(started) -> None:
    _await(path, started)
    started[number].send_signal(sent)

  return signalled


def _statuses(ended) -> list[int]:
  return [process.returncode for process in ended]


def _said(ended) -> str:
  return '\n'.join(process.stderr for process in ended)


@pytest.fixture(scope='module')
def four_devices(compiled, tmp_path_factory) -> pathlib.Path:
  """The run of one process with four devices, which the others must equal."""
  run = tmp_path_factory.mktemp('one') / 'run'
  running.start(running.command(run, _PARTS), cache=compiled, devices=4)
  return run


def _with_data(made: pathlib.Path, run: pathlib.Path) -> pathlib.Path:
  """A new run that need not prepare its data, which takes TensorFlow long."""
  run.mkdir(parents=True)
  shutil.copytree(made / 'data', run / 'data')
  return run


def _rows(run: pathlib.Path, folder: str):
  """All rows of a folder of parts, sorted by source and sample."""
  paths = sorted((run / folder).glob('part-*.parquet'))
  table = pq.read_table(paths)
  return table.sort_by(
    [('source_id', 'ascending'), ('sample_index', 'ascending')]
  )


def _assert_same_run(run: pathlib.Path, expected: pathlib.Path) -> None:
  """Samples equal row for row, parameters and figures to rounding."""
  grown, wanted = (_rows(one, 'grow_1/samples') for one in (run, expected))
  # Log-probabilities follow parameters, which are equal to rounding.
  floats = ['log_prob', 'token_log_probs', 'token_sampling_log_probs']
  assert grown.drop(floats).equals(wanted.drop(floats))
  for name in floats:
    values, others = (
      np.array(table[name].combine_chunks().flatten().drop_null())
      if name.startswith('token')
      else table[name].drop_null().to_numpy()
      for table in (grown, wanted)
    )
    np.testing.assert_allclose(values, others, atol=1e-4, err_msg=name)
  for folder in ('grow_1/scores/shared_letters', 'grow_1/reward'):
    assert _rows(run, folder).equals(_rows(expected, folder))
  for policy in _POLICIES:
    _assert_same_stage(run / policy, expected / policy)
  for row, other in zip(
    running.results(run), running.results(expected), strict=True
  ):
    for name, value in row.items():
      try:
        assert float(value) == pytest.approx(float(other[name]), abs=1e-2)
      except ValueError:
        assert value == other[name]


def _assert_same_stage(made: pathlib.Path, expected: pathlib.Path) -> None:
  """Parameters equal to rounding, and what was counted."""
  params, others = map(running.parameters, (made, expected))
  assert params.keys() == others.keys()
  for name, values in params.items():
    np.testing.assert_allclose(
      values, others[name], rtol=2e-4, atol=2e-5, err_msg=f'{made}: {name}'
    )
  manifest, other = (
    json.loads((stage / 'stage.json').read_text()) for stage in (made, expected)
  )
  assert manifest['config'] == other['config']
  assert manifest['counts'] == pytest.approx(other['counts'], abs=1e-4)


@pytest.mark.parametrize(
  'processes, devices',
  [(2, 2), pytest.param(4, 1, marks=pytest.mark.release)],
)
def test_processes_make_the_run_that_one_makes(
  processes, devices, four_devices, compiled, tmp_path
):
  run = _with_data(four_devices, tmp_path / 'run')
  line = running.command(run, _PARTS)
  ended = running.together([line] * processes, cache=compiled, devices=devices)
  assert _statuses(ended) == [0] * processes, _said(ended)
  _assert_same_run(run, four_devices)
  # The first shows how far it is; the others are silent.
  assert '[grow_1/samples] done in' in ended[0].stderr
  assert 'G1 I1' in ended[0].stdout
  for other in ended[1:]:
    assert not _GLOO.sub('', other.stdout).strip(), other.stdout
    assert '[grow_1/samples]' not in other.stderr
  facts = json.loads((run / 'run.json').read_text())
  assert facts['processes'] == processes
  assert len(facts['devices']) == 4


def test_parameters_split_over_processes(four_devices, compiled, tmp_path):
  """FSDP over all devices; each layer split within a process while growing."""
  runs = []
  for processes, devices in ((1, 4), (2, 2)):
    run = _with_data(four_devices, tmp_path / f'{processes}')
    line = running.command(
      run, _PARTS, '--gin.FSDP=True', '--gin.GROW_MODEL_PARALLEL=2'
    )
    if processes == 1:
      running.start(line, cache=compiled, devices=devices)
    else:
      ended = running.together([line] * 2, cache=compiled, devices=devices)
      assert _statuses(ended) == [0, 0], _said(ended)
    runs.append(run)
  _assert_same_run(runs[1], runs[0])


_SPLIT = ('--gin.FSDP=True', '--gin.GROW_MODEL_PARALLEL=2')
_VALUES = ('--run_mode=improve', '--gin.values.TrainValue.held_out=0.4')


@pytest.mark.parametrize(
  'flags, stages',
  [
    # Its value model is trained beside the policy.
    (
      (
        '--gin_file=online/ppo.gin',
        '--gin.online.Online.updates_per_batch=2',
        '--stage=online/ppo',
        *_SPLIT,
      ),
      ['online/ppo'],
    ),
    # A value model beforehand, distributions of two other policies, dual
    # variables.
    (
      ('--gin_file=losses/bvmpo.gin', *_VALUES),
      ['grow_1/value', 'grow_1/improve_0', 'grow_1/improve_1'],
    ),
    # Log-probabilities of two other policies.
    pytest.param(
      (
        '--gin_file=losses/offline.gin',
        '--gin.improving/early_stopping.Training.loss=@offline_losses.Gold()',
        '--gin.ORIGINAL_DATA=none',
        '--run_mode=improve',
      ),
      ['grow_1/improve_0', 'grow_1/improve_1'],
      marks=pytest.mark.release,
    ),
    pytest.param(
      ('--gin_file=online/rloo.gin', '--stage=online/rloo'),
      ['online/rloo'],
      marks=pytest.mark.release,
    ),
    pytest.param(
      ('--gin_file=losses/oac.gin', *_VALUES, *_SPLIT),
      ['grow_1/value', 'grow_1/improve_1'],
      marks=pytest.mark.release,
    ),
  ],
  ids=['ppo', 'bvmpo', 'gold', 'rloo', 'oac'],
)
def test_processes_train_as_one_does(
  flags, stages, four_devices, compiled, tmp_path
):
  """Online, and by losses that ask other networks than the policy."""
  shared = (f'--gin.GROW_FROM={four_devices}', '--gin.CONTROLS=()', _PARTS)
  runs = tmp_path / '1', tmp_path / '2'
  lines = [running.command(run, *flags, *shared) for run in runs]
  running.start(lines[0], cache=compiled, devices=4)
  ended = running.together([lines[1]] * 2, cache=compiled, devices=2)
  assert _statuses(ended) == [0, 0], _said(ended)
  for stage in stages:
    _assert_same_stage(runs[1] / stage, runs[0] / stage)


@pytest.mark.release
def test_an_online_baseline_that_is_preempted_goes_on(
  four_devices, compiled, tmp_path
):
  runs = tmp_path / '1', tmp_path / '2'
  lines = [
    running.command(
      run,
      '--gin_file=online/rloo.gin',
      f'--gin.SUPERVISED_FROM={four_devices}',
      '--stage=online/rloo',
    )
    for run in runs
  ]
  running.start(lines[0], cache=compiled, devices=4)
  file = runs[1] / 'online/rloo/.work/checkpoints/0/checkpoint.json'
  ended = running.together(
    [lines[1]] * 2,
    cache=compiled,
    devices=2,
    signalled=_at(file, 1, signal.SIGTERM),
  )
  assert _statuses(ended) == [75, 75], _said(ended)
  ended = running.together([lines[1]] * 2, cache=compiled, devices=2)
  assert _statuses(ended) == [0, 0], _said(ended)
  _assert_same_stage(runs[1] / 'online/rloo', runs[0] / 'online/rloo')


@pytest.mark.parametrize(
  'file, number',
  [
    ('grow_1/samples/part-00000.parquet', 1),
    pytest.param(
      'grow_1/improve_1/.work/checkpoints/2/checkpoint.json',
      1,
      marks=pytest.mark.release,
    ),
    pytest.param(
      'grow_1/improve_1/.work/checkpoints/0/checkpoint.json',
      0,
      marks=pytest.mark.release,
    ),
  ],
)
def test_a_job_that_lost_a_process_ends_and_goes_on(
  file, number, four_devices, compiled, tmp_path
):
  run = _with_data(four_devices, tmp_path / 'run')
  line = running.command(run, _PARTS)
  ended = running.together(
    [line] * 2,
    cache=compiled,
    devices=2,
    signalled=_at(run / file, number, signal.SIGKILL),
  )
  # JAX aborts the one that is left: nobody hangs.
  statuses = _statuses(ended)
  assert statuses[number] == -signal.SIGKILL
  assert statuses[1 - number] == -signal.SIGABRT, _said(ended)
  assert not (run / file).parents[0].joinpath('stage.json').exists()
  ended = running.together([line] * 2, cache=compiled, devices=2)
  assert _statuses(ended) == [0, 0], _said(ended)
  _assert_same_run(run, four_devices)


@pytest.mark.parametrize(
  'file',
  [
    pytest.param(
      'grow_1/samples/part-00000.parquet', marks=pytest.mark.release
    ),
    pytest.param(
      'grow_1/improve_1/.work/checkpoints/0/checkpoint.json',
      marks=pytest.mark.release,
    ),
  ],
)
def test_a_job_that_is_preempted_saves_and_goes_on(
  file, four_devices, compiled, tmp_path
):
  run = _with_data(four_devices, tmp_path / 'run')
  line = running.command(run, _PARTS)
  ended = running.together(
    [line] * 2,
    cache=compiled,
    devices=2,
    signalled=_at(run / file, 1, signal.SIGTERM),  # To one of them alone.
  )
  assert _statuses(ended) == [75, 75], _said(ended)
  assert 'the same command goes on from here' in ended[0].stderr
  ended = running.together([line] * 2, cache=compiled, devices=2)
  assert _statuses(ended) == [0, 0], _said(ended)
  _assert_same_run(run, four_devices)


def test_a_process_that_does_not_come_is_named(
  four_devices, compiled, tmp_path
):
  run = _with_data(four_devices, tmp_path / 'run')
  line = running.command(run, _PARTS, '--barrier_seconds=20')

  def signalled(started) -> None:
    _at(run / 'grow_1/samples/part-00000.parquet', 1, signal.SIGSTOP)(started)
    started[0].wait(running.SECONDS)
    started[1].kill()

  ended = running.together(
    [line] * 2, cache=compiled, devices=2, heartbeat=60, signalled=signalled
  )
  assert _statuses(ended) == [9, -signal.SIGKILL], _said(ended)
  host = os.uname().nodename
  assert f"process 1 on {host} did not come to 'the parts of" in ended[0].stderr


@pytest.mark.parametrize(
  'for_all, for_second, status, message',
  [
    ([], ['--gin.SEED=1'], 2, 'process 1 on .* has another configuration'),
    (['--gin.MODEL_PARALLEL=3'], [], 2, 'does not divide 4 devices'),
    (['--gin.GROW_MODEL_PARALLEL=4'], [], 2, 'does not divide 2 devices'),
    (
      ['--gin.grow.Grow.samples_per_part=48'],
      [],
      2,
      'make 1 parts of 24, too few for 2 processes',
    ),
    (
      ['--gin.BATCH_ROWS=3'],
      [],
      2,
      'A batch of 3 rows does not divide .* over 4',
    ),
    ([], ['--gin.NO_SUCH=1'], 2, 'used by nothing'),
  ],
)
def test_what_cannot_be_ends_all_processes(
  for_all, for_second, status, message, four_devices, compiled, tmp_path
):
  run = running.copy_of(four_devices, tmp_path / 'run')
  shutil.rmtree(run / 'grow_1')
  if '--gin.BATCH_ROWS=3' in for_all or 'PARALLEL' in str(for_all):
    for made in ('supervised', 'continued', 'random'):
      shutil.rmtree(run / made)
  line = running.command(run, _PARTS, *for_all)
  ended = running.together(
    [line, [*line, *for_second]], cache=compiled, devices=2
  )
  assert _statuses(ended) == [status] * 2, _said(ended)
  assert 'Traceback' not in _said(ended)
  found = ended[0].stderr.replace('\n', ' ')
  assert re.search(message, found), found
