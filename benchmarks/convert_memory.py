"""Peak memory of conversions of a made-up checkpoint of 2–3 GB.

  python benchmarks/convert_memory.py --work /scratch [--output FILE.md]

Makes a Hugging Face folder of random weights, array by array, converts it
HF → HF, HF → T5X → HF and HF → native → T5X with `--verify=tensors`, each in a
process of its own, and prints the most resident memory of each beside the
checkpoint's size and its largest array. What a conversion needs besides (the
interpreter, jax and the libraries) is measured on a tiny checkpoint. Above that
a conversion may take the largest array, and to our own format the shards of
this host too, which are the whole model: else the exit status is 1.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
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


_WATCH = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


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
  # What /usr/bin/time -v calls the maximum resident set size. A process begins
  # with that of the one that starts it, so a small one has to.
  done = subprocess.run(
    [sys.executable, '-c', _WATCH, *command],
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  peak = int(done.stdout.splitlines()[-1])
  return peak / 1e3 * 1.024, time.monotonic() - began


def conversions(folder: pathlib.Path, config: T5Config, tiny: dict[str, float]):
  """Yields a row for each conversion; `tiny`: conversion → MB, filled first."""
  drawn = Drawn(config)
  folder.mkdir(parents=True)
  huggingface_export.write(
    folder / 'hf', config, drawn, max_shard_bytes=1_000_000_000
  )
  kinds = {'hf': 'HF', 'checkpoint_0': 'T5X', 'native': 'native'}
  goals = {'huggingface': 'HF', 't5x': 'T5X', 'native': 'native'}
  for source, target, to in (
    ('hf', 'out', 'huggingface'),
    ('hf', 'checkpoint_0', 't5x'),
    ('checkpoint_0', 'out', 'huggingface'),
    ('checkpoint_0', 'checkpoint_1', 't5x'),
    ('hf', 'native', 'native'),
    ('native', 'out', 'huggingface'),
    ('native', 'checkpoint_1', 't5x'),
  ):
    name = f'{kinds[source]} → {goals[to]}'
    peak, seconds = convert(folder / source, folder / target, to)
    above = peak - tiny.setdefault(name, peak)
    allowed = drawn.largest + (drawn.megabytes if to == 'native' else 0)
    yield {
      'conversion': name,
      'checkpoint': drawn.megabytes,
      'largest array': drawn.largest,
      'peak': peak,
      'above the tiny one': above,
      'allowed': allowed,
      'seconds': seconds,
    }
  shutil.rmtree(folder)


def page(rows: list[dict]) -> str:
  """The rows as Markdown, with what they were measured on."""
  git = ['git', '-C', str(pathlib.Path(__file__).parents[1])]
  commit = subprocess.run(
    [*git, 'describe', '--always', '--dirty'], capture_output=True, text=True
  ).stdout.strip()
  table = [list(rows[0]), ['---'] * len(rows[0])]
  table += [
    [v if isinstance(v, str) else f'{v:,.0f}' for v in row.values()]
    for row in rows
  ]
  lines = ['| ' + ' | '.join(cells) + ' |' for cells in table]
  return f"""# Memory of conversions

`python benchmarks/convert_memory.py`, {datetime.date.today()}, commit {commit},
{os.cpu_count()} cores of {platform.machine()}, Python {sys.version.split()[0]}.
Each is `--run_mode=convert --verify=tensors` in a process of its own, of random
weights in float32; MB, most resident memory. The tiny checkpoint shows what the
interpreter and the libraries take. Above that a conversion may take the largest
array; to our own format, the shards of this host too, here the whole model.

{chr(10).join(lines)}
"""


def main() -> int:
  parser = argparse.ArgumentParser()
  parser.add_argument('--work', type=pathlib.Path, required=True)
  parser.add_argument('--output', type=pathlib.Path)
  options = parser.parse_args()
  rows: list[dict] = []
  tiny: dict[str, float] = {}
  for name, config in (('tiny', TINY), ('large', LARGE)):
    for row in conversions(options.work / name, config, tiny):
      print(json.dumps(row, ensure_ascii=False), flush=True)
      rows.append(row)
  text = page(rows)
  print(text)
  if options.output:
    options.output.write_text(text)
  return int(any(row['above the tiny one'] > row['allowed'] for row in rows))


if __name__ == '__main__':
  sys.exit(main())
