"""Processor time to compile an update, by layers, written out and as one loop.

  python benchmarks/compile_time.py [--layers 2 6 24]

Processor time of lowering and compiling `planning.programs.Update`, which is
the real train step (Adafactor, dropout), for this machine's first device; of
the update's gradient alone too, since the optimizer's work on each parameter
is compiled written out in either case. Nothing is run.
"""

import argparse
import dataclasses
import time

import jax

from rest_jax.data.packing import Packing
from rest_jax.losses import BehavioralCloning
from rest_jax.models.config import T5Config
from rest_jax.planning import programs
from rest_jax.sharding import Layout
from rest_jax.training.early_stopping import Training
from rest_jax.training.optimizer import Optimizer

CONFIG = T5Config(vocab_size=1024, emb_dim=128, mlp_dim=256, head_dim=32)


def seconds(lower, config: T5Config) -> float:
  jax.clear_caches()
  began = time.process_time()
  lower(config, Layout(data=1)).compile()
  return time.process_time() - began


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--layers', type=int, nargs='+', default=[2, 24])
  args = parser.parse_args()
  update = programs.Update(
    Training(
      loss=BehavioralCloning(),
      optimizer=Optimizer(),
      packing=Packing(64, 64, 8),
    ),
    rows=8,
    num_microbatches=1,
  )
  print('| layers a side | loop | gradient, s | update, s |\n|---|---|---|---|')
  for layers in args.layers:
    for scan_layers in (False, True):
      config = dataclasses.replace(
        CONFIG,
        num_encoder_layers=layers,
        num_decoder_layers=layers,
        scan_layers=scan_layers,
      )
      gradient = seconds(update.lower_gradient, config)
      whole = seconds(update.lower, config)
      print(
        f'| {layers} | {"yes" if scan_layers else "no"} | {gradient:.1f} |'
        f' {whole:.1f} |',
        flush=True,
      )


if __name__ == '__main__':
  main()
