"""The algorithm: which stages a run has, in which order, from what.

  supervised → [reward] → for g = 1 … G: Grow → Annotate → Improve 0 … I

(Gulcehre et al. 2023, arXiv:2308.08998, algorithm 1.) Nothing is run here.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from rest_jax import (
  annotate,
  check_reward,
  config,
  evaluate,
  grow,
  import_samples,
  improve_stages,
  prerequisites,
  supervised,
  train_reward,
)
from rest_jax.context import IMPORTED, REWARD_DATA, Context
from rest_jax.policy_plan import ONLINE, PolicyPlan, policies
from rest_jax.rest import ReST
from rest_jax.rewards import base, learned
from rest_jax.run_directory import Stage
from rest_jax.stage_plan import (
  Kind,
  StagePlan,
  bindings,
  learned_inputs,
  reward_config,
)


def plan(run: ReST) -> list[StagePlan]:
  """All stages of a run, each after those that it reads."""
  plans = {policy.stage: policy for policy in policies(run)}
  out = [
    StagePlan('data', 'data', (), bindings(run.data, 'Data'), _prepare(run)),
    *_import_stages(run),
    StagePlan(
      'supervised',
      'supervised',
      ('data',),
      config.flatten(run.supervised, 'Supervised')
      | config.flatten(run.model, 'T5Config')
      | {'SEED': run.seed},
      _train(run),
      together=True,
      checkpoints=_initial_checkpoint(run),
    ),
    *_reward_stages(run),
    evaluation_stage(run, plans['supervised'], 'report'),
  ]
  for policy in plans.values():
    if policy.stage == 'supervised':
      continue
    if _is_main(policy) and policy.improve_step == run.improve_steps[0]:
      if policy.grow_step == 1:
        out += _check_stages(run)
      out += _grow_stages(run, policy)
    if policy.stage.startswith(ONLINE):
      out.append(improve_stages.online_stage(run, policy))
    else:
      out += improve_stages.value_stage(run, policy)
      out.append(improve_stages.improve_stage(run, policy))
    if policy.reported:
      out.append(evaluation_stage(run, policy, 'report'))
  return out


def _is_main(policy: PolicyPlan) -> bool:
  return policy.stage.startswith('grow_')


def _prepare(run: ReST) -> Callable[[Context, Stage], None]:
  def execute(context: Context, stage: Stage) -> None:
    context.prepare_data(stage, run.data)

  return execute


def _train(run: ReST) -> Callable[[Context, Stage], None]:
  def execute(context: Context, stage: Stage) -> None:
    prerequisites.check_references(run, context)
    prerequisites.check_size(run, context)
    supervised.run(context, stage, run.supervised)

  return execute


def _initial_checkpoint(run: ReST) -> dict[str, str]:
  path = run.supervised.initial_checkpoint_path
  return {} if path is None else {'INITIAL_CHECKPOINT_PATH': path}


def _reward_stages(run: ReST) -> Iterator[StagePlan]:
  """The training of the learned reward, and what it learns from."""
  settings = run.train_reward
  if settings is None:
    return
  inputs, files = ['data'], {}
  if isinstance(settings.rows, train_reward.OwnSamples):
    rows = settings.rows
    yield StagePlan(
      rows.sample_stage,
      'train_reward',
      ('data', 'supervised'),
      config.flatten(rows.grow, 'Grow') | {'SEED': run.seed},
      lambda context, stage: grow.run(
        context,
        stage,
        rows.grow,
        policy_name='supervised',
        grow_step=0,
        split='reward',
        references=False,
      ),
      together=True,
    )
    for metric in base.with_parts([rows.metric]):
      yield _score_stage(run, REWARD_DATA, metric, 'train_reward')
    inputs += [rows.sample_stage, rows.score_stage]
  else:
    files['TrainReward.rows.path'] = settings.rows.path
  yield StagePlan(
    train_reward.STAGE,
    'train_reward',
    tuple(inputs),
    config.flatten(settings, 'TrainReward') | {'SEED': run.seed},
    lambda context, stage: train_reward.run(context, stage, settings),
    together=True,
    files=files,
  )


def _import_stages(run: ReST) -> Iterator[StagePlan]:
  """Others' outputs and their reward, first: a faulty file shows at once."""
  if run.imported_samples is None:
    return
  path = run.imported_samples
  yield StagePlan(
    f'{IMPORTED}/samples',
    'import_samples',
    ('data',),
    {'IMPORTED_SAMPLES': path},
    lambda context, stage: import_samples.run(context, stage, path, run.data),
    files={'IMPORTED_SAMPLES': path},
  )
  yield from _annotate_stages(run, IMPORTED)


def _check_stages(run: ReST) -> Iterator[StagePlan]:
  """The reward on spoiled references and on BC's spoiled outputs."""
  settings, reward = run.check_reward, run.annotate.reward
  beams = 'supervised/evaluation/report'
  for name, more in (
    (check_reward.REFERENCES, ()),
    (check_reward.CANDIDATES, (beams,)),
  ):
    yield StagePlan(
      name,
      'check_reward',
      ('data', *more, *learned_inputs(reward)),
      config.flatten(settings, 'CheckReward')
      | reward_config(reward)
      | _learned_config(run, reward),
      lambda context, stage: check_reward.run(
        context, stage, settings, reward, run.data.task, beams
      ),
    )


def _grow_stages(run: ReST, policy: PolicyPlan) -> Iterator[StagePlan]:
  """Grow, Annotate and the reward of the Grow step that `policy` begins."""
  g = policy.grow_step
  grown_by = policy.start
  if g > 1:
    grown_by = f'grow_{g - 1}/improve_{run.num_improve}'
  yield StagePlan(
    f'grow_{g}/samples',
    'grow',
    ('data', grown_by),
    config.flatten(run.grow, 'Grow') | {'SEED': run.seed},
    functools.partial(_grow, run, grown_by, g),
    together=True,
  )
  yield from _annotate_stages(run, f'grow_{g}')
  yield from improve_stages.behaviour_stage(run, g)


def _grow(run, policy_name, grow_step, context: Context, stage: Stage) -> None:
  prerequisites.check_references(run, context)
  check_reward.judge(run.check_reward, context.stage(check_reward.REFERENCES))
  grow.run(
    context, stage, run.grow, policy_name=policy_name, grow_step=grow_step
  )


def _annotate_stages(run: ReST, store: str) -> Iterator[StagePlan]:
  """The scores and the reward of a store of samples."""
  for model in run.annotate.scored:
    yield _score_stage(run, store, model, 'annotate')
  reward = run.annotate.reward
  scores = f'{store}/scores/{reward.info.name}'
  yield StagePlan(
    f'{store}/reward',
    'annotate',
    (scores,),
    reward_config(reward),
    lambda context, stage: annotate.run_reward(
      stage, reward, context.stage(scores)
    ),
  )


def _score_stage(
  run: ReST, store: str, model: base.RewardModel, kind: Kind
) -> StagePlan:
  """The scores of a store of samples by one metric."""
  if isinstance(model, base.Combination):
    names = (part.info.name for part in model.parts)
    inputs = parts = tuple(f'{store}/scores/{name}' for name in names)
    execute = functools.partial(_combine, model, parts)
  else:
    samples = f'{store}/samples'
    inputs = ('data', samples, *learned_inputs(model))
    execute = functools.partial(_score, run, model, samples)
  return StagePlan(
    f'{store}/scores/{model.info.name}',
    kind,
    inputs,
    reward_config(model) | _learned_config(run, model),
    execute,
    together=not isinstance(model, base.Combination),
  )


def _learned_config(run: ReST, model: base.RewardModel) -> dict[str, Any]:
  """What the scores of a learned reward depend on besides its own settings.

  GROW_FROM takes scores by their configuration, so this has to be part of it.
  """
  if not learned.within(model):
    return {}
  return config.flatten(run.train_reward, 'TrainReward')


def _score(run, model, samples, context: Context, stage: Stage) -> None:
  annotate.run_scores(context, stage, model, context.stage(samples))


def _combine(model, parts, context: Context, stage: Stage) -> None:
  annotate.run_combined(stage, model, [context.stage(part) for part in parts])


def evaluation_stage(run: ReST, policy: PolicyPlan, split: str) -> StagePlan:
  """The evaluation of a policy on a split."""
  further = {}
  for model in run.annotate.further_metrics:
    for name, value in reward_config(model).items():
      further[f'{model.info.name}: {name}'] = value
  overlap = run.trained_on_overlap('test' if split == 'test' else 'dev')
  return StagePlan(
    f'{policy.stage}/evaluation/{split}',
    'evaluate',
    ('data', policy.stage, *learned_inputs(*run.annotate.metrics)),
    bindings(run.evaluate, 'Evaluate')
    | reward_config(run.annotate.reward)
    | further
    | {'SEED': run.seed}
    # A name that is not there leaves earlier evaluations valid.
    | ({'reward_trained_on': ' '.join(overlap)} if overlap else {}),
    lambda context, stage: evaluate.run(
      context,
      stage,
      run.evaluate,
      policy_name=policy.stage,
      split=split,
      reward=run.annotate.reward,
      further_metrics=run.annotate.further_metrics,
      reward_trained_on=overlap,
    ),
    together=True,
  )
