"""Tables and pictures of the runs that `family.py` made, from their rows.

  python benchmarks/family_tables.py --rows=docs/results/family \\
      --out=docs/results/family

reads ROWS/TASK_TABLE_SEED.csv and writes OUT/TASK.md, a table for each TABLE,
and OUT/TASK_TABLE.svg. Each line is the last policy of a run on the report
split: the mean over seeds, and in brackets the least and the greatest where
there are several.
"""

import argparse
import csv
import itertools
import pathlib
import re
import statistics
from collections import defaultdict

import family_alarm
import markdown_tables
import matplotlib
from matplotlib import figure as figures

from rest_jax import significance

_FIGURES = {
  'reward_mean': 'reward_mean',
  'reward_greedy': 'reward_greedy',
  'bleu': 'BLEU',
  'chrf': 'chrF',
  'kl_bc': 'KL to BC',
  'entropy': 'entropy',
  'kept_samples': 'kept',
  'samples_drawn': 'drawn',
  'train_tokens': 'trained tokens',
  'reward_calls': 'reward calls',
}
# Further metrics, of the tasks that have them.
_FURTHER = {'muse_mean': 'muse', 'muse_greedy': 'muse greedy'}
_SHOWN_COLUMNS = ('reward_mean', 'reward_greedy', 'bleu')
_WHOLE = (
  'kept_samples', 'samples_drawn', 'train_tokens', 'reward_calls',
)  # fmt: skip
_TITLES = {
  'table_1': 'Grow, Improve and online RL (the form of the paper’s Table 1)',
  'losses': 'Losses at one threshold (Fig. 5)',
  'losses_by_step': 'Losses over Improve steps (Figs. 13, 14)',
  'thresholds': 'Thresholds, original data, decay (Figs. 15, 16)',
  'permuted': 'Rewards permuted within a source',
  'relatives': 'Relatives at equal samples',
  'best_of_n': 'Best-of-N (Fig. 6)',
  'alarm': 'The alarm on faulty rewards',
}
# The run that all others of a table branch from, and its policies that stand in
# tables of something else.
_BASE, _SHOWN = 'base', ('BC', 'BC+', 'G1 I4', 'G1 I4 random')
_POLICY = re.compile(r'G\d+ I\d+|RLOO|PPO')
# What a run's BC must have as `base` has it, if both branch from one BC.
_SAME = ('reward_mean', 'reward_greedy', 'bleu', 'chrf', 'entropy')
_ELSEWHERE = '†'

Rows = list[dict[str, str]]


def read(folder: pathlib.Path) -> dict[tuple[str, str], dict[int, Rows]]:
  """Rows by (task, table) and seed."""
  found = defaultdict(dict)
  for path in sorted(folder.glob('*_*_[0-9]*.csv')):
    name, _, seed = path.stem.rpartition('_')
    task, _, table = name.partition('_')
    with open(path, newline='') as file:
      found[task, table][int(seed)] = list(csv.DictReader(file))
  return found


def lines_of(
  seeds: dict[int, Rows], every: bool
) -> dict[str, list[dict[str, str]]]:
  """Each line's name → its rows, one a seed.

  Args:
    seeds: rows by seed.
    every: whether every policy of `base` is a line.
  """
  lines = defaultdict(list)
  for rows in seeds.values():
    last = {}
    bc = {row['run']: row for row in rows if row['policy'] == 'BC'}
    for row in rows:
      if row['split'] != 'report':
        continue
      if row['run'] == _BASE:
        if every or row['policy'] in _SHOWN:
          last[row['policy']] = row
      elif row['policy'] != 'BC':
        # Controls of a run stand beside its policies.
        control = not _POLICY.fullmatch(row['policy'])
        name = f'{row["run"]} {row["policy"]}' if control else row['run']
        last[name] = row | {
          'elsewhere': any(
            bc[row['run']].get(key) != bc[_BASE].get(key) for key in _SAME
          )
        }
    for name, row in last.items():
      lines[name].append(row)
  return lines


def cell(rows: Rows, name: str) -> str:
  """The mean of a figure over seeds, with its range."""
  values = [float(row[name]) for row in rows if row.get(name)]
  if not values:
    return '–'
  if name in _WHOLE:
    form = '{:,.0f}'
  elif name.startswith(('reward', 'bleu', 'chrf', 'muse')):
    form = '{:.1f}'
  else:
    form = '{:.2f}'
  text = form.format(statistics.mean(values))
  if len(values) > 1 and name not in _WHOLE:
    text += f' ({form.format(min(values))}–{form.format(max(values))})'
  return text


def table(seeds: dict[int, Rows], every: bool) -> list[str]:
  """A table in Markdown."""
  found = lines_of(seeds, every)
  known = {key for rows in found.values() for row in rows for key in row}
  columns = _FIGURES | {k: v for k, v in _FURTHER.items() if k in known}
  elsewhere = {
    name: any(row.get('elsewhere') for row in rows)
    for name, rows in found.items()
  }
  lines = [
    [
      name + f' {_ELSEWHERE}' * elsewhere[name],
      *(rows[-1]['policy'], str(len(rows))),
      *(cell(rows, figure) for figure in columns),
    ]
    for name, rows in found.items()
  ]
  head = ['run', 'last policy', 'seeds', *columns.values()]
  out = markdown_tables.table(head, lines, texts=2)
  if any(elsewhere.values()):
    out += [
      '',
      f'{_ELSEWHERE} of another BC and store than `base`, equal but for'
      ' rounding: samples differ. Not to be held against single rows.',
    ]
  return out


def picture(seeds: dict[int, Rows], every: bool) -> figures.Figure:
  """Rewards and BLEU, a dot a seed."""
  lines = lines_of(seeds, every)
  names = list(lines)[::-1]
  figure = figures.Figure((8, 1 + 0.26 * len(names)), layout='constrained')
  for axes, column in zip(
    figure.subplots(1, 3, sharey=True),
    _SHOWN_COLUMNS,
    strict=True,
  ):
    for y, name in enumerate(names):
      values = [float(row[column]) for row in lines[name] if row[column]]
      axes.plot(values, [y] * len(values), 'o', color='C0', alpha=0.5)
      if values:
        axes.plot(statistics.mean(values), y, 'D', color='C1', markersize=4)
    axes.set_yticks(range(len(names)), names)
    axes.set_title(_FIGURES[column], fontsize=9)
    axes.grid(alpha=0.3)
  return figure


def by_step(seeds: dict[int, Rows]) -> tuple[list[str], figures.Figure]:
  """Each run after every Improve step; BC's is that of `base`."""
  curves = defaultdict(lambda: defaultdict(list))
  for row in itertools.chain.from_iterable(seeds.values()):
    if row['split'] == 'report' and _POLICY.fullmatch(row['policy']):
      name = 'bc' if row['run'] == _BASE else row['run']
      curves[name][row['policy']].append(row)
  steps = sorted({policy for curve in curves.values() for policy in curve})
  lines = (
    [name, *(cell(curve[step], 'reward_mean') for step in steps)]
    for name, curve in curves.items()
  )
  out = markdown_tables.table(['reward_mean', *steps], lines)
  known = {
    key
    for curve in curves.values()
    for rows in curve.values()
    for row in rows
    for key, value in row.items()
    if value
  }
  shown = {name: _FIGURES[name] for name in _SHOWN_COLUMNS}
  if 'muse_greedy' in known:
    shown['muse_greedy'] = _FURTHER['muse_greedy']
  figure = figures.Figure((3 * len(shown), 3.6), layout='constrained')
  places = figure.subplots(1, len(shown))
  for axes, column in zip(places, shown, strict=True):
    for place, (name, curve) in enumerate(curves.items()):
      means = [
        statistics.mean(float(row[column]) for row in curve[step])
        for step in steps
      ]
      axes.plot(steps, means, 'o-', ms=3, color=f'C{place}', label=name)
    axes.set_title(shown[column], fontsize=9)
    axes.grid(alpha=0.3)
  figure.legend(*axes.get_legend_handles_labels(), loc='outside right')
  return out, figure


def agreement(seeds: dict[int, Rows]) -> list[str]:
  """How value models order samples by reward; no lines where there are none."""
  columns = ('value_rows', 'value_held_out')
  kinds = ('kendall', 'kendall_untied', 'spearman')
  names = [f'{column}_{kind}' for column in columns for kind in kinds]
  known = {
    run: [row for row in rows if row.get('value_rows_kendall')]
    for run, rows in lines_of(seeds, every=False).items()
  }
  lines = [
    [run, str(len(rows)), *(cell(rows, name) for name in names)]
    for run, rows in known.items()
    if rows
  ]
  if not lines:
    return []
  heads = [
    f'{kind} {where}'
    for where in ('trained on', 'held out')
    for kind in ('τ_b', 'τ of untied', 'ρ')
  ]
  return [
    '',
    *markdown_tables.table(['value model of', 'seeds', *heads], lines),
  ]


def best_of_n(seeds: dict[int, Rows]) -> tuple[list[str], figures.Figure]:
  """The reward of the best of N, and what other metrics say of it."""
  rows = [
    row for rows in seeds.values() for row in rows if row['run'] == 'best_of_n'
  ]
  chosen = defaultdict(lambda: defaultdict(list))
  for row in rows:
    by = 'MBR' if row['chosen_by'] == 'mbr' else f'N = {row["n"]}'
    chosen[row['policy']][by].append(row)
  # Of each policy the rows are in the order of N, and MBR is the last.
  columns = list(next(iter(chosen.values())))
  own = {'run', 'policy', 'split', 'n', 'chosen_by', 'n_of_bc', 'reward'}
  metrics = [
    name
    for name in rows[0]
    if name not in own and all(row[name] for row in rows)
  ]
  out = []
  for name in ('reward', *metrics):
    lines = [
      [policy, *(cell(by[column], name) for column in columns)]
      for policy, by in chosen.items()
    ]
    head = [f'{name} of the best', *columns]
    if name == 'reward':
      head.append('N of BC, each seed')
      for line, (policy, by) in zip(lines, chosen.items(), strict=True):
        of_bc = [row['n_of_bc'] or '> half' for row in by['N = 1']]
        line.append('–' if policy == 'BC' else ', '.join(of_bc))
    out += [*markdown_tables.table(head, lines), '']
  figure = figures.Figure((5, 3.2), layout='constrained')
  axes = figure.subplots()
  for policy, by in chosen.items():
    means = {
      int(found[0]['n']): statistics.mean(float(row['reward']) for row in found)
      for column, found in by.items()
      if column != 'MBR'
    }
    axes.plot(list(means), list(means.values()), 'o-', ms=3, label=policy)
  axes.set_xscale('log', base=2)
  axes.set_xticks(list(means), list(map(str, means)))
  axes.set(xlabel='N', ylabel='reward of the best')
  axes.legend(fontsize=7)
  axes.grid(alpha=0.3)
  return out[:-1], figure


def gains(seeds: dict[int, Rows]) -> list[str]:
  """What the best samples gain over BC trained on, permuted or not.

  Student's 95 % interval of the seeds' differences.
  """
  lines = lines_of(seeds, every=False)
  base = lines['best BC+']
  out = []
  for name in ('best', 'best G1 I1 permuted'):
    cells = [name, str(len(base))]
    for column in _SHOWN_COLUMNS:
      found = [
        float(one[column]) - float(other[column])
        for one, other in zip(lines[name], base, strict=True)
      ]
      low, high = significance.t_interval(found)
      mean = statistics.mean(found)
      cells.append(f'{mean:+.1f} ({low:+.1f} to {high:+.1f})')
    out.append(cells)
  names = (_FIGURES[column] for column in _SHOWN_COLUMNS)
  return markdown_tables.table(['gain over BC+', 'seeds', *names], out)


def main() -> None:
  """Does what the module says."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--rows', type=pathlib.Path, required=True)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  given = parser.parse_args()
  pages = defaultdict(list)
  found = read(given.rows)
  # The same every time it is drawn.
  matplotlib.rcParams.update({'svg.hashsalt': 'x', 'svg.fonttype': 'none'})
  for (task, name), seeds in sorted(
    found.items(), key=lambda item: list(_TITLES).index(item[0][1])
  ):
    if name == 'best_of_n':
      text, figure = best_of_n(seeds)
    elif name == 'losses_by_step':
      text, figure = by_step(seeds)
      text = [*table(seeds, every=False), '', *text, *agreement(seeds)]
    elif name == 'alarm':
      text, figure = family_alarm.tables(seeds)
    else:
      every = name == 'table_1'
      text = [*table(seeds, every), *agreement(seeds)]
      figure = picture(seeds, every)
      if name == 'permuted' and len(seeds) > 1:
        text += ['', *gains(seeds)]
    file = f'{task}_{name}.svg'
    figure.savefig(given.out / file, metadata={'Date': None, 'Creator': None})
    pages[task] += [
      *(f'## {_TITLES[name]}', ''),
      f'`{name}`, seeds {", ".join(map(str, sorted(seeds)))}.',
      *('', *text, '', f'![{_TITLES[name]}]({file})', ''),
    ]
  for task, text in pages.items():
    head = [f'# {task}', '', 'Made by benchmarks/family_tables.py.', '']
    (given.out / f'{task}.md').write_text('\n'.join([*head, *text]))


if __name__ == '__main__':
  main()
