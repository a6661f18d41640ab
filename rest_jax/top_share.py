"""The best share of all samples, whatever their sources: RAFT's global ranking.

(Dong et al., RAFT: Reward rAnked FineTuning, 2023, arXiv:2304.06767.) Unlike a
quantile as a strict threshold it keeps its share where many rewards are equal,
as right ones are: of those on the edge, some at random.
"""

import dataclasses
import itertools

import numpy as np
from jaxtyping import Bool

from rest_jax import errors
from rest_jax import rows as rows_lib
from rest_jax import schedule as schedule_lib


@dataclasses.dataclass(frozen=True)
class TopShare:
  """Keeps what exceeds τ, and a share of what equals it.

  Attributes:
    tau: τ on the scale of rewards.
    tied: probability that a row whose reward is τ is kept.
    seed: of the random choice, which depends besides only on source and sample.
  """

  tau: float
  tied: float
  seed: int = 0

  needs = frozenset()

  def keep(
    self, rows: rows_lib.Rows, alive: Bool[np.ndarray, 'm']
  ) -> Bool[np.ndarray, 'm']:
    """See `selection.Selection.keep`."""
    del alive
    tau = np.float32(self.tau)
    chance = rows_lib.random_order(rows, self.seed) / np.float64(2**64)
    return (rows.reward > tau) | ((rows.reward == tau) & (chance < self.tied))


@dataclasses.dataclass(frozen=True)
class TopShares:
  """The best shares of all rows in D_g in Improve steps 1 … I.

  Attributes:
    shares: in (0, 1], falling; with K samples a source RAFT's is 1 / K. Rows
      are counted as for `schedule.Quantiles`, so samples that never ended too.
    seed: of the choice among equal rewards.
  """

  shares: tuple[float, ...]
  seed: int = 0

  def __post_init__(self):
    for share in self.shares:
      if not 0.0 < share <= 1.0:
        raise errors.ConfigurationError(
          f'TopShares.shares holds {share!r}: each must be in (0, 1]'
        )
    if any(b >= a for a, b in itertools.pairwise(self.shares)):
      raise errors.ConfigurationError(
        f'TopShares.shares = {self.shares} must fall from step to step'
      )

  @property
  def num_steps(self) -> int:
    """I."""
    return len(self.shares)

  def first(self, steps: int) -> 'TopShares':
    """See `schedule.Schedule.first`."""
    return dataclasses.replace(self, shares=self.shares[:steps])

  def label(self, step: int) -> str:
    """See `schedule.Schedule.label`."""
    return f'best {100 * self.shares[step - 1]:g} % of all'

  def filters(self, rewards: schedule_lib.RewardStream) -> list[TopShare]:
    """See `schedule.Schedule.filters`.

    Raises:
      DataError: there is no reward at all.
    """
    taus = schedule_lib.quantiles(rewards, [1.0 - s for s in self.shares])
    total, above, tied = 0, np.zeros(len(taus)), np.zeros(len(taus))
    for values in rewards():
      total += len(values)
      for i, tau in enumerate(np.float32(taus)):
        above[i] += np.count_nonzero(values > tau)
        tied[i] += np.count_nonzero(values == tau)
    wanted = np.asarray(self.shares) * total - above
    chances = np.clip(wanted / tied, 0.0, 1.0)
    return [
      TopShare(tau, float(chance), self.seed)
      for tau, chance in zip(taus, chances, strict=True)
    ]
