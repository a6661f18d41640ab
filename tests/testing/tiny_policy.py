"""A policy of a few hundred parameters, and pairs to train it on."""

import numpy as np

from rest_jax.data import loader
from rest_jax.models.config import T5Config

CONFIG = T5Config(
  vocab_size=16,
  emb_dim=8,
  num_heads=2,
  num_encoder_layers=1,
  num_decoder_layers=1,
  head_dim=4,
  mlp_dim=16,
  dropout_rate=0.1,
)
PACKING = loader.Packing(8, 8, 4)


def batches(folder) -> loader.TrainingBatches:
  """Of 24 pairs at random, which are written to a folder."""
  rng = np.random.default_rng(0)
  rows = [
    (
      [*rng.integers(2, 16, 3).tolist(), 1],
      [*rng.integers(2, 16, 2).tolist(), 1],
      1.0,
      True,
    )
    for _ in range(24)
  ]
  return loader.TrainingBatches(loader.write_rows(folder, rows), PACKING, 0)
