"""When the alarm rang in the runs on faulty rewards, and when it should have.

A step is a policy beside the one that it started from, on the report split. It
did harm where the truth, of samples or greedily, fell by `HARM` points.
"""

import dataclasses
import itertools
from collections import defaultdict
from typing import Any

import markdown_tables
from matplotlib import figure as figures

from rest_jax import alarm

Rows = list[dict[str, str]]
Figures = dict[str, Any]  # Of one policy, by column.

HARM = 0.5  # Points out of 100; what is less is noise.
# Of `alarm.Alarm`, beside its default.
MIN_FALLS = (0.0, 0.2)
_HIGHER = {'bleu': True, 'chrf': True}
_CURVES = {
  'reward': 'reward_mean',
  'truth': 'truth',
  'greedy truth': 'greedy',
  'BLEU': 'bleu',
}


@dataclasses.dataclass(frozen=True)
class Step:
  """One policy beside the one that it started from.

  Attributes:
    before: figures of that one.
    after: its own.
  """

  before: Figures
  after: Figures

  @property
  def fall(self) -> float:
    """Points of the truth that were lost, of samples or greedily."""
    return max(
      self.before[name] - self.after[name] for name in ('truth', 'greedy')
    )

  @property
  def harms(self) -> bool:
    """Whether that is more than noise."""
    return self.fall >= HARM

  def rings(self, min_fall: float) -> bool:
    """Whether the alarm suspects it."""
    watch = alarm.Alarm(tuple(_HIGHER), min_fall=min_fall)
    return watch.suspicion(self.before, self.after, _HIGHER) is not None


def tables(seeds: dict[int, Rows]) -> tuple[list[str], figures.Figure]:
  """Lines of two tables, and a picture.

  The first has a line a reward and seed: what reward and truth gained over BC
  with the last policy, the steps that did harm, and those where the alarm rang
  for each of `MIN_FALLS`, and how late. The second counts them over all runs.

  Args:
    seeds: rows of `family.py --table=alarm`, by seed.
  """
  runs = {
    (run, seed): figures_of(steps)
    for seed, rows in sorted(seeds.items())
    for run, steps in by_run(rows).items()
  }
  rang = [f'rang, min_fall {least:g}' for least in MIN_FALLS]
  heads = ('reward', 'seed', *(f'{name} gained' for name in _CURVES))
  every, lines = [], []
  for (run, seed), rows in runs.items():
    steps = [Step(*pair) for pair in itertools.pairwise(rows)]
    every += steps
    cells = [run, str(seed)]
    cells += [f'{curve[-1]:+.1f}' for curve in curves(rows).values()]
    cells.append(_places(step.harms for step in steps))
    cells += [
      _places(step.rings(least) for step in steps) for least in MIN_FALLS
    ]
    cells += [delay(steps, least) for least in MIN_FALLS]
    lines.append(cells)
  late = [f'delay, {least:g}' for least in MIN_FALLS]
  told = markdown_tables.table([*heads, 'harm', *rang, *late], lines)
  return [*told, '', *counts(every)], picture(runs)


def delay(steps: list[Step], min_fall: float) -> str:
  """Steps from the first that did harm to the first where the alarm rang.

  Below 0 where it rang before; 'missed' where it never did; – without harm.
  """
  harms = [number for number, step in enumerate(steps) if step.harms]
  rings = [number for number, step in enumerate(steps) if step.rings(min_fall)]
  if not harms:
    return '–'
  return f'{rings[0] - harms[0]:d}' if rings else 'missed'


def counts(steps: list[Step]) -> list[str]:
  """How often the alarm rang where harm was done, for each of `MIN_FALLS`."""
  kinds = {
    'harm': [step for step in steps if step.harms],
    'a smaller fall': [
      step for step in steps if not step.harms and step.fall > 0
    ],
    'none fell': [step for step in steps if step.fall <= 0],
  }
  heads = (head for kind in kinds for head in (kind, '… rang'))
  lines = []
  for least in MIN_FALLS:
    cells = [f'{least:g}']
    for some in kinds.values():
      cells += [str(len(some)), str(sum(step.rings(least) for step in some))]
    lines.append(cells)
  return markdown_tables.table(['min_fall', *heads], lines)


def by_run(rows: Rows) -> dict[str, Rows]:
  """The rows of each run, BC first."""
  runs = defaultdict(list)
  for row in rows:
    if row['split'] == 'report' and row['run'] != 'base':
      runs[row['run']].append(row)
  return runs


def figures_of(rows: Rows) -> list[Figures]:
  """What the alarm reads of each policy, and what is true of it."""
  return [
    {
      'policy': row['policy'],
      'split': row['split'],
      'reward_mean': float(row['reward_mean']),
      'bleu': float(row['bleu']),
      'chrf': float(row['chrf']),
      'truth': _truth(row, 'mean'),
      'greedy': _truth(row, 'greedy'),
    }
    for row in rows
  ]


def curves(rows: list[Figures]) -> dict[str, list[float]]:
  """What each figure gained over BC, policy by policy."""
  return {
    name: [row[column] - rows[0][column] for row in rows]
    for name, column in _CURVES.items()
  }


def picture(
  runs: dict[tuple[str, int], list[Figures]],
) -> figures.Figure:
  """A plot a reward, a line a figure and seed."""
  figure = figures.Figure((8, 4.5), layout='constrained')
  axes = figure.subplots(2, 3, sharex=True, sharey=True).ravel()
  names = list(dict.fromkeys(run for run, _ in runs))
  for name, plot in zip(names, axes, strict=True):
    plot.set_title(name, fontsize=9)
    plot.grid(alpha=0.3)
    plot.set_xticks(range(5), ['BC', 'G1', 'G2', 'G3', 'G4'])
  labelled = set()
  for (run, _), rows in runs.items():
    for number, (name, curve) in enumerate(curves(rows).items()):
      label = None if name in labelled else name
      labelled.add(name)
      plot = axes[names.index(run)]
      plot.plot(curve, color=f'C{number}', alpha=0.7, label=label)
  axes[0].set_ylabel('gained over BC')
  axes[0].legend(fontsize=7)
  return figure


def _truth(row: dict[str, str], kind: str) -> float:
  """Of 100; without a checker beside it the reward is the truth."""
  checked = row.get(f'numeral_value_{kind}')
  return 100 * float(checked) if checked else float(row[f'reward_{kind}'])


def _places(flags) -> str:
  """The Grow steps whose flag is set."""
  found = [f'G{number}' for number, flag in enumerate(flags, 1) if flag]
  return ' '.join(found) or '–'
