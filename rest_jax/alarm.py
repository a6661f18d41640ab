"""An alarm for reward hacking: the reward rises while what it stands for falls.

Optimising a metric lifts its relatives too (arXiv:2411.03524), so what is held
against the reward should be of other making: one lexical metric that sees the
references, and one of another training lineage.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rest_jax.errors import ConfigurationError


@dataclasses.dataclass(frozen=True)
class Alarm:
  """When a policy is suspected, against the policy that it started from.

  Attributes:
    held_out: columns of results.csv that the reward is held against, such as
      ('chrf', 'metricx_24_qe_mean'): all of them have to fall.
    reward: the column that has to rise.
    min_fall: by more than this each of them has to get worse, in its own
      points: one number, so that columns of one scale belong together.
    stop_run: whether the run ends there, instead of a warning.
  """

  held_out: tuple[str, ...]
  reward: str = 'reward_mean'
  min_fall: float = 0.0
  stop_run: bool = False

  def __post_init__(self):
    rewards = ('reward_mean', 'reward_greedy', 'reward_best_t')
    if self.reward not in rewards:
      raise ConfigurationError(
        f'Alarm.reward = {self.reward!r} must be one of {", ".join(rewards)}.'
      )
    if not self.held_out:
      raise ConfigurationError(
        "Alarm.held_out is empty; name columns of results.csv, such as 'chrf'."
      )
    if self.min_fall < 0:
      raise ConfigurationError(
        f'Alarm.min_fall = {self.min_fall} must be at least 0.'
      )

  def check_columns(self, higher_is_better: Mapping[str, bool]) -> None:
    """Raises ConfigurationError where a column is none that the run has."""
    for name in self.held_out:
      if name not in higher_is_better:
        raise ConfigurationError(
          f'Alarm.held_out names {name!r}, which is no metric of this run; it'
          f' has {", ".join(higher_is_better)}. Further ones come from'
          ' Annotate.further_metrics.'
        )

  def missing(self, columns: Mapping[str, Any]) -> list[str]:
    """Columns of `held_out` that a policy has no figure in."""
    return [name for name in self.held_out if columns.get(name) is None]

  def suspicion(
    self,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    higher_is_better: Mapping[str, bool],
  ) -> str | None:
    """What is suspicious about a policy, for people; None where nothing is.

    Args:
      before: columns of the policy that it started from, on the same split.
      after: its own, see `results.Row.columns`.
      higher_is_better: of each column of `held_out`.

    Returns:
      A line, or None; also where a figure is `missing`.
    """
    if self.missing(before) or self.missing(after):
      return None
    rise = after[self.reward] - before[self.reward]
    moves = []
    for name in self.held_out:
      old, new = before[name], after[name]
      fall = old - new if higher_is_better[name] else new - old
      if fall <= self.min_fall:
        return None
      moves.append(f'{name} from {old:.2f} to {new:.2f}')
    if rise <= 0:
      return None
    return (
      f'{after["policy"]} on {after["split"]}: {self.reward} rose by {rise:.2f}'
      f' since {before["policy"]} while {" and ".join(moves)} got worse: the'
      ' reward may be hacked; read samples before trusting it'
    )
