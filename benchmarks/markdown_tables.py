"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def table(
  head: Sequence[str], rows: Iterable[Iterable[str]], texts: int = 1
) -> list[str]:
  """Its lines.

  Args:
    head: names of the columns.
    rows: cells of each row.
    texts: columns of text, the first ones; all others are numbers.
  """
  columns = '---|' * texts + '---:|' * (len(head) - texts)
  return [_line(head), f'|{columns}', *map(_line, rows)]


def _line(cells: Iterable[str]) -> str:
  return '| ' + ' | '.join(cells) + ' |'
