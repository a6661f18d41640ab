"""V-MPO and BVMPO: losses that are held near a policy by its distributions."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rest_jax import anchored, errors, losses, offline_losses, types

TokenFloats = Float[Array, 'b t']
Scalar = Float[Array, '']
_NEVER = -1e9  # Finite, so that a batch without tokens has gradients of 0.


def top_half(
  advantages: TokenFloats, counted: Bool[Array, 'b t']
) -> Bool[Array, 'b t']:
  """The tokens whose advantage is at least the median of all that count."""
  median = jnp.nanmedian(jnp.where(counted, advantages, jnp.nan))
  return counted & (advantages >= median)


def policy_loss(
  log_probs: TokenFloats,
  advantages: TokenFloats,
  chosen: Bool[Array, 'b t'],
  eta: Scalar,
) -> TokenFloats:
  """ℓ_t = −ψ_t log π_θ(y_t | ·),  ψ_t = exp(A_t / η) / Σ_chosen exp(A / η).

  V-MPO (Song et al., V-MPO: On-Policy Maximum a Posteriori Policy Optimization
  for Discrete and Continuous Control, 2019, arXiv:1909.12238, equation 3).

  Args:
    log_probs: float32, log π_θ(y_t | y_<t, x) in nats.
    advantages: float32, A.
    chosen: bool, the top half.
    eta: η, the temperature; ψ is not differentiated.

  Returns:
    float32, one a token, whose sum is the loss.
  """
  scaled = jnp.where(chosen, advantages / eta, _NEVER)
  psi = jax.nn.softmax(scaled.reshape(-1)).reshape(scaled.shape)
  psi = jnp.where(chosen, psi, 0.0)
  return -jax.lax.stop_gradient(psi) * log_probs


def temperature_loss(
  advantages: TokenFloats,
  chosen: Bool[Array, 'b t'],
  eta: Scalar,
  epsilon: float,
) -> Scalar:
  """L_η = η ε_η + η log( 1/|D̃| Σ_chosen exp(A_t / η) ), the dual of η.

  V-MPO, equation 4: at its minimum ψ is a KL of ε_η away from uniform.

  Args:
    advantages: float32, A; not differentiated.
    chosen: bool, the top half D̃.
    eta: η, above 0.
    epsilon: ε_η, above 0.

  Returns:
    float32 [].
  """
  scaled = jnp.where(chosen, jax.lax.stop_gradient(advantages) / eta, _NEVER)
  count = jnp.maximum(jnp.sum(chosen), 1).astype(jnp.float32)
  return eta * (epsilon + jax.nn.logsumexp(scaled) - jnp.log(count))


def constraint_loss(
  divergences: TokenFloats, alpha: Scalar, epsilon: float
) -> TokenFloats:
  """L_α = α (ε_α − sg[KL(π_old‖π_θ)]) + sg[α] KL(π_old‖π_θ) at each prefix.

  V-MPO, equation 5, by coordinate descent: α, the Lagrange multiplier, rises
  where the divergence exceeds ε_α, and weighs it for the policy.

  Args:
    divergences: float32, KL(π_old(· | y_<t, x) ‖ π_θ(· | y_<t, x)) in nats.
    alpha: α, at least 0.
    epsilon: ε_α, above 0.

  Returns:
    float32, one a prefix, whose mean is the loss.
  """
  stop = jax.lax.stop_gradient
  return alpha * (epsilon - stop(divergences)) + stop(alpha) * divergences


@dataclasses.dataclass(frozen=True)
class VMPO(losses.PolicyLoss):
  """V-MPO on stored samples; π_old is the policy that the step starts from.

  Its η and α are trained by the policy's optimizer: each is its first value
  times exp(dual_rate · (z − 1)) for a parameter z that begins at 1.

  Attributes:
    eta: η at the beginning.
    epsilon_eta: ε_η.
    alpha: α at the beginning.
    epsilon_alpha: ε_α, in nats a token.
    dual_rate: how much faster η and α move than parameters do.

  Raises:
    ConfigurationError: when a value is not above 0.
  """

  name: ClassVar[str] = 'v-mpo'
  needs: ClassVar[tuple[str, ...]] = (losses.RETURNS, 'values')
  uses_rewards: ClassVar[bool] = True
  anchors: ClassVar[tuple[str, ...]] = ('start',)
  duals: ClassVar[tuple[str, ...]] = ('eta', 'alpha')
  # The sum over a batch is its loss, so a mean over tokens is what counts.
  normalization: ClassVar[losses.Normalization] = 'tokens'

  eta: float = 1.0
  epsilon_eta: float = 0.02
  alpha: float = 0.1
  epsilon_alpha: float = 0.01
  dual_rate: float = 10.0

  def __post_init__(self):
    for name in ('eta', 'epsilon_eta', 'alpha', 'epsilon_alpha', 'dual_rate'):
      _check_positive(self, name)

  def __call__(
    self, scores: anchored.AnchoredScores, batch: types.Batch
  ) -> jax.Array:
    """Returns the loss of each target token, unweighted, float32 [b, t]."""
    counted = jnp.asarray(batch.decoder_loss_weights) != 0
    advantages = offline_losses.advantages_of(batch)
    eta = self._dual(scores, 'eta')
    chosen = top_half(advantages, counted)
    # The trainer divides by the number of tokens what is summed here.
    count = jnp.sum(counted).astype(jnp.float32)
    policy = policy_loss(scores.log_probs, advantages, chosen, eta) * count
    constraint = constraint_loss(
      scores.divergences['start'],
      self._dual(scores, 'alpha'),
      self.epsilon_alpha,
    )
    of_eta = temperature_loss(advantages, chosen, eta, self.epsilon_eta)
    return policy + constraint + of_eta[None, None]

  def _dual(self, scores: anchored.AnchoredScores, name: str) -> Scalar:
    exponent = self.dual_rate * (scores.duals[name] - 1.0)
    return getattr(self, name) * jnp.exp(exponent)


@dataclasses.dataclass(frozen=True)
class BVMPO(VMPO):
  """V-MPO + λ KL(π_BC ‖ π_θ) at each prefix (the ReST paper's BVMPO).

  (Gulcehre et al. 2023, arXiv:2308.08998, appendix: V-MPO with a penalty on
  leaving the behaviour policy.) λ falls geometrically from its first to its
  last value over so many updates of an Improve step, and stays there.

  Attributes:
    first_lambda: λ at the first update.
    last_lambda: λ from update `lambda_steps` on.
    lambda_steps: updates that it falls over.
  """

  name: ClassVar[str] = 'bvmpo'
  anchors: ClassVar[tuple[str, ...]] = ('start', 'bc')

  first_lambda: float = 1.0
  last_lambda: float = 1e-5
  lambda_steps: int = 100
  # Set by `at`, while a step is traced; λ at the first update otherwise.
  coefficient: jax.Array | None = dataclasses.field(
    default=None, compare=False, repr=False
  )

  def __post_init__(self):
    super().__post_init__()
    for name in ('first_lambda', 'last_lambda', 'lambda_steps'):
      _check_positive(self, name)

  def at(self, update: jax.Array) -> 'BVMPO':
    """See `losses.PolicyLoss.at`."""
    return dataclasses.replace(self, coefficient=self.lambda_at(update))

  def lambda_at(self, update: int | jax.Array) -> jax.Array:
    """λ at an update, counted from 0, float32 []."""
    passed = jnp.clip(jnp.asarray(update) / self.lambda_steps, 0.0, 1.0)
    fall = math.log(self.last_lambda / self.first_lambda)
    return self.first_lambda * jnp.exp(fall * passed)

  def __call__(
    self, scores: anchored.AnchoredScores, batch: types.Batch
  ) -> jax.Array:
    """Returns the loss of each target token, unweighted, float32 [b, t]."""
    coefficient = self.coefficient
    if coefficient is None:
      coefficient = self.lambda_at(0)
    penalty = coefficient * scores.divergences['bc']
    return super().__call__(scores, batch) + penalty


def _check_positive(loss: object, name: str) -> None:
  value = getattr(loss, name)
  if not 0.0 < value < math.inf:
    raise errors.ConfigurationError(
      f'{type(loss).__name__}.{name} = {value!r}: must be above 0.'
    )
