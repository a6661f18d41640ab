import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest_jax import divergence, generation, sharding, types
from rest_jax.decoding.sampling import Sampling
from rest_jax.models.config import T5Config
from rest_jax.policy import Policy

CONFIG = T5Config(
  vocab_size=8,
  emb_dim=8,
  num_heads=1,
  num_encoder_layers=1,
  num_decoder_layers=1,
  head_dim=8,
  mlp_dim=8,
)
NUM_TOKENS = 5  # So 1 (EOS), 2, 3 and 4 are drawn, never 0, 5, 6 and 7.
LENGTH = 2
BATCHING = generation.Batching(
  max_decode_len=LENGTH, rows=64, source_buckets=(4,)
)


def test_kl_and_entropy_of_two_coins():
  p, q = [0.5, 0.5], [0.25, 0.75]
  kl, entropy = divergence.next_token(
    jnp.log(jnp.array([p, q])),
    jnp.log(jnp.array([q, q])),
    jnp.array([True, True]),
  )
  by_hand = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
  np.testing.assert_allclose(kl, [by_hand, 0.0], atol=1e-6)
  of_q = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
  np.testing.assert_allclose(entropy, [math.log(2), of_q], rtol=1e-6)


def test_what_is_never_drawn_does_not_count():
  logits = jnp.log(jnp.array([0.2, 0.2, 0.6]))
  other = jnp.log(jnp.array([0.1, 0.3, 0.6]))
  allowed = jnp.array([True, True, False])
  kl, entropy = divergence.next_token(logits, other, allowed)
  by_hand = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
  np.testing.assert_allclose([kl, entropy], [by_hand, math.log(2)], rtol=1e-5)


@pytest.fixture(scope='module')
def policy():
  return Policy(CONFIG, sharding.Layout(data=1, model=1))


@pytest.fixture(scope='module')
def two(policy):
  """Parameters of a policy and of the one it came from, far apart."""
  return jax.tree.map(lambda x: 3.0 * x, policy.init(1)), policy.init(2)


def probabilities(policy, params, source):
  """The probability of each sequence of at most two tokens, by hand."""
  drawn = range(1, NUM_TOKENS)
  out = {}
  for first, second in itertools.product(drawn, drawn):
    targets = np.array([[first, second]], np.int32)
    batch = types.Batch(
      encoder_input_tokens=np.array([source], np.int32),
      decoder_input_tokens=np.array([[0, first]], np.int32),
      decoder_target_tokens=targets,
      decoder_loss_weights=np.ones((1, 2), np.float32),
    )
    logits = np.asarray(policy.logits(params, batch), np.float64)[0]
    p = np.exp(logits[:, 1:NUM_TOKENS])
    p /= p.sum(axis=1, keepdims=True)
    if first == 1:
      out[(1,)] = p[0, 0]
    else:
      out[first, second] = p[0, first - 1] * p[1, second - 1]
  assert sum(out.values()) == pytest.approx(1)
  return out


@pytest.mark.slow
def test_its_mean_over_samples_is_the_kl_of_whole_sequences(policy, two):
  params, behaviour = two
  source = [3, 4, 1, 0]
  p = probabilities(policy, params, source)
  q = probabilities(policy, behaviour, source)
  kl = sum(p[y] * math.log(p[y] / q[y]) for y in p)
  entropy = -sum(x * math.log(x) for x in p.values())
  generated = generation.generate(
    policy,
    params,
    [[3, 4, 1]],
    np.array([7]),
    seed=0,
    purpose='evaluate',
    step=0,
    num_samples=4096,
    sampling=Sampling(temperature=1.0),
    batching=BATCHING,
    num_tokens=NUM_TOKENS,
  )
  found = divergence.measure(
    policy,
    params,
    behaviour,
    [[3, 4, 1]],
    generated,
    batching=BATCHING,
    num_tokens=NUM_TOKENS,
  )
  assert found.kl.shape == found.entropy.shape == (1, 4096)
  assert (found.kl >= 0).all()
  for values, exact in ((found.kl, kl), (found.entropy, entropy)):
    error = values.std() / 64  # A standard error of 4,096 samples.
    assert abs(values.mean() - exact) < 4 * error + 1e-5
    assert exact > 0.01
  # A sample that ended at once has but one token to differ in.
  ended = generated.lengths[0] == 1
  assert len(set(np.round(found.kl[0, ended], 5))) == 1


def test_a_policy_is_no_way_from_itself(policy, two):
  generated = generation.Generated(
    tokens=np.array([[[2, 1]], [[3, 4]], [[1, 0]]], np.int32),
    token_log_probs=np.zeros((3, 1, 2), np.float32),
    token_sampling_log_probs=np.zeros((3, 1, 2), np.float32),
    lengths=np.array([[2], [2], [1]], np.int32),
    finished=np.array([[True], [False], [True]]),
  )
  found = divergence.measure(
    policy,
    two[0],
    two[0],
    [[3, 1], [4, 1], [2, 2, 1]],
    generated,
    batching=BATCHING,
    num_tokens=NUM_TOKENS,
  )
  np.testing.assert_array_equal(found.kl, 0.0)
  assert (found.entropy > 0).all()
  assert (found.entropy <= 2 * math.log(NUM_TOKENS - 1)).all()
