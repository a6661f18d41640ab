"""Grow, beam search and training beside what a user would pick instead.

  python benchmarks/speed/compare.py --folder=/tmp/speed --rounds=7 \\
      --huggingface=PYTHON --ctranslate2=PYTHON --t5x=PYTHON > table.md
  python benchmarks/speed/compare.py --folder=/tmp/natural --run=RUN \\
      --work=natural --work=improve …

Each PYTHON is the interpreter of an environment that has that library; a side
whose interpreter is not given is left out. All sides have the same weights
(T5-small's shape, at random), the same sources and as many threads as cores.
With `--run` the weights are those of that run's supervised policy, the sources
of `natural` the first of its Grow sources, and the pairs of `improve`, all in
one update, the first that it was trained on.
Every side is a process that has warmed up; they take turns, so that what else
the machine does falls on all of them. Figures are medians over the rounds.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

from etils import epath

from rest_jax.data import store

_HERE = pathlib.Path(__file__).parent
_WORKS = {
  'grow': 'tokens',
  'beam': 'tokens',
  'train': 'target tokens',
  'natural': 'tokens',
  'improve': 'target tokens',
}
_OF_RUNS = ('natural', 'improve')
_TRAINING = ('train', 'improve')
_NATURAL_SOURCES, _NATURAL_PAIRS = 512, 256
_MFLOP_A_TOKEN = 77.0  # Of a decoded token, matrix products alone.


class Side:
  """A process of one library."""

  def __init__(self, name: str, python: str, *arguments: str):
    self.name = name
    script = {
      'rest_jax': 'rest_jax',
      'floor': 'rest_jax',
      'int8': 'ctranslate2',
    }
    self._process = subprocess.Popen(
      [python, str(_HERE / f'side_{script.get(name, name)}.py'), *arguments],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self.about = self._answer()['about']
    self.rates: list[float] = []
    self.peak_mb = 0.0

  def turn(self) -> None:
    """Works once."""
    self._process.stdin.write('\n')
    self._process.stdin.flush()
    answer = self._answer()
    self.rates.append(answer['tokens'] / answer['seconds'])
    self.peak_mb = answer['peak_mb']

  def _answer(self) -> dict:
    line = self._process.stdout.readline()
    if not line:
      raise SystemExit(f'the side of {self.name} ended; see what it said above')
    return json.loads(line)

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()


def make(
  folder: pathlib.Path, pythons: dict[str, str], run: pathlib.Path | None
) -> None:
  """Writes the checkpoints of all sides, as far as they are not there.

  Args:
    folder: where to.
    pythons: the interpreters of the sides.
    run: whose policy it is; None: one with weights at random.
  """

  def side(name: str, work: str) -> None:
    script = str(_HERE / f'side_{name}.py')
    command = [pythons[name], script, str(folder), work]
    subprocess.run(command, check=True, stdout=sys.stderr)

  def convert(source: pathlib.Path, to: pathlib.Path, form: str) -> None:
    flags = (f'--input={source}', f'--output={to}', f'--format={form}')
    subprocess.run(
      [
        *(sys.executable, '-m', 'rest_jax.main', '--run_mode=convert'),
        *(*flags, '--verify=tensors'),
      ],
      check=True,
      stdout=sys.stderr,
    )

  made = folder / 'huggingface'
  if not made.exists():
    folder.mkdir(parents=True, exist_ok=True)
    if run is None:
      side('huggingface', 'make')
    else:
      convert(run / 'supervised', made, 'huggingface')
      side('huggingface', 'words')
      write_text(run, folder)
  if 'ctranslate2' in pythons and not (folder / 'ctranslate2').exists():
    side('ctranslate2', 'make')
  if 't5x' in pythons and not (folder / 't5x').exists():
    convert(made, folder / 't5x' / 'checkpoint_0', 't5x')


def write_text(run: pathlib.Path, folder: pathlib.Path) -> None:
  """Writes the first sources that a run grows from, and pairs it trains on."""
  rows = store.read_rows(epath.Path(run / 'data/grow'), 0, _NATURAL_SOURCES)
  tokens = rows['source_tokens'].to_pylist()
  (folder / 'sources.json').write_text(json.dumps(tokens))
  rows = store.read_rows(epath.Path(run / 'data/train'), 0, _NATURAL_PAIRS)
  sides = (rows[f'{side}_tokens'].to_pylist() for side in ('source', 'target'))
  pairs = list(zip(*sides, strict=True))
  (folder / 'pairs.json').write_text(json.dumps(pairs))


def measure(work: str, folder: str, pythons: dict[str, str], rounds: int):
  """The sides of one work, after their turns."""
  wanted = [('rest_jax', sys.executable, (folder, work))]
  for name in ('huggingface', 't5x', 'ctranslate2'):
    if name in pythons and not (name == 'ctranslate2' and work in _TRAINING):
      wanted.append((name, pythons[name], (folder, work)))
  if 'ctranslate2' in pythons and work not in _TRAINING:
    wanted.append(('int8', pythons['ctranslate2'], (folder, work, 'int8')))
  if work == 'grow':
    wanted.append(('floor', sys.executable, (folder, 'floor')))
  sides = [Side(name, python, *given) for name, python, given in wanted]
  for _ in range(rounds):
    for side in sides:
      side.turn()
  for side in sides:
    side.close()
  return sides


def table(work: str, sides: list[Side]) -> list[str]:
  """A table of one work, in Markdown."""
  ours = statistics.median(sides[0].rates)
  lines = [
    f'## {work}',
    '',
    f'| side | {_WORKS[work]} a second | range | rest_jax is … times as fast |'
    ' peak MB |',
    '| --- | ---: | ---: | ---: | ---: |',
  ]
  for side in sides:
    rates = side.rates
    if side.name == 'floor':
      rates = [rate / (1e6 * _MFLOP_A_TOKEN) for rate in rates]
    median = statistics.median(rates)
    lines.append(
      f'| {side.name} ({side.about}) | {median:,.0f} |'
      f' {min(rates):,.0f}–{max(rates):,.0f} | {ours / median:.2f} |'
      f' {side.peak_mb:,.0f} |'
    )
  return lines


def main() -> None:
  """Does what the module says."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--folder', required=True, type=pathlib.Path)
  parser.add_argument('--run', type=pathlib.Path)
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--work', choices=tuple(_WORKS), action='append')
  for name in ('huggingface', 'ctranslate2', 't5x'):
    parser.add_argument(f'--{name}')
  given = parser.parse_args()
  pythons = {
    name: getattr(given, name)
    for name in ('huggingface', 'ctranslate2', 't5x')
    if getattr(given, name)
  }
  of_run = given.run is not None
  works = given.work or [n for n in _WORKS if (n in _OF_RUNS) == of_run]
  if any((name in _OF_RUNS) != of_run for name in works):
    parser.error(f'--run goes with {" and ".join(_OF_RUNS)}, and they with it')
  make(given.folder, pythons, given.run)
  cores = len(os.sched_getaffinity(0))
  print(f'{cores} cores, {platform.machine()}, {given.rounds} rounds.')
  for work in works:
    sides = measure(work, str(given.folder), pythons, given.rounds)
    print('\n' + '\n'.join(table(work, sides)), flush=True)


if __name__ == '__main__':
  main()
