import numpy as np
import pytest
import sacrebleu

from rest_jax import errors, mbr, schedule, selection
from rest_jax.data import scored, store


def shared_letters(texts):
  """Share of the reference's letters that the candidate has."""
  return np.array(
    [[len(set(y) & set(r)) / len(set(r)) for r in texts] for y in texts]
  )


def test_expected_utilities_by_hand():
  group = ['ab', 'abcd', 'ab', 'x']
  # 'ab' twice by itself, half of 'abcd', nothing of 'x'; 'abcd' all but 'x'.
  np.testing.assert_allclose(
    mbr.expected_utilities(group, shared_letters),
    [2.5 / 4, 3 / 4, 2.5 / 4, 1 / 4],
  )
  np.testing.assert_allclose(mbr.expected_utilities(['q'], shared_letters), [1])


def test_equal_texts_are_held_against_others_once():
  asked = []

  def utility(texts):
    asked.append(texts)
    return np.ones((len(texts), len(texts)))

  mbr.expected_utilities(['a', 'b', 'a', 'a'], utility)
  assert asked == [['a', 'b']]


def test_the_best_is_the_first_of_equals():
  assert mbr.best(['dogs', 'the cat', 'a', 'the cat']) == 1


@pytest.fixture(scope='module')
def table():
  """Two sources: with a reference and an imported row; and one sample."""
  texts = ['the cat sat', 'the cat sat', 'a cat sat down', 'dogs', 'a cat sat']
  origins = ['reference', 'policy', 'policy', 'policy', 'imported', 'policy']
  table = store.samples_table(
    {
      'source_id': [0] * 5 + [1],
      'sample_index': [-1, 0, 1, 2, 3, 0],
      'grow_step': 1,
      'origin': origins,
      'source': ['s'] * 6,
      'target': [*texts, 'one'],
      'target_tokens': [[5, 1]] * 6,
      'finished': [True] * 6,
    }
  )
  rewards = np.array([1.0, 0.1, 0.2, 0.9, 1.0, 0.5], np.float32)
  return table.append_column('reward', [rewards])


def test_utilities_are_mean_chrf_among_the_samples_of_the_policy(table):
  rows = scored.rows_from_table(table, {'utilities'})
  texts = ['the cat sat', 'a cat sat down', 'dogs']
  chrf = sacrebleu.CHRF()
  expected = [
    np.mean([chrf.sentence_score(y, [other]).score for other in texts])
    for y in texts
  ]
  np.testing.assert_allclose(
    rows.utilities, [0.0, *expected, 0.0, 100.0], rtol=1e-5
  )


def test_the_sample_that_agrees_best_is_kept_whatever_its_reward(table):
  rule = schedule.PerSource('mbr', (2.0, 1.0))
  assert rule.label(2) == 'mbr 1 a source'
  two, one = rule.filters(lambda: ())
  rows = scored.rows_from_table(table, selection.needs_of([one]))
  kept = selection.select((selection.SamplesOnly(), one), rows)
  best = 1 + int(np.argmax(rows.utilities[1:4]))
  assert np.flatnonzero(kept).tolist() == [best, 5]
  kept = selection.select((two,), rows)
  worst = 1 + int(np.argmin(rows.utilities[1:4]))
  assert set(np.flatnonzero(~kept)) == {worst, 4}


def test_settings_out_of_range_are_errors():
  with pytest.raises(errors.ConfigurationError, match=r'MinimumBayesRisk\.k'):
    mbr.MinimumBayesRisk(0)
  with pytest.raises(errors.ConfigurationError, match='whole numbers'):
    schedule.PerSource('mbr', (1.5,))
  with pytest.raises(errors.ConfigurationError, match='stricter'):
    schedule.PerSource('mbr', (1.0, 2.0))
