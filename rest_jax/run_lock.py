"""One process at a time in a run directory.

On a local (or NFS) file system the lock is an advisory `flock`, which the
kernel drops when its process ends however it ends, so a killed run never
blocks the next one. Object stores have no such thing; there the lock is a
lease: an object that its owner renews, and that counts for nothing when it has
not been renewed for `LEASE_SECONDS`.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator

from etils import epath

from rest_jax import errors, storage

LEASE_SECONDS = 180.0
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
  with storage.reporting(path):
    path.parent.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    if not storage.is_local(path):
      stack.enter_context(lease(path))
      yield
      return
    with storage.reporting(path):
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
  held = _parse(path.read_bytes()) if path.exists() else {}
  if held and time.time() - held.get('renewed', 0.0) < seconds:
    raise _locked(path, held)
  mine = _owner() | {'token': uuid.uuid4().hex}

  def renew():
    record = mine | {'renewed': time.time()}
    storage.write_atomic(path, json.dumps(record).encode())

  renew()
  time.sleep(settle)
  held = _parse(path.read_bytes())
  if held.get('token') != mine['token']:
    raise _locked(path, held)
  stop = threading.Event()

  def keep():
    while not stop.wait(seconds / 4):
      # A store that is away for a moment costs one renewal of the four.
      with contextlib.suppress(errors.StorageError):
        renew()

  thread = threading.Thread(target=keep, name='run-lock', daemon=True)
  thread.start()
  try:
    yield
  finally:
    stop.set()
    thread.join()
    with contextlib.suppress(OSError):
      path.unlink()


def _owner() -> dict[str, object]:
  now = datetime.datetime.now(datetime.UTC)
  return {
    'pid': os.getpid(),
    'host': socket.gethostname(),
    'since': now.isoformat(timespec='seconds'),
  }


def _parse(data: bytes) -> dict[str, object]:
  """The owner that a lock file names; empty while it is being written."""
  try:
    return dict(json.loads(data))
  except (ValueError, TypeError):
    return {}


def _locked(path: epath.Path, owner: dict[str, object]) -> errors.LockedError:
  if owner:
    who = f'process {owner.get("pid")} on {owner.get("host")}'
    who += f' since {owner.get("since")}'
  else:
    who = 'another process'
  return errors.LockedError(
    f'{path.parent} is in use by {who}: wait for it, stop it, or choose '
    'another MODEL_DIR'
  )
