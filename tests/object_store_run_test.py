"""A whole run in an object store, `gs://`, which fails now and then.

Reading checkpoints from one is tested in object_store_test.
"""

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import threading

import fake_gcs
import numpy as np
import pytest
import running

# TensorFlow, whose file system etils takes for gs://, is imported by each.
pytestmark = [
  pytest.mark.slow,
  pytest.mark.release,
  pytest.mark.timeout(1800),
]
_TROUBLE_EVERY = 40  # Requests.
_POLICIES = ('supervised', 'grow_1/improve_1', 'random/grow_1/improve_1')
# Objects before which the run is killed: in Grow, and while Improve trains.
_KILLED_AT = (
  r'run/grow_1/samples/part-00001\.parquet$',
  r'run/grow_1/improve_1/\.work/checkpoints/2/checkpoint\.json$',
)
_HELD_AT = r'run/random/grow_1/improve_1/begun\.json$'


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  """A store whose bucket is empty, and to which all processes go."""
  if shutil.which('openssl') is None:
    pytest.skip('openssl, which makes the certificate, is not installed')
  root = tmp_path_factory.mktemp('store')
  (root / 'bucket').mkdir()
  with (
    fake_gcs.serving(root, tmp_path_factory.mktemp('own')) as server,
    pytest.MonkeyPatch.context() as patched,
  ):
    temporary = tmp_path_factory.mktemp('temporary')
    for name, value in server.environment().items():
      patched.setenv(name, value)
    patched.setenv('TMPDIR', str(temporary))
    server.temporary = temporary
    server.page = 20  # So that listings have several.
    yield server


def begin(line, cache):
  return subprocess.Popen(
    line,
    env=running.environment(cache),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def end(process, code):
  stdout, stderr = process.communicate(timeout=running.SECONDS)
  assert process.returncode == code, stderr
  return stdout, stderr


def together(lines, cache, codes):
  """Runs some commands at once; what each printed and said."""
  processes = [begin(line, cache) for line in lines]
  try:
    return [
      end(process, code) for process, code in zip(processes, codes, strict=True)
    ]
  finally:
    for process in processes:
      process.kill()


def killed_at(server, pattern, line, cache):
  """Starts a command that is killed as it sends a certain object."""
  process = begin(line, cache)

  def before(path):
    if not re.search(pattern, path):
      return False
    process.kill()
    return True

  server.before = before
  try:
    end(process, -signal.SIGKILL)
  finally:
    server.before = lambda path: False


def held_at(server, pattern, line, cache, meanwhile):
  """Runs a command to its end, and `meanwhile` while an object is awaited."""
  reached, let = threading.Event(), threading.Event()

  def before(path):
    if re.search(pattern, path) and not reached.is_set():
      reached.set()
      let.wait(running.SECONDS)
    return False

  server.before = before
  process = begin(line, cache)
  try:
    while not reached.wait(0.5):
      assert process.poll() is None, process.communicate()
    meanwhile()
    let.set()
    return end(process, 0)
  finally:
    let.set()
    server.before = lambda path: False
    process.kill()


@pytest.fixture(scope='module')
def run(store, whole_run, compiled):
  """A run in the bucket that was killed twice, while the store stumbled."""
  line = running.command('gs://bucket/run')
  store.trouble_every = _TROUBLE_EVERY
  for pattern in _KILLED_AT:
    killed_at(store, pattern, line, compiled)

  def meanwhile():
    status = running.command('gs://bucket/run', '--run_mode=status')
    (_, locked), (shown, _) = together([line, status], compiled, (7, 0))
    last = locked.splitlines()[-1]
    assert 'gs://bucket/run is in use by process' in last
    assert 'grow_1/improve_1' in shown

  done = held_at(store, _HELD_AT, line, compiled, meanwhile)
  store.trouble_every = 0
  assert store.troubles > 50
  return store.root / 'bucket/run', *done


def test_it_ends_as_a_run_in_a_folder_never_killed(run, whole_run, store):
  folder, stdout, stderr = run
  # What was committed before a kill was not made again.
  assert '[grow_1/samples] starting' not in stderr
  assert '[grow_1/improve_1] starting' in stderr
  assert running.digests(folder) == running.digests(whole_run.folder)
  assert running.results(folder) == running.results(whole_run.folder)
  for policy in _POLICIES:
    running.assert_equal_parameters(folder / policy, whole_run.folder / policy)
  figures = [line for line in whole_run.stdout.splitlines() if 'G1 I1' in line]
  assert figures[0].split()[:4] == next(
    line.split()[:4] for line in stdout.splitlines() if 'G1 I1' in line
  )
  left = {path.name for path in folder.rglob('*')}
  assert not left & {'begun.json', '.parts', '.work', '.lock', 'score_cache'}
  # Curves are there, from each start.
  assert list(folder.glob('tensorboard/grow_1/improve_1/events.*'))
  # On this machine nothing is left but the scores that were paid for.
  (local,) = store.temporary.glob(f'rest_jax-{os.getuid()}')
  assert local.stat().st_mode & 0o077 == 0
  files = [path.name for path in local.rglob('*') if path.is_file()]
  assert files and all('.sqlite' in name for name in files)


def test_it_is_evaluated_as_the_one_in_a_folder(
  run, whole_run, store, compiled, tmp_path
):
  copy = running.copy_of(whole_run.folder, tmp_path / 'run')
  evaluate = ('--run_mode=evaluate', '--split=test', '--policy=supervised')
  lines = [
    running.command(path, *evaluate) for path in ('gs://bucket/run', copy)
  ]
  together(lines, compiled, (0, 0))
  folder, *_ = run
  assert running.digests(folder) == running.digests(copy)
  assert running.results(folder) == running.results(copy)
  readings = [
    json.loads((f / 'test_readings.json').read_text()) for f in (folder, copy)
  ]
  assert readings[0][0]['policies'] == readings[1][0]['policies']


def test_it_is_branched_from(run, whole_run, compiled, tmp_path):
  preview = '--run_mode=preview'
  branch = running.command(
    tmp_path / 'branch', preview, '--gin.GROW_FROM=gs://bucket/run'
  )
  local = running.command(whole_run.folder, preview)
  (branched, _), (expected, _) = together([branch, local], compiled, (0, 0))
  assert 'Grow 1: V = E[R] =' in branched
  assert branched == expected


def test_text_is_read_from_it(store, compiled, tmp_path):
  data = store.root / 'bucket/data'
  data.mkdir()
  for language in ('de', 'en'):
    lines = [f'{language} {i}\u2028{i * i}' for i in range(12)]
    text = ''.join(f'{line}\n' for line in lines).encode()
    (data / f'packed.{language}.gz').write_bytes(gzip.compress(text))
    (data / f'dev.{language}').write_bytes(text)
  faulty = f'--gin_file={running.TESTING / "faulty.gin"}'
  there, here = 'gs://bucket/texts', tmp_path / 'texts'
  lines = [
    [
      *running.command(folder, '--stage=data', '--gin.TRAIN_SPLIT=packed')[:3],
      *(faulty, f'--gin.MODEL_DIR={folder}', f'--gin.DATA_DIR={texts}'),
      *('--stage=data', '--gin.TRAIN_SPLIT=packed'),
    ]
    for folder, texts in ((there, 'gs://bucket/data'), (here, data))
  ]
  together(lines, compiled, (0, 0))
  found = running.digests(store.root / 'bucket/texts')
  assert found == running.digests(here)
  assert len(found) == 3


def test_two_processes_share_what_the_first_writes(
  store, whole_run, compiled, monkeypatch
):
  shutil.copytree(whole_run.folder / 'data', store.root / 'bucket/two/data')
  # So small a run has no more rows than it takes to see who has them.
  line = running.command('gs://bucket/two', '--stage=supervised')
  ended = running.together([line, line], cache=compiled)
  assert [one.returncode for one in ended] == [0, 0], ended[0].stderr
  made = running.parameters(store.root / 'bucket/two/supervised')
  expected = running.parameters(whole_run.folder / 'supervised')
  for name, values in expected.items():
    np.testing.assert_allclose(made[name], values, atol=1e-4, err_msg=name)


def test_a_store_that_refuses_is_one_line(store, compiled):
  store.refused = r'POST .*name=unwritten/|GET .*/o/unread/'
  lines = [
    running.command('gs://bucket/unwritten'),
    running.command('gs://none/unwritten'),
    running.command('gs://bucket/unread', '--run_mode=status'),
  ]
  try:
    ended = together(lines, compiled, (8, 8, 8))
  finally:
    store.refused = None
  for (_, stderr), said in zip(
    ended,
    (
      'cannot write gs://bucket/unwritten/.lock: ',
      'cannot write gs://none/unwritten/.lock: ',
      'an object store failed: ',
    ),
    strict=True,
  ):
    (last,) = stderr.splitlines()
    assert last.startswith(f'StorageError: {said}')
    assert 'check that the bucket is there' in last
