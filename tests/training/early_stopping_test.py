import dataclasses
import weakref

import jax
import numpy as np
import pytest
import tiny_policy

from rest_jax.checkpoint import native
from rest_jax.errors import (
  ConfigurationError,
  CorruptStateError,
  NonFiniteError,
)
from rest_jax.policy import Policy
from rest_jax.sharding import Layout
from rest_jax.training import early_stopping
from rest_jax.training import state as state_lib
from rest_jax.training.optimizer import Optimizer

TRAINING = early_stopping.Training(
  Optimizer(learning_rate=0.05), tiny_policy.PACKING
)


@pytest.fixture(scope='module')
def policy():
  return Policy(tiny_policy.CONFIG, Layout(data=1))


@pytest.fixture(scope='module')
def batches(tmp_path_factory):
  return tiny_policy.batches(tmp_path_factory.mktemp('rows'))


def train(
  policy,
  batches,
  folder,
  values,
  max_steps=8,
  patience=2,
  seen=None,
  start=None,
  training=TRAINING,
):
  """Trains with evaluations that read their values from a list, by step."""
  asked = []

  def evaluate(params):
    del params
    step = asked[-1] + 2 if asked else 0
    asked.append(step)
    return values[step // 2]

  latest = native.Checkpoints(folder).latest()
  if latest is not None:
    asked.append(latest)
  steps = [] if seen is None else seen
  return early_stopping.train(
    policy,
    start or (lambda: policy.init(0)),
    training,
    early_stopping.Stopping(max_steps, 2, patience),
    batches,
    evaluate,
    folder=folder,
    seed=0,
    learning_rate_scale=1.0,
    where='test',
    on_step=lambda event: steps.append(event.step),
    on_evaluation=lambda evaluation: None,
  )


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_keeps_the_best_and_stops_after_patience(policy, batches, tmp_path):
  outcome = train(policy, batches, tmp_path, [0.1, 0.5, 0.4, 0.3, 9.0])
  assert outcome.best.step == 2
  assert outcome.updates == 6
  assert [e.value for e in outcome.history] == [0.1, 0.5, 0.4, 0.3]
  assert native.Checkpoints(tmp_path).steps() == [2, 6]


def test_update_0_is_kept_where_nothing_is_better(policy, batches, tmp_path):
  outcome = train(policy, batches, tmp_path, [0.9, 0.5, 0.4, 0.3, 0.2])
  assert outcome.best.step == 0
  same(outcome.params, policy.init(0))


def test_nobody_holds_what_training_started_from(policy, batches, tmp_path):
  started = []

  def start():
    params = policy.init(0)
    started.extend(weakref.ref(leaf) for leaf in jax.tree.leaves(params))
    return params

  class Held:
    def append(self, step):
      assert started and not any(ref() is not None for ref in started), step

  values = [0.1, 0.5, 0.6, 0.7, 0.8]
  train(policy, batches, tmp_path, values, 4, seen=Held(), start=start)

  def never():
    raise AssertionError('it goes on from a checkpoint')

  assert train(policy, batches, tmp_path, values, 8, start=never).updates == 8


def test_what_is_frozen_has_no_state_and_training_resumes(
  policy, batches, tmp_path
):
  adamw = Optimizer('adamw', 0.05, frozen=('token_embedder/*',))
  training = early_stopping.Training(adamw, tiny_policy.PACKING)
  state = state_lib.abstract_state(policy, adamw)
  whole = state_lib.abstract_state(policy, Optimizer('adamw', 0.05))

  def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))

  embedder = size(state.params['token_embedder'])
  assert size(whole.opt_state) - size(state.opt_state) == 2 * embedder > 0
  values = [0.1, 0.5, 0.6, 0.7, 0.8]
  whole = train(policy, batches, tmp_path / 'a', values, 8, training=training)
  train(policy, batches, tmp_path / 'b', values, 4, training=training)
  resumed = train(policy, batches, tmp_path / 'b', values, 8, training=training)
  assert whole.updates == resumed.updates == 8
  same(whole.params, resumed.params)
  same(whole.params['token_embedder'], policy.init(0)['token_embedder'])


def test_a_tie_keeps_the_earlier(policy, batches, tmp_path):
  outcome = train(policy, batches, tmp_path, [0.1, 0.5, 0.5, 0.2, 0.1])
  assert outcome.best.step == 2


@pytest.mark.parametrize('update', [0, 4])
def test_a_figure_that_is_no_number_ends_training(
  policy, batches, tmp_path, update
):
  values = [0.0, 1.0, 2.0, 3.0, 4.0]
  values[update // 2] = float('nan')
  with pytest.raises(NonFiniteError, match=f'test, update {update}: .* is nan'):
    train(policy, batches, tmp_path, values)


def test_resumed_equals_uninterrupted(policy, batches, tmp_path):
  values = [0.1, 0.2, 0.3, 0.4, 0.5]
  whole = train(policy, batches, tmp_path / 'whole', values)
  train(policy, batches, tmp_path / 'cut', values, max_steps=4)
  seen = []
  resumed = train(policy, batches, tmp_path / 'cut', values, seen=seen)
  assert seen == [5, 6, 7, 8]
  assert resumed.history == whole.history
  # What the first start took counts as well.
  assert resumed.seconds_before > whole.seconds_before == 0.0
  assert resumed.history[-1].train_tokens > resumed.history[1].train_tokens
  same(resumed.params, whole.params)


def test_what_has_ended_is_not_trained_on(policy, batches, tmp_path):
  values = [0.1, 0.5, 0.4, 0.3, 0.2]
  first = train(policy, batches, tmp_path, values)
  seen = []
  again = train(policy, batches, tmp_path, values, seen=seen)
  assert seen == []
  same(again.params, first.params)


@pytest.mark.parametrize('settings', [(-1, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_stopping_names_the_field(settings):
  with pytest.raises(ConfigurationError, match=r'Stopping\.'):
    early_stopping.Stopping(*settings)


def test_a_lost_best_policy_is_told_at_the_start(policy, batches, tmp_path):
  train(policy, batches, tmp_path, [0.1, 0.5, 0.4, 0.3], 4)
  best = native.Checkpoints(tmp_path).path(2)
  assert best.exists()
  best.rmtree()
  with pytest.raises(CorruptStateError, match=r'update 2: delete .*beginning'):
    train(policy, batches, tmp_path, [0.1, 0.5, 0.4, 0.3], 8)


def test_a_state_of_another_version_says_how_to_go_on(
  policy, batches, tmp_path
):
  train(policy, batches, tmp_path, [0.1, 0.5, 0.4, 0.3], 2)
  other = dataclasses.replace(
    TRAINING, optimizer=Optimizer('adamw', learning_rate=0.05)
  )
  with pytest.raises(ConfigurationError, match=r'another version .* delete'):
    train(policy, batches, tmp_path, [0.1, 0.5], 8, training=other)
