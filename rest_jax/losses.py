"""Losses: one equation, one function; those of BC and weighted BC.

A loss gives a value a target token. Which tokens count, and how much, stands in
`Batch.decoder_loss_weights` (the filter F(x, y; τ) of ReST times any importance
weight); `rest_jax.training.step` sums and divides, once over all microbatches
and hosts.
"""

import dataclasses
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rest_jax import errors, types

Normalization = Literal['tokens', 'sequences']


def negative_log_likelihood(
  log_probs: Float[Array, '*shape'],
) -> Float[Array, '*shape']:
  """ℓ_t = −log π_θ(y_t | y_<t, x), the behavioural cloning (BC) loss.

  Gulcehre et al., Reinforced Self-Training (ReST) for Language Modeling, 2023,
  arXiv:2308.08998, equation 1. Weighted by F(x, y; τ) it is equation 2, the
  Improve step.

  Args:
    log_probs: float32, log π_θ(y_t | y_<t, x) in nats.

  Returns:
    float32, nats a token.
  """
  return -log_probs


def label_smoothing(
  token_losses: Float[Array, '*shape'],
  mean_log_probs: Float[Array, '*shape'],
  epsilon: float,
) -> Float[Array, '*shape']:
  """(1 − ε) ℓ_t + ε · (−1/|V| Σ_v log π_θ(v | y_<t, x)).

  Szegedy et al., Rethinking the Inception Architecture, 2016, section 7: the
  cross-entropy to targets of which a share ε is spread over the vocabulary.
  Unlike T5X's it does not subtract the entropy of those targets, a constant.

  Args:
    token_losses: float32, ℓ_t in nats.
    mean_log_probs: float32, the mean of log π_θ over the vocabulary, in nats.
    epsilon: the share ε, in [0, 1).

  Returns:
    float32, nats a token.
  """
  return (1.0 - epsilon) * token_losses - epsilon * mean_log_probs


def z_loss(
  log_normalizers: Float[Array, '*shape'], coefficient: float
) -> Float[Array, '*shape']:
  """The penalty c · (log Z_t)², which keeps the normaliser near 1.

  Chowdhery et al., PaLM, 2022, arXiv:2204.02311, section 5; T5X's `z_loss`.

  Args:
    log_normalizers: float32, log Z_t = logsumexp of the logits.
    coefficient: c, at least 0 (T5X uses 1e-4).

  Returns:
    float32, a penalty a token.
  """
  return coefficient * jnp.square(log_normalizers)


def squared_error(
  scores: Float[Array, '*shape'], wanted: Float[Array, '*shape']
) -> Float[Array, '*shape']:
  """(v_θ − r)², the regression loss of reward and value models.

  Args:
    scores: float32, v_θ: R_θ(x, y), or V_θ(x, y_<t).
    wanted: float32, r.

  Returns:
    float32, one a score.
  """
  return jnp.square(scores - wanted)


def loss_normalizer(
  batch: types.Batch, normalization: Normalization
) -> Float[Array, '']:
  """What the weighted sum of token losses is divided by.

  `tokens`: Σ |w_t| over target tokens, a mean over tokens. `sequences`: Σ |w|
  over sequences, so that tokens are summed and sequences averaged, which is the
  form of equations 1 and 2 of the ReST paper. Magnitudes, since a sum of signed
  weights may vanish.

  Args:
    batch: training pairs, packed or not.
    normalization: 'tokens' or 'sequences'.

  Returns:
    float32 [], 0 when no token has weight.
  """
  weights = jnp.abs(batch.decoder_loss_weights)
  if normalization == 'sequences':
    # 0 is padding and the decoder's start token; on padding the weight is 0.
    weights = jnp.where(batch.decoder_input_tokens == 0, weights, 0.0)
  return jnp.sum(weights)


def count_tokens(batch: types.Batch) -> Int[Array, '']:
  """How many target tokens count: those whose weight is not 0, int32 []."""
  return jnp.sum(batch.decoder_loss_weights != 0, dtype=jnp.int32)


@runtime_checkable
class TokenLoss(Protocol):
  """What a training step asks of a loss; hashable, static in `jit`.

  Attributes:
    figure: name of what `plain` gives.
    normalization: what the weighted sum is divided by.
  """

  figure: ClassVar[str]

  @property
  def normalization(self) -> Normalization: ...

  def __call__(self, scores: Any, batch: types.Batch) -> jax.Array:
    """Returns what is minimised, float32 [b, t], of what the network gave."""

  def plain(self, scores: Any, batch: types.Batch) -> jax.Array:
    """Returns the same without penalties, to compare runs by."""


class PolicyLoss:
  """What Improve asks of a loss besides; what holds for BC is said here.

  Attributes:
    figure: every loss of a policy is reported beside the plain −log π.
    normalization: see `loss_normalizer`.
    name: in the results.
    needs: figures of each target token that must stand in
      `Batch.decoder_figures`; see `STORED`, `RETURNS` and `SCORED`.
    paired: whether it trains on pairs: a better sample of a source, and next to
      it in the same packed row a worse one.
    uses_rewards: whether rewards matter to it beside the filter.
    anchors: policies whose distributions it is held against, 'start' (that the
      step starts from) or 'bc'; see `anchored`.
    duals: names of dual variables that are trained with the policy.
  """

  figure: ClassVar[str] = 'nll'
  normalization: ClassVar[Normalization] = 'tokens'
  name: ClassVar[str] = 'bc'
  needs: ClassVar[tuple[str, ...]] = ()
  paired: ClassVar[bool] = False
  uses_rewards: ClassVar[bool] = False
  anchors: ClassVar[tuple[str, ...]] = ()
  duals: ClassVar[tuple[str, ...]] = ()

  def row_weights(
    self, rewards: Float[np.ndarray, ' n']
  ) -> Float[np.ndarray, ' n']:
    """The weight of each row that the filter kept, by its reward."""
    return np.ones_like(rewards)

  def at(self, update: jax.Array) -> 'PolicyLoss':
    """The loss at an update, counted from 0; a coefficient may be annealed."""
    del update
    return self

  @property
  def compares(self) -> bool:
    """Whether it holds π_θ against a policy, which then knows no dropout."""
    return bool(self.anchors or set(self.needs) & set(STORED))

  @property
  def fits_references(self) -> bool:
    """Whether it asks nothing that D's own pairs cannot tell."""
    return not (self.needs or self.paired or self.uses_rewards or self.anchors)

  def plain(self, scores: Any, batch: types.Batch) -> jax.Array:
    """Returns −log π of each target token, float32 [b, t], nats."""
    del batch
    return negative_log_likelihood(scores.log_probs)


# Figures of target tokens. Grow stored them, untempered and as drawn:
STORED = ('grown_log_probs', 'sampling_log_probs')
# The reward of the whole row, at each of its tokens:
RETURNS = 'returns'
# Improve has them computed, by BC, by the policy that the step starts from, and
# by the value model:
SCORED = ('bc_log_probs', 'start_log_probs', 'values')


@dataclasses.dataclass(frozen=True)
class BehavioralCloning(PolicyLoss):
  """BC, and with weights in the batch reward-weighted BC (ReST's Improve).

  Attributes:
    label_smoothing: the share ε of the targets spread over the vocabulary.
    z_loss: coefficient of (log Z)².
    normalization: 'tokens' (mean over target tokens) or 'sequences' (sum over
      tokens, mean over sequences: the paper's form).

  Raises:
    ConfigurationError: when a value is out of its range.
  """

  label_smoothing: float = 0.0
  z_loss: float = 0.0
  normalization: Normalization = 'tokens'

  def __post_init__(self):
    if not 0.0 <= self.label_smoothing < 1.0:
      raise errors.ConfigurationError(
        f'BehavioralCloning.label_smoothing = {self.label_smoothing}: must '
        'be in [0, 1).'
      )
    if not 0.0 <= self.z_loss < float('inf'):
      raise errors.ConfigurationError(
        f'BehavioralCloning.z_loss = {self.z_loss}: must be at least 0 '
        '(T5X uses 1e-4).'
      )
    if self.normalization not in ('tokens', 'sequences'):
      raise errors.ConfigurationError(
        f'BehavioralCloning.normalization = {self.normalization!r}: must be '
        "'tokens' or 'sequences'."
      )

  def __call__(
    self, scores: types.TokenScores, batch: types.Batch
  ) -> jax.Array:
    """Returns the loss of each target token, unweighted.

    Args:
      scores: what the policy says of the targets, each field [b, t].
      batch: the same targets; this loss needs nothing of it.

    Returns:
      float32 [b, t], nats; without meaning where the weight is 0.
    """
    losses = self.plain(scores, batch)
    if self.label_smoothing:
      losses = label_smoothing(
        losses, scores.mean_log_probs, self.label_smoothing
      )
    if self.z_loss:
      losses = losses + z_loss(scores.log_normalizers, self.z_loss)
    return losses


def linear_weights(rewards: Float[np.ndarray, '*n']) -> np.ndarray:
  """The weight R(x, y), of J(θ) = E[R(x, y) · L(x, y; θ)].

  Reward-weighted regression (Peters and Schaal, Reinforcement Learning by
  Reward-Weighted Regression for Operational Space Control, 2007) with the
  reward itself for a weight.

  Args:
    rewards: in [0, 1].

  Returns:
    As many weights, of the rewards' type.
  """
  return rewards


def exponential_weights(
  rewards: Float[np.ndarray, '*n'], beta: float
) -> np.ndarray:
  """The weight exp(R(x, y) / β), but for the constant factor exp(−1 / β).

  Peters and Schaal 2007; Peng et al., Advantage-Weighted
  Regression, 2019, arXiv:1910.00177. The factor keeps a small β from
  overflowing; the loss is divided by the sum of weights, so it changes nothing.

  Args:
    rewards: in [0, 1].
    beta: β, the temperature, above 0: the smaller, the more the best count.

  Returns:
    As many weights, at most 1, of the rewards' type.
  """
  return np.exp((rewards - 1) / beta).astype(rewards.dtype)


@dataclasses.dataclass(frozen=True)
class RewardWeighted(BehavioralCloning):
  """Reward-weighted BC: rows that the filter kept count by their reward.

  Attributes:
    weighting: 'linear' or 'exponential'.
    beta: β of the exponential one.

  Raises:
    ConfigurationError: when a value is out of its range.
  """

  name: ClassVar[str] = 'reward-weighted bc'
  uses_rewards: ClassVar[bool] = True

  weighting: Literal['linear', 'exponential'] = 'exponential'
  beta: float = 0.1

  def __post_init__(self):
    super().__post_init__()
    if self.weighting not in ('linear', 'exponential'):
      raise errors.ConfigurationError(
        f'RewardWeighted.weighting = {self.weighting!r}: must be'
        " 'linear' or 'exponential'."
      )
    if not 0.0 < self.beta < float('inf'):
      raise errors.ConfigurationError(
        f'RewardWeighted.beta = {self.beta}: must be above 0.'
      )

  def row_weights(
    self, rewards: Float[np.ndarray, ' n']
  ) -> Float[np.ndarray, ' n']:
    """See `PolicyLoss.row_weights`."""
    if self.weighting == 'linear':
      return linear_weights(rewards)
    return exponential_weights(rewards, self.beta)
