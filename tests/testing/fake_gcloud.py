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
import os
import sys

# Few imports: it starts some hundred times in a test run.
CLOUD = sys.argv[1]
CALL = sys.argv[2:]
TEXT = ' '.join(CALL)


def fail(message: str, status: int = 1) -> None:
  print(f'ERROR: (gcloud) {message}', file=sys.stderr)
  sys.exit(status)


def planned_failure() -> tuple[int, str] | None:
  lines = read('fail').splitlines() if exists('fail') else []
  for i, line in enumerate(lines):
    words, status, message = line.split('\t')
    if words in TEXT:
      write('fail', ''.join(f'{x}\n' for x in lines[:i] + lines[i + 1 :]))
      return int(status), message
  return None


def exists(name: str) -> bool:
  return os.path.exists(f'{CLOUD}/{name}')


def read(name: str) -> str:
  if not exists(name):
    fail(f'NOT_FOUND: Resource {name} was not found')
  with open(f'{CLOUD}/{name}') as file:
    return file.read().strip()


def write(name: str, text: str) -> None:
  with open(f'{CLOUD}/{name}', 'w') as file:
    file.write(text)


def copy(source: str, target: str) -> None:
  run(['/bin/cp', '-r', source, target], '/', {})


def run(command: list[str], folder: str, env: dict[str, str]) -> int:
  os.chdir(folder)
  process = os.posix_spawn(command[0], command, env)
  return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def flag(name: str) -> str:
  return next(a for a in CALL if a.startswith(f'--{name}=')).partition('=')[2]


def workers() -> list[str]:
  return [f'{CLOUD}/worker-{i}' for i in range(int(read('workers')))]


def make_tpu() -> None:
  if '--data-disk' in TEXT:
    read('disk')
  for home in workers():
    run(['/bin/rm', '-rf', home], '/', {})
    os.mkdir(home)
  write('tpu', 'READY')


def chosen() -> list[str]:
  if read('tpu') != 'READY':
    fail(f'the TPU VM is in state {read("tpu")}')
  which = flag('worker')
  return workers() if which == 'all' else [f'{CLOUD}/worker-{which}']


def ssh() -> None:
  statuses = []
  for home in chosen():
    # ssh hands the words of gcloud's --command, joined, to a login shell.
    command = ['/bin/bash', '-c', ' '.join(flag('command').split(' '))]
    env = {
      'HOME': home,
      'CLOUD': CLOUD,
      'TMPDIR': home,
      'PATH': f'{CLOUD}/worker_bin:/usr/bin:/bin:/usr/sbin:/sbin',
    }
    statuses.append(run(command, home, env))
  sys.exit(next((s for s in statuses if s), 0))


def scp() -> None:
  source = os.path.abspath(CALL[4])
  target = CALL[5].partition(':')[2] or os.path.basename(source)
  for home in chosen():
    copy(source, f'{home}/{target}')


def request_state() -> None:
  states = read('queue').split() if exists('queue') else []
  if states:
    write('queue', '\n'.join(states[1:]))
    write('request', states[0])
  if read('request') == 'ACTIVE' and not exists('tpu'):
    make_tpu()
  print(read('request'))


def main() -> None:
  with open(f'{CLOUD}/calls.jsonl', 'a') as file:
    file.write(json.dumps(CALL) + '\n')
  failure = planned_failure()
  if failure:
    if 'create' in CALL and exists('half'):
      write('tpu', read('half'))
    fail(failure[1], failure[0])
  print('Using a fake; this goes to standard error.', file=sys.stderr)
  noun, verb = CALL[1:4][-2:] if CALL[1] == 'tpus' else CALL[1:3]
  if (noun, verb) == ('tpu-vm', 'create'):
    if exists('slow'):
      write('tpu', 'CREATING')
      run(['/bin/sleep', '60'], '/', {})
    make_tpu()
  elif (noun, verb) == ('queued-resources', 'create'):
    write('request', 'ACTIVE')
  elif (noun, verb) == ('disks', 'create'):
    write('disk', 'READY')
  elif (noun, verb) == ('tpu-vm', 'describe'):
    print(f'{read("tpu")}\t{read("workers")}')
  elif (noun, verb) == ('queued-resources', 'describe'):
    request_state()
  elif (noun, verb) == ('disks', 'describe'):
    print(read('disk'))
  elif verb == 'delete':
    name = {'tpu-vm': 'tpu', 'disks': 'disk', 'queued-resources': 'request'}
    read(name[noun])
    os.remove(f'{CLOUD}/{name[noun]}')
    if noun == 'queued-resources':
      if '--force' not in CALL:
        fail('the queued resource still has nodes')
      if exists('tpu'):
        os.remove(f'{CLOUD}/tpu')
  elif verb == 'ssh':
    ssh()
  elif verb == 'scp':
    scp()
  else:
    fail(f'Invalid choice: {TEXT}', 2)


main()
