"""Slices of a split, and cuts of rows in two by whole groups."""

import collections
import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable

from rest_jax import errors

_EXPRESSION = re.compile(r'([^\[\]]+?)(?:\[(\d+%?)?:(\d+%?)?\])?')


@dataclasses.dataclass(frozen=True)
class Slice:
  """Rows low ≤ number < high of a split of a task.

  Attributes:
    split: name of the split in its task.
    low: number of the first row.
    high: number after the last row, or None for all.
  """

  split: str
  low: int = 0
  high: int | None = None

  def __contains__(self, number: int) -> bool:
    return self.low <= number and (self.high is None or number < self.high)


def parse(expression: str, count: Callable[[str], int]) -> Slice:
  """Reads 'train', 'train[:50%]', 'train[50%:]', 'train[1000:2000]'.

  A percentage p of n rows ends before row ⌊n p / 100⌋, so 'train[:50%]' and
  'train[50%:]' part the rows without overlap or gap.

  Args:
    expression: as above.
    count: the number of rows of a split, asked only where there is a '%'.

  Returns:
    The rows it means.

  Raises:
    ConfigurationError: not such an expression, more than 100 %, or a slice that
      is empty whatever the data.
  """
  match = _EXPRESSION.fullmatch(expression)
  if match is None:
    raise errors.ConfigurationError(
      f"split {expression!r} cannot be read: write 'train', 'train[:50%]',"
      " 'train[50%:]' or 'train[1000:2000]'"
    )
  split, *bounds = match.groups()
  total = count(split) if any(b and b[-1] == '%' for b in bounds) else 0

  def row(bound: str | None) -> int | None:
    if bound is None:
      return None
    if bound[-1] != '%':
      return int(bound)
    percent = int(bound[:-1])
    if percent > 100:
      raise errors.ConfigurationError(
        f'split {expression!r}: {bound} is more than the whole'
      )
    return total * percent // 100

  low, high = row(bounds[0]) or 0, row(bounds[1])
  if high is not None and low >= high:
    raise errors.ConfigurationError(
      f'split {expression!r} holds no row ({low} ≤ row < {high}): widen it'
    )
  return Slice(split, low, high)


def cut_in_two(keys: Iterable[str]) -> set[str]:
  """Chooses about half of the rows by whole documents, always the same.

  Documents are taken in the order of their hash and each goes to the half that
  has fewer rows, so neither order nor names of the data matter, and a few long
  documents do not unbalance the halves.

  Args:
    keys: for every row the name of its document, or its source.

  Returns:
    The keys of the first half; both halves have a key.

  Raises:
    DataError: there are not two different keys.
  """
  sizes = collections.Counter(keys)
  if len(sizes) < 2:
    raise errors.DataError(
      f'the dev split has {len(sizes)} different documents or sources: it'
      ' needs at least two, one for D_select and one for D_report'
    )
  halves: tuple[set[str], set[str]] = (set(), set())
  rows = [0, 0]
  for key in sorted(sizes, key=_hash):
    smaller = int(rows[1] < rows[0])
    halves[smaller].add(key)
    rows[smaller] += sizes[key]
  return halves[0]


def name_of(expression: str) -> str:
  """The split of an expression, whichever of its rows are meant.

  >>> name_of('dev[200:50%]')
  'dev'
  """
  return expression.partition('[')[0].strip()


def held_out(keys: Iterable[str], share: float) -> set[str]:
  """Chooses about a share of the rows by whole groups, always the same.

  Groups are taken in the order of their hash, until they hold enough rows. A
  first one that has far more than that is passed over; where all have, the
  smallest is held out.

  Args:
    keys: for every row the name of its group.
    share: of the rows, in (0, 1).

  Returns:
    The groups that are held out; neither they nor the others are empty.

  Raises:
    DataError: there are not two different keys.
  """
  sizes = collections.Counter(keys)
  if len(sizes) < 2:
    raise errors.DataError(
      f'there are {len(sizes)} different sources or documents: at least two are'
      ' needed, one to train on and one to hold out'
    )
  chosen: set[str] = set()
  rows, wanted = 0, share * sizes.total()
  for key in sorted(sizes, key=_hash)[:-1]:
    if rows + sizes[key] / 2 > wanted:
      if chosen:
        break
      continue
    chosen.add(key)
    rows += sizes[key]
  return chosen or {min(sizes, key=lambda key: (sizes[key], _hash(key)))}


def _hash(key: str) -> bytes:
  return hashlib.sha256(key.encode()).digest()
