"""The processes of a job: which one this is, and what they must agree on.

JAX's multi-controller runtime runs the same program in every process. Its
coordination service carries what is small and rare here: decisions of the first
process, numbers that all of them need, errors. Arrays go by JAX's collectives.

Every process must come to the same calls in the same order. A process alone
needs nothing of this: there every function returns what it is given, and JAX is
not even imported.
"""

import contextlib
import dataclasses
import difflib
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from rest_jax import errors

T = TypeVar('T')

POLL_SECONDS = 1.0  # Between two looks whether another process has failed.
_SEEN_SECONDS = 120.0  # Until a network file system shows a file to all.
KEY = 'rest_jax'
_FAILED = f'{KEY}/failed'
_NUM_DIFFERENCES = 3  # Shown of two configurations.


@dataclasses.dataclass
class Job:
  """More than one process, seen from this one.

  Attributes:
    client: of JAX's coordination service.
    index: number of this process.
    names: the host of every process.
    heartbeat_seconds: after which JAX takes a silent process for dead.
    barrier_seconds: after which a process that does not come is missing.
    turn: how often the processes have come together.
    alone: whether the first process works while the others wait for it.
    told: keys that the others may still have to read.
  """

  client: Any
  index: int
  names: list[str]
  heartbeat_seconds: int
  barrier_seconds: float
  turn: int = 0
  alone: bool = False
  told: list[str] = dataclasses.field(default_factory=list)

  def describe(self, index: int) -> str:
    return f'process {index} on {self.names[index]}'

  def set(self, key: str, value: Any) -> None:
    self.client.key_value_set(key, json.dumps(value))

  def raise_if_failed(self) -> None:
    """Raises what another process has told before it ended."""
    try:
      told = self.client.key_value_try_get(_FAILED)
    except RuntimeError:  # Not found, JAX says.
      return
    index, exit_code, text = json.loads(told)
    raise errors.HostsError(f'{self.describe(index)}: {text}', exit_code)

  def collect(self, folder: str, what: str) -> list[Any]:
    """What every process has set in a folder, for the first process."""
    deadline, pause = time.monotonic() + self.barrier_seconds, 0.002
    while True:
      found = {
        int(key.rpartition('/')[2]): json.loads(value)
        for key, value in self.client.key_value_dir_get(folder)
      }
      missing = [i for i in range(len(self.names)) if i not in found]
      if not missing:
        break
      self.raise_if_failed()
      if time.monotonic() > deadline:
        raise errors.HostsError(
          f'{", ".join(map(self.describe, missing))} did not come to {what!r}'
          f' within {self.barrier_seconds:g} s: look at its log, and start the'
          ' same command again on all hosts; --barrier_seconds sets the limit.'
        )
      time.sleep(pause)
      pause = min(1.5 * pause, 0.25)
    for index, (other, _) in found.items():
      if other != what:
        raise errors.HostsError(
          f'{self.describe(index)} is at {other!r}, and the first process at'
          f' {what!r}: start the same command on all hosts.'
        )
    return [found[i][1] for i in range(len(self.names))]

  def wait_for(self, key: str, seconds: float | None) -> Any:
    """What the first process tells; None waits as long as it lives."""
    deadline = time.monotonic() + (seconds or np.inf)
    while True:
      try:
        value = self.client.blocking_key_value_get(
          key, int(1000 * POLL_SECONDS)
        )
        return json.loads(value)
      except RuntimeError as error:
        if 'DEADLINE_EXCEEDED' not in str(error):
          raise
      self.raise_if_failed()
      if time.monotonic() > deadline:
        raise errors.HostsError(
          f'{self.describe(0)} told nothing for {seconds:g} s: look at its log,'
          ' and start the same command again on all hosts.'
        )


_job: Job | None = None


def become(job: Job | None) -> None:
  """Makes this process one of a job; see `cluster`."""
  global _job
  _job = job


def job() -> Job | None:
  """What this process is one of; None where it is alone."""
  return _job


def index() -> int:
  """The number of this process, from 0; 0 while the first works alone."""
  return 0 if _job is None or _job.alone else _job.index


def count() -> int:
  """How many processes there are, working or waiting."""
  return 1 if _job is None else len(_job.names)


def is_first() -> bool:
  """Whether this process writes what the run has only one of."""
  return _job is None or _job.index == 0


def on_first(work: Callable[[], T]) -> T:
  """Has the first process do something, while the others wait for the result.

  They wait as long as it lives.

  Args:
    work: returns what JSON can hold.

  Raises:
    HostsError: in the others, if it failed.
  """
  job = _job
  if job is None or job.alone:
    return work()
  key = f'{KEY}/result/{job.turn}'
  job.turn += 1
  if job.index:
    return job.wait_for(key, None)
  job.alone = True
  try:
    value = json.loads(json.dumps(work()))
  finally:
    job.alone = False
  job.set(key, value)
  job.told.append(key)
  return value


def gather(what: str, value: Any) -> list[Any]:
  """What every process has, in their order; so it is a barrier as well.

  Args:
    what: a name for it, the same in all processes.
    value: what JSON can hold.

  Raises:
    HostsError: a process failed, or did not come; it is named.
  """
  job = _job
  if job is None or job.alone:
    return [value]
  folder, key = f'{KEY}/turn/{job.turn}/', f'{KEY}/result/{job.turn}'
  job.turn += 1
  job.set(f'{folder}{job.index}', [what, value])
  if job.index:
    # The first process finds out who is missing, and tells.
    return job.wait_for(key, job.barrier_seconds + 10 * POLL_SECONDS)
  try:
    values = job.collect(folder, what)
  except errors.HostsError as error:
    fail(error)
    raise
  for old in job.told:  # All are here, so all have read it.
    job.client.key_value_delete(old)
  job.client.key_value_delete(folder)
  job.set(key, values)
  job.told = [key]
  return values


def fail(error: BaseException) -> None:
  """Tells the others that this process ends, and why.

  An error of JAX's own comes most often of another process's death. Then JAX is
  about to abort this one, and it waits for that.
  """
  job = _job
  if job is None:
    return
  if isinstance(error, RuntimeError) and 'jax' in type(error).__module__:
    time.sleep(job.heartbeat_seconds + 10)
  text = ' '.join(f'{type(error).__name__}: {error}'.split())
  with contextlib.suppress(RuntimeError):  # Another process was faster.
    job.set(_FAILED, [job.index, getattr(error, 'exit_code', 1), text])


def share(size: int) -> slice:
  """This process's part of `size` things in a row."""
  if _job is None or _job.alone:
    return slice(0, size)
  each = -(-size // count())
  return slice(min(size, index() * each), min(size, (index() + 1) * each))


def gather_rows(rows: np.ndarray, size: int) -> np.ndarray:
  """The rows of all processes, in the order of `share`.

  Args:
    rows: [m, …], of this process's share.
    size: rows in all.

  Returns:
    [size, …].
  """
  job = _job
  if job is None or job.alone:
    return rows
  gather(f'{size} rows', None)  # With a time limit, which the next has not.
  from jax.experimental import multihost_utils

  each = -(-size // count())
  padded = np.zeros((each, *rows.shape[1:]), rows.dtype)
  padded[: len(rows)] = rows
  everything = multihost_utils.process_allgather(padded, tiled=True)
  return np.asarray(everything, rows.dtype)[:size]


def check_same(what: str, mine: Mapping[str, str]) -> None:
  """Holds some texts of all processes against each other.

  Args:
    what: whose texts they are, for the error.
    mine: name → text.

  Raises:
    ConfigurationError: they differ; says where.
  """
  everybody = gather(what, dict(mine))
  for number, theirs in enumerate(everybody):
    for name, text in theirs.items():
      if text != everybody[0].get(name):
        first = _job.describe(0)
        raise errors.ConfigurationError(
          f'{_job.describe(number)} has another {name} than {first}'
          f' ({_differences(everybody[0].get(name, ""), text)}): start the same'
          ' command, with the same code and data, on all hosts.'
        )


def _differences(first: str, other: str) -> str:
  lines = difflib.unified_diff(
    first.splitlines(), other.splitlines(), lineterm='', n=0
  )
  changed = [
    line for line in lines if line[:1] in '+-' and line[1:2] != line[0]
  ]
  more = len(changed) - 2 * _NUM_DIFFERENCES
  shown = '; '.join(line.strip() for line in changed[: 2 * _NUM_DIFFERENCES])
  return f'{shown}{f"; and {more} more lines" if more > 0 else ""}'


def see(path: Any) -> None:
  """Waits until a file that another process has written is seen here.

  Raises:
    StorageError: it is not; hosts need a file system in common.
  """
  deadline = time.monotonic() + _SEEN_SECONDS
  while _job is not None and not path.exists():
    if time.monotonic() > deadline:
      raise errors.StorageError(
        f'{path}, which another process has written, is not to be seen on'
        f' {socket.gethostname()}: MODEL_DIR must be a folder that all hosts'
        ' share'
      )
    time.sleep(0.1)


def mine(items: Any) -> Iterator[Any]:
  """Yields every k-th of some things, so that each process has its own."""
  for number, item in enumerate(items):
    if number % (1 if _job is None or _job.alone else count()) == index():
      yield item
