"""An alarm for reward hacking: the reward rises while what it stands for falls.

Optimising a metric lifts its relatives too (arXiv:2411.03524), so what is held
against the reward should be of other making: one lexical metric that sees the
references, and one of another training lineage.
"""

import dataclasses
from collections.abc import Mapping

from rest_jax import results
from rest_jax.errors import ConfigurationError


@dataclasses.dataclass(frozen=True)
class Alarm:
  """When a policy is suspected, against the policy that it started from.

  Attributes:
    held_out: columns of results.csv that the reward is held against, such as
      ('chrf', 'metricx_24_mean'): all of them have to fall.
    reward: the column that has to rise.
    min_rise: by how much at least, in points of that column.
    stop_run: whether the run ends there, instead of a warning.
  """

  held_out: tuple[str, ...]
  reward: str = 'reward_mean'
  min_rise: float = 0.0
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
    if self.min_rise < 0:
      raise ConfigurationError(
        f'Alarm.min_rise = {self.min_rise} must be at least 0.'
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

  def suspicion(
    self,
    before: results.Row,
    after: results.Row,
    higher_is_better: Mapping[str, bool],
  ) -> str | None:
    """What is suspicious about a policy, for people; None where nothing is.

    Args:
      before: the row of the policy that it started from, on the same split.
      after: its own row.
      higher_is_better: of each column of `held_out`.

    Returns:
      A line, or None; also where a figure is missing.
    """
    rise = getattr(after, self.reward) - getattr(before, self.reward)
    moves = []
    for name in self.held_out:
      old, new = _figure(before, name), _figure(after, name)
      if old is None or new is None:
        return None
      if (new < old) != higher_is_better[name] or new == old:
        return None
      moves.append(f'{name} from {old:.3g} to {new:.3g}')
    if rise <= self.min_rise:
      return None
    return (
      f'{after.policy} on {after.split}: {self.reward} rose by {rise:.1f} since'
      f' {before.policy} while {" and ".join(moves)} got worse: the reward may'
      ' be hacked; read samples before trusting it'
    )


def _figure(row: results.Row, name: str) -> float | None:
  return row.further.get(name, getattr(row, name, None))
