"""Runs the real main, and kills or watches the process.

  python instrumented.py '{"kill": ["REGEX", 2], "report": "FILE"}' FLAG …

`kill`: [regular expression, k]: SIGKILL just before the k-th rename onto a path
that it matches. Everything that a run keeps is renamed into place, so any
moment of its life on disk can be chosen, without a change to the program.
`terminate`: likewise, but SIGTERM.
`report`: a file for what was compiled and imported, as JSON.
"""

import collections
import json
import os
import re
import signal
import sys


def signal_at(pattern: str, count: int, sent: signal.Signals) -> None:
  left = count

  def hook(event, args):
    nonlocal left
    # os.replace is os.rename to the audit.
    if event == 'os.rename' and re.search(pattern, os.fspath(args[1])):
      left -= 1
      if not left:
        os.kill(os.getpid(), sent)

  sys.addaudithook(hook)


def count_compilations() -> collections.Counter:
  import jax

  compiled: collections.Counter = collections.Counter()

  def listen(event, duration, *, fun_name=None, **_):
    del duration
    if event == '/jax/core/compile/backend_compile_duration':
      compiled[fun_name] += 1

  jax.monitoring.register_event_duration_secs_listener(listen)
  return compiled


def run() -> None:
  settings = json.loads(sys.argv[1])
  sys.argv[:] = ['rest_jax', *sys.argv[2:]]
  if 'kill' in settings:
    signal_at(*settings['kill'], signal.SIGKILL)
  if 'terminate' in settings:
    signal_at(*settings['terminate'], signal.SIGTERM)
  compiled = {}
  if 'report' in settings:
    compiled = count_compilations()

  from rest_jax import main

  try:
    main.main()
  finally:
    if 'report' in settings:
      modules = sorted({name.partition('.')[0] for name in sys.modules})
      with open(settings['report'], 'w') as file:
        json.dump({'compiled': compiled, 'modules': modules}, file, indent=1)


if __name__ == '__main__':
  run()
