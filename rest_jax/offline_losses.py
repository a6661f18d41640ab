"""Losses of Improve that learn from more than which rows were kept.

What they need besides the policy's scores stands in `Batch.decoder_figures`,
a number a target token; see `losses.STORED` and `losses.SCORED`. As in
`losses`, one equation is one function.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rest_jax import errors, losses, types

TokenFloats = Float[Array, 'b t']


def clipped_importance(
  log_probs: TokenFloats,
  old_log_probs: TokenFloats,
  weights: TokenFloats,
  epsilon: float,
) -> TokenFloats:
  """ℓ_t = −min(ρ_t, clip(ρ_t, 1 − ε, 1 + ε)),  ρ_t = π_θ(y_t | ·) / π_old(…).

  RAFT++ (Xiong et al., A Minimalist Approach to LLM Reasoning: from Rejection
  Sampling to Reinforce, 2025, arXiv:2504.11343), which is PPO's
  clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, equation 7) with an
  advantage of 1 on kept samples. Where the weight is negative, an advantage
  below 0, the pessimistic choice is the greater one: max instead of min.

  Args:
    log_probs: float32, log π_θ(y_t | y_<t, x) in nats.
    old_log_probs: float32, log π_old(y_t | y_<t, x) of the policy that grew
      them, untempered as π_θ is: at π_old all ratios are 1.
    weights: float32, whose sign decides which is pessimistic.
    epsilon: ε, in (0, 1).

  Returns:
    float32, one a token, to be multiplied by the weight.
  """
  ratios = jnp.exp(log_probs - old_log_probs)
  clipped = jnp.clip(ratios, 1.0 - epsilon, 1.0 + epsilon)
  lower = jnp.minimum(ratios, clipped)
  return -jnp.where(weights < 0, jnp.maximum(ratios, clipped), lower)


@dataclasses.dataclass(frozen=True)
class ClippedImportance(losses.PolicyLoss):
  """RAFT++: kept samples, weighted by how likely they have become.

  Samples are drawn from μ, which is π_old but for temperature and truncation.
  So each token's loss is multiplied by min(π_old/μ, c), as where the policy
  that is clipped against did not draw the samples (Hilton et al., Batch
  Size-Invariance for Policy Optimization, 2021, arXiv:2110.00641); c bounds
  its variance.

  Attributes:
    epsilon: ε of the clip.
    max_correction: c, at least 1; 1 leaves only what is below 1.
    normalization: as `losses.BehavioralCloning`. 'tokens' is what the authors'
      code does; their equation 6 takes the mean of each response first.

  Raises:
    ConfigurationError: when ε is out of its range.
  """

  name: ClassVar[str] = 'raft++'
  needs: ClassVar[tuple[str, ...]] = losses.STORED

  epsilon: float = 0.2
  max_correction: float = 2.0
  normalization: losses.Normalization = 'tokens'

  def __post_init__(self):
    _check(self, 'epsilon', 0.0 < self.epsilon < 1.0, 'in (0, 1)')
    right = 1.0 <= self.max_correction < math.inf
    _check(self, 'max_correction', right, 'at least 1')

  def __call__(
    self, scores: types.TokenScores, batch: types.Batch
  ) -> jax.Array:
    """Returns the loss of each target token, unweighted, float32 [b, t]."""
    old = _figure(batch, 'grown_log_probs')
    correction = jnp.exp(old - _figure(batch, 'sampling_log_probs'))
    return jnp.minimum(correction, self.max_correction) * clipped_importance(
      scores.log_probs,
      old,
      jnp.asarray(batch.decoder_loss_weights),
      self.epsilon,
    )


def look_ahead(
  log_probs: TokenFloats,
  segments: Int[Array, 'b t'],
  *,
  steps: int,
  discount: float,
  baseline: float,
  floor: float,
) -> TokenFloats:
  """b2_t = Σ_{j=0..k} γ^j · max(log π_BC(y_{t+j} | ·) − b, c).

  The estimate Q̂ of GOLD-p, truncated after k further tokens (Pang and He, Text
  Generation by Learning from Demonstrations, 2021, arXiv:2009.07839, section
  3). What lies beyond the end of a sequence counts as certain, log 1 = 0, so
  that short sequences do not lose. In the authors' code that holds for the
  longest sequence of a batch; beyond the end of others stands what BC says of
  padding, but for c.

  Args:
    log_probs: float32, log π_BC(y_t | y_<t, x) in nats.
    segments: int32, which sequence of its row a token belongs to.
    steps: k.
    discount: γ.
    baseline: b, in nats, below what log-probabilities are.
    floor: c, the least that one token counts.

  Returns:
    float32, one a token, at least 0 where c is.
  """
  length = log_probs.shape[1]
  total = jnp.zeros_like(log_probs)
  for j in range(steps + 1):
    ahead = jnp.pad(log_probs[:, j:], ((0, 0), (0, min(j, length))))
    there = jnp.pad(segments[:, j:], ((0, 0), (0, min(j, length))))
    ahead = jnp.where(there == segments, ahead, 0.0)
    total += discount**j * jnp.maximum(ahead - baseline, floor)
  return total


def gold(
  log_probs: TokenFloats, lagged: TokenFloats, returns: TokenFloats, low: float
) -> TokenFloats:
  """ℓ_t = −b1_t · b2_t · log π_θ(y_t | ·),  b1_t = max(π̃(y_t | ·), u).

  GOLD, generation by off-policy learning from demonstrations (Pang and He 2021,
  arXiv:2009.07839, algorithm 1). Nothing is differentiated but log π_θ.

  Args:
    log_probs: float32, log π_θ(y_t | y_<t, x) in nats.
    lagged: float32, log π̃(y_t | y_<t, x) of an earlier π_θ.
    returns: float32, b2, see `look_ahead`.
    low: u, the least importance.

  Returns:
    float32, one a token.
  """
  importance = jnp.maximum(jnp.exp(lagged), low)
  return -jax.lax.stop_gradient(importance * returns) * log_probs


@dataclasses.dataclass(frozen=True)
class Gold(losses.PolicyLoss):
  """GOLD. π̃ is the policy that the Improve step starts from.

  This is GOLD-p, whose b2 sums log-probabilities, with the k = 5 and b = −10 of
  the authors' code. Their GOLD-p has u = 0 and c = 1; u = 0.2 is that of their
  script for IWSLT14, which runs GOLD-s and sums probabilities. b lies so far
  below most of what BC says that b2 hardly differs among tokens, and GOLD is
  nearly BC weighted by b1; a b near the log-probabilities of poor tokens, such
  as −3, parts them.

  Attributes:
    low: u, the least importance.
    steps: k, how many further tokens a token answers for.
    discount: γ.
    baseline: b, in nats.
    floor: c.
    normalization: as `losses.BehavioralCloning`.

  Raises:
    ConfigurationError: when a value is out of its range.
  """

  name: ClassVar[str] = 'gold'
  needs: ClassVar[tuple[str, ...]] = ('bc_log_probs', 'start_log_probs')

  low: float = 0.2
  steps: int = 5
  discount: float = 1.0
  baseline: float = -10.0
  floor: float = 0.0
  normalization: losses.Normalization = 'tokens'

  def __post_init__(self):
    _check(self, 'low', 0.0 <= self.low <= 1.0, 'in [0, 1]')
    _check(self, 'steps', self.steps >= 0, 'at least 0')
    _check(self, 'discount', 0.0 <= self.discount <= 1.0, 'in [0, 1]')
    _check(self, 'baseline', -math.inf < self.baseline <= 0.0, 'at most 0')
    _check(self, 'floor', 0.0 <= self.floor < math.inf, 'at least 0')

  def __call__(
    self, scores: types.TokenScores, batch: types.Batch
  ) -> jax.Array:
    """Returns the loss of each target token, unweighted, float32 [b, t]."""
    returns = look_ahead(
      _figure(batch, 'bc_log_probs'),
      _segments(batch),
      steps=self.steps,
      discount=self.discount,
      baseline=self.baseline,
      floor=self.floor,
    )
    lagged = _figure(batch, 'start_log_probs')
    return gold(scores.log_probs, lagged, returns, self.low)


def actor_critic(
  log_probs: TokenFloats, advantages: TokenFloats
) -> TokenFloats:
  """ℓ_t = −A_t · log π_θ(y_t | ·),  A_t = R(x, y) − V(x, y_<t).

  Offline actor-critic (OAC; Mathieu et al., AlphaStar Unplugged, 2023,
  arXiv:2308.03526) as the ReST paper uses it: with the behaviour's value
  function, and without V-trace, which did not help there (appendix A.8.3).

  Args:
    log_probs: float32, log π_θ(y_t | y_<t, x) in nats.
    advantages: float32, A; not differentiated.

  Returns:
    float32, one a token, of either sign.
  """
  return -jax.lax.stop_gradient(advantages) * log_probs


@dataclasses.dataclass(frozen=True)
class ActorCritic(losses.PolicyLoss):
  """OAC.

  Attributes:
    normalization: as `losses.BehavioralCloning`.
  """

  name: ClassVar[str] = 'oac'
  needs: ClassVar[tuple[str, ...]] = (losses.RETURNS, 'values')
  uses_rewards: ClassVar[bool] = True

  normalization: losses.Normalization = 'tokens'

  def __call__(
    self, scores: types.TokenScores, batch: types.Batch
  ) -> jax.Array:
    """Returns the loss of each target token, unweighted, float32 [b, t]."""
    return actor_critic(scores.log_probs, advantages_of(batch))


def dpo(margins: Float[Array, '*shape'], beta: float) -> jax.Array:
  """−log σ(β h),  h = log (π_θ/π_ref)(y⁺ | x) − log (π_θ/π_ref)(y⁻ | x).

  Rafailov et al., Direct Preference Optimization, 2023, arXiv:2305.18290,
  equation 7.

  Args:
    margins: float32, h in nats.
    beta: β, above 0: the greater, the closer to π_ref.

  Returns:
    float32, nats a pair.
  """
  return jax.nn.softplus(-beta * margins)


def ipo(margins: Float[Array, '*shape'], beta: float) -> jax.Array:
  """(h − 1 / (2β))², which stops where DPO would go on for ever.

  Azar et al., A General Theoretical Paradigm to Understand Learning from Human
  Preferences, 2023, arXiv:2310.12036, the sampled loss of IPO; its τ is β.
  h sums over tokens, as there: β = 0.1 asks for 5 nats a pair. trl's IPO
  divides each log-ratio by its tokens, which its comment says the authors did,
  and asks for as much a token.

  Args:
    margins: float32, h in nats, as in `dpo`.
    beta: β, above 0: the greater, the closer to π_ref.

  Returns:
    float32, one a pair.
  """
  return jnp.square(margins - 1.0 / (2.0 * beta))


def pair_margins(
  log_ratios: TokenFloats,
  counted: Bool[Array, 'b t'],
  segments: Int[Array, 'b t'],
) -> TokenFloats:
  """The margin h of each token's pair; see `dpo`.

  Sequences 1 and 2 of a packed row are a pair, so are 3 and 4, …; of each the
  first is the better one.

  Args:
    log_ratios: float32, log π_θ(y_t | ·) − log π_ref(y_t | ·) in nats.
    counted: bool, False on padding.
    segments: int32, which sequence of its row a token belongs to, from 1.

  Returns:
    float32, Σ_t of the better one's ratios minus Σ_t of the worse one's.
  """
  signs = jnp.where(segments % 2 == 1, 1.0, -1.0)
  signed = jnp.where(counted, signs * log_ratios, 0.0)
  pairs = (segments + 1) // 2
  same = pairs[:, :, None] == pairs[:, None, :]
  return jnp.sum(jnp.where(same, signed[:, None, :], 0.0), axis=-1)


@dataclasses.dataclass(frozen=True)
class Preference(losses.PolicyLoss):
  """DPO or IPO on the best and the worst sample of each source.

  π_ref is the policy that grew them, by its stored log-probabilities. The
  better sample passes the filter of the Improve step.

  Attributes:
    form: 'dpo' or 'ipo'.
    beta: β, above 0.

  Raises:
    ConfigurationError: when a value is out of its range.
  """

  needs: ClassVar[tuple[str, ...]] = ('grown_log_probs',)
  paired: ClassVar[bool] = True
  uses_rewards: ClassVar[bool] = True
  # Both texts of a pair have its loss, so the mean over texts is that of pairs.
  normalization: ClassVar[losses.Normalization] = 'sequences'

  form: str = 'dpo'
  beta: float = 0.1

  def __post_init__(self):
    _check(self, 'form', self.form in ('dpo', 'ipo'), "'dpo' or 'ipo'")
    _check(self, 'beta', 0.0 < self.beta < math.inf, 'above 0')

  @property
  def name(self) -> str:
    """In the results."""
    return self.form

  def __call__(
    self, scores: types.TokenScores, batch: types.Batch
  ) -> jax.Array:
    """Returns each text's loss at its first token, float32 [b, t]."""
    counted = jnp.asarray(batch.decoder_loss_weights) != 0
    margins = pair_margins(
      scores.log_probs - _figure(batch, 'grown_log_probs'),
      counted,
      jnp.asarray(batch.decoder_segment_ids),
    )
    pair = dpo if self.form == 'dpo' else ipo
    is_first = counted & (jnp.asarray(batch.decoder_input_tokens) == 0)
    return jnp.where(is_first, pair(margins, self.beta), 0.0)


def _figure(batch: types.Batch, name: str) -> TokenFloats:
  return jnp.asarray(batch.decoder_figures[name])


def advantages_of(batch: types.Batch) -> TokenFloats:
  """R(x, y) − V(x, y_<t) of each target token, float32 [b, t]."""
  return _figure(batch, losses.RETURNS) - _figure(batch, 'values')


def _segments(batch: types.Batch) -> Int[Array, 'b t']:
  """Which sequence of its row a target token belongs to; 0 on padding."""
  if batch.decoder_segment_ids is not None:
    return jnp.asarray(batch.decoder_segment_ids)
  targets = jnp.asarray(batch.decoder_target_tokens)
  return (targets != 0).astype(jnp.int32)


def _check(loss: object, name: str, right: bool, wanted: str) -> None:
  if not right:
    raise errors.ConfigurationError(
      f'{type(loss).__name__}.{name} = {getattr(loss, name)!r}: must be'
      f' {wanted}.'
    )
