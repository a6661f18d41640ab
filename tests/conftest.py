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

import dataclasses
import json
import pathlib
import subprocess
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
    done: the process that made it.
    report: what that process compiled and imported, see testing/instrumented.
  """

  folder: pathlib.Path
  done: subprocess.CompletedProcess
  report: dict[str, Any]


@pytest.fixture(scope='session')
def compiled(tmp_path_factory) -> pathlib.Path:
  """A folder of compiled programs, which the runs of a session share."""
  return tmp_path_factory.mktemp('compiled')


@pytest.fixture(scope='session')
def whole_run(tmp_path_factory, compiled) -> WholeRun:
  """The tiny run that others are held against."""
  import running  # Of tests/testing; imports gin, which few tests need.

  folder = tmp_path_factory.mktemp('whole') / 'run'
  report = folder.parent / 'report.json'
  command = running.instrument(running.command(folder), report=report)
  done = running.start(command, cache=compiled)
  return WholeRun(folder, done, json.loads(report.read_text()))
