"""What a reward model learns from: scored or preferred translations.

Two kinds of files, TSV (`.gz` allowed) or Parquet:

  source, candidate, score            a score of each candidate
  source, better, worse               which of two candidates is better

A TSV file begins with a line of column names and has no quoting. A column
`document` is used where it is there: whole documents are held out. Others are
ignored.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from rest_jax import errors, storage
from rest_jax.data import text as text_lib


@dataclasses.dataclass(frozen=True)
class Example:
  """One thing to learn: candidates of one source.

  Attributes:
    source: the text.
    candidates: one translation, or the better and the worse of two.
    score: in [0, 1], higher is better; None where a preference is learned.
    group: the document, or else the source: held out together.
  """

  source: str
  candidates: tuple[str, ...]
  score: float | None
  group: str


@dataclasses.dataclass(frozen=True)
class ScoredFile:
  """A file of (source, candidate, score) rows: regression.

  Attributes:
    path: '.tsv', '.tsv.gz' or '.parquet'.
    low: the smallest score there can be.
    high: the largest.
    higher_is_better: False for error counts, such as MQM's.
    trained_on: names of data sets that the rows are of, e.g. 'wmt20', so that
      the reward is not believed on them.
  """

  path: str
  low: float = 0.0
  high: float = 1.0
  higher_is_better: bool = True
  trained_on: tuple[str, ...] = dataclasses.field(default=(), compare=False)

  learns = 'scores'

  def __post_init__(self):
    if not (math.isfinite(self.low + self.high) and self.low < self.high):
      raise errors.ConfigurationError(
        f'ScoredFile.low = {self.low}, ScoredFile.high = {self.high}: set a'
        ' finite range with low < high.'
      )

  def examples(self) -> Iterator[Example]:
    """Yields the rows, scores scaled to [0, 1].

    Raises:
      DataError: a file that cannot be read or lacks a column; a row without
        source or candidate, or whose score is missing, no number or outside
        the range; scores that are all equal. File and row are named.
    """
    first, other = None, False
    for where, row in _rows(self.path, ('source', 'candidate', 'score')):
      score = _number(where, row['score'])
      if not self.low <= score <= self.high:
        raise errors.DataError(
          f'{where}: the score {score:g} lies outside [{self.low:g},'
          f' {self.high:g}]: correct it, or ScoredFile.low and high'
        )
      first = score if first is None else first
      other = other or score != first
      unit = (score - self.low) / (self.high - self.low)
      yield Example(
        row['source'],
        (row['candidate'],),
        unit if self.higher_is_better else 1.0 - unit,
        row['document'] or row['source'],
      )
    if not other:
      raise errors.DataError(
        f'{self.path}: every score is {first:g}: there is nothing to learn'
      )


@dataclasses.dataclass(frozen=True)
class PreferredFile:
  """A file of (source, better, worse) rows: Bradley–Terry.

  Attributes:
    path: '.tsv', '.tsv.gz' or '.parquet'.
    trained_on: names of data sets that the rows are of, e.g. 'wmt20', so that
      the reward is not believed on them.
  """

  path: str
  trained_on: tuple[str, ...] = dataclasses.field(default=(), compare=False)

  learns = 'preferences'

  def examples(self) -> Iterator[Example]:
    """Yields the rows.

    Raises:
      DataError: a file that cannot be read or lacks a column; a row without
        one of the texts, or with two equal candidates. File and row are named.
    """
    for where, row in _rows(self.path, ('source', 'better', 'worse')):
      if row['better'] == row['worse']:
        raise errors.DataError(
          f'{where}: better and worse are the same text'
          f' {row["better"]!r}: delete the row'
        )
      yield Example(
        row['source'],
        (row['better'], row['worse']),
        None,
        row['document'] or row['source'],
      )


def _rows(
  path: str, columns: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields where each row stands and its columns, `document` among them."""
  count = 0
  reader = _parquet_rows if path.endswith('.parquet') else _tsv_rows
  if not path.endswith(('.parquet', '.tsv', '.tsv.gz')):
    raise errors.DataError(
      f'{path}: of an unknown format: give a .tsv, .tsv.gz or .parquet file'
    )
  for where, row in reader(epath.Path(path), columns):
    count += 1
    for name in columns:
      value = row[name]
      if name == 'score':
        continue
      if not isinstance(value, str) or not value.strip():
        raise errors.DataError(
          f'{where}: the {name} is missing (found {value!r}): fill it in, or'
          ' delete the row'
        )
    document = row['document']
    yield where, row | {'document': '' if document is None else str(document)}
  if not count:
    raise errors.DataError(f'{path} has no rows: give a file that does')


def _tsv_rows(path, columns):
  lines = text_lib.read_lines(path)
  header = next(lines, None)
  if header is None:
    raise errors.DataError(f'{path} is empty: give a file that is not')
  names = header.split('\t')
  _check_columns(f'{path}:1', names, columns)
  for number, line in enumerate(lines, 2):
    cells = line.split('\t')
    where = f'{path}:{number}'
    if len(cells) != len(names):
      raise errors.DataError(
        f'{where}: has {len(cells)} columns, line 1 names {len(names)}:'
        ' correct the row; a text cannot hold a tab'
      )
    yield where, {'document': None} | dict(zip(names, cells, strict=True))


def _parquet_rows(path, columns):
  try:
    with storage.seekable(path) as file:
      table = pq.read_table(file, page_checksum_verification=True)
  except (OSError, pa.ArrowException) as error:
    raise errors.DataError(
      f'{path} cannot be read as Parquet ({" ".join(str(error).split())}):'
      ' check the path'
    ) from error
  _check_columns(str(path), table.column_names, columns)
  names = [*columns, *{'document'}.intersection(table.column_names)]
  number = 0
  for batch in table.select(names).to_batches():
    for row in batch.to_pylist():
      yield f'{path}, row {number}', {'document': None} | row
      number += 1


def _check_columns(where, names, columns):
  missing = [name for name in columns if name not in names]
  if missing:
    raise errors.DataError(
      f'{where}: the column {missing[0]!r} is missing, found'
      f' {", ".join(names)}: name the columns {", ".join(columns)}'
    )


def _number(where: str, value: Any) -> float:
  try:
    number = float(value)
  except (TypeError, ValueError):
    number = math.nan
  if not math.isfinite(number) or isinstance(value, bool):
    raise errors.DataError(
      f'{where}: the score {value!r} is no finite number: correct it'
    )
  return number
