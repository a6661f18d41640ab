"""Scores that a run has paid for already: (source, candidate) → score.

Stored in the run directory, a file a metric (its name, version and settings),
by a hash of the texts, so that the same pair in another Grow step, evaluation,
check or run mode costs a look-up. The file is SQLite's: it survives a process
killed at any moment, holds any number of rows in little memory, and opens
without rest_jax. It may be deleted at any time; scores are then made again.
"""

import hashlib
import re
import sqlite3
import struct
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from etils import epath
from jaxtyping import Bool, Float32

from rest_jax import config, errors, storage
from rest_jax.rewards import base

FOLDER = 'score_cache'
_KEY_BYTES = 16
_LOOKED_UP = 500  # Keys a query; SQLite bounds them.
_VALUE = struct.Struct('<fI')  # Score, and CRC-32 of key and score.


def key_of(texts: Iterable[str]) -> bytes:
  """A hash of some texts: 16 bytes, that no two rows of a run will share."""
  digest = hashlib.blake2b(digest_size=_KEY_BYTES)
  for text in texts:
    data = text.encode('utf-8', errors='surrogatepass')
    digest.update(len(data).to_bytes(8, 'little'))  # So that none run together.
    digest.update(data)
  return digest.digest()


class ScoreCache:
  """The stored scores of all metrics of a run."""

  def __init__(self, folder: storage.PathLike):
    """Opens nothing yet.

    Args:
      folder: a local one, `FOLDER` in a run directory whose lock is held.
    """
    self._folder = epath.Path(folder)
    self._tables: dict[str, Table] = {}

  def table(self, model: base.RewardModel) -> 'Table':
    """The scores of a metric, whose settings are part of what it is."""
    identity = storage.fingerprint_of(
      config.flatten(model, 'reward')
      | config.flatten(model.info, 'info')
      # Settings do not tell what a learned reward has learned.
      | {'fingerprint': getattr(model, 'fingerprint', None)}
    )
    if identity not in self._tables:
      path = self._folder / f'{model.info.name}-{identity[:16]}.sqlite'
      self._tables[identity] = Table(path)
    return self._tables[identity]

  def close(self) -> None:
    """Closes all files."""
    for table in self._tables.values():
      table.close()
    self._tables.clear()


class Table:
  """The stored scores of one metric."""

  def __init__(self, path: storage.PathLike):
    """Opens the file, or makes it.

    Raises:
      StorageError: it cannot be written.
      CorruptStateError: it is no such file.
    """
    self.path = epath.Path(path)
    with storage.reporting(self.path):
      self.path.parent.mkdir(parents=True, exist_ok=True)
    with _Reporting(self.path):
      # Every statement is its own transaction unless one is begun.
      self._file = sqlite3.connect(self.path, isolation_level=None)
      # No memory is shared, so that network file systems do.
      self._file.execute('PRAGMA locking_mode = EXCLUSIVE')
      self._file.execute('PRAGMA journal_mode = WAL')
      self._file.execute('PRAGMA synchronous = NORMAL')
      self._file.execute(
        'CREATE TABLE IF NOT EXISTS scores'
        ' (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID'
      )

  def find(
    self, keys: Sequence[bytes]
  ) -> tuple[Float32[np.ndarray, ' n'], Bool[np.ndarray, ' n']]:
    """Looks up n different keys.

    Returns:
      float32 [n], the scores, 0 where there is none; bool [n], where there is.

    Raises:
      CorruptStateError: the file is damaged.
    """
    scores, known = np.zeros(len(keys), np.float32), np.zeros(len(keys), bool)
    places = {key: place for place, key in enumerate(keys)}
    with _Reporting(self.path):
      for start in range(0, len(keys), _LOOKED_UP):
        some = keys[start : start + _LOOKED_UP]
        query = f'SELECT key, value FROM scores WHERE key IN ({_marks(some)})'
        for key, value in self._file.execute(query, some):
          place = places[key]
          scores[place], checksum = _VALUE.unpack(value)
          if checksum != _checksum(key, scores[place]):
            raise sqlite3.DatabaseError('a score was altered')
          known[place] = True
    return scores, known

  def add(self, keys: Sequence[bytes], scores: Float32[np.ndarray, ' n']):
    """Stores the scores of n keys, all or none.

    Raises:
      StorageError: the file cannot be written.
      CorruptStateError: it is damaged.
    """
    rows = [
      (key, _VALUE.pack(score, _checksum(key, score)))
      for key, score in zip(keys, scores, strict=True)
    ]
    with _Reporting(self.path):
      self._file.execute('BEGIN')
      try:
        self._file.executemany(
          'INSERT OR IGNORE INTO scores VALUES (?, ?)', rows
        )
        self._file.execute('COMMIT')
      except BaseException:
        if self._file.in_transaction:
          self._file.execute('ROLLBACK')
        raise

  def close(self) -> None:
    """Closes the file."""
    with _Reporting(self.path):
      self._file.close()


def _marks(keys: Sequence[bytes]) -> str:
  return ','.join('?' * len(keys))


def _checksum(key: bytes, score: np.float32) -> int:
  return zlib.crc32(key + struct.pack('<f', score))


class _Reporting:
  """Turns SQLite's errors within into ours, which name the file."""

  def __init__(self, path: epath.Path):
    self._path = path

  def __enter__(self):
    return self

  def __exit__(self, kind, error, traceback):
    if not isinstance(error, sqlite3.Error | struct.error):
      return
    if re.search('locked|busy', str(error)):
      raise errors.StorageError(
        f'another program has {self._path} open ({error}): close it there, and'
        ' run again'
      ) from error
    if re.search('full|readonly|unable to open|I/O', str(error)):
      raise errors.StorageError(
        f'cannot write {self._path}: {error}: free some space, or check its'
        ' permissions, and run again'
      ) from error
    raise errors.CorruptStateError(
      f'{self._path} is damaged ({error}): delete it; its scores are made again'
    ) from error
