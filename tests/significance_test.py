"""Paired tests and intervals, against what can be worked out by hand."""

import math

import numpy as np
import pytest
import sacrebleu
from sacrebleu import significance as theirs

from rest_jax import errors, significance


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


def test_merged_p_values():
  assert significance.merged([0.04]) == 0.04
  assert significance.merged([0.01, 0.03]) == pytest.approx(0.04)
  assert significance.merged([0.7, 0.8]) == 1.0


REFERENCES = [f'the {i} cats sat on mat {i % 7}' for i in range(40)]
WORSE = [r.replace('cats', 'dog') if i % 3 else r for i, r in
         enumerate(REFERENCES)]  # fmt: skip
BETTER = [r.replace('sat', 'sit') if i % 8 == 0 else r for i, r in
          enumerate(REFERENCES)]  # fmt: skip


def test_corpus_tests_are_those_of_sacrebleu():
  found = significance.corpus_tests(
    WORSE, BETTER, REFERENCES, 'en', num_resamples=100, num_trials=150
  )
  for name, metric in (
    ('bleu', sacrebleu.BLEU(trg_lang='en')),
    ('chrf', sacrebleu.CHRF()),
  ):
    scores = [
      metric.corpus_score(texts, [REFERENCES]).score
      for texts in (WORSE, BETTER)
    ]
    difference, *p_values = found[name]
    assert difference == pytest.approx(scores[1] - scores[0])
    for kind, number, p in zip(('bs', 'ar'), (100, 150), p_values, strict=True):
      _, said = theirs.PairedTest(
        [('a', WORSE), ('b', BETTER)],
        {'m': metric},
        [REFERENCES],
        test_type=kind,
        n_samples=number,
      )()
      (values,) = (v for k, v in said.items() if k != 'System')
      assert p == values[1].p_value
      assert p < 0.05


def test_equal_translations_do_not_differ():
  found = significance.corpus_tests(
    BETTER, BETTER, REFERENCES, 'en', num_resamples=20, num_trials=20
  )
  assert found == {'bleu': (0.0, 1.0, 1.0), 'chrf': (0.0, 1.0, 1.0)}


def test_a_seed_that_is_none_is_refused(monkeypatch):
  significance.check_seed()
  monkeypatch.setenv('SACREBLEU_SEED', '7')
  significance.check_seed()
  for seed in ('0', 'none', ''):
    monkeypatch.setenv('SACREBLEU_SEED', seed)
    with pytest.raises(
      errors.ConfigurationError, match=f'SACREBLEU_SEED = {seed} '
    ):
      significance.check_seed()
