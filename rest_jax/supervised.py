"""Supervised training: the BC policy, from which the first Grow step samples.

L_NLL(θ) = −E_(x,y)~D Σ_t log π_θ(y_t | y_<t, x) (Gulcehre et al. 2023,
arXiv:2308.08998, equation 1).
"""

import dataclasses
import functools
import time
from collections.abc import Iterator

import numpy as np

from rest_jax import hosts, losses, scratch, training_stage
from rest_jax.checkpoint import formats, trained_in
from rest_jax.context import Context
from rest_jax.data import loader
from rest_jax.errors import ConfigurationError, DataError
from rest_jax.run_directory import Stage
from rest_jax.training import early_stopping, step
from rest_jax.types import Params

TrainingRow = tuple[np.ndarray, np.ndarray, float, bool]


@dataclasses.dataclass(frozen=True)
class Supervised:
  """How BC is trained: until its loss on D_select stops falling.

  Attributes:
    training: optimizer, loss and batch shape.
    stopping: until when; `max_steps` = 0 keeps the initial parameters.
    initial_checkpoint_path: a checkpoint of rest_jax, T5X or Hugging Face to
      start from; None starts anew.
  """

  training: early_stopping.Training
  stopping: early_stopping.Stopping
  initial_checkpoint_path: str | None = None

  def __post_init__(self):
    loss = self.training.loss
    if not (
      isinstance(loss, losses.BehavioralCloning) and loss.fits_references
    ):
      raise ConfigurationError(
        f'Supervised.training.loss = {type(loss).__name__} needs what'
        ' references do not have; bind it for Improve alone, as'
        ' improving/early_stopping.Training.loss.'
      )


def original_rows(context: Context, split: str) -> Iterator[TrainingRow]:
  """The pairs of a data split as training rows of weight 1."""
  for table in context.sources(split, ('source_tokens', 'target_tokens')):
    pairs = zip(
      table['source_tokens'].to_numpy(),
      table['target_tokens'].to_numpy(),
      strict=True,
    )
    for source, target in pairs:
      if target is not None:
        yield source, target, 1.0, True


def dev_loss(
  context: Context,
  training: early_stopping.Training,
  batches: loader.TrainingBatches,
):
  """A function from parameters to −nll on D_select, in nats a token."""
  # Measured without smoothing and penalties, so that figures compare.
  loss = dataclasses.replace(training.loss, label_smoothing=0.0, z_loss=0.0)
  eval_step = step.make_eval_step(context.policy, loss)

  def evaluate(params: Params) -> float:
    return -step.evaluate_loss(eval_step, params, batches.once())['nll']

  return evaluate


def run(context: Context, stage: Stage, settings: Supervised) -> None:
  """Trains BC on D.

  Args:
    context: the run.
    stage: where to write; begun.
    settings: how.

  Raises:
    DataError: a split that is needed has no targets, or a row does not fit.
    NonFiniteError: training diverged.
  """
  began = time.monotonic()
  _check_checkpoint(context, settings)
  start = functools.partial(_initial_params, context, settings)
  if not settings.stopping.max_steps:
    training_stage.commit(
      stage, start(), {'updates': 0, 'train_tokens': 0}, began
    )
    return
  rows = _written(context, stage, 'rows', 'train')
  dev = _written(context, stage, 'dev_rows', 'select')
  if not len(dev):
    raise DataError(
      'the dev data have no targets, so BC cannot tell when to stop; give'
      ' DEV_SPLIT a split with references.'
    )
  packing, share = (
    settings.training.packing,
    context.policy.placement.batch_share,
  )
  dev_batches = loader.TrainingBatches(dev, packing, 0, 'union', *share)
  batches = loader.TrainingBatches(rows, packing, context.seed, 'union', *share)
  context.progress.note(
    f'{len(rows):,} pairs, {batches.steps_per_epoch:,} updates an epoch,'
    f' {100 * batches.padding_share:.1f} % padding'
  )
  outcome = training_stage.train(
    context,
    stage,
    context.policy,
    start,
    settings.training,
    settings.stopping,
    batches,
    dev_loss(context, settings.training, dev_batches),
    figure='dev_nll',
    seed=context.seed,
    flops=training_stage.update_flops(context.model, settings.training),
  )
  training_stage.finish(stage, outcome, began, {'pairs': len(rows)})


def _written(
  context: Context, stage: Stage, name: str, split: str
) -> loader.TrainingRows:
  """The pairs of a split as rows on disk; the first process writes them."""
  path = stage.work / name

  def write() -> int:
    folder = scratch.local(path)
    return len(loader.write_rows(folder, original_rows(context, split)))

  hosts.on_first(write)
  return loader.TrainingRows.open(scratch.share(path))


def _check_checkpoint(context: Context, settings: Supervised) -> None:
  """Finds a checkpoint of another model before all of D is written as rows."""
  path = settings.initial_checkpoint_path
  if path is None:
    return
  found = formats.find(path)
  formats.check_names(
    found,
    context.policy.abstract_params(),
    tokenizer_size=context.tokenizer.size,
  )
  origin = trained_in.TrainedIn.find(found.path)
  if found.format == 'native' and origin is not None:
    origin.check_tokenizer(context.tokenizer.fingerprint)


def _initial_params(context: Context, settings: Supervised) -> Params:
  path = settings.initial_checkpoint_path
  if path is None:
    return context.policy.init(context.seed)
  found = formats.find(path)
  if found.note:
    context.progress.note(found.note)
  return formats.restore(
    found, context.policy.placed_params(), tokenizer_size=context.tokenizer.size
  )
