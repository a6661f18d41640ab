"""Starts a command and ends it when the run that wanted it is gone.

A run that is killed cannot end what it started, so it starts this program
instead, which holds the other end of a pipe of the run's. The pipe closes with
the run, however that ends, and then the command and all that it started (its
process group) are ended.

Run by its path, in a bare interpreter: the standard library alone.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

NOT_STARTED = 127  # As a shell's.
_GRACE_SECONDS = 2.0


def main(leash: int, argv: Sequence[str]) -> int:
  """Runs a command until it ends or the leash does.

  Args:
    leash: descriptor of the pipe's reading end.
    argv: the command; it gets our standard input, output and error.

  Returns:
    Its exit status, 128 + the signal that ended it, or `NOT_STARTED`.
  """
  try:
    child = subprocess.Popen(argv, start_new_session=True)
  except OSError as error:
    print(f'cannot start {argv[0]!r}: {error.strerror}', file=sys.stderr)
    return NOT_STARTED
  threading.Thread(target=_watch, args=(leash, child), daemon=True).start()
  code = child.wait()
  _signal(child, signal.SIGKILL)  # Whatever it has left behind.
  return code if code >= 0 else 128 - code


def _watch(leash: int, child: subprocess.Popen) -> None:
  os.read(leash, 1)  # Nothing is ever written: it returns at the end.
  _signal(child, signal.SIGTERM)
  time.sleep(_GRACE_SECONDS)
  _signal(child, signal.SIGKILL)


def _signal(child: subprocess.Popen, number: int) -> None:
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.killpg(child.pid, number)


if __name__ == '__main__':
  sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
