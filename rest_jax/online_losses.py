"""Losses of online reinforcement learning, and the returns that they need."""

import dataclasses
import math
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32

from rest_jax import errors, losses, offline_losses, types
from rest_jax.types import Leaf

TokenFloats = Float[Array, 'b t']


def leave_one_out(
  rewards: Float[np.ndarray, 'k n'],
) -> Float[np.ndarray, 'k n']:
  """A_i = R_i − 1/(n−1) Σ_{j≠i} R_j over the n samples of each source.

  REINFORCE with a leave-one-out baseline (Kool et al. 2019; for language models
  Ahmadian et al., Back to Basics, 2024, arXiv:2402.14740).

  >>> leave_one_out(np.array([[1.0, 0.0, 0.5]]))
  array([[ 0.75, -0.75,  0.  ]])

  Args:
    rewards: [k, n], n at least 2.

  Returns:
    [k, n].
  """
  n = rewards.shape[1]
  others = (rewards.sum(axis=1, keepdims=True) - rewards) / (n - 1)
  return rewards - others


def generalized_advantages(
  rewards: Float32[np.ndarray, 'b t'],
  values: Float32[np.ndarray, 'b t'],
  counted: Bool[np.ndarray, 'b t'],
  discount: float,
  trace: float,
) -> Float32[np.ndarray, 'b t']:
  """A_t = Σ_{l≥0} (γλ)^l δ_{t+l},  δ_t = r_t + γ V_{t+1} − V_t.

  Schulman et al., High-Dimensional Continuous Control Using Generalized
  Advantage Estimation, 2016, arXiv:1506.02438, equation 16. After the last
  token there is no value.

  Args:
    rewards: r_t, of the tokens.
    values: V(x, y_<t) before each of them.
    counted: False on padding, which comes after all tokens.
    discount: γ.
    trace: λ.

  Returns:
    float32 [b, t], 0 on padding.
  """
  values = np.where(counted, values, np.float32(0.0))
  following = np.pad(values[:, 1:], ((0, 0), (0, 1)))
  delta = np.where(counted, rewards + discount * following - values, 0.0)
  out = np.zeros_like(values)
  running = np.zeros(len(values), np.float32)
  for t in range(values.shape[1] - 1, -1, -1):
    running = delta[:, t] + discount * trace * running
    out[:, t] = running
  return out


@dataclasses.dataclass(frozen=True)
class PolicyGradient(losses.PolicyLoss):
  """ℓ_t = −A_t · log π_θ(y_t | ·), with the advantages that it is given.

  Divided by the batch's tokens; the paper's mean is over sequences, which
  within a batch differs by a factor alone.
  """

  name: ClassVar[str] = 'rloo'
  needs: ClassVar[tuple[str, ...]] = ('advantages',)

  def __call__(
    self, scores: types.TokenScores, batch: types.Batch
  ) -> jax.Array:
    """Returns the loss of each target token, float32 [b, t]."""
    advantages = jnp.asarray(batch.decoder_figures['advantages'])
    return offline_losses.actor_critic(scores.log_probs, advantages)


def clipped_surrogate(
  log_probs: TokenFloats,
  old_log_probs: TokenFloats,
  advantages: TokenFloats,
  epsilon: float,
) -> TokenFloats:
  """ℓ_t = −min(ρ_t A_t, clip(ρ_t, 1 − ε, 1 + ε) A_t),  ρ_t = π_θ / π_old.

  PPO (Schulman et al., Proximal Policy Optimization Algorithms, 2017,
  arXiv:1707.06347, equation 7).

  Args:
    log_probs: float32, log π_θ(y_t | y_<t, x) in nats.
    old_log_probs: float32, of the policy that drew the tokens.
    advantages: float32, A.
    epsilon: ε.

  Returns:
    float32, one a token.
  """
  weighed = offline_losses.clipped_importance(
    log_probs, old_log_probs, advantages, epsilon
  )
  return weighed * advantages


@flax.struct.dataclass
class ActorScores:
  """What PPO asks of each target token.

  Attributes:
    log_probs: float32 [b, t], as of `types.TokenScores`.
    values: float32 [b, t], V(x, y_<t).
  """

  log_probs: Leaf
  values: Leaf


@dataclasses.dataclass(frozen=True)
class ProximalPolicy(losses.PolicyLoss):
  """PPO's clipped surrogate + c_V · ½ (V(x, y_<t) − return_t)².

  Attributes:
    epsilon: ε of the clip.
    value_coefficient: c_V.

  Raises:
    ConfigurationError: when a value is out of its range.
  """

  name: ClassVar[str] = 'ppo'
  needs: ClassVar[tuple[str, ...]] = (
    'advantages',
    'grown_log_probs',
    losses.RETURNS,
  )

  epsilon: float = 0.2
  value_coefficient: float = 0.5

  def __post_init__(self):
    if not 0.0 < self.epsilon < 1.0:
      raise errors.ConfigurationError(
        f'ProximalPolicy.epsilon = {self.epsilon}: must be in (0, 1).'
      )
    if not 0.0 <= self.value_coefficient < math.inf:
      raise errors.ConfigurationError(
        f'ProximalPolicy.value_coefficient = {self.value_coefficient}: must be'
        ' at least 0.'
      )

  def __call__(self, scores: ActorScores, batch: types.Batch) -> jax.Array:
    """Returns the loss of each target token, float32 [b, t]."""
    figures = {k: jnp.asarray(v) for k, v in batch.decoder_figures.items()}
    actor = clipped_surrogate(
      scores.log_probs,
      figures['grown_log_probs'],
      figures['advantages'],
      self.epsilon,
    )
    critic = losses.squared_error(scores.values, figures[losses.RETURNS])
    return actor + 0.5 * self.value_coefficient * critic
