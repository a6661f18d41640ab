"""What a stage of a run is, before it is run."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from rest_jax import config, train_reward
from rest_jax.context import Context
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
    files: binding → file outside the run whose content it depends on.
    checkpoints: binding → checkpoint outside the run, likewise.
  """

  name: str
  kind: Kind
  inputs: tuple[str, ...]
  config: dict[str, Any]
  execute: Callable[[Context, Stage], None]
  together: bool = False
  files: dict[str, str] = dataclasses.field(default_factory=dict)
  checkpoints: dict[str, str] = dataclasses.field(default_factory=dict)


# What was always so before it could be set. It is left out of what stages
# record, so that those from before stay valid.
_ALWAYS_SO = {
  'Data.tokenizer.normalization': 'nmt_nfkc',
  'Evaluate.divergence_sources': 128,
  'Improve.accumulate': False,
  'Improve.schedule.kl_penalty': 0,
  'Improve.value': None,
}


def bindings(settings: Any, name: str) -> dict[str, Any]:
  """What a stage records of some settings; see `config.flatten`."""
  recorded = config.flatten(settings, name)
  for known, value in _ALWAYS_SO.items():
    if known in recorded and recorded[known] == value:
      del recorded[known]
  return recorded


def learned_inputs(*models: base.RewardModel) -> tuple[str, ...]:
  """The stage that learned rewards among these, or in them, come from."""
  return (train_reward.STAGE,) if learned.within(models) else ()


def reward_config(model: Any) -> dict[str, Any]:
  """What the scores of a metric depend on."""
  return config.flatten(model, 'reward') | config.flatten(
    model.info, 'RewardInfo'
  )
