import glob

import duckdb
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rest_jax import errors, storage
from rest_jax.data import scored, store

# A machine that is busy with other things makes examples slowly.
LOAD = [hypothesis.HealthCheck.too_slow]


def samples(counts, *, first_id=0, reference=True):
  """A table of sources with so many samples each, every text different."""
  rows = []
  for source, count in enumerate(counts):
    for index in range(-1 if reference else 0, count):
      rows.append((first_id + source, index))
  return store.samples_table(
    {
      'source_id': [source for source, _ in rows],
      'doc_id': [f'doc {source // 2}' for source, _ in rows],
      'domain': None,
      'language_pair': 'de-en',
      'sample_index': [index for _, index in rows],
      'grow_step': 1,
      'origin': ['reference' if i < 0 else 'policy' for _, i in rows],
      'source': [f'Satz {source}' for source, _ in rows],
      'target': [f'sentence {source} {index}' for source, index in rows],
      'target_tokens': [[7] * (2 + index) + [1] for _, index in rows],
      'finished': [index != 1 for _, index in rows],
      'log_prob': [None if i < 0 else -1.5 for _, i in rows],
      'token_log_probs': [None if i < 0 else [-0.5] * (3 + i) for _, i in rows],
    }
  )


@pytest.fixture
def folders(tmp_path):
  """Two parts of samples with scores: the row number over 100."""
  row = 0
  for number, counts in enumerate([[3, 0, 2], [4, 1]]):
    table = samples(counts, first_id=10 * number)
    path = tmp_path / 'samples' / store.part_name(number)
    storage.write_atomic(path, store.samples_part(table, row_group_rows=6))
    scores = (np.arange(table.num_rows) + row) / 100
    storage.write_atomic(
      tmp_path / 'reward' / path.name, store.scores_part(path, scores)
    )
    row += table.num_rows
  return tmp_path / 'samples', tmp_path / 'reward'


def test_samples_come_back_as_written(folders):
  expected = pa.concat_tables(
    [samples([3, 0, 2]), samples([4, 1], first_id=10)]
  )
  table = pa.concat_tables(store.read_row_groups(folders[0]))
  assert table.equals(expected)
  assert table.schema.names == store.SAMPLES_SCHEMA.names
  assert table['length'].to_pylist()[:4] == [2, 3, 4, 5]
  assert store.count_rows(folders[0]) == 15


def test_columns_can_be_chosen(folders):
  columns = ['target', 'source_id']
  group = next(store.read_row_groups(folders[0], columns))
  assert group.column_names == columns
  assert store.read_part(store.part_paths(folders[0])[1]).num_rows == 7


@hypothesis.given(
  counts=st.lists(st.integers(0, 9), min_size=1, max_size=20),
  rows=st.integers(1, 12),
)
@hypothesis.settings(max_examples=40, deadline=None, suppress_health_check=LOAD)
def test_row_groups_hold_whole_sources_and_no_more_than_asked(counts, rows):
  table = samples(counts)
  data = store.samples_part(table, row_group_rows=rows)
  file = pq.ParquetFile(pa.BufferReader(data))
  seen = []
  for number in range(file.num_row_groups):
    ids = file.read_row_group(number)['source_id'].to_pylist()
    assert not set(ids) & set(seen)
    assert len(ids) <= rows or len(set(ids)) == 1
    seen += ids
  assert seen == table['source_id'].to_pylist()


def test_same_rows_give_the_same_bytes():
  assert store.samples_part(samples([5, 3])) == store.samples_part(
    samples([5, 3])
  )
  assert store.samples_part(samples([5, 3])) != store.samples_part(
    samples([5, 4])
  )


def test_a_source_in_two_places_is_refused():
  table = samples([2, 2])
  mixed = pa.concat_tables(
    [table.slice(0, 2), table.slice(3), table.slice(2, 1)]
  )
  with pytest.raises(ValueError, match='stand together'):
    store.samples_part(mixed)


@pytest.mark.parametrize(
  'change',
  [
    {'origin': 'model'},
    {'colour': 'red'},
    {'target_tokens': [[1]]},
    {'source': None},
  ],
)
def test_rows_outside_the_schema_are_refused(change):
  table = samples([1])
  columns = {name: table[name] for name in table.column_names}
  with pytest.raises(ValueError):
    store.samples_table(columns | change)


def test_columns_may_be_arrow_numpy_or_lists():
  table = samples([2])
  as_arrow = {name: table[name] for name in table.column_names}
  as_numpy = as_arrow | {
    'source_id': table['source_id'].to_numpy(),
    'finished': table['finished'].to_numpy(),
  }
  assert store.samples_table(as_arrow).equals(table)
  assert store.samples_table(as_numpy).equals(table)


def test_documented_one_liners(folders):
  samples_folder, reward_folder = folders
  keys = ['source_id', 'sample_index']
  for folder in folders:
    (folder / 'stage.json').write_text('{}')  # As in every committed stage.
  in_pandas = pd.read_parquet(
    sorted(glob.glob(f'{samples_folder}/*.parquet'))
  ).merge(
    pd.read_parquet(sorted(glob.glob(f'{reward_folder}/*.parquet'))), on=keys
  )
  in_polars = (
    pl.scan_parquet(f'{samples_folder}/*.parquet')
    .join(pl.scan_parquet(f'{reward_folder}/*.parquet'), on=keys)
    .collect()
  )
  in_duckdb = duckdb.sql(
    f"SELECT * FROM '{samples_folder}/*.parquet' "
    f"JOIN '{reward_folder}/*.parquet' USING (source_id, sample_index)"
  ).arrow()
  if not isinstance(in_duckdb, pa.Table):
    in_duckdb = in_duckdb.read_all()
  table = pa.concat_tables(store.read_row_groups(samples_folder, keys))
  rows = zip(*(table[key].to_pylist() for key in keys), strict=True)
  expected = {row: np.float32(n / 100) for n, row in enumerate(rows)}
  for table in (in_pandas, in_polars.to_pandas(), in_duckdb.to_pandas()):
    columns = [table[name] for name in (*keys, 'score')]
    got = {row[:2]: row[2] for row in zip(*columns, strict=True)}
    assert got == expected
    assert set(store.SAMPLES_SCHEMA.names) <= set(table.columns)


# Sources.


def test_sources_stream_in_parts(tmp_path):
  rows = [
    {
      'source_id': number,
      'doc_id': 'd',
      'source': f's {number}',
      'target': None if number % 3 else 't',
      'source_tokens': [5, 1],
      'target_tokens': None if number % 3 else [6, 1],
    }
    for number in range(10)
  ]
  written = store.write_sources(tmp_path / 'train', iter(rows), part_rows=4)
  assert written == 10
  names = [path.name for path in store.part_paths(tmp_path / 'train')]
  assert names == [store.part_name(number) for number in range(3)]
  table = pa.concat_tables(store.read_row_groups(tmp_path / 'train'))
  assert table['source_id'].to_pylist() == list(range(10))
  assert table['target_tokens'].to_pylist()[:4] == [[6, 1], None, None, [6, 1]]
  assert table['domain'].null_count == 10
  chosen = pa.concat_tables(
    store.read_row_groups(tmp_path / 'train', ['source'])
  )
  assert chosen.column_names == ['source']


def test_rows_are_read_by_number(folders):
  whole = pa.concat_tables(store.read_row_groups(folders[0]))
  size = whole.num_rows
  for first in range(size):
    for end in range(first + 1, size + 3):
      some = store.read_rows(folders[0], first, end)
      assert some.equals(whole.slice(first, end - first)), (first, end)


def test_no_source_at_all_is_a_data_error(tmp_path):
  with pytest.raises(errors.DataError, match='no row is left'):
    store.write_sources(tmp_path / 'train', [])


# Damage.


def test_every_truncation_is_seen(folders):
  path = store.part_paths(folders[0])[0]
  data = path.read_bytes()
  for length in range(0, len(data), 97):
    path.write_bytes(data[:length])
    with pytest.raises(errors.CorruptStateError, match='part-00000'):
      list(store.read_row_groups(folders[0]))


def test_a_flipped_bit_in_the_pages_is_never_read_silently(folders):
  path = store.part_paths(folders[0])[0]
  data = path.read_bytes()
  whole = store.read_part(path)
  footer = len(data) - 8 - int.from_bytes(data[-8:-4], 'little')
  seen = 0
  for position in range(4, footer, 41):
    broken = bytearray(data)
    broken[position] ^= 1 << (position % 8)
    path.write_bytes(bytes(broken))
    try:
      # A bit of a header that nothing uses may flip; values may not.
      assert store.read_part(path).equals(whole)
    except errors.CorruptStateError as error:
      assert 'part-00000' in str(error)
      seen += 1
  assert seen > 20


def test_missing_folder_part_and_column(folders, tmp_path):
  with pytest.raises(errors.CorruptStateError, match='holds no part'):
    list(store.read_row_groups(tmp_path / 'nothing'))
  with pytest.raises(errors.CorruptStateError, match='no column colour'):
    list(store.read_row_groups(folders[0], ['colour']))
  with pytest.raises(errors.CorruptStateError, match='part-00009'):
    store.read_part(folders[0] / 'part-00009.parquet')


# Samples and scores together.


def test_scores_join_by_row(folders):
  samples_folder, reward_folder = folders
  tables = list(
    scored.iter_scored(
      samples_folder,
      {'reward': reward_folder, 'chrf': reward_folder},
      ['target'],
    )
  )
  table = pa.concat_tables(tables)
  assert table.column_names == ['target', 'reward', 'chrf']
  expected = np.arange(15, dtype=np.float32) / np.float32(100)
  np.testing.assert_array_equal(table['reward'].to_numpy(), expected)
  assert table['reward'].equals(table['chrf'])
  assert len(tables) == 4  # 4 + 1, 3 rows; 5, 2 rows.


def test_scores_have_the_row_groups_of_samples(folders):
  for one, other in zip(*map(store.part_paths, folders), strict=True):
    metadata = [pq.ParquetFile(path).metadata for path in (one, other)]
    rows = [
      [m.row_group(i).num_rows for i in range(m.num_row_groups)]
      for m in metadata
    ]
    assert rows[0] == rows[1]


def test_misaligned_scores_are_seen(folders):
  samples_folder, reward_folder = folders

  def join():
    return list(scored.iter_scored(samples_folder, {'reward': reward_folder}))

  first, second = store.part_paths(reward_folder)
  kept = first.read_bytes()
  first.write_bytes(second.read_bytes())
  with pytest.raises(errors.CorruptStateError, match=r'reward are not those'):
    join()
  first.write_bytes(kept)
  assert join()
  second.unlink()
  with pytest.raises(errors.CorruptStateError, match=r'reward are not those'):
    join()


@pytest.mark.parametrize('column', ['source_id', 'sample_index'])
def test_scores_of_other_rows_are_seen_where_there_are_as_many(folders, column):
  samples_folder, reward_folder = folders
  path = store.part_paths(reward_folder)[0]
  table = store.read_part(path)
  ids = table[column].to_numpy().copy()
  ids[[0, 1]] = ids[[1, 0]] if column == 'sample_index' else ids[[0, 1]] + 1
  place = table.column_names.index(column)
  other = table.set_column(
    place,
    table.schema.field(column),
    pa.array(ids, table.schema.field(column).type),
  )
  assert not other.equals(table)
  groups = pq.ParquetFile(path).metadata
  pq.write_table(other, path, row_group_size=groups.row_group(0).num_rows)
  with pytest.raises(errors.CorruptStateError, match=r'reward are not those'):
    list(scored.iter_scored(samples_folder, {'reward': reward_folder}))


def test_number_of_scores_is_checked(folders):
  path = store.part_paths(folders[0])[0]
  with pytest.raises(ValueError, match='7 scores for 8 rows'):
    store.scores_part(path, np.zeros(7))


def test_references_stand_beside_every_row_of_their_source():
  table = pa.concat_tables(
    [samples([2, 0]), samples([1], first_id=5, reference=False)]
  )
  assert scored.references(table).to_pylist() == [
    'sentence 0 -1',
    'sentence 0 -1',
    'sentence 0 -1',
    'sentence 1 -1',
    None,
  ]


def test_rows_for_selections():
  texts = [
    # source, target, tokens, copy, characters, repeats
    (1, 'Haus', 'house', [5, 1], False, 5 / 4, 1),
    (1, 'Haus', ' Haus ', [5, 6, 5, 6, 1], True, 1.0, 2),
    (1, 'Haus', 'no no no', [9, 9, 9, 1], False, 2.0, 3),
    (1, 'Haus', 'house', [5, 1], False, 5 / 4, 1),
    (2, 'ä', '  ', [], False, 0.0, 0),
    (2, 'ä', 'éé', [4, 4, 2, 4, 4, 2, 4, 4, 1], False, 2.0, 2),
  ]
  ids, source, target, tokens, copies, ratios, repeats = zip(
    *texts, strict=True
  )
  table = store.samples_table(
    {
      'source_id': ids,
      'sample_index': [-1, 0, 1, 2, 0, 1],
      'grow_step': 1,
      'origin': ['reference', *['policy'] * 4, 'imported'],
      'source': source,
      'target': target,
      'target_tokens': tokens,
      'finished': [True, True, True, True, False, True],
    }
  ).append_column('reward', pa.array(np.linspace(0, 1, 6, dtype=np.float32)))
  everything = frozenset({'text_ids', 'copies', 'length_ratios', 'repetitions'})
  rows = scored.rows_from_table(table, everything)
  assert rows.source_ids.tolist() == [1, 2]
  assert rows.offsets.tolist() == [0, 4, 6]
  assert rows.origin.tolist() == [1, 0, 0, 0, 0, 2]
  assert rows.finished.tolist() == [True, True, True, True, False, True]
  assert rows.lengths.tolist() == [2, 5, 4, 2, 0, 9]
  assert rows.text_ids[0] == rows.text_ids[3]
  assert len(set(rows.text_ids.tolist())) == 5
  assert rows.copies.tolist() == list(copies)
  np.testing.assert_allclose(rows.length_ratios, ratios, rtol=1e-6)
  assert rows.repetitions.tolist() == list(repeats)
  assert scored.rows_from_table(table).text_ids is None


def naive_repetitions(tokens):
  best = min(len(tokens), 1)
  for period in range(1, 9):
    for start in range(len(tokens)):
      phrase = tokens[start : start + period]
      times = 1
      while (
        len(phrase) == period
        and tokens[start + times * period : start + (times + 1) * period]
        == phrase
      ):
        times += 1
      best = max(best, times)
  return best


@hypothesis.given(
  st.lists(st.lists(st.integers(2, 4), max_size=14), min_size=1, max_size=6)
)
@hypothesis.settings(
  max_examples=100, deadline=None, suppress_health_check=LOAD
)
def test_repetitions_are_those_of_a_plain_count(targets):
  targets = [[*tokens, 1] if tokens else [] for tokens in targets]
  table = pa.table({'target_tokens': pa.array(targets, pa.list_(pa.int32()))})
  expected = [naive_repetitions(tokens) for tokens in targets]
  assert scored._repetitions(table).tolist() == expected


def test_a_global_threshold_reads_only_small_columns():
  assert 'target' not in scored.columns_for(frozenset())
  assert 'target_tokens' not in scored.columns_for(frozenset({'text_ids'}))
