import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from rest_jax import errors, run_directory, run_lock, storage

CONFIG = {'Grow.num_samples': 8, 'Sampling.temperature': 0.8}
INPUTS = {'supervised': 'f00d'}


@pytest.fixture
def run(tmp_path):
  return run_directory.RunDirectory(tmp_path / 'run')


def fresh(run):
  """The same run directory as another process would see it."""
  run_directory._verified.clear()
  return run_directory.RunDirectory(run.path)


def committed_stage(run, name='grow_1/samples', config=CONFIG):
  stage = run.stage(name)
  stage.begin(config, INPUTS)
  stage.write_part('part-00000.parquet', b'first', {'rows': 5})
  stage.write_part('part-00001.parquet', b'second', {'rows': 6})
  stage.commit({'rows': 11}, 2.5, {'note': 'x'})
  return stage


def test_commit_records_everything_and_can_be_read_again(run):
  committed_stage(run)
  stage = fresh(run).stage('grow_1/samples')
  assert stage.committed
  assert not stage.begun
  manifest = stage.manifest
  assert manifest['config'] == CONFIG
  assert manifest['inputs'] == INPUTS
  assert manifest['counts'] == {'rows': 11}
  assert manifest['seconds'] == 2.5
  assert manifest['extra'] == {'note': 'x'}
  # printf first | sha256sum
  assert manifest['files']['part-00000.parquet'] == [
    5,
    'a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e',
  ]
  stage.verify()
  left = sorted(entry.name for entry in stage.folder.iterdir())
  assert left == ['part-00000.parquet', 'part-00001.parquet', 'stage.json']


def test_fingerprint_knows_config_inputs_and_files_but_not_cost(tmp_path):
  def fingerprint(
    name, *, config=CONFIG, inputs=INPUTS, data=b'a', seconds=1.0
  ):
    stage = run_directory.RunDirectory(tmp_path / name).stage('s')
    stage.begin(config, inputs)
    stage.write_part('part', data)
    stage.commit({'rows': seconds}, seconds)
    return stage.fingerprint

  base = fingerprint('a')
  assert fingerprint('b', seconds=9.0) == base
  others = {
    fingerprint('c', config={}),
    fingerprint('d', inputs={'supervised': 'beef'}),
    fingerprint('e', data=b'b'),
  }
  assert len(others | {base}) == 4


@pytest.mark.parametrize('half_done', [False, True])
def test_changed_configuration_names_every_binding_and_the_way_out(
  run, half_done
):
  stage = run.stage('grow_1/samples')
  stage.begin(CONFIG, INPUTS)
  if not half_done:
    stage.commit({}, 0.0)
  changed = {'Grow.num_samples': 8, 'Sampling.temperature': 0.7, 'new': 1}
  with pytest.raises(errors.ConfigurationError) as caught:
    fresh(run).stage('grow_1/samples').begin(
      changed, {'supervised': 'beef'}, 'branch with COMMAND'
    )
  message = str(caught.value)
  assert 'Sampling.temperature = 0.8, now 0.7' in message
  assert 'new = nothing, now 1' in message
  assert "input supervised 'f00d', now 'beef'" in message
  assert message.endswith(', or branch with COMMAND')
  assert (f'delete {stage.folder}' in message) == half_done
  assert 'num_samples' not in message
  assert '\n' not in message


def test_same_configuration_goes_on_whatever_its_python_types(run):
  run.stage('s').begin({'taus': (0.7, 0.8), 'n': 1}, {})
  again = fresh(run).stage('s')
  assert again.begun
  again.begin({'n': 1, 'taus': [0.7, 0.8]}, {})
  again.commit({}, 0)
  again.begin({'n': 1, 'taus': (0.7, 0.8)}, {})
  assert again.made_with({'n': 1, 'taus': (0.7, 0.8)})
  assert not again.made_with({'n': 2, 'taus': (0.7, 0.8)})


def test_parts_of_a_begun_stage_are_known_after_a_death(run):
  stage = run.stage('s')
  stage.begin(CONFIG, {})
  stage.write_part('part-00000.parquet', b'first', {'rows': 5})
  # Written, but the process died before its sidecar: not committed.
  storage.write_atomic(stage.folder / 'part-00001.parquet', b'second')
  (stage.folder / '.part-00002.parquet.tmp-1-2').write_bytes(b'half')
  again = fresh(run).stage('s')
  again.begin(CONFIG, {})
  assert again.part('part-00000.parquet') == {'rows': 5}
  assert again.part('part-00001.parquet') is None
  assert again.part('part-00002.parquet') is None
  assert not (stage.folder / '.part-00002.parquet.tmp-1-2').exists()
  again.write_part('part-00001.parquet', b'zweiter')
  again.commit({}, 1.0)
  assert set(again.manifest['files']) == {
    'part-00000.parquet',
    'part-00001.parquet',
  }


@pytest.mark.parametrize('damage', [b'firs', b'f1rst'])
def test_altered_part_of_a_begun_stage_is_named(run, damage):
  stage = run.stage('s')
  stage.begin(CONFIG, {})
  stage.write_part('part-00000.parquet', b'first', {'rows': 5})
  (stage.folder / 'part-00000.parquet').write_bytes(damage)
  with pytest.raises(
    errors.CorruptStateError, match=r'part-00000.*delete that'
  ):
    stage.part('part-00000.parquet')
  with pytest.raises(errors.CorruptStateError, match='part-00000'):
    stage.commit({}, 1.0)
  assert not stage.committed
  (stage.folder / 'part-00000.parquet').unlink()
  assert stage.part('part-00000.parquet') is None


@pytest.mark.parametrize('damage', [b'firs', b'f1rst', None])
def test_verify_names_a_damaged_file(run, damage):
  stage = committed_stage(run)
  path = stage.folder / 'part-00000.parquet'
  path.unlink() if damage is None else path.write_bytes(damage)
  with pytest.raises(errors.CorruptStateError, match=r'part-00000\.parquet'):
    fresh(run).stage('grow_1/samples').verify()


def test_verify_reads_files_once_a_process(run, monkeypatch):
  committed_stage(run)
  stage = fresh(run).stage('grow_1/samples')
  calls = []
  real = storage.checksum
  monkeypatch.setattr(
    storage, 'checksum', lambda path: calls.append(path) or real(path)
  )
  stage.verify()
  run.stage('grow_1/samples').verify()
  assert len(calls) == 2  # Two parts, once each.


def test_altered_manifest_is_seen(run):
  stage = committed_stage(run)
  path = stage.folder / 'stage.json'
  manifest = json.loads(path.read_text())
  manifest['config']['Sampling.temperature'] = 0.9
  path.write_text(json.dumps(manifest))
  with pytest.raises(errors.CorruptStateError, match='altered'):
    _ = fresh(run).stage('grow_1/samples').fingerprint
  path.write_text(path.read_text()[:-20])
  with pytest.raises(errors.CorruptStateError, match='not valid JSON'):
    _ = fresh(run).stage('grow_1/samples').fingerprint


def test_a_stage_of_another_layout_version_is_refused(run):
  stage = committed_stage(run)
  path = stage.folder / 'stage.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'schema': 99}))
  with pytest.raises(errors.ConfigurationError, match='layout version 99'):
    _ = fresh(run).stage('grow_1/samples').manifest


def test_uncommitted_stage_has_no_manifest(run):
  with pytest.raises(errors.CorruptStateError, match='is not committed'):
    _ = run.stage('supervised').manifest


def test_files_of_nobody_are_not_taken_over(run):
  folder = run.path / 'grow_1' / 'samples'
  folder.mkdir(parents=True)
  (folder / 'part-00007.parquet').write_bytes(b'old')
  with pytest.raises(errors.CorruptStateError, match='part-00007'):
    run.stage('grow_1/samples').begin(CONFIG, {})


def test_nested_stages_keep_to_their_own_files(run):
  inner = committed_stage(run, 'grow_1/improve_1')
  outer = run.stage('grow_1')
  outer.begin({}, {'inner': inner.fingerprint})
  storage.write_atomic(outer.folder / 'deep' / '.zarray', b'{}')
  outer.commit({}, 0)
  assert set(outer.manifest['files']) == {'deep/.zarray'}
  assert [s.name for s in run.stages()] == ['grow_1', 'grow_1/improve_1']


def test_commit_needs_a_begun_stage(run):
  with pytest.raises(errors.CorruptStateError, match=r'begun\.json'):
    run.stage('s').commit({}, 0)


@pytest.mark.parametrize('name', ['', '../x', 'a//b', '/etc', 'a/.parts'])
def test_stage_names_stay_inside(run, name):
  with pytest.raises(errors.ConfigurationError, match='name of a stage'):
    run.stage(name)


def test_full_disk_leaves_old_file_and_no_rubbish(tmp_path, monkeypatch):
  path = tmp_path / 'a' / 'file'
  storage.write_atomic(path, b'old')

  def full(descriptor):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(errors.StorageError, match=r'file: No space.*free some'):
    storage.write_atomic(path, b'new')
  assert path.read_bytes() == b'old'
  assert [entry.name for entry in path.parent.iterdir()] == ['file']


@pytest.mark.parametrize(
  'code, hint', [(errno.EROFS, 'read-only'), (errno.EACCES, 'permission')]
)
def test_unwritable_run_directory_is_a_storage_error(
  run, monkeypatch, code, hint
):
  def refuse(*args, **kwargs):
    raise OSError(code, os.strerror(code))

  monkeypatch.setattr(os, 'replace', refuse)
  with pytest.raises(errors.StorageError, match=hint):
    run.stage('s').begin({}, {})


def test_a_file_in_the_place_of_the_run_directory(tmp_path):
  (tmp_path / 'run').write_text('not a folder')
  run = run_directory.RunDirectory(tmp_path / 'run')
  with pytest.raises(errors.StorageError, match='a file stands'), run.lock():
    pass


def test_writes_are_all_or_nothing_under_sigkill(tmp_path):
  """A reader beside a writer that is killed sees whole files only."""
  path = tmp_path / 'value.json'
  code = textwrap.dedent(f"""
    from rest_jax import storage
    for number in range(10 ** 9):
      text = str(number % 10) * 200_000
      storage.write_atomic({str(path)!r}, text.encode())
  """)
  for _ in range(3):
    path.unlink(missing_ok=True)
    writer = subprocess.Popen([sys.executable, '-c', code])
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
      time.sleep(0.01)
    seen = set()
    while len(seen) < 5 and time.monotonic() < deadline:
      data = path.read_bytes()
      assert len(data) == 200_000
      assert len(set(data)) == 1
      seen.add(data[0])
    assert len(seen) == 5, 'it does not write'
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    data = path.read_bytes()
    assert len(data) == 200_000
    assert len(set(data)) == 1


def test_what_only_the_making_needs_is_not_committed(run):
  stage = run.stage('grow_1/improve_1')
  stage.begin(CONFIG, INPUTS)
  storage.write_atomic(stage.work / 'checkpoints' / '5', b'state')
  again = fresh(run).stage('grow_1/improve_1')
  again.begin(CONFIG, INPUTS)
  assert (again.work / 'checkpoints' / '5').read_bytes() == b'state'
  storage.write_atomic(again.folder / 'params', b'params')
  again.commit({}, 0.0)
  assert list(again.manifest['files']) == ['params']
  assert not again.work.exists()


def test_content_stands_for_files_that_never_are_the_same_twice(run):
  def made(content, name, other=b'same'):
    stage = run.stage(f's{made.count}')
    made.count += 1
    stage.begin(CONFIG, INPUTS)
    storage.write_atomic(stage.folder / 'params' / name, name.encode())
    storage.write_atomic(stage.folder / 'params.json', other)
    stage.commit({}, 0.0, contents={'params': content})
    again = fresh(run).stage(stage.name)
    again.verify()
    return again

  made.count = 0
  stage = made('c0ffee', 'one')
  assert made('c0ffee', 'two').fingerprint == stage.fingerprint
  assert made('bad', 'one').fingerprint != stage.fingerprint
  assert made('c0ffee', 'one', b'other').fingerprint != stage.fingerprint
  (stage.folder / 'params' / 'one').write_bytes(b'two')
  with pytest.raises(errors.CorruptStateError, match='params/one'):
    fresh(run).stage(stage.name).verify()


def test_what_a_death_after_the_commit_left_is_removed(run):
  stage = run.stage('s')
  stage.begin(CONFIG, INPUTS)
  stage.commit({}, 0.0)
  storage.write_atomic(stage.work / 'rows', b'left')
  again = fresh(run).stage('s')
  again.begin(CONFIG, INPUTS)
  again.verify()
  assert not again.work.exists()


def test_an_abandoned_stage_begins_with_other_settings(run):
  nested = run.stage('s/evaluation/report')
  nested.begin(CONFIG, INPUTS)
  nested.commit({}, 0.0)
  stage = run.stage('s')
  stage.begin(CONFIG, INPUTS)
  stage.write_part('part-00000.parquet', b'first')
  storage.write_atomic(stage.work / 'rows', b'rows')
  storage.write_atomic(stage.folder / 'train' / 'part', b'no part of ours')
  stage.abandon()
  assert not stage.begun
  again = fresh(run).stage('s')
  again.begin({'n': 2}, {})
  assert again.part('part-00000.parquet') is None
  again.commit({}, 0.0)
  assert not again.manifest['files']
  nested.verify()


KILLED_EVERYWHERE = """
import os, pathlib, signal, sys
from rest_jax import run_directory

def make(path):
  run = run_directory.RunDirectory(path)
  with run.lock():
    stage = run.stage('grow_1/samples')
    stage.begin({'n': 8}, {})
    if not stage.committed:
      for number in range(3):
        name = f'part-{number:05d}.parquet'
        if stage.part(name) is None:
          stage.write_part(name, f'rows of {number}'.encode(), {'rows': 1})
      stage.commit({'rows': 3}, 1.0)
    stage.verify()
    return stage.fingerprint, sorted(os.listdir(stage.folder))

def die_at(moment, function):
  count = 0
  def wrapped(*args):
    nonlocal count
    count += 1
    if count == moment:
      os.kill(os.getpid(), signal.SIGKILL)
    return function(*args)
  return wrapped

root = pathlib.Path(sys.argv[1])
expected = make(root / 'undisturbed')
deaths = 0
for call in ('replace', 'fsync', 'remove'):
  for moment in range(1, 18):
    path = root / f'{call}-{moment}'
    child = os.fork()
    if not child:
      setattr(os, call, die_at(moment, getattr(os, call)))
      make(path)
      os._exit(0)
    deaths += os.waitpid(child, 0)[1] == signal.SIGKILL
    run_directory._verified.clear()
    assert make(path)[0] == expected[0], (call, moment)
print(deaths)
"""


def test_killed_at_any_write_a_stage_ends_as_if_undisturbed(tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', KILLED_EVERYWHERE, str(tmp_path)],
    check=True,
    stdout=subprocess.PIPE,
  )
  # Eight files are written: begun.json, three parts with sidecars, stage.json.
  # Each is renamed once, and forced to disk with its folder; what is left over
  # is removed after the commit.
  assert int(done.stdout) >= 8 + 2 * 8


HOLDER = """
import sys
from rest_jax import run_directory
with run_directory.RunDirectory(sys.argv[1]).lock():
  print('held', flush=True)
  sys.stdin.read()
"""


def test_second_process_is_told_who_works_here_and_death_unlocks(run):
  holder = subprocess.Popen(
    [sys.executable, '-c', HOLDER, str(run.path)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )
  with holder:
    assert holder.stdout.readline() == b'held\n'
    with (
      pytest.raises(errors.LockedError, match=f'process {holder.pid} on '),
      run.lock(),
    ):
      pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
  with (
    run.lock(),
    pytest.raises(errors.LockedError, match=f'process {os.getpid()} on '),
    run.lock(),
  ):
    pass
  with run.lock():
    pass


def test_lease_is_exclusive_renewed_and_expires(tmp_path):
  path = tmp_path / '.lock'
  with run_lock.lease(path, seconds=1.5, settle=0.0):
    first = json.loads(path.read_text())['renewed']
    deadline = time.monotonic() + 20
    while json.loads(path.read_text())['renewed'] == first:
      assert time.monotonic() < deadline, 'it is not renewed'
      time.sleep(0.05)
    with (
      pytest.raises(errors.LockedError, match=f'process {os.getpid()}'),
      run_lock.lease(path, seconds=1.5, settle=0.0),
    ):
      pass
  assert not path.exists()
  dead = {'pid': 1, 'host': 'gone', 'since': '?', 'renewed': time.time() - 2}
  path.write_text(json.dumps(dead))
  with run_lock.lease(path, seconds=1.5, settle=0.0):
    assert json.loads(path.read_text())['pid'] == os.getpid()


LEASE_HOLDER = """
import sys
from rest_jax import run_lock
with run_lock.lease(sys.argv[1], settle=0.0):
  print('held', flush=True)
  sys.stdin.read()
"""


def test_lease_of_a_dead_process_of_this_machine_is_free_at_once(tmp_path):
  path = tmp_path / '.lock'
  holder = subprocess.Popen(
    [sys.executable, '-c', LEASE_HOLDER, str(path)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )
  with holder:
    assert holder.stdout.readline() == b'held\n'
    with (
      pytest.raises(errors.LockedError, match=f'process {holder.pid} on '),
      run_lock.lease(path, settle=0.0),
    ):
      pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
  with run_lock.lease(path, settle=0.0):
    assert json.loads(path.read_text())['pid'] == os.getpid()


@pytest.mark.parametrize('behind', [0.0, 100.0])  # The owner's clock.
@pytest.mark.parametrize('renewed', [False, True])
def test_lease_of_another_machine_is_waited_for(
  tmp_path, capsys, renewed, behind
):
  path = tmp_path / '.lock'
  held = {'pid': os.getpid(), 'host': 'far', 'since': '?', 'machine': 'another'}

  def renew():
    record = held | {'renewed': time.time() - (behind if renewed else 0.0)}
    storage.write_atomic(path, json.dumps(record).encode())

  renew()
  began = time.monotonic()
  if renewed:
    timer = threading.Timer(0.2, renew)
    timer.start()
    with (
      pytest.raises(errors.LockedError, match=f'process {os.getpid()} on far'),
      run_lock.lease(path, seconds=60.0, settle=0.0),
    ):
      pass
    timer.join()
  else:
    with run_lock.lease(path, seconds=0.5, settle=0.0):
      assert time.monotonic() - began >= 0.4
      assert json.loads(path.read_text())['host'] != 'far'
  assert 'may be dead: waiting for' in capsys.readouterr().err


def test_a_lease_that_another_took_over_is_not_renewed(tmp_path, monkeypatch):
  path, ended = tmp_path / '.lock', threading.Event()
  monkeypatch.setattr(run_lock, '_lost', lambda path, held: ended.set())
  other = {'pid': 7, 'host': 'far', 'since': '?', 'renewed': time.time()}
  with run_lock.lease(path, seconds=0.4, settle=0.0):
    storage.write_atomic(path, json.dumps(other | {'token': 'b'}).encode())
    assert ended.wait(5)
  # It is the other's, and stays.
  assert json.loads(path.read_text())['token'] == 'b'


def test_of_two_leases_taken_at_once_one_wins(tmp_path):
  path = tmp_path / '.lock'
  outcomes = []

  def take():
    try:
      with run_lock.lease(path, seconds=60.0, settle=0.3):
        outcomes.append('held')
        time.sleep(0.5)
    except errors.LockedError:
      outcomes.append('locked')

  threads = [threading.Thread(target=take) for _ in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sorted(outcomes) == ['held', 'locked']


def test_state_is_read_without_importing_jax():
  code = textwrap.dedent("""
    import sys
    from rest_jax import preview, run_directory, schedule, selection
    from rest_jax.data import imported, scored, store
    assert 'jax' not in sys.modules and 'tensorflow' not in sys.modules
  """)
  subprocess.run([sys.executable, '-c', code], check=True)


def test_what_systems_put_into_folders_is_not_a_stages(run):
  stage = run.stage('grow_1/samples')
  for name in ('.DS_Store', '._part-00000', '.nfs000123'):
    (stage.folder / name).parent.mkdir(parents=True, exist_ok=True)
    (stage.folder / name).write_bytes(b'x')
  stage.begin(CONFIG, {})
  stage.write_part('part-00000.parquet', b'rows', {'rows': 1})
  stage.commit({'rows': 1}, 0.0)
  assert list(stage.manifest['files']) == ['part-00000.parquet']
  (stage.folder / '.DS_Store').write_bytes(b'changed')
  fresh(run).stage('grow_1/samples').verify()
