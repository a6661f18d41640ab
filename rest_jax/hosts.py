"""The processes of a job: which one this is, and what they must agree on.

JAX's multi-controller runtime runs the same program in every process. Its
coordination service carries what is small and rare here: decisions of the first
process, numbers that all of them need, errors. Arrays go by JAX's collectives.

Every process must come to the same calls in the same order. A process alone
needs nothing of this: there every function returns what it is given, and JAX is
not even imported.
"""

import contextlib
import difflib
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from rest_jax import errors
from rest_jax import job as job_lib
from rest_jax.job import Job

T = TypeVar('T')

_SEEN_SECONDS = 120.0  # Until a network file system shows a file to all.
_NUM_DIFFERENCES = 3  # Shown of two configurations.
INTERRUPTED = 130  # As a shell reports SIGINT.


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
  key = f'{job_lib.KEY}/result/{job.turn}'
  job.turn += 1
  if job.index:
    return job.wait_for(key)
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
  folder, key = (
    f'{job_lib.KEY}/turn/{job.turn}/',
    f'{job_lib.KEY}/result/{job.turn}',
  )
  job.turn += 1
  job.set(f'{folder}{job.index}', [what, value])
  if job.index:
    # The first process finds out who is missing, and tells.
    return job.wait_for(key, folder, what)
  try:
    values = job.collect(folder, what)
  except errors.HostsError as error:
    fail(error)
    raise
  for old in job.told:  # All are here, so all have read it.
    job.client.key_value_delete(old)
  job.set(key, values)
  job.client.key_value_delete(folder)  # Last: one of the two always tells.
  job.told = [key]
  return values


def get_on(sign: str, *, at_once: bool = False) -> bool:
  """Says that this process gets on with its work, and looks at the others.

  To be called often: it does so once in `job.POLL_SECONDS`.

  Args:
    sign: a key of the coordination service.
    at_once: whether to do so now, however short ago it last did.

  Returns:
    Whether anything is set there.

  Raises:
    HostsError: another process failed.
  """
  job = _job
  if job is None or (not at_once and time.monotonic() < job.next_look):
    return False
  job.next_look = time.monotonic() + job_lib.POLL_SECONDS
  job.steps += 1
  job.client.key_value_set(
    f'{job_lib.PROGRESS}{job.index}', f'{job.steps}', True
  )
  job.raise_if_failed()
  return job.has(sign) is not None


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
  exit_code = getattr(error, 'exit_code', 1)
  if isinstance(error, KeyboardInterrupt):
    exit_code = INTERRUPTED
  with contextlib.suppress(RuntimeError):  # Another process was faster.
    job.set(job_lib.FAILED, [job.index, exit_code, text])


def await_others() -> None:
  """Waits until those that have heard of an error from this one are gone."""
  if _job is not None:
    with contextlib.suppress(RuntimeError):  # The service may be gone too.
      _job.await_others()


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
  return gather_each([rows], size)[0]


def gather_each(arrays: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
  """`gather_rows` of each of some arrays, after one barrier."""
  job = _job
  if job is None or job.alone:
    return list(arrays)
  gather(f'{size} rows', None)  # With a time limit, which the next has not.
  from jax.experimental import multihost_utils

  each, out = -(-size // count()), []
  for rows in arrays:
    padded = np.zeros((each, *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    everything = multihost_utils.process_allgather(padded, tiled=True)
    out.append(np.asarray(everything, rows.dtype)[:size])
  return out


def fetch(array: Any) -> np.ndarray:
  """All of an array of JAX's on the host, also where others hold parts of it.

  All processes that hold some have to ask, so never within `on_first`.
  """
  if _job is None or getattr(array, 'is_fully_addressable', True):
    return np.asarray(array)
  from jax.experimental import multihost_utils

  return multihost_utils.process_allgather(array, tiled=True)


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


def see(path: Any, text: str | None = None) -> None:
  """Waits until a file that another process has written is seen here.

  Args:
    path: the file.
    text: what is in it; None: whatever it is.

  Raises:
    StorageError: it is not; hosts need a file system in common.
  """
  deadline = time.monotonic() + _SEEN_SECONDS
  while _job is not None and not _seen(path, text):
    if time.monotonic() > deadline:
      raise errors.StorageError(
        f'{path}, which another process has written, is not to be seen on'
        f' {socket.gethostname()}: MODEL_DIR must be a folder that all hosts'
        ' share'
      )
    time.sleep(0.1)


def _seen(path: Any, text: str | None) -> bool:
  if text is None:
    return path.exists()
  try:
    return path.read_text() == text
  except OSError:
    return False


def mine(items: Any) -> Iterator[Any]:
  """Yields every k-th of some things, so that each process has its own."""
  for number, item in enumerate(items):
    if number % (1 if _job is None or _job.alone else count()) == index():
      yield item
