"""The store of sources, grown samples and their scores, in Parquet.

All rows of a source stand together in one row group, its reference first
(`sample_index` −1), so whatever is decided a source is decided in constant
memory. Scores lie in folders of their own beside the samples, with the same
parts, rows and row groups, since committed files never change.

The files open anywhere, with the scores joined:

  pandas   pd.read_parquet(sorted(glob('grow_1/samples/*.parquet'))).merge(
             pd.read_parquet(sorted(glob('grow_1/reward/*.parquet'))),
             on=['source_id', 'sample_index'])
  Polars   pl.scan_parquet('grow_1/samples/*.parquet').join(
             pl.scan_parquet('grow_1/reward/*.parquet'),
             on=['source_id', 'sample_index']).collect()
  DuckDB   SELECT * FROM 'grow_1/samples/*.parquet'
             JOIN 'grow_1/reward/*.parquet' USING (source_id, sample_index)

A folder's name alone does not do for pandas: `stage.json` stands there too.

The same rows in give the same bytes out (with the same pyarrow).
"""

import contextlib
import fnmatch
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from etils import epath

from rest_jax import errors, storage

REFERENCE_INDEX = -1  # sample_index of a reference.
_PARTS = 'part-*.parquet'
ORIGINS = ('policy', 'reference', 'imported')

_TOKENS = pa.list_(pa.int32())
_LOG_PROBS = pa.list_(pa.float32())

SOURCES_SCHEMA = pa.schema(
  [
    pa.field('source_id', pa.int64(), nullable=False),
    pa.field('doc_id', pa.string()),
    pa.field('domain', pa.string()),
    pa.field('language_pair', pa.string()),
    pa.field('source', pa.string(), nullable=False),
    pa.field('target', pa.string()),
    pa.field('source_tokens', _TOKENS, nullable=False),
    pa.field('target_tokens', _TOKENS),
  ]
)

# `length` (tokens, EOS counted) repeats what target_tokens knows, so that
# selections stream over millions of rows without reading any tokens.
SAMPLES_SCHEMA = pa.schema(
  [
    pa.field('source_id', pa.int64(), nullable=False),
    pa.field('doc_id', pa.string()),
    pa.field('domain', pa.string()),
    pa.field('language_pair', pa.string()),
    pa.field('sample_index', pa.int32(), nullable=False),
    pa.field('grow_step', pa.int32(), nullable=False),
    pa.field('origin', pa.string(), nullable=False),
    pa.field('source', pa.string(), nullable=False),
    pa.field('target', pa.string(), nullable=False),
    pa.field('target_tokens', _TOKENS, nullable=False),
    pa.field('length', pa.int32(), nullable=False),
    pa.field('finished', pa.bool_(), nullable=False),
    pa.field('log_prob', pa.float32()),
    pa.field('token_log_probs', _LOG_PROBS),
    pa.field('token_sampling_log_probs', _LOG_PROBS),
  ]
)

SCORES_SCHEMA = pa.schema(
  [
    pa.field('source_id', pa.int64(), nullable=False),
    pa.field('sample_index', pa.int32(), nullable=False),
    pa.field('score', pa.float32(), nullable=False),
  ]
)

# Rows a row group: some 10 MB of samples, and still long enough for numpy.
ROW_GROUP_ROWS = 16384
SOURCES_PART_ROWS = 131072

_DICTIONARIES = (
  'doc_id', 'domain', 'language_pair', 'origin', 'source', 'target'
)  # fmt: skip


def part_name(number: int) -> str:
  """File name of a part, so that names sort as numbers do."""
  return f'part-{number:05d}.parquet'


def is_part(name: str) -> bool:
  """Whether a file of a folder is a part of it."""
  return fnmatch.fnmatch(name, _PARTS)


def part_paths(folder: storage.PathLike) -> list[epath.Path]:
  """The parts of a folder, in order.

  Raises:
    CorruptStateError: the folder is missing or holds no part.
  """
  folder = epath.Path(folder)
  paths = sorted(folder.glob(_PARTS)) if folder.exists() else []
  if not paths:
    raise errors.CorruptStateError(
      f'{folder} holds no {_PARTS}: run the stage that writes it again'
    )
  return paths


def samples_table(columns: Mapping[str, Any]) -> pa.Table:
  """Makes rows of the samples' schema from columns.

  Args:
    columns: name → values for every column of `SAMPLES_SCHEMA`; `length` and
      columns that may be null can be left out, and a single str or int stands
      for all rows.

  Raises:
    TypeError, ValueError: a programmer's error: a column is missing, unknown,
      or of another length or type.
  """
  unknown = set(columns) - set(SAMPLES_SCHEMA.names)
  if unknown:
    raise ValueError(f'not columns of a sample: {sorted(unknown)}')
  num_rows = len(columns['target'])
  arrays = []
  for field in SAMPLES_SCHEMA:
    values = columns.get(field.name)
    if field.name == 'length' and values is None:
      values = [len(tokens) for tokens in columns['target_tokens']]
    if isinstance(values, str | int | None):
      values = [values] * num_rows
    if isinstance(values, pa.Array | pa.ChunkedArray):
      arrays.append(values.cast(field.type))
    else:
      arrays.append(pa.array(values, field.type))
    if len(arrays[-1]) != num_rows:
      raise ValueError(f'{field.name}: {len(arrays[-1])} of {num_rows} rows')
    if not field.nullable and arrays[-1].null_count:
      raise ValueError(f'{field.name} is needed in every row')
  table = pa.table(arrays, schema=SAMPLES_SCHEMA)
  if not set(pc.unique(table['origin']).to_pylist()) <= set(ORIGINS):
    raise ValueError(f'origin must be one of {ORIGINS}')
  return table


def samples_part(table: pa.Table, row_group_rows=ROW_GROUP_ROWS) -> bytes:
  """The bytes of a part of samples, cut into row groups of whole sources.

  Args:
    table: rows of `SAMPLES_SCHEMA`; all rows of a source stand together.
    row_group_rows: rows a row group, at most, unless one source has more.

  Returns:
    A Parquet file, for `Stage.write_part` or `storage.write_atomic`.

  Raises:
    ValueError: a programmer's error: other columns, or a source in two places.
  """
  starts = source_starts(table['source_id'].to_numpy())
  return _parquet(table, SAMPLES_SCHEMA, _cuts(starts, row_group_rows))


def scores_part(samples_path: storage.PathLike, scores: np.ndarray) -> bytes:
  """The bytes of a part of scores, aligned with a part of samples.

  Args:
    samples_path: the part of samples that was scored.
    scores: float32 [rows of that part], in its order.

  Raises:
    CorruptStateError: the part of samples cannot be read.
    ValueError: another number of scores than rows.
  """
  groups = list(read_part_groups(samples_path, SCORES_SCHEMA.names[:2]))
  cuts = np.cumsum([0] + [group.num_rows for group in groups])
  scores = pa.array(np.asarray(scores, np.float32))
  if len(scores) != cuts[-1]:
    raise ValueError(f'{len(scores)} scores for {cuts[-1]} rows')
  table = pa.concat_tables(groups).append_column('score', scores)
  return _parquet(table.cast(SCORES_SCHEMA), SCORES_SCHEMA, cuts)


def table_bytes(table: pa.Table) -> bytes:
  """A Parquet file of any table, checksummed and compressed as the store's."""
  return _parquet(table, table.schema, np.asarray([0, table.num_rows]))


def write_sources(
  folder: storage.PathLike,
  rows: Iterable[Mapping[str, Any]],
  part_rows: int = SOURCES_PART_ROWS,
) -> int:
  """Writes tokenised sources, streaming, as `part-*.parquet`.

  Args:
    folder: where to; it is made.
    rows: one mapping a source with the columns of `SOURCES_SCHEMA`; those that
      may be null can be left out.
    part_rows: rows a file, which is what is held in memory.

  Returns:
    The number of rows written.

  Raises:
    DataError: there is no row at all.
    StorageError: the folder cannot be written.
  """
  folder = epath.Path(folder)
  total = 0
  for number, chunk in enumerate(_chunks(rows, part_rows)):
    columns = {
      name: [row.get(name) for row in chunk] for name in SOURCES_SCHEMA.names
    }
    table = pa.table(columns, schema=SOURCES_SCHEMA)
    cuts = _cuts(np.arange(len(chunk) + 1), ROW_GROUP_ROWS)
    data = _parquet(table, SOURCES_SCHEMA, cuts)
    storage.write_atomic(folder / part_name(number), data)
    total += len(chunk)
  if not total:
    raise errors.DataError(
      f'no row is left to write to {folder}: check the split, and what was '
      'skipped as empty or too long'
    )
  return total


def read_rows(folder: storage.PathLike, first: int, end: int) -> pa.Table:
  """The rows of a folder from `first` until before `end`, as far as there are.

  Only the row groups that hold them are read.

  Raises:
    CorruptStateError: as `read_row_groups`.
  """
  found, at = [], 0
  for path in part_paths(folder):
    if at >= end:
      break
    with _opened(path) as file:
      for number in range(file.num_row_groups):
        rows = file.metadata.row_group(number).num_rows
        if at < end and first < at + rows:
          group = file.read_row_group(number)
          found.append(group.slice(max(0, first - at), end - max(first, at)))
        at += rows
  return pa.concat_tables(found)


def read_row_groups(
  folder: storage.PathLike, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
  """Yields a folder's rows, a row group (of whole sources) at a time.

  Args:
    folder: a folder of parts.
    columns: which to read; all by default. Reading few is much faster.

  Raises:
    CorruptStateError: no part is there, or one is truncated, altered or lacks
      a column; it is named.
  """
  for path in part_paths(folder):
    yield from read_part_groups(path, columns)


def read_part_groups(
  path: storage.PathLike, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
  """Yields the rows of one part, a row group (of whole sources) at a time.

  Raises:
    CorruptStateError: as `read_row_groups`.
  """
  path = epath.Path(path)
  with _opened(path) as file:
    missing = set(columns or ()) - set(file.schema_arrow.names)
    if missing:
      raise errors.CorruptStateError(
        f'{path} has no column {", ".join(sorted(missing))}: delete its folder '
        'to make the stage again'
      )
    columns = None if columns is None else list(columns)
    for number in range(file.num_row_groups):
      group = file.read_row_group(number, columns)
      yield group if columns is None else group.select(columns)


def read_part(
  path: storage.PathLike, columns: Sequence[str] | None = None
) -> pa.Table:
  """One part as a whole.

  Raises:
    CorruptStateError: as `read_row_groups`.
  """
  return pa.concat_tables(read_part_groups(path, columns))


def count_rows(folder: storage.PathLike) -> int:
  """Rows of a folder, from the parts' footers.

  Raises:
    CorruptStateError: as `read_row_groups`.
  """
  total = 0
  for path in part_paths(folder):
    with _opened(path) as file:
      total += file.metadata.num_rows
  return total


def source_starts(source_ids: np.ndarray) -> np.ndarray:
  """Where each source's rows start, and the number of rows at the end.

  Args:
    source_ids: int64 [m], all rows of a source together.

  Returns:
    int64 [k + 1] for k sources.

  Raises:
    ValueError: the rows of a source stand in two places.
  """
  changes = np.flatnonzero(source_ids[1:] != source_ids[:-1]) + 1
  head = [0] if len(source_ids) else []
  starts = np.concatenate([head, changes, [len(source_ids)]]).astype(np.int64)
  first = source_ids[starts[:-1]]
  if len(np.unique(first)) != len(first):
    raise ValueError('the rows of a source must stand together')
  return starts


def _chunks(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
  chunk = []
  for row in rows:
    chunk.append(row)
    if len(chunk) == size:
      yield chunk
      chunk = []
  if chunk:
    yield chunk


def _cuts(starts: np.ndarray, rows: int) -> np.ndarray:
  """Where row groups start and end, chosen among where sources start."""
  cuts = [0]
  while cuts[-1] < starts[-1]:
    last = np.searchsorted(starts, cuts[-1] + rows, side='right') - 1
    if starts[last] <= cuts[-1]:  # One source with more than `rows` rows.
      last += 1
    cuts.append(int(starts[last]))
  return np.asarray(cuts, np.int64)


def _parquet(table: pa.Table, schema: pa.Schema, cuts: np.ndarray) -> bytes:
  if table.schema.names != schema.names:
    raise ValueError(f'columns {table.schema.names}, not {schema.names}')
  buffer = pa.BufferOutputStream()
  with pq.ParquetWriter(
    buffer,
    schema,
    compression='zstd',
    use_dictionary=[n for n in schema.names if n in _DICTIONARIES],
    write_page_checksum=True,
  ) as writer:
    for start, end in itertools.pairwise(cuts.tolist()):
      group = table.slice(start, end - start)
      writer.write_table(group, row_group_size=max(1, group.num_rows))
  return buffer.getvalue().to_pybytes()


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[pq.ParquetFile]:
  """Opens a Parquet file; its damage becomes a `CorruptStateError`."""
  try:
    if storage.is_local(path):
      yield pq.ParquetFile(os.fspath(path), page_checksum_verification=True)
    else:
      with storage.seekable(path) as file:
        yield pq.ParquetFile(file, page_checksum_verification=True)
  except (OSError, pa.ArrowException) as error:
    reason = ' '.join(str(error).split()) or type(error).__name__
    raise errors.CorruptStateError(
      f'{path} cannot be read ({reason}): restore it, or delete its folder to '
      'make the stage again'
    ) from error
