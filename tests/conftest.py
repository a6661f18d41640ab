"""Strict settings for every test; they must precede the first import of jax."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
  ]
).strip()
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
# Compiling is most of what tests do. LLVM's passes alone are left out: XLA's
# own, whose results are counted and compared, are all there.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'

import dataclasses
import fcntl
import json
import pathlib
from typing import Any

import jaxtyping
import pytest

# Shapes and dtypes in annotations are checked here and nowhere else.
jaxtyping.install_import_hook('rest_jax', 'beartype.beartype')

import jax  # noqa: E402

# Two arrays of different rank never meet without saying how they line up.
jax.config.update('jax_numpy_rank_promotion', 'raise')


@dataclasses.dataclass(frozen=True)
class WholeRun:
  """A tiny run of the real main, from beginning to end; not to be changed.

  Attributes:
    folder: its run directory.
    stdout: what it printed.
    stderr: what it said while it ran.
    report: what its process compiled and imported, see testing/instrumented.
  """

  folder: pathlib.Path
  stdout: str
  stderr: str
  report: dict[str, Any]


@pytest.fixture
def optimized():
  """All of LLVM's passes, as a user has them: for what is said of bits."""
  jax.clear_caches()
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.clear_caches()
  jax.config.update('jax_disable_most_optimizations', True)


@pytest.fixture(scope='session')
def shared(tmp_path_factory) -> pathlib.Path:
  """A folder that all processes of this test session share."""
  base = tmp_path_factory.getbasetemp()
  return base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base


@pytest.fixture(scope='session')
def compiled(shared) -> pathlib.Path:
  """A folder of compiled programs, which the runs of a session share."""
  return shared / 'compiled'


@pytest.fixture(scope='session')
def whole_run(shared, compiled) -> WholeRun:
  """The tiny run that others are held against, made once."""
  import running  # Of tests/testing; imports gin, which few tests need.

  folder, said = shared / 'whole_run', shared / 'whole_run.json'
  report = shared / 'whole_run_report.json'
  with open(shared / 'whole_run.lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not said.exists():
      command = running.instrument(running.command(folder), report=report)
      done = running.start(command, cache=compiled)
      said.write_text(json.dumps([done.stdout, done.stderr]))
  return WholeRun(
    folder, *json.loads(said.read_text()), json.loads(report.read_text())
  )
