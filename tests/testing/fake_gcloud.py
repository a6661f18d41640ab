"""A gcloud for tests: records its calls, keeps a TPU VM in a folder, fails.

Called as `fake_gcloud.py CLOUD ARGUMENT…`. CLOUD is a folder with:

  calls.jsonl     one call a line, as JSON
  tpu, request, disk   state of each that exists
  workers         how many workers a TPU VM has
  fail            lines `WORDS<TAB>STATUS<TAB>MESSAGE`: the next call that holds
                  WORDS fails once with that status and message
  half            if there, a create that fails leaves a TPU in this state
  slow            if there, creating takes a minute
  queue           states that a queued resource passes through, one a line
  worker-N/       home of a worker; a new TPU VM has new ones
"""

import json
import pathlib
import shutil
import subprocess
import sys
import time

CLOUD = pathlib.Path(sys.argv[1])
CALL = sys.argv[2:]
TEXT = ' '.join(CALL)


def fail(message: str, status: int = 1) -> None:
  print(f'ERROR: (gcloud) {message}', file=sys.stderr)
  sys.exit(status)


def planned_failure() -> tuple[int, str] | None:
  path = CLOUD / 'fail'
  lines = path.read_text().splitlines() if path.exists() else []
  for i, line in enumerate(lines):
    words, status, message = line.split('\t')
    if words in TEXT:
      path.write_text(''.join(f'{x}\n' for x in lines[:i] + lines[i + 1 :]))
      return int(status), message
  return None


def read(name: str) -> str:
  if not (CLOUD / name).exists():
    fail(f'NOT_FOUND: Resource {name} was not found')
  return (CLOUD / name).read_text().strip()


def flag(name: str) -> str:
  return next(a for a in CALL if a.startswith(f'--{name}=')).partition('=')[2]


def workers() -> list[pathlib.Path]:
  return [CLOUD / f'worker-{i}' for i in range(int(read('workers')))]


def make_tpu() -> None:
  if '--data-disk' in TEXT:
    read('disk')
  for home in workers():
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
  (CLOUD / 'tpu').write_text('READY')


def chosen() -> list[pathlib.Path]:
  if read('tpu') != 'READY':
    fail(f'the TPU VM is in state {read("tpu")}')
  which = flag('worker')
  return workers() if which == 'all' else [CLOUD / f'worker-{which}']


def ssh() -> None:
  statuses = []
  for home in chosen():
    # ssh hands the words of gcloud's --command, joined, to a login shell.
    command = ['bash', '-c', ' '.join(flag('command').split(' '))]
    env = {
      'HOME': str(home),
      'CLOUD': str(CLOUD),
      'TMPDIR': str(home),
      'PATH': f'{CLOUD}/worker_bin:/usr/bin:/bin:/usr/sbin:/sbin',
    }
    done = subprocess.run(command, cwd=home, env=env, stdin=subprocess.DEVNULL)
    statuses.append(done.returncode)
  sys.exit(next((s for s in statuses if s), 0))


def scp() -> None:
  source = pathlib.Path(CALL[4])
  target = CALL[5].partition(':')[2] or source.name
  for home in chosen():
    if source.is_dir():
      shutil.copytree(source, home / target)
    else:
      shutil.copy(source, home / target)


def request_state() -> None:
  queue = CLOUD / 'queue'
  states = queue.read_text().split() if queue.exists() else []
  if states:
    queue.write_text('\n'.join(states[1:]))
    (CLOUD / 'request').write_text(states[0])
  if read('request') == 'ACTIVE' and not (CLOUD / 'tpu').exists():
    make_tpu()
  print(read('request'))


def main() -> None:
  with open(CLOUD / 'calls.jsonl', 'a') as file:
    file.write(json.dumps(CALL) + '\n')
  failure = planned_failure()
  if failure:
    if 'create' in CALL and (CLOUD / 'half').exists():
      shutil.copy(CLOUD / 'half', CLOUD / 'tpu')
    fail(failure[1], failure[0])
  print('Using a fake; this goes to standard error.', file=sys.stderr)
  noun, verb = CALL[1:4][-2:] if CALL[1] == 'tpus' else CALL[1:3]
  if (noun, verb) == ('tpu-vm', 'create'):
    if (CLOUD / 'slow').exists():
      (CLOUD / 'tpu').write_text('CREATING')
      time.sleep(60)
    make_tpu()
  elif (noun, verb) == ('queued-resources', 'create'):
    (CLOUD / 'request').write_text('ACTIVE')
  elif (noun, verb) == ('disks', 'create'):
    (CLOUD / 'disk').write_text('READY')
  elif (noun, verb) == ('tpu-vm', 'describe'):
    print(f'{read("tpu")}\t{read("workers")}')
  elif (noun, verb) == ('queued-resources', 'describe'):
    request_state()
  elif (noun, verb) == ('disks', 'describe'):
    print(read('disk'))
  elif verb == 'delete':
    name = {'tpu-vm': 'tpu', 'disks': 'disk', 'queued-resources': 'request'}
    read(name[noun])
    (CLOUD / name[noun]).unlink()
    if noun == 'queued-resources':
      if '--force' not in CALL:
        fail('the queued resource still has nodes')
      (CLOUD / 'tpu').unlink(missing_ok=True)
  elif verb == 'ssh':
    ssh()
  elif verb == 'scp':
    scp()
  else:
    fail(f'Invalid choice: {TEXT}', 2)


main()
