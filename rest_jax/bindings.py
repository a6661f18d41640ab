"""Gin files and bindings as a command line gives them: `--gin.NAME=VALUE`."""

import ast
import dataclasses
import io
import itertools
import pathlib
import re
import sys
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
  files: Sequence[str],
  roots: Sequence[str | pathlib.Path],
  shipped: pathlib.Path,
) -> None:
  """Raises where one file would silently undo a part of another.

  Args:
    files: gin files as given. They, or what they include, may be whole
      algorithms (`presets/…`), losses (`losses/…`) or online baselines
      (`online/…`) of the package.
    roots: folders that they, and what they include, are looked for in.
    shipped: the package's folder of gin files.

  Raises:
    ConfigurationError: two of them are presets; a loss is given beside a preset
      that has one; a file after a preset binds what it does; or two losses, or
      two online baselines, bind the same.
  """
  given = [_read(file, roots, shipped) for file in files]
  presets = [(top, file) for top in given for file in top.of_kind('presets')]
  if len(presets) > 1:
    (top, first), (other, second) = presets[:2]
    raise ConfigurationError(
      f'{_flag(top, first)} and {_flag(other, second)} are both whole'
      ' algorithms, of which the later would undo parts of the other; give one,'
      ' and change single settings with --gin.NAME=VALUE.'
    )
  for top, preset in presets:
    _check_beside(given, top, preset)
  for kind in ('losses', 'online'):
    parts = [(top, file) for top in given for file in top.of_kind(kind)]
    for (top, first), (other, second) in itertools.combinations(parts, 2):
      if both := first.undone_by(second):
        raise ConfigurationError(
          f'{_flag(other, second)} would undo {sorted(both)[0]} of'
          f' {_flag(top, first)}; give one of the two.'
        )


def _check_beside(
  given: Sequence['_GinFile'], top: '_GinFile', preset: '_GinFile'
) -> None:
  """Raises where a preset undoes a loss beside it, or is undone itself."""
  after = False
  for file in given:
    # A file that includes a preset is its user's, and may be layered on.
    both = preset.bound.keys() & file.bound.keys()
    if after and preset is top and both:
      raise ConfigurationError(
        f'--gin_file={file.name} after {_flag(top, preset)} would undo its'
        f' {sorted(both)[0]}; give the preset last, and change single'
        ' settings with --gin.NAME=VALUE.'
      )
    after = after or file is top
    for loss in () if file is preset else file.of_kind('losses'):
      if both := preset.bound.keys() & loss.bound.keys():
        raise ConfigurationError(
          f'{_flag(top, preset)} and {_flag(file, loss)} both bind'
          f' {sorted(both)[0]}; give one of the two.'
        )


def _flag(top: '_GinFile', file: '_GinFile') -> str:
  """How a file was given, for messages."""
  flag = f'--gin_file={top.name}'
  return flag if file is top else f'{flag} (by its {file.name})'


@dataclasses.dataclass(frozen=True)
class _GinFile:
  """A gin file as far as conflicts go.

  Attributes:
    name: as it was given or included.
    kind: its folder among the package's gin files; '' for a user's file.
    included: files that it includes.
    bound: each name that it binds, those of `included` too → the files that do.
  """

  name: str
  kind: str = ''
  included: tuple['_GinFile', ...] = ()
  bound: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)

  def of_kind(self, kind: str) -> list['_GinFile']:
    """This file or, of all that it includes, the outermost of a kind."""
    if self.kind == kind:
      return [self]
    return [found for file in self.included for found in file.of_kind(kind)]

  def undone_by(self, later: '_GinFile') -> list[str]:
    """Names that both bind, but for those of a file that both include."""
    both = self.bound.keys() & later.bound.keys()
    return [name for name in both if self.bound[name] != later.bound[name]]


def _read(
  file: str,
  roots: Sequence[str | pathlib.Path],
  shipped: pathlib.Path,
  within: tuple[pathlib.Path, ...] = (),
) -> _GinFile:
  """Reads a file and all that it includes, itself included `within` others."""
  paths = (pathlib.Path(root, file) for root in ('', *roots))
  path = next((path.resolve() for path in paths if path.is_file()), None)
  # A file that cannot be read, or includes itself, is for gin to tell of.
  if path is None or path in within:
    return _GinFile(file)
  try:
    text = path.read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError):
    return _GinFile(file)
  includes = re.findall(
    r"""^include\s+(?:'([^']*)'|"([^"]*)")""", text, re.MULTILINE
  )
  included = tuple(
    _read(single or double, roots, shipped, (*within, path))
    for single, double in includes
  )
  bound = {name: frozenset([str(path)]) for name in _names_in(text)}
  for part in included:
    for name, by in part.bound.items():
      bound[name] = bound.get(name, frozenset()) | by
  kind = path.parent.name if path.parent.parent == shipped.resolve() else ''
  return _GinFile(file, kind, included, bound)


def plain(error: BaseException) -> str:
  """What gin or what it called says, in one line of reasonable length."""
  text = str(error).partition(' in config string:')[0]
  text = text.replace('/gin.macro', '').replace('/macro.value', '')
  return ' '.join(text.split())


def check_modules(imports: Iterable[Any]) -> None:
  """Raises where two modules have one name: gin renames one of them unsaid.

  Args:
    imports: gin's import statements.

  Raises:
    ConfigurationError: names both, and the files.
  """
  known: dict[str, Any] = {}
  # Those of ours first, so that the other one is told of.
  for statement in sorted(imports, key=lambda s: not _is_own(s.module)):
    if not (statement.is_from or statement.alias) and '.' in statement.module:
      continue  # Called by the whole path.
    name = statement.bound_name()
    first = known.setdefault(name, statement)
    if first.module != statement.module:
      renamed = statement._replace(alias=f'my_{name}').format()
      raise ConfigurationError(
        f'{_place(statement)}: `{statement.format()}` gives {statement.module}'
        f' a name that {first.module} has ({_place(first)}); write'
        f' `{renamed}`, and my_{name} in its bindings.'
      )


def _is_own(module: str) -> bool:
  return module.partition('.')[0] == __name__.partition('.')[0]


def _place(statement: Any) -> str:
  return f'{statement.location.filename}:{statement.location.line_num}'


def meant(text: str, imports: Iterable[Any]) -> str:
  """Names the module that a class's name lacks in a binding, where it does.

  Args:
    text: what gin says of the binding.
    imports: gin's import statements.

  Returns:
    The end of a sentence, or ''.
  """
  unknown = re.match(r"'(\w+)' was not provided by an import", text)
  if not unknown:
    return ''
  found = set()
  for each in imports:
    there = sys.modules.get(each.module)
    named = getattr(there, unknown[1], None)
    exported = unknown[1] in getattr(there, '__all__', ())
    if exported or getattr(named, '__module__', '') == each.module:
      module = each.alias or each.module.rpartition('.')[2]
      found.add(f'{module}.{unknown[1]}')
  return f'; perhaps {" or ".join(sorted(found))} is meant' if found else ''


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


def used(operative_text: str, bound: set[str]) -> set[str]:
  """The bindings that something took its value from.

  Of bindings of one parameter in several scopes the innermost decides: with
  'a/x' and 'x' bound, what is called in the scope a has nothing of 'x'.

  Args:
    operative_text: gin's printed form of what was used, by scope of the call.
    bound: names of all bindings.
  """
  found = set()
  for name in names(operative_text):
    scope, _, parameter = name.rpartition('/')
    scopes = scope.split('/') if scope else []
    for depth in range(len(scopes), -1, -1):
      taken = '/'.join([*scopes[:depth], parameter])
      if taken in bound:
        found.add(taken)
        break
  return found


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
