"""The stages of Improve: its policies, and the value models that they need."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from rest_jax import (
  behaviour,
  config,
  evaluate,
  grown_data,
  improve,
  online_training,
  values,
)
from rest_jax.context import BC, Context
from rest_jax.policy_plan import (
  ONLINE,
  PolicyPlan,
  loss_of,
  online_of,
  policies,
  stores,
)
from rest_jax.rest import ReST
from rest_jax.run_directory import Stage
from rest_jax.stage_plan import (
  StagePlan,
  bindings,
  learned_inputs,
  reward_config,
)


def _value_name(run: ReST, policy: PolicyPlan) -> str | None:
  """The stage of the value model that a policy's loss needs, if it does."""
  if policy.stage.startswith(ONLINE):
    return None
  if 'values' not in loss_of(run, policy).needs:
    return None
  permuted = policy.stage.startswith('permuted/')
  return values.stage_name(policy.grow_step, permuted=permuted)


def value_stage(run: ReST, policy: PolicyPlan) -> Iterator[StagePlan]:
  """The value model, before the first Improve step that needs it."""
  g, name = policy.grow_step, _value_name(run, policy)
  earlier = [p for p in policies(run) if _value_name(run, p) == name]
  if name is None or policy != earlier[0]:
    return
  permuted = None
  if policy.stage.startswith('permuted/'):
    permuted = grown_data.permutation(run.improve, loss_of(run, policy))
  # Whatever a policy trains on: references are no samples of the behaviour.
  samples = dataclasses.replace(
    run.improve, original_data='none', before=(), after=()
  )

  def execute(context: Context, stage: Stage) -> None:
    grown = grown_data.GrownData(
      context, samples, stores(run, g), permuted=permuted
    )
    values.run(context, stage, run.improve.value, grown)

  yield StagePlan(
    name,
    'improve',
    ('data', BC, *_store_inputs(run, g)),
    config.flatten(run.improve.value, 'Improve.value')
    | {
      'SEED': run.seed,
      # True is by samples, which was all there was.
      'permuted': 'texts' if permuted == 'texts' else permuted is not None,
    },
    execute,
    together=True,
  )


def _store_inputs(run: ReST, grow_step: int) -> list[str]:
  """The stages of the rows of D_g and of their rewards."""
  return [
    f'{store}/{kind}'
    for store in stores(run, grow_step)
    for kind in ('samples', 'reward')
  ]


def behaviour_stage(run: ReST, grow_step: int) -> Iterator[StagePlan]:
  """What BC thinks of a Grow step's samples, where a selection asks."""
  store = f'grow_{grow_step}'
  name = behaviour.stage_name(store)
  if name is None or not run.improve.asks_bc:
    return
  yield StagePlan(
    name,
    'annotate',
    ('data', BC, f'{store}/samples'),
    config.flatten(run.grow.batching, 'Grow.batching'),
    lambda context, stage: behaviour.run(
      context, stage, context.stage(f'{store}/samples'), run.grow.batching
    ),
    together=True,
  )


def _behaviour_inputs(run: ReST, grow_step: int) -> list[str]:
  if not run.improve.asks_bc:
    return []
  return list(filter(None, map(behaviour.stage_name, stores(run, grow_step))))


def online_stage(run: ReST, policy: PolicyPlan) -> StagePlan:
  """The training of an online baseline."""
  settings = online_of(run, policy)
  return StagePlan(
    policy.stage,
    'improve',
    ('data', policy.start, *learned_inputs(run.annotate.reward)),
    config.flatten(settings, 'Online')
    | _selecting_config(run.evaluate)
    | reward_config(run.annotate.reward)
    | {'SEED': run.seed},
    lambda context, stage: online_training.run(
      context, stage, settings, run.evaluate, run.annotate.reward
    ),
    together=True,
  )


def improve_stage(run: ReST, policy: PolicyPlan) -> StagePlan:
  """The training of a policy, of ReST itself or of a control."""
  g, i = policy.grow_step, policy.improve_step
  main = f'grow_{g}/improve_{i}'
  control = 'none' if policy.stage == main else policy.stage.split('/')[0]
  inputs = ['data', policy.start, *learned_inputs(run.annotate.reward)]
  if control != 'none':
    inputs.append(main)
  if control != 'continued':
    inputs += _store_inputs(run, g) + _behaviour_inputs(run, g)
  value = _value_name(run, policy)
  if value is not None:
    inputs.append(value)
  # Later thresholds do not concern this step: a schedule may grow.
  settings = dataclasses.replace(
    run.improve, schedule=run.improve.schedule.first(i)
  )
  step = improve.Step(
    policy.start,
    g,
    i,
    stores(run, g),
    control,
    main if control != 'none' else None,
    value,
    policy.trained_on,
  )
  return StagePlan(
    policy.stage,
    'improve',
    tuple(dict.fromkeys(inputs)),
    bindings(settings, 'Improve')
    | _selecting_config(run.evaluate)
    | reward_config(run.annotate.reward)
    | {'SEED': run.seed, 'control': control},
    lambda context, stage: improve.run(
      context, stage, settings, run.evaluate, run.annotate.reward, step
    ),
    together=True,
  )


def _selecting_config(settings: evaluate.Evaluate) -> dict[str, Any]:
  """What of `Evaluate` decides which checkpoint is kept."""
  out = {}
  for name in ('sampling', 'batching', 'select_sources', 'select_samples'):
    out |= config.flatten(getattr(settings, name), f'Evaluate.{name}')
  return out
