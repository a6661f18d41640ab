"""What a stage of a run is, before it is run."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

from rest_jax import config, hosts, train_reward
from rest_jax.context import Context
from rest_jax.errors import ConfigurationError
from rest_jax.rewards import base, learned
from rest_jax.run_directory import Stage

Kind = Literal[
  'data',
  'import_samples',
  'supervised',
  'train_reward',
  'check_reward',
  'grow',
  'annotate',
  'improve',
  'evaluate',
]


@dataclasses.dataclass(frozen=True)
class StagePlan:
  """A stage of the run.

  Attributes:
    name: its folder in the run directory.
    kind: the run mode that it belongs to.
    inputs: stages that it reads.
    config: the values that its content depends on.
    execute: writes and commits it.
    together: whether all processes of a job do so together; else the first one
      does so alone.
    lone: what in the configuration lets only a job of one process make it; ''
      where any can.
    files: binding → file outside the run whose content it depends on.
    checkpoints: binding → checkpoint outside the run, likewise.
  """

  name: str
  kind: Kind
  inputs: tuple[str, ...]
  config: dict[str, Any]
  execute: Callable[[Context, Stage], None]
  together: bool = False
  lone: str = ''
  files: dict[str, str] = dataclasses.field(default_factory=dict)
  checkpoints: dict[str, str] = dataclasses.field(default_factory=dict)


def check_processes(context: Context, plans: Sequence[StagePlan]) -> None:
  """Finds now what would stop a job of several processes after hours of Grow.

  Raises:
    ConfigurationError: a stage that is not there yet has to be made by one.
  """
  if hosts.count() == 1:
    return
  names = hosts.on_first(
    lambda: [
      plan.name
      for plan in plans
      if plan.lone and not context.stage(plan.name).committed
    ]
  )
  for plan in plans:
    if plan.name in names:
      raise ConfigurationError(
        f'{plan.name}: {plan.lone} is for one process, and this job has'
        f' {hosts.count()}: make what comes before with --run_mode=grow and'
        ' --run_mode=annotate here, and this with one process.'
      )


def learned_inputs(*models: base.RewardModel) -> tuple[str, ...]:
  """The stage that learned rewards among these, or in them, come from."""
  return (train_reward.STAGE,) if learned.within(models) else ()


def reward_config(model: Any) -> dict[str, Any]:
  """What the scores of a metric depend on."""
  return config.flatten(model, 'reward') | config.flatten(
    model.info, 'RewardInfo'
  )
