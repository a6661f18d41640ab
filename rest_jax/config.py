"""The values of a configuration: checked, and named as gin names them.

Gin fills the fields of dataclasses. This file walks such objects without
knowing gin, so that stages can record what they were made with.
"""

import dataclasses
import json
import traceback
import typing
from collections.abc import Iterator
from typing import Any

from beartype import BeartypeConf, door

from rest_jax.errors import ConfigurationError

_LENIENT_NUMBERS = BeartypeConf(is_pep484_tower=True)  # An int is a float.


def _children(value: Any, compared: bool = False) -> Iterator[tuple[str, Any]]:
  if dataclasses.is_dataclass(value):
    for field in dataclasses.fields(value):
      if compared and not field.compare:
        continue
      yield f'.{field.name}', getattr(value, field.name)
  elif isinstance(value, (tuple, list)):
    for index, item in enumerate(value):
      yield f'[{index}]', item
  elif isinstance(value, dict):
    for key, item in value.items():
      yield f'[{key!r}]', item


def check_types(value: Any) -> None:
  """Raises ConfigurationError where a dataclass field holds a wrong type."""
  if dataclasses.is_dataclass(value):
    name = type(value).__name__
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
      hint, given = hints[field.name], getattr(value, field.name)
      if not door.is_bearable(given, hint, conf=_LENIENT_NUMBERS):
        wanted = getattr(hint, '__name__', None) or str(hint)
        if typing.get_args(hint):
          wanted = str(hint).replace('typing.', '')
        raise ConfigurationError(
          f'binding {name}.{field.name} = {given!r} has the type'
          f' {type(given).__name__}; give a value of type {wanted}.'
        )
  for _, child in _children(value):
    check_types(child)


def check_types_at(error: BaseException) -> None:
  """Raises when an object that was being built had values of a wrong type.

  Its own checks then fail in ways that name no binding ('<' not supported …).
  """
  for frame, _ in traceback.walk_tb(error.__traceback__):
    if frame.f_code.co_name == '__post_init__':
      check_types(frame.f_locals['self'])


def flatten(value: Any, name: str) -> dict[str, Any]:
  """The values of a configuration by dotted name, as JSON can hold them.

  >>> import dataclasses
  >>> @dataclasses.dataclass(frozen=True)
  ... class Sampling:
  ...   temperature: float = 0.8
  >>> flatten({'sampling': (Sampling(),)}, 'Grow')
  {"Grow['sampling'][0]": 'Sampling', "Grow['sampling'][0].temperature": 0.8}

  Args:
    value: a dataclass, tuple, list, dict, plain value, or object whose class
      alone identifies it.
    name: what the names begin with.

  Returns:
    A dict of names to plain values; a dataclass stands as its class's name,
    so that replacing one by another shows. Fields with `compare=False` are
    left out: nothing that is made depends on them.
  """
  if isinstance(value, (str, int, float, bool, type(None))):
    return {name: value}
  out = {}
  if dataclasses.is_dataclass(value):
    out[name] = type(value).__name__
  elif isinstance(value, (tuple, list, dict)):
    if not value:
      out[name] = []
  else:
    out[name] = f'{type(value).__module__}.{type(value).__qualname__}'
  for suffix, child in _children(value, compared=True):
    out.update(flatten(child, name + suffix))
  return json.loads(json.dumps(out))
