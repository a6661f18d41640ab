"""A fake cloud with a laptop beside it, for the tests of launch/.

The gcloud is a fake (fake_gcloud.py); its workers run worker.sh for real.
"""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / 'launch'
_FAKE = ROOT / 'tests/testing/fake_gcloud.py'
SCRIPTS = ('create', 'setup', 'run', 'watch', 'resume', 'fetch', 'delete')
WHERE = ['--project=my-project', '--zone=us-west4-a', '--quiet']
DELETE = 'gcloud compute tpus tpu-vm delete rest ' + ' '.join(WHERE)
DELETE_REQUEST = (
  f'gcloud compute tpus queued-resources delete rest {" ".join(WHERE)} --force'
)
DELETE_DISK = 'gcloud compute disks delete rest-data ' + ' '.join(WHERE)
ARGUMENTS = (
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
      'RUN_ARGUMENT': list(ARGUMENTS),
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
      shutil.copy(LAUNCH / 'worker.sh', home / 'rest_jax_worker.sh')
    return self

  def command(self, name: str, *flags: str) -> list[str]:
    lines = []
    for key, value in self.settings.items():
      values = value if isinstance(value, list) else [value]
      lines += [f'{key}={v}' for v in values]
    text = '# Comment\n\n' + '\n'.join(lines)  # No newline at the end.
    (self.here / 'my settings.env').write_text(text)
    return [str(LAUNCH / f'{name}.sh'), 'my settings.env', *flags]

  @property
  def environment(self) -> dict[str, str]:
    path = f'{self.path}/bin:/usr/bin:/bin'
    return {'PATH': path, 'HOME': str(self.here), 'LANG': 'C.UTF-8'}

  def script(self, name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    process = subprocess.Popen(
      self.command(name, *flags),
      cwd=self.here,
      env=self.environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )
    try:
      out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
      # What it called holds its output open, and would be waited for.
      os.killpg(process.pid, signal.SIGKILL)
      out, err = process.communicate()
      raise AssertionError(f'{name}.sh hangs:\n{out}\n{err}') from None
    return subprocess.CompletedProcess(
      process.args, process.returncode, out, err
    )

  def start(self, name: str) -> subprocess.Popen[str]:
    # What a shell starts in the background ignores SIGINT, and so would bash.
    heed = (
      'import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);'
      'os.execv(sys.argv[1], sys.argv[1:])'
    )
    return subprocess.Popen(
      [sys.executable, '-IS', '-c', heed, *self.command(name)],
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

  def follows(self) -> bool:
    """Whether a script has begun to ask the workers for their status."""
    return ssh('all', 'status') in self.calls()

  def wait_for(self, condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
      assert time.monotonic() < deadline
      time.sleep(0.02)


def ssh(worker: str, *words: str) -> list[str]:
  command = 'bash rest_jax_worker.sh ' + shlex.join(words)
  flags = [*WHERE, f'--worker={worker}', f'--command={command}']
  return ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', 'rest', *flags]


def scp(source: str, target: str) -> list[str]:
  start = ['gcloud', 'compute', 'tpus', 'tpu-vm', 'scp', source, target]
  return [*start, *WHERE, '--worker=all', '--recurse']


def describe_tpu() -> list[str]:
  start = ['gcloud', 'compute', 'tpus', 'tpu-vm', 'describe', 'rest', *WHERE]
  return [*start, '--format=value(state,networkEndpoints.len())']


def commands(printed: str) -> list[list[str]]:
  """The gcloud commands of a dry run, without where their output goes."""
  commands = []
  for line in printed.splitlines():
    words = shlex.split(line)
    ends = [i for i, word in enumerate(words) if word in ('|', '>')]
    commands.append(words[: ends[0]] if ends else words)
  return commands


def once(commands: list[list[str]]) -> list[list[str]]:
  """The commands, without those that only repeat the one before."""
  return [c for i, c in enumerate(commands) if i == 0 or c != commands[i - 1]]
