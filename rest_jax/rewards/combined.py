"""Rewards made of rewards: weighted sum, product, minimum, lower bound.

Each part is a reward model of its own. Its scores are stored under its own
name, and the combination is computed from these, on the parts' rewards in
[0, 1] (so a TER or MetricX has been turned round). Parts may be combinations.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32

from rest_jax import errors
from rest_jax.rewards import base, scoring


class _Combination:
  """What all combinations share; see the classes below."""

  parts: tuple[base.RewardModel, ...]
  name: str

  def __post_init__(self):
    kind = type(self).__name__
    if not self.parts:
      raise errors.ConfigurationError(
        f'{kind}.parts is empty; give the reward models to combine.'
      )
    names = [part.info.name for part in self.parts]
    if len({*names, self.name}) <= len(names):
      raise errors.ConfigurationError(
        f'{kind}: its name {self.name!r} and those of its parts {names} must'
        ' differ, since each names a folder.'
      )

  @property
  def info(self) -> base.RewardInfo:
    infos = [part.info for part in self.parts]
    trained_on = [name for info in infos for name in info.trained_on]
    return base.RewardInfo(
      name=self.name,
      version='1: ' + ', '.join(f'{i.name} {i.version}' for i in infos),
      low=0.0,
      high=1.0,
      needs_reference=any(info.needs_reference for info in infos),
      trained_on=tuple(dict.fromkeys(trained_on)),
    )

  def score(
    self,
    sources: Sequence[str],
    candidates: Sequence[str],
    references: Sequence[str] | None = None,
  ) -> Float32[np.ndarray, ' n']:
    """Scores n candidates by every part; errors as those of the parts.

    Returns:
      float32 [n], in [0, 1].
    """
    return scoring.raw_scores(self, sources, candidates, references)


@dataclasses.dataclass(frozen=True)
class WeightedSum(_Combination):
  """R = Σ w_k R_k / Σ w_k.

  Attributes:
    parts: the reward models R_k.
    weights: w_k > 0, one a part.
    name: of the combination.
  """

  parts: tuple[base.RewardModel, ...]
  weights: tuple[float, ...]
  name: str = 'weighted_sum'

  def __post_init__(self):
    super().__post_init__()
    if len(self.weights) != len(self.parts) or not min(self.weights) > 0:
      raise errors.ConfigurationError(
        f'WeightedSum.weights = {self.weights} must be'
        f' {len(self.parts)} numbers above 0, one a part.'
      )

  def combine(
    self, rewards: Float[np.ndarray, 'parts n']
  ) -> Float[np.ndarray, ' n']:
    weights = np.asarray(self.weights, np.float64)
    return (weights / weights.sum()) @ rewards


@dataclasses.dataclass(frozen=True)
class Product(_Combination):
  """R = Π R_k: the way to apply a penalty, which is 1 where nothing is wrong.

  Attributes:
    parts: the reward models R_k.
    name: of the combination.
  """

  parts: tuple[base.RewardModel, ...]
  name: str = 'product'

  def combine(
    self, rewards: Float[np.ndarray, 'parts n']
  ) -> Float[np.ndarray, ' n']:
    return rewards.prod(axis=0)


@dataclasses.dataclass(frozen=True)
class Minimum(_Combination):
  """R = min_k R_k: good only where all parts find it good.

  Attributes:
    parts: the reward models R_k.
    name: of the combination.
  """

  parts: tuple[base.RewardModel, ...]
  name: str = 'minimum'

  def combine(
    self, rewards: Float[np.ndarray, 'parts n']
  ) -> Float[np.ndarray, ' n']:
    return rewards.min(axis=0)


@dataclasses.dataclass(frozen=True)
class LowerBound(_Combination):
  """R = max(0, mean_k R_k − k · std_k R_k), of the members of an ensemble.

  Where its members disagree, a policy gains nothing from the one that errs in
  its favour. The standard deviation is that of the members themselves
  (divided by their number).

  Attributes:
    parts: the members; at least two.
    k: how many standard deviations below the mean; at least 0.
    name: of the combination.
  """

  parts: tuple[base.RewardModel, ...]
  k: float = 1.0
  name: str = 'lower_bound'

  def __post_init__(self):
    super().__post_init__()
    if len(self.parts) < 2 or not 0 <= self.k < np.inf:
      raise errors.ConfigurationError(
        f'LowerBound with {len(self.parts)} parts and k = {self.k} needs at'
        ' least 2 parts and a k of at least 0.'
      )

  def combine(
    self, rewards: Float[np.ndarray, 'parts n']
  ) -> Float[np.ndarray, ' n']:
    bound = rewards.mean(axis=0) - self.k * rewards.std(axis=0)
    return np.maximum(bound, 0.0)
