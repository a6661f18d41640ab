import dataclasses

import pytest

from rest_jax import (
  annotate,
  evaluate,
  grow,
  improve,
  rest,
  schedule,
  stages,
  supervised,
)
from rest_jax.data import corpora, prepare
from rest_jax.data.packing import Packing
from rest_jax.models.config import T5Config
from rest_jax.rewards import numerals
from rest_jax.training.early_stopping import Stopping, Training
from rest_jax.training.optimizer import Optimizer


@pytest.fixture
def run():
  """A run of two Grow steps with two filters, and both controls."""
  training = Training(Optimizer(), Packing(128, 128, 2))
  stopping = Stopping(max_steps=2, eval_every=1, patience=1)
  return rest.ReST(
    model_dir='unused',
    data=prepare.Data(corpora.NumeralsTask(), prepare.Bytes()),
    model=T5Config(vocab_size=384),
    supervised=supervised.Supervised(training, stopping),
    grow=grow.Grow(),
    annotate=annotate.Annotate(numerals.NumeralValue()),
    improve=improve.Improve(
      training, stopping, schedule.Thresholds((0.5, 0.9))
    ),
    evaluate=evaluate.Evaluate('en'),
    num_grow=2,
    num_improve=2,
    controls=('continued', 'random'),
  )


def starts(run):
  return {policy.stage: policy.start for policy in rest.policies(run)}


def test_every_policy_starts_from_the_one_before_it(run):
  assert starts(run) == {
    'supervised': None,
    'grow_1/improve_0': 'supervised',
    'grow_1/improve_1': 'grow_1/improve_0',
    'grow_1/improve_2': 'grow_1/improve_1',
    'grow_2/improve_0': 'grow_1/improve_2',
    'grow_2/improve_1': 'grow_2/improve_0',
    'grow_2/improve_2': 'grow_2/improve_1',
    'continued/grow_1/improve_0': 'supervised',
    'continued/grow_1/improve_1': 'continued/grow_1/improve_0',
    'continued/grow_1/improve_2': 'continued/grow_1/improve_1',
    'continued/grow_2/improve_0': 'continued/grow_1/improve_2',
    'continued/grow_2/improve_1': 'continued/grow_2/improve_0',
    'continued/grow_2/improve_2': 'continued/grow_2/improve_1',
    'random/grow_2/improve_1': 'grow_2/improve_0',
    'random/grow_2/improve_2': 'random/grow_2/improve_1',
  }
  reported = [p.label for p in rest.policies(run) if p.reported]
  assert reported[0] == 'BC'
  assert reported[-2:] == ['BC+', 'G2 I2 random']


def test_policies_that_restart_have_controls_that_do(run):
  restarting = dataclasses.replace(
    run, improve=dataclasses.replace(run.improve, restart_from_base=True)
  )
  found = starts(restarting)
  assert set(found) == set(starts(run))
  assert {start for name, start in found.items() if name != 'supervised'} == {
    'supervised'
  }


def test_each_stage_comes_after_what_it_reads(run):
  made = set()
  for plan in stages.plan(run):
    assert set(plan.inputs) <= made, plan.name
    made.add(plan.name)
  assert len(made) == len(stages.plan(run))
