"""A good, a faulty and some hopeless rewards, on spoiled translations."""

import dataclasses

import numpy as np
import pytest

from rest_jax.data import numerals as numbers
from rest_jax.errors import RewardError
from rest_jax.rewards import (
  base,
  cache,
  checking,
  lexical,
  numerals,
  perturbations,
)

ENGLISH = [
  'The committee did not meet in 2019.',
  'She bought 12 apples and no pears.',
  'The old bridge over the river was closed for repairs.',
  'Nobody could explain why the train was late again.',
  'He has never been to the mountains in winter.',
  'Our results show that 30 per cent of voters stayed at home.',
]
GERMAN = [
  'Der Ausschuss trat 2019 nicht zusammen.',
  'Sie kaufte 12 Äpfel und keine Birnen.',
  'Die alte Brücke über den Fluss war wegen Reparaturen gesperrt.',
  'Niemand konnte erklären, warum der Zug wieder zu spät kam.',
  'Er war noch nie im Winter in den Bergen.',
  'Unsere Ergebnisse zeigen, dass 30 Prozent zu Hause blieben.',
]
CHINESE = [
  '委员会在2019年没有开会。',
  '她买了12个苹果，没有买梨。',
  '河上的旧桥因维修而关闭。',
  '没有人能解释火车为什么又晚点了。',
  '他从来不在冬天去山里。',
  '我们的结果显示三十的选民留在家里。',
]
ALL = perturbations.DEFAULT


def texts(sources, targets):
  return checking.Texts(
    'references', list(range(len(sources))), sources, targets, targets
  )


def rates(reward, given, languages):
  outcomes, _ = checking.measure(reward, given, ALL, languages=languages)
  return {outcome.name: outcome for outcome in outcomes}


@dataclasses.dataclass(frozen=True)
class Coverage:
  """Words of the source whose length the candidate has, most often the more.

  Built to have the fault that the authors of ReST found in theirs: what is said
  twice counts twice.
  """

  info = base.RewardInfo('coverage', '1', 0.0, 1.0, needs_reference=True)

  def score(self, sources, candidates, references=None):
    # Here the reference stands for what a learned metric knows of the source.
    return np.array(
      [
        min(1.0, 0.02 * sum(c.split().count(w) for w in set(r.split())))
        for c, r in zip(candidates, references, strict=True)
      ],
      np.float32,
    )


@pytest.mark.parametrize(
  ('sources', 'targets', 'languages'),
  [(GERMAN, ENGLISH, ('de', 'en')), (ENGLISH, CHINESE, ('en', 'zh'))],
)
def test_chrf_falls_wherever_it_must(sources, targets, languages):
  found = rates(
    lexical.SentenceChrf(num_workers=1), texts(sources, targets), languages
  )
  assert all(outcome.fall_rate == 1 for outcome in found.values())
  assert all(outcome.before == pytest.approx(1) for outcome in found.values())
  assert found['repeat'].texts == 6
  assert found['empty'].after == 0
  # Two have a number, three (or four) a negation; the rest is left out.
  assert found['drop_number'].texts == 3
  assert found['drop_number'].left_out == 3
  negations = 4 if languages[1] == 'zh' else 3
  assert found['drop_negation'].texts == negations


def test_the_numerals_checker_falls_wherever_it_must():
  rows = list(numbers.generate('dev', 60, 0, 0.0))
  given = texts([r['source'] for r in rows], [r['target'] for r in rows])
  reward = numerals.NumeralValue()
  found = rates(reward, given, ('de', 'en'))
  for outcome in found.values():
    assert outcome.fall_rate == 1, outcome.examples
  assert found['repeat'].texts == 60
  assert found['drop_number'].left_out == 60  # They are written as words.
  assert set(checking.differences(reward, given).values()) == {0.0}


def test_a_reward_that_a_repeated_sentence_raises_is_caught():
  found = rates(Coverage(), texts(GERMAN, ENGLISH), ('de', 'en'))
  assert found['repeat'].fall_rate == 0
  assert found['repeat'].rose == 6
  assert found['repeat'].after > 1.5 * found['repeat'].before
  assert found['truncate'].fall_rate == found['empty'].fall_rate == 1
  source, text, spoiled, before, after = found['repeat'].examples[0]
  assert (source, text) == (GERMAN[0], ENGLISH[0])
  assert spoiled == f'{ENGLISH[0]} {ENGLISH[0]}'
  assert after > before


def test_examples_of_what_fails_come_before_those_of_what_passes():
  def outcome(name, fell):
    example = ['s', 't', name, 0.5, 0.6]
    return checking.Outcome(name, 10, fell, 0, 0, 0, 0.5, 0.4, [example])

  found = checking.Report(
    'r', 'texts', [outcome('repeat', 9), outcome('swap', 0)], [0.8, 0.9], {}, []
  )
  assert len(found.examples) == 2
  assert [text.partition(':')[0] for text in found.failing_examples] == ['swap']


def test_a_constant_reward_falls_nowhere_and_no_reward_cannot_fall():
  constant = Coverage()
  object.__setattr__(constant, 'score', lambda s, *_: np.full(len(s), 0.5))
  found = rates(constant, texts(GERMAN, ENGLISH), ('de', 'en'))
  assert not any(outcome.fell or outcome.rose for outcome in found.values())
  nothing = Coverage()
  object.__setattr__(nothing, 'score', lambda s, *_: np.zeros(len(s)))
  found = rates(nothing, texts(GERMAN, ENGLISH), ('de', 'en'))
  assert found['repeat'].texts == 0
  assert found['repeat'].at_bottom == 6
  assert found['repeat'].fall_rate == 1  # There is nothing to judge.


def test_all_spoiled_texts_are_kept_with_both_rewards():
  given = texts(GERMAN, ENGLISH)
  chrf = lexical.SentenceChrf(num_workers=1)
  outcomes, table = checking.measure(chrf, given, ALL, languages=('de', 'en'))
  assert table.num_rows == sum(6 - outcome.left_out for outcome in outcomes)
  row = table.to_pylist()[0]
  assert row['perturbation'] == 'repeat'
  assert row['reward'] == 1 > row['reward_spoiled']


class Batchwise:
  """A reward that looks at its neighbours, as faulty padding makes it."""

  info = base.RewardInfo('batchwise', '1', 0.0, 1.0)

  def __init__(self, fault):
    self.fault = fault

  def score(self, sources, candidates, references=None):
    lengths = np.array([len(c) for c in candidates], np.float32)
    scores = lengths / 1000
    if self.fault == 'batch size':
      scores += len(lengths) / 1000
    elif self.fault == 'order':
      scores += np.arange(len(lengths)) / 1000
    elif self.fault == 'padding':
      scores += lengths.max() / 10000
    return scores


@pytest.mark.parametrize('fault', ['batch size', 'order', 'padding', ''])
def test_what_a_score_must_not_depend_on(fault):
  found = checking.differences(Batchwise(fault), texts(GERMAN, ENGLISH))
  if fault:
    assert found[fault] > 2e-3
  else:
    assert set(found.values()) == {0.0}


def test_a_score_out_of_range_names_what_led_there():
  reward = Batchwise('')
  reward.info = base.RewardInfo('long', '1', 0.0, 0.07)
  with pytest.raises(RewardError, match="on references, repeat: reward 'long'"):
    checking.measure(reward, texts(GERMAN, ENGLISH), ALL)


def test_the_cache_gives_the_same_and_spares_the_reward(tmp_path, monkeypatch):
  scores = cache.ScoreCache(tmp_path)
  given = texts(GERMAN, ENGLISH)
  plain, _ = checking.measure(Coverage(), given, ALL)
  first, _ = checking.measure(Coverage(), given, ALL, scores=scores)

  def refuse(*_):
    raise AssertionError('scored again')

  monkeypatch.setattr(Coverage, 'score', refuse)
  again, _ = checking.measure(Coverage(), given, ALL, scores=scores)
  assert plain == first == again
  scores.close()
