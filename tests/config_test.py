import dataclasses
import doctest

import pytest

from rest_jax import config
from rest_jax.errors import ConfigurationError


@dataclasses.dataclass(frozen=True)
class Inner:
  rate: float = 0.5
  names: tuple[str, ...] = ('a',)


@dataclasses.dataclass(frozen=True)
class Outer:
  inner: Inner = Inner()
  steps: int = 1
  path: str | None = None


class Opaque:
  pass


def test_docstring_example():
  assert doctest.testmod(config).failed == 0


def test_flatten_names_every_value():
  assert config.flatten(Outer(), 'Outer') == {
    'Outer': 'Outer',
    'Outer.inner': 'Inner',
    'Outer.inner.rate': 0.5,
    'Outer.inner.names[0]': 'a',
    'Outer.steps': 1,
    'Outer.path': None,
  }


def test_flatten_tells_empty_from_absent_and_class_from_class():
  assert config.flatten((), 'x') == {'x': []}
  assert config.flatten(Opaque(), 'x')['x'].endswith('.Opaque')


def test_flatten_leaves_out_what_changes_no_content():
  @dataclasses.dataclass(frozen=True)
  class Scored:
    order: int = 2
    workers: int = dataclasses.field(default=0, compare=False)

  assert config.flatten(Scored(), 'x') == {'x': 'Scored', 'x.order': 2}


@pytest.mark.parametrize(
  ('value', 'name'),
  [
    (Outer(steps='3'), 'Outer.steps'),
    (Outer(inner=Inner(rate='fast')), 'Inner.rate'),
    (Outer(inner=Inner(names=(1,))), 'Inner.names'),
    (Outer(path=3), 'Outer.path'),
  ],
)
def test_wrong_types_name_the_binding(value, name):
  with pytest.raises(ConfigurationError, match=name):
    config.check_types(value)


def test_whole_numbers_are_floats():
  config.check_types(Outer(inner=Inner(rate=1)))
