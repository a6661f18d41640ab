"""Improve: the next policy, trained on the rows of D_g that pass a filter.

J(θ) = E_(x,y)~D_g [F(x, y; τ_i) · L(x, y; θ)] (Gulcehre et al. 2023,
arXiv:2308.08998, equation 2). The control rows are Improve steps too: they
differ in which rows they train on, and in nothing else.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from etils import epath

from rest_jax import (
  anchored,
  grown_data,
  hosts,
  losses,
  penalised,
  random_control,
  schedule,
  scratch,
  select_reward,
  selection,
  supervised,
  training_stage,
  values,
)
from rest_jax import evaluate as evaluate_lib
from rest_jax.context import BC, Context
from rest_jax.data import loader
from rest_jax.errors import ConfigurationError, DataError
from rest_jax.grown_data import Selections
from rest_jax.rewards import base
from rest_jax.run_directory import Stage
from rest_jax.training import early_stopping
from rest_jax.training import step as step_lib
from rest_jax.types import Params

Control = Literal['none', 'random', 'continued', 'permuted']


@dataclasses.dataclass(frozen=True)
class Improve:
  """How a policy is improved on a grown dataset.

  Attributes:
    training: optimizer (with the learning rate of the first Improve step),
      loss and batch shape.
    stopping: until when, by the reward on D_select.
    schedule: the rising filters of Improve steps 1 … I.
    include_unfiltered: whether Improve step 0, on the whole of D_g, is made.
    original_data: whether references of D train beside samples: 'none',
      'unfiltered' (all of them), or 'filtered' (those that pass the filter).
    mixture: 'union', or λ, the probability that a training row is a grown one.
    before: further selections, applied before the schedule's.
    after: further selections, applied after it.
    learning_rate_decay: factor on the learning rate from one Improve step to
      the next, in each Grow step anew.
    allow_tau_below_mean: whether τ_1 ≤ V = E_{D_g}[R] is accepted.
    restart_from_base: whether each Improve step starts from BC (ReST-EM)
      instead of from the policy before it.
    value: how the value model is trained, for losses that need one.
    accumulate: whether D_g has the samples of all Grow steps so far (expert
      iteration) instead of the last one's alone. Rules that compare samples of
      a source still compare those of one Grow step. With
      `selection.Deduplicate` a text that an earlier one gave is still compared,
      and not trained on again.
  """

  training: early_stopping.Training
  stopping: early_stopping.Stopping
  schedule: schedule.Schedule
  include_unfiltered: bool = True
  original_data: Literal['none', 'unfiltered', 'filtered'] = 'filtered'
  mixture: float | Literal['union'] = 'union'
  before: Selections = ()
  after: Selections = ()
  learning_rate_decay: float = 0.5
  allow_tau_below_mean: bool = dataclasses.field(default=False, compare=False)
  restart_from_base: bool = False
  value: values.TrainValue | None = None
  accumulate: bool = False

  def __post_init__(self):
    if not 0 < self.learning_rate_decay <= 1:
      raise ConfigurationError(
        f'Improve.learning_rate_decay = {self.learning_rate_decay} must be in'
        ' (0, 1]: learning rates fall from step to step.'
      )
    selection.needs_of((*self.before, *self.after))  # Not after Grow.
    loss = self.training.loss
    if not grown_data.is_offline(loss):
      raise ConfigurationError(
        f'Improve.training.loss = {type(loss).__name__} is no loss of a policy'
        ' on stored samples; give one of rest_jax.losses, offline_losses or'
        ' constrained_losses, or a subclass of losses.PolicyLoss.'
      )
    if type(loss).__hash__ is None:
      raise ConfigurationError(
        f'Improve.training.loss = {type(loss).__name__} cannot be a part of a'
        ' compiled program: write @dataclasses.dataclass(frozen=True) over it.'
      )
    if 'values' in loss.needs and self.value is None:
      raise ConfigurationError(
        f'Improve.training.loss = {type(loss).__name__} needs a value model,'
        ' but nothing trains it; give --gin_file=losses/value.gin too, which'
        ' binds Improve.value.'
      )
    if loss.duals and self.training.num_microbatches > 1:
      raise ConfigurationError(
        f'Improve.training.loss = {type(loss).__name__} takes the better half'
        ' of a whole batch, which NUM_MICROBATCHES ='
        f' {self.training.num_microbatches} would cut; set it to 1, and'
        ' BATCH_ROWS lower where memory is short.'
      )
    if self.accumulate and self.original_data != 'none':
      raise ConfigurationError(
        f'Improve.accumulate = True with ORIGINAL_DATA = {self.original_data!r}'
        ' would count each reference once for every Grow step; set it to'
        " 'none'."
      )
    if self.mixture != 'union' and (
      isinstance(self.mixture, str) or not 0 <= self.mixture <= 1
    ):
      raise ConfigurationError(
        f"MIXTURE = {self.mixture!r} must be 'union' or a number in [0, 1]."
      )

  @property
  def uses_rewards(self) -> bool:
    """Whether rewards matter to a step beside its schedule's filter."""
    further = (*self.before, *self.after)
    return self.training.loss.uses_rewards or selection.uses_rewards(further)

  @property
  def asks_bc(self) -> bool:
    """Whether some selection asks how likely samples are to BC."""
    needs = selection.needs_of((*self.before, *self.after))
    penalty = schedule.kl_penalty(self.schedule)
    return bool(penalty) or penalised.LOG_RATIOS in needs


@dataclasses.dataclass(frozen=True)
class Step:
  """One Improve step of a run, or the control beside it.

  Attributes:
    start: stage of the policy that it starts from.
    grow_step: g, from 1.
    improve_step: i; 0 is unfiltered.
    stores: the stores of scored rows that make up D_g: that of Grow step g (of
      all up to it with `Improve.accumulate`), and that of imported samples
      where there are any.
    control: 'none' for ReST itself; 'random' trains on random rows, as many a
      source as the filter keeps; 'permuted' as ReST itself, on rewards that
      have changed places within each source; 'continued' on the references of
      D alone.
    twin: for a control, the stage whose number of updates it makes.
    value: stage of the value model, where the loss needs one.
    trained_on: what its rows are, for people.
  """

  start: str
  grow_step: int
  improve_step: int
  stores: tuple[str, ...]
  control: Control = 'none'
  twin: str | None = None
  value: str | None = None
  trained_on: str = ''


def run(
  context: Context,
  stage: Stage,
  settings: Improve,
  evaluation: evaluate_lib.Evaluate,
  reward: base.RewardModel,
  step: Step,
) -> None:
  """Trains the next policy.

  Args:
    context: the run.
    stage: where to write; begun.
    settings: how.
    evaluation: how D_select is sampled for the reward.
    reward: R(x, y), which decides when to stop and what to keep.
    step: which step.

  Raises:
    ConfigurationError: the schedule does not rise, or begins below V.
    DataError: no sample passes the filter.
    NonFiniteError: training diverged.
    RewardError: the reward model failed.
  """
  began = time.monotonic()
  training = dataclasses.replace(
    settings.training, loss=loss_of(settings, step.control)
  )
  counts, mixture, kept = hosts.on_first(
    lambda: _write_rows(context, stage, settings, step, training.loss)
  )
  rows = loader.TrainingRows.open(scratch.share(_rows_path(stage)))
  _score_rows(context, rows, training, step)
  network, start, training = _network(context, training, step)
  stopping = settings.stopping
  if step.twin is not None:
    stopping = _as_long_as(context.read(step.twin), stopping)
  batches = _batches(context, rows, training, mixture, _seed(context, step))
  selecting = select_reward.SelectReward(context, evaluation, reward)
  outcome = training_stage.train(
    context,
    stage,
    network,
    start,
    training,
    stopping,
    batches,
    lambda params: selecting(_policy_of(network, params)),
    figure='reward',
    seed=_seed(context, step),
    flops=training_stage.update_flops(context.model, settings.training),
    learning_rate_scale=settings.learning_rate_decay
    ** (step.improve_step - (0 if settings.include_unfiltered else 1)),
    decoded=lambda: selecting.decoded_tokens,
  )
  counts |= {
    'select_samples': len(outcome.history) * selecting.num_samples,
    'select_tokens': outcome.history[-1].decoded_tokens,
  }
  if not outcome.best.step:
    context.progress.note(
      'no update improved the reward on D_select: the policy stays as it was'
    )
  outcome = dataclasses.replace(
    outcome, params=_policy_of(network, outcome.params)
  )
  told = {'loss': training.loss.name, 'trained_on': step.trained_on}
  training_stage.finish(stage, outcome, began, counts, kept | told)


def _seed(context: Context, step: Step) -> int:
  """Of a step's order of rows and dropout, and of those of its controls.

  With that of the step before it each would begin with the same batches, and
  its errors would repeat.
  """
  parts = (context.seed, step.grow_step, step.improve_step)
  return int(np.random.SeedSequence(parts).generate_state(1)[0] >> 1)


def _batches(
  context: Context,
  rows: loader.TrainingRows,
  training: early_stopping.Training,
  mixture: float | str,
  seed: int,
) -> loader.TrainingBatches:
  """What each update trains on; says how much of it there is."""
  batches = loader.TrainingBatches(
    rows,
    training.packing,
    seed,
    mixture,
    *context.policy.placement.batch_share,
  )
  context.progress.note(
    f'{len(rows):,} rows, {100 * batches.grown_share:.0f} % grown,'
    f' {batches.steps_per_epoch:,} updates an epoch,'
    f' {100 * batches.padding_share:.1f} % padding'
  )
  return batches


def _network(
  context: Context, training: early_stopping.Training, step: Step
) -> tuple[Any, Callable[[], Params], early_stopping.Training]:
  """What is trained, where it starts, and how: the policy, or more beside."""
  network = anchored.network_for(context.policy, training.loss)
  if network is None:
    start = functools.partial(context.read_params, step.start)
    return context.policy, start, training
  stages = {'start': step.start, 'bc': BC}

  def wrapped() -> Params:
    read = {
      stage: context.read_params(stage)
      # In one order in all processes, which read them together.
      for stage in sorted({step.start, *map(stages.get, training.loss.anchors)})
    }
    anchors = {name: read[stages[name]] for name in training.loss.anchors}
    return network.wrap(read[step.start], anchors)

  return network, wrapped, anchored.frozen_in(training)


def _policy_of(network: Any, params: Params) -> Params:
  return params['policy'] if isinstance(network, anchored.Anchored) else params


def _as_long_as(
  twin: Stage, stopping: early_stopping.Stopping
) -> early_stopping.Stopping:
  """As many updates as another stage made, whatever the reward does."""
  updates = twin.manifest['counts']['updates']
  return dataclasses.replace(stopping, max_steps=updates, patience=updates + 1)


def loss_of(settings: Improve, control: Control) -> losses.PolicyLoss:
  """The loss of an Improve step; BC's where D's own pairs do not fit it.

  With the same smoothing, penalty and normalization, where the loss has them.
  """
  loss = settings.training.loss
  if control != 'continued' or loss.fits_references:
    return loss
  own, of_bc = (
    {field.name for field in dataclasses.fields(kind)}
    for kind in (loss, losses.BehavioralCloning)
  )
  return losses.BehavioralCloning(
    **{name: getattr(loss, name) for name in own & of_bc}
  )


def _rows_path(stage: Stage) -> epath.Path:
  return stage.work / 'rows'


def _write_rows(
  context: Context,
  stage: Stage,
  settings: Improve,
  step: Step,
  loss: losses.PolicyLoss,
) -> tuple[dict[str, int], float | str, dict[str, Any]]:
  """Writes what the step trains on.

  Returns:
    The counts of rows, the mixture, and what else is to be remembered.
  """
  folder = scratch.local(_rows_path(stage))
  if step.control == 'continued':
    rows = loader.write_rows(folder, supervised.original_rows(context, 'train'))
    return {'references': len(rows)}, 'union', {}
  permuted = None
  if step.control == 'permuted':
    permuted = grown_data.permutation(settings, loss)
  grown = grown_data.GrownData(
    context, settings, step.stores, permuted=permuted
  )
  chosen = grown.selections(step.improve_step)[step.improve_step]
  if step.control == 'random':
    chosen = random_control.like(chosen, len(settings.after), context.seed)
  (kept,) = grown.previews([chosen])
  if not kept.kept_samples:
    i = step.improve_step
    label = settings.schedule.label(i) if i else 'that they reached EOS'
    mend = 'lower it (THRESHOLDS, SCHEDULE)' if i else 'train BC for longer'
    raise DataError(
      f'{stage.name}: none of {kept.samples:,} samples passes the filter'
      f' ({label}); {mend}, or grow more samples.'
    )
  rows = loader.write_rows(
    folder,
    grown.training_rows(chosen, loss),
    figures=grown_data.written_figures(loss),
    group=2 if loss.paired else 1,
  )
  trained = kept
  if loss.paired:  # Two samples of some of the sources.
    (trained,) = grown.previews([chosen], paired=True)
  counts = {
    'kept_samples': trained.kept_samples,
    'kept_sources': trained.kept_sources,
    'starved_sources': trained.starved_sources,
    'distinct_samples': trained.distinct_samples,
    'references': int(rows.is_original.sum()),
  }
  if loss.paired:
    counts['pairs'] = len(rows) // 2
  context.progress.note(
    f'{kept.kept_samples:,} of {kept.samples:,} samples kept (reward'
    f' {kept.mean_reward:.3f}), {kept.starved_sources:,} of'
    f' {kept.sources:,} sources starved'
  )
  has_both = 0 < counts['references'] < len(rows)
  mixture = settings.mixture if has_both else 'union'
  by_length = [None if np.isnan(s) else s for s in trained.kept_by_length]
  return counts, mixture, {'kept_by_length': by_length}


def _score_rows(
  context: Context,
  rows: loader.TrainingRows,
  training: early_stopping.Training,
  step: Step,
) -> None:
  """Has the log-probabilities computed that the loss needs of policies."""
  by = {'bc_log_probs': BC, 'start_log_probs': step.start}
  share = context.policy.placement.batch_share
  batches = loader.TrainingBatches(rows, training.packing, 0, 'union', *share)
  for name in training.loss.needs:
    if name == 'values':
      model, params = values.read(context, step.value)
      measure = functools.partial(step_lib.scores, model, params)
    elif name in by:
      measure = functools.partial(
        step_lib.target_log_probs, context.policy, context.params(by[name])
      )
    else:
      continue
    rows.add_figure(name, batches.each_token(measure))
