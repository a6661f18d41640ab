"""Local folders for what lies beside a run, and can be made again.

Training rows are memory-mapped, a score cache is a database, and event files
grow: an object store can hold none of them. Where a run directory is local they
lie in it. Where it is in a store they lie in the temporary folder of the
machine (`TMPDIR`), under the same names, each process's apart, and what others
are to see is copied.
A process that is started again finds its own; one on another machine makes them
anew.
"""

import contextlib
import os
import pathlib
import shutil
import tempfile

from etils import epath

from rest_jax import errors, hosts, storage


def local(path: storage.PathLike) -> pathlib.Path:
  """Where what would lie at a path of a run directory does lie.

  Raises:
    StorageError: the temporary folder cannot be used.
  """
  if storage.is_local(path):
    return pathlib.Path(path)
  names = os.fspath(path).partition('://')[2].split('/')
  inside = [name for name in names if name not in ('', '.', '..')]
  return _root().joinpath(f'process_{hosts.index()}', *inside)


def remove(path: storage.PathLike) -> None:
  """Removes what `local` gives for a path of a store."""
  if not storage.is_local(path):
    shutil.rmtree(local(path), ignore_errors=True)


def publish(path: storage.PathLike) -> None:
  """Copies what `local` gives for a path of a store to that path.

  Raises:
    StorageError: the store does not take it.
  """
  if storage.is_local(path):
    return
  folder = local(path)
  for name in storage.files_below(folder):
    storage.write_atomic(epath.Path(path) / name, (folder / name).read_bytes())


def share(path: storage.PathLike) -> pathlib.Path:
  """Lets every process have what the first one has written to `local`.

  Called by all of them, once the first has written.

  Args:
    path: of a folder, in a run directory.

  Returns:
    Where it lies for this process.

  Raises:
    StorageError: the store or the temporary folder does not take it.
    HostsError: another process failed.
  """
  if storage.is_local(path) or hosts.count() == 1:
    return local(path)
  hosts.on_first(lambda: publish(path))
  if hosts.is_first():
    return local(path)
  folder = local(path)
  with storage.reporting(folder):
    shutil.rmtree(folder, ignore_errors=True)
    for name in storage.files_below(path):
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      (folder / name).write_bytes((epath.Path(path) / name).read_bytes())
  return folder


def _root() -> pathlib.Path:
  """This user's folder within the temporary one, closed to all others."""
  root = pathlib.Path(tempfile.gettempdir()) / f'rest_jax-{os.getuid()}'
  with storage.reporting(root):
    with contextlib.suppress(FileExistsError):
      root.mkdir(mode=0o700)
    found = root.lstat()
  if found.st_uid != os.getuid() or not root.is_dir() or root.is_symlink():
    raise errors.StorageError(
      f'{root} is not a folder of this user: remove it, or set TMPDIR to'
      ' another folder'
    )
  return root
