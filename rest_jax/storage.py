"""Files that are either whole or not there, and the errors of writing them.

Every state that a run keeps is written under a temporary name, forced to disk
and renamed, so that a process killed at any moment leaves the old file or the
new one. Object stores (`gs://` …) show an object only when it is complete, so
there a plain write does the same, and nothing is ever renamed.

A store's client (of TensorFlow, whose file system etils takes for `gs://`, and
of tensorstore, which has the arrays) tries again by itself, later and later,
what the store did not do at once; see docs/guide/run.md. What it gives up has
errors of its own, which `failures` knows.
"""

import concurrent.futures
import contextlib
import errno
import hashlib
import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, TypeVar

from etils import epath

from rest_jax import errors

PathLike = str | os.PathLike[str]
_Found = TypeVar('_Found')

_TEMPORARY = '.tmp-'
_BLOCK = 1 << 20  # Bytes read at a time when hashing.
_READERS = 16  # Files hashed at a time; object stores are slow to answer.
_PAUSES = (0.1, 0.4, 1.6, 6.4)  # Seconds before a removal is tried again.
_MENDS = {
  errno.ENOSPC: 'the disk is full: free some space and run again',
  errno.EDQUOT: 'the disk quota is used up: free some space and run again',
  errno.EROFS: 'the file system is read-only: choose another MODEL_DIR',
  errno.EACCES: 'no permission: choose another MODEL_DIR or its permissions',
  errno.EPERM: 'no permission: choose another MODEL_DIR or its permissions',
  errno.ENOTDIR: 'a file stands where a folder is needed: move it away',
  errno.EEXIST: 'a file stands where a folder is needed: move it away',
}

_STORE_MEND = (
  'check that the bucket is there and that your credentials may read and write'
  ' it, and run again'
)


def is_local(path: PathLike) -> bool:
  """Whether a path is on a file system of this machine, not an object store."""
  return '://' not in os.fspath(path)


@contextlib.contextmanager
def seekable(path: PathLike) -> Iterator[BinaryIO]:
  """Opens a file for reading here and there, as Parquet's are read.

  Of a store it is read whole: each part would be asked for, and the files of
  its client lack what pyarrow needs.
  """
  path = epath.Path(path)
  if is_local(path):
    with path.open('rb') as file:
      yield file
  else:
    yield io.BytesIO(path.read_bytes())


def absolute(path: PathLike) -> epath.Path:
  """A path that means the same wherever it is read; a store's always does."""
  path = epath.Path(path)
  return path.resolve() if is_local(path) else path


def failures() -> tuple[type[Exception], ...]:
  """What reading and writing may raise: of the system, and of stores' clients.

  For `except` clauses, which ask when something was raised.
  """
  # Whoever has touched a store has imported it; nobody else needs to.
  library = sys.modules.get('tensorflow')
  return (OSError,) if library is None else (OSError, library.errors.OpError)


def reason_of(error: Exception) -> str:
  """What one of `failures` says, in one line."""
  text = getattr(error, 'strerror', None) or getattr(error, 'message', None)
  return ' '.join(str(text or error).split())


def is_temporary(name: str) -> bool:
  """Whether a file name is one that `write_atomic` has yet to rename."""
  return name.startswith('.') and _TEMPORARY in name


@contextlib.contextmanager
def reporting(path: PathLike) -> Iterator[None]:
  """Turns `failures` within into a `StorageError` on `path`.

  Raises:
    StorageError: one happened; the message tells what to do about it.
  """
  try:
    yield
  except failures() as error:
    number = getattr(error, 'errno', None)
    mend = _MENDS.get(number, 'check that the storage is there')
    if not is_local(path):
      mend = _STORE_MEND
    raise errors.StorageError(
      f'cannot write {os.fspath(path)}: {reason_of(error)}: {mend}'
    ) from error


@contextlib.contextmanager
def answering() -> Iterator[None]:
  """Turns what a store refused within, and nobody else took, into our error.

  Raises:
    StorageError: a store did not do what it was asked for.
  """
  try:
    yield
  except failures() as error:
    # TensorFlow's errors may be others than a store's.
    if isinstance(error, OSError) or '://' not in reason_of(error):
      raise
    raise errors.StorageError(
      f'an object store failed: {reason_of(error)}: {_STORE_MEND}'
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
    if is_local(path):
      path.parent.mkdir(parents=True, exist_ok=True)
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


def sync_folder(path: PathLike) -> None:
  """Forces all files of a folder, and the folders that name them, to disk.

  Raises:
    StorageError: as `sync`.
  """
  if not is_local(path):  # Objects in a store already are.
    return
  with reporting(path):
    for folder, _, names in os.walk(path, topdown=False, onerror=_raise):
      for name in names:
        sync(os.path.join(folder, name))
      sync(folder)


def _raise(error: OSError) -> None:
  raise error


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


def files_below(folder: PathLike) -> list[str]:
  """Paths of all files below a folder, relative to it, sorted.

  Of a store it is asked a page at a time, and not twice for every file.

  Raises:
    StorageError: the store cannot be asked.
  """
  if is_local(folder):
    return sorted(
      os.path.relpath(os.path.join(above, name), folder)
      for above, _, names in os.walk(folder)
      for name in names
    )
  # Empty objects stand for folders: 'a/b/', and '' for this one itself.
  return sorted(
    name for name in _objects(folder) if name and not name.endswith('/')
  )


def remove_folder(folder: PathLike) -> None:
  """Removes a folder with all that is in it, where there is one.

  Raises:
    StorageError: something cannot be removed.
  """
  folder = epath.Path(folder)
  with reporting(folder):
    folder.rmtree(missing_ok=True)
    if is_local(folder):
      return
    # TensorFlow takes a folder for missing when its store only stumbled.
    for seconds in _PAUSES:
      if not _objects(folder):
        return
      time.sleep(seconds)
      folder.rmtree(missing_ok=True)
    if left := _objects(folder):
      raise OSError(f'{len(left)} objects are there after their removal')


def _objects(folder: PathLike) -> list[str]:
  """Names of the objects of a store that begin with a folder's, without it.

  Raises:
    StorageError: the store cannot be asked.
  """
  import tensorstore  # Slow, so only where needed.

  try:
    store = tensorstore.KvStore.open(f'{os.fspath(folder)}/').result()
    return [name.decode() for name in store.list().result()]
  except ValueError as error:
    raise errors.StorageError(
      f'cannot list {os.fspath(folder)}: {reason_of(error)}: {_STORE_MEND}'
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


def of_each(
  function: Callable[[str], _Found], names: Iterable[str]
) -> list[_Found]:
  """What a function that reads a file says of each, several at a time.

  Raises:
    Whatever the function raises, of the first name that it does for.
  """
  with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
    return list(pool.map(function, names))


def checksum(path: PathLike) -> tuple[int, str]:
  """Size in bytes and SHA-256 (hexadecimal) of a file, read in blocks."""
  digest = hashlib.sha256()
  size = 0
  with epath.Path(path).open('rb') as file:
    while block := file.read(_BLOCK):
      digest.update(block)
      size += len(block)
  return size, digest.hexdigest()
