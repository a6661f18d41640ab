"""The run directory: stage folders, what commits them, and who may write.

A stage reads committed folders and writes one folder. It is committed by its
`stage.json`, which is written last and atomically and lists the size and
SHA-256 of every file; until then `begun.json` says what it is being made with.
So the same command, run again after any kind of death, skips what is
committed, continues what is begun, and refuses to mix two configurations.

  run = RunDirectory(model_dir)
  with run.lock():
    stage = run.stage('grow_1/samples')
    stage.begin(config={'SAMPLES': 8}, inputs={'supervised': fingerprint})
    if not stage.committed:
      for number in range(chunks):
        name = f'part-{number:05d}.parquet'
        if stage.part(name) is None:
          stage.write_part(name, data, {'rows': rows})
      stage.commit(counts={'rows': 800}, seconds=12.5)

Files on disk of a stage: its own files; `stage.json`; until it is committed
`begun.json`, for each part `.parts/<part>.json` with its size and SHA-256, and
in `.work/` what only making it needs, such as checkpoints.
"""

import contextlib
import itertools
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from rest_jax import errors, hosts, run_lock, storage

SCHEMA_VERSION = 1  # Of stage.json and of the folders' layout.

_STAGE = 'stage.json'
_BEGUN = 'begun.json'
# What Finder and NFS put into folders.
_FOREIGN = re.compile(r'\.DS_Store|\._.*|\.nfs.*')
_PARTS = '.parts'
_WORK = '.work'
_DEPTHS = range(1, 6)  # Of a stage's folder below the run directory's.
_BRANCH_HINT = 'start a new run in another MODEL_DIR'

# Stages whose checksums this process has verified: (folder, fingerprint).
_verified: set[tuple[str, str]] = set()


class RunDirectory:
  """A run's folder (MODEL_DIR), local or in an object store."""

  def __init__(self, path: storage.PathLike):
    self.path = epath.Path(path)

  def lock(self) -> contextlib.AbstractContextManager[None]:
    """Keeps other processes from writing here while the context lasts.

    Reading committed stages needs no lock.

    Raises:
      LockedError: another process holds it (named with its host).
      StorageError: the folder cannot be written.
    """
    return run_lock.hold(self.path / '.lock')

  def stage(self, name: str) -> 'Stage':
    """The stage of that name and folder, such as `grow_1/improve_2`.

    Raises:
      ConfigurationError: the name would lead out of the run directory.
    """
    parts = name.split('/')
    if any(p in ('', '.', '..') or p.startswith('.') for p in parts):
      raise errors.ConfigurationError(
        f'{name!r} is not the name of a stage: give one such as '
        'supervised or grow_1/improve_2'
      )
    return Stage(self.path, name)

  def stages(self) -> list['Stage']:
    """All stages that were begun or committed here, sorted by name."""
    names = set()
    for depth, marker in itertools.product(_DEPTHS, (_STAGE, _BEGUN)):
      for file in self.path.glob('*/' * depth + marker):
        names.add(str(file.parent.relative_to(self.path)))
    return [self.stage(name) for name in sorted(names)]


class Stage:
  """One folder of a run, made once and never changed after its commit."""

  def __init__(self, root: epath.Path, name: str):
    self.name = name
    self.folder = root / name
    # Whether other processes may be writing parts of it: see `parts`.
    self.shared = False
    # What parts cost that an earlier start made: see `parts`.
    self.seconds_before = 0.0
    # What makes it, `machine.facts`: told to `stage.json`.
    self.made_on: Mapping[str, Any] = {}
    self._manifest: dict[str, Any] | None = None

  @property
  def committed(self) -> bool:
    """Whether the stage is complete."""
    return self._manifest is not None or (self.folder / _STAGE).exists()

  @property
  def begun(self) -> bool:
    """Whether the stage was begun and not yet committed."""
    return not self.committed and (self.folder / _BEGUN).exists()

  @property
  def work(self) -> epath.Path:
    """A folder for what only making the stage needs, such as checkpoints.

    A process that goes on with the stage finds it as it was left; the commit
    does not list it, and ends with its removal.
    """
    return self.folder / _WORK

  @property
  def manifest(self) -> dict[str, Any]:
    """What `stage.json` says of a committed stage.

    Keys: `schema`, `config` (binding → value), `inputs` (name → fingerprint),
    `files` (relative path → [bytes, SHA-256]), `contents`, `counts`, `seconds`,
    `made_on` (`machine.facts`), `extra`, `fingerprint`.

    Raises:
      CorruptStateError: the stage is not committed, or its `stage.json` was
        altered.
      ConfigurationError: another version of rest_jax wrote it.
    """
    if self._manifest is None:
      self._manifest = self._read_manifest()
    return self._manifest

  @property
  def fingerprint(self) -> str:
    """SHA-256 over config, inputs and content; not over what making it cost.

    Raises:
      CorruptStateError, ConfigurationError: as `manifest`.
    """
    return self.manifest['fingerprint']

  def begin(
    self,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    branch_hint: str = _BRANCH_HINT,
  ) -> None:
    """Starts the stage, goes on with it, or checks that it is still valid.

    Args:
      config: every binding that the stage's content depends on, with its
        value (anything that JSON can hold).
      inputs: fingerprint of every stage that it reads, by name.
      branch_hint: what a user can do who wants both the old and the new
        configuration; ends the error message.

    Raises:
      ConfigurationError: it was begun or committed with another
        configuration, or from other inputs; every difference is named.
      CorruptStateError: its folder holds files that no stage knows.
      StorageError: the folder cannot be written.
    """
    config, inputs = storage.canonical([dict(config), dict(inputs)])
    if self.committed:
      mend = f'or {branch_hint}'
      self._check_same(self.manifest, config, inputs, 'made', mend)
      self._tidy()  # A process may have died right after the commit.
      return
    if self.begun:
      begun = storage.read_json(self.folder / _BEGUN)
      self._check_schema(begun)
      mend = f'delete {self.folder} to make it anew, or {branch_hint}'
      self._check_same(begun, config, inputs, 'begun', mend)
      self._remove_temporary()
      return
    strangers = self._files()
    if strangers:
      raise errors.CorruptStateError(
        f'{self.folder} holds {strangers[0]}, which belongs to no stage: move '
        'or delete that folder to make the stage again'
      )
    record = {'schema': SCHEMA_VERSION, 'config': config, 'inputs': inputs}
    storage.write_json_atomic(self.folder / _BEGUN, record)

  @property
  def made_from(self) -> dict[str, str]:
    """Fingerprints of its inputs, also where it is begun alone; else none."""
    if self.committed:
      return self.manifest['inputs']
    path = self.folder / _BEGUN
    return storage.read_json(path)['inputs'] if path.exists() else {}

  def made_with(self, config: Mapping[str, Any]) -> bool:
    """Whether the stage is committed, and with this configuration."""
    return self.committed and self.manifest['config'] == storage.canonical(
      dict(config)
    )

  def write_part(
    self,
    name: str,
    data: bytes | memoryview,
    info: Mapping[str, Any] | None = None,
  ) -> None:
    """Writes and commits one part of an unfinished stage.

    Args:
      name: the file's path within the stage's folder.
      data: its content.
      info: what `part` is to return for it (counts, for instance).

    Raises:
      StorageError: it cannot be written; earlier parts are untouched.
    """
    storage.write_atomic(self.folder / name, data)
    record = {
      'size': len(data),
      'sha256': storage.sha256_of(data),
      'info': dict(info or {}),
    }
    storage.write_json_atomic(self._sidecar(name), record)

  def part(self, name: str) -> dict[str, Any] | None:
    """The info of a part that is committed and intact; None if there is none.

    Raises:
      CorruptStateError: the part has been altered since it was written;
        deleting the file makes it count as not yet made.
    """
    path = self.folder / name
    if not (self._sidecar(name).exists() and path.exists()):
      return None
    record = storage.read_json(self._sidecar(name))
    mend = 'delete that file to make it again'
    self._check_file(name, record['size'], record['sha256'], mend)
    return record['info']

  def commit(
    self,
    counts: Mapping[str, Any],
    seconds: float | int,
    extra: Mapping[str, Any] | None = None,
    contents: Mapping[str, str] | None = None,
    parts: Iterable[str] = (),
  ) -> None:
    """Commits the stage: lists and hashes its files, writes `stage.json`.

    Args:
      counts: how many of what it holds, for `status`.
      seconds: what it cost.
      extra: anything else a reader needs (the best step, say).
      contents: folder → SHA-256 of what its files mean. It stands for them in
        the fingerprint where the same content is never the same bytes twice,
        as in checkpoints: the stage made again is then still the same input.
      parts: names of parts that it must have, also where a listing of the
        folder does not show them yet (NFS).

    Raises:
      CorruptStateError: the stage was not begun, or a part was altered since.
      StorageError: `stage.json` cannot be written.
    """
    if not (self.folder / _BEGUN).exists():
      raise errors.CorruptStateError(
        f'{self.folder} has no {_BEGUN}, it was removed while the stage ran: '
        'delete the folder and run again'
      )
    begun = storage.read_json(self.folder / _BEGUN)
    names = sorted({*self._files(), *parts})
    measured = storage.of_each(self._measure, names)
    manifest = {
      'schema': SCHEMA_VERSION,
      'config': begun['config'],
      'inputs': begun['inputs'],
      'files': dict(zip(names, measured, strict=True)),
      'contents': dict(contents or {}),
      'counts': dict(counts),
      'seconds': float(seconds),
      'made_on': dict(self.made_on),
      'extra': dict(extra or {}),
    }
    manifest['fingerprint'] = _fingerprint(manifest)
    storage.write_json_atomic(self.folder / _STAGE, manifest)
    self._manifest = storage.canonical(manifest)
    _verified.add((str(self.folder), manifest['fingerprint']))
    self._tidy()

  def abandon(self) -> None:
    """Deletes an unfinished stage, so that it may begin with other settings.

    Raises:
      StorageError: a file cannot be deleted.
    """
    with storage.reporting(self.folder):
      for name in self._files():
        (self.folder / name).unlink()
      for name in (_PARTS, _WORK):
        storage.remove_folder(self.folder / name)
      (self.folder / _BEGUN).unlink()  # Last: until then it can go on.

  def verify(self) -> None:
    """Holds all files against their sizes and SHA-256, once a process.

    Call it before reading a committed stage: file formats notice few flipped
    bits themselves.

    Raises:
      CorruptStateError: a file is missing or altered; it is named.
      ConfigurationError: another version of rest_jax wrote the stage.
    """
    key = (str(self.folder), self.fingerprint)
    # Of several processes the first reads all that the others do.
    if key in _verified or not hosts.is_first():
      return
    files = self.manifest['files']
    storage.of_each(lambda name: self._check_file(name, *files[name]), files)
    _verified.add(key)

  def _tidy(self) -> None:
    """Removes what a committed stage does not need; left over, it does no harm.

    The kernel may hold on to open files for a while (NFS).
    """
    for name in (_BEGUN, _PARTS, _WORK):
      path = self.folder / name
      with contextlib.suppress(errors.StorageError), storage.reporting(path):
        if name == _BEGUN:
          path.unlink(missing_ok=True)
        else:
          storage.remove_folder(path)

  def _read_manifest(self) -> dict[str, Any]:
    path = self.folder / _STAGE
    if not path.exists():
      raise errors.CorruptStateError(
        f'{self.folder} is not committed ({_STAGE} is missing): run the stage '
        f'{self.name} first'
      )
    manifest = storage.read_json(path)
    self._check_schema(manifest)
    if manifest.get('fingerprint') != _fingerprint(manifest):
      raise errors.CorruptStateError(
        f'{path} was altered after the commit: restore it, or delete '
        f'{self.folder} to make the stage again'
      )
    return manifest

  def _check_schema(self, record: Mapping[str, Any]) -> None:
    if record.get('schema') != SCHEMA_VERSION:
      raise errors.ConfigurationError(
        f'{self.folder} is of layout version {record.get("schema")}, this '
        f'rest_jax reads {SCHEMA_VERSION}: use the version that made it, or '
        'start a new run in another MODEL_DIR'
      )

  def _check_same(self, old, config, inputs, verb, mend) -> None:
    changes = [
      f'{name} = {_show(old["config"], name)}, now {_show(config, name)}'
      for name in _differing(old['config'], config)
    ] + [
      f'the input {name} {_show(old["inputs"], name, 12)}, now '
      f'{_show(inputs, name, 12)}'
      for name in _differing(old['inputs'], inputs)
    ]
    if changes:
      raise errors.ConfigurationError(
        f'stage {self.name} in {self.folder} was {verb} with '
        f'{"; ".join(changes)}: set it back, {mend}'
      )

  def _check_file(
    self, name: str, size: int, sha256: str, mend: str | None = None
  ) -> None:
    path = self.folder / name
    if mend is None:
      mend = f'restore it, or delete {self.folder} to make the stage again'
    try:
      found_size, found_sha256 = storage.checksum(path)
    except OSError as error:
      raise errors.CorruptStateError(
        f'{path} cannot be read ({storage.reason_of(error)}): {mend}'
      ) from error
    if found_size != size:
      raise errors.CorruptStateError(
        f'{path} has {found_size} bytes, was committed with {size}: {mend}'
      )
    if found_sha256 != sha256:
      raise errors.CorruptStateError(
        f'{path} was altered after it was committed (SHA-256 '
        f'{found_sha256[:12]}, was {sha256[:12]}): {mend}'
      )

  def _files(self) -> list[str]:
    """Relative paths of this stage's own files, without nested stages'."""
    names = storage.files_below(self.folder)
    own = (_STAGE, _BEGUN)
    nested = tuple(
      name.removesuffix(file)
      for name in names
      for file in own
      if name.endswith(f'/{file}')
    )
    apart = (f'{_PARTS}/', f'{_WORK}/', *nested)
    return [
      name
      for name in names
      if name not in own
      and not name.startswith(apart)
      and not storage.is_temporary(name.rpartition('/')[2])
      and not _FOREIGN.fullmatch(name.rpartition('/')[2])
    ]

  def _measure(self, name: str) -> list[Any]:
    """[bytes, SHA-256] of a file: as written if a part, else as it is."""
    if self._sidecar(name).exists():
      record = storage.read_json(self._sidecar(name))
      self._check_file(name, record['size'], record['sha256'])
      return [record['size'], record['sha256']]
    # Other libraries' files (checkpoints) have to be on disk before stage.json.
    storage.sync(self.folder / name)
    return list(storage.checksum(self.folder / name))

  def _sidecar(self, name: str) -> epath.Path:
    return self.folder / _PARTS / f'{name}.json'

  def _remove_temporary(self) -> None:
    """Removes what a killed process left under temporary names."""
    if not storage.is_local(self.folder):
      return
    with storage.reporting(self.folder):
      for folder, _, names in os.walk(self.folder):
        for name in filter(storage.is_temporary, names):
          os.remove(os.path.join(folder, name))


def _fingerprint(manifest: Mapping[str, Any]) -> str:
  parts = {key: manifest.get(key) for key in ('schema', 'config', 'inputs')}
  parts['files'] = files = manifest.get('files')
  if contents := manifest.get('contents'):
    folders = tuple(f'{folder}/' for folder in contents)
    parts['files'] = {
      name: value
      for name, value in files.items()
      if not name.startswith(folders)
    }
    parts['contents'] = contents
  return storage.fingerprint_of(parts)


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  missing = object()
  return [
    name
    for name in sorted(old.keys() | new.keys())
    if old.get(name, missing) != new.get(name, missing)
  ]


def _show(values: Mapping[str, Any], name: str, length: int = 200) -> str:
  return repr(values[name])[:length] if name in values else 'nothing'
