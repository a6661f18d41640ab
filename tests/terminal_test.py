import io
import sys

import pytest
import rich.box
import rich.table

from rest_jax import terminal


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture(
  params=[(io.StringIO, 'xterm'), (Terminal, 'xterm'), (Terminal, 'dumb')],
  ids=['file', 'terminal', 'dumb'],
)
def shown(request, monkeypatch):
  """What is shown in a file, or on a terminal of 40 columns."""
  kind, name = request.param
  monkeypatch.setenv('COLUMNS', '40')
  monkeypatch.setenv('TERM', name)

  def show(what):
    stream = kind()
    monkeypatch.setattr(sys, 'stdout', stream)
    terminal.show(what)
    return stream.getvalue()

  return show


def test_no_figure_is_cut(shown):
  table = rich.table.Table(box=rich.box.SIMPLE)
  table.add_column('trained on')
  names = [f'figure {i}' for i in range(20)]
  for name in names:
    table.add_column(name, no_wrap=True, justify='right')
  figures = [f'{i}.123–{i}.456' for i in range(20)]
  table.add_row('R > 0.5', *figures)
  text = shown(table)
  assert '…' not in text
  assert [name for name in (*names, *figures) if name not in text] == []


def test_text_is_folded(shown):
  table = rich.table.Table(box=rich.box.SIMPLE)
  table.add_column('what it holds')
  table.add_row('word ' * 40)
  text = shown(table)
  assert text.count('word') == 40
  assert max(map(len, text.splitlines())) <= 160


def test_names_are_no_markup(shown):
  line = 'runs/[big]: 0:10 so far [/nothing] :heart:'
  assert shown(line) == line + '\n'
  table = rich.table.Table()
  table.add_column('stage [red]')
  table.add_row('[bold]a[/x]')
  text = shown(table)
  assert 'stage [red]' in text
  assert '[bold]a[/x]' in text
