import importlib.metadata

import numpy as np
import pytest

from rest_jax import errors
from rest_jax.rewards import base, muse

SOURCES = [
  'Two men are repairing a roof.',
  'A girl in a red dress is singing.',
  'A dog runs through the snow.',
  'People are waiting for a train.',
]
RIGHT = [
  'Zwei Männer reparieren ein Dach.',
  'Ein Mädchen in einem roten Kleid singt.',
  'Ein Hund läuft durch den Schnee.',
  'Leute warten auf einen Zug.',
]
PARAPHRASES = [
  'Ein Dach wird von zwei Männern ausgebessert.',
  'Ein singendes Mädchen trägt ein rotes Kleid.',
  'Im Schnee rennt ein Hund.',
  'Menschen stehen da und warten auf die Bahn.',
]
WITH_REFERENCE = muse.SentenceSimilarity()
QE = muse.SentenceSimilarity('source')


def test_a_translation_is_nearer_to_its_source_than_all_others_are():
  for outputs in (RIGHT, PARAPHRASES):
    scores = np.array([QE.score([s] * 4, outputs) for s in SOURCES])
    assert (scores.argmax(axis=1) == np.arange(4)).all(), scores
    assert (np.diag(scores) > 50).all(), scores


def test_references_take_the_place_of_sources():
  scores = WITH_REFERENCE.score(['unread'] * 4, PARAPHRASES, RIGHT)
  np.testing.assert_allclose(scores, QE.score(RIGHT, PARAPHRASES), atol=1e-4)
  same = WITH_REFERENCE.score(['unread'] * 4, RIGHT, RIGHT)
  np.testing.assert_allclose(same, 100, atol=1e-3)
  assert (scores < 99).all()


def test_a_half_a_repetition_and_another_sentence_are_worse():
  right = QE.score(SOURCES, RIGHT)
  halves = [' '.join(text.split()[: len(text.split()) // 2]) for text in RIGHT]
  for spoiled in (halves, [RIGHT[-1], *RIGHT[:-1]]):
    assert (QE.score(SOURCES, spoiled) < right).all()


def test_a_score_depends_on_its_row_alone():
  together = QE.score(SOURCES * 3, RIGHT + PARAPHRASES + RIGHT[::-1])
  apart = [QE.score([s], [c])[0] for s, c in zip(SOURCES, RIGHT, strict=True)]
  np.testing.assert_allclose(together[:4], apart, atol=1e-4)
  assert together.dtype == np.float32


def test_nothing_has_no_meaning():
  assert QE.score(SOURCES[:2], ['', ' \n']).tolist() == [0, 0]
  assert QE.score([], []).shape == (0,)


def test_scores_are_what_info_promises():
  scores = QE.score(SOURCES, RIGHT)
  assert (base.check_scores(scores, QE.info, 4) == scores).all()
  assert QE.info.name == 'muse_qe' and not QE.info.needs_reference
  assert WITH_REFERENCE.info.name == 'muse'
  assert WITH_REFERENCE.info.needs_reference


def test_bad_input_is_named():
  with pytest.raises(errors.RewardError, match=r'muse_qe.*1 candidates and 2'):
    QE.score(SOURCES[:2], RIGHT[:1])
  with pytest.raises(errors.RewardError, match="'muse' needs references"):
    WITH_REFERENCE.score(SOURCES, RIGHT)
  with pytest.raises(
    errors.ConfigurationError, match=r"'target'.*reference, source"
  ):
    muse.SentenceSimilarity('target')


def test_a_missing_package_is_named(monkeypatch):
  def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)

  muse._package_version.cache_clear()
  monkeypatch.setattr(importlib.metadata, 'version', missing)
  with pytest.raises(errors.ConfigurationError, match='pip install'):
    _ = QE.info
