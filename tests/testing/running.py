"""Starts the real main: as a process of its own, or within this one."""

import contextlib
import csv
import dataclasses
import io
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from absl.testing import flagsaver

import gin
import rest_jax
from rest_jax import main, storage
from rest_jax.checkpoint import native

TESTING = pathlib.Path(__file__).parent
TINY = f'--gin_file={TESTING / "tiny.gin"}'
LEARNED = f'--gin_file={TESTING / "tiny_learned.gin"}'
SECONDS = 300  # After which a process counts as hung.


def environment(
  cache: pathlib.Path | None = None, devices: int = 1
) -> dict[str, str]:
  """Of a process: its devices, and ours before any other rest_jax.

  Args:
    cache: folder of compiled programs that processes share, to save time.
    devices: how many it sees.
  """
  out = dict(os.environ)
  out['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={devices}'
  out['PYTHONPATH'] = os.pathsep.join(
    [str(pathlib.Path(rest_jax.__file__).parents[1]), str(TESTING)]
  )
  if cache is not None:
    out['JAX_COMPILATION_CACHE_DIR'] = str(cache)
    out['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    out['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
  return out


def command(model_dir: pathlib.Path, *arguments: str) -> list[str]:
  """The command line of a tiny run."""
  model = f'--gin.MODEL_DIR={model_dir}'
  return [sys.executable, '-m', 'rest_jax.main', TINY, model, *arguments]


def instrument(line: Sequence[str], **settings: Any) -> list[str]:
  """A command line, killed or watched as `instrumented.py` says."""
  script = [str(TESTING / 'instrumented.py'), json.dumps(settings, default=str)]
  return [line[0], *script, *line[3:]]


def start(
  arguments: Sequence[str],
  *,
  cache: pathlib.Path | None = None,
  devices: int = 1,
  expected: int = 0,
  stdin: str = '',
) -> subprocess.CompletedProcess:
  """Runs a command to its end, and checks its exit status.

  Args:
    arguments: as `command` makes them.
    cache: as in `environment`.
    devices: as in `environment`.
    expected: the exit status that it must have; -9 is SIGKILL's.
    stdin: text for its standard input.
  """
  done = subprocess.run(
    arguments,
    env=environment(cache, devices),
    input=stdin,
    capture_output=True,
    text=True,
    timeout=SECONDS,
  )
  assert done.returncode == expected, done.stderr
  return done


def together(
  commands: Sequence[Sequence[str]],
  *,
  cache: pathlib.Path | None = None,
  devices: int = 1,
  seconds: int = 3 * SECONDS,
  heartbeat: int = 10,
  signalled: Callable[[list[subprocess.Popen]], None] = lambda started: None,
) -> list[subprocess.CompletedProcess]:
  """Runs a job of several processes to the end of all of them.

  Args:
    commands: of each process, as `command` makes them, without the flags by
      which the processes find each other.
    cache: as in `environment`.
    devices: of each process.
    seconds: after which a process counts as hung; an error then.
    heartbeat: see `--heartbeat_seconds`.
    signalled: called with the processes once they are started.
  """
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  flags_of_all = [
    f'--coordinator_address=127.0.0.1:{port}',
    f'--num_processes={len(commands)}',
    f'--heartbeat_seconds={heartbeat}',
  ]
  started, files = [], []
  with contextlib.ExitStack() as stack:
    for number, line in enumerate(commands):
      files.append(
        [stack.enter_context(tempfile.TemporaryFile('w+')) for _ in range(2)]
      )
      started.append(
        subprocess.Popen(
          [*line, *flags_of_all, f'--process_id={number}'],
          env=environment(cache, devices),
          stdin=subprocess.DEVNULL,
          stdout=files[-1][0],
          stderr=files[-1][1],
        )
      )
      stack.callback(_end, started[-1])
    signalled(started)
    deadline = time.monotonic() + seconds
    for process in started:
      process.wait(max(1.0, deadline - time.monotonic()))
    ended = []
    for process, pair in zip(started, files, strict=True):
      for file in pair:
        file.seek(0)
      said = (file.read() for file in pair)
      ended.append(
        subprocess.CompletedProcess(process.args, process.returncode, *said)
      )
    return ended


def _end(process: subprocess.Popen) -> None:
  process.kill()
  process.wait()


@dataclasses.dataclass(frozen=True)
class Ended:
  """How main ended within this process."""

  code: int
  stdout: str
  stderr: str


def within(*arguments: str) -> Ended:
  """Runs main in this process: for what neither trains nor decodes."""
  out, err = io.StringIO(), io.StringIO()
  kept, sys.argv = sys.argv, ['rest_jax', *arguments]
  with (
    flagsaver.flagsaver(),
    contextlib.redirect_stdout(out),
    contextlib.redirect_stderr(err),
  ):
    gin.clear_config(clear_constants=True)
    flags.FLAGS.unparse_flags()
    try:
      code = main._with_exit_code(main._parse_flags(sys.argv))
    except SystemExit as exited:
      code = exited.code
    finally:
      sys.argv = kept
      gin.clear_config(clear_constants=True)
  return Ended(code, out.getvalue(), err.getvalue())


def in_another(commands: Sequence[Sequence[str]]) -> list[Ended]:
  """`within`, for each of some commands, in one further process.

  There nothing checks types but what checks them for users too.
  """
  done = start(
    [sys.executable, str(TESTING / 'running.py')],
    stdin=json.dumps([list(arguments) for arguments in commands]),
  )
  return [Ended(**ended) for ended in json.loads(done.stdout)]


def in_transformers(jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """What transformers says of folders; see hugging_face_peer.py."""
  done = start(
    [sys.executable, str(TESTING / 'hugging_face_peer.py')],
    stdin=json.dumps(list(jobs)),
  )
  return json.loads(done.stdout.splitlines()[-1])


def copy_of(run: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
  """A copy of a run directory, for a test that changes it."""
  shutil.copytree(run, to)
  return to


def digests(run: pathlib.Path, pattern: str = '**/*.parquet') -> dict[str, str]:
  """SHA-256 of the files that match, by their path in the run directory."""
  return {
    str(path.relative_to(run)): storage.checksum(path)[1]
    for path in sorted(run.glob(pattern))
    if path.is_file()
  }


def parameters(stage: pathlib.Path) -> dict[str, np.ndarray]:
  """The parameters of a committed policy, by name."""
  folder = stage / 'params'
  index = json.loads((folder / 'checkpoint.json').read_text())
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract: dict[str, Any] = {}
  for name, (shape, dtype) in index['arrays'].items():
    *above, last = name.split('/')
    inner = abstract
    for part in above:
      inner = inner.setdefault(part, {})
    inner[last] = jax.ShapeDtypeStruct(shape, dtype, sharding=here)
  params = native.restore_params(folder, abstract)
  return {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def assert_equal_parameters(stage: pathlib.Path, other: pathlib.Path) -> None:
  """Checks that two committed policies are one, to the last bit."""
  params, others = parameters(stage), parameters(other)
  assert params.keys() == others.keys()
  for name, values in params.items():
    np.testing.assert_array_equal(values, others[name], name)


def results(run: pathlib.Path) -> list[dict[str, str]]:
  """The rows of results.csv, without what no two runs share."""
  with open(run / 'results.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  for row in rows:
    assert float(row.pop('seconds')) >= 0
    assert float(row.pop('device_seconds')) >= 0
  return rows


if __name__ == '__main__':
  ended = [within(*arguments) for arguments in json.load(sys.stdin)]
  print(json.dumps([dataclasses.asdict(one) for one in ended]))
