import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rest_jax import errors
from rest_jax.data import imported, store


def encode_batch(texts):
  return [[3 + byte for byte in text.encode()] for text in texts]


def read(path, **settings):
  return imported.import_samples(path, encode_batch, **settings)


def test_tsv_groups_outputs_by_source(tmp_path):
  path = tmp_path / 'teacher.tsv'
  path.write_text('eins\tone\tdoc\nzwei\ttwo\neins\tOne!\tdoc\n')
  result = read(path, grow_step=2, language_pair='de-en')
  table = result.table
  assert table.schema.equals(store.SAMPLES_SCHEMA)
  assert table['source_id'].to_pylist() == [0, 0, 1]
  assert table['sample_index'].to_pylist() == [0, 1, 0]
  assert table['target'].to_pylist() == ['one', 'One!', 'two']
  assert table['doc_id'].to_pylist() == ['doc', 'doc', None]
  assert set(table['origin'].to_pylist()) == {'imported'}
  assert table['grow_step'].to_pylist() == [2, 2, 2]
  assert table['target_tokens'].to_pylist()[0] == [114, 113, 104, 1]
  assert table['length'].to_pylist() == [4, 5, 4]
  assert table['log_prob'].null_count == 3
  assert table['finished'].to_pylist() == [True] * 3
  assert (result.samples, result.sources, result.references) == (3, 2, 0)
  store.samples_part(table)  # It fits the store.


def test_jsonl_with_ids_lists_and_references(tmp_path):
  path = tmp_path / 'teacher.jsonl.gz'
  records = [
    {'source_id': 2**40, 'source': 'a', 'targets': ['x', 'y'], 'score': 0.5},
    {'source_id': 7, 'source': 'b', 'target': 'z', 'reference': 'Z'},
    {'source_id': 2**40, 'source': 'a', 'target': 'x', 'domain': 'news'},
  ]
  with gzip.open(path, 'wt') as file:
    file.writelines(json.dumps(record) + '\n' for record in records)
  table = read(path).table
  assert table['source_id'].to_pylist() == [2**40] * 3 + [7] * 2
  assert table['sample_index'].to_pylist() == [0, 1, 2, -1, 0]
  assert table['origin'].to_pylist() == ['imported'] * 3 + [
    'reference',
    'imported',
  ]
  assert table['target'].to_pylist() == ['x', 'y', 'x', 'Z', 'z']


def test_parquet_such_as_an_exported_store(tmp_path):
  path = tmp_path / 'teacher.parquet'
  columns = {'source_id': [1, 1], 'source': ['a', 'a'], 'target': ['x', 'y']}
  pq.write_table(pa.table(columns | {'other': [0.0, 1.0]}), path)
  assert read(path).table['target'].to_pylist() == ['x', 'y']


def test_a_part_of_a_runs_own_store(tmp_path):
  path = tmp_path / 'part-00000.parquet'
  columns = {
    'source_id': [1, 1, 1, 2],
    'source': ['a', 'a', 'a', 'b'],
    'target': ['r', 'x', 'cut', 's'],
    'origin': ['reference', 'policy', 'policy', 'reference'],
    'finished': [True, True, False, True],
  }
  pq.write_table(pa.table(columns), path)
  result = read(path)
  rows = [
    (row['source'], row['target'], row['origin'])
    for row in result.table.to_pylist()
  ]
  assert rows == [
    ('a', 'r', 'reference'), ('a', 'x', 'imported'), ('b', 's', 'reference'),
  ]  # fmt: skip
  assert (result.samples, result.skipped_unfinished) == (1, 1)


def test_lines_end_at_line_feeds_alone(tmp_path):
  path = tmp_path / 'teacher.tsv'
  path.write_bytes('a\u2028b\tx\x85y\r\n'.encode())
  table = read(path).table
  assert table['source'].to_pylist() == ['a\u2028b']
  assert table['target'].to_pylist() == ['x\x85y']


def test_long_outputs_are_left_out_and_counted(tmp_path):
  path = tmp_path / 'teacher.tsv'
  path.write_text('a\txxx\na\txx\n')
  result = read(path, max_target_length=3)
  assert result.table['target'].to_pylist() == ['xx']
  assert (result.samples, result.skipped_too_long) == (1, 1)
  with pytest.raises(errors.DataError, match='every output'):
    read(path, max_target_length=2)


@pytest.mark.parametrize(
  'name, content, message',
  [
    ('a.tsv', b'a\tb\nonly\n', r'a\.tsv:2: 1 columns'),
    ('a.tsv', b'a\tb\n\xff\tb\n', r'a\.tsv:2: '),
    ('a.tsv', b'', 'no'),
    ('a.tsv', b'a\tb\n \tb\n', r'a\.tsv:2: the source is empty'),
    ('a.jsonl', b'{"source": "a"}\n', r'a\.jsonl:1: a line needs a source'),
    ('a.jsonl', b'{"source": 3, "target": "b"}\n', 'source is 3, not of type'),
    ('a.jsonl', b'[1]\n', r'a\.jsonl:1: not a JSON object'),
    ('a.jsonl', b'{\n', r'a\.jsonl:1: not JSON'),
    (
      'a.jsonl',
      b'{"source": "a", "targets": ["b", 2]}\n',
      r'a\.jsonl:1: targets holds',
    ),
    (
      'a.jsonl',
      b'{"source_id": 1, "source": "a", "target": "b"}\n'
      b'{"source_id": 1, "source": "c", "target": "b"}\n',
      r'a\.jsonl:2: source_id 1 stands for another source at .*a\.jsonl:1',
    ),
    (
      'a.jsonl',
      b'{"source_id": 1, "source": "a", "target": "b"}\n'
      b'{"source": "c", "target": "b"}\n',
      r'a\.jsonl:2: source_id is missing',
    ),
    ('a.parquet', b'PAR1 no', r'a\.parquet cannot be read'),
    ('a.csv', b'a,b\n', r'a\.csv: outputs are read from'),
  ],
)
def test_bad_files(tmp_path, name, content, message):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(errors.DataError, match=message):
    read(path)


@pytest.mark.parametrize('name', ['a.tsv', 'a.jsonl', 'a.parquet'])
def test_missing_files(tmp_path, name):
  with pytest.raises(errors.DataError, match=name):
    read(tmp_path / name)


def test_long_sources_are_left_out_with_their_outputs(tmp_path):
  path = tmp_path / 'teacher.jsonl'
  records = [
    {'source': 'aaaa', 'targets': ['x', 'y'], 'reference': 'z'},
    {'source': 'aaa', 'target': 'x', 'reference': 'zzzzzz'},
  ]
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  result = read(path, max_source_length=4, max_target_length=4, first_id=100)
  # A reference serves the reward alone, so it may be of any length.
  assert result.table['target'].to_pylist() == ['zzzzzz', 'x']
  assert result.table['source_id'].to_pylist() == [101, 101]
  assert (result.samples, result.skipped_too_long) == (1, 2)
