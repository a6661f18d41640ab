"""What a reward does with spoiled texts, and what it must not depend on.

ReST makes of a reward's faults what it makes of its virtues, so each
perturbation is held to lower the reward. (The authors of ReST found that theirs
rose when a sentence was repeated.)
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from rest_jax.errors import RewardError
from rest_jax.rewards import base, cache, perturbations, scoring

_LEAST_FALL = 1e-5  # A smaller one may be rounding.
_BOTTOM = 0.01  # A reward below cannot be held to fall.
_INVARIANT_ROWS = 16
_LONGER = 8  # Times that the row beside which others are padded is said.


@dataclasses.dataclass(frozen=True)
class Texts:
  """Translations to be spoiled.

  Attributes:
    of: what they are, for people.
    source_ids: n numbers.
    sources: n texts.
    candidates: n translations.
    references: n references, or None.
  """

  of: str
  source_ids: list[int]
  sources: list[str]
  candidates: list[str]
  references: list[str] | None


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a reward did with texts spoiled in one way.

  Attributes:
    name: of the perturbation.
    texts: how many were held to fall.
    fell: how many of them fell.
    rose: how many rose.
    left_out: how many the perturbation does not apply to.
    at_bottom: how many had (next to) no reward to lose.
    before: their mean reward.
    after: their mean reward, spoiled.
    examples: [source, text, spoiled text, reward, reward of the spoiled text]
      of some that did not fall.
  """

  name: str
  texts: int
  fell: int
  rose: int
  left_out: int
  at_bottom: int
  before: float
  after: float
  examples: list[list[Any]]

  @property
  def fall_rate(self) -> float:
    """Share of the texts that fell; 1 where there is none."""
    return self.fell / self.texts if self.texts else 1.0

  @property
  def in_words(self) -> list[str]:
    """The examples, for people."""
    return [
      f'{self.name}: {source!r} → {text!r}: {before:.3f}; {spoiled!r}:'
      f' {after:.3f}'
      for source, text, spoiled, before, after in self.examples
    ]


@dataclasses.dataclass(frozen=True)
class Report:
  """What a check found, held against what it must be.

  Attributes:
    reward: name of the metric.
    of: what was spoiled.
    outcomes: one a perturbation.
    least: the rate at which each must fall.
    invariance: what was changed → largest difference of a reward.
    failures: what is wrong, in words; none for a sound reward.
  """

  reward: str
  of: str
  outcomes: list[Outcome]
  least: list[float]
  invariance: dict[str, float]
  failures: list[str]

  @property
  def examples(self) -> list[str]:
    """Texts whose reward did not fall, in words."""
    return [text for outcome in self.outcomes for text in outcome.in_words]

  @property
  def failing_examples(self) -> list[str]:
    """Those of perturbations under which it falls for too few."""
    return [
      text
      for outcome, least in zip(self.outcomes, self.least, strict=True)
      if outcome.fall_rate < least
      for text in outcome.in_words
    ]


def measure(
  reward: base.RewardModel,
  texts: Texts,
  ways: Sequence[perturbations.Perturbation],
  *,
  languages: tuple[str, str] = ('', ''),
  num_examples: int = 2,
  batch_size: int = 1024,
  scores: cache.ScoreCache | None = None,
) -> tuple[list[Outcome], pa.Table]:
  """Spoils texts in every way and scores them.

  Args:
    reward: R(x, y).
    texts: what to spoil.
    ways: to spoil them.
    languages: of the sources and of the translations.
    num_examples: texts kept a way, of those whose reward does not fall.
    batch_size: rows a call of the reward.
    scores: known from before, which new ones are added to.

  Returns:
    What came out, an outcome a perturbation; every spoiled text with its
    reward before and after.

  Raises:
    RewardError: the reward failed, or left its range; the perturbation is
      named.
  """
  score = functools.partial(
    scoring.rewards, reward, batch_size=batch_size, cache=scores
  )
  before = _rewards(score, texts, None, texts.candidates, 'as they are')
  outcomes, tables = [], []
  for way in ways:
    spoiled = {
      i: text
      for i, pair in enumerate(_pairs(texts, languages))
      if (text := way.apply(pair)) is not None
    }
    rows = np.fromiter(spoiled, np.int64, len(spoiled))
    changed = list(spoiled.values())
    after = _rewards(score, texts, rows, changed, way.name)
    table = pa.table(
      {
        'source_id': pa.array([texts.source_ids[i] for i in rows], 'int64'),
        'perturbation': pa.array([way.name] * len(rows), 'string'),
        'source': pa.array([texts.sources[i] for i in rows], 'string'),
        'text': pa.array([texts.candidates[i] for i in rows], 'string'),
        'spoiled': pa.array(changed, 'string'),
        'reward': before[rows],
        'reward_spoiled': after,
      }
    )
    tables.append(table)
    left_out = len(texts.sources) - len(rows)
    outcomes.append(_outcome(way.name, table, left_out, num_examples))
  return outcomes, pa.concat_tables(tables)


def _rewards(
  score: Callable[..., Float32[np.ndarray, ' m']],
  texts: Texts,
  rows: np.ndarray | None,
  candidates: list[str],
  what: str,
) -> Float32[np.ndarray, ' m']:
  """Rewards of candidates for some rows of the texts, or for all."""
  sources, references = texts.sources, texts.references
  if rows is not None:
    sources = [sources[i] for i in rows]
    references = references and [references[i] for i in rows]
  try:
    return score(sources, candidates, references)
  except RewardError as error:
    raise RewardError(f'on {texts.of}, {what}: {error}') from error


def _outcome(
  name: str, table: pa.Table, left_out: int, num_examples: int
) -> Outcome:
  """What came out of one way, from the rewards before and after."""
  before = table['reward'].to_numpy()
  change = table['reward_spoiled'].to_numpy() - before
  held = before > _BOTTOM
  stayed = np.flatnonzero(held & (change >= -_LEAST_FALL))
  shown = table.take(stayed[:num_examples]).drop(['source_id', 'perturbation'])
  judged = table.filter(pa.array(held))

  def mean(column: str) -> float:
    return float(judged[column].to_numpy().mean()) if len(judged) else 0.0

  return Outcome(
    name=name,
    texts=len(judged),
    fell=len(judged) - len(stayed),
    rose=int((held & (change > _LEAST_FALL)).sum()),
    left_out=left_out,
    at_bottom=table.num_rows - len(judged),
    before=mean('reward'),
    after=mean('reward_spoiled'),
    examples=[list(row.values()) for row in shown.to_pylist()],
  )


def _pairs(
  texts: Texts, languages: tuple[str, str]
) -> list[perturbations.Pair]:
  n = len(texts.sources)
  return [
    perturbations.Pair(
      texts.sources[i],
      texts.candidates[i],
      # A neighbour may be of the same document and much alike.
      texts.candidates[(i + n // 2) % n],
      *languages,
      number=i,
    )
    for i in range(n)
  ]


def differences(
  reward: base.RewardModel, texts: Texts, *, batch_size: int = 1024
) -> dict[str, float]:
  """How much rewards change with what they must not depend on.

  Args:
    reward: R(x, y).
    texts: of which the first are scored in several ways, past any cache and
      whatever the reward remembers.
    batch_size: rows a call of the reward, but for two where it is 1.

  Returns:
    'batch size', 'order' and 'padding' → the largest difference of a reward.

  Raises:
    RewardError: the reward failed.
  """
  columns = [texts.sources, texts.candidates]
  if reward.info.needs_reference:
    columns.append(base.check_references(reward.info, texts.references))
  most = max(1, min(_INVARIANT_ROWS, batch_size - 1))  # And the longer one.
  rows = list(zip(*columns, strict=True))[:most]

  def rewards(batch: list[tuple[str, ...]]) -> Float32[np.ndarray, ' n']:
    base.forget(reward)
    return base.to_unit_interval(scoring.call(reward, batch), reward.info)

  together = rewards(rows)
  source, candidate, *reference = rows[0]
  longer = (source, ' '.join([candidate] * _LONGER), *reference)
  ways = {
    'batch size': np.concatenate([rewards([row]) for row in rows]),
    'order': rewards(rows[::-1])[::-1],
    'padding': rewards([longer, *rows])[1:],
  }
  return {
    name: float(np.abs(given - together).max()) for name, given in ways.items()
  }
