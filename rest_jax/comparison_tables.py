"""A comparison for people and for programs: tables, HTML and CSV."""

import csv
import dataclasses
import html
import io
from collections.abc import Iterable, Mapping, Sequence

import rich.box
import rich.table

from rest_jax import significance
from rest_jax.compared_systems import System
from rest_jax.comparison import COSTS, FIGURES, Budget, Contrast, placed

_NONE = '–'
_STYLE = """
body { font: 15px/1.45 sans-serif; max-width: 75em; margin: 2em auto;
  padding: 0 1em; color: #222; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2em .7em; text-align: right; vertical-align: top; }
th { border-bottom: 1px solid #888; }
.text { text-align: left; }
p.note { color: #555; max-width: 60em; }
svg { max-width: 100%; height: auto; }
"""


@dataclasses.dataclass(frozen=True)
class Table:
  """A table as a terminal and a page show it.

  Attributes:
    title: what it shows.
    header: names of columns.
    rows: cells.
    texts: how many columns from the left are text; the others are figures.
    note: how to read it.
  """

  title: str
  header: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]
  texts: int = 1
  note: str = ''

  def for_terminal(self) -> rich.table.Table:
    """By rich."""
    table = rich.table.Table(
      title=self.title,
      box=rich.box.SIMPLE,
      title_justify='left',
      caption=self.note or None,
      caption_justify='left',
    )
    for number, name in enumerate(self.header):
      left = number < self.texts
      table.add_column(name, justify='left' if left else 'right')
    for row in self.rows:
      table.add_row(*row)
    return table

  def for_page(self) -> str:
    """HTML."""
    lines = [f'<h2>{html.escape(self.title)}</h2>', '<table>']
    for cell, row in [('th', self.header), *(('td', row) for row in self.rows)]:
      cells = (
        f'<{cell}{" class=text" if i < self.texts else ""}>{html.escape(value)}'
        f'</{cell}>'
        for i, value in enumerate(row)
      )
      lines.append(f'<tr>{"".join(cells)}</tr>')
    lines.append('</table>')
    if self.note:
      lines.append(f'<p class=note>{html.escape(self.note)}</p>')
    return '\n'.join(lines)


def tables(
  systems: Sequence[System],
  contrasts: Sequence[Contrast],
  budgets: Mapping[str, Sequence[Budget]],
  split: str,
) -> list[Table]:
  """All tables of a comparison.

  Args:
    systems: the policies.
    contrasts: what `comparison.contrasts` gives.
    budgets: cost → its frontiers.
    split: the data that they were evaluated on.
  """
  out = [_policies(systems, split)]
  planned = [contrast for contrast in contrasts if contrast.planned]
  rest = [contrast for contrast in contrasts if not contrast.planned]
  note = (
    '95 % and p: by paired bootstrap and randomisation over sources, seeds'
    ' averaged, all two-sided; over seeds: Student’s interval. Seeds in'
    ' brackets: runs of other seeds, held against each other in their order.'
  )
  if planned:
    title = 'Contrasts named beforehand, uncorrected'
    out.append(_contrasts(title, planned, False, '' if rest else note))
  if rest:
    title = 'Every two other policies, p corrected by Holm (one family a column'
    title += ' and measure)'
    out.append(_contrasts(title, rest, True, note))
  out += [_frontier(systems, cost, found) for cost, found in budgets.items()]
  return out


def _policies(systems: Sequence[System], split: str) -> Table:
  figures = list(FIGURES | COSTS)
  rows = []
  for system in systems:
    values = system.values('reward_mean')
    interval = significance.t_interval(values)
    row = [system.name, str(len(system.runs)), _figure(system.mean(figures[0]))]
    row.append(_range(interval))
    row += [_figure(system.mean(name)) for name in figures[1:]]
    row.append(_trials(system))
    rows.append(tuple(row))
  notes = ['Means over seeds; 95 %: Student’s interval over seeds.']
  shared = [f'{s.name} is {", ".join(s.also)} too' for s in systems if s.also]
  if shared:
    notes.append(f'One policy, shared by runs: {"; ".join(shared)}.')
  seen = {
    evaluated.row.get('reward_trained_on', '')
    for system in systems
    for evaluated in system.runs.values()
  } - {''}
  if seen:
    notes.append(
      f'The reward was trained on this split ({"; ".join(sorted(seen))}), so'
      ' that its figures flatter.'
    )
  trials = {system.name: _trials(system) for system in systems}
  if len(set(trials.values())) > 1:
    notes.append(
      'Not all had as many tuning trials: what was tuned more is flattered'
      ' (TUNING_TRIALS tells a run how many it had).'
    )
  machines = {
    evaluated.machine or 'one that is not told'
    for system in systems
    for evaluated in system.runs.values()
  }
  if len(machines) > 1:
    notes.append(
      'Device-seconds are of different machines'
      f' ({"; ".join(sorted(machines))}) and do not compare.'
    )
  names = [*FIGURES.values(), *COSTS.values()]
  return Table(
    f'Policies on the {split} data, rewards × 100',
    ('policy', 'seeds', names[0], '95 %', *names[1:], 'trials'),
    tuple(rows),
    note=' '.join(notes),
  )


def _trials(system: System) -> str:
  """Tuning trials of a policy's runs; one number where they are equal."""
  found = {
    evaluated.row.get('tuning_trials') or '–'
    for evaluated in system.runs.values()
  }
  return ', '.join(sorted(found))


def _contrasts(
  title: str, found: Sequence[Contrast], corrected: bool, note: str
) -> Table:
  rows = []
  for c in found:
    p = (c.p_bootstrap, c.p_randomisation)
    if corrected:
      p = (c.holm_bootstrap, c.holm_randomisation)
    rows.append(
      (
        f'{c.second} − {c.first}',
        FIGURES[c.measure],
        str(c.seeds) if c.paired else f'({c.seeds})',
        f'{c.difference:+.2f}',
        _range(c.interval, '+.2f'),
        _range(c.over_seeds, '+.2f'),
        *(_p(value) for value in p),
      )
    )
  header = (
      'policies', 'measure', 'seeds', 'difference', '95 %', 'over seeds',
      'p bootstrap', 'p randomisation',
  )  # fmt: skip
  return Table(title, header, tuple(rows), texts=2, note=note)


def _frontier(
  systems: Sequence[System], cost: str, budgets: Sequence[Budget]
) -> Table:
  known = {system.name for system in placed(systems, cost)}
  left = [system.name for system in systems if system.name not in known]
  note = 'Not beaten in reward, BLEU and KL together by any that costs no more.'
  if left:
    note += f' Without a figure or cost: {", ".join(left)}.'
  return Table(
    f'Frontiers of reward, BLEU and KL at equal {COSTS[cost]}',
    (f'{COSTS[cost]} at most', 'policies'),
    tuple((_figure(b.most), ', '.join(b.best)) for b in budgets),
    texts=2,
    note=note,
  )


def page(found: Sequence[Table], pictures: Iterable[tuple[str, str]]) -> str:
  """The whole as a page of HTML.

  Args:
    found: tables.
    pictures: SVG with a title each.
  """
  parts = [
    '<!doctype html>',
    '<html lang="en">',
    '<meta charset="utf-8">',
    '<title>Comparison of runs</title>',
    f'<style>{_STYLE}</style>',
    '<h1>Comparison of runs</h1>',
    found[0].for_page(),
  ]
  for title, svg in pictures:
    parts += [f'<h2>{html.escape(title)}</h2>', svg]
  parts += [table.for_page() for table in found[1:]]
  return '\n'.join(parts) + '\n</html>\n'


def policies_csv(systems: Sequence[System]) -> str:
  """A row a policy and run: its row of results.csv with what it is called."""
  columns = dict.fromkeys(
    name
    for system in systems
    for evaluated in system.runs.values()
    for name in evaluated.row
  )
  rows = [
    [system.name, system.group, system.paths[seed]]
    + [evaluated.row.get(name, '') for name in columns]
    for system in systems
    for seed, evaluated in system.runs.items()
  ]
  return _csv(['name', 'group', 'run', *columns], rows)


_INTERVALS = ('interval', 'over_seeds')


def contrasts_csv(found: Sequence[Contrast]) -> str:
  """A row a contrast and measure."""
  header: list[str] = []
  for field in dataclasses.fields(Contrast):
    ends = ('_low', '_high') if field.name in _INTERVALS else ('',)
    header += [field.name + end for end in ends]
  rows = []
  for contrast in found:
    values: list[object] = []
    for field in dataclasses.fields(contrast):
      value = getattr(contrast, field.name)
      if field.name in _INTERVALS:
        values += value or (None, None)
      else:
        values.append(value)
    rows.append([f'{v:.6f}' if isinstance(v, float) else v for v in values])
  return _csv(header, rows)


def frontiers_csv(budgets: Mapping[str, Sequence[Budget]]) -> str:
  """A row a budget and policy of its frontier."""
  rows = [
    [budget.cost, f'{budget.most:.4f}', name]
    for found in budgets.values()
    for budget in found
    for name in budget.best
  ]
  return _csv(['cost', 'most', 'name'], rows)


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(header)
  writer.writerows(rows)
  return text.getvalue()


def _figure(value: float | None) -> str:
  if value is None:
    return _NONE
  return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.2f}'


def _range(ends: tuple[float, float] | None, form: str = '.2f') -> str:
  return _NONE if ends is None else f'{ends[0]:{form}} … {ends[1]:{form}}'


def _p(value: float) -> str:
  return '< 0.001' if value < 0.001 else f'{value:.3f}'
