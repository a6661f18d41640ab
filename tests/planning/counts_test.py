import jax
import pytest

from rest_jax.models.config import T5Config
from rest_jax.planning import counts
from rest_jax.policy import Policy
from rest_jax.sharding import Layout

LARGE = T5Config(
  vocab_size=32128,
  emb_dim=1024,
  num_heads=16,
  num_encoder_layers=24,
  num_decoder_layers=24,
  head_dim=64,
  mlp_dim=2816,
  dtype='bfloat16',
)


def test_the_floor_of_a_decode_step_of_t5_1_1_large():
  """32 sources × 8 samples over 4 chips: 51.7 Gflop and 1.69 GB a chip."""
  step = counts.decode_step(LARGE, 8, 8, 128, 128, output_bytes=2)
  # 14,942,208 weights a layer but for those of cross keys and values.
  layers = 24 * (4 * 1024**2 + 2 * 1024**2 + 3 * 1024 * 2816)
  assert layers == 24 * 14_942_208
  matrices = 2 * 64 * (layers + 1024 * 32128)
  attention = 24 * 4 * 64 * 1024 * 256
  assert step.flops == matrices + attention
  assert step.flops == pytest.approx(51.7e9, rel=1e-3)
  assert step.self_bytes == 24 * 2 * 64 * 128 * 1024 * 2
  assert step.cross_bytes == 24 * 2 * 8 * 128 * 1024 * 2
  read = step.weight_bytes + step.self_bytes + step.cross_bytes
  assert read == pytest.approx(1.69e9, rel=2e-3)
  split = counts.decode_step(LARGE, 8, 8, 128, 128, model=4)
  whole = counts.decode_step(LARGE, 8, 8, 128, 128)
  assert split.flops == whole.flops / 4 and split.bytes == whole.bytes / 4


@pytest.mark.parametrize(
  'config',
  [
    T5Config(vocab_size=64, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=24),
    T5Config(
      vocab_size=64,
      emb_dim=16,
      num_heads=2,
      head_dim=4,
      mlp_dim=24,
      mlp_activations=('relu',),
      logits_via_embedding=True,
      relpos_per_layer=True,
      num_encoder_layers=1,
      num_decoder_layers=3,
    ),
  ],
)
def test_parameters_are_those_of_the_network(config):
  params = Policy(config, Layout(data=1)).abstract_params()
  there = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert counts.num_params(config) == there


def test_public_sizes():
  assert counts.num_params(LARGE) == 783_150_080  # T5 1.1 large
  xxl = T5Config(
    vocab_size=250112,
    emb_dim=4096,
    num_heads=64,
    num_encoder_layers=24,
    num_decoder_layers=24,
    head_dim=64,
    mlp_dim=10240,
  )
  assert counts.num_params(xxl) == pytest.approx(12.9e9, rel=0.01)  # mT5 XXL


def test_an_update_of_one_layer_by_hand():
  config = T5Config(
    vocab_size=10,
    emb_dim=4,
    num_heads=2,
    head_dim=3,
    mlp_dim=5,
    num_encoder_layers=1,
    num_decoder_layers=1,
  )
  rows, s, t = 7, 11, 13
  a, mlp = 6, 3 * 4 * 5
  encoder = 2 * rows * s * (4 * 4 * a + mlp) + 2 * (2 * rows * s * s * a)
  decoder = (
    2 * rows * t * (4 * 4 * a + 2 * 4 * a + mlp)  # self, cross q and o, mlp
    + 2 * rows * s * (2 * 4 * a)  # cross k and v
    + 2 * (2 * rows * t * t * a)
    + 2 * (2 * rows * t * s * a)
  )
  output = 2 * rows * t * 4 * 10
  assert counts.train_flops(config, rows, s, t) == 3 * (
    encoder + decoder + output
  )
