import numpy as np
import pytest

from rest_jax.errors import RewardError
from rest_jax.rewards import base, combined, scoring


class Length:
  """Characters of the candidate, and a log of what was asked."""

  def __init__(self, needs_reference=False, name='length'):
    self.info = base.RewardInfo(
      name, '1', 0.0, 10.0, needs_reference=needs_reference
    )
    self.asked = []

  def score(self, sources, candidates, references=None):
    self.asked.append(list(zip(sources, candidates, strict=True)))
    return np.array([len(c) for c in candidates], np.float32)


def test_references_are_given_where_they_are_needed_alone():
  seen = []

  class Own(Length):
    def score(self, sources, candidates, references):  # No default.
      seen.append(references)
      return super().score(sources, candidates)

  for needs in (True, False):
    scoring.raw_scores(Own(needs_reference=needs), ['a'], ['x'], ['r'])
  scoring.raw_scores(Own(), ['a'], ['x'], None)
  assert seen == [['r'], None, None]


def test_equal_rows_are_scored_once_and_in_batches():
  model = Length()
  scores = scoring.raw_scores(
    model, list('aabba'), ['x', 'x', 'xx', 'xxx', 'x'], None, batch_size=2
  )
  np.testing.assert_array_equal(scores, [1, 1, 2, 3, 1])
  assert [len(batch) for batch in model.asked] == [2, 1]


def test_rewards_are_on_the_unit_interval():
  scores = scoring.rewards(Length(), ['a'], ['xxxxx'], None)
  np.testing.assert_array_equal(scores, [0.5])


def test_missing_references():
  with pytest.raises(RewardError, match='length'):
    scoring.raw_scores(Length(needs_reference=True), ['a'], ['x'], None)


@pytest.mark.parametrize('value', [np.nan, np.inf, -1.0, 10.5])
def test_bad_scores_name_the_metric_and_the_value(value):
  model = Length()
  model.score = lambda *_: np.array([1.0, value], np.float32)
  with pytest.raises(RewardError, match=rf"'length' gave {value}"):
    scoring.raw_scores(model, ['a', 'b'], ['x', 'y'], None)


def test_too_few_scores():
  model = Length()
  model.score = lambda *_: np.array([1.0], np.float32)
  with pytest.raises(RewardError):
    scoring.raw_scores(model, ['a', 'b'], ['x', 'y'], None)


def test_a_model_that_raises_is_named_with_what_it_raised():
  model = Length()

  def fail(*_):
    raise KeyError('weights')

  model.score = fail
  with pytest.raises(RewardError, match=r"'length' raised KeyError.*weights"):
    scoring.raw_scores(model, ['a'], ['x'], None)


def test_every_batch_of_every_part_is_told():
  told = []
  parts = (Length(), Length(name='other'))
  twice = combined.WeightedSum(parts, weights=(0.5, 0.5))
  scoring.rewards(
    twice, ['a'] * 5, list('vwxyz'), None, batch_size=2, advance=told.append
  )
  assert told == [2, 2, 1] * 2
