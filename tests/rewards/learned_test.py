import dataclasses

import numpy as np
import pytest

from rest_jax import config, errors
from rest_jax.data.tokenizer import ByteTokenizer
from rest_jax.models.config import T5Config
from rest_jax.rewards import base, checking, combined, learned, penalties
from rest_jax.rewards.regressor import Buckets, Regressor
from rest_jax.sharding import Layout

TOKENIZER = ByteTokenizer()
CONFIG = T5Config(
  vocab_size=384,
  emb_dim=8,
  num_heads=2,
  num_encoder_layers=1,
  num_decoder_layers=1,
  head_dim=4,
  mlp_dim=8,
)
SOURCES, CANDIDATES = ['ab', 'ab', 'c'], ['xy', 'x', 'too long a text']


@pytest.fixture(scope='module')
def ensemble():
  regressor = Regressor(CONFIG, Layout(data=1))
  return learned.Ensemble(
    regressor,
    tuple(regressor.init(seed) for seed in range(3)),
    TOKENIZER,
    learned.PairFormat(max_source_length=4, max_candidate_length=6),
    Buckets(lengths=(12,), tokens_per_batch=48),
    bounded=True,
    fingerprint='f',
  )


def test_a_pair_is_told_apart_and_no_text_can_hold_the_separator():
  pair = learned.PairFormat(max_source_length=2, max_candidate_length=3)
  assert pair.max_length == 7
  a, b, c = TOKENIZER.encode('abc')
  size = TOKENIZER.size
  assert pair.encode(TOKENIZER, ['abc', '', 'c'], ['c', 'ab', 'abca']) == [
    [a, b, size, c, 1],
    [size, a, b, 1],
    None,
  ]
  everything = ''.join(map(chr, range(1, 0x300)))
  assert size not in TOKENIZER.encode(everything)


def test_what_is_unknown_is_left_out_where_its_id_is_that_of_padding():
  class Madlad(ByteTokenizer):
    def encode_batch(self, texts):
      return [[0 if t > 190 else t for t in tokens]
              for tokens in super().encode_batch(texts)]  # fmt: skip

  pair, tokenizer = learned.PairFormat(4, 4), Madlad()
  assert pair.encode(tokenizer, ['aÿ'], ['ÿb']) == pair.encode(
    tokenizer, ['a'], ['b']
  )


def test_mean_and_disagreement_of_the_members(ensemble):
  # Networks of random weights leave [0, 1], where all are clipped alike.
  ensemble = dataclasses.replace(ensemble, bounded=False)
  mean, std = learned.Learned(), learned.Disagreement()
  for reward in (mean, std):
    assert isinstance(reward, base.RewardModel)
    reward.open(lambda: ensemble)
    assert reward.fingerprint == 'f'
  members = ensemble.rewards(SOURCES, CANDIDATES)
  assert members.shape == (3, 3)
  assert members.min() >= 0
  assert members.max() <= 1
  np.testing.assert_array_equal(members[:, 2], 0.0)  # Too long to be read.
  np.testing.assert_allclose(
    mean.score(SOURCES, CANDIDATES), members.mean(0), rtol=1e-6
  )
  np.testing.assert_allclose(
    std.score(SOURCES, CANDIDATES, ['any'] * 3),
    members.std(0),
    rtol=1e-5,
    atol=1e-7,
  )
  assert members.std(0)[:2].max() > 0.01
  assert (mean.info.high, std.info.high) == (1.0, 0.5)
  assert not std.info.higher_is_better


def test_preferences_become_rewards_by_a_sigmoid():
  scores = np.array([-100.0, 0.0, 1.0], np.float32)
  np.testing.assert_allclose(
    learned.to_reward(scores, False), [0.0, 0.5, 0.731059], atol=1e-6
  )
  np.testing.assert_array_equal(
    learned.to_reward(scores, True), [0.0, 0.0, 1.0]
  )


def test_learned_rewards_are_found_wherever_they_are():
  @dataclasses.dataclass(frozen=True)
  class Sum:
    parts: tuple
    scale: float = 1.0

  inner, outer = learned.Learned(), learned.Disagreement(name='d')
  assert learned.within([Sum((inner, Sum(()))), outer]) == [inner, outer]
  assert learned.within(3) == []
  # What a run sets later is no setting.
  inner.open(lambda: None)
  assert inner == learned.Learned()
  assert config.flatten(inner, 'r') == {'r': 'Learned', 'r.name': 'learned'}


def test_the_check_sees_what_an_ensemble_does_not_remember(ensemble):
  class Batchwise(Regressor):
    def scores(self, params, texts, buckets):
      return np.full(len(texts), 0.1 + 0.2 * (len(texts) > 1), np.float32)

  faulty = Batchwise(ensemble.regressor.config, ensemble.regressor.layout)
  faulty = dataclasses.replace(ensemble, regressor=faulty)
  reward = learned.Learned()
  reward.open(lambda: faulty)
  texts = checking.Texts('texts', [0, 1], ['a', 'b'], ['a', 'b'], None)
  reward.score(texts.sources, texts.candidates)
  inside = combined.Product((reward, penalties.Length()))
  for checked in (reward, inside):
    found = checking.differences(checked, texts)
    assert found['batch size'] == pytest.approx(0.2)


def test_what_cannot_be_scored(ensemble):
  with pytest.raises(errors.RewardError, match="'learned' is learned by a run"):
    learned.Learned().score(SOURCES, CANDIDATES)
  with pytest.raises(errors.RewardError, match='3 sources and 2 candidates'):
    ensemble.rewards(SOURCES, CANDIDATES[:2])
  with pytest.raises(errors.ConfigurationError, match=r'PairFormat\.max_sou'):
    learned.PairFormat(max_source_length=0)
