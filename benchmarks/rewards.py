"""Scores a second of the rewards on this machine.

  python benchmarks/rewards.py
  python benchmarks/rewards.py --gin_file=my_reward.gin

The second line measures the reward of a run as well (a command, MetricX …), on
the same texts. Learned rewards are of the size of multi30k_learned.gin's, with
parameters of chance. The texts are made up: random words of a Zipf
distribution, 12 on average, and candidates that differ from their references in
a fifth of the words; eight candidates a source, as Grow makes them. Every
figure is the median of several runs, in one process, after one run to warm up.
"""

import argparse
import dataclasses
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np

from rest_jax.data import tokenizer
from rest_jax.models.config import T5Config
from rest_jax.rewards import (
  base,
  cache,
  combined,
  command,
  learned,
  lexical,
  penalties,
  scoring,
)
from rest_jax.rewards.regressor import Buckets, Regressor
from rest_jax.sharding import Layout

_SAMPLES = 8
_PLAIN = """
import json, sys
for line in sys.stdin:
  row = json.loads(line)
  print(len(row['candidate']) / 1000)
"""
_BATCHED = """
import json, sys
rows = []
for line in sys.stdin:
  rows.append(json.loads(line))
  if not rows[-1]['left']:
    print('\\n'.join(f"{r['id']}\\t{len(r['candidate']) / 1000}" for r in rows))
    rows = []
"""

Rows = tuple[list[str], list[str], list[str]]


@dataclasses.dataclass(frozen=True)
class Speed:
  """Scores a second: the median of some runs, and their range."""

  median: float
  low: float
  high: float


def texts(num_rows: int, seed: int = 1) -> Rows:
  """Sources, candidates and references of made-up words."""
  rng = np.random.default_rng(seed)
  letters = np.array(list('abcdefghijklmnopqrstuvwxyz'))
  vocabulary = [
    ''.join(rng.choice(letters, size)) for size in rng.integers(1, 10, 5000)
  ]

  def words(size: int) -> list[str]:
    ranks = np.minimum(rng.zipf(1.3, size), len(vocabulary)) - 1
    return [vocabulary[rank] for rank in ranks]

  sources, candidates, references = [], [], []
  while len(sources) < num_rows:
    source, reference = (words(int(rng.integers(4, 21))) for _ in range(2))
    for _ in range(_SAMPLES):
      candidate = [
        words(1)[0] if rng.random() < 0.2 else word for word in reference
      ]
      sources.append(' '.join(source))
      candidates.append(' '.join(candidate))
      references.append(' '.join(reference))
  return sources[:num_rows], candidates[:num_rows], references[:num_rows]


def speed(score: Callable[[], object], num_rows: int, runs: int) -> Speed:
  """Measures a function that scores `num_rows` rows."""
  score()
  rates = []
  for _ in range(runs):
    began = time.perf_counter()
    score()
    rates.append(num_rows / (time.perf_counter() - began))
  return Speed(statistics.median(rates), min(rates), max(rates))


def configured(gin_file: str) -> base.RewardModel:
  """The reward of a run file."""
  from absl import flags

  from rest_jax import main  # Knows gin.

  flags.FLAGS(['rewards', f'--gin_file={gin_file}'])
  main._parse_gin([gin_file], [], [])
  return main._build().annotate.reward


def rewards(folder: pathlib.Path) -> dict[str, base.RewardModel]:
  """What is measured, by name."""
  out: dict[str, base.RewardModel] = {}
  for workers in (1, 0):
    said = '1 process' if workers else f'{os.cpu_count()} workers'
    for model in (
      lexical.SentenceChrf(num_workers=workers),
      lexical.SentenceChrf(word_order=2, num_workers=workers),
      lexical.SentenceBleu('en', num_workers=workers),
      lexical.SentenceTer('en', num_workers=workers),
    ):
      out[f'{model.info.name}, {said}'] = model
  for name, program in (('a line a row', _PLAIN), ('in batches', _BATCHED)):
    path = folder / f'{name.replace(" ", "_")}.py'
    path.write_text(program)
    argv = (sys.executable, '-S', str(path))
    out[f'command, {name}'] = command.Command(argv, 'length', '1')
  parts = (penalties.Length(), penalties.Repetition())
  out['product of two penalties'] = combined.Product(parts)
  return out


def learned_reward(
  folder: pathlib.Path, rows: Rows, num_members: int
) -> learned.Ensemble:
  """Untrained networks of the size that multi30k_learned.gin trains."""
  model = T5Config(
    vocab_size=4096,
    emb_dim=128,
    num_heads=4,
    num_encoder_layers=3,
    num_decoder_layers=1,
    head_dim=32,
    mlp_dim=256,
  )
  regressor = Regressor(model, Layout(data=1))
  return learned.Ensemble(
    regressor,
    tuple(regressor.init(seed) for seed in range(num_members)),
    tokenizer.train_sentencepiece(
      [*rows[0], *rows[1]], folder / tokenizer.MODEL_FILE, 800
    ),
    learned.PairFormat(128, 128),
    Buckets((40, 56, 80, 130, 260)),
    bounded=True,
    fingerprint='',
    remembered=0,
  )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--gin_file', help='run file whose reward to measure too')
  parser.add_argument('--rows', type=int, default=8192)
  parser.add_argument('--runs', type=int, default=5)
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
  """Prints a Markdown table."""
  args = parse(argv)
  rows = texts(args.rows)
  print(
    f'{args.rows:,} rows, median of {args.runs} runs;'
    f' {os.cpu_count()} cores, Python {platform.python_version()}\n'
  )
  print('| reward | scores a second | slowest – fastest run |')
  print('|---|---:|---:|')

  def show(name: str, score: Callable[[], object]) -> None:
    found = speed(score, args.rows, args.runs)
    figures = [f'{x:,.0f}' for x in (found.median, found.low, found.high)]
    print('| {} | {} | {} – {} |'.format(name, *figures), flush=True)

  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    for label, model in rewards(folder).items():
      show(label, lambda model=model: model.score(*rows))
    known = cache.ScoreCache(folder / cache.FOLDER)
    chrf = lexical.SentenceChrf()
    show(
      'chrf, all known (cache)',
      lambda: scoring.raw_scores(chrf, *rows, cache=known),
    )
    known.close()
    for members in (1, 3):
      networks = learned_reward(folder, rows, members)
      show(
        f'learned, {members} of 3 + 1 layers of 128',
        lambda networks=networks: networks.rewards(*rows[:2]),
      )
  if args.gin_file:
    model = configured(args.gin_file)
    show(model.info.name, lambda: model.score(*rows))


if __name__ == '__main__':
  main()
