"""Training of the value V(x, y_<t): what reward a prefix still promises.

A T5 encoder–decoder with a scalar at every prefix, trained on the Monte-Carlo
returns of the stored samples:

  L(φ) = E_{(x,y)~D_g} Σ_t (V_φ(x, y_<t) − R(x, y))²

The reward comes at the end and is not discounted (the ReST paper, appendix
A.8.4, discounts by a γ that it does not give), so that it is the return of
every prefix, and A(x, y_≤t) = R(x, y) − V(x, y_<t) is the advantage of a token.
"""

import dataclasses
import functools
import hashlib
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rest_jax import (
  grown_data,
  hosts,
  losses,
  scratch,
  selection,
  training_stage,
  types,
  value_model,
)
from rest_jax.checkpoint import native
from rest_jax.context import BC, PARAMS, Context
from rest_jax.data import loader
from rest_jax.errors import ConfigurationError, DataError
from rest_jax.rewards import agreement
from rest_jax.run_directory import Stage
from rest_jax.training import early_stopping, step
from rest_jax.types import Params

_JUDGED = 4096  # Samples whose order is compared.


@dataclasses.dataclass(frozen=True)
class TrainValue:
  """How the value model is trained; it begins as BC with a new read-out.

  Attributes:
    training: optimizer and batch shape; the loss is the value's, whatever is
      set.
    stopping: until when, by the loss on held-out sources.
    held_out: share of the sources.
  """

  training: early_stopping.Training
  stopping: early_stopping.Stopping
  held_out: float = 0.1

  def __post_init__(self):
    if not 0.0 < self.held_out < 1.0:
      raise ConfigurationError(
        f'TrainValue.held_out = {self.held_out} must be in (0, 1).'
      )


@dataclasses.dataclass(frozen=True)
class ValueRegression(losses.PolicyLoss):
  """Squared error of values to the Monte-Carlo return."""

  figure: ClassVar[str] = 'squared_error'
  name: ClassVar[str] = 'value'
  needs: ClassVar[tuple[str, ...]] = (losses.RETURNS,)
  uses_rewards: ClassVar[bool] = True

  def __call__(
    self, scores: Float[Array, 'b t'], batch: types.Batch
  ) -> jax.Array:
    """Returns the loss of each prefix, float32 [b, t]."""
    returns = jnp.asarray(batch.decoder_figures[losses.RETURNS])
    return losses.squared_error(scores, returns)

  def plain(self, scores: Float[Array, 'b t'], batch: types.Batch) -> jax.Array:
    """Returns the same."""
    return self(scores, batch)


def stage_name(grow_step: int, *, permuted: bool) -> str:
  """The stage of a Grow step's value model."""
  return f'{"permuted/" if permuted else ""}grow_{grow_step}/value'


def run(
  context: Context,
  stage: Stage,
  settings: TrainValue,
  grown: grown_data.GrownData,
) -> None:
  """Trains the value model on all finished samples of D_g, and judges it.

  Args:
    context: the run.
    stage: where to write; begun.
    settings: how.
    grown: the samples and their rewards.

  Raises:
    DataError: no sample is left to train on, or to hold out.
    NonFiniteError: training diverged.
  """
  began = time.monotonic()
  loss = ValueRegression()
  training = dataclasses.replace(settings.training, loss=loss)
  model = value_model.ValueModel(context.model, context.layout)
  paths = {name: stage.work / name for name in ('rows', 'held_out')}

  def write() -> None:
    for name, path in paths.items():
      loader.write_rows(
        scratch.local(path),
        _part(_rows(grown, loss), settings.held_out, name == 'held_out'),
        figures=grown_data.written_figures(loss),
      )

  hosts.on_first(write)
  parts = {
    name: loader.TrainingBatches(
      loader.TrainingRows.open(scratch.share(path)),
      training.packing,
      context.seed,
      'union',
      *model.placement.batch_share,
    )
    for name, path in paths.items()
  }
  eval_step = step.make_eval_step(model, loss)

  def evaluate(params: Params) -> float:
    found = step.evaluate_loss(eval_step, params, parts['held_out'].once())
    return -found[loss.figure]

  outcome = training_stage.train(
    context,
    stage,
    model,
    lambda: value_model.from_policy(
      model, context.read_params(BC), context.seed
    ),
    training,
    settings.stopping,
    parts['rows'],
    evaluate,
    figure=f'dev_{loss.figure}',
    seed=context.seed,
  )
  figures = {
    f'{name}_{figure}': value
    for name, batches in parts.items()
    for figure, value in judge(model, outcome.params, batches).items()
  }
  context.progress.note(
    ', '.join(f'{name} {value:.4f}' for name, value in figures.items())
  )
  counts = {name: len(batches.rows) for name, batches in parts.items()}
  training_stage.finish(stage, outcome, began, counts | figures)


def read(
  context: Context, stage_name: str
) -> tuple[value_model.ValueModel, Params]:
  """The value model that a committed stage holds, and its parameters."""
  model = value_model.ValueModel(context.model, context.layout)
  folder = context.read(stage_name).folder / PARAMS
  return model, native.restore_params(folder, model.placed_params())


def judge(
  model: value_model.ValueModel, params: Params, batches: loader.TrainingBatches
) -> dict[str, float]:
  """How the values of whole samples order them, against their rewards.

  Kendall's τ_b and Spearman's ρ over the first samples, as the ReST paper gives
  them for its value functions; those that are defined. A sample's value is the
  one before its last token. Where rewards tie, no τ_b of untied values reaches
  1, so the share of the pairs of different reward in the right order, as C − D
  over their number, stands beside it.
  """
  rows = batches.rows
  ends = rows.target_offsets[1 : 1 + _JUDGED]
  values = batches.each_token(
    functools.partial(step.scores, model, params), first=len(ends)
  )
  found, wanted = (
    values[ends - 1],
    np.asarray(rows.figures['returns'])[ends - 1],
  )
  figures = {
    'kendall': agreement.kendall_tau(wanted, found),
    'kendall_untied': agreement.kendall_untied(wanted, found),
    'spearman': agreement.spearman(wanted, found),
  }
  return {k: v for k, v in figures.items() if math.isfinite(v)}


def _rows(
  grown: grown_data.GrownData, loss: losses.PolicyLoss
) -> Iterator[tuple[Any, ...]]:
  """All finished samples, whatever their reward."""
  return grown.training_rows((selection.SamplesOnly(),), loss)


def _part(
  rows: Iterable[tuple[Any, ...]], share: float, held_out: bool
) -> Iterator[tuple[Any, ...]]:
  """The rows of about that share of the sources, or of all others.

  Raises:
    DataError: there is none.
  """
  count = 0
  for row in rows:
    tokens = np.asarray(row[0], np.int32).tobytes()
    digest = hashlib.blake2b(tokens, digest_size=8).digest()
    chosen = int.from_bytes(digest, 'little') < share * 2**64
    if chosen == held_out:
      count += 1
      yield row
  if not count:
    what = 'held out' if held_out else 'left to train on'
    raise DataError(
      f'no finished sample is {what} for the value model: set'
      f' TrainValue.held_out = {share:g}, the share of sources,'
      f' {"higher" if held_out else "lower"}, or grow from more sources.'
    )
