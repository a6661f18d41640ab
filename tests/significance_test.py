"""Paired tests and intervals, against what can be worked out by hand."""

import math

import numpy as np
import pytest
import sacrebleu
from sacrebleu import significance as theirs

from rest_jax import significance


def test_holm_by_hand():
  # Sorted .01 .03 .04: times 3, 2, 1, and never less than the one before.
  assert significance.holm([0.01, 0.04, 0.03]) == pytest.approx(
    [0.03, 0.06, 0.06]
  )
  assert significance.holm([0.6, 0.5]) == [1.0, 1.0]
  assert significance.holm([0.02]) == [0.02]
  assert significance.holm([]) == []


def test_holm_rejects_what_bonferroni_rejects_and_more():
  p = np.random.default_rng(0).random(20) ** 3
  corrected = np.array(significance.holm(p.tolist()))
  assert (corrected <= np.minimum(1, 20 * p)).all()
  assert (corrected >= p).all()
  assert (np.diff(corrected[np.argsort(p)]) >= 0).all()


def test_t_interval_by_hand():
  # s = 1, and t of 2 degrees of freedom at 97.5 % is 4.302653.
  half = 4.302653 / math.sqrt(3)
  assert significance.t_interval([1.0, 2.0, 3.0]) == pytest.approx(
    (2 - half, 2 + half), abs=1e-6
  )
  assert significance.t_interval([2.5, 2.5]) == (2.5, 2.5)
  assert significance.t_interval([2.5]) is None
  assert significance.t_interval([]) is None


def test_the_interval_of_equal_sources_has_no_width():
  assert significance.bootstrap_interval(np.full(7, 0.25)) == (0.25, 0.25)


def test_the_width_of_an_interval_is_that_of_the_mean():
  values = np.random.default_rng(0).normal(0.0, 1.0, 400)
  low, high = significance.bootstrap_interval(values)
  assert low < values.mean() < high
  # ±1.96 standard errors, 1/20 each, within the noise of 1,000 resamples.
  assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_an_interval_is_repeatable():
  values = np.random.default_rng(0).random(50)
  assert significance.bootstrap_interval(
    values
  ) == significance.bootstrap_interval(values)


def test_bootstrap_of_a_constant_difference_has_no_width():
  low, high, p = significance.paired_bootstrap(np.full(9, 0.5), 99)
  assert (low, high) == (0.5, 0.5)
  assert p == 1 / 100
  assert significance.paired_bootstrap(np.zeros(9), 99) == (0.0, 0.0, 1.0)


def test_bootstrap_p_by_hand():
  # Of −1 and 3, mean 1, resampled means are −1, 1, 1 and 3: half of them lie
  # as far from 1 as 0 does. Of 1 and 3 none lies as far from 2.
  _, _, p = significance.paired_bootstrap(np.array([-1.0, 3.0]), 4000)
  assert p == pytest.approx(0.5, abs=0.03)
  low, high, p = significance.paired_bootstrap(np.array([1.0, 3.0]), 4000)
  assert (low, high, p) == (1.0, 3.0, 1 / 4001)


def test_bootstrap_width_is_that_of_the_mean_and_it_is_seeded():
  values = np.random.default_rng(1).normal(0.05, 1.0, 400)
  first = significance.paired_bootstrap(values, 2000)
  assert significance.paired_bootstrap(values, 2000) == first
  error = values.std(ddof=1) / 20
  assert first[1] - first[0] == pytest.approx(2 * 1.96 * error, rel=0.1)
  # Normal here: two-sided p of z.
  z = abs(values.mean()) / error
  assert first[2] == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.03)


def test_randomisation_by_hand():
  # Signs of 1 and 3 give means ±2 and ±1: half are as large as 2.
  p = significance.approximate_randomisation(np.array([1.0, 3.0]), 4000)
  assert p == pytest.approx(0.5, abs=0.03)
  # Of eight equal differences only equal signs are: 2 of 256.
  p = significance.approximate_randomisation(np.full(8, 0.1), 10000)
  assert p == pytest.approx(2 / 256, abs=0.004)
  assert significance.approximate_randomisation(np.zeros(4), 7) == 1.0
  # With 40 of them no trial does: 1 / (1 + R), over several chunks.
  assert (
    significance.approximate_randomisation(np.full(40, 0.1), 1201) == 1 / 1202
  )


def test_a_single_source_tells_nothing():
  assert significance.paired_bootstrap(np.array([0.1]), 99) == (0.1, 0.1, 1.0)
  assert significance.approximate_randomisation(np.array([0.1]), 99) == 1.0


REFERENCES = [f'the {i} cats sat on mat {i % 7}' for i in range(40)]
WORSE = [r.replace('cats', 'dog') if i % 3 else r for i, r in
         enumerate(REFERENCES)]  # fmt: skip
BETTER = [r.replace('sat', 'sit') if i % 8 == 0 else r for i, r in
          enumerate(REFERENCES)]  # fmt: skip


def _tested(*pairs, references=REFERENCES, trials=400):
  return significance.corpus_tests(
    pairs, references, 'en', num_resamples=trials, num_trials=trials
  )


def _scores(texts):
  metrics = {'bleu': sacrebleu.BLEU(trg_lang='en'), 'chrf': sacrebleu.CHRF()}
  return {
    name: metric.corpus_score(texts, [REFERENCES]).score
    for name, metric in metrics.items()
  }


def test_corpus_tests_are_of_sacrebleus_scores():
  # What makes half of the difference, so that no test is sure of it.
  near = BETTER[:20] + WORSE[20:24] + BETTER[24:]
  found = _tested((near, BETTER), trials=2000)
  for name, metric in (
    ('bleu', sacrebleu.BLEU(trg_lang='en')),
    ('chrf', sacrebleu.CHRF()),
  ):
    test = found[name]
    difference = _scores(BETTER)[name] - _scores(near)[name]
    assert test.differences == pytest.approx((difference,))
    assert test.interval[0] < difference < test.interval[1]
    _, said = theirs.PairedTest(
      [('a', near), ('b', BETTER)],
      {'m': metric},
      [REFERENCES],
      test_type='bs',
      n_samples=2000,
    )()
    (values,) = (v for k, v in said.items() if k != 'System')
    # Theirs counts d* − d > d alone, which no d* below 0 adds to.
    assert values[1].p_value <= test.p_bootstrap + 0.02
    assert test.p_bootstrap > 0.01
  clear = _tested((WORSE, BETTER))
  assert clear['bleu'].p_bootstrap == clear['bleu'].p_randomisation == 1 / 401


@pytest.mark.parametrize('count', [1, 2, 3, 5])
def test_few_translations_that_differ_are_no_proof(count):
  # Of 2^m ways to exchange m sentences, all better, two differ as much.
  better = [*REFERENCES[:count], *WORSE[count:]]
  worse = [f'{text} dog' for text in REFERENCES[:count]] + WORSE[count:]
  for test in _tested((worse, better), trials=4000).values():
    assert test.p_randomisation == pytest.approx(2 / 2**count, abs=0.03)


def test_equal_changes_are_tied_however_they_are_exchanged():
  # Nine times better and three times worse by the same: of the 2^12 ways
  # those with at least nine of one sign differ as much.
  texts = [f'a b c d e f g {i}' for i in range(12)]
  spoiled = [text.replace('d', 'x') for text in texts]
  one = [*spoiled[:9], *texts[9:]]
  other = [*texts[:9], *spoiled[9:]]
  exact = 2 * sum(math.comb(12, n) for n in range(9, 13)) / 2**12
  found = _tested((one, other), references=texts, trials=6000)
  assert found['bleu'].p_randomisation == pytest.approx(exact, abs=0.02)


def test_seeds_that_contradict_each_other_prove_nothing():
  found = _tested((WORSE, BETTER), (BETTER, WORSE))
  for test in found.values():
    assert sum(test.differences) == pytest.approx(0.0)
    assert test.interval == pytest.approx((0.0, 0.0))
    assert test.p_bootstrap == test.p_randomisation == 1.0
  # And those that agree are no surer than one: they share their sources.
  once = _tested((WORSE, BETTER[:20] + WORSE[20:]))
  twice = _tested(*[(WORSE, BETTER[:20] + WORSE[20:])] * 2)
  assert twice['bleu'].interval == pytest.approx(once['bleu'].interval)


def test_equal_translations_do_not_differ():
  for test in _tested((BETTER, BETTER), trials=20).values():
    assert test == significance.CorpusTest((0.0,), (0.0, 0.0), 1.0, 1.0)


def test_a_bootstrap_is_right_as_often_as_it_says():
  # Of policies that are equally good, p ≤ 0.1 in a tenth of the experiments.
  rng, below = np.random.default_rng(3), []
  for _ in range(60):
    one, other = (
      [t if flip else w for t, w, flip in zip(
        REFERENCES, WORSE, rng.integers(0, 2, 40), strict=True)]
      for _ in range(2)
    )  # fmt: skip
    below.append(_tested((one, other), trials=60)['chrf'].p_bootstrap <= 0.1)
  assert sum(below) <= 12  # 6 ± 2.3.
