"""Runs the real main again and again in one process, which starts JAX once.

Reads a JSON object a line on standard input and answers each with another:
  argv: the flags.
  environment: variables that are set while it runs.
  full: regular expression; a file that it matches cannot be opened to be
    written, as on a full disk.
→ code: the exit status; stdout and stderr: what was written, by anybody.
"""

import errno
import json
import os
import re
import sys
import tempfile
import traceback

from absl import flags

import gin
from rest_jax import main, run_directory

_full = None


def fill_disk(event, args):
  if _full is None or event != 'open':
    return
  path, mode, flags_ = args
  writes = mode is not None and set('wax+') & set(mode)
  if (writes or flags_ & os.O_CREAT) and re.search(_full, str(path)):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def call(argv):
  sys.argv[:] = ['rest_jax', *argv]
  # What the end of a process would take with it.
  gin.clear_config(clear_constants=True)
  flags.FLAGS.unparse_flags()
  run_directory._verified.clear()
  try:
    main.main()
  except SystemExit as exited:
    return exited.code
  except BaseException:
    traceback.print_exc()
    return 'traceback'


def answer(request):
  global _full
  os.environ.update(request.get('environment', {}))
  _full = request.get('full')
  with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
    kept = os.dup(1), os.dup(2)
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    try:
      code = call(request['argv'])
    finally:
      sys.stdout.flush()
      sys.stderr.flush()
      for descriptor, number in zip(kept, (1, 2), strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    _full = None
    for name in request.get('environment', {}):
      del os.environ[name]
    out.seek(0)
    err.seek(0)
    return {
      'code': code,
      'stdout': out.read().decode(),
      'stderr': err.read().decode(),
    }


if __name__ == '__main__':
  sys.addaudithook(fill_disk)
  for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
