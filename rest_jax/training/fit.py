"""The training loop, as a generator of what happened.

It knows no logging, evaluation or disk: the caller does these between events,
and stops training by leaving the loop.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator

import jax

from rest_jax import errors, types


@dataclasses.dataclass(frozen=True)
class StepDone:
  """An update was made, and its figures are finite.

  Attributes:
    step: updates made so far.
    metrics: of that update, on the host; see `TrainStep`.
    input_seconds: that it waited for its batch.
  """

  step: int
  metrics: dict[str, float]
  input_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class CheckpointDue:
  """A state that may be saved or evaluated; the next step consumes it.

  Attributes:
    step: updates made so far.
    state: the state after them, valid until the loop goes on.
    interrupted: whether it is due because training has to stop here.
  """

  step: int
  state: types.TrainState
  interrupted: bool = False


Event = StepDone | CheckpointDue


def fit(
  state: types.TrainState,
  train_step: Callable[..., tuple[types.TrainState, dict[str, jax.Array]]],
  batches: Iterator[types.Batch],
  *,
  num_steps: int,
  checkpoint_every: int,
  dropout_key: jax.Array | None = None,
  learning_rate_scale: float = 1.0,
  where: str = 'training',
  interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[Event]:
  """Trains from `state.step` to `num_steps`, yielding every event.

  While the device makes an update the host prepares the next batch, so a
  `StepDone` comes one update late, but always before a `CheckpointDue` of a
  step not smaller. The last event is always the `CheckpointDue` of the last
  step, also where nothing was left to do.

  Args:
    state: where to start; it is consumed.
    train_step: `(state, batch, dropout_key, learning_rate_scale) -> (state,
      metrics)`, a `TrainStep`.
    batches: batches from step `state.step` on, without end.
    num_steps: updates in all, with those already in `state.step`.
    checkpoint_every: a `CheckpointDue` after every so many updates.
    dropout_key: see `TrainStep`.
    learning_rate_scale: see `TrainStep`.
    where: what is trained, for the error's message, e.g. 'grow_1/improve_2'.
    interrupted: asked after every update whether training has to stop; then a
      `CheckpointDue` says so.

  Yields:
    `StepDone` and `CheckpointDue`.

  Raises:
    ConfigurationError: when `num_steps` or `checkpoint_every` is out of range.
    NonFiniteError: when loss, gradient or a parameter is NaN or infinite; no
      state with it is ever yielded.
  """
  if num_steps < 0 or checkpoint_every < 1:
    raise errors.ConfigurationError(
      f'num_steps = {num_steps} must be at least 0 and checkpoint_every = '
      f'{checkpoint_every} at least 1, in {where}.'
    )
  step = int(state.step)
  if step >= num_steps:
    yield CheckpointDue(step, state)
    return
  pending = None
  while step < num_steps:
    began = time.monotonic()
    batch = next(batches)
    waited = time.monotonic() - began
    state, metrics = train_step(state, batch, dropout_key, learning_rate_scale)
    step += 1
    if pending is not None:
      yield _step_done(*pending, where)
    pending = (step, metrics, waited)
    stop = interrupted()
    if stop or step % checkpoint_every == 0 or step == num_steps:
      yield _step_done(*pending, where)
      pending = None
      yield CheckpointDue(step, state, stop)


def _step_done(
  step: int, metrics: dict[str, jax.Array], waited: float, where: str
) -> StepDone:
  values = {name: float(x) for name, x in jax.device_get(metrics).items()}
  if not values['finite']:
    raise errors.NonFiniteError(
      f'{where}, update {step}: loss {values["loss"]}, gradient norm '
      f'{values["grad_norm"]}, parameter norm {values["param_norm"]}. Lower '
      'LEARNING_RATE (IMPROVE_LEARNING_RATE, REWARD_LEARNING_RATE) or '
      'Optimizer.clip_norm, delete the folder of that stage and start again.'
    )
  return StepDone(step, values, waited)
