import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rest_jax import errors
from rest_jax.data.reward_rows import Example, PreferredFile, ScoredFile

SCORED = 'source\tcandidate\tscore\n'


def write(folder, text, name='rows.tsv'):
  path = folder / name
  path.write_bytes(text.encode())
  return str(path)


def test_scores_are_scaled_and_turned_round(tmp_path):
  path = write(tmp_path, SCORED + 'x\ty\t5\nx\tz\t0\nw\ty\t-25\n')
  rows = list(ScoredFile(path, low=-25.0, high=5.0).examples())
  assert rows == [
    Example('x', ('y',), 1.0, 'x'),
    Example('x', ('z',), 25 / 30, 'x'),
    Example('w', ('y',), 0.0, 'w'),
  ]
  errors_first = ScoredFile(path, low=-25.0, high=5.0, higher_is_better=False)
  assert [row.score for row in errors_first.examples()][::2] == [0.0, 1.0]


def test_the_same_rows_from_every_format(tmp_path):
  text = (
    'score\tdocument\tcandidate\tnote\tsource\n0.5\td\ty\t?\tx\n1\t\tz\t!\tx\n'
  )
  plain = write(tmp_path, text)
  packed = tmp_path / 'rows.tsv.gz'
  packed.write_bytes(gzip.compress(text.encode()))
  table = pa.table(
    {
      'candidate': ['y', 'z'],
      'source': ['x', 'x'],
      'score': [0.5, 1.0],
      'document': ['d', None],
    }
  )
  pq.write_table(table, tmp_path / 'rows.parquet')
  expected = [Example('x', ('y',), 0.5, 'd'), Example('x', ('z',), 1.0, 'x')]
  for path in (plain, str(packed), str(tmp_path / 'rows.parquet')):
    assert list(ScoredFile(path).examples()) == expected


def test_preferences(tmp_path):
  path = write(tmp_path, 'source\tbetter\tworse\nx\ty\tz\n')
  assert list(PreferredFile(path).examples()) == [
    Example('x', ('y', 'z'), None, 'x')
  ]


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', r'rows\.tsv is empty'),
    (SCORED, r'rows\.tsv has no rows'),
    (
      'source\tscore\nx\t1\n',
      r"rows\.tsv:1: the column 'candidate' is missing",
    ),
    (SCORED + 'x\ty\t1\nx\ty\n', r'rows\.tsv:3: has 2 columns, line 1 names 3'),
    (SCORED + 'x\ty\tz\t1\n', r'rows\.tsv:2: has 4 columns'),
    (SCORED + 'x\ty\t\n', r"rows\.tsv:2: the score '' is no finite number"),
    (SCORED + 'x\ty\tgood\n', r"the score 'good' is no finite number"),
    (SCORED + 'x\ty\tnan\n', r"rows\.tsv:2: the score 'nan'"),
    (SCORED + 'x\ty\t0.5\nx\tz\t7\n', r'rows\.tsv:3: the score 7 lies outside'),
    (SCORED + 'x\t \t0.5\n', r'rows\.tsv:2: the candidate is missing'),
    (SCORED + 'x\ty\t0.5\nz\ty\t0.5\n', r'every score is 0\.5'),
  ],
)
def test_scores_that_cannot_be_learned(tmp_path, text, message):
  with pytest.raises(errors.DataError, match=message) as caught:
    list(ScoredFile(write(tmp_path, text)).examples())
  assert '\n' not in str(caught.value)


def test_preferences_that_cannot_be_learned(tmp_path):
  header = 'source\tbetter\tworse\n'
  same = write(tmp_path, f'{header}x\ty\tz\nx\ty\ty\n')
  with pytest.raises(errors.DataError, match=r'rows\.tsv:3: better and worse'):
    list(PreferredFile(same).examples())
  lacking = write(tmp_path, SCORED + 'x\ty\t1\n')
  with pytest.raises(errors.DataError, match=r"column 'better' is missing"):
    list(PreferredFile(lacking).examples())


def test_files_that_cannot_be_read(tmp_path):
  for name, message in (
    ('rows.txt', 'unknown format'),
    ('none.tsv', 'no such file'),
    ('none.parquet', 'cannot be read as Parquet'),
  ):
    with pytest.raises(errors.DataError, match=message):
      list(ScoredFile(str(tmp_path / name)).examples())
  write(tmp_path, 'no parquet', 'rows.parquet')
  with pytest.raises(errors.DataError, match='cannot be read as Parquet'):
    list(ScoredFile(str(tmp_path / 'rows.parquet')).examples())
  table = pa.table({'source': ['x'], 'candidate': ['y'], 'score': [None]})
  pq.write_table(table, tmp_path / 'null.parquet')
  with pytest.raises(
    errors.DataError, match=r'null\.parquet, row 0: the score'
  ):
    list(ScoredFile(str(tmp_path / 'null.parquet')).examples())


def test_a_range_is_one():
  for low, high in ((1.0, 1.0), (0.0, float('inf'))):
    with pytest.raises(errors.ConfigurationError, match=r'ScoredFile\.low'):
      ScoredFile('rows.tsv', low=low, high=high)
