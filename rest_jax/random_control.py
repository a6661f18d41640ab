"""The control of random rows, which knows how many pass a filter, not which."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from rest_jax import rows as rows_lib
from rest_jax import selection

# Selections break ties by `rows.random_order` too, often of the same seed: a
# draw in the same order would prefer what they kept.
_OWN_ORDER = 1 << 40


@dataclasses.dataclass(frozen=True)
class RandomLike:
  """The control: random rows, as many of each source as other selections keep.

  Samples are drawn among those of their source. Its one reference would be
  drawn if and only if it is kept, which is the filter again: references are
  drawn among those of all sources here, as many as are kept. What is compared
  is which rows have a high reward: where the selections keep a text but once,
  the draw passes over samples whose text it has, and what `selection.Valid`
  drops is not drawn either.

  Attributes:
    selections: what to keep as many rows as.
    seed: of the random choice, as in `selection.Cap`.
    distinct: whether copies of a text were dropped before: they count in how
      likely it is all the same.
  """

  selections: tuple[selection.Selection, ...]
  seed: int = 0
  distinct: bool = False

  @property
  def needs(self) -> frozenset[str]:
    """See `selection.Selection.needs`."""
    needs = selection.needs_of(self.selections)
    return needs | {'text_ids'} if self.distinct else needs

  def keep(
    self, rows: rows_lib.Rows, alive: Bool[np.ndarray, 'm']
  ) -> Bool[np.ndarray, 'm']:
    """See `selection.Selection.keep`."""
    kept = alive.copy()
    for each in self.selections:
      kept &= each.keep(rows, kept)
    pool = self._pool(rows, alive)
    if rows.given is not None:
      kept, pool = kept & ~rows.given, pool & ~rows.given
    order = rows_lib.random_order(rows, self.seed + _OWN_ORDER)
    # Whatever compares texts keeps the first of those that are equal.
    if 'text_ids' in self.needs:
      copies = rows.finished if self.distinct else pool
      order = rows_lib.least_of_text(rows, copies, order)
      pool = rows_lib.first_occurrences(rows, pool)
    samples = ~rows.is_reference
    drawn = rows_lib.first_of_each(
      rows, pool & samples, order, rows.count(kept & samples)
    )
    references = np.flatnonzero(pool & rows.is_reference)
    references = references[np.argsort(order[references], kind='stable')]
    drawn[references[: np.count_nonzero(kept & rows.is_reference)]] = True
    return drawn

  def _pool(
    self, rows: rows_lib.Rows, alive: Bool[np.ndarray, 'm']
  ) -> Bool[np.ndarray, 'm']:
    """The rows to draw among."""
    pool = alive.copy()
    for each in self.selections:
      if isinstance(each, selection.Valid):
        pool &= each.keep(rows, pool)
    return pool


def like(
  chosen: Sequence[selection.Selection], num_after: int, seed: int
) -> tuple[selection.Selection, ...]:
  """Random rows, as many of each source as `chosen` keeps.

  They are drawn from what the filter chose among: D_g as the configuration has
  it, less what the selections before the filter drop.

  Args:
    chosen: selections before the filter, the filter, and those after it.
    num_after: how many selections stand after the filter.
    seed: of the draw.
  """
  filter_at = len(chosen) - 1 - num_after
  before = chosen[:filter_at]
  distinct = any(isinstance(each, selection.Deduplicate) for each in before)
  drawn = RandomLike(tuple(chosen[filter_at:]), seed, distinct)
  return (*before, drawn)
