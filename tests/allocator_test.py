"""Freed memory stays in the process, whichever thread freed it."""

import subprocess
import sys

import pytest

# Prints the page faults of an update of a policy as large as Multi30k's, whose
# temporaries of up to 50 MB XLA's own threads allocate and free: of the one
# that has the fewest, since the heap may still grow in others.
_PROGRAM = """
import resource
from rest_jax import allocator
assert allocator.keep_freed_memory()

import jax
import numpy as np
from rest_jax import losses, types
from rest_jax.models.config import T5Config
from rest_jax.policy import Policy
from rest_jax.sharding import Layout
from rest_jax.training import optimizer, state, step

policy = Policy(
  T5Config(
    vocab_size=4096, emb_dim=128, num_heads=4, num_encoder_layers=2,
    num_decoder_layers=2, head_dim=32, mlp_dim=256,
  ),
  Layout(data=1),
)
adafactor = optimizer.Optimizer()
update = step.make_train_step(policy, adafactor, losses.BehavioralCloning())
tokens = np.random.default_rng(0).integers(3, 4000, (48, 64)).astype(np.int32)
batch = types.Batch(
  encoder_input_tokens=tokens,
  decoder_input_tokens=tokens,
  decoder_target_tokens=tokens,
  decoder_loss_weights=np.ones(tokens.shape, np.float32),
)
now = state.init_state(policy, adafactor, policy.init(0))
faults = []
for _ in range(12):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  now, metrics = update(now, batch)
  jax.block_until_ready(metrics)
  faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""


@pytest.mark.slow
def test_temporaries_are_mapped_once():
  done = subprocess.run(
    [sys.executable, '-c', _PROGRAM], capture_output=True, text=True, check=True
  )
  # An update has 50 MB of logits alone, 12,500 pages.
  assert int(done.stdout) < 1000
