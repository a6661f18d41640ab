import collections
import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_jax import errors
from rest_jax.data import text


def write(path, content):
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


def pairs(rows):
  return [(row['id'], row['source'], row['target']) for row in rows]


def test_lines_end_at_lf_alone(tmp_path):
  # All of these end a line for Python's splitlines.
  content = 'a\u2028b\u0085c\x0bd\re\x0cf\ng\r\nh'
  path = write(tmp_path / 'a', content)
  assert list(text.read_lines(path)) == [
    'a\u2028b\u0085c\x0bd\re\x0cf',
    'g',
    'h',
  ]
  assert text.count_lines(path) == 3


@settings(deadline=None)
@given(
  lines=st.lists(
    st.text(
      st.characters(exclude_characters='\n\r\ufeff', exclude_categories=['Cs'])
    ),
    min_size=1,
  )
)
def test_what_was_written_is_read(tmp_path_factory, lines):
  path = tmp_path_factory.mktemp('lines') / 'a'
  content = ''.join(f'{line}\n' for line in lines)
  write(path, content)
  assert list(text.read_lines(path)) == lines
  write(path.with_suffix('.gz'), gzip.compress(content.encode()))
  assert list(text.read_lines(path.with_suffix('.gz'))) == lines


def test_a_byte_order_mark_is_no_text(tmp_path):
  path = write(tmp_path / 'a', b'\xef\xbb\xbfa\nb\n')
  assert list(text.read_lines(path)) == ['a', 'b']


def test_aligned_files_with_documents(tmp_path):
  rows = list(
    text.read_aligned(
      write(tmp_path / 'a.de', 'eins\nzwei\n'),
      write(tmp_path / 'a.en', 'one\ntwo\n'),
      write(tmp_path / 'a.doc', 'd1\nd2\n'),
    )
  )
  assert rows[1] == {
    'id': 1,
    'source': 'zwei',
    'target': 'two',
    'document': 'd2',
    'domain': '',
  }


def test_monolingual_text_has_no_targets(tmp_path):
  rows = text.read_aligned(write(tmp_path / 'a', 'eins\nzwei\n'))
  assert pairs(rows) == [(0, 'eins', None), (1, 'zwei', None)]


def test_empty_lines_are_an_error_or_skipped_and_counted(tmp_path):
  source = write(tmp_path / 'a.de', 'eins\n \ndrei\nvier\n')
  target = write(tmp_path / 'a.en', 'one\ntwo\n\nfour\n')
  with pytest.raises(errors.DataError, match=r'a\.de:2: an empty line'):
    list(text.read_aligned(source, target))
  counts = collections.Counter()
  rows = text.read_aligned(source, target, empty='skip', counts=counts)
  # The number of the line stays the number of the row.
  assert pairs(rows) == [(0, 'eins', 'one'), (3, 'vier', 'four')]
  assert counts == {'empty': 2}
  only_target = write(tmp_path / 'b.de', 'eins\nzwei\ndrei\nvier\n')
  with pytest.raises(errors.DataError, match=r'a\.en:3: an empty line'):
    list(text.read_aligned(only_target, target))


def test_line_counts_that_differ_are_named(tmp_path):
  source = write(tmp_path / 'a.de', 'eins\nzwei\ndrei\n')
  target = write(tmp_path / 'a.en', 'one\ntwo\n')
  with pytest.raises(errors.DataError, match=r'a\.de: 3, .*a\.en: 2'):
    list(text.read_aligned(source, target))
  document = write(tmp_path / 'a.doc', 'd\n' * 4)
  with pytest.raises(errors.DataError, match=r'a\.doc: 4'):
    list(text.read_aligned(source, None, document))


def test_bytes_that_are_no_utf8_are_found(tmp_path):
  path = write(tmp_path / 'a', b'good\nbad \xff here\n')
  with pytest.raises(errors.DataError, match=r'a:2: byte 5 .*0xff'):
    list(text.read_lines(path))


def test_missing_empty_and_damaged_files(tmp_path):
  with pytest.raises(errors.DataError, match=r'nowhere: no such file'):
    list(text.read_lines(tmp_path / 'nowhere'))
  with pytest.raises(errors.DataError, match='no lines in it'):
    list(text.read_aligned(write(tmp_path / 'empty', '')))
  with pytest.raises(errors.DataError, match='no lines in it'):
    list(text.read_tsv(tmp_path / 'empty'))
  whole = gzip.compress(b'line\n' * 10_000)
  for name, content in (
    ('cut.gz', whole[:-20]),
    ('plain.gz', b'no gzip at all'),
    ('flipped.gz', whole[:30] + b'\xff\xff\xff' + whole[33:]),
  ):
    with pytest.raises(errors.DataError, match=rf'{name}: cannot be read'):
      list(text.read_lines(write(tmp_path / name, content)))


def test_tsv_columns(tmp_path):
  path = write(tmp_path / 'a.tsv', 'd\tone\tx\teins\nd\t"two\ty\tzwei\n')
  rows = list(text.read_tsv(path, ('document', 'target', '', 'source')))
  assert pairs(rows) == [(0, 'eins', 'one'), (1, 'zwei', '"two')]
  assert rows[0]['document'] == 'd'
  with pytest.raises(errors.DataError, match=r'a\.tsv:1: 4 columns where 2'):
    list(text.read_tsv(path))
  mono = write(tmp_path / 'm.tsv', 'news\teins\n')
  (row,) = text.read_tsv(mono, ('domain', 'source'))
  assert (row['domain'], row['source'], row['target']) == ('news', 'eins', None)


def test_tsv_with_empty_cells(tmp_path):
  path = write(tmp_path / 'a.tsv', 'eins\tone\nzwei\t\n')
  with pytest.raises(errors.DataError, match=r'a\.tsv:2: an empty line'):
    list(text.read_tsv(path))
  counts = collections.Counter()
  rows = text.read_tsv(path, empty='skip', counts=counts)
  assert pairs(rows) == [(0, 'eins', 'one')]
  assert counts['empty'] == 1


@pytest.mark.parametrize(
  'columns', [('target',), ('source', 'source'), ('source', 'topic'), ()]
)
def test_columns_that_make_no_sense(tmp_path, columns):
  with pytest.raises(errors.ConfigurationError, match='must hold "source"'):
    list(text.read_tsv(tmp_path / 'a.tsv', columns))


def test_an_unknown_policy_for_empty_lines(tmp_path):
  with pytest.raises(errors.ConfigurationError, match="empty = 'drop'"):
    list(text.read_aligned(tmp_path / 'a', empty='drop'))
