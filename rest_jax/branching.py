"""Runs that take stages of others, and the commands that start them."""

from collections.abc import Callable, Mapping, Sequence

from rest_jax import rest, stages, storage
from rest_jax.context import Context
from rest_jax.errors import ConfigurationError
from rest_jax.run_directory import RunDirectory, Stage


def elsewhere(
  run: rest.ReST, planned: Sequence[stages.StagePlan]
) -> dict[str, Stage]:
  """Stages that are taken from other runs.

  Args:
    run: the run.
    planned: its stages.

  Raises:
    ConfigurationError: a run to branch from lacks one.
  """
  out = {}
  reward = ('data', 'reward')
  if run.data.reward:  # It learned from samples of BC.
    reward = ('data', 'supervised', 'reward')
  sources = (
    (run.supervised_from, ('data', 'supervised')),
    (run.reward_from, reward),
    (run.grow_from, ('data', 'supervised', 'reward', 'grow_1/')),
  )
  for path, prefixes in sources:
    for plan in planned if path else ():
      if not plan.name.startswith(prefixes) or plan.kind not in (
          'data', 'supervised', 'train_reward', 'grow', 'annotate'
      ):  # fmt: skip
        continue
      stage = RunDirectory(storage.absolute(path)).stage(plan.name)
      if (
        plan.kind in ('train_reward', 'annotate')
        and path != run.reward_from
        and not (
          stage.made_with(plan.config) and _read_these(stage, plan.inputs, out)
        )
      ):
        # Made here: another reward may judge the same samples, also one whose
        # own settings are the same and that was learned otherwise.
        continue
      if plan.kind == 'train_reward' and plan.name in out:
        continue  # REWARD_FROM names one.
      if stage.committed:
        out[plan.name] = stage
      elif plan.name not in out:
        raise ConfigurationError(
          f'{path} has no committed stage {plan.name} to branch from;'
          ' finish it there, or train it here.'
        )
  return out


def _read_these(
  stage: Stage, names: Sequence[str], known: Mapping[str, Stage]
) -> bool:
  """Whether a committed stage was made from these stages."""
  made_from = stage.manifest['inputs']
  return all(
    name in known and made_from.get(name) == known[name].fingerprint
    for name in names
  )


def hint(
  run: rest.ReST,
  context: Context,
  plan: stages.StagePlan,
  branch_command: Callable[..., str],
) -> str:
  """The command that keeps both: what a stage does not precede is taken."""
  here = str(context.directory.path)
  if plan.kind == 'evaluate':  # Cheap, and nothing is made from it.
    return f'delete {here}/{plan.name} to evaluate again'
  if plan.kind == 'check_reward':
    return f'delete {here}/{plan.name} to check again'
  grown = context.stage('grow_1/samples')
  if plan.kind in ('data', 'supervised'):
    supervised_from = grow_from = None
  elif grown.committed and plan.name != grown.name:
    supervised_from, grow_from = run.supervised_from, run.grow_from or here
  elif context.stage('supervised').committed:
    supervised_from = run.supervised_from or run.grow_from or here
    grow_from = None
  else:
    supervised_from = grow_from = None
  changed = {'MODEL_DIR': f'{run.model_dir.rstrip("/")}_branch'}
  if supervised_from != run.supervised_from:
    changed['SUPERVISED_FROM'] = supervised_from
  if grow_from != run.grow_from:
    changed['GROW_FROM'] = grow_from
  command = branch_command(**changed)
  return f'branch into another run directory: {command}'
