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


def check_presets(files: Sequence[str]) -> None:
  """Raises where one preset would silently undo a part of another.

  Raises:
    ConfigurationError: two of the gin files lie in a folder `presets`.
  """
  presets = [f for f in files if pathlib.PurePath(f).parent.name == 'presets']
  if len(presets) > 1:
    raise ConfigurationError(
      f'--gin_file={presets[0]} and --gin_file={presets[1]} are both whole'
      ' algorithms, of which the later would undo parts of the other; give one,'
      ' and change single settings with --gin.NAME=VALUE.'
    )


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
  found: set[str] = set()
  for path in folder.rglob('*.gin'):
    block = ''
    for line in path.read_text().splitlines():
      if header := re.fullmatch(r'([\w./]+):', line):
        block = header[1] + '.'
      elif binding := re.match(r'(\s*)([\w./]+) =', line):
        found.add(block + binding[2] if binding[1] else binding[2])
  return found
