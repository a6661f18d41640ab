"""Gin files and bindings as a command line gives them: `--gin.NAME=VALUE`."""

import ast
import io
import pathlib
import re
import tokenize
from collections.abc import Sequence

from rest_jax.errors import ConfigurationError


def rewrite_flags(argv: Sequence[str]) -> list[str]:
  """Turns `--gin.NAME=VALUE` into `--gin_bindings=NAME = VALUE`.

  A value that gin cannot parse is a bare word, such as a path, and is taken as
  a string.
  """
  out = []
  for arg in argv:
    if arg.startswith('--gin.'):
      name, equals, value = arg.removeprefix('--gin.').partition('=')
      if not equals:
        raise ConfigurationError(
          f'flag {arg} has no value; write --gin.{name}=VALUE.'
        )
      out.append(f'--gin_bindings={name} = {literal(value)}')
    else:
      out.append(arg)
  return out


def literal(value: str) -> str:
  """`value`, quoted if it is a bare word and no (broken) expression."""
  if value.startswith(('(', '[', '{', '"', "'", '@', '%')):
    return value
  try:
    ast.literal_eval(value)  # gin itself would read '2024-runs' as 2024.
    return value
  except (SyntaxError, ValueError):
    return repr(value)


def check_whole(binding: str) -> None:
  """Raises where a bracket or quote is not closed: gin would not say where."""
  name, _, value = binding.partition('=')
  try:
    tokens = list(tokenize.generate_tokens(io.StringIO(value).readline))
    whole = not any(
      token.type == tokenize.ERRORTOKEN and token.string.strip()
      for token in tokens
    )
  except (tokenize.TokenError, SyntaxError):
    whole = False
  if not whole:
    raise ConfigurationError(
      f'binding {name.strip()} ={value} breaks off: close its brackets and'
      ' quotes.'
    )


def check_presets(
  files: Sequence[str], roots: Sequence[str | pathlib.Path]
) -> None:
  """Raises where one preset would silently undo a part of another file.

  Args:
    files: gin files as given, of which `presets/…` are whole algorithms and
      `losses/…` losses.
    roots: folders that they, and what they include, are looked for in.

  Raises:
    ConfigurationError: two of them are presets; a loss is given beside a preset
      that has one; or a later file binds what a preset does.
  """
  parts = {file: pathlib.PurePath(file).parent.name for file in files}
  presets = [file for file, kind in parts.items() if kind == 'presets']
  if len(presets) > 1:
    raise ConfigurationError(
      f'--gin_file={presets[0]} and --gin_file={presets[1]} are both whole'
      ' algorithms, of which the later would undo parts of the other; give one,'
      ' and change single settings with --gin.NAME=VALUE.'
    )
  for preset in presets:
    bound, place = _bound(preset, roots), list(files).index(preset)
    for number, file in enumerate(files):
      both = bound & _bound(file, roots)
      if number > place and both:
        raise ConfigurationError(
          f'--gin_file={file} after --gin_file={preset} would undo its'
          f' {sorted(both)[0]}; give the preset last, and change single'
          ' settings with --gin.NAME=VALUE.'
        )
      if number < place and both and parts[file] == 'losses':
        raise ConfigurationError(
          f'--gin_file={preset} would undo {sorted(both)[0]} of'
          f' --gin_file={file}; give one of the two.'
        )


def _bound(file: str, roots: Sequence[str | pathlib.Path]) -> set[str]:
  """The names that a gin file and those that it includes bind."""
  paths = (pathlib.Path(root, file) for root in ('', *roots))
  path = next((path for path in paths if path.is_file()), None)
  if path is None:
    return set()  # Said by whoever reads it.
  text = path.read_text()
  found = _names_in(text)
  for included in re.findall(r"^include '(.*)'", text, re.MULTILINE):
    found |= _bound(included, roots)
  return found


def plain(error: BaseException) -> str:
  """What gin or what it called says, in one line of reasonable length."""
  text = str(error).partition(' in config string:')[0]
  text = text.replace('/gin.macro', '').replace('/macro.value', '')
  return ' '.join(text.split())


def bare_word(value: str) -> str:
  """`value` without its quotes, where `literal` would put them back."""
  try:
    word = ast.literal_eval(value)
  except (SyntaxError, ValueError):
    return value
  return word if isinstance(word, str) and literal(word) == value else value


def names(config_text: str) -> set[str]:
  """The names bound in gin's own printed form of a configuration."""
  return set(re.findall(r'^([\w./]+) =', config_text, re.MULTILINE))


def shipped_names(folder: pathlib.Path) -> set[str]:
  """The names that the gin files in a folder bind, in either form."""
  texts = (path.read_text() for path in folder.rglob('*.gin'))
  return set().union(*map(_names_in, texts))


def _names_in(text: str) -> set[str]:
  """The names that the text of a gin file binds, in either form."""
  found: set[str] = set()
  block = ''
  for line in text.splitlines():
    if header := re.fullmatch(r'([\w./]+):', line):
      block = header[1] + '.'
    elif binding := re.match(r'(\s*)([\w./]+) =', line):
      found.add(block + binding[2] if binding[1] else binding[2])
  return found
