"""Columns of a data split, looked up for sources in the order of the data."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa


class Lookup:
  """Streams a split once, and keeps only what the last question touched.

  The store keeps sources in the order of the data, so that questions asked in
  the store's order need constant memory.
  """

  def __init__(self, tables: Iterator[pa.Table], column: str):
    """Reads nothing before the first question.

    Args:
      tables: tables with `source_id` and `column`, in the order of the data.
      column: what to look up.
    """
    self._tables, self._column = tables, column
    self._known: dict[int, Any] = {}

  def __call__(self, source_ids: Sequence[int]) -> list[Any]:
    """The values of `column` for these sources; None where there is none."""
    missing = set(source_ids) - self._known.keys()
    if source_ids:
      self._forget_before(set(source_ids))
    while missing:
      table = next(self._tables, None)
      if table is None:
        break
      ids = table['source_id'].to_pylist()
      if missing.isdisjoint(ids):
        continue  # The data's order has passed it: nobody will ask again.
      self._known.update(zip(ids, table[self._column].to_pylist(), strict=True))
      missing.difference_update(ids)
    return [self._known.get(source_id) for source_id in source_ids]

  def _forget_before(self, wanted: set[int]) -> None:
    """Lets go of sources that come before all wanted ones in the data."""
    for source_id in list(self._known):
      if source_id in wanted:
        break
      del self._known[source_id]
