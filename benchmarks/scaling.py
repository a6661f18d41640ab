"""How the cost of Grow and of selections grows.

  python benchmarks/scaling.py --folder=/tmp/scaling --out=docs/results \\
      [--part=samples --part=sources --part=length --part=rows]

  samples  16 sources, 1 to 128 samples of each: time, the encoder's share of
           it, memory of keys and values
  sources  the Grow stage over 1,000 to 100,000 sources: peak memory, time
  length   samples of 32 to 512 tokens: time a token
  rows     stores of 10⁵ to 10⁷ rows: a selection, and `preview` of four steps

Each writes OUT/scaling_PART.csv and .svg. Peak memory is that of a process of
its own. Weights are random and samples do not end by themselves.
"""

import argparse
import csv
import gzip
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

ROUNDS = 3
_PART_ROWS = 100_000
_WORDS = ('ein', 'Hund', 'läuft', 'über', 'die', 'Wiese', 'im', 'Park')


def _policy():
  """A small policy with its parameters; no sample ends before its time."""
  from rest_jax.models.config import T5Config
  from rest_jax.policy import Policy
  from rest_jax.sharding import Layout

  config = T5Config(
    vocab_size=4096,
    emb_dim=256,
    num_heads=4,
    num_encoder_layers=3,
    num_decoder_layers=3,
    head_dim=64,
    mlp_dim=512,
    dropout_rate=0.0,
    eos_id=4095,
  )
  policy = Policy(config, Layout(data=1))
  return policy, policy.init(0)


def _decoding(num_sources: int, num_samples: int, length: int) -> dict:
  """Figures of samples drawn for sources of 64 tokens."""
  import jax

  from rest_jax import slots
  from rest_jax.decoding.sampling import Sampling
  from rest_jax.policy import sample_keys

  policy, params = _policy()
  rng = np.random.default_rng(0)
  sources = rng.integers(3, 4000, (num_sources, 64)).astype(np.int32)
  keys = sample_keys(0, 'grow', 1, np.arange(num_sources), num_samples)
  shape = slots.Shape(num_sources, 64, num_samples, num_samples, length)
  cache = slots.placed(policy, shape).cache
  places = np.arange(num_sources, dtype=np.int32)
  seconds = []
  for _ in range(ROUNDS + 1):
    empty = jax.block_until_ready(slots.empty(policy, shape))
    began = time.perf_counter()
    filled = slots.fill(policy, params, empty, places, sources, keys)
    jax.block_until_ready(filled)
    encoded = time.perf_counter()
    # Id 4095 ends a sample and is never drawn.
    drawn = slots.decode(
      policy, params, filled, num_sources, sampling=Sampling(), num_tokens=4000
    )
    jax.block_until_ready(drawn)
    seconds.append((encoded - began, time.perf_counter() - encoded))
  encode, decode = (
    statistics.median(s) for s in zip(*seconds[1:], strict=True)
  )
  tokens = num_sources * num_samples * length

  def mega(leaves) -> float:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) / 1e6

  return {
    'tokens_per_s': tokens / (encode + decode),
    'us_per_token': 1e6 * (encode + decode) / tokens,
    'encoder_share': encode / (encode + decode),
    'source_keys_values_mb': mega((*cache.cross_keys, *cache.cross_values)),
    'sample_keys_values_mb': mega((*cache.self_keys, *cache.self_values)),
  }


def samples(folder: pathlib.Path) -> list[dict]:
  """Samples a source, for 16 sources."""
  del folder
  counts = (1, 2, 4, 8, 16, 32, 64, 128)
  return [{'samples': n} | _decoding(16, n, 32) for n in counts]


def length(folder: pathlib.Path) -> list[dict]:
  """Tokens a sample, for 16 sources × 8 samples."""
  del folder
  return [{'length': t} | _decoding(16, 8, t) for t in (32, 64, 128, 256, 512)]


def sources(folder: pathlib.Path) -> list[dict]:
  """The Grow stage over more and more sources."""
  rows = []
  for count in (1_000, 10_000, 100_000):
    # One that is there would be skipped, and its start measured.
    shutil.rmtree(folder / f'run_{count}', ignore_errors=True)
    data = folder / f'text_{count}'
    data.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, lines in (('train', 1_000 + count), ('val', 300)):
      text = '\n'.join(
        ' '.join(rng.choice(_WORDS, 3)) + f' {number}'
        for number in range(lines)
      )
      for language in ('en', 'de'):
        with gzip.open(data / f'{name}.{language}.gz', 'wt') as file:
          file.write(text + '\n')
    command = [
      *(sys.executable, '-m', 'rest_jax.main', '--gin_file=multi30k.gin'),
      f'--gin.DATA_DIR={data}',
      f'--gin.MODEL_DIR={folder}/run_{count}',
      "--gin.TRAIN_SPLIT='train[:1000]'",
      "--gin.GROW_SPLIT='train[1000:]'",
      "--gin.TEST_SPLIT=''",
      *('--gin.VOCAB_SIZE=120', '--gin.t5.T5Config.vocab_size=128'),
      *('--gin.MAX_TARGET_LENGTH=24', '--gin.NUM_SAMPLES=1'),
      *('--gin.SUPERVISED_STEPS=2', '--gin.SUPERVISED_EVAL_EVERY=1'),
      '--gin.grow.Grow.samples_per_part=4096',
    ]
    subprocess.run([*command, '--run_mode=supervised'], check=True)
    began = time.perf_counter()
    _, peak = _watched([*command, '--run_mode=grow'])
    seconds = time.perf_counter() - began
    rows.append({'sources': count, 'peak_mb': peak, 'seconds': seconds})
  return rows


def _watched(command: list[str]) -> tuple[str, float]:
  """What a command prints, and its peak memory in MB.

  Linux counts for a process the memory of the one that starts it, too, so a
  small one does.
  """
  code = (
    'import json, resource, subprocess, sys\n'
    'done = subprocess.run(sys.argv[1:], check=True, stdout=-1, text=True)\n'
    'used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3\n'
    'print(json.dumps([done.stdout, used]))'
  )
  done = subprocess.run(
    [sys.executable, '-c', code, *command],
    check=True,
    stdout=subprocess.PIPE,
    text=True,
  )
  return tuple(json.loads(done.stdout))


def rows(folder: pathlib.Path) -> list[dict]:
  """Stores of more and more rows."""
  found = []
  for count in (100_000, 1_000_000, 10_000_000):
    store_folder = folder / f'store_{count}'
    if not store_folder.exists():
      _write_store(store_folder, count)
    line, peak = _watched(
      [sys.executable, __file__, f'--read={store_folder}', '--folder=.']
    )
    found.append({'rows': count} | json.loads(line) | {'peak_mb': peak})
  return found


def _write_store(folder: pathlib.Path, count: int) -> None:
  """Samples, ten a source, with rewards."""
  import pyarrow as pa

  from rest_jax import storage
  from rest_jax.data import store

  rng = np.random.default_rng(0)
  for number in range(count // _PART_ROWS):
    first = number * _PART_ROWS
    row = np.arange(first, first + _PART_ROWS)
    lengths = rng.integers(5, 30, _PART_ROWS)
    ends = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    tokens = rng.integers(3, 32000, lengths.sum()).astype(np.int32)
    log_probs = rng.random(lengths.sum(), np.float32)
    text = [
      f'Ein Satz mit der Nummer {n}' for n in rng.integers(0, 4, len(row))
    ]
    floats = pa.ListArray.from_arrays(ends, pa.array(log_probs))
    table = store.samples_table(
      {
        'source_id': row // 10,
        'sample_index': (row % 10).astype(np.int32),
        'grow_step': 1,
        'origin': 'policy',
        'source': [f'A sentence of number {n}' for n in row // 10],
        'target': text,
        'target_tokens': pa.ListArray.from_arrays(ends, pa.array(tokens)),
        'length': lengths.astype(np.int32),
        'finished': np.ones(len(row), bool),
        'log_prob': -rng.random(len(row), np.float32),
        'token_log_probs': floats,
        'token_sampling_log_probs': floats,
      }
    )
    path = folder / 'samples' / store.part_name(number)
    storage.write_atomic(path, store.samples_part(table))
    rewards = rng.random(len(row), np.float32)
    storage.write_atomic(
      folder / 'reward' / path.name, store.scores_part(path, rewards)
    )


def read(folder: pathlib.Path) -> None:
  """Prints what a selection and `preview` took over one store."""
  from rest_jax import preview, selection
  from rest_jax.data import scored

  steps = [(selection.Threshold(tau),) for tau in (0.7, 0.8, 0.9, 0.95)]

  def stream(needs: frozenset[str]):
    return scored.iter_rows(folder / 'samples', folder / 'reward', needs)

  def rate(work: Callable[[], int]) -> float:
    rates = []
    for _ in range(ROUNDS):
      began = time.perf_counter()
      count = work()
      rates.append(count / (time.perf_counter() - began))
    return statistics.median(rates)

  def select() -> int:
    count = 0
    for each in stream(selection.needs_of(steps[0])):
      selection.select(steps[0], each)
      count += len(each.reward)
    return count

  def previews() -> int:
    return preview.preview(stream(preview.NEEDS), steps)[0].samples

  figures = {
    'selection_rows_per_s': rate(select),
    'preview_rows_per_s': rate(previews),
  }
  print(json.dumps(figures))


PARTS = {
  'samples': samples,
  'sources': sources,
  'length': length,
  'rows': rows,
}


def write(path: pathlib.Path, found: list[dict]) -> None:
  """Writes a table and a plot of each of its columns."""
  from matplotlib import figure as figures

  x, *names = found[0]
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path.with_suffix('.csv'), 'w', newline='') as file:
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow((x, *names))
    for row in found:
      writer.writerow(f'{value:.4g}' for value in row.values())
  figure = figures.Figure(figsize=(3.2 * len(names), 2.6), layout='constrained')
  for axes, name in zip(
    np.atleast_1d(figure.subplots(1, len(names))), names, strict=True
  ):
    axes.plot([row[x] for row in found], [row[name] for row in found], 'o-')
    axes.set(xscale='log', xlabel=x, title=name)
    axes.set_ylim(0, 1.1 * max(row[name] for row in found))
    axes.grid(alpha=0.3)
  figure.savefig(path.with_suffix('.svg'), metadata={'Date': None})


def main() -> None:
  """Does what the module says."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  parser.add_argument('--out', type=pathlib.Path)
  parser.add_argument('--part', choices=PARTS, action='append')
  parser.add_argument('--read', type=pathlib.Path, help=argparse.SUPPRESS)
  given = parser.parse_args()
  if given.read:
    read(given.read)
    return
  if not given.out:
    parser.error('--out is needed')
  for part in given.part or PARTS:
    found = PARTS[part](given.folder)
    write(given.out / f'scaling_{part}', found)
    print(part, *found, sep='\n')


if __name__ == '__main__':
  main()
