"""What every reward model is, and the one place where scores turn to rewards.

A reward model gives raw scores on a scale of its own (chrF 0–100, MetricX
25–0, …). They are stored as they are; `to_unit_interval` turns them to rewards
R(x, y) in [0, 1], higher is better, which is all that the algorithm ever sees.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32

from rest_jax import errors


@dataclasses.dataclass(frozen=True)
class RewardInfo:
  """What a reader must know of a metric before trusting its numbers.

  Attributes:
    name: of the metric, and of its folder of scores: letters, digits, '_', '-',
      '.' and '+'.
    version: changes whenever the same pair could get another score.
    low: the smallest raw score.
    high: the largest raw score.
    higher_is_better: False for error rates (TER, MetricX).
    needs_reference: whether `score` reads references; it is given None else.
    trained_on: names of data sets that the metric was fitted on, e.g. 'wmt20'.
  """

  name: str
  version: str
  low: float
  high: float
  higher_is_better: bool = True
  needs_reference: bool = False
  trained_on: tuple[str, ...] = ()

  def __post_init__(self):
    # A name becomes a folder's.
    if not self.name or set(self.name) & set('/\\ \t\n') or self.name[0] == '.':
      raise errors.ConfigurationError(
        f'RewardInfo.name {self.name!r} cannot name a folder: use letters,'
        ' digits, _, -, . and +'
      )
    if not (np.isfinite([self.low, self.high]).all() and self.low < self.high):
      raise errors.ConfigurationError(
        f'reward {self.name!r}: its range [{self.low}, {self.high}] must be'
        ' finite, with low < high'
      )


@runtime_checkable
class RewardModel(Protocol):
  """A metric that can score translations; any class with these two will do."""

  @property
  def info(self) -> RewardInfo:
    """Name, version, range and direction of the scores."""

  def score(
    self,
    sources: Sequence[str],
    candidates: Sequence[str],
    references: Sequence[str] | None = None,
  ) -> Float32[np.ndarray, ' n']:
    """Scores n candidates.

    A score must depend on its own row alone: not on the batch, its order or its
    size.

    Args:
      sources: n texts.
      candidates: n translations of them.
      references: n right translations, or None where the metric needs none.

    Returns:
      float32 [n], raw, within [info.low, info.high].
    """


@runtime_checkable
class Combination(RewardModel, Protocol):
  """A reward model that is computed from the rewards of others."""

  @property
  def parts(self) -> tuple[RewardModel, ...]:
    """The others."""

  def combine(
    self, rewards: Float[np.ndarray, 'parts n']
  ) -> Float[np.ndarray, ' n']:
    """The scores of n rows, from each part's rewards in [0, 1]."""


def with_parts(models: Sequence[RewardModel]) -> list[RewardModel]:
  """All models and what they are made of, each after its own parts."""
  found = []
  for model in models:
    if isinstance(model, Combination):
      found += with_parts(model.parts)
    found.append(model)
  return found


def forget(model: RewardModel) -> None:
  """Has a model, and what it is made of, forget scores that it remembers."""
  for part in with_parts([model]):
    if hasattr(part, 'forget'):
      part.forget()


def check_references(
  info: RewardInfo, references: Sequence[str] | None
) -> Sequence[str]:
  """References for a metric that needs them.

  Raises:
    RewardError: there are none.
  """
  if references is None:
    raise errors.RewardError(
      f'reward {info.name!r} needs references and these rows have none: use'
      ' a reference-free reward or sources with targets'
    )
  return references


def check_scores(
  scores: Float[np.ndarray, '...'],
  info: RewardInfo,
  num_rows: int,
  first_row: int = 0,
  texts: Sequence[tuple[str, ...]] = (),
) -> Float32[np.ndarray, ' n']:
  """Scores as float32, after making sure that they are what `info` promises.

  Args:
    scores: what a reward model gave for a batch, [num_rows].
    info: of the reward model.
    num_rows: how many rows it was given.
    first_row: number of the batch's first row, for the message.
    texts: source and candidate of each row, likewise.

  Returns:
    float32 [num_rows].

  Raises:
    RewardError: another count, a NaN or infinity, or a score outside the range.
      The message names metric, row and value.
  """
  scores = np.asarray(scores)
  if scores.shape != (num_rows,):
    raise errors.RewardError(
      f'reward {info.name!r} gave scores of shape {scores.shape} for'
      f' {num_rows} rows from row {first_row}: it must give one a row'
    )
  scores = scores.astype(np.float32)
  # Written so that NaN counts as outside.
  slack = 1e-6 * (info.high - info.low)
  inside = (scores >= info.low - slack) & (scores <= info.high + slack)
  if not inside.all():
    at = int(np.flatnonzero(~inside)[0])
    text = ''
    if texts:
      source, candidate, *_ = texts[at]
      text = f' (source {source!r}, candidate {candidate!r})'
    raise errors.RewardError(
      f'reward {info.name!r} gave {scores[at]} for row {first_row + at}{text}:'
      f' scores must lie in [{info.low}, {info.high}]; mend the metric or its'
      ' declared range'
    )
  return np.clip(scores, np.float32(info.low), np.float32(info.high))


def to_unit_interval(
  scores: Float[np.ndarray, ' n'], info: RewardInfo
) -> Float32[np.ndarray, ' n']:
  """Raw scores → rewards in [0, 1], higher is better.

  R = (s − low) / (high − low), or 1 − that where lower is better. The scale is
  the metric's declared range, so it is the same in every step of a run.

  Args:
    scores: [n], raw, within the range.
    info: of the metric.

  Returns:
    float32 [n].
  """
  unit = (np.asarray(scores, np.float64) - info.low) / (info.high - info.low)
  if not info.higher_is_better:
    unit = 1.0 - unit
  return np.clip(unit, 0.0, 1.0).astype(np.float32)
