"""The scripts in launch/ that run, follow, resume and fetch."""

import os
import shlex
import shutil
import signal

import pytest
from launching import (
  ARGUMENTS,
  DELETE,
  DELETE_DISK,
  Cloud,
  commands,
  describe_tpu,
  once,
  ssh,
)


@pytest.fixture
def cloud(tmp_path) -> Cloud:
  return Cloud(tmp_path)


def test_run(cloud):
  cloud.made()
  done = cloud.script('run')
  assert done.returncode == 0, done.stderr
  model_dir = cloud.settings['MODEL_DIR']
  arguments = [*ARGUMENTS, f'--gin.MODEL_DIR={model_dir}']
  calls = cloud.calls()
  assert calls[0] == describe_tpu()
  assert shlex.split(calls[1][-1].removeprefix('--command=')) == [
    'bash', 'rest_jax_worker.sh', 'start', cloud.settings['DATA_MOUNT'],
    *arguments,
  ]  # fmt: skip
  assert calls[1][:-1] == ssh('all')[:-1]
  assert all(c == ssh('all', 'status') for c in calls[2:-1])
  assert calls[-1] == ssh('0', 'log')
  # They came through two shells as they are in the settings file.
  assert cloud.read('arguments').splitlines() == [
    '-m', 'rest_jax.main', *arguments
  ]  # fmt: skip
  log = cloud.here / 'my logs/rest-1/worker-0.log'
  assert log.read_text() == 'log of 0\nstep 0\n'
  assert 't1v-n-1-w-0: step 0' in done.stdout
  assert 'delete.sh deletes it' in done.stderr


@pytest.mark.parametrize(
  ('plan', 'status', 'says'),
  [
    (['0', '0'], 0, 'done'),
    (['3'], 3, 't1v-n-1-w-0 ended with status 3; logs in my logs/rest-1'),
    (['0', '6'], 6, 't1v-n-1-w-1 ended with status 6'),
    (['75', '75'], 75, 't1v-n-1-w-0 was stopped (75)'),
    (['signal-TERM'], 75, 't1v-n-1-w-0 was stopped (143)'),
    (['75', '134'], 75,
     'status 134 on t1v-n-1-w-1: JAX aborted them because t1v-n-1-w-0 (75)'),
    (['signal-ABRT', 'signal-KILL', '134'], 137,
     'status 134 on t1v-n-1-w-0 t1v-n-1-w-2: JAX aborted them because'
     ' t1v-n-1-w-1 (137) had died; logs in my logs/rest-1'),
    (['134', '134'], 134, 'status 134 on t1v-n-1-w-0 t1v-n-1-w-1: aborted'),
    (['75', '2', '134'], 2, 'because t1v-n-1-w-1 (2) had died'),
  ],
)  # fmt: skip
def test_status_of_a_run(cloud, plan, status, says):
  cloud.plan(*plan)
  cloud.made(workers=len(plan))
  done = cloud.script('run')
  assert done.returncode == status, done.stderr
  (line,) = [x for x in done.stderr.splitlines() if says in x]
  assert line.startswith('run.sh: ')
  for number in range(len(plan)):
    log = cloud.here / f'my logs/rest-1/worker-{number}.log'
    assert log.read_text().startswith(f'log of {number}\n')
  assert (f'to delete it: {DELETE}' in done.stderr) == (status != 0)


def test_a_worker_without_a_status_is_started_again(cloud):
  cloud.made()
  run = cloud.path / 'worker-0/rest_jax_run'
  run.mkdir()
  (run / 'lock').touch()  # As a machine that was restarted has it.
  (run / 'log').write_text('step 7\n')
  done = cloud.script('watch')
  assert done.returncode == 75
  assert 't1v-n-1-w-0 was stopped (lost)' in done.stderr


@pytest.mark.parametrize(
  ('status', 'ended', 'says'),
  [
    ('0', 75, 't1v-n-1-w-1 was stopped (none)'),
    # What a worker did of itself comes first.
    ('2', 2, 't1v-n-1-w-0 ended with status 2'),
  ],
)
def test_a_run_that_was_not_started_on_every_worker(cloud, status, ended, says):
  cloud.plan('0', '0')
  cloud.made(workers=2)
  run = cloud.path / 'worker-0/rest_jax_run'
  run.mkdir()
  (run / 'log').write_text('step 7\n')
  (run / 'status').write_text(f'{status}\n')
  done = cloud.script('watch')
  assert done.returncode == ended, done.stderr
  assert says in done.stderr
  assert (cloud.here / 'my logs/rest-1/worker-0.log').exists()


def test_run_is_detached_and_watch_goes_on_with_it(cloud):
  cloud.plan('wait 0')
  cloud.made()
  run = cloud.start('run')
  cloud.wait_for(cloud.follows)
  os.killpg(run.pid, signal.SIGINT)
  _, stderr = run.communicate(timeout=20)
  assert run.returncode == 130
  assert 'what was started on rest goes on: watch.sh follows it' in stderr
  assert f'to delete it: {DELETE}' in stderr
  second = cloud.script('run')
  assert second.returncode == 1
  assert 'a run is going on here' in second.stderr
  assert cloud.read('plan-0') == '0\n'  # It was not started.
  watch = cloud.start('watch')
  cloud.write('go', '')
  watch.communicate(timeout=20)
  assert watch.returncode == 0


def test_watch_without_a_run(cloud):
  cloud.made()
  done = cloud.script('watch')
  assert done.returncode == 1
  assert 'no run was started on rest: run.sh starts one' in done.stderr


def test_run_without_a_tpu_or_setup(cloud):
  done = cloud.script('run')
  assert done.returncode == 75
  assert 'does not exist in us-west4-a: create.sh makes it' in done.stderr
  cloud.script('create')
  assert cloud.script('run').returncode == 127  # No worker.sh there.
  assert cloud.script('setup').returncode == 0
  shutil.rmtree(cloud.path / 'worker-0/rest_jax_venv')
  assert 'rest_jax is not installed: run setup.sh' in cloud.script('run').stderr


def test_silent_workers(cloud):
  cloud.made()
  for _ in range(4):
    cloud.fail('sh status', 255)
  assert cloud.script('run').returncode == 0
  cloud.plan('0')
  for _ in range(5):
    cloud.fail('sh status', 255)
  done = cloud.script('run')
  assert done.returncode == 69
  assert 'workers of rest do not answer' in done.stderr


def test_a_network_that_is_away_for_a_moment(cloud):
  cloud.made()
  cloud.plan('wait')
  run = cloud.start('run')
  cloud.wait_for(cloud.follows)
  for _ in range(2):  # Neither workers nor the cloud itself answer.
    cloud.fail('sh status', 255)
    cloud.fail('tpu-vm describe')
  look = ssh('all', 'status')
  before = len(cloud.calls())
  cloud.wait_for(lambda: cloud.calls()[before:].count(look) >= 4)
  cloud.write('go', '')
  assert run.wait(timeout=20) == 0
  run.communicate()


def test_stale_libtpu_lock(cloud):
  cloud.made()
  home = cloud.path / 'worker-0'
  lock = home / 'libtpu_lockfile'
  lock.touch()
  (home / 'tpu_user').write_text(' 4321')
  done = cloud.script('run')
  assert done.returncode == 1
  assert 't1v-n-1-w-0: the TPU is in use by process 4321' in done.stderr
  assert lock.exists()
  (home / 'tpu_user').unlink()
  assert cloud.script('run').returncode == 0
  assert not lock.exists()


def test_resume_makes_the_tpu_again_until_it_is_done(cloud):
  cloud.plan('preempt preempt 75 0')
  done = cloud.script('resume')
  assert done.returncode == 0, done.stderr
  verbs = [v for v in cloud.verbs() if v != 'tpu-vm ssh']
  once = ['tpu-vm create', 'tpu-vm scp', 'tpu-vm scp']
  again = ['tpu-vm delete', *once]
  assert verbs == ['disks create', *once, *again, *again]
  # The disk outlived both: the run found what it had left, four times.
  starts = (cloud.path / 'data disk/my run/starts').read_text()
  assert len(starts.splitlines()) == 4
  assert cloud.read('root').count('mkfs') == 1
  assert 'TPU VM rest is PREEMPTED' in done.stderr


def test_resume_of_a_queued_spot_request(cloud):
  cloud.settings['PROVISIONING'] = 'queued-spot'
  cloud.plan('suspend 0')
  done = cloud.script('resume')
  assert done.returncode == 0, done.stderr
  verbs = [v for v in cloud.verbs() if v.startswith('queued')]
  assert verbs == [
    'queued-resources create', 'queued-resources delete',
    'queued-resources create',
  ]  # fmt: skip


def _goes_on(cloud):
  """A run that goes on, which nothing follows."""
  cloud.plan('wait')
  cloud.made()
  run = cloud.start('run')
  cloud.wait_for(cloud.follows)
  os.killpg(run.pid, signal.SIGINT)
  run.communicate(timeout=20)


def test_resume_follows_a_run_that_goes_on(cloud):
  _goes_on(cloud)
  before = len(cloud.calls())
  resume = cloud.start('resume')
  # Its first look finds the run going on; the second one is that of watch.sh.
  look = ssh('all', 'status')
  cloud.wait_for(lambda: cloud.calls()[before:].count(look) >= 2)
  cloud.write('go', '')
  assert resume.wait(timeout=20) == 0
  resume.communicate()
  assert cloud.read('plan-0') == ''  # One start in all.
  assert 'tpu-vm create' not in cloud.verbs()


def test_resume_leaves_a_run_alone_that_its_first_look_missed(cloud):
  _goes_on(cloud)
  installed = cloud.path / 'worker-0/rest_jax_venv/mark'
  installed.write_text('')
  cloud.fail('sh status', 255)
  resume = cloud.start('resume')
  before = len(cloud.calls())
  look = ssh('all', 'status')
  cloud.wait_for(lambda: cloud.calls()[before:].count(look) >= 4)
  cloud.write('go', '')
  assert resume.wait(timeout=20) == 0
  _, said = resume.communicate()
  assert 'a run is going on here' in said
  assert installed.exists()  # Its Python was not taken away.
  assert cloud.read('plan-0') == ''  # One start in all.


def test_resume_sets_up_what_was_only_created(cloud):
  cloud.script('create')
  assert cloud.script('resume').returncode == 0


@pytest.mark.parametrize(
  ('plan', 'status', 'starts'),
  [('3 0', 3, 1), ('134 0', 134, 1), ('75 75 75 0', 75, 3)],
)
def test_resume_ends(cloud, plan, status, starts):
  cloud.settings['MAX_STARTS'] = '3'
  cloud.plan(plan)
  done = cloud.script('resume')
  assert done.returncode == status
  begun = (cloud.path / 'data disk/my run/starts').read_text()
  assert len(begun.splitlines()) == starts
  assert done.stderr.count(f'to delete it: {DELETE}\n') == 1
  assert ('MAX_STARTS=3' in done.stderr) == (starts == 3)


def test_resume_tries_again_where_there_is_no_room(cloud):
  cloud.fail('tpu-vm create', message='no more capacity in the zone')
  assert cloud.script('resume').returncode == 0
  cloud.script('delete')
  cloud.fail('tpu-vm create', 2, 'unrecognized arguments: --sopt')
  assert cloud.script('resume').returncode == 2


def test_resume_installs_what_was_mended(cloud):
  cloud.settings['MAX_STARTS'] = '3'
  cloud.plan('2')  # A faulty gin file, say.
  assert cloud.script('resume').returncode == 2
  cloud.plan('75 0')
  before = cloud.read('uv').count('pip install')
  assert cloud.script('resume').returncode == 0
  # Once, not at each start: the program stays the same amid a run.
  assert cloud.read('uv').count('pip install') == before + 1


def test_resume_needs_a_disk(cloud):
  cloud.settings.update(DATA_DISK='', PROVISIONING='on-demand')
  done = cloud.script('resume')
  assert done.returncode == 2
  assert 'DATA_DISK is not set' in done.stderr
  assert cloud.calls() == []


def test_fetch(cloud):
  cloud.made()
  cloud.script('run')
  done = cloud.script('fetch')
  assert done.returncode == 0, done.stderr
  assert cloud.calls()[-1] == ssh('0', 'archive', cloud.settings['MODEL_DIR'])
  fetched = cloud.here / 'my results/my run'
  assert sorted(p.name for p in fetched.iterdir()) == ['starts']
  cloud.settings['MODEL_DIR'] += '/absent'
  done = cloud.script('fetch')
  assert done.returncode == 1
  assert 'there is no folder' in done.stderr


@pytest.mark.parametrize('provisioning', ['spot', 'queued'])
def test_a_dry_run_prints_what_a_real_run_calls(cloud, provisioning):
  cloud.settings['PROVISIONING'] = provisioning
  cloud.settings['LOG_DIR'] = 'logs'
  order = ['create', 'setup', 'run', 'watch', 'fetch', 'delete', 'resume']
  printed = {}
  for name in order:
    done = cloud.script(name, '--dry-run')
    assert (done.returncode, done.stderr) == (0, '')
    printed[name] = commands(done.stdout)
  assert cloud.calls() == []
  assert not (cloud.here / 'logs').exists()
  cloud.plan('0 0')
  for name in order:
    assert cloud.script(name).returncode == 0, name
    real = cloud.calls()
    (cloud.path / 'calls.jsonl').unlink()
    # A run is looked at until it has ended, which a dry run does once. The
    # disk is there when resume comes, which the dry run did not assume.
    if name == 'resume':
      printed[name] = [
        c for c in printed[name] if c[2:4] != ['disks', 'create']
      ]
    assert once(printed[name]) == once(real), name


def test_dry_run_of_delete_with_the_disk(cloud):
  done = cloud.script('delete', '--dry-run', '--disk')
  assert done.stdout.splitlines()[-1] == DELETE_DISK
