"""Files that are either whole or not there, and the errors of writing them.

Every state that a run keeps is written under a temporary name, forced to disk
and renamed, so that a process killed at any moment leaves the old file or the
new one. Object stores (`gs://` …) show an object only when it is complete, so
there a plain write does the same.
"""

import contextlib
import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from typing import Any

from etils import epath

from rest_jax import errors

PathLike = str | os.PathLike[str]

_TEMPORARY = '.tmp-'
_BLOCK = 1 << 20  # Bytes read at a time when hashing.
_MENDS = {
  errno.ENOSPC: 'the disk is full: free some space and run again',
  errno.EDQUOT: 'the disk quota is used up: free some space and run again',
  errno.EROFS: 'the file system is read-only: choose another MODEL_DIR',
  errno.EACCES: 'no permission: choose another MODEL_DIR or its permissions',
  errno.EPERM: 'no permission: choose another MODEL_DIR or its permissions',
  errno.ENOTDIR: 'a file stands where a folder is needed: move it away',
  errno.EEXIST: 'a file stands where a folder is needed: move it away',
}


def is_local(path: PathLike) -> bool:
  """Whether a path is on a file system of this machine, not an object store."""
  return '://' not in os.fspath(path)


def is_temporary(name: str) -> bool:
  """Whether a file name is one that `write_atomic` has yet to rename."""
  return name.startswith('.') and _TEMPORARY in name


@contextlib.contextmanager
def reporting(path: PathLike) -> Iterator[None]:
  """Turns operating-system errors within into a `StorageError` on `path`.

  Raises:
    StorageError: an OSError happened; the message tells what to do about it.
  """
  try:
    yield
  except OSError as error:
    mend = _MENDS.get(error.errno, 'check that the storage is there')
    reason = error.strerror or str(error)
    raise errors.StorageError(
      f'cannot write {os.fspath(path)}: {reason}: {mend}'
    ) from error


def write_atomic(path: PathLike, data: bytes | memoryview) -> None:
  """Writes a file so that it is never seen in part; makes its folder.

  Args:
    path: where to; an existing file is replaced.
    data: the whole content.

  Raises:
    StorageError: the folder cannot be written, or the disk is full.
  """
  path = epath.Path(path)
  with reporting(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_local(path):
      _write_and_rename(os.fspath(path), data)
    else:
      path.write_bytes(bytes(data))


def _write_and_rename(path: str, data: bytes | memoryview) -> None:
  folder, name = os.path.split(path)
  owner = f'{os.getpid()}-{threading.get_ident()}'
  temporary = os.path.join(folder, f'.{name}{_TEMPORARY}{owner}')
  try:
    with open(temporary, 'wb') as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(OSError):
      os.remove(temporary)  # A full disk must not stay full because of us.
    raise
  # The rename itself lives in the folder, which has to reach the disk too.
  sync(folder or '.')


def sync(path: PathLike) -> None:
  """Forces a file or folder to disk; objects in a store already are.

  Raises:
    StorageError: the disk could not take it.
  """
  if not is_local(path):
    return
  with reporting(path):
    descriptor = os.open(os.fspath(path), os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


def write_json_atomic(path: PathLike, value: Any) -> None:
  """Writes a value as indented JSON with sorted keys, atomically.

  Raises:
    StorageError: as `write_atomic`.
    TypeError: the value holds something that JSON cannot.
  """
  text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
  write_atomic(path, (text + '\n').encode('utf-8'))


def read_json(path: PathLike) -> Any:
  """Reads a JSON file that this program wrote.

  Raises:
    CorruptStateError: it is not JSON (any more).
    FileNotFoundError: it is not there.
  """
  path = epath.Path(path)
  try:
    return json.loads(path.read_bytes())
  except ValueError as error:
    raise errors.CorruptStateError(
      f'{path} is not valid JSON ({error}): restore it, or delete its folder '
      'to make the stage again'
    ) from error


def canonical(value: Any) -> Any:
  """The value as JSON gives it back: tuples as lists, keys as strings."""
  return json.loads(json.dumps(value, sort_keys=True))


def sha256_of(data: bytes | memoryview) -> str:
  """SHA-256 of some bytes, in hexadecimal."""
  return hashlib.sha256(data).hexdigest()


def fingerprint_of(value: Any) -> str:
  """SHA-256 of a JSON value that depends on neither key order nor spacing."""
  text = json.dumps(value, sort_keys=True, separators=(',', ':'))
  return sha256_of(text.encode('utf-8'))


def checksum(path: PathLike) -> tuple[int, str]:
  """Size in bytes and SHA-256 (hexadecimal) of a file, read in blocks."""
  digest = hashlib.sha256()
  size = 0
  with epath.Path(path).open('rb') as file:
    while block := file.read(_BLOCK):
      digest.update(block)
      size += len(block)
  return size, digest.hexdigest()
