"""Training that stops when a figure no longer improves, and keeps the best.

A killed process goes on from its last checkpoint: batches are a function of
(seed, step), and what was evaluated so far is saved with the parameters.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from rest_jax import hosts, losses, preemption
from rest_jax.checkpoint import native
from rest_jax.data import loader
from rest_jax.errors import (
  ConfigurationError,
  CorruptStateError,
  NonFiniteError,
  PreemptionError,
)
from rest_jax.training import fit as fit_lib
from rest_jax.training import optimizer as optimizer_lib
from rest_jax.training import state as state_lib
from rest_jax.training import step as step_lib
from rest_jax.types import Params, TrainState


@runtime_checkable
class Batches(Protocol):
  """What each update trains on, a function of its number."""

  def starting_at(self, step: int) -> Iterator[Any]:
    """Yields what update `step`, `step` + 1, … train on, without end."""


@runtime_checkable
class Trainable(Protocol):
  """What can be trained: a network, or several as one."""

  @property
  def config(self) -> Any:
    """Its shape; `dropout_rate` is read."""

  def abstract_params(self) -> Params:
    """Returns the tree of `jax.ShapeDtypeStruct`s of the parameters."""

  def param_shardings(self) -> Params:
    """Returns the tree of the parameters' `NamedSharding`s."""

  def score(self, params: Params, batch: Any, dropout_key: Any = None) -> Any:
    """Returns what the loss asks of each target token."""


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
    decoded_tokens: tokens decoded for this and all evaluations before it.
  """

  step: int
  value: float
  train_tokens: int
  decoded_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How training ended.

  Attributes:
    params: parameters of the best evaluation.
    best: that evaluation.
    history: all evaluations, that of update 0 first.
    seconds_before: what earlier starts took, up to the checkpoint that this one
      went on from.
  """

  params: Params
  best: Evaluation
  history: tuple[Evaluation, ...]
  seconds_before: float = 0.0

  @property
  def updates(self) -> int:
    """Updates made, those after the best included."""
    return self.history[-1].step


def best_of(history: list[Evaluation]) -> Evaluation:
  """The first evaluation with the highest value."""
  return max(history, key=lambda each: np.nan_to_num(each.value, nan=-np.inf))


def train(
  policy: Trainable,
  start: Callable[[], Params],
  training: Training,
  stopping: Stopping,
  batches: Batches,
  evaluate: Callable[[Params], float],
  *,
  folder: Any,
  seed: int,
  where: str,
  on_step: Callable[[fit_lib.StepDone], None],
  on_evaluation: Callable[[Evaluation], None],
  learning_rate_scale: float = 1.0,
  decoded: Callable[[], int] = lambda: 0,
  train_step: Callable[..., Any] | None = None,
  interrupted: Callable[[], bool] = preemption.due,
) -> Outcome:
  """Trains until `stopping` says so; resumes from `folder`.

  Args:
    policy: the policy, or another network with a `score` for the loss.
    start: reads or makes the parameters to start from, unless there is a
      checkpoint to go on from; they are evaluated as update 0, which is kept if
      no update is better. A function, so that nobody holds them while others
      are trained: devices need not have room for both.
    training: how.
    stopping: until when.
    batches: the data.
    evaluate: the figure that decides, higher is better.
    folder: of the checkpoints, emptied of all but the best and the last.
    seed: of dropout, which losses that compare policies train without.
    where: name of the stage, for messages.
    on_step: called after each update.
    on_evaluation: called after each evaluation.
    learning_rate_scale: factor on the optimizer's learning rate.
    decoded: tokens that have been decoded so far in this process.
    train_step: makes an update with what `batches` gives; by default that of
      the policy, the optimizer and the loss.
    interrupted: asked after every update whether to save and end here.

  Returns:
    The best parameters and the history.

  Raises:
    NonFiniteError: loss, gradient or parameters are NaN or infinite.
    StorageError: a checkpoint cannot be written.
    PreemptionError: SIGTERM came; the state is saved.
  """
  record = _Record(native.Checkpoints(folder), stopping, decoded)
  state = record.resume(policy, start, training.optimizer)

  def judge(state: TrainState) -> None:
    on_evaluation(record.evaluated(state, evaluate, where))
    record.save(state)

  with preemption.deferred():
    if record.lacks(state):
      judge(state)
    events = fit_lib.fit(
      state,
      train_step or _train_step(policy, training),
      batches.starting_at(int(state.step)),
      num_steps=stopping.max_steps,
      checkpoint_every=stopping.eval_every,
      dropout_key=dropout_key(policy, training.loss, seed),
      learning_rate_scale=learning_rate_scale,
      where=where,
      interrupted=interrupted,
    )
    if not record.ended:
      for event in events:
        if isinstance(event, fit_lib.StepDone):
          record.train_tokens += int(event.metrics['tokens'])
          on_step(event)
        elif event.interrupted:
          record.save(event.state)
          raise preemption.preempted()
        elif event.step > record.last_step:
          judge(event.state)
          if record.ended:
            break
  # Devices that have room for one state need not hold a second one.
  events.close()
  state = event = None
  abstract = state_lib.abstract_state(policy, training.optimizer).params
  return record.outcome(abstract)


def _train_step(policy: Trainable, training: Training) -> step_lib.TrainStep:
  return step_lib.make_train_step(
    policy,
    training.optimizer,
    training.loss,
    num_microbatches=training.num_microbatches,
  )


def dropout_key(
  policy: Trainable, loss: losses.TokenLoss, seed: int
) -> jax.Array | None:
  """The key that a network is trained with; None for no dropout."""
  compares = isinstance(loss, losses.PolicyLoss) and loss.compares
  if compares or not policy.config.dropout_rate:
    return None
  return jax.random.key(seed)


class _Record:
  """What training has come to, which every checkpoint of it tells.

  Attributes:
    history: all evaluations so far.
    train_tokens: target tokens trained on so far.
  """

  def __init__(
    self,
    checkpoints: native.Checkpoints,
    stopping: Stopping,
    decoded: Callable[[], int],
  ):
    """Of training that has not begun; see `resume`."""
    self._checkpoints, self._stopping = checkpoints, stopping
    self._decoded, self._began = decoded, time.monotonic()
    self.history: list[Evaluation] = []
    self.train_tokens = 0
    # By earlier starts.
    self._decoded_before, self._seconds_before = 0, 0.0

  def resume(
    self,
    policy: Trainable,
    start: Callable[[], Params],
    optimizer: optimizer_lib.Optimizer,
  ) -> TrainState:
    """Returns the state to go on from: of the last checkpoint, or the first.

    Raises:
      ConfigurationError: a checkpoint is of another network or optimizer.
      CorruptStateError: a checkpoint is damaged, or that of the best is gone.
    """
    checkpoints = self._checkpoints
    step, extra = hosts.on_first(lambda: _latest(checkpoints))
    if step is None:
      return state_lib.init_state(policy, optimizer, start())
    self.history = [Evaluation(**record) for record in extra['history']]
    folder = checkpoints.path(step).parent
    anew = f'delete {folder} to train from the beginning'
    if self.history:
      best = best_of(self.history).step
      if not hosts.on_first(lambda: best in checkpoints.steps()):
        raise CorruptStateError(
          f'{folder} lacks the best policy so far, that of update {best}:'
          f' {anew}.'
        )
    # Versions that lacked these saved only after evaluations, or decoded there.
    self.train_tokens, self._decoded_before = (
      extra[name] if name in extra else getattr(self.history[-1], name)
      for name in ('train_tokens', 'decoded_tokens')
    )
    self._seconds_before = extra.get('seconds', 0.0)
    abstract = state_lib.abstract_state(policy, optimizer)
    try:
      return checkpoints.restore(step, abstract)
    except ConfigurationError as error:
      raise ConfigurationError(
        f'{error} Where another version of rest_jax began this training,'
        f' {anew}.'
      ) from error

  @property
  def last_step(self) -> int:
    """The update that was evaluated last."""
    return self.history[-1].step

  @property
  def ended(self) -> bool:
    """Whether all updates are made, or the best has been so for too long."""
    best = best_of(self.history)
    waited = sum(evaluation.step > best.step for evaluation in self.history)
    stopping = self._stopping
    return self.last_step >= stopping.max_steps or waited >= stopping.patience

  def lacks(self, state: TrainState) -> bool:
    """Whether a state was due to be evaluated when the run was ended."""
    step = int(state.step)
    if not self.history:
      return True
    return step > self.last_step and step % self._stopping.eval_every == 0

  def evaluated(
    self, state: TrainState, evaluate: Callable[[Params], float], where: str
  ) -> Evaluation:
    """Evaluates a state, and remembers it.

    Raises:
      NonFiniteError: the figure is NaN or infinite.
      PreemptionError: SIGTERM came; the state is saved.
    """
    try:
      with preemption.prompt():
        value = float(evaluate(state.params))
    except PreemptionError:
      self.save(state)
      raise
    step = int(state.step)
    if not math.isfinite(value):
      raise NonFiniteError(
        f'{where}, update {step}: the figure that decides is {value}, so no'
        ' update could be chosen; look at the held-out data, and at what judges'
        ' them.'
      )
    self.history.append(
      Evaluation(step, value, self.train_tokens, self._decoded_tokens)
    )
    return self.history[-1]

  @property
  def _decoded_tokens(self) -> int:
    return self._decoded_before + self._decoded()

  def save(self, state: TrainState) -> None:
    """Saves a state, then lets go of all but the best and the last."""
    checkpoints, step = self._checkpoints, int(state.step)
    extra = {
      'history': [
        dataclasses.asdict(evaluation) for evaluation in self.history
      ],
      'train_tokens': self.train_tokens,
      'decoded_tokens': self._decoded_tokens,
      'seconds': self._seconds_before + time.monotonic() - self._began,
    }
    # What is there is this state, saved before it was evaluated: to write it
    # again is to be without it for a while.
    if hosts.on_first(lambda: step in checkpoints.steps()):
      hosts.on_first(lambda: checkpoints.amend(step, extra))
    else:
      checkpoints.save(step, state, extra)
    kept = {step, *(best_of(self.history).step for _ in self.history[:1])}
    hosts.on_first(lambda: checkpoints.keep(kept))

  def outcome(self, abstract: Params) -> Outcome:
    """The best parameters, read as `abstract` describes them."""
    best = best_of(self.history)
    return Outcome(
      self._checkpoints.restore_params(best.step, abstract),
      best,
      tuple(self.history),
      self._seconds_before,
    )


def _latest(checkpoints: native.Checkpoints) -> tuple[int | None, Any]:
  step = checkpoints.latest()
  return step, None if step is None else checkpoints.extra(step)
