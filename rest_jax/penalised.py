"""Ranking by the reward less what it cost to leave BC."""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool

from rest_jax import errors, selection
from rest_jax import rows as rows_lib

LOG_RATIOS = 'log_ratios'  # The field of `Rows` that it reads.


@dataclasses.dataclass(frozen=True)
class Penalised:
  """A selection that sees R(x, y) − β log(π(y | x) / π_BC(y | x)) for a reward.

  The ranking of RAFT with a KL penalty (Dong et al., RAFT: Reward rAnked
  FineTuning, 2023, arXiv:2304.06767, section 3). π is the policy that drew the
  sample; rows that none drew have no penalty. It ranks alone: weights of
  losses, and what is shown of kept rows, are of the reward.

  Attributes:
    selection: compares the rows of a source.
    beta: β, above 0, in rewards a nat.
  """

  selection: selection.Selection
  beta: float | int

  def __post_init__(self):
    if not 0.0 < self.beta < math.inf:
      raise errors.ConfigurationError(
        f'Penalised.beta = {self.beta!r} must be a number above 0'
      )

  @property
  def needs(self) -> frozenset[str]:
    """See `selection.Selection.needs`."""
    return self.selection.needs | {LOG_RATIOS}

  def keep(
    self, rows: rows_lib.Rows, alive: Bool[np.ndarray, 'm']
  ) -> Bool[np.ndarray, 'm']:
    """See `selection.Selection.keep`."""
    less = np.float32(self.beta) * rows.log_ratios
    penalised = dataclasses.replace(rows, reward=rows.reward - less)
    return self.selection.keep(penalised, alive)
