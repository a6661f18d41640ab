"""Samples with their scores beside them, and as numpy rows for selections."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rest_jax import errors, mbr, storage
from rest_jax import rows as rows_lib
from rest_jax.data import store

_IDS = ('source_id', 'sample_index')
GIVEN = 'given'  # Column of what an earlier store has given; see `rows.Rows`.
_ALWAYS = (*_IDS, 'origin', 'finished', 'length')
_NEEDED = {
  'text_ids': ('target',),
  'copies': ('source', 'target'),
  'length_ratios': ('source', 'target'),
  'repetitions': ('target_tokens',),
  'utilities': ('target',),
  'source_lengths': ('source',),
  'log_ratios': ('log_prob',),
}
_MAX_PERIOD = 8  # Tokens of the longest repeated phrase that is looked for.


def iter_scored(
  samples_folder: storage.PathLike,
  score_folders: Mapping[str, storage.PathLike],
  columns: Sequence[str] | None = None,
) -> Iterator[pa.Table]:
  """Yields samples with their scores, a row group of whole sources at a time.

  Args:
    samples_folder: parts of samples.
    score_folders: name of the column to add → folder with that score (`reward`
      → `grow_1/reward`).
    columns: columns of the samples to read; all by default.

  Raises:
    CorruptStateError: a file is damaged, or scores and samples are not the
      same rows in the same order; the folder is named.
  """
  wanted = None if columns is None else list(dict.fromkeys([*_IDS, *columns]))
  names = list(score_folders)
  paths = store.part_paths(samples_folder)
  for folder in score_folders.values():
    scored = [path.name for path in store.part_paths(folder)]
    if scored != [path.name for path in paths]:
      raise _misaligned(folder, samples_folder)
  for path in paths:
    streams = [store.read_part_groups(path, wanted)]
    for folder in score_folders.values():
      streams.append(store.read_part_groups(f'{folder}/{path.name}'))
    for table, *scores in itertools.zip_longest(*streams):
      for name, score in zip(names, scores, strict=True):
        if not _aligned(table, score):
          raise _misaligned(score_folders[name], samples_folder)
        table = table.append_column(name, score['score'])
      yield table if columns is None else table.select([*columns, *names])


def _aligned(table: pa.Table | None, score: pa.Table | None) -> bool:
  if table is None or score is None:
    return False
  return all(table[name].equals(score[name]) for name in _IDS)


def _misaligned(folder, samples_folder) -> errors.CorruptStateError:
  return errors.CorruptStateError(
    f'the rows of {folder} are not those of {samples_folder}: delete '
    f'{folder} to score the samples again'
  )


def columns_for(needs: Set[str]) -> list[str]:
  """Columns of the samples that `rows_from_table` reads for some needs."""
  extra = [name for need in sorted(needs) for name in _NEEDED[need]]
  return list(dict.fromkeys([*_ALWAYS, *extra]))


def iter_rows(
  samples_folder: storage.PathLike,
  reward_folder: storage.PathLike,
  needs: Set[str] = frozenset(),
) -> Iterator[rows_lib.Rows]:
  """Yields what selections look at, a row group of whole sources at a time.

  Args:
    samples_folder: parts of samples.
    reward_folder: their rewards in [0, 1].
    needs: `selection.needs_of(selections)`; less is read for fewer needs.

  Raises:
    CorruptStateError: as `iter_scored`.
  """
  tables = iter_scored(
    samples_folder, {'reward': reward_folder}, columns_for(needs)
  )
  for table in tables:
    yield rows_from_table(table, needs)


def rows_from_table(
  table: pa.Table, needs: Set[str] = frozenset()
) -> rows_lib.Rows:
  """What selections look at, of a table of whole sources.

  Args:
    table: columns `columns_for(needs)` and `reward`, `bc_log_prob` where
      `log_ratios` are needed, and `given` where rows may be.
    needs: which of the optional fields of `rows.Rows` to compute.

  Raises:
    ValueError: a programmer's error: a source's rows do not stand together.
  """
  source_ids = table['source_id'].to_numpy()
  starts = store.source_starts(source_ids)
  optional = text_fields(table, needs)
  return rows_lib.Rows(
    source_ids=source_ids[starts[:-1]],
    offsets=starts,
    sample_index=table['sample_index'].to_numpy(),
    origin=_origins(table['origin']),
    reward=table['reward'].to_numpy(),
    finished=table['finished'].to_numpy(),
    lengths=table['length'].to_numpy(),
    given=table[GIVEN].to_numpy() if GIVEN in table.column_names else None,
    **optional,
  )


def text_fields(table: pa.Table, names: Iterable[str]) -> dict[str, np.ndarray]:
  """Optional fields of `rows.Rows`, of samples in any order.

  Args:
    table: columns `columns_for(names)`.
    names: of the fields.
  """
  return {name: _OPTIONAL[name](table) for name in names}


def references(table: pa.Table) -> pa.Array:
  """The reference of each row's source, null where it has none.

  Args:
    table: whole sources with `source_id`, `sample_index` and `target`.

  Returns:
    string [m], what a reward that needs references is given.
  """
  starts = store.source_starts(table['source_id'].to_numpy())
  rows = np.flatnonzero(
    table['sample_index'].to_numpy() == store.REFERENCE_INDEX
  )
  source_of_row = np.searchsorted(starts, rows, side='right') - 1
  where = np.full(len(starts) - 1, -1, np.int64)
  where[source_of_row] = rows
  where = np.repeat(where, np.diff(starts))
  return _column(table, 'target').take(pa.array(where, mask=where < 0))


def _column(table: pa.Table, name: str) -> pa.Array:
  column = table[name].combine_chunks()
  if isinstance(column, pa.ChunkedArray):
    return pa.concat_arrays(column.chunks)
  return column


def _origins(column: pa.ChunkedArray) -> np.ndarray:
  codes = pc.index_in(column, pa.array(store.ORIGINS))
  return codes.to_numpy().astype(np.int8)


def _text_ids(table: pa.Table) -> np.ndarray:
  encoded = _column(table, 'target').dictionary_encode()
  return encoded.indices.to_numpy().astype(np.int32)


def _copies(table: pa.Table) -> np.ndarray:
  source = pc.utf8_trim_whitespace(_column(table, 'source'))
  target = pc.utf8_trim_whitespace(_column(table, 'target'))
  return pc.equal(source, target).to_numpy(zero_copy_only=False)


def _length_ratios(table: pa.Table) -> np.ndarray:
  def characters(name):
    text = pc.utf8_trim_whitespace(_column(table, name))
    return pc.utf8_length(text).to_numpy().astype(np.float32)

  # A source without characters counts as one, so that the ratio is a number.
  return characters('target') / np.maximum(characters('source'), 1)


def _source_lengths(table: pa.Table) -> np.ndarray:
  source = pc.utf8_trim_whitespace(_column(table, 'source'))
  return pc.utf8_length(source).to_numpy().astype(np.int32)


def _repetitions(table: pa.Table) -> np.ndarray:
  """Times that the most repeated phrase follows itself in each row."""
  tokens = _column(table, 'target_tokens')
  values = tokens.flatten().to_numpy()
  lengths = tokens.value_lengths().to_numpy().astype(np.int64)
  starts = np.cumsum(lengths) - lengths
  index = np.arange(len(values))
  position = index - np.repeat(starts, lengths)
  result = np.minimum(lengths, 1).astype(np.int32)
  filled = np.flatnonzero(lengths)
  for period in range(1, _MAX_PERIOD + 1):
    same = np.zeros(len(values), bool)
    same[period:] = values[period:] == values[:-period]
    same &= position >= period
    # Length of the run of equal tokens, one period apart, that ends here.
    run = index - np.maximum.accumulate(np.where(same, -1, index))
    if len(filled):
      longest = np.maximum.reduceat(run, starts[filled])
      repeats = (longest // period + 1).astype(np.int32)
      result[filled] = np.maximum(result[filled], repeats)
  return result


def _utilities(table: pa.Table) -> np.ndarray:
  """Mean chrF of the policy's rows against those of their source."""
  own = np.flatnonzero(_origins(table['origin']) == rows_lib.POLICY)
  texts = _column(table, 'target').take(pa.array(own)).to_pylist()
  starts = store.source_starts(table['source_id'].to_numpy()[own])
  groups = [texts[a:b] for a, b in itertools.pairwise(starts.tolist())]
  result = np.zeros(table.num_rows, np.float32)
  if groups:
    result[own] = np.concatenate([mbr.expected_utilities(g) for g in groups])
  return result


def _log_ratios(table: pa.Table) -> np.ndarray:
  ratios = pc.subtract(table['log_prob'], table['bc_log_prob'])
  return pc.fill_null(ratios, 0.0).to_numpy().astype(np.float32)


_OPTIONAL = {
  'text_ids': _text_ids,
  'copies': _copies,
  'length_ratios': _length_ratios,
  'repetitions': _repetitions,
  'utilities': _utilities,
  'source_lengths': _source_lengths,
  'log_ratios': _log_ratios,
}
