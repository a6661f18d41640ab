import dataclasses

import numpy as np
import pytest

from rest_jax.errors import ConfigurationError, RewardError
from rest_jax.rewards import base, cache, combined, lexical, penalties, scoring


@dataclasses.dataclass(frozen=True)
class Given:
  """A metric from 0 to 10 that reads its score out of the candidate."""

  place: int
  higher_is_better: bool = True
  trained_on: tuple[str, ...] = ()

  @property
  def info(self):
    return base.RewardInfo(
      f'given_{self.place}', '1', 0.0, 10.0, self.higher_is_better,
      trained_on=self.trained_on,
    )  # fmt: skip

  def score(self, sources, candidates, references=None):
    return np.array(
      [float(c.split()[self.place]) for c in candidates], np.float32
    )


A, B, C = Given(0), Given(1, higher_is_better=False), Given(2)
ROWS = (['s', 's'], ['2 4 9', '10 0 1'], None)
# Rewards of A: .2, 1; of B: .6, 1; of C: .9, .1.


@pytest.mark.parametrize(
  ('model', 'wanted'),
  [
    (combined.WeightedSum((A, B), (3.0, 1.0)), [0.3, 1.0]),
    (combined.Product((A, B, C)), [0.108, 0.1]),
    (combined.Minimum((A, B, C)), [0.2, 0.1]),
    # Means .4 and 1, standard deviations .2 and 0.
    (combined.LowerBound((A, B), k=0.5), [0.3, 1.0]),
    (combined.LowerBound((A, C), k=3.0), [0.0, 0.0]),
    (combined.Minimum((combined.Product((A, B)), C)), [0.12, 0.1]),
  ],
)
def test_by_hand_on_the_parts_rewards(model, wanted):
  for scores in (model.score(*ROWS), scoring.raw_scores(model, *ROWS)):
    np.testing.assert_allclose(scores, wanted, rtol=1e-6)
  assert (model.info.low, model.info.high) == (0.0, 1.0)


def test_info_is_that_of_the_parts():
  info = combined.Product(
    (
      Given(0, trained_on=('wmt19', 'wmt20')),
      Given(1, trained_on=('wmt20',)),
      lexical.SentenceChrf(),
    )
  ).info
  assert info.needs_reference
  assert info.trained_on == ('wmt19', 'wmt20')
  assert 'chrf sacrebleu' in info.version
  assert 'given_1 1' in info.version
  assert not combined.Product((A, B)).info.needs_reference


def test_parts_come_before_what_is_made_of_them():
  inner = combined.Product((A, B))
  outer = combined.Minimum((inner, A, C))
  names = [model.info.name for model in base.with_parts([C, outer])]
  assert names == [
    *('given_2', 'given_0', 'given_1', 'product', 'given_0', 'given_2'),
    'minimum',
  ]


def test_each_part_has_a_cache_of_its_own(tmp_path, monkeypatch):
  scores = cache.ScoreCache(tmp_path)
  scoring.raw_scores(A, *ROWS, cache=scores)
  asked = []
  score = Given.score

  def listen(self, sources, candidates, references=None):
    asked.append((self.place, list(candidates)))
    return score(self, sources, candidates, references)

  monkeypatch.setattr(Given, 'score', listen)
  model = combined.Product((A, B))
  first = scoring.raw_scores(model, *ROWS, cache=scores)
  again = scoring.raw_scores(model, *ROWS, cache=scores)
  assert asked == [(1, ROWS[1])]  # A's were known.
  np.testing.assert_array_equal(first, again)
  scores.close()


@pytest.mark.parametrize(
  ('make', 'said'),
  [
    (lambda: combined.Product(()), 'parts is empty'),
    (lambda: combined.Minimum((A, A)), 'must differ'),
    (lambda: combined.Minimum((A,), name='given_0'), 'must differ'),
    (lambda: combined.WeightedSum((A, B), (1.0,)), '2 numbers above 0'),
    (lambda: combined.WeightedSum((A, B), (1.0, 0.0)), 'above 0'),
    (lambda: combined.LowerBound((A,)), 'at least 2 parts'),
    (lambda: combined.LowerBound((A, B), k=-1.0), 'k of at least 0'),
    (lambda: penalties.Length(low=0.0), 'above 0'),
    (lambda: penalties.Length(low=2.0, high=1.0), 'above 0'),
  ],
)
def test_settings_are_checked(make, said):
  with pytest.raises(ConfigurationError, match=said):
    make()


def test_a_part_that_fails_is_named():
  with pytest.raises(RewardError, match="'given_1' gave 40"):
    scoring.raw_scores(combined.Product((A, B)), ['s'], ['1 40'], None)


def test_the_length_penalty_by_hand():
  model = penalties.Length(low=0.5, high=2.0)
  scores = model.score(
    ['abcd'] * 6 + [''], ['ab', 'abcdefgh', ' a ', 'a' * 16, '', 'abcd', 'ab']
  )
  np.testing.assert_allclose(scores, [1, 1, 0.5, 0.5, 0, 1, 1])


@pytest.mark.parametrize(
  ('text', 'share'),
  [
    ('', 0),
    ('a b c', 0),
    ('a b a', 0),
    ('a a', 1 / 2),
    ('the the the', 2 / 3),
    ('a b a b c', 2 / 5),
    ('no, he said, he said', 2 / 5),
    ('x a b c a b c y', 3 / 8),
    ('A house. a house!', 1 / 2),
    ('...', 0),
    ('他来了他来了', 1 / 2),
    # What is there twice with something else between is no repetition.
    ('one two x one two', 0),
  ],
)
def test_the_share_of_repeated_words_by_hand(text, share):
  assert penalties.repeated_share(text) == pytest.approx(share)


def test_the_repetition_penalty_allows_what_the_source_repeats():
  scores = penalties.Repetition().score(
    ['a b', 'Bora Bora', 'a b'], ['c d c d', 'Bora Bora', 'c d']
  )
  np.testing.assert_allclose(scores, [0.5, 1, 1])


def test_a_penalty_mends_a_reward_that_repetition_raises():
  class Longer:
    info = base.RewardInfo('longer', '1', 0.0, 1.0)

    def score(self, sources, candidates, references=None):
      return np.array([min(1, len(c) / 100) for c in candidates], np.float32)

  once, twice = 'a small house', 'a small house a small house'
  rows = (['ein kleines Haus'] * 2, [once, twice])
  plain = Longer().score(*rows)
  mended = combined.Product(
    (Longer(), penalties.Repetition(), penalties.Length(high=1.3))
  ).score(*rows)
  assert plain[1] > plain[0]
  assert mended[1] < mended[0] == plain[0]
