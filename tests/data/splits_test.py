import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_jax import errors
from rest_jax.data import splits
from rest_jax.data.splits import Slice


def never(split):
  raise AssertionError('rows are counted only where there is a percentage')


@pytest.mark.parametrize(
  ('expression', 'expected'),
  [
    ('train', Slice('train')),
    ('train[:]', Slice('train')),
    ('train[:1000]', Slice('train', 0, 1000)),
    ('train[1000:]', Slice('train', 1000)),
    ('test_2016_flickr[5:7]', Slice('test_2016_flickr', 5, 7)),
  ],
)
def test_slices_by_row(expression, expected):
  assert splits.parse(expression, never) == expected


def test_slices_by_percent():
  assert splits.parse('train[:50%]', lambda split: 29_001) == Slice(
    'train', 0, 14_500
  )
  assert splits.parse('train[50%:]', lambda split: 29_001) == Slice(
    'train', 14_500
  )
  assert splits.parse('a[10%:25%]', {'a': 40}.get) == Slice('a', 4, 10)


@settings(deadline=None)
@given(
  st.integers(1, 200),
  st.lists(st.integers(1, 99), unique=True, max_size=5),
)
def test_percentages_part_the_rows(total, cuts):
  bounds = ['', *(f'{cut}%' for cut in sorted(cuts)), '']
  numbers = []
  for low, high in zip(bounds, bounds[1:]):  # noqa: B905, RUF007
    try:
      part = splits.parse(f'x[{low}:{high}]', lambda split: total)
    except errors.ConfigurationError:
      continue  # Fewer rows than parts: this one is empty.
    numbers += [n for n in range(total) if n in part]
  assert numbers == list(range(total))


@pytest.mark.parametrize(
  'expression',
  ['', 'train[', 'train[5]', 'train[a:]', 'train[:-5]', 'train[1:2:3]', '[:1]'],
)
def test_what_is_no_slice(expression):
  with pytest.raises(errors.ConfigurationError, match='cannot be read'):
    splits.parse(expression, never)


@pytest.mark.parametrize('expression', ['t[5:5]', 't[7:3]', 't[60%:40%]'])
def test_empty_slices_are_errors(expression):
  with pytest.raises(errors.ConfigurationError, match='holds no row'):
    splits.parse(expression, lambda split: 100)
  with pytest.raises(errors.ConfigurationError, match='more than the whole'):
    splits.parse('t[:101%]', lambda split: 100)


@settings(deadline=None)
@given(
  st.lists(st.text(max_size=3), min_size=2).filter(lambda k: len(set(k)) > 1)
)
def test_the_cut_is_by_whole_documents_and_balanced(keys):
  first = splits.cut_in_two(keys)
  assert first
  assert set(keys) - first
  assert first == splits.cut_in_two(keys[::-1])
  sizes = [keys.count(key) for key in set(keys)]
  rows = sum(key in first for key in keys)
  assert abs(rows - (len(keys) - rows)) <= max(sizes)


def test_one_document_cannot_be_cut():
  with pytest.raises(errors.DataError, match='at least two'):
    splits.cut_in_two(['talk 1'] * 5)


def test_whole_groups_are_held_out():
  keys = [f'document {i % 20}' for i in range(200)]
  chosen = splits.held_out(keys, 0.25)
  assert len(chosen) == 5
  assert splits.held_out(keys[::-1], 0.25) == chosen
  assert splits.held_out(keys, 0.1) < chosen


def test_a_group_that_is_far_too_large_is_not_held_out():
  # Whatever the order of their hashes.
  for names in (('news', 'ted'), ('newstest2020', 'ted'), ('x', 'ted')):
    keys = [names[0]] * 900 + [names[1]] * 100
    assert splits.held_out(keys, 0.1) == {'ted'}


def test_a_split_is_named_whatever_its_rows():
  for rows in ('', '[:50%]', '[200:50%]', '[-3:]'):
    assert splits.name_of(f'dev{rows}') == 'dev'


def test_something_is_held_out_and_something_left():
  assert len(splits.held_out(['a', 'b'], 0.01)) == 1
  assert len(splits.held_out(['a', 'b'], 0.99)) == 1
  with pytest.raises(errors.DataError, match='1 different sources'):
    splits.held_out(['a', 'a'], 0.5)
