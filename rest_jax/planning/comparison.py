"""The table of a comparison of slices, as Markdown."""

import dataclasses
from collections.abc import Sequence

from rest_jax.planning import compare
from rest_jax.planning.chips import Slice
from rest_jax.planning.estimate import Hours
from rest_jax.planning.page import table


@dataclasses.dataclass(frozen=True)
class Row:
  """A slice, and what is best on it.

  Attributes:
    where: the slice.
    choice: its layouts; None where none fits.
    hours: of the whole schedule with them.
  """

  where: Slice
  choice: compare.Choice | None
  hours: Hours | None


def text(rows: Sequence[Row], command: str) -> str:
  """The table, and the slice that is picked."""
  head = (
    '', 'chips', 'training', 'microbatches', 'GB', 'Grow', 'GB',
    'update s', 'samples/s', 'hours', 'chip hours',
  )  # fmt: skip
  picked = compare.pick([row.choice for row in rows if row.choice])
  lines = [
    '# Slices compared',
    '',
    f'    {command}',
    '',
    *table(head, [_line(row) for row in rows]),
    '',
    'By hand, at the floors of the chips’ published figures; memory is what'
    ' must be there, held to 80 % of what a chip has.',
    '',
  ]
  if picked is None:
    lines.append(
      'The policy fits nowhere: smaller batches (BATCH_ROWS,'
      " generation.Batching.rows) or t5.T5Config.remat = 'full' may help."
    )
  else:
    lines.append(
      f'The fewest chips: {picked.where.name}, trained with'
      f' {_training(picked)} in {picked.num_microbatches} microbatches, grown'
      f' with model {picked.grow_model}. Let it be compiled:'
      f' --topology={picked.where.name} and those settings.'
    )
  return '\n'.join(lines)


def _line(row: Row) -> tuple[str, ...]:
  name, chips, choice = row.where.name, row.where.num_chips, row.choice
  if choice is None:
    return (name, f'{chips}', 'does not fit', *('',) * 8)
  hours = row.hours.total
  unknown = '' if row.hours.grow is not None else ' + Grow'
  return (
    name,
    f'{chips}',
    _training(choice),
    f'{choice.num_microbatches}',
    f'{choice.update_bytes / 1e9:.1f}',
    f'model {choice.grow_model}',
    f'{choice.grow_bytes / 1e9:.1f}',
    f'{choice.update_seconds:.3f}',
    f'{choice.samples_per_second:,.0f}',
    f'{hours:,.1f}{unknown}',
    f'{hours * chips:,.0f}{unknown}',
  )


def _training(choice: compare.Choice) -> str:
  data = choice.where.num_chips // choice.model
  fsdp = ', FSDP' if choice.fsdp else ''
  return f'data {data} × model {choice.model}{fsdp}'
