import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest_jax import errors, sharding, types
from rest_jax.losses import BehavioralCloning
from rest_jax.models.config import T5Config
from rest_jax.policy import Policy
from rest_jax.training import state as state_lib
from rest_jax.training import step as step_lib
from rest_jax.training.optimizer import Optimizer

CONFIG = T5Config(
  vocab_size=32,
  emb_dim=16,
  num_heads=2,
  num_encoder_layers=1,
  num_decoder_layers=1,
  head_dim=8,
  mlp_dim=32,
  dropout_rate=0.1,
)
ONE = sharding.Layout(data=1, model=1)
ADAMW = Optimizer(name='adamw', learning_rate=1e-2, weight_decay=0.01)
ADAFACTOR = Optimizer(learning_rate=0.1, min_dim_size_to_factor=8)


@dataclasses.dataclass(frozen=True)
class UnigramPolicy:
  """π(y_t) = softmax(logits), whatever came before: gradients by hand."""

  layout: sharding.Layout = ONE

  @functools.cached_property
  def mesh(self):
    return self.layout.mesh()

  @property
  def placement(self):
    return sharding.Placement(self.mesh, self.layout.rules)

  def abstract_params(self):
    return {'logits': jax.ShapeDtypeStruct((4,), jnp.float32)}

  def param_shardings(self):
    return {'logits': self.placement.sharding(None)}

  def score(self, params, batch, dropout_key=None):
    del dropout_key
    log_probs = jax.nn.log_softmax(params['logits'])
    targets = batch.decoder_target_tokens
    normalizer = jax.nn.logsumexp(params['logits'])
    return types.TokenScores(
      log_probs=log_probs[targets],
      log_normalizers=jnp.full(targets.shape, normalizer),
      mean_log_probs=jnp.full(targets.shape, jnp.mean(log_probs)),
    )


def batch_of(targets, weights):
  """Unpacked pairs; each row's weight stands where its target is not 0."""
  targets = np.asarray(targets, np.int32)
  inputs = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
  mask = targets != 0
  return types.Batch(
    encoder_input_tokens=np.where(mask, targets, 0),
    decoder_input_tokens=np.where(mask, inputs, 0),
    decoder_target_tokens=targets,
    decoder_loss_weights=np.where(
      mask, np.asarray(weights, np.float32)[:, None], np.float32(0)
    ),
  )


def random_batch(rows=8, length=6, vocabulary=30, seed=0):
  rng = np.random.default_rng(seed)
  targets = rng.integers(2, vocabulary, (rows, length))
  lengths = rng.integers(2, length + 1, rows)
  targets = np.where(np.arange(length) < lengths[:, None], targets, 0)
  return batch_of(targets, rng.uniform(0.2, 2.0, rows))


def unigram_step(loss=BehavioralCloning(), **kwargs):  # noqa: B008
  policy = UnigramPolicy()
  params = {'logits': jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))}
  step = step_lib.make_train_step(policy, ADAMW, loss, **kwargs)
  return step, state_lib.init_state(policy, ADAMW, params)


# Two sequences, (2 1) of weight 1 and (3 3 1) of weight 0.5.
HAND = batch_of([[2, 1, 0], [3, 3, 1]], [1.0, 0.5])
WEIGHTED_NLL = -(math.log(0.3) + 1.5 * math.log(0.2) + 2 * 0.5 * math.log(0.4))


@pytest.mark.parametrize(
  ('normalization', 'divisor'), [('tokens', 3.5), ('sequences', 1.5)]
)
def test_loss_and_gradient_by_hand(normalization, divisor):
  step, state = unigram_step(BehavioralCloning(normalization=normalization))
  _, metrics = step(state, HAND)
  assert metrics['loss'] == pytest.approx(WEIGHTED_NLL / divisor, rel=1e-6)
  assert metrics['nll'] == pytest.approx(WEIGHTED_NLL / 3.5, rel=1e-6)
  assert metrics['tokens'] == 5
  assert metrics['weight_sum'] == 3.5
  # Σ w (π − onehot): the weight 3.5 spread by π, minus that of each token.
  gradient = 3.5 * np.array([0.1, 0.2, 0.3, 0.4]) - [0.0, 1.5, 1.0, 1.0]
  norm = np.linalg.norm(gradient) / divisor
  assert metrics['grad_norm'] == pytest.approx(norm, rel=1e-5)
  assert metrics['finite']


def test_weight_zero_hides_even_an_infinite_loss():
  """A target of probability 0 in a row that the filter dropped."""
  policy = UnigramPolicy()
  params = {'logits': jnp.array([-np.inf, 0.0, 0.0, 0.0])}
  batch = batch_of([[2, 1, 0], [3, 3, 1]], [1.0, 0.0])
  batch.decoder_target_tokens[1, 0] = 0
  sums = step_lib.make_eval_step(policy, BehavioralCloning())(params, batch)
  assert sums['loss_sum'] == pytest.approx(2 * math.log(3), rel=1e-6)
  assert sums['tokens'] == 2


def test_a_batch_without_weight_changes_nothing_but_the_step():
  optimizer = Optimizer(name='adamw', learning_rate=0.1)
  policy = UnigramPolicy()
  params = {'logits': jnp.arange(4.0)}
  step = step_lib.make_train_step(policy, optimizer, BehavioralCloning())
  state, metrics = step(
    state_lib.init_state(policy, optimizer, params),
    batch_of([[2, 1], [3, 1]], [0.0, 0.0]),
  )
  np.testing.assert_array_equal(state.params['logits'], params['logits'])
  assert metrics['loss'] == 0
  assert metrics['finite']
  assert state.step == 1


def test_learning_rate_scale_is_not_compiled_in():
  step, state = unigram_step()
  rates, compiled = [], []
  for scale in (1.0, 0.5, 0.1):
    state, metrics = step(state, HAND, None, scale)
    rates.append(float(metrics['learning_rate']))
    compiled.append(step.jitted._cache_size())
  np.testing.assert_allclose(rates, [1e-2, 5e-3, 1e-3], rtol=1e-6)
  assert len(set(compiled)) == 1


def test_schedules_share_one_program():
  policy = UnigramPolicy()
  programs, compiled = [], []
  for optimizer in (
    Optimizer(
      name='adamw', learning_rate=0.1, schedule='rsqrt', warmup_steps=2
    ),
    Optimizer(name='adamw', learning_rate=0.01),
  ):
    step = step_lib.make_train_step(policy, optimizer, BehavioralCloning())
    params = {'logits': jnp.arange(4.0)}
    rates = []
    state = state_lib.init_state(policy, optimizer, params)
    for _ in range(3):
      state, metrics = step(state, HAND)
      rates.append(float(metrics['learning_rate']))
    expected = [float(optimizer.learning_rate_at(k)) for k in range(3)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    programs.append(step.jitted)
    compiled.append(step.jitted._cache_size())
  assert programs[0] is programs[1]
  assert compiled[0] == compiled[1]


def test_a_lower_learning_rate_moves_proportionally_less():
  moves = []
  for scale in (1.0, 0.25):
    step, state = unigram_step()
    before = np.asarray(state.params['logits'])
    state, _ = step(state, HAND, None, scale)
    moves.append(np.asarray(state.params['logits']) - before)
  np.testing.assert_allclose(moves[1], moves[0] / 4, rtol=1e-3)


def test_the_same_settings_give_the_same_step():
  assert unigram_step()[0] is unigram_step()[0]


def test_init_state_copies_and_the_step_donates():
  policy = UnigramPolicy()
  params = {'logits': jnp.arange(4.0)}
  state = state_lib.init_state(policy, ADAMW, params)
  given = state.params['logits']
  step_lib.make_train_step(policy, ADAMW, BehavioralCloning())(state, HAND)
  assert given.is_deleted()
  np.testing.assert_array_equal(params['logits'], np.arange(4.0))


def test_rows_that_do_not_divide_are_errors():
  step, state = unigram_step(num_microbatches=3)
  with pytest.raises(errors.ConfigurationError, match='NUM_MICROBATCHES = 3'):
    step(state, HAND)
  policy = UnigramPolicy(sharding.Layout(data=4))
  with pytest.raises(errors.ConfigurationError, match='set BATCH_ROWS'):
    step_lib.put_batch(policy, HAND)
  with pytest.raises(errors.ConfigurationError, match='at least 1'):
    step_lib.make_train_step(
      policy, ADAMW, BehavioralCloning(), num_microbatches=0
    )


def test_mean_loss_does_not_depend_on_the_batches():
  policy = UnigramPolicy()
  params = {'logits': jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))}
  eval_step = step_lib.make_eval_step(policy, BehavioralCloning())
  whole = step_lib.evaluate_loss(eval_step, params, [HAND])
  rows = [jax.tree.map(lambda x, i=i: x[i : i + 1], HAND) for i in range(2)]
  parts = step_lib.evaluate_loss(eval_step, params, rows)
  assert whole == pytest.approx(parts, rel=1e-6)
  assert whole['loss'] == pytest.approx(WEIGHTED_NLL / 3.5, rel=1e-6)
  with pytest.raises(errors.DataError, match='no target token'):
    step_lib.evaluate_loss(eval_step, params, [])


@functools.cache
def one_update(layout, optimizer, num_microbatches=1, dropout=False):
  """State and metrics after two updates of a T5 on random pairs."""
  policy = Policy(CONFIG, layout)
  state = state_lib.init_state(policy, optimizer, policy.init(0))
  step = step_lib.make_train_step(
    policy,
    optimizer,
    BehavioralCloning(label_smoothing=0.1, z_loss=1e-3),
    num_microbatches=num_microbatches,
  )
  key = jax.random.key(1) if dropout else None
  for seed in range(2):
    state, metrics = step(state, random_batch(seed=seed), key)
  return jax.device_get((state, metrics))


def assert_close(one, other):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
    one,
    other,
  )


def test_microbatches_equal_the_whole_batch():
  assert_close(one_update(ONE, ADAMW, 4), one_update(ONE, ADAMW))


@pytest.mark.parametrize(
  ('optimizer', 'data', 'model', 'fsdp', 'parts'),
  [
    (ADAMW, 4, 2, False, 2),
    pytest.param(ADAFACTOR, 2, 2, False, 1, marks=pytest.mark.slow),
    pytest.param(ADAMW, 4, 1, True, 2, marks=pytest.mark.slow),
    (ADAFACTOR, 4, 2, True, 1),
  ],
)
def test_sharded_equals_one_device(optimizer, data, model, fsdp, parts):
  layout = sharding.Layout(data=data, model=model, fsdp=fsdp)
  assert_close(one_update(layout, optimizer, parts), one_update(ONE, optimizer))


@pytest.mark.parametrize('fsdp', [False, True])
def test_the_state_lies_where_it_should(fsdp):
  policy = Policy(CONFIG, sharding.Layout(data=4, model=2, fsdp=fsdp))
  state = state_lib.init_state(policy, ADAMW, policy.init(0))
  wanted = state_lib.abstract_state(policy, ADAMW)
  for leaf, expected in zip(
    jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True
  ):
    assert leaf.sharding.is_equivalent_to(expected.sharding, leaf.ndim)
  split = [
    leaf
    for leaf in jax.tree.leaves(state.opt_state)
    if not leaf.sharding.is_fully_replicated
  ]
  # Both moments of the matrices that the mesh axis 'model' splits.
  matrices = [
    leaf
    for leaf in jax.tree.leaves(state.params)
    if not leaf.sharding.is_fully_replicated
  ]
  assert len(split) == 2 * len(matrices) > 0


def test_dropout_depends_on_key_and_step_alone():
  state, metrics = one_update(ONE, ADAMW, 1, dropout=True)
  again, same = one_update.__wrapped__(ONE, ADAMW, 1, dropout=True)
  jax.tree.map(np.testing.assert_array_equal, (state, metrics), (again, same))
  without = one_update(ONE, ADAMW)[1]
  assert abs(metrics['loss'] - without['loss']) > 1e-3


def test_each_update_and_each_key_has_a_dropout_of_its_own():
  policy = Policy(CONFIG, ONE)
  update = step_lib.make_train_step(policy, ADAMW, BehavioralCloning())
  batch = random_batch()
  params = policy.init(0)

  def loss(step, key):
    state = state_lib.init_state(policy, ADAMW, params)
    state = dataclasses.replace(state, step=state.step + step)
    return float(
      update.jitted(state, batch, jax.random.key(key), 0.0)[1]['loss']
    )

  found = [loss(0, 0), loss(1, 0), loss(0, 1)]
  assert len(set(found)) == 3
  assert loss(1, 0) == found[1]


def test_each_microbatch_has_a_dropout_of_its_own():
  policy = Policy(CONFIG, ONE)
  params, key = policy.init(0), jax.random.key(0)
  one, twice = (
    jax.tree.map(jnp.asarray, batch_of([[7, 9, 4, 1]] * rows, [1.0] * rows))
    for rows in (1, 2)
  )

  def gradient(batch, parts, key):
    update = step_lib.make_train_step(
      policy, ADAMW, BehavioralCloning(), num_microbatches=parts
    )
    return jax.tree.leaves(update.gradient(params, batch, key)[0])

  def differ(key):
    pairs = zip(gradient(twice, 2, key), gradient(one, 1, key), strict=True)
    return max(float(jnp.abs(both - 2 * each).max()) for both, each in pairs)

  assert differ(None) < 1e-5
  assert differ(key) > 1e-3


def test_packed_pairs_have_the_loss_of_single_ones():
  policy = Policy(CONFIG, ONE)
  params = policy.init(0)
  single = batch_of(
    [[7, 1, 0], [9, 9, 1], [4, 5, 1], [6, 1, 0]], [1.0, 0.5, 2.0, 0.25]
  )

  def pack(array, lengths):
    rows = np.zeros((2, 6), array.dtype)
    for pair, length in enumerate(lengths):
      start = 0 if pair % 2 == 0 else lengths[pair - 1]
      rows[pair // 2, start : start + length] = array[pair, :length]
    return rows

  lengths = (single.decoder_target_tokens != 0).sum(axis=1)
  arrays = {
    name: pack(value, lengths)
    for name, value in vars(single).items()
    if value is not None
  }
  numbers = np.where(
    single.decoder_target_tokens != 0, [[1], [2], [1], [2]], 0
  ).astype(np.int32)
  segments = pack(numbers, lengths)
  packed = types.Batch(
    **arrays, encoder_segment_ids=segments, decoder_segment_ids=segments
  )
  for normalization in ('tokens', 'sequences'):
    eval_step = step_lib.make_eval_step(
      policy, BehavioralCloning(normalization=normalization)
    )
    one, other = eval_step(params, single), eval_step(params, packed)
    for name in one:
      np.testing.assert_allclose(one[name], other[name], rtol=1e-5)


def test_training_learns_its_pairs_by_heart():
  config = dataclasses.replace(CONFIG, dropout_rate=0.0)
  policy = Policy(config, ONE)
  optimizer = Optimizer(learning_rate=0.1, warmup_steps=5)
  state = state_lib.init_state(policy, optimizer, policy.init(0))
  step = step_lib.make_train_step(policy, optimizer, BehavioralCloning())
  batch = random_batch(rows=4)
  first = None
  for _ in range(120):
    state, metrics = step(state, batch)
    first = first or float(metrics['nll'])
  assert first > 2.5
  assert metrics['nll'] < 0.1
  assert step.jitted._cache_size() == 1
