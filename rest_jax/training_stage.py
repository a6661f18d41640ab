"""What stages that train a network have in common.

They train until a figure stops rising, show how it goes, keep the parameters
that were best, and commit them.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from rest_jax import hosts
from rest_jax.checkpoint import native
from rest_jax.context import PARAMS, Context
from rest_jax.models.config import T5Config
from rest_jax.planning import chips, counts
from rest_jax.run_directory import Stage
from rest_jax.training import early_stopping, fit, speed
from rest_jax.types import Params


class _Reporter:
  """Shows a training stage's progress, and writes its curves."""

  def __init__(
    self,
    context: Context,
    stage: Stage,
    total: int,
    figure: str,
    unit: str = 'tokens',
    flops: float | None = None,
    member: int | None = None,
  ):
    """Begins to count.

    Args:
      context: of the run.
      stage: that trains.
      total: updates at most.
      figure: what evaluations measure; a loss is stored negated.
      unit: what is counted as trained on.
      flops: operations of an update, see `update_flops`.
      member: which network it is where the stage trains several.
    """
    context.progress.count_anew()
    self._unit = unit
    self._speed = speed.Speed(flops, chips.peak_of(jax.devices()))
    self._progress, self._name = context.progress, stage.name
    if member is not None:
      self._name = f'{stage.name}/member_{member}'
      context.progress.note(f'member {member}')
    self._total, self._figure = total, figure
    self._tokens, self._began = 0.0, time.monotonic()
    self._last: dict[str, float] = {}

  def on_step(self, event: fit.StepDone) -> None:
    """Shows an update."""
    self._tokens += event.metrics['tokens']
    rate = self._tokens / (time.monotonic() - self._began)
    shown = {'loss': event.metrics['loss'], f'{self._unit}/s': rate}
    self._progress.update(event.step, self._total, **shown, **self._last)
    self._speed.add(event.metrics['tokens'], event.input_seconds)
    if event.step % 10 == 0:
      curves = {f'train/{k}': v for k, v in event.metrics.items()}
      curves |= {f'speed/{k}': v for k, v in self._speed.means().items()}
      self._progress.scalars(self._name, event.step, curves)

  def on_evaluation(self, evaluation: early_stopping.Evaluation) -> None:
    """Shows an evaluation."""
    value = abs(evaluation.value)
    self._last = {self._figure: value}
    self._progress.note(
      f'update {evaluation.step:,}: {self._figure} {value:.4f}'
    )
    self._progress.scalars(
      self._name, evaluation.step, {f'select/{self._figure}': value}
    )
    self._speed.skip()


def train(
  context: Context,
  stage: Stage,
  network: early_stopping.Trainable,
  start: Callable[[], Params],
  training: early_stopping.Training,
  stopping: early_stopping.Stopping,
  batches: early_stopping.Batches,
  evaluate: Callable[[Params], float],
  *,
  figure: str,
  seed: int,
  member: int | None = None,
  unit: str = 'tokens',
  flops: float | None = None,
  **further: Any,
) -> early_stopping.Outcome:
  """Trains in a stage; goes on from its last checkpoint, if there is one.

  Args:
    context: of the run.
    stage: where to write; begun.
    network: what is trained.
    start: where it starts; see `early_stopping.train`.
    training: how.
    stopping: until when.
    batches: what each update trains on.
    evaluate: the figure that decides, higher is better; a loss is negated.
    figure: its name.
    seed: of dropout.
    member: which network it is where the stage trains several.
    unit: what is counted as trained on.
    flops: operations of an update, see `update_flops`.
    **further: of `early_stopping.train`.

  Returns:
    The best parameters and the history.

  Raises:
    NonFiniteError: training diverged.
    StorageError: a checkpoint cannot be written.
    PreemptionError: SIGTERM came; the state is saved.
  """
  reporter = _Reporter(
    context, stage, stopping.max_steps, figure, unit, flops, member
  )
  context.forget_params()
  folder, where = 'checkpoints', stage.name
  if member is not None:
    folder, where = f'{folder}_{member}', f'{where}, member {member}'
  return early_stopping.train(
    network,
    start,
    training,
    stopping,
    batches,
    evaluate,
    folder=stage.work / folder,
    seed=seed,
    where=where,
    on_step=reporter.on_step,
    on_evaluation=reporter.on_evaluation,
    **further,
  )


def update_flops(config: T5Config, training: early_stopping.Training) -> float:
  """Operations of an update of a policy, forward and backward once."""
  packing = training.packing
  return counts.train_flops(
    dataclasses.replace(config, remat='none'),  # What it does twice is no use.
    packing.rows_per_batch,
    packing.source_length,
    packing.target_length,
  )


def finish(
  stage: Stage,
  outcome: early_stopping.Outcome,
  began: float,
  counts: dict[str, int],
  extra: Mapping[str, Any] | None = None,
) -> None:
  """Keeps the best parameters, and commits."""
  commit(
    stage,
    outcome.params,
    counts
    | {
      'updates': outcome.updates,
      'best_update': outcome.best.step,
      'train_tokens': outcome.history[-1].train_tokens,
    },
    began - outcome.seconds_before,
    {'history': [dataclasses.asdict(e) for e in outcome.history]}
    | dict(extra or {}),
  )


def commit(
  stage: Stage,
  params: Params,
  counts: dict[str, int],
  began: float,
  extra: dict[str, Any] | None = None,
) -> None:
  """Saves a stage's parameters, and commits it."""
  content = native.save_params(stage.folder / PARAMS, params)
  seconds = time.monotonic() - began
  hosts.on_first(
    lambda: stage.commit(counts, seconds, extra, {PARAMS: content})
  )
