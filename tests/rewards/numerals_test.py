import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_jax import errors
from rest_jax.data import numerals
from rest_jax.data.numerals import Expression
from rest_jax.rewards import base
from rest_jax.rewards import numerals as reward

# Every expression of the small kinds, and a grid over the large ones.
EXPRESSIONS = [
  *(Expression('cardinal', (n,)) for n in range(0, 1_000_000, 997)),
  *(Expression('cardinal', (n,)) for n in range(1, 1_200)),
  *(Expression('ordinal', (n,)) for n in range(1, 1_200)),
  *(Expression('ordinal', (n,)) for n in range(1_200, 10_001, 29)),
  *(
    Expression('decimal', (n, *digits))
    for n in range(0, 1000, 13)
    for digits in ((0,), (5, 0), (1, 0, 9), (7, 7, 7))
  ),
  *(Expression('year', (year,)) for year in range(1100, 2100)),
  *(
    Expression('price', (euros, cents))
    for euros in (*range(0, 22), 99, 100, 101, 999, 1000, 1001, 9999)
    for cents in (*range(1, 22), 50, 98)
  ),
  *(
    Expression('time', (hour, minute))
    for hour in range(13, 24)
    for minute in range(60)
  ),
  *(
    Expression('clock', (hour, minute))
    for hour in range(12)
    for minute in range(60)
  ),
  *(
    Expression('date', (day, month, year))
    for month, days in enumerate(numerals.DAYS_IN_MONTH, 1)
    for day in range(1, days + 1)
    for year in (1100, 1905, 1999, 2000, 2007, 2024)
  ),
]

WORDS = (
  "at a quarter past to half o'clock the of point oh zero one five ten"
  ' twelve twenty thirty hundred thousand and first third twentieth'
  ' hundredth may euro euros cent cents in year hours ,'
)


def test_both_languages_are_read_as_they_are_written():
  for expression in EXPRESSIONS:
    german = numerals.render_german(expression)
    english = numerals.render_english(expression)
    assert reward.parse_german(german) == expression, german
    assert reward.parse_english(english) == expression, english


def test_different_expressions_read_differently():
  english = {numerals.render_english(e) for e in EXPRESSIONS}
  assert len(english) == len(set(EXPRESSIONS))
  german = {numerals.render_german(e) for e in EXPRESSIONS}
  assert len(german) == len(set(EXPRESSIONS))


def score(source, *candidates):
  model = reward.NumeralValue()
  return model.score([source] * len(candidates), candidates)


def test_every_right_pair_scores_one_and_every_wrong_one_less():
  rows = list(numerals.generate('train', 2000, seed=3, wrong_share=0.5))
  scores = reward.NumeralValue().score(
    [row['source'] for row in rows], [row['target'] for row in rows]
  )
  wrong = np.array([row['wrong'] for row in rows])
  assert (scores[~wrong] == 1).all()
  assert (scores[wrong] < 1).all()
  base.check_scores(scores, reward.NumeralValue().info, len(rows))


def test_grades_computed_by_hand():
  # 45 read as 54: no digit agrees. 45 as 46: one of two, 0.5 · (1/2)².
  right, swapped, near, no_number, empty = score(
    'fünfundvierzig', 'forty-five', 'fifty-four', 'forty-six', 'forty of', ''
  )
  assert (right, swapped, near, no_number, empty) == (1, 0, 0.125, 0, 0)


def test_the_right_value_in_another_form():
  # All four words of the five stand in the right translation: the ratio is
  # 2 · 4 / (4 + 5), so 0.6 + 0.3 · 8/9.
  without_and, ordinal = score(
    'einhundertdrei Komma fünf',
    'one hundred three point five',
    'one hundred and three point five',
  )
  assert without_and == pytest.approx(0.6 + 0.3 * 10 / 11)
  assert ordinal == 1
  (for_ordinal,) = score('der dritte', 'three')
  assert 0.6 <= for_ordinal < 0.9
  # Half past seven, said digitally.
  (digital,) = score('um halb acht', 'at seven thirty')
  assert 0.6 <= digital < 0.9


def test_numbers_of_another_count_agree_in_what_is_there():
  # 12 euros without the 45 cents: two of four digits.
  (score_,) = score('zwölf Euro und fünfundvierzig Cent', 'twelve')
  assert score_ == np.float32(0.5 * 0.5**2)


@given(st.integers(0, 2**32), st.sampled_from(sorted(numerals.KINDS)))
@settings(max_examples=300, deadline=None)
def test_no_wrong_value_reaches_half_a_point(seed, kind):
  rng = random.Random(seed)
  source, other = numerals.draw(rng, kind), numerals.draw(rng)
  (given_,) = score(
    numerals.render_german(source), numerals.render_english(other)
  )
  if other == source:
    assert given_ == 1
  elif other.parts == source.parts:
    assert 0.6 <= given_ < 0.9
  else:
    assert 0 <= given_ < 0.5


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_gets_a_score(text):
  (given_,) = score('der dritte Mai neunzehnhundertneunzig', text)
  assert 0 <= given_ <= 1


@given(
  st.lists(
    st.sampled_from(WORDS.split()),
    max_size=8,
  )
)
@settings(max_examples=500, deadline=None)
def test_any_number_words_are_read_without_an_error(words):
  read = reward.parse_english(' '.join(words))
  if read is not None:
    assert all(part >= 0 for part in read.parts)


@pytest.mark.parametrize(
  'text',
  [
    'twenty thirty five zero',
    'one hundred zero',
    'hundred',
    'five twenty',
    'thousand',
    'twenty zero',
    'at twenty-five sixty',
    'at half past thirteen',
    'at ten',
    'the',
    'the thirty-second of May nineteen ninety',
    'the third of nineteen ninety',
    'third of May nineteen ninety',
    'in the year',
    'three point twelve',
    'point five',
    'three point',
    'euros and five cents',
    'five euros and hundred cents',
    'one thousand two thousand',
  ],
)
def test_what_is_no_expression_reads_as_none(text):
  assert reward.parse_english(text) is None


@pytest.mark.parametrize(
  'text',
  [
    'hallo',
    'um sieben',
    'um acht Uhr sechzig',
    'der dritte Mai',
    'im Jahr',
    'drei Komma zwölf',
    'drei Komma',
    'tausendtausend',
    'um dreißig nach halb acht',
    'der hundert',
    'um fünfundzwanzig Uhr',
    '',
  ],
)
def test_what_is_no_german_expression_reads_as_none(text):
  assert reward.parse_german(text) is None


def test_a_score_depends_on_its_own_row_alone():
  rows = list(numerals.generate('grow', 50, seed=0, wrong_share=0.5))
  sources = [row['source'] for row in rows]
  candidates = [row['target'] for row in rows]
  model = reward.NumeralValue()
  together = model.score(sources, candidates)
  backwards = model.score(sources[::-1], candidates[::-1])[::-1]
  alone = [model.score([s], [c])[0] for s, c in zip(sources, candidates)]  # noqa: B905
  assert (together == backwards).all()
  assert (together == alone).all()


def test_foreign_sources_and_unequal_counts_are_errors():
  with pytest.raises(errors.RewardError, match="source 'Guten Tag'"):
    score('Guten Tag', 'Good day')
  with pytest.raises(errors.RewardError, match='1 sources and 0 candidates'):
    reward.NumeralValue().score(['eins'], [])
