import numpy as np
import pytest

from rest_jax import pairwise_chrf
from rest_jax.rewards import lexical


def by_pairs(texts):
  candidates = [y for y in texts for _ in texts]
  scores = lexical.SentenceChrf(num_workers=1).score(
    candidates, candidates, [other for _ in texts for other in texts]
  )
  return scores.reshape(len(texts), len(texts))


@pytest.mark.parametrize(
  'texts',
  [
    ['the cat sat', 'the cat sat on the mat', 'a dog ran', 'tac eht'],
    ['aaaaaaa', 'aaa', 'a', 'aaaabaaaa', 'a a a'],  # The same n-gram often.
    ['', ' ', 'ab', 'abcdef', 'abcdefg', '\u3000'],  # Fewer orders, or none.
    ['', ''],
    [
      'Straße',
      'Strasse',
      '日本語の文',
      '日本',
      '👩‍👩‍👧',
      '\N{NO-BREAK SPACE}x',
    ],
    ['one'],
  ],
  ids=['words', 'repeated', 'short', 'empty', 'unicode', 'single'],
)
def test_to_the_bit_as_pair_by_pair(texts):
  np.testing.assert_array_equal(pairwise_chrf.table(texts), by_pairs(texts))


def test_to_the_bit_as_pair_by_pair_of_random_texts():
  rng = np.random.default_rng(0)
  texts = [
    ''.join(rng.choice(list('abc  '), size=length))
    for length in rng.integers(0, 40, 60)
  ]
  np.testing.assert_array_equal(pairwise_chrf.table(texts), by_pairs(texts))


def test_of_no_texts_there_is_nothing():
  assert pairwise_chrf.table([]).shape == (0, 0)
