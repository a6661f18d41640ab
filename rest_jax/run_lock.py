"""One process at a time in a run directory.

On a local (or NFS) file system the lock is an advisory `flock`, which the
kernel drops when its process ends however it ends, so a killed run never
blocks the next one. Object stores have no such thing; there the lock is a
lease: an object that its owner renews, and that counts for nothing when it has
not been renewed for `LEASE_SECONDS`, or when its owner was a process of this
machine and is no more. Of another machine nobody knows; so there one waits for
the renewal or for the end.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator

from etils import epath

from rest_jax import cluster, errors, storage

LEASE_SECONDS = 180.0
_WRONG_CLOCK = 10  # Leases: no owner's clock is so many of them behind ours.
_NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextlib.contextmanager
def hold(path: storage.PathLike) -> Iterator[None]:
  """Holds the lock file `path` while the context lasts.

  Args:
    path: the lock file; it is made if needed and stays afterwards.

  Raises:
    LockedError: another process holds it; the message names process and host.
    StorageError: the lock file cannot be written.
  """
  path = epath.Path(path)
  with contextlib.ExitStack() as stack:
    if not storage.is_local(path):
      # TensorFlow never ends making folders in a bucket that is not there.
      stack.enter_context(lease(path))
      yield
      return
    with storage.reporting(path):
      path.parent.mkdir(parents=True, exist_ok=True)
      file = stack.enter_context(open(path, 'a+b'))
    if not _has_flock(file):
      stack.enter_context(lease(path))
      yield
      return
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      raise _locked(path, _parse(file.read())) from None
    with storage.reporting(path):
      file.truncate(0)
      file.write(json.dumps(_owner()).encode())
      file.flush()
    yield  # Closing the file, or the death of the process, unlocks it.


def _has_flock(file) -> bool:
  """Whether the file system of an open file knows `flock` at all."""
  try:
    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  except OSError as error:
    if error.errno in _NO_FLOCK:
      return False
    raise
  fcntl.flock(file, fcntl.LOCK_UN)
  return True


@contextlib.contextmanager
def lease(
  path: storage.PathLike,
  *,
  seconds: float = LEASE_SECONDS,
  settle: float = 2.0,
) -> Iterator[None]:
  """Holds a lease on `path`: the lock for stores without `flock`.

  Args:
    path: the object that says who holds the lease and when it was renewed.
    seconds: how long a lease counts after its last renewal; it is renewed
      four times as often.
    settle: seconds between taking the lease and looking whether another
      process took it at the same moment (the later one wins).

  Raises:
    LockedError: another process holds it.
    StorageError: the object cannot be written.
  """
  path = epath.Path(path)
  _await_end(path, seconds)
  mine = _owner() | {'token': uuid.uuid4().hex}

  def renew():
    record = mine | {'renewed': time.time()}
    storage.write_atomic(path, json.dumps(record).encode())

  renew()
  time.sleep(settle)
  held = _read(path)
  if held.get('token') != mine['token']:
    raise _locked(path, held)
  stop = threading.Event()

  def keep():
    while not stop.wait(seconds / 4):
      # A store that is away for a moment costs one renewal of the four.
      with contextlib.suppress(errors.StorageError):
        held = _read(path)
        if held.get('token', mine['token']) != mine['token']:
          _lost(path, held)
          return
        renew()

  thread = threading.Thread(target=keep, name='run-lock', daemon=True)
  thread.start()
  try:
    yield
  finally:
    stop.set()
    thread.join()
    with contextlib.suppress(errors.StorageError), storage.reporting(path):
      if _read(path).get('token') == mine['token']:
        path.unlink()


def _lost(path: epath.Path, held: dict[str, object]) -> None:
  """Ends this process: two writers would be worse than one that died.

  Another one found the lease too old, as where this one was frozen for minutes.
  """
  error = _locked(path, held)
  print(f'{type(error).__name__}: {error}', file=sys.stderr)
  cluster.end(error.exit_code)


def _owner() -> dict[str, object]:
  now = datetime.datetime.now(datetime.UTC)
  return {
    'pid': os.getpid(),
    'host': socket.gethostname(),
    'machine': _machine(),
    'since': now.isoformat(timespec='seconds'),
  }


def _machine() -> str | None:
  """Where process numbers mean the same: this start of this machine.

  Containers of one machine see other processes under the same numbers.
  """
  try:
    with open('/proc/sys/kernel/random/boot_id') as file:
      return f'{file.read().strip()} {os.readlink("/proc/self/ns/pid")}'
  except OSError:
    return None  # Not Linux.


def _lives(owner: dict[str, object]) -> bool | None:
  """Whether the owner of a lease lives; None where that is not to be known."""
  pid, machine = owner.get('pid'), owner.get('machine')
  if not machine or machine != _machine() or not isinstance(pid, int):
    return None
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass  # Another user's.
  return True


def _await_end(path: epath.Path, seconds: float) -> None:
  """Waits for the end of a lease whose owner may be dead.

  Raises:
    LockedError: its owner lives.
    StorageError: the store cannot be read.
  """
  first, told = _read(path), False
  held, began = first, time.monotonic()
  while held:
    if time.time() - held.get('renewed', 0.0) > _WRONG_CLOCK * seconds:
      return
    # By this machine's clock alone: the owner's may differ from it.
    left = began + seconds - time.monotonic()
    lives = _lives(held)
    if lives or held.get('renewed') != first.get('renewed'):
      raise _locked(path, held)
    if left <= 0 or lives is False:
      return
    if not told:
      print(
        f'{_described(held)} holds {path} and may be dead: waiting for'
        f' {left:.0f} seconds at most',
        file=sys.stderr,
      )
    told = True
    time.sleep(min(left, seconds / 60))
    held = _read(path)


def _read(path: epath.Path) -> dict[str, object]:
  """The owner that a lease names; empty where there is none.

  Raises:
    StorageError: the store cannot be read.
  """
  with storage.reporting(path):
    try:
      return _parse(path.read_bytes())
    except FileNotFoundError:
      return {}


def _parse(data: bytes) -> dict[str, object]:
  """The owner that a lock file names; empty while it is being written."""
  try:
    return dict(json.loads(data))
  except (ValueError, TypeError):
    return {}


def _described(owner: dict[str, object]) -> str:
  if not owner:
    return 'another process'
  who = f'process {owner.get("pid")} on {owner.get("host")}'
  return f'{who} since {owner.get("since")}'


def _locked(path: epath.Path, owner: dict[str, object]) -> errors.LockedError:
  return errors.LockedError(
    f'{path.parent} is in use by {_described(owner)}: wait for it, stop it, or'
    ' choose another MODEL_DIR'
  )
