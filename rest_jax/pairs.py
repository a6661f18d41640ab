"""Pairs of a better and a worse sample of a source, for preference losses."""

import numpy as np
from jaxtyping import Bool, Int64

from rest_jax import rows as rows_lib


def best_and_worst(
  rows: rows_lib.Rows, kept: Bool[np.ndarray, 'm']
) -> tuple[Int64[np.ndarray, 'p'], Int64[np.ndarray, 'p']]:
  """The best kept sample of each source, and its worst sample of all.

  Only what the policy wrote and finished counts, for no other row has
  log-probabilities that a preference could be held against. Ties go to the
  sample that was drawn first. A source whose two rewards are equal has no pair.

  Args:
    rows: whole sources.
    kept: bool [m], what the selections left.

  Returns:
    int64 [p] twice, places of the better and of the worse row of p sources.
  """
  own = rows.finished & (rows.origin == rows_lib.POLICY)
  best = rows_lib.first_of_each(rows, own & kept, -rows.reward, 1)
  worst = rows_lib.first_of_each(rows, own, rows.reward, 1)
  worst_of = np.full(rows.num_sources, -1, np.int64)
  places = np.flatnonzero(worst)
  worst_of[rows.source_of_row[places]] = places
  better = np.flatnonzero(best)
  worse = worst_of[rows.source_of_row[better]]
  differ = rows.reward[better] > rows.reward[worse]
  return better[differ], worse[differ]
