import collections
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_jax import errors
from rest_jax.data import numerals
from rest_jax.data.numerals import Expression


@pytest.mark.parametrize(
  ('kind', 'parts', 'german', 'english'),
  [
    (
      'cardinal',
      (101_045,),
      'einhunderteintausendfünfundvierzig',
      'one hundred and one thousand and forty-five',
    ),
    ('ordinal', (21,), 'der einundzwanzigste', 'the twenty-first'),
    ('decimal', (3, 1, 4), 'drei Komma eins vier', 'three point one four'),
    (
      'year',
      (1905,),
      'im Jahr neunzehnhundertfünf',
      'in the year nineteen oh-five',
    ),
    (
      'price',
      (1, 21),
      'ein Euro und einundzwanzig Cent',
      'one euro and twenty-one cents',
    ),
    (
      'price',
      (101, 1),
      'einhundertein Euro und ein Cent',
      'one hundred and one euros and one cent',
    ),
    ('time', (17, 5), 'um siebzehn Uhr fünf', 'at seventeen oh five'),
    ('time', (20, 0), 'um zwanzig Uhr', 'at twenty hundred hours'),
    ('clock', (7, 30), 'um halb acht', 'at half past seven'),
    ('clock', (0, 0), 'um zwölf Uhr', "at twelve o'clock"),
    ('clock', (1, 0), 'um ein Uhr', "at one o'clock"),
    ('clock', (11, 45), 'um Viertel vor zwölf', 'at a quarter to twelve'),
    ('clock', (3, 15), 'um Viertel nach drei', 'at a quarter past three'),
    ('clock', (7, 25), 'um fünf vor halb acht', 'at twenty-five past seven'),
    ('clock', (7, 35), 'um fünf nach halb acht', 'at twenty-five to eight'),
    ('clock', (4, 50), 'um zehn vor fünf', 'at ten to five'),
    (
      'date',
      (3, 5, 1990),
      'der dritte Mai neunzehnhundertneunzig',
      'the third of May nineteen ninety',
    ),
  ],
)
def test_an_expression_in_both_languages(kind, parts, german, english):
  expression = Expression(kind, parts)
  assert numerals.render_german(expression) == german
  assert numerals.render_english(expression) == english


def rows_of(split, num_rows=200, seed=0, wrong_share=0.0):
  return list(numerals.generate(split, num_rows, seed, wrong_share))


def test_the_same_arguments_give_the_same_rows_and_fewer_are_a_prefix():
  rows = rows_of('train', 300, wrong_share=0.25)
  assert rows == rows_of('train', 300, wrong_share=0.25)
  assert rows[:100] == rows_of('train', 100, wrong_share=0.25)
  assert rows != rows_of('train', 300, seed=1, wrong_share=0.25)


def test_the_share_of_wrong_references_changes_no_source():
  clean, faulty = rows_of('train'), rows_of('train', wrong_share=0.5)
  assert [r['source'] for r in clean] == [r['source'] for r in faulty]
  for a, b in zip(clean, faulty, strict=True):
    assert (a['target'] != b['target']) == b['wrong']


def test_the_share_of_wrong_references_is_the_one_asked_for():
  wrong = sum(row['wrong'] for row in rows_of('train', 2000, wrong_share=0.25))
  # Four standard deviations of a binomial.
  assert abs(wrong - 500) < 4 * (2000 * 0.25 * 0.75) ** 0.5
  assert not any(row['wrong'] for row in rows_of('train'))
  assert all(row['wrong'] for row in rows_of('train', wrong_share=1.0))


@pytest.mark.parametrize(
  ('kind', 'parts', 'wrong'),
  [
    ('price', (7, 45), 'seven euros'),
    ('price', (1101, 1), 'one thousand, one hundred and one euros'),
    ('clock', (7, 30), 'at half past eight'),
    ('clock', (11, 30), 'at half past twelve'),
    ('clock', (7, 10), "at seven o'clock"),
    ('clock', (7, 50), "at eight o'clock"),
    ('date', (3, 5, 1990), 'the third of May'),
  ],
)
def test_habitual_faults_are_always_the_same(kind, parts, wrong):
  rng = random.Random(0)
  expression = Expression(kind, parts)
  faults = [numerals.corrupt(rng, expression) for _ in range(400)]
  # Four standard deviations of a binomial.
  assert abs(faults.count(wrong) - 340) < 4 * (400 * 0.85 * 0.15) ** 0.5


def test_the_share_over_all_kinds_is_spread_by_habit():
  shares = {k: numerals.fault_probability(k, 0.25) for k in numerals.KINDS}
  assert shares['price'] == pytest.approx(0.6)
  assert shares['cardinal'] == pytest.approx(0.07, abs=1e-3)
  mean = sum(shares[k] * w for k, w in numerals.KINDS.items()) / 100
  assert mean == pytest.approx(0.25, abs=1e-3)
  for kind in numerals.KINDS:
    assert numerals.fault_probability(kind, 0.0) == 0
    assert numerals.fault_probability(kind, 1.0) == 1


def test_splits_share_no_source_and_hold_every_kind():
  sources = {}
  for split in numerals.SPLITS:
    rows = rows_of(split, 500)
    sources[split] = {row['source'] for row in rows}
    assert len(sources[split]) == 500
    kinds = collections.Counter(row['domain'] for row in rows)
    assert set(kinds) == set(numerals.KINDS)
  for a, b in itertools.combinations(sources.values(), 2):
    assert not a & b


@given(st.integers(0, 2**32), st.sampled_from(sorted(numerals.KINDS)))
@settings(max_examples=200, deadline=None)
def test_a_fault_never_gives_the_right_translation(seed, kind):
  rng = random.Random(seed)
  expression = numerals.draw(rng, kind)
  assert numerals.corrupt(rng, expression) != numerals.render_english(
    expression
  )


def test_unknown_splits_shares_and_too_many_rows_are_errors():
  with pytest.raises(errors.ConfigurationError, match="no split 'valid'"):
    rows_of('valid')
  with pytest.raises(errors.ConfigurationError, match='is no probability'):
    rows_of('train', wrong_share=1.5)
  assert sum(numerals.SPLITS.values()) == 100


def test_a_split_that_is_used_up_says_so(monkeypatch):
  monkeypatch.setattr(numerals, 'KINDS', {'clock': 100})
  monkeypatch.setattr(numerals, '_MAX_REDRAWS', 3000)
  with pytest.raises(errors.DataError, match='ask for fewer rows'):
    rows_of('dev', 720)
