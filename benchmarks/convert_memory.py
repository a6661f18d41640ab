"""Peak memory of conversions of a made-up checkpoint of 2–3 GB.

  python benchmarks/convert_memory.py --work /scratch [--output FILE.md]

Makes a Hugging Face folder of random weights, array by array, converts it
HF → HF, HF → T5X → HF and HF → native → T5X with `--verify=tensors`, each in a
process of its own, and prints the most resident memory of each beside the
checkpoint's size and its largest array. What a conversion needs besides (the
interpreter, jax and the libraries) is measured on a tiny checkpoint.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
from flax import traverse_util

from rest_jax.checkpoint import huggingface_export
from rest_jax.models.config import T5Config
from rest_jax.policy import Policy
from rest_jax.sharding import Layout

TINY = T5Config(vocab_size=128, emb_dim=16, mlp_dim=32, head_dim=8)
LARGE = T5Config(
  vocab_size=250112,
  emb_dim=512,
  num_heads=6,
  num_encoder_layers=32,
  num_decoder_layers=32,
  mlp_dim=2560,
)


class Drawn:
  """Random arrays of a model, each made when it is read."""

  def __init__(self, config: T5Config):
    abstract = Policy(config, Layout(data=1)).abstract_params()
    leaves = traverse_util.flatten_dict(abstract, sep='/')
    self.where = 'drawn'
    self.shapes = {name: leaf.shape for name, leaf in leaves.items()}

  @property
  def megabytes(self) -> float:
    return sum(4e-6 * np.prod(shape) for shape in self.shapes.values())

  @property
  def largest(self) -> float:
    return max(4e-6 * np.prod(shape) for shape in self.shapes.values())

  def read(self, name, index=()):
    seed = list(self.shapes).index(name)
    rng = np.random.default_rng(seed)
    return rng.standard_normal(self.shapes[name], np.float32)[index]


def convert(source: pathlib.Path, target: pathlib.Path, to: str):
  """Runs the command; returns its peak memory in MB and its seconds."""
  shutil.rmtree(target, ignore_errors=True)
  command = [
    sys.executable,
    '-m',
    'rest_jax.main',
    '--run_mode=convert',
    f'--input={source}',
    f'--output={target}',
    f'--format={to}',
    '--verify=tensors',
  ]
  began = time.monotonic()
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
  # What /usr/bin/time -v calls the maximum resident set size.
  _, status, usage = os.wait4(process.pid, 0)
  assert status == 0, command
  return usage.ru_maxrss / 1e3 * 1.024, time.monotonic() - began


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--work', type=pathlib.Path, required=True)
  parser.add_argument('--output', type=pathlib.Path)
  options = parser.parse_args()
  work = options.work
  rows = []
  for name, config in (('tiny', TINY), ('large', LARGE)):
    drawn, folder = Drawn(config), work / name
    folder.mkdir(parents=True)
    huggingface_export.write(
      folder / 'hf', config, drawn, max_shard_bytes=1_000_000_000
    )
    for source, target, to in (
      ('hf', 'out', 'huggingface'),
      ('hf', 'checkpoint_0', 't5x'),
      ('checkpoint_0', 'out', 'huggingface'),
      ('hf', 'native', 'native'),
      ('native', 'checkpoint_1', 't5x'),
    ):
      kinds = {'hf': 'HF', 'checkpoint_0': 'T5X', 'native': 'native'}
      goal = {'huggingface': 'HF', 't5x': 'T5X', 'native': 'native'}[to]
      peak, seconds = convert(folder / source, folder / target, to)
      row = {
        'conversion': f'{kinds[source]} → {goal}',
        'checkpoint': f'{drawn.megabytes:,.0f} MB',
        'largest array': f'{drawn.largest:,.0f} MB',
        'peak': f'{peak:,.0f} MB',
        'seconds': f'{seconds:.0f}',
      }
      print(json.dumps(row, ensure_ascii=False), flush=True)
      rows.append(row)
    shutil.rmtree(folder)
  lines = [list(rows[0]), ['---'] * len(rows[0]), *(r.values() for r in rows)]
  table = '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
  print(table)
  if options.output:
    options.output.write_text(table + '\n')


if __name__ == '__main__':
  main()
