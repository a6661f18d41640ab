"""Standard output: tables are never cut to fit it."""

import sys

import rich.console
import rich.table

_FILE_WIDTH = 160  # Of files and pipes, where text may be folded.
_ENDLESS = 10_000


def show(shown: rich.table.Table | str) -> None:
  """Prints a table or a text.

  Tables fold what is too wide, but for columns that are not to be folded, such
  as those of figures: a table that has some is as wide as they need, and a
  narrower terminal breaks its lines.

  Args:
    shown: what to print; no character of a text means markup.
  """
  console = _console(None if sys.stdout.isatty() else _FILE_WIDTH)
  columns = getattr(shown, 'columns', ())
  if any(column.no_wrap for column in columns):
    needed = _console(_ENDLESS).measure(shown).maximum
    console = _console(max(needed, console.width))
  console.print(shown, soft_wrap=isinstance(shown, str))


def _console(width: int | None) -> rich.console.Console:
  return rich.console.Console(
    width=width,
    height=None if width is None else 100,  # Without one TERM=dumb is 80 wide.
    highlight=False,
    # Names may hold brackets and colons, which rich would read as styles.
    markup=False,
    emoji=False,
  )
