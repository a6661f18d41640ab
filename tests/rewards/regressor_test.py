"""Relations of a regressor's scores, and its parameters' names."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from rest_jax import errors, reward_losses
from rest_jax.models.config import T5Config
from rest_jax.policy import Policy
from rest_jax.rewards import regressor as regressor_lib
from rest_jax.rewards.regressor import Buckets, Regressor
from rest_jax.sharding import AxisRules, Layout
from rest_jax.training import state as state_lib
from rest_jax.training import step
from rest_jax.training.optimizer import Optimizer
from rest_jax.types import Batch

CONFIG = T5Config(
  vocab_size=32,
  emb_dim=16,
  num_heads=4,
  num_encoder_layers=1,
  num_decoder_layers=2,
  head_dim=4,
  mlp_dim=24,
  dropout_rate=0.2,
)
ONE = Regressor(CONFIG, Layout(data=1))
PREDICT = jax.jit(ONE.predict)
BUCKETS = Buckets(lengths=(4, 8), tokens_per_batch=32)


@pytest.fixture(scope='module')
def params():
  # Larger than at initialisation, so that a wrong part shows.
  return jax.tree.map(lambda x: 1.3 * np.asarray(x), ONE.init(0))


@pytest.fixture(scope='module')
def texts():
  rng = np.random.default_rng(0)
  lengths = [6, 3, 1, 4, 5, 8, 2, 4, 7, 3, 6]
  return [[*rng.integers(2, 32, n - 1).tolist(), 1] for n in lengths]


def padded(texts, length):
  return np.array([t + [0] * (length - len(t)) for t in texts], np.int32)


@pytest.fixture(scope='module')
def expected(params, texts):
  return np.asarray(PREDICT(params, padded(texts, 8)))


def test_the_tree_is_a_policys_with_another_output():
  ours = traverse_util.flatten_dict(ONE.abstract_params(), sep='/')
  policys = traverse_util.flatten_dict(
    Policy(CONFIG, Layout(data=1)).abstract_params(), sep='/'
  )
  del policys['decoder/logits_dense/kernel']
  kernel = ours.pop('decoder/score_dense/kernel')
  assert (kernel.shape, kernel.dtype) == ((16, 1), jnp.float32)
  assert ours == policys


def test_a_score_is_a_projection_of_the_first_decoder_step(params, texts):
  """The same network as a policy: its logits are the score, where they may."""
  vocab = dict(params)
  decoder = dict(vocab['decoder'])
  kernel = decoder.pop('score_dense')['kernel']
  decoder['logits_dense'] = {
    'kernel': np.concatenate([kernel, np.zeros((16, 31), np.float32)], 1)
  }
  policy = Policy(CONFIG, Layout(data=1))
  tokens = padded(texts, 8)

  @jax.jit
  def first_logits(params):
    cache = policy.start_cache(params, tokens, num_samples=1, max_decode_len=1)
    start = jnp.zeros((len(texts), 1), jnp.int32)
    return policy.decode_step(params, start, cache)[0]

  logits = first_logits(vocab | {'decoder': decoder})
  got = PREDICT(params, tokens)
  np.testing.assert_allclose(got, logits[:, 0, 0], atol=1e-5)
  assert np.std(got) > 0.1


def test_a_score_depends_on_neither_batch_nor_order(params, texts, expected):
  scores = ONE.scores(params, texts, BUCKETS)
  np.testing.assert_allclose(scores, expected, atol=1e-5)
  order = np.array([3, 10, 0, 7, 2, 1, 9, 6, 4, 8, 5])
  moved = ONE.scores(params, [texts[i] for i in order], BUCKETS)
  np.testing.assert_array_equal(moved, scores[order])
  alone = [ONE.scores(params, [text], BUCKETS)[0] for text in texts]
  np.testing.assert_array_equal(alone, scores)
  assert ONE.scores(params, [], BUCKETS).shape == (0,)


def test_every_bucket_compiles_once(params, texts):
  before = regressor_lib._predict._cache_size()
  buckets = Buckets(lengths=(5, 9), tokens_per_batch=27)
  for many in (1, 5, 11):
    again = Regressor(dataclasses.replace(CONFIG), Layout(data=1))
    again.scores(params, texts[:many], buckets)
  assert regressor_lib._predict._cache_size() == before + 2


def test_packed_texts_score_as_they_do_alone(params, texts, expected):
  row = [*texts[0], *texts[2], *texts[3], 0]
  second = [*texts[8], *texts[9], 0, 0]
  batch = Batch(
    encoder_input_tokens=np.array([row, second], np.int32),
    decoder_input_tokens=np.zeros((2, 4), np.int32),
    decoder_target_tokens=np.array([[7, 7, 7, 0], [7, 7, 0, 0]], np.int32),
    decoder_loss_weights=np.ones((2, 4), np.float32),
  )
  scores = jax.jit(ONE.score)(params, batch)
  np.testing.assert_allclose(scores[0, :3], expected[[0, 2, 3]], atol=1e-5)
  np.testing.assert_allclose(scores[1, :2], expected[[8, 9]], atol=1e-5)


@pytest.mark.parametrize(
  'layout',
  [Layout(data=2, model=4), Layout(model=2, rules=AxisRules(embed='data'))],
)
def test_sharded_equals_unsharded(layout, params, texts, expected):
  sharded = Regressor(CONFIG, layout)
  placed = jax.device_put(params, sharded.param_shardings())
  scores = sharded.scores(placed, texts, BUCKETS)
  np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_bfloat16_is_near_float32(params, texts, expected):
  config = dataclasses.replace(CONFIG, dtype='bfloat16')
  scores = Regressor(config, Layout(data=1)).scores(params, texts, BUCKETS)
  assert scores.dtype == np.float32
  np.testing.assert_allclose(scores, expected, atol=0.1)


def test_bfloat16_holds_parameters_in_it_for_the_same_scores(params, texts):
  config = dataclasses.replace(CONFIG, dtype='bfloat16')
  regressor = Regressor(config, Layout(data=1))
  held = regressor.inference_params(params)
  wide = {
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, leaf in jax.tree_util.tree_leaves_with_path(held)
    if leaf.dtype == jnp.float32
  }
  assert wide == {'decoder/score_dense/kernel'}
  np.testing.assert_array_equal(
    regressor.scores(held, texts, BUCKETS),
    regressor.scores(params, texts, BUCKETS),
  )


def test_dropout_acts_with_a_key_only(params, texts, expected):
  tokens = padded(texts, 8)
  first = PREDICT(params, tokens, jax.random.key(1))
  again = PREDICT(params, tokens, jax.random.key(1))
  np.testing.assert_array_equal(first, again)
  assert np.max(np.abs(first - expected)) > 0.01


def test_what_cannot_be_scored(params, texts):
  with pytest.raises(errors.DataError, match=r'9 tokens .* longest bucket'):
    ONE.scores(params, [[3] * 9], BUCKETS)
  broken = jax.tree.map(np.copy, params)
  broken['decoder']['score_dense']['kernel'][0] = np.nan
  with pytest.raises(errors.RewardError, match='nan for text 0 of 11'):
    ONE.scores(broken, texts, BUCKETS)
  with pytest.raises(errors.ConfigurationError, match='rising lengths'):
    Buckets(lengths=(8, 4))


@pytest.mark.slow
def test_a_sharded_update_equals_an_unsharded_one(params):
  rng = np.random.default_rng(0)
  tokens = rng.integers(2, 32, (8, 6)).astype(np.int32)
  tokens[:, 2] = tokens[:, 5] = 1  # Two texts a row.
  levels = rng.integers(1, reward_losses.LEVELS, (8, 2)).astype(np.int32)
  batch = Batch(
    encoder_input_tokens=tokens,
    decoder_input_tokens=np.zeros((8, 2), np.int32),
    decoder_target_tokens=levels,
    decoder_loss_weights=np.ones((8, 2), np.float32),
  )
  adamw = Optimizer(name='adamw', learning_rate=1e-2)
  ended = []
  for layout in (Layout(data=1), Layout(data=2, model=4)):
    network = Regressor(CONFIG, layout)
    update = step.make_train_step(
      network, adamw, reward_losses.Regression(), num_microbatches=2
    )
    placed = jax.device_put(params, network.param_shardings())
    state, metrics = update(state_lib.init_state(network, adamw, placed), batch)
    assert metrics['tokens'] == 16
    expected = np.asarray(PREDICT(params, tokens[:, :3]))
    first = np.mean((expected - (levels[:, 0] - 1) / reward_losses.LEVELS) ** 2)
    expected = np.asarray(PREDICT(params, tokens[:, 3:]))
    second = np.mean(
      (expected - (levels[:, 1] - 1) / reward_losses.LEVELS) ** 2
    )
    np.testing.assert_allclose(
      metrics['squared_error'], (first + second) / 2, rtol=1e-4
    )
    ended.append((float(metrics['loss']), float(metrics['grad_norm'])))
    del state
  np.testing.assert_allclose(ended[0], ended[1], rtol=1e-4)
