"""Annotate: every row of a grown dataset is scored once, and stored.

Raw scores stand under the metric's name beside the samples; the reward in
[0, 1] that the algorithm uses stands in a folder of its own. A further metric
is added without touching samples or earlier scores.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from etils import epath
from jaxtyping import Float32

from rest_jax import config, preemption, score_parts
from rest_jax.context import IMPORTED, REWARD_DATA, Context
from rest_jax.data import scored, store
from rest_jax.data.lookup import Lookup
from rest_jax.errors import ConfigurationError, RewardError
from rest_jax.rewards import base, scoring
from rest_jax.run_directory import Stage


@dataclasses.dataclass(frozen=True)
class Annotate:
  """How samples are scored.

  Attributes:
    reward: the reward model R(x, y).
    further_metrics: other metrics, which influence nothing. Evaluations are
      scored by them too, and samples are.
    further_on_samples: whether samples are; otherwise evaluations alone, so
      that metrics which need references ask none of Grow's sources.
    batch_size: rows a call of a metric, at most, here and in evaluations.
    cache_scores: whether the run remembers the score of every pair, so that
      the same pair costs nothing in another Grow step or evaluation.
    allow_trained_on_overlap: whether the reward may have been trained on data
      that the run evaluates with; the results then say so.
  """

  reward: base.RewardModel
  further_metrics: tuple[base.RewardModel, ...] = ()
  further_on_samples: bool = True
  batch_size: int = 1024
  cache_scores: bool = True
  allow_trained_on_overlap: bool = False

  def __post_init__(self):
    names = [model.info.name for model in self.metrics]
    if len(set(names)) < len(names):
      raise ConfigurationError(
        f'Annotate.further_metrics: the names {names} must differ, since each'
        ' names a folder.'
      )
    if any(model.info.name == 'reward' for model in self.further_metrics):
      raise ConfigurationError(
        "Annotate.further_metrics: a metric named 'reward' would have the"
        " reward's columns in the results; give it another name."
      )
    settings: dict[str, Any] = {}
    for model in base.with_parts(self.metrics):
      # Of what a folder holds, `info.version` tells.
      name = model.info.name
      own = config.flatten(model, '') | config.flatten(model.info, 'info')
      if settings.setdefault(name, own) != own:
        raise ConfigurationError(
          f'two metrics or parts named {name!r} have other settings: give one'
          ' another name, since each names a folder.'
        )
    if self.batch_size < 1:
      raise ConfigurationError(
        f'Annotate.batch_size = {self.batch_size} must be at least 1.'
      )

  @property
  def metrics(self) -> tuple[base.RewardModel, ...]:
    """The reward, then the further metrics."""
    return (self.reward, *self.further_metrics)

  @property
  def of_samples(self) -> tuple[base.RewardModel, ...]:
    """The metrics that samples are scored by."""
    return self.metrics if self.further_on_samples else (self.reward,)

  @property
  def scored(self) -> list[base.RewardModel]:
    """What scores samples: the metrics, and before them their parts."""
    by_name = {m.info.name: m for m in base.with_parts(self.of_samples)}
    return list(by_name.values())


def run_scores(
  context: Context,
  stage: Stage,
  model: base.RewardModel,
  samples: Stage,
) -> None:
  """Scores every row of a grown dataset with one metric.

  Args:
    context: the run.
    stage: where to write; begun.
    model: the metric.
    samples: the grown dataset; committed.

  Raises:
    RewardError: the metric failed, gave a NaN or left its range, or needs
      references that some source lacks.
  """
  context.forget_params()  # A learned metric has parameters of its own.

  def make_scorer() -> score_parts.Scorer:
    references = _ReferenceColumn(context, model, samples)

    def score(path: epath.Path) -> Float32[np.ndarray, ' rows']:
      table = store.read_part(
        path, ('source_id', 'sample_index', 'source', 'target')
      )
      return scoring.raw_scores(
        model,
        table['source'].to_pylist(),
        table['target'].to_pylist(),
        references(table),
        batch_size=context.score_batch_size,
        cache=context.scores,
        advance=lambda rows: preemption.check(),
      )

    return score

  info = dataclasses.asdict(model.info)
  score_parts.run(context, stage, samples, make_scorer, {'info': info})


class _ReferenceColumn:
  """The references of a table of samples, or None where none are needed."""

  def __init__(self, context: Context, model: base.RewardModel, samples: Stage):
    self._info = model.info
    self._imported = samples.name.startswith(f'{IMPORTED}/')
    if self._info.needs_reference:
      columns = ('source_id', 'target')
      learning = samples.name.startswith(f'{REWARD_DATA}/')
      split = 'reward' if learning else 'grow'
      self._grow = Lookup(context.sources(split, columns), 'target')
      self._train = Lookup(context.sources('train', columns), 'target')

  def __call__(self, table: pa.Table) -> list[str] | None:
    if not self._info.needs_reference:
      return None
    ids = table['source_id'].to_pylist()
    if self._imported:  # References stand beside the outputs.
      found = scored.references(table).to_pylist()
    else:
      # A part holds samples of Grow's sources or references of D's, not both,
      # unless these are the same sources.
      grown = (table['sample_index'].to_numpy() >= 0).any()
      found = (self._grow if grown else self._train)(ids)
    if None in found:
      row = found.index(None)
      raise RewardError(
        f'reward {self._info.name!r} needs references, but source'
        f' {ids[row]} ({table["source"][row].as_py()!r}) has none; use a'
        ' reference-free reward, or GROW_SPLIT (IMPORTED_SAMPLES) with'
        ' references.'
      )
    return found


def run_combined(
  stage: Stage,
  model: base.Combination,
  parts: Sequence[Stage],
) -> None:
  """Computes a combination's scores from the stored ones of its parts.

  Args:
    stage: where to write; begun.
    model: the combination.
    parts: committed raw scores of each of `model.parts`.

  Raises:
    RewardError: it gave a NaN or left its range.
  """
  began = time.monotonic()
  for part in parts:
    part.verify()
  done = 0
  for path in store.part_paths(parts[0].folder):
    tables = [store.read_part(part.folder / path.name) for part in parts]
    scores = scoring.combined(
      model,
      [
        base.to_unit_interval(table['score'].to_numpy(), part.info)
        for table, part in zip(tables, model.parts, strict=True)
      ],
    )
    stage.write_part(path.name, store.scores_part(path, scores))
    done += len(scores)
  stage.commit(
    counts={'rows': done},
    seconds=time.monotonic() - began,
    extra={'info': dataclasses.asdict(model.info)},
  )


def run_reward(stage: Stage, model: base.RewardModel, scores: Stage) -> None:
  """Turns a metric's raw scores into rewards in [0, 1], part by part.

  Args:
    stage: where to write; begun.
    model: the metric.
    scores: its committed raw scores.
  """
  began = time.monotonic()
  scores.verify()
  total, weighted = 0, 0.0
  for path in store.part_paths(scores.folder):
    table = store.read_part(path)
    rewards = base.to_unit_interval(table['score'].to_numpy(), model.info)
    stage.write_part(path.name, store.scores_part(path, rewards))
    total += len(rewards)
    weighted += float(rewards.sum(dtype=np.float64))
  stage.commit(
    counts={'rows': total, 'reward_mean': weighted / max(total, 1)},
    seconds=time.monotonic() - began,
  )
