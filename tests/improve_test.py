"""What an Improve step hands to training."""

import dataclasses

import jax
import numpy as np
import pytest
import small_run
from small_run import PACKING, Bytes, begun, evaluation

from rest_jax import improve, losses, training_stage
from rest_jax.schedule import PerSource, Thresholds
from rest_jax.training import early_stopping, optimizer

SETTINGS = improve.Improve(
  training=early_stopping.Training(optimizer.Optimizer(), PACKING),
  stopping=early_stopping.Stopping(max_steps=9, eval_every=2, patience=1),
  schedule=Thresholds((0.05, 0.1)),
  original_data='unfiltered',
  allow_tau_below_mean=True,
)


@pytest.fixture(scope='module')
def context(tmp_path_factory):
  run = small_run.make(tmp_path_factory.mktemp('run'))
  small_run.grow(run, 'grow_2', references=True)
  return run


class HandedError(Exception):
  """What training was given, before it would begin."""


@pytest.fixture
def handed(context, monkeypatch, request):
  """Runs an Improve step up to its training; gives the arguments of that."""

  def train(*args, **further):
    raise HandedError(args, further)

  monkeypatch.setattr(training_stage, 'train', train)

  def run(settings, i, grow_step=2, **step):
    # Each step of each test has a stage of its own.
    run.count += 1
    stage = begun(context, f'{request.node.name}_{run.count}/improve_{i}')
    step = improve.Step('supervised', grow_step, i, ('grow_2',), **step)
    with pytest.raises(HandedError) as caught:
      improve.run(context, stage, settings, evaluation(), Bytes(), step)
    (_, _, network, start, training, stopping, batches, _), more = (
      caught.value.args
    )
    assert network is context.policy
    jax.tree.map(
      np.testing.assert_array_equal, start(), context.params('supervised')
    )
    return training, stopping, batches, more

  run.count = 0
  return run


@pytest.mark.parametrize(
  ('include_unfiltered', 'scales'),
  [(True, [1.0, 0.5, 0.25]), (False, [None, 1.0, 0.5])],
)
def test_learning_rates_fall_from_step_to_step(
  handed, include_unfiltered, scales
):
  settings = dataclasses.replace(
    SETTINGS, include_unfiltered=include_unfiltered
  )
  for i, scale in enumerate(scales):
    if scale is not None:
      assert handed(settings, i)[3]['learning_rate_scale'] == scale
  constant = dataclasses.replace(SETTINGS, learning_rate_decay=1.0)
  assert handed(constant, 2)[3]['learning_rate_scale'] == 1.0


def test_no_step_begins_as_another_one_does(context, handed):
  """Neither with the same batches nor with the same dropout."""

  def begins(i, **step):
    _, _, batches, more = handed(SETTINGS, i, **step)
    return more['seed'], batches.seed

  seeds = [begins(i) for i in range(3)] + [begins(1, grow_step=3)]
  assert len(set(seeds)) == 4
  assert context.seed not in {seed for seed, _ in seeds}  # BC's.
  for seed, of_batches in seeds:
    assert 0 <= seed == of_batches < 2**31


def test_a_control_has_the_seed_of_its_twin(context, handed):
  twin = begun(context, 'twin_by_seed')
  twin.commit({'updates': 5}, 0.0)
  own = handed(SETTINGS, 1, control='random', twin=twin.name)[3]['seed']
  assert own == handed(SETTINGS, 1)[3]['seed']


@pytest.mark.parametrize('control', ['continued', 'random', 'permuted'])
def test_a_control_makes_as_many_updates_whatever_its_reward(
  context, handed, control
):
  twin = begun(context, f'twin_of_{control}')
  twin.commit({'updates': 5}, 0.0)
  _, stopping, _, _ = handed(SETTINGS, 1, control=control, twin=twin.name)
  assert stopping.max_steps == 5
  # Five updates have no more than six evaluations.
  assert stopping.patience > 5
  assert handed(SETTINGS, 1)[1] == SETTINGS.stopping


def test_the_mixture_is_the_share_of_grown_rows(handed):
  for mixture in (0.25, 0.75):
    mixed = dataclasses.replace(SETTINGS, mixture=mixture)
    assert handed(mixed, 0)[2].grown_share == pytest.approx(mixture, abs=0.01)
  # Nothing is mixed where there is but one kind of rows.
  alone = dataclasses.replace(SETTINGS, mixture=0.25, original_data='none')
  assert handed(alone, 0)[2].grown_share == 1.0


def test_the_control_of_references_has_no_other_rows(context, handed):
  twin = begun(context, 'twin_of_references')
  twin.commit({'updates': 3}, 0.0)
  batches = handed(SETTINGS, 1, control='continued', twin=twin.name)[2]
  assert batches.grown_share == 0.0


def test_the_loss_that_is_set_is_the_one_trained_with(handed):
  loss = losses.RewardWeighted(beta=0.5)
  training = dataclasses.replace(SETTINGS.training, loss=loss)
  settings = dataclasses.replace(SETTINGS, training=training)
  assert handed(settings, 1)[0].loss == loss


def test_the_random_control_has_as_many_rows_and_others(context, handed):
  settings = dataclasses.replace(
    SETTINGS, schedule=PerSource('top_k', (1,)), original_data='none'
  )
  twin = begun(context, 'twin_of_random_rows')
  twin.commit({'updates': 5}, 0.0)
  own, drawn = (
    handed(settings, 1, **step)[2].rows
    for step in ({}, {'control': 'random', 'twin': twin.name})
  )
  assert len(own) == len(drawn) == small_run.SOURCES
  assert texts(own) != texts(drawn)
  # Each source has one row in both: they have the same sources in that order.
  np.testing.assert_array_equal(own.source_tokens, drawn.source_tokens)


def test_the_permuted_control_has_the_same_rows_with_weights_exchanged(
  context, handed
):
  loss = losses.RewardWeighted(weighting='linear')
  settings = dataclasses.replace(
    SETTINGS,
    training=dataclasses.replace(SETTINGS.training, loss=loss),
    original_data='none',
  )
  twin = begun(context, 'twin_of_permuted_rows')
  twin.commit({'updates': 5}, 0.0)
  own, permuted = (
    handed(settings, 0, **step)[2].rows
    for step in ({}, {'control': 'permuted', 'twin': twin.name})
  )
  assert texts(own) == texts(permuted)
  assert (own.weights != permuted.weights).any()
  sources = texts(own, 'source')
  for source in set(sources):
    of = [i for i, each in enumerate(sources) if each == source]
    np.testing.assert_array_equal(
      np.sort(own.weights[of]), np.sort(permuted.weights[of])
    )


def texts(rows, side='target'):
  """The tokens of each row of a side."""
  tokens, offsets = (
    getattr(rows, f'{side}_{name}') for name in ('tokens', 'offsets')
  )
  return [tuple(each.tolist()) for each in np.split(tokens, offsets[1:-1])]
