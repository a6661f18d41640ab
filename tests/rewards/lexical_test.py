import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
import sacrebleu

from rest_jax import errors
from rest_jax.rewards import base, lexical

CANDIDATES = ['the cat sat on the mat', 'a dog', '', 'the the the', 'mat']
REFERENCES = ['the cat sat on a mat', 'a dog', 'not empty', 'the cat', 'cat']
ALL = [
  lexical.SentenceChrf(num_workers=1),
  lexical.SentenceChrf(word_order=2, num_workers=1),
  lexical.SentenceBleu(trg_lang='en', num_workers=1),
  lexical.SentenceTer(trg_lang='en', num_workers=1),
]
IDS = [model.info.name for model in ALL]


def score(model, candidates=CANDIDATES, references=REFERENCES):
  return model.score([''] * len(candidates), candidates, references)


def test_scores_are_sacrebleus():
  expected = {
    'chrf': sacrebleu.sentence_chrf,
    'chrf++': lambda c, r: sacrebleu.sentence_chrf(c, r, word_order=2),
    'sentence_bleu': sacrebleu.sentence_bleu,
    'ter': sacrebleu.sentence_ter,
  }
  for model in ALL:
    one = expected[model.info.name]
    wanted = [
      min(one(c, [r]).score, 100.0)
      for c, r in zip(CANDIDATES, REFERENCES, strict=True)
    ]
    np.testing.assert_allclose(score(model), wanted, rtol=1e-5)


@pytest.mark.parametrize('model', ALL, ids=IDS)
def test_scores_are_in_range_and_the_reference_is_best(model):
  scores = base.check_scores(score(model), model.info, len(CANDIDATES))
  rewards = base.to_unit_interval(scores, model.info)
  perfect = base.to_unit_interval(
    score(model, REFERENCES, REFERENCES), model.info
  )
  np.testing.assert_allclose(perfect, 1.0, atol=1e-6)
  assert (rewards <= perfect).all()
  assert rewards[0] < 1
  # sacrebleu smooths: an empty candidate has no BLEU, chrF or anything.
  assert rewards[2] == 0


def test_ter_by_hand_and_cut_at_one_hundred():
  ter = lexical.SentenceTer(trg_lang='en', num_workers=1)
  # One word of six replaced; then two words too many for a reference of one.
  scores = score(
    ter, ['the cat sat on the mat', 'a b c d'], ['the cat sat on a mat', 'x']
  )
  np.testing.assert_allclose(scores, [100 / 6, 100.0], rtol=1e-6)


def test_the_target_language_chooses_the_tokenizer():
  pair = (['他昨天去了北京的图书馆。'], ['他昨天去过北京的图书馆。'])
  chinese = score(lexical.SentenceBleu('zh', num_workers=1), *pair)
  english = score(lexical.SentenceBleu('en', num_workers=1), *pair)
  assert chinese[0] > 50 > english[0]
  asian = score(lexical.SentenceTer('zh', num_workers=1), *pair)
  assert asian[0] == pytest.approx(100 / 12)
  assert score(lexical.SentenceTer('en', num_workers=1), *pair)[0] == 100


def test_workers_give_the_same_scores_in_the_same_order():
  rng = np.random.default_rng(0)
  words = np.array(['a', 'cat', 'dog', 'sat', 'on', 'the', 'mat', 'ran'])
  lines = [
    ' '.join(words[rng.integers(0, len(words), rng.integers(1, 9))])
    for _ in range(700)
  ]
  candidates, references = lines[:350], lines[350:]
  alone = score(lexical.SentenceChrf(num_workers=1), candidates, references)
  several = score(lexical.SentenceChrf(num_workers=2), candidates, references)
  assert np.unique(alone).size > 100
  np.testing.assert_array_equal(alone, several)


def test_no_rows_give_no_scores():
  assert score(ALL[0], [], []).shape == (0,)


def test_the_version_names_what_changes_a_score():
  versions = {model.info.version for model in ALL}
  assert len({(m.info.name, m.info.version) for m in ALL}) == len(ALL)
  assert all(sacrebleu.__version__ in version for version in versions)
  assert (
    lexical.SentenceBleu('zh').info.version
    != lexical.SentenceBleu('en').info.version
  )


def test_missing_references_unequal_counts_and_missing_packages_are_errors(
  monkeypatch,
):
  with pytest.raises(errors.RewardError, match='needs references'):
    ALL[0].score([''], ['a'])
  with pytest.raises(errors.RewardError, match='1 candidates and 2'):
    ALL[0].score([''], ['a'], ['a', 'b'])

  def refuse(**kwargs):
    raise ImportError('pip install sacrebleu[ja]')

  monkeypatch.setattr(sacrebleu, 'BLEU', refuse)
  with pytest.raises(errors.RewardError, match=r'sacrebleu\[ja\]'):
    score(lexical.SentenceBleu('ja', num_workers=1))


_SLEEPS = """
import sys, time
from rest_jax.rewards import lexical
if __name__ == '__main__':
  rows = ['a'] * 4096
  lexical.SentenceChrf(num_workers=2).score(rows, rows, rows)
  print(*lexical._pool(2)._processes, flush=True)
  time.sleep(60)
"""


def test_no_worker_outlives_a_run_that_is_killed(tmp_path):
  program = tmp_path / 'run.py'
  program.write_text(_SLEEPS)
  with subprocess.Popen(
    [sys.executable, str(program)], stdout=subprocess.PIPE, text=True
  ) as run:
    workers = [int(pid) for pid in run.stdout.readline().split()]
    run.kill()
  assert workers
  deadline = time.monotonic() + 20
  while any(pathlib.Path(f'/proc/{pid}').exists() for pid in workers):
    assert time.monotonic() < deadline, 'they are still there'
    time.sleep(0.1)


_SIGNALLED = """
import os, signal
from rest_jax.rewards import lexical
if __name__ == '__main__':
  rows = ['a'] * 4096
  score = lexical.SentenceChrf(num_workers=2).score
  score(rows, rows, rows)
  pool, ready = lexical._pool(2), set()
  while len(ready) < 2:  # One may have scored it all before the other began.
    ready.add(pool.submit(os.getpid).result())
  workers = list(pool._processes)
  for pid in workers:
    os.kill(pid, signal.SIGTERM)
  score(rows, rows, rows)
  assert list(pool._processes) == workers
  print('scored')
"""


def test_workers_outlive_a_signal_to_the_whole_machine(tmp_path):
  program = tmp_path / 'run.py'
  program.write_text(_SIGNALLED)
  done = subprocess.run(
    [sys.executable, str(program)],
    capture_output=True,
    text=True,
    timeout=30,
  )
  assert (done.returncode, done.stdout) == (0, 'scored\n'), done.stderr
