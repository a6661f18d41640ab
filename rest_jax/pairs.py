"""Pairs of a better and a worse sample of a source, for preference losses."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64

from rest_jax import rows as rows_lib
from rest_jax import selection


def best_and_worst(
  rows: rows_lib.Rows, kept: Bool[np.ndarray, 'm']
) -> tuple[Int64[np.ndarray, 'p'], Int64[np.ndarray, 'p']]:
  """The best kept sample of each source, and its worst one of another text.

  Only what the policy wrote and finished counts, for no other row has
  log-probabilities that a preference could be held against. Ties go to the
  sample that was drawn first. A source whose two rewards are equal has no pair.
  (Equal texts have equal rewards, unless these were permuted.)

  Args:
    rows: whole sources, with `text_ids`.
    kept: bool [m], what the selections left.

  Returns:
    int64 [p] twice, places of the better and of the worse row of p sources.
  """
  own = rows.finished & (rows.origin == rows_lib.POLICY)
  best = rows_lib.first_of_each(rows, own & kept, -rows.reward, 1)
  better = _place_of_each(rows, best)
  text_of_better = np.where(better < 0, -1, rows.text_ids[better])
  others = own & (rows.text_ids != text_of_better[rows.source_of_row])
  worst = rows_lib.first_of_each(rows, others, rows.reward, 1)
  worse = _place_of_each(rows, worst)
  paired = (better >= 0) & (worse >= 0)
  better, worse = better[paired], worse[paired]
  differ = rows.reward[better] > rows.reward[worse]
  return better[differ], worse[differ]


def select(
  selections: Sequence[selection.Selection], rows: rows_lib.Rows
) -> Bool[np.ndarray, 'm']:
  """The rows of the pairs whose better row selections keep, bool [m].

  As `selection.select`, but for pairs; `rows` have `text_ids` too.
  """
  pair = best_and_worst(rows, selection.select(selections, rows))
  kept = np.zeros(len(rows.reward), bool)
  kept[np.concatenate(pair)] = True
  return kept


def _place_of_each(
  rows: rows_lib.Rows, one: Bool[np.ndarray, 'm']
) -> Int64[np.ndarray, 'k']:
  """Where each source has its one row of a mask; −1 where it has none."""
  out = np.full(rows.num_sources, -1, np.int64)
  places = np.flatnonzero(one)
  out[rows.source_of_row[places]] = places
  return out
