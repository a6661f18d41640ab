"""What people see at the end of a run mode: tables."""

import csv
import io
from collections.abc import Sequence

import rich.box
import rich.table

from rest_jax import best_of_n, preview, results, schedule
from rest_jax.progress import clock
from rest_jax.rewards import checking
from rest_jax.run_directory import Stage

_SEEN = '†'


def results_table(rows: Sequence[results.Row]) -> rich.table.Table:
  """The rows of results.csv, without what only programs read."""
  seen = sorted({r.reward_trained_on for r in rows if r.reward_trained_on})
  table = rich.table.Table(
    title='Rewards × 100, 95 % intervals by bootstrap over sources',
    box=rich.box.SIMPLE,
    title_justify='left',
    caption=f'{_SEEN} the reward was trained on this split: {"; ".join(seen)}'
    if seen
    else None,
    caption_justify='left',
  )
  table.add_column('policy', no_wrap=True)
  table.add_column('split')
  table.add_column('trained on')
  for name in (
    'kept', 'sources', 'reward', '95 %', 'greedy', 'best T', 'BLEU', 'chrF',
    'time',
  ):  # fmt: skip
    table.add_column(name, justify='right', no_wrap=True)
  names = dict.fromkeys(name for row in rows for name in row.further)
  further = [name for name in names if name.endswith('_mean')]
  for name in further:
    table.add_column(name.removesuffix('_mean'), justify='right', no_wrap=True)
  for row in rows:
    table.add_row(
      row.policy,
      row.split,
      row.threshold,
      _count(row.kept_samples),
      _count(row.kept_sources),
      f'{row.reward_mean:.1f}{_SEEN if row.reward_trained_on else ""}',
      f'{row.reward_low:.1f}–{row.reward_high:.1f}',
      f'{row.reward_greedy:.1f}',
      f'{row.reward_best_t:.1f} (T {row.best_t:g})',
      _figure(row.bleu),
      _figure(row.chrf),
      f'{row.seconds:.0f} s',
      *(_figure(row.further.get(name), '.3g') for name in further),
    )
  return table


def best_of_n_table(rows: Sequence[best_of_n.Row]) -> rich.table.Table:
  """Best-of-N of all policies; the metrics are the winner's."""
  table = rich.table.Table(
    title='Best of N samples by reward, unbiased from all that are stored; and'
    ' the one of all that agrees best with the others by chrF (mbr). N of'
    ' BC: at which BC has as much reward; – where half of its samples do not,'
    ' or it was not evaluated.',
    box=rich.box.SIMPLE,
    title_justify='left',
  )
  table.add_column('policy', no_wrap=True)
  names = list(dict.fromkeys(name for row in rows for name in row.held_out))
  for name in (
    'N',
    'by',
    'reward',
    *(n.removeprefix(best_of_n.SCORE) for n in names),
    'N of BC',
  ):
    table.add_column(name, justify='right', no_wrap=True)
  for row in rows:
    table.add_row(
      row.policy,
      str(row.size),
      row.chosen_by,
      f'{row.reward:.1f}',
      *(_figure(row.held_out.get(name), '.3g') for name in names),
      '–' if row.size_of_bc is None else str(row.size_of_bc),
    )
  return table


def best_of_n_csv(rows: Sequence[best_of_n.Row], split: str) -> str:
  """The same for programs."""
  names = list(dict.fromkeys(name for row in rows for name in row.held_out))
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(
    ['policy', 'split', 'n', 'chosen_by', 'reward', 'n_of_bc']
    + [name.removeprefix(best_of_n.SCORE) for name in names]
  )
  for row in rows:
    metrics = [row.held_out.get(name) for name in names]
    writer.writerow(
      [row.policy, split, row.size, row.chosen_by, f'{row.reward:.4f}']
      + ['' if row.size_of_bc is None else row.size_of_bc]
      + ['' if value is None else f'{value:.4f}' for value in metrics]
    )
  return text.getvalue()


def preview_table(
  previews: Sequence[preview.StepPreview], steps: schedule.Schedule
) -> rich.table.Table:
  """What Improve steps 0 … I keep."""
  table = rich.table.Table(box=rich.box.SIMPLE)
  table.add_column('step')
  table.add_column('keeps')
  for name in (
    'samples', 'of', 'sources', 'starved', 'duplicates', 'references', 'reward',
    'length',
  ):  # fmt: skip
    table.add_column(name, justify='right')
  for i, kept in enumerate(previews):
    table.add_row(
      f'I{i}',
      'all' if i == 0 else steps.label(i),
      _count(kept.kept_samples),
      _count(kept.samples),
      _count(kept.kept_sources),
      _count(kept.starved_sources),
      _count(kept.duplicates),
      _count(kept.kept_references),
      _figure(kept.mean_reward if kept.kept_samples else None, '.3f'),
      _figure(kept.mean_length if kept.kept_samples else None, '.1f'),
    )
  return table


def status_table(stages: Sequence[tuple[Stage, bool]]) -> rich.table.Table:
  """What each stage holds, or whether it is next.

  Args:
    stages: the stages of a run in order, and whether each is another run's.
  """
  table = rich.table.Table(box=rich.box.SIMPLE)
  table.add_column('stage')
  table.add_column('state')
  table.add_column('what it holds')
  table.add_column('time', justify='right')
  next_found = False
  for stage, elsewhere in stages:
    if stage.committed:
      counts = ', '.join(
        f'{name} {value:,.4g}' if isinstance(value, float)
        else f'{name} {value:,}'
        for name, value in stage.manifest['counts'].items()
      )  # fmt: skip
      state = 'elsewhere' if elsewhere else 'done'
      table.add_row(stage.name, state, counts, clock(stage.manifest['seconds']))
    else:
      state = 'begun' if stage.begun else ('waits' if next_found else 'next')
      next_found = True
      table.add_row(stage.name, state, '', '')
  return table


def check_table(report: checking.Report) -> rich.table.Table:
  """What a reward did with spoiled texts."""
  table = rich.table.Table(
    title=f'{report.reward} on spoiled {report.of}',
    box=rich.box.SIMPLE,
    title_justify='left',
    caption='largest difference of a reward by '
    + ', '.join(f'{k} {v:.1g}' for k, v in report.invariance.items()),
    caption_justify='left',
  )
  table.add_column('perturbation', no_wrap=True)
  for name in (
    'texts', 'left out', 'no reward to lose', 'falls', 'must', 'rises',
    'reward', 'spoiled',
  ):  # fmt: skip
    table.add_column(name, justify='right')
  table.add_column('')
  failed = {failure.partition(':')[0] for failure in report.failures}
  for outcome, least in zip(report.outcomes, report.least, strict=True):
    table.add_row(
      outcome.name,
      _count(outcome.texts),
      _count(outcome.left_out),
      _count(outcome.at_bottom),
      f'{100 * outcome.fall_rate:.1f} %' if outcome.texts else '–',
      f'{100 * least:.0f} %',
      _count(outcome.rose),
      f'{outcome.before:.3f}' if outcome.texts else '–',
      f'{outcome.after:.3f}' if outcome.texts else '–',
      'FAILS' if outcome.name in failed else '',
    )
  return table


def _count(value: int | None) -> str:
  return '–' if value is None else f'{value:,}'


def _figure(value: float | None, form: str = '.1f') -> str:
  return '–' if value is None else format(value, form)
