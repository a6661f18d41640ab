"""Gin bindings as they stand on a command line: `--gin.NAME=VALUE`."""

import ast
import io
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


def bare_word(value: str) -> str:
  """`value` without its quotes, where `literal` would put them back."""
  try:
    word = ast.literal_eval(value)
  except (SyntaxError, ValueError):
    return value
  return word if isinstance(word, str) and literal(word) == value else value
