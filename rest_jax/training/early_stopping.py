"""Training that stops when a figure no longer improves, and keeps the best.

A killed process goes on from its last checkpoint: batches are a function of
(seed, step), and what was evaluated so far is saved with the parameters.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from rest_jax import hosts, losses, preemption
from rest_jax.checkpoint import native
from rest_jax.data import loader
from rest_jax.errors import ConfigurationError, PreemptionError
from rest_jax.network import Network
from rest_jax.training import fit as fit_lib
from rest_jax.training import optimizer as optimizer_lib
from rest_jax.training import state as state_lib
from rest_jax.training import step as step_lib
from rest_jax.types import Params, TrainState


@dataclasses.dataclass(frozen=True)
class Training:
  """How a network is trained, whatever it is trained on.

  Attributes:
    optimizer: Adafactor or AdamW, with its peak learning rate.
    loss: what is minimised; a reward's is that of its rows, whatever is set.
    packing: shape of a batch.
    num_microbatches: parts that a batch is cut into to save memory.
  """

  optimizer: optimizer_lib.Optimizer
  packing: loader.Packing
  loss: losses.TokenLoss = losses.BehavioralCloning()
  num_microbatches: int = 1


@dataclasses.dataclass(frozen=True)
class Stopping:
  """When training ends.

  Attributes:
    max_steps: updates at most.
    eval_every: updates between two evaluations (and checkpoints).
    patience: evaluations in a row without a new best before training ends.
  """

  max_steps: int
  eval_every: int
  patience: int

  def __post_init__(self):
    for name, least in (('max_steps', 0), ('eval_every', 1), ('patience', 1)):
      if getattr(self, name) < least:
        raise ConfigurationError(
          f'Stopping.{name} = {getattr(self, name)} must be at least {least}.'
        )


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One evaluation during training.

  Attributes:
    step: updates made.
    value: the figure that decides, higher is better.
    train_tokens: target tokens trained on so far.
  """

  step: int
  value: float
  train_tokens: int


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How training ended.

  Attributes:
    params: parameters of the best evaluation.
    best: that evaluation.
    history: all evaluations, that of update 0 first.
  """

  params: Params
  best: Evaluation
  history: tuple[Evaluation, ...]

  @property
  def updates(self) -> int:
    """Updates made, those after the best included."""
    return self.history[-1].step


def best_of(history: list[Evaluation]) -> Evaluation:
  """The first evaluation with the highest value."""
  return max(history, key=lambda evaluation: evaluation.value)


def train(
  policy: Network,
  params: Params,
  training: Training,
  stopping: Stopping,
  batches: loader.TrainingBatches,
  evaluate: Callable[[Params], float],
  *,
  folder: Any,
  seed: int,
  learning_rate_scale: float,
  where: str,
  on_step: Callable[[fit_lib.StepDone], None],
  on_evaluation: Callable[[Evaluation], None],
) -> Outcome:
  """Trains until `stopping` says so; resumes from `folder`.

  Args:
    policy: the policy, or another network with a `score` for the loss.
    params: parameters to start from; evaluated as update 0, which is kept if
      no update is better.
    training: how.
    stopping: until when.
    batches: the data.
    evaluate: the figure that decides, higher is better.
    folder: of the checkpoints, emptied of all but the best and the last.
    seed: of dropout.
    learning_rate_scale: factor on the optimizer's learning rate.
    where: name of the stage, for messages.
    on_step: called after each update.
    on_evaluation: called after each evaluation.

  Returns:
    The best parameters and the history.

  Raises:
    NonFiniteError: loss, gradient or parameters are NaN or infinite.
    StorageError: a checkpoint cannot be written.
    PreemptionError: SIGTERM came; the state is saved.
  """
  checkpoints = native.Checkpoints(folder)
  state, history, tokens = _resume(
    policy, params, training.optimizer, checkpoints
  )

  def record(state: TrainState) -> None:
    try:
      with preemption.prompt():
        value = float(evaluate(state.params))
    except PreemptionError:
      _save(checkpoints, state, history, tokens)
      raise
    history.append(Evaluation(int(state.step), value, tokens))
    on_evaluation(history[-1])
    _save(checkpoints, state, history, tokens)

  with preemption.deferred():
    if _unevaluated(state, history, stopping):
      record(state)
    events = _events(
      policy, training, stopping, state, batches, seed,
      learning_rate_scale, where,
    )  # fmt: skip
    if not _ended(history, stopping):
      for event in events:
        if isinstance(event, fit_lib.StepDone):
          tokens += int(event.metrics['tokens'])
          on_step(event)
        elif event.interrupted:
          _save(checkpoints, event.state, history, tokens)
          raise preemption.preempted()
        elif event.step > history[-1].step:
          record(event.state)
          if _ended(history, stopping):
            break
  # Devices that have room for one state need not hold a second one.
  events.close()
  state = event = None
  best = best_of(history)
  abstract = state_lib.abstract_state(policy, training.optimizer).params
  best_params = checkpoints.restore_params(best.step, abstract)
  return Outcome(best_params, best, tuple(history))


def _events(
  policy, training, stopping, state, batches, seed, learning_rate_scale, where
):
  """The training loop; see `fit.fit`."""
  return fit_lib.fit(
    state,
    step_lib.make_train_step(
      policy,
      training.optimizer,
      training.loss,
      num_microbatches=training.num_microbatches,
    ),
    batches.starting_at(int(state.step)),
    num_steps=stopping.max_steps,
    checkpoint_every=stopping.eval_every,
    dropout_key=_dropout_key(policy, seed),
    learning_rate_scale=learning_rate_scale,
    where=where,
    interrupted=preemption.due,
  )


def _dropout_key(policy: Network, seed: int) -> jax.Array | None:
  if not policy.config.dropout_rate:
    return None
  return jax.random.key(seed)


def _ended(history: list[Evaluation], stopping: Stopping) -> bool:
  last, best = history[-1], best_of(history)
  waited = sum(evaluation.step > best.step for evaluation in history)
  return last.step >= stopping.max_steps or waited >= stopping.patience


def _unevaluated(
  state: TrainState, history: list[Evaluation], stopping: Stopping
) -> bool:
  """Whether the state is due to be evaluated, and the run was ended before."""
  step = int(state.step)
  if not history:
    return True
  return step > history[-1].step and step % stopping.eval_every == 0


def _resume(
  policy: Network,
  params: Params,
  optimizer: optimizer_lib.Optimizer,
  checkpoints: native.Checkpoints,
) -> tuple[TrainState, list[Evaluation], int]:
  """The state to go on from, what was evaluated, and tokens trained on."""
  step, extra = hosts.on_first(lambda: _latest(checkpoints))
  if step is None:
    return state_lib.init_state(policy, optimizer, params), [], 0
  history = [Evaluation(**record) for record in extra['history']]
  abstract = state_lib.abstract_state(policy, optimizer)
  tokens = extra.get('train_tokens')
  if tokens is None:  # Saved by a version that saved only after evaluations.
    tokens = history[-1].train_tokens
  return checkpoints.restore(step, abstract), history, tokens


def _latest(checkpoints: native.Checkpoints) -> tuple[int | None, Any]:
  step = checkpoints.latest()
  return step, None if step is None else checkpoints.extra(step)


def _save(
  checkpoints: native.Checkpoints,
  state: TrainState,
  history: list[Evaluation],
  tokens: int,
) -> None:
  """Saves the state, then lets go of all but the best and the last."""
  step = int(state.step)
  records = [dataclasses.asdict(evaluation) for evaluation in history]
  extra = {'history': records, 'train_tokens': tokens}
  # What is there is this state, saved before it was evaluated: to write it
  # again is to be without it for a while.
  if hosts.on_first(lambda: step in checkpoints.steps()):
    hosts.on_first(lambda: checkpoints.amend(step, extra))
  else:
    checkpoints.save(step, state, extra)
  kept = {step, *(best_of(history).step for _ in history[:1])}
  hosts.on_first(lambda: checkpoints.keep(kept))
