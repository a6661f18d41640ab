"""Scoring of many rows: each distinct one once, in batches, checked."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32

from rest_jax.errors import RestJaxError, RewardError
from rest_jax.rewards import base


def raw_scores(
  model: base.RewardModel,
  sources: Sequence[str],
  candidates: Sequence[str],
  references: Sequence[str] | None,
  *,
  batch_size: int = 1024,
  advance: Callable[[int], None] = lambda rows: None,
) -> Float32[np.ndarray, ' n']:
  """The raw scores of n rows; equal rows are scored once.

  Args:
    model: the reward model.
    sources: n texts.
    candidates: n translations.
    references: n references, or None.
    batch_size: rows a call of the model.
    advance: called after every batch with its number of rows.

  Returns:
    float32 [n], each in the model's raw range.

  Raises:
    RewardError: the model failed, or gave a NaN, a score out of range or
      another number of scores.
  """
  info = model.info
  if info.needs_reference:
    references = base.check_references(info, references)
  columns = [sources, candidates]
  if references is not None:
    columns.append(references)
  numbers: dict[tuple[str, ...], int] = {}
  rows = list(zip(*columns, strict=True))
  inverse = np.array(
    [numbers.setdefault(row, len(numbers)) for row in rows], np.int64
  )
  distinct = list(numbers)
  scores = np.zeros(len(distinct), np.float32)
  for start in range(0, len(distinct), batch_size):
    batch = distinct[start : start + batch_size]
    fields = [list(field) for field in zip(*batch, strict=True)]
    try:
      given = model.score(*fields)
    except RestJaxError:
      raise
    except Exception as error:  # A user's own class may raise anything.
      raise RewardError(
        f'reward {info.name!r} raised {type(error).__name__}: {error} (source'
        f' {batch[0][0]!r} and {len(batch) - 1} more rows); mend the reward'
        ' model and start the same command again.'
      ) from error
    scores[start : start + len(batch)] = base.check_scores(
      np.asarray(given), info, len(batch), start
    )
    advance(len(batch))
  return scores[inverse]


def rewards(
  model: base.RewardModel,
  sources: Sequence[str],
  candidates: Sequence[str],
  references: Sequence[str] | None,
) -> Float32[np.ndarray, ' n']:
  """R(x, y) in [0, 1], higher is better, of n rows; errors as `raw_scores`."""
  scores = raw_scores(model, sources, candidates, references)
  return base.to_unit_interval(scores, model.info)
