import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_jax import errors
from rest_jax.data.near_duplicates import NearDuplicates, Parts


def kept(rows, threshold=0.7):
  parts = Parts(NearDuplicates(threshold))
  return [row for row in rows if not parts.repeats(*row)]


def test_a_row_is_left_out_where_source_or_target_nearly_repeats():
  rows = [
    ('dev', 'A black and white dog swimming in clear water.', 'Ein Hund.'),
    # Nine words of ten are shared.
    ('train', 'a black and white dog is swimming in clear water', 'Hunde!'),
    ('train', 'A cat.', 'ein HUND'),
    ('train', 'A brown cat swimming in dark water.', 'Eine Katze.'),
    # Within a part rows may repeat each other.
    ('train', 'A brown cat swimming in dark water.', 'Eine Katze.'),
    ('grow', 'A brown cat swimming in the dark water!', None),
    ('grow', 'Cats', None),
  ]
  assert kept(rows) == [rows[0], rows[3], rows[4], rows[6]]


def test_what_was_left_out_drags_nothing_after_it():
  a, b, c = 'one two three four', 'one two three five', 'one two six five'
  rows = [('x', a, None), ('y', b, None), ('z', c, None)]
  # b is like a; c is like b alone, which is not there.
  assert kept(rows, 0.6) == [rows[0], rows[2]]


def test_texts_without_words_repeat_nothing():
  rows = [('dev', '?!', '…'), ('train', '?!', '…'), ('train', '', None)]
  assert kept(rows) == rows


words = st.lists(st.sampled_from('abcdefgh'), max_size=7).map(' '.join)


@given(
  st.lists(words, max_size=6),
  st.lists(words, max_size=6),
  st.sampled_from([0.3, 0.5, 0.6, 0.7, 0.75, 1.0]),
)
def test_exact_as_every_pair_compared(first, second, threshold):
  def alike(a, b):
    a, b = set(a.split()), set(b.split())
    return bool(a) and len(a & b) >= threshold * len(a | b) - 1e-9

  rows = [('x', t, None) for t in first] + [('y', t, None) for t in second]
  wanted = rows[: len(first)]
  wanted += [
    ('y', t, None) for t in second if not any(alike(t, f) for f in first)
  ]
  assert kept(rows, threshold) == wanted


@pytest.mark.parametrize('threshold', [0.0, 1.5, float('nan')])
def test_a_threshold_is_a_similarity(threshold):
  with pytest.raises(
    errors.ConfigurationError, match=r'NearDuplicates\.thresh'
  ):
    NearDuplicates(threshold)
