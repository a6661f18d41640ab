"""SIGTERM, sent to this process by itself."""

import os
import signal

import jax
import numpy as np
import pytest
import tiny_policy

from rest_jax import preemption
from rest_jax.checkpoint import native
from rest_jax.errors import PreemptionError
from rest_jax.policy import Policy
from rest_jax.sharding import Layout
from rest_jax.training import early_stopping
from rest_jax.training.optimizer import Optimizer


def _terminate() -> None:
  os.kill(os.getpid(), signal.SIGTERM)


def test_the_signal_ends_at_once_what_does_not_defer_it():
  before = signal.getsignal(signal.SIGTERM)
  reached = []
  with (
    pytest.raises(PreemptionError, match='goes on from here') as error,
    preemption.heard(),
  ):
    _terminate()
    for _ in range(1000):
      pass
    reached.append('too far')
  assert error.value.exit_code == 75
  assert not reached
  assert signal.getsignal(signal.SIGTERM) == before


def test_what_defers_it_is_asked_and_ends_at_its_own_time():
  with preemption.heard(), pytest.raises(PreemptionError):
    assert not preemption.due()
    with preemption.deferred():
      _terminate()
      assert preemption.due()
      with pytest.raises(PreemptionError):
        preemption.check()
  with preemption.heard():
    assert not preemption.due()
    preemption.check()


def test_within_what_defers_it_some_may_end_at_once():
  with preemption.heard(), preemption.deferred():
    with preemption.prompt():
      pass
    with pytest.raises(PreemptionError), preemption.prompt():
      _terminate()
      for _ in range(1000):
        pass
    with pytest.raises(PreemptionError), preemption.prompt():
      pytest.fail('it had come before')
    preemption._heard = False


@pytest.fixture(scope='module')
def policy():
  return Policy(tiny_policy.CONFIG, Layout(data=1))


@pytest.fixture(scope='module')
def train(policy, tmp_path_factory):
  batches = tiny_policy.batches(tmp_path_factory.mktemp('rows'))

  def train(folder, on_step=lambda step: None, on_value=lambda number: None):
    asked = []

    def evaluate(params):
      asked.append(params)
      on_value(len(asked))
      return float(params['token_embedder']['embedding'][3, 3])

    return early_stopping.train(
      policy,
      lambda: policy.init(0),
      early_stopping.Training(
        Optimizer(learning_rate=0.05), tiny_policy.PACKING
      ),
      early_stopping.Stopping(max_steps=6, eval_every=3, patience=9),
      batches,
      evaluate,
      folder=folder,
      seed=0,
      learning_rate_scale=1.0,
      where='test',
      on_step=lambda event: on_step(event.step),
      on_evaluation=lambda evaluation: None,
    )

  return train


@pytest.fixture(scope='module')
def whole(train, tmp_path_factory):
  return train(tmp_path_factory.mktemp('whole'))


def _when(wanted):
  return lambda number: _terminate() if number == wanted else None


@pytest.mark.parametrize(
  'hooks, saved',
  [
    ({'on_step': _when(1)}, 2),  # Told of an update when the next is made.
    ({'on_step': _when(2)}, 3),  # Where an evaluation is due, but not made.
    ({'on_value': _when(2)}, 3),  # In the midst of an evaluation.
    ({'on_value': _when(1)}, 0),
    ({'on_step': _when(6)}, 6),
  ],
)
def test_training_saves_and_goes_on_as_if_nothing_had_been(
  hooks, saved, train, whole, tmp_path, monkeypatch
):
  with pytest.raises(PreemptionError), preemption.heard():
    train(tmp_path, **hooks)
  assert native.Checkpoints(tmp_path).latest() == saved
  steps, rewritten = [], []
  save = native.Checkpoints.save
  monkeypatch.setattr(
    native.Checkpoints,
    'save',
    lambda self, step, *rest: (rewritten.append(step), save(self, step, *rest)),
  )
  resumed = train(tmp_path, on_step=steps.append)
  # A process killed meanwhile would find what was saved, evaluated or not.
  assert saved not in rewritten
  assert steps == list(range(saved + 1, 7))
  assert resumed.history == whole.history
  jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
