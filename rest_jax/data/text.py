"""Reads parallel and monolingual text, one sentence a line, strictly.

Lines end at LF and nowhere else: Python's universal newlines and
`splitlines` also cut at U+2028, U+0085, VT or a lone CR, and so misalign
corpora. Everything is streamed; '.gz' is unpacked on the way.
"""

import collections
import gzip
import io
import itertools
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from etils import epath

from rest_jax import errors

EMPTY_POLICIES = ('error', 'skip')
COLUMNS = ('source', 'target', 'document', 'domain', '')


def read_lines(path: epath.PathLike) -> Iterator[str]:
  """Lines of a UTF-8 file, without their LF (or CR LF).

  Args:
    path: a file; where it ends in '.gz' it is unpacked.

  Yields:
    A line.

  Raises:
    DataError: a missing or damaged file, or bytes that are no UTF-8, with file
      and line.
  """
  path = epath.Path(path)
  try:
    with path.open('rb') as raw:
      for number, line in enumerate(_binary_lines(path, raw), 1):
        try:
          text = line.decode('utf-8-sig' if number == 1 else 'utf-8')
        except UnicodeDecodeError as error:
          raise errors.DataError(
            f'{path}:{number}: byte {error.start + 1} of the line'
            f' (0x{line[error.start]:02x}) is no UTF-8: convert the file,'
            ' e.g. with iconv'
          ) from error
        yield text.removesuffix('\n').removesuffix('\r')
  except FileNotFoundError as error:
    raise errors.DataError(
      f'{path}: no such file: check data_dir and the names of the files'
    ) from error
  except (OSError, EOFError, zlib.error) as error:
    raise errors.DataError(
      f'{path}: cannot be read ({error}): fetch or copy it again'
    ) from error


def _binary_lines(path: epath.Path, raw: BinaryIO) -> Iterator[bytes]:
  """Lines of a plain or gzip file; a binary file is cut at LF alone."""
  if path.name.endswith('.gz'):
    with gzip.GzipFile(fileobj=raw) as unpacked:
      yield from io.BufferedReader(unpacked)
  else:
    yield from raw


def count_lines(path: epath.PathLike) -> int:
  """How many lines `read_lines` gives."""
  return sum(1 for _ in read_lines(path))


def read_aligned(
  source_path: epath.PathLike,
  target_path: epath.PathLike | None = None,
  document_path: epath.PathLike | None = None,
  *,
  empty: str = 'error',
  counts: collections.Counter | None = None,
) -> Iterator[dict[str, object]]:
  """Rows of line-aligned files.

  Args:
    source_path: sources, one a line.
    target_path: their translations, or None for monolingual text.
    document_path: names of the documents that the sources stand in, one a line.
    empty: what happens at an empty source or target: 'error', or 'skip' the
      pair.
    counts: 'empty' counts the skipped pairs there.

  Yields:
    {'id': number of the line from 0, 'source', 'target' (None where there is
    none), 'document' (''), 'domain' ('')}.

  Raises:
    DataError: as `read_lines`; files of different lengths; an empty line where
      `empty` is 'error'; no lines at all.
  """
  _check_policy(empty)
  paths = [source_path, target_path, document_path]
  given = [epath.Path(path) for path in paths if path is not None]
  streams = [read_lines(path) for path in given]
  number = -1
  for number, lines in enumerate(itertools.zip_longest(*streams)):
    if None in lines:
      raise errors.DataError(_lengths_differ(given))
    line = iter(lines)
    source = next(line)
    target = None if target_path is None else next(line)
    texts = [source] if target is None else [source, target]
    if _is_skipped(texts, given, number, empty, counts):
      continue
    document = '' if document_path is None else next(line)
    yield _row(number, source, target, document)
  if number < 0:
    raise errors.DataError(f'{given[0]}: no lines in it: check the path')


def read_tsv(
  path: epath.PathLike,
  columns: Sequence[str] = ('source', 'target'),
  *,
  empty: str = 'error',
  counts: collections.Counter | None = None,
) -> Iterator[dict[str, object]]:
  """Rows of a tab-separated file without header and without quoting.

  Args:
    path: the file.
    columns: what stands in each column: 'source', 'target', 'document',
      'domain', or '' for a column that is ignored.
    empty: as in `read_aligned`.
    counts: as in `read_aligned`.

  Yields:
    As `read_aligned`.

  Raises:
    ConfigurationError: unknown columns, one twice, or none for the source.
    DataError: as `read_aligned`; a line with another number of columns.
  """
  _check_policy(empty)
  named = [column for column in columns if column]
  if (
    'source' not in named
    or set(named) - set(COLUMNS)
    or len(set(named)) < len(named)
  ):
    raise errors.ConfigurationError(
      f'columns {tuple(columns)} must hold "source" and may hold each of'
      f' {COLUMNS[1:-1]} once, "" for a column to ignore'
    )
  path = epath.Path(path)
  number = -1
  for number, line in enumerate(read_lines(path)):
    cells = line.split('\t')
    if len(cells) != len(columns):
      raise errors.DataError(
        f'{path}:{number + 1}: {len(cells)} columns where {len(columns)}'
        f' {tuple(columns)} are declared: mend the line or `columns`'
      )
    cell = dict(zip(columns, cells, strict=True))
    texts = [cell[name] for name in ('source', 'target') if name in cell]
    if _is_skipped(texts, [path, path], number, empty, counts):
      continue
    yield _row(
      number,
      cell['source'],
      cell.get('target'),
      cell.get('document', ''),
      cell.get('domain', ''),
    )
  if number < 0:
    raise errors.DataError(f'{path}: no lines in it: check the path')


def _check_policy(empty: str) -> None:
  if empty not in EMPTY_POLICIES:
    raise errors.ConfigurationError(
      f'empty = {empty!r} is no policy for empty lines: use one of'
      f' {EMPTY_POLICIES}'
    )


def _is_skipped(
  texts: Sequence[str],
  paths: Sequence[epath.Path],
  number: int,
  empty: str,
  counts: collections.Counter | None,
) -> bool:
  """Whether a pair is left out for an empty side; an error by policy."""
  # There may be a further path, of the documents.
  for text, path in zip(texts, paths, strict=False):
    if text.strip():
      continue
    if empty == 'error':
      raise errors.DataError(
        f"{path}:{number + 1}: an empty line: mend it, or set empty = 'skip'"
        ' to leave such pairs out'
      )
    if counts is not None:
      counts['empty'] += 1
    return True
  return False


def _lengths_differ(paths: Sequence[epath.Path]) -> str:
  lengths = ', '.join(f'{path}: {count_lines(path)}' for path in paths)
  return (
    f'line counts differ ({lengths}): lines must correspond one to one; cut'
    " the files at '\\n' alone"
  )


def _row(
  number: int,
  source: str,
  target: str | None,
  document: str = '',
  domain: str = '',
) -> dict[str, object]:
  return {
    'id': number,
    'source': source,
    'target': target,
    'document': document,
    'domain': domain,
  }
