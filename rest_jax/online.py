"""How an online baseline is trained: RLOO or PPO."""

import dataclasses
from typing import Literal

from rest_jax import generation, losses, online_losses
from rest_jax.decoding.sampling import Sampling
from rest_jax.errors import ConfigurationError
from rest_jax.training import early_stopping, optimizer


@dataclasses.dataclass(frozen=True)
class Online:
  """How a policy is trained online, from BC.

  The reward of a sample is R(x, y) − β log(π(y | x) / π_BC(y | x)).

  Attributes:
    optimizer: how parameters move.
    stopping: until when, by the reward on D_select.
    algorithm: 'rloo' (REINFORCE with a leave-one-out baseline) or 'ppo'.
    sources_per_update: sources of a batch.
    num_samples: samples of each; RLOO needs two.
    updates_per_batch: updates on the same samples; PPO's clip needs several.
    kl_coefficient: β.
    sampling: how samples are drawn: at T = 1 without truncation, so from the
      policy itself, whose gradient both algorithms estimate.
    batching: shapes of decoding; its longest lengths are those of a packed row.
    ppo: PPO's loss.
    discount: γ of PPO's returns.
    trace: λ of PPO's advantages.
    num_microbatches: parts that a batch is cut into to save memory. Their rows
      are filled up with empty ones where samples are too few.
  """

  optimizer: optimizer.Optimizer
  stopping: early_stopping.Stopping
  algorithm: Literal['rloo', 'ppo'] = 'rloo'
  sources_per_update: int = 16
  num_samples: int = 4
  updates_per_batch: int = 1
  kl_coefficient: float = 0.05
  sampling: Sampling = Sampling(temperature=1.0)
  batching: generation.Batching = generation.Batching()
  ppo: online_losses.ProximalPolicy = online_losses.ProximalPolicy()
  discount: float = 1.0
  trace: float = 0.95
  num_microbatches: int = 1

  def __post_init__(self):
    if self.algorithm not in ('rloo', 'ppo'):
      raise ConfigurationError(
        f"Online.algorithm = {self.algorithm!r} must be 'rloo' or 'ppo'."
      )
    least = {
      'sources_per_update': 1,
      'num_samples': 2 if self.algorithm == 'rloo' else 1,
      'updates_per_batch': 1,
      'kl_coefficient': 0.0,
    }
    for name, value in least.items():
      if getattr(self, name) < value:
        raise ConfigurationError(
          f'Online.{name} = {getattr(self, name)} must be at least {value}.'
        )
    for name in ('discount', 'trace'):
      if not 0.0 <= getattr(self, name) <= 1.0:
        raise ConfigurationError(
          f'Online.{name} = {getattr(self, name)} must be in [0, 1].'
        )
    if self.sampling != Sampling(temperature=1.0):
      raise ConfigurationError(
        f'Online.sampling = {self.sampling} draws from another distribution'
        ' than the policy, which no weight corrects; leave it at T = 1 without'
        ' truncation.'
      )
    if self.algorithm == 'rloo' and self.updates_per_batch > 1:
      raise ConfigurationError(
        f'Online.updates_per_batch = {self.updates_per_batch} with'
        " Online.algorithm = 'rloo': its gradient holds at the policy that drew"
        " the samples alone; set it to 1, or the algorithm to 'ppo'."
      )
    if self.stopping.eval_every % self.updates_per_batch:
      raise ConfigurationError(
        f'Online.stopping.eval_every = {self.stopping.eval_every} must be a'
        f' multiple of Online.updates_per_batch = {self.updates_per_batch}: a'
        ' run goes on from there with new samples.'
      )

  @property
  def loss(self) -> losses.PolicyLoss:
    """The loss of the algorithm."""
    if self.algorithm == 'ppo':
      return self.ppo
    return online_losses.PolicyGradient()

  @property
  def samples_per_batch(self) -> int:
    """Samples that a batch draws."""
    return self.sources_per_update * self.num_samples
