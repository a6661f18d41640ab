"""Scoring of many rows: each distinct one once, in batches, checked, cached."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32

from rest_jax.errors import RestJaxError, RewardError
from rest_jax.rewards import base
from rest_jax.rewards import cache as cache_lib


def raw_scores(
  model: base.RewardModel,
  sources: Sequence[str],
  candidates: Sequence[str],
  references: Sequence[str] | None,
  *,
  batch_size: int = 1024,
  cache: cache_lib.ScoreCache | None = None,
  advance: Callable[[int], None] = lambda rows: None,
) -> Float32[np.ndarray, ' n']:
  """The raw scores of n rows; equal rows are scored once.

  A combination's parts are scored, and combined.

  Args:
    model: the reward model.
    sources: n texts.
    candidates: n translations.
    references: n references, or None; only what needs them is given them.
    batch_size: rows a call of the model.
    cache: scores known from before, which new ones are added to.
    advance: called after every batch with its number of rows.

  Returns:
    float32 [n], each in the model's raw range.

  Raises:
    RewardError: the model failed, or gave a NaN, a score out of range or
      another number of scores.
  """
  info = model.info
  if isinstance(model, base.Combination):
    parts = [
      rewards(
        part, sources, candidates, references,
        batch_size=batch_size, cache=cache, advance=advance,
      )
      for part in model.parts
    ]  # fmt: skip
    return combined(model, parts)
  columns = [sources, candidates]
  if info.needs_reference:
    columns.append(base.check_references(info, references))
  numbers: dict[tuple[str, ...], int] = {}
  rows = list(zip(*columns, strict=True))
  inverse = np.array(
    [numbers.setdefault(row, len(numbers)) for row in rows], np.int64
  )
  distinct = list(numbers)
  scores, known = np.zeros(len(distinct), np.float32), np.zeros(0, np.int64)
  table = keys = None
  if cache is not None:
    table = cache.table(model)
    keys = [cache_lib.key_of(row) for row in distinct]
    scores, found = table.find(keys)
    known = np.flatnonzero(found)
    advance(len(known))
  left = np.delete(np.arange(len(distinct)), known)
  for start in range(0, len(left), batch_size):
    batch = left[start : start + batch_size]
    scores[batch] = call(model, [distinct[i] for i in batch], start)
    if table is not None:
      table.add([keys[i] for i in batch], scores[batch])
    advance(len(batch))
  return scores[inverse]


def call(
  model: base.RewardModel, rows: Sequence[tuple[str, ...]], first_row: int = 0
) -> Float32[np.ndarray, ' n']:
  """The raw scores of rows, in one call of the model, checked.

  Args:
    model: the reward model.
    rows: n of source and candidate, and of reference if it needs one.
    first_row: number of the first row, for errors.

  Raises:
    RewardError: as `raw_scores`.
  """
  info = model.info
  columns = [list(column) for column in zip(*rows, strict=True)]
  references = columns.pop() if info.needs_reference else None
  try:
    given = model.score(*columns, references)
  except RestJaxError:
    raise
  except Exception as error:  # A user's own class may raise anything.
    raise RewardError(
      f'reward {info.name!r} raised {type(error).__name__}: {error} (source'
      f' {rows[0][0]!r} and {len(rows) - 1} more rows); mend the reward'
      ' model and start the same command again.'
    ) from error
  return base.check_scores(np.asarray(given), info, len(rows), first_row, rows)


def combined(
  model: base.Combination, parts: Sequence[Float32[np.ndarray, ' n']]
) -> Float32[np.ndarray, ' n']:
  """The scores of a combination, from the rewards of its parts.

  Raises:
    RewardError: it gave a NaN, a score out of range or another number of
      scores.
  """
  scores = model.combine(np.stack(parts).astype(np.float64))
  return base.check_scores(scores, model.info, len(parts[0]))


def rewards(
  model: base.RewardModel,
  sources: Sequence[str],
  candidates: Sequence[str],
  references: Sequence[str] | None,
  *,
  batch_size: int = 1024,
  cache: cache_lib.ScoreCache | None = None,
  advance: Callable[[int], None] = lambda rows: None,
) -> Float32[np.ndarray, ' n']:
  """R(x, y) in [0, 1], higher is better, of n rows; else as `raw_scores`."""
  scores = raw_scores(
    model, sources, candidates, references,
    batch_size=batch_size, cache=cache, advance=advance,
  )  # fmt: skip
  return base.to_unit_interval(scores, model.info)
