"""Losses of reward models, on scores or on preferences."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rest_jax import losses, types

# What a reward model is to learn of a text stands in the place of its target
# token, a whole number as all of these; 0 is padding.
LEVELS = 1_000_000  # A score in [0, 1] is 1 + round(score · LEVELS).
WORSE, BETTER = 1, 2  # A preference: the better text, then the worse one.


def level_of(score: float) -> int:
  """The target that stands for a score in [0, 1]."""
  return 1 + round(score * LEVELS)


def bradley_terry(margins: Float[Array, '*shape']) -> Float[Array, '*shape']:
  """−log σ(R_θ(x, y⁺) − R_θ(x, y⁻)), the loss of a preference.

  Bradley and Terry, Rank Analysis of Incomplete Block Designs, 1952; as a
  reward model's loss Stiennon et al. 2020, arXiv:2009.01325, section 3.4.

  Args:
    margins: float32, R_θ(x, y⁺) − R_θ(x, y⁻).

  Returns:
    float32, nats a pair.
  """
  return jax.nn.softplus(-margins)


@dataclasses.dataclass(frozen=True)
class Regression:
  """Squared error of a reward model's scores; targets are levels."""

  figure: ClassVar[str] = 'squared_error'
  normalization: ClassVar[losses.Normalization] = 'tokens'

  def __call__(
    self, scores: Float[Array, 'b t'], batch: types.Batch
  ) -> Float[Array, 'b t']:
    """Returns the loss of each text, unweighted."""
    targets = jnp.asarray(batch.decoder_target_tokens)
    return losses.squared_error(scores, (targets - 1) / jnp.float32(LEVELS))

  plain = __call__


@dataclasses.dataclass(frozen=True)
class BradleyTerry:
  """Bradley–Terry on neighbours: a better text's score, then the worse one's.

  Both texts of a pair get the pair's loss, so that a mean over texts is the
  mean over pairs.
  """

  figure: ClassVar[str] = 'preference_nll'
  normalization: ClassVar[losses.Normalization] = 'tokens'

  def __call__(
    self, scores: Float[Array, 'b t'], batch: types.Batch
  ) -> Float[Array, 'b t']:
    """Returns the loss of each text's pair, unweighted."""
    pair = bradley_terry(scores - jnp.roll(scores, -1, axis=1))
    is_better = jnp.asarray(batch.decoder_target_tokens) == BETTER
    return jnp.where(is_better, pair, jnp.roll(pair, 1, axis=1))

  plain = __call__
