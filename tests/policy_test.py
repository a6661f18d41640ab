"""Relations that hold between scoring, decoding, layouts and keys.

One file, though a long one: these tests share what they compile.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest_jax import generation
from rest_jax import policy as policy_lib
from rest_jax.decoding.sampling import Sampling
from rest_jax.errors import ConfigurationError
from rest_jax.models.config import T5Config
from rest_jax.policy import Policy, sample_keys, score_tokens
from rest_jax.sharding import AxisRules, Layout
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
NUM_TOKENS = 29
LENGTH = 7
ONE = Policy(CONFIG, Layout(data=1))
SCORE = jax.jit(ONE.score)
LAYOUTS = {
  'data 8': Layout(),
  'data 2, model 4': Layout(data=2, model=4),
  'parameters over data 8': Layout(fsdp=True),
  'model 2, parameters over data too': Layout(
    model=2, rules=AxisRules(embed='data')
  ),
  'model 4, fsdp': Layout(model=4, fsdp=True),
}


@pytest.fixture(scope='module')
def initial():
  return jax.tree.map(np.asarray, ONE.init(0))


@pytest.fixture(scope='module')
def params(initial):
  # Larger than at initialisation, so that a wrong part shows.
  return jax.tree.map(lambda x: 1.3 * x, initial)


@pytest.fixture(scope='module')
def sources():
  rng = np.random.default_rng(0)
  tokens = rng.integers(2, NUM_TOKENS, (8, 6), dtype=np.int32)
  for row, length in enumerate([6, 3, 1, 4, 5, 6, 2, 4]):
    tokens[row, length - 1] = 1
    tokens[row, length:] = 0
  return tokens


def keys_of(num_sources=8, num_samples=4):
  return sample_keys(3, 'grow', 1, np.arange(num_sources), num_samples)


def draw(policy, params, sources, keys, sampling=None):
  return policy.sample(
    params,
    sources,
    keys,
    sampling=sampling or Sampling(0.8),
    max_decode_len=LENGTH,
    num_tokens=NUM_TOKENS,
  )


@pytest.fixture(scope='module')
def samples(params, sources):
  return draw(ONE, params, sources, keys_of())


def shifted(tokens):
  return np.concatenate([np.zeros_like(tokens[:, :1]), tokens[:, :-1]], 1)


def batch_of(sources, tokens):
  """A batch of every sample, its source repeated."""
  num_samples = tokens.shape[1]
  tokens = np.asarray(tokens).reshape(-1, tokens.shape[-1])
  return Batch(
    encoder_input_tokens=np.repeat(sources, num_samples, axis=0),
    decoder_input_tokens=shifted(tokens),
    decoder_target_tokens=tokens,
    decoder_loss_weights=(tokens > 0).astype(np.float32),
  )


def loss(policy, params, batch, key=None):
  scores = policy.score(params, batch, key)
  return -jnp.sum(scores.log_probs * batch.decoder_loss_weights)


def assert_gradients_close(got, expected):
  # Sums of another order: close relative to the array, not to each number.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=5e-4 * np.max(np.abs(b))
    ),
    got,
    expected,
  )


def test_log_probs_of_samples_are_the_scorers(params, sources, samples):
  batch = batch_of(sources, samples.tokens)
  scores = SCORE(params, batch)
  got = np.asarray(samples.token_log_probs).reshape(-1, LENGTH)
  expected = scores.log_probs * batch.decoder_loss_weights
  np.testing.assert_allclose(got, expected, atol=5e-5)
  assert np.any(got < -0.1)


def test_samples_are_what_they_say(samples):
  tokens, lengths = np.asarray(samples.tokens), np.asarray(samples.lengths)
  np.testing.assert_array_equal((tokens > 0).sum(-1), lengths)
  np.testing.assert_array_equal((tokens == 1).any(-1), samples.finished)
  assert tokens.max() < NUM_TOKENS
  assert np.all(lengths[~np.asarray(samples.finished)] == LENGTH)
  flat = tokens.reshape(-1, LENGTH)
  assert len(np.unique(flat, axis=0)) > 16


def test_samples_and_beams_end_by_the_models_eos(params, sources):
  policy = Policy(dataclasses.replace(CONFIG, eos_id=2), Layout(data=1))
  drawn = draw(policy, params, sources, keys_of())
  beams = policy.beam_search(
    params, sources, max_decode_len=LENGTH, num_tokens=NUM_TOKENS
  )
  tokens, found = np.asarray(drawn.tokens), np.asarray(beams.tokens)
  np.testing.assert_array_equal((tokens == 2).any(-1), drawn.finished)
  assert (tokens == 1).any()  # A token like any other.
  for ended in (tokens[(tokens == 2).any(-1)], found[(found == 2).any(-1)]):
    assert len(ended)
    after = np.cumsum(ended == 2, axis=-1) - (ended == 2) > 0
    np.testing.assert_array_equal(ended == 0, after)


def test_cached_decoding_is_teacher_forcing(params, sources, samples):
  """All logits, not those of the chosen tokens alone."""
  n = samples.tokens.shape[1]
  tokens = jnp.asarray(samples.tokens)

  @jax.jit
  def stepwise(params):
    cache = ONE.start_cache(
      params, sources, num_samples=n, max_decode_len=LENGTH
    )

    def step(cache, inputs):
      logits, cache = ONE.decode_step(params, inputs, cache)
      return cache, logits

    inputs = jnp.concatenate([0 * tokens[..., :1], tokens[..., :-1]], -1)
    _, logits = jax.lax.scan(step, cache, jnp.moveaxis(inputs, -1, 0))
    return jnp.moveaxis(logits, 0, 2)

  logits = stepwise(params)
  batch = batch_of(sources, samples.tokens)
  scores = SCORE(params, batch)
  stepped = score_tokens(
    logits.reshape(-1, LENGTH, CONFIG.vocab_size),
    jnp.asarray(batch.decoder_target_tokens),
  )
  # Beyond its end a sample is fed padding on both sides.
  for field in dataclasses.fields(scores):
    np.testing.assert_allclose(
      getattr(stepped, field.name), getattr(scores, field.name), atol=5e-5
    )


def test_samples_together_are_samples_one_by_one(params, sources, samples):
  keys = keys_of()
  for n in range(4):
    alone = draw(ONE, params, sources, keys[:, n : n + 1])
    np.testing.assert_array_equal(alone.tokens[:, 0], samples.tokens[:, n])
    np.testing.assert_allclose(
      alone.token_log_probs[:, 0], samples.token_log_probs[:, n], atol=5e-5
    )


def test_a_sample_depends_on_neither_batch_nor_place(params, sources, samples):
  order = np.array([5, 0, 7, 2, 1, 6, 4, 3])
  keys = sample_keys(3, 'grow', 1, order, 4)
  moved = draw(ONE, params, sources[order], keys)
  np.testing.assert_array_equal(moved.tokens, samples.tokens[order])
  padded = np.pad(sources[4:6], ((0, 0), (0, 3)))
  alone = draw(ONE, params, padded, keys_of()[4:6])
  np.testing.assert_array_equal(alone.tokens, samples.tokens[4:6])


def test_top_1_is_greedy(params, sources):
  top = draw(ONE, params, sources, keys_of(8, 1), Sampling(0.8, top_k=1))
  greedy = ONE.greedy(
    params, sources, max_decode_len=LENGTH, num_tokens=NUM_TOKENS
  )
  np.testing.assert_array_equal(top.tokens, greedy.tokens)
  assert greedy.tokens.shape == (8, 1, LENGTH)


def test_first_tokens_follow_the_exact_softmax(params, sources):
  """χ² of 10⁵ first tokens of one source."""
  batches, n = 25, 4000
  counts = np.zeros(CONFIG.vocab_size)
  for step in range(batches):
    keys = sample_keys(0, 'evaluate', step, np.array([4]), n)
    drawn = ONE.sample(
      params,
      sources[4:5],
      keys,
      sampling=Sampling(0.8),
      max_decode_len=1,
      num_tokens=NUM_TOKENS,
    )
    counts += np.bincount(
      np.asarray(drawn.tokens).ravel(), minlength=CONFIG.vocab_size
    )
  start = jnp.zeros((1, 1), jnp.int32)
  logits, _ = jax.jit(
    lambda params: ONE.decode_step(
      params,
      start,
      ONE.start_cache(params, sources[4:5], num_samples=1, max_decode_len=1),
    )
  )(params)
  weights = np.exp(np.asarray(logits, np.float64)[0, 0] / 0.8)
  weights[0] = weights[NUM_TOKENS:] = 0
  expected = batches * n * weights / weights.sum()
  possible = expected > 0
  assert counts[~possible].sum() == 0
  chi2 = np.sum((counts - expected)[possible] ** 2 / expected[possible])
  # 27 degrees of freedom: 55.5 is the 99.9 % quantile.
  assert possible.sum() == 28
  assert chi2 < 55.5


def test_dropout_acts_with_a_key_only(params, sources, samples):
  batch = batch_of(sources, samples.tokens)
  score = SCORE
  plain = score(params, batch).log_probs
  first = score(params, batch, jax.random.key(1)).log_probs
  again = score(params, batch, jax.random.key(1)).log_probs
  other = score(params, batch, jax.random.key(2)).log_probs
  np.testing.assert_array_equal(first, again)
  assert np.max(np.abs(first - plain)) > 0.01
  assert np.max(np.abs(first - other)) > 0.01


def test_the_future_has_no_gradient(params, sources):
  """Position i of the targets sees inputs up to i, of its own row only."""
  two = jnp.asarray(sources[:2])

  def log_prob(perturbation, params):
    def run(model):
      encoded = model.encode(two)
      x = model.token_embedder(jnp.full((2, 5), 3)) + perturbation
      causal = jnp.tril(jnp.ones((1, 1, 5, 5), bool))
      mask = (two > 0)[:, None, None, :]
      x = model.decoder(x, encoded, causal, mask)
      return model.logits(x)[0, 2].sum()

    return ONE._model.apply({'params': params}, method=run)

  gradient = jax.jit(jax.grad(log_prob))(
    jnp.zeros((2, 5, CONFIG.emb_dim)), params
  )
  reached = np.asarray(jnp.any(gradient != 0, axis=-1))
  np.testing.assert_array_equal(reached[0], [True] * 3 + [False] * 2)
  assert not reached[1].any()


@pytest.fixture(scope='module')
def reference(params, sources, samples):
  batch = batch_of(sources, samples.tokens)
  value, gradient = jax.jit(jax.value_and_grad(lambda p: loss(ONE, p, batch)))(
    params
  )
  beams = ONE.beam_search(
    params, sources, num_beams=3, max_decode_len=LENGTH, num_tokens=NUM_TOKENS
  )
  return batch, value, gradient, beams


def assert_generated(policy, params, sources, samples):
  """Checks samples of thrice as many sources as there are slots."""
  order = np.random.default_rng(0).permutation(24) % 8
  drawn = generation.generate(
    policy,
    params,
    [sources[index][sources[index] > 0].tolist() for index in order],
    order,
    seed=3,
    purpose='grow',
    step=1,
    num_samples=4,
    sampling=Sampling(0.8),
    batching=generation.Batching(LENGTH, rows=32, source_buckets=(6,)),
    num_tokens=NUM_TOKENS,
  )
  for field in ('tokens', 'lengths', 'finished'):
    expected = np.asarray(getattr(samples, field))[order]
    np.testing.assert_array_equal(getattr(drawn, field), expected)
  for field in ('token_log_probs', 'token_sampling_log_probs'):
    expected = np.asarray(getattr(samples, field))[order]
    np.testing.assert_allclose(getattr(drawn, field), expected, atol=5e-5)


@pytest.mark.parametrize(
  'layout',
  [
    layout
    if name in ('data 2, model 4', 'model 4, fsdp')
    else pytest.param(layout, marks=pytest.mark.slow)
    for name, layout in LAYOUTS.items()
  ],
  ids=LAYOUTS,
)
def test_sharded_equals_unsharded(layout, params, sources, samples, reference):
  policy = Policy(CONFIG, layout)
  placed = jax.device_put(params, policy.param_shardings())
  batch, value, gradient, beams = reference
  sharded = jax.jit(jax.value_and_grad(lambda p: loss(policy, p, batch)))
  got_value, got_gradient = sharded(placed)
  np.testing.assert_allclose(got_value, value, rtol=1e-5)
  assert_gradients_close(got_gradient, gradient)
  assert_generated(policy, placed, sources, samples)
  found = policy.beam_search(
    placed, sources, num_beams=3, max_decode_len=LENGTH, num_tokens=NUM_TOKENS
  )
  np.testing.assert_array_equal(found.tokens, beams.tokens)
  np.testing.assert_allclose(found.scores, beams.scores, rtol=1e-5)


@pytest.mark.parametrize(
  'trained, decoded',
  [
    (Layout(fsdp=True), Layout()),
    (Layout(fsdp=True), Layout(model=4)),
    (Layout(model=2, fsdp=True), Layout(model=2)),
    (Layout(model=4), Layout(data=1)),
  ],
)
def test_trained_in_one_layout_and_sampled_from_in_another(
  trained, decoded, params, sources, samples
):
  policy, decoder = Policy(CONFIG, trained), Policy(CONFIG, decoded)
  placed = policy.adopt(params)
  adopted = decoder.adopt(placed)
  jax.tree.map(
    lambda x, y, sharding: (
      np.testing.assert_array_equal(x, y),
      None if x.sharding == sharding else pytest.fail(),
    ),
    adopted,
    placed,
    decoder.param_shardings(),
  )
  drawn = draw(decoder, adopted, sources, keys_of())
  np.testing.assert_array_equal(drawn.tokens, samples.tokens)
  # What lies where it should is not moved.
  again = decoder.adopt(adopted)
  assert jax.tree.leaves(again)[0] is jax.tree.leaves(adopted)[0]


@pytest.mark.parametrize(
  'decoded',
  [
    Layout(fsdp=True),
    Layout(data=4, model=2),
    Layout(model=2, rules=AxisRules(embed='data')),
  ],
)
def test_parameters_that_processes_share_are_split_within_each(
  decoded, params, monkeypatch
):
  """On the way every process is given all that `model` leaves it."""
  placed = Policy(CONFIG, Layout(model=4, fsdp=True)).adopt(params)
  decoder = Policy(CONFIG, decoded, local=True)
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  adopted = decoder.adopt(placed)
  jax.tree.map(np.testing.assert_array_equal, adopted, placed)
  jax.tree.map(
    lambda x, sharding: None if x.sharding == sharding else pytest.fail(),
    adopted,
    decoder.param_shardings(),
  )


def test_parameters_are_born_where_they_live(initial):
  policy = Policy(CONFIG, LAYOUTS['model 2, parameters over data too'])
  made = policy.init(0)
  jax.tree.map(
    lambda x, sharding: None if x.sharding == sharding else pytest.fail(),
    made,
    policy.param_shardings(),
  )
  kernel = made['decoder']['layers_0']['mlp']['wi_0']['kernel']
  assert kernel.addressable_shards[0].data.shape == (16 // 4, 24 // 2)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
    made,
    initial,
  )
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(made))


def test_initial_values_are_t5s():
  wide = T5Config(
    vocab_size=512,
    emb_dim=64,
    num_heads=4,
    head_dim=16,
    mlp_dim=128,
    num_encoder_layers=1,
    num_decoder_layers=1,
  )
  made = Policy(wide, Layout(data=1)).init(0)
  layer = made['encoder']['layers_0']
  for value, deviation in (
    (made['token_embedder']['embedding'], 1.0),
    (layer['attention']['query']['kernel'], (64 * 16) ** -0.5),
    (layer['attention']['key']['kernel'], 64**-0.5),
    (layer['attention']['out']['kernel'], 64**-0.5),
    (layer['mlp']['wi_0']['kernel'], 64**-0.5),
    (layer['mlp']['wo']['kernel'], 128**-0.5),
    (made['decoder']['logits_dense']['kernel'], 64**-0.5),
    (made['encoder']['relpos_bias']['rel_embedding'], (2 / (4 + 32)) ** 0.5),
  ):
    np.testing.assert_allclose(np.std(value), deviation, rtol=0.15)
  np.testing.assert_array_equal(layer['pre_mlp_layer_norm']['scale'], 1.0)


def test_the_lowered_step_contains_its_constraints(params, reference):
  policy = Policy(CONFIG, LAYOUTS['data 2, model 4'])
  lowered = jax.jit(lambda p: loss(policy, p, reference[0])).lower(params)
  text = lowered.as_text()
  assert text.count('sharding_constraint') > 20
  assert '"data"' in text
  assert '"model"' in text


@pytest.mark.parametrize('remat', ['minimal', 'full'])
def test_rematerialisation_changes_no_number(remat, params, reference):
  config = dataclasses.replace(CONFIG, remat=remat)
  policy = Policy(config, Layout(data=1))
  batch, value, gradient, _ = reference
  got_value, got_gradient = jax.jit(
    jax.value_and_grad(lambda p: loss(policy, p, batch))
  )(params)
  np.testing.assert_allclose(got_value, value, rtol=1e-5)
  assert_gradients_close(got_gradient, gradient)


@pytest.mark.parametrize(
  'remat', ['none', pytest.param('full', marks=pytest.mark.slow)]
)
def test_a_loop_over_layers_changes_no_number(remat, params, reference):
  config = dataclasses.replace(
    CONFIG, num_encoder_layers=3, num_decoder_layers=2, relpos_per_layer=True
  )
  written_out = Policy(config, Layout(data=1))
  looped = Policy(
    dataclasses.replace(config, scan_layers=True, remat=remat), Layout(data=1)
  )
  params = written_out.init(0)
  assert jax.tree.structure(looped.init(0)) == jax.tree.structure(params)
  batch = reference[0]

  def value_and_gradient(policy):
    function = jax.jit(jax.value_and_grad(lambda p: loss(policy, p, batch)))
    return function(params)

  (value, gradient), (got, got_gradient) = map(
    value_and_gradient, (written_out, looped)
  )
  np.testing.assert_allclose(got, value, rtol=1e-5)
  assert_gradients_close(got_gradient, gradient)


@pytest.mark.parametrize('name', ['data 2, model 4', 'model 4, fsdp'])
def test_a_loop_over_layers_is_laid_out_as_its_layers(name, params, reference):
  config = dataclasses.replace(CONFIG, scan_layers=True)
  policy = Policy(config, LAYOUTS[name])
  batch, value, gradient, _ = reference
  placed = jax.device_put(params, policy.param_shardings())
  batch = jax.tree.map(policy.place, batch)
  got, got_gradient = jax.jit(
    jax.value_and_grad(lambda p: loss(policy, p, batch))
  )(placed)
  np.testing.assert_allclose(got, value, rtol=1e-5)
  assert_gradients_close(got_gradient, gradient)


def test_a_loop_drops_other_features_in_each_layer(params, reference):
  config = dataclasses.replace(CONFIG, scan_layers=True)
  policy = Policy(config, Layout(data=1))
  score = jax.jit(lambda p, key: policy.score(p, reference[0], key).log_probs)
  first, again, other = (
    score(params, jax.random.key(seed)) for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert not np.array_equal(first, other)


def test_what_is_compiled_does_not_grow_with_a_loops_layers(reference):
  def operations(layers, scan_layers):
    config = dataclasses.replace(
      CONFIG,
      num_encoder_layers=layers,
      num_decoder_layers=layers,
      scan_layers=scan_layers,
    )
    policy = Policy(config, Layout(data=1))
    jaxpr = jax.make_jaxpr(jax.grad(lambda p: loss(policy, p, reference[0])))(
      policy.abstract_params()
    )
    return str(jaxpr).count('dot_general')

  assert operations(12, scan_layers=True) == operations(2, scan_layers=True)
  assert operations(12, False) > 4 * operations(2, False)


def test_bfloat16_is_near_float32(params, reference):
  config = dataclasses.replace(CONFIG, dtype='bfloat16')
  policy = Policy(config, Layout(data=1))
  batch, value, _, _ = reference
  got = jax.jit(lambda p: loss(policy, p, batch))(params)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, value, rtol=0.05)


def test_gradients_of_scores_are_those_of_a_softmax():
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.float32)
  targets = jnp.asarray(rng.integers(0, 5, (2, 3)), jnp.int32)
  weights = jnp.asarray(rng.normal(size=(3, 2, 3)), jnp.float32)

  def ours(logits):
    scores = score_tokens(logits, targets)
    parts = (scores.log_probs, scores.log_normalizers, scores.mean_log_probs)
    return sum(jnp.sum(w * x) for w, x in zip(weights, parts, strict=True))

  def plain(logits):
    log_probs = jax.nn.log_softmax(logits)
    chosen = jnp.sum(log_probs * jax.nn.one_hot(targets, 5), axis=-1)
    normalizers = jnp.log(jnp.sum(jnp.exp(logits), axis=-1))
    return jnp.sum(
      weights[0] * chosen
      + weights[1] * normalizers
      + weights[2] * jnp.mean(log_probs, axis=-1)
    )

  np.testing.assert_allclose(
    jax.jit(jax.grad(ours))(logits), jax.jit(jax.grad(plain))(logits), atol=1e-6
  )


def test_score_tokens_by_hand():
  logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [1.0, 1.0, 2.0]]]))
  scores = score_tokens(logits, jnp.array([[1, 2]]))
  np.testing.assert_allclose(
    scores.log_probs, [[np.log(0.25), np.log(0.5)]], rtol=1e-6
  )
  np.testing.assert_allclose(
    scores.log_normalizers, [[0.0, np.log(4)]], atol=1e-6
  )
  np.testing.assert_allclose(
    scores.mean_log_probs,
    [[np.log(0.5**5) / 3, np.log(0.25 * 0.25 * 0.5) / 3]],
    rtol=1e-6,
  )


def test_each_shape_and_setting_compiles_once(params, sources):
  config = dataclasses.replace(CONFIG, num_decoder_layers=1)
  before = policy_lib._sample._cache_size()
  decoder = {k: v for k, v in params['decoder'].items() if k != 'layers_1'}
  small = {**params, 'decoder': decoder}
  for seed in range(3):
    # An equal policy, made anew, is the same to the compiler.
    policy = Policy(dataclasses.replace(config), Layout(data=1))
    keys = sample_keys(seed, 'grow', 1, np.arange(8), 2)
    draw(policy, small, sources, keys, Sampling(0.8))
  assert policy_lib._sample._cache_size() == before + 1
  draw(policy, small, sources[:, :4], keys, Sampling(0.8))
  assert policy_lib._sample._cache_size() == before + 2


@pytest.mark.parametrize(
  ('layout', 'message'),
  [
    (Layout(model=8), 'AxisRules.heads splits an axis of 4 over 8'),
    (Layout(data=8, rules=AxisRules(mlp='data', kv='data')), 'AxisRules.kv'),
  ],
)
def test_a_network_that_does_not_divide(layout, message):
  with pytest.raises(ConfigurationError, match=message):
    _ = Policy(CONFIG, layout).mesh


def test_requests_that_cannot_be_met(params, sources):
  with pytest.raises(ConfigurationError, match='6 sources does not divide'):
    draw(Policy(CONFIG), params, sources[:6], keys_of(6))
  with pytest.raises(ConfigurationError, match='tokenizer has 33 tokens'):
    ONE.greedy(params, sources, max_decode_len=4, num_tokens=33)
  with pytest.raises(ConfigurationError, match='num_beams = 0'):
    ONE.beam_search(params, sources, num_beams=0, max_decode_len=4)
