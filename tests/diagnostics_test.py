import pytest

from rest_jax import diagnostics
from rest_jax.data import store


def samples(*rows):
  """Samples of (source, target, tokens)."""
  sources, targets, tokens = zip(*rows, strict=True)
  return store.samples_table(
    {
      'source_id': list(range(len(rows))),
      'sample_index': 0,
      'grow_step': 0,
      'origin': 'policy',
      'source': list(sources),
      'target': list(targets),
      'target_tokens': list(tokens),
      'finished': [True] * len(rows),
    }
  )


@pytest.mark.parametrize(
  ('texts', 'n', 'expected'),
  [
    (['a b c', 'a b'], 1, 3 / 5),
    (['a b c', 'a b'], 2, 2 / 5),  # 'a b' twice, 'b c' once.
    (['a', 'b'], 2, 0.0),  # No pair reaches over two texts.
    (['', ' '], 1, 0.0),
    (['他来他来'], 1, 2 / 4),  # A character is a word there.
  ],
)
def test_distinct_by_hand(texts, n, expected):
  assert diagnostics.distinct(texts, n) == pytest.approx(expected)


def test_what_outputs_look_like():
  figures = diagnostics.describe(
    samples(
      ('ja ja', 'yes yes', [5, 5, 1]),
      ('nein', 'no no no', [6, 6, 6, 1]),
      ('zwei', ' zwei ', [7, 8, 9, 1]),
      ('drei', '', [1]),
    )
  )
  assert figures == {
    'distinct_1': pytest.approx(3 / 6),
    'distinct_2': pytest.approx(2 / 6),
    'length_ratio': pytest.approx((7 / 5 + 8 / 4 + 4 / 4 + 0) / 4),
    'repeated_share': 1 / 4,  # Twice is language, three times is a loop.
    'untranslated_share': 1 / 4,
  }
