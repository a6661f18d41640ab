"""A policy in training beside policies that it is held against.

Losses with a KL constraint or penalty need, at every prefix, the distribution
of an earlier policy, not only the probability of the token that was drawn. Here
the network that is trained is the policy, copies of such policies that stay as
they are, and the dual variables of the loss.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from rest_jax import losses
from rest_jax import policy as policy_lib
from rest_jax.types import Batch, Leaf, Params, TokenScores

_FROZEN = 'anchors/*'


@flax.struct.dataclass
class AnchoredScores:
  """What a loss may ask of each target token, and of its prefix.

  Attributes:
    log_probs: float32 [b, t], as of `TokenScores`.
    log_normalizers: float32 [b, t], likewise.
    mean_log_probs: float32 [b, t], likewise.
    divergences: anchor → float32 [b, t], KL(π_anchor(· | y_<t, x) ‖ π_θ(· |
      y_<t, x)) in nats, over the whole vocabulary.
    duals: name → float32 [], the dual variables, trained with the policy.
  """

  log_probs: Leaf
  log_normalizers: Leaf
  mean_log_probs: Leaf
  divergences: dict[str, Leaf]
  duals: dict[str, Leaf]


@dataclasses.dataclass(frozen=True)
class Anchored(policy_lib.AroundPolicy):
  """A network of a policy, its anchors and dual variables; static in `jit`.

  Parameters are `policy`, `anchors/NAME` (of the policy's form) and
  `duals/NAME`.

  Attributes:
    policy: the policy.
    anchors: names of what it is held against.
    duals: names of the dual variables.
  """

  policy: policy_lib.Policy
  anchors: tuple[str, ...]
  duals: tuple[str, ...]

  def _tree(self, policy: Any, dual: Any) -> dict[str, Any]:
    return {
      'policy': policy,
      'anchors': dict.fromkeys(self.anchors, policy),
      'duals': dict.fromkeys(self.duals, dual),
    }

  def abstract_params(self) -> Params:
    """Returns the tree of `jax.ShapeDtypeStruct`s of the parameters."""
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    return self._tree(self.policy.abstract_params(), scalar)

  def param_shardings(self) -> Params:
    """Returns the tree of the parameters' `NamedSharding`s."""
    replicated = self.placement.sharding()
    return self._tree(self.policy.param_shardings(), replicated)

  def wrap(self, params: Params, anchors: dict[str, Params]) -> Params:
    """The parameters to start from; dual variables begin at 1."""
    ones = {name: jnp.ones((), jnp.float32) for name in self.duals}
    return {'policy': params, 'anchors': anchors, 'duals': ones}

  def score(
    self,
    params: Params,
    batch: Batch,
    dropout_key: Key[Array, ''] | None = None,
  ) -> AnchoredScores:
    """Scores every target token of a batch. Traceable.

    Args:
      params: as `wrap` gives them; anchors are not differentiated.
      batch: rows of padded or packed pairs.
      dropout_key: a key to train the policy with dropout; anchors have none,
        so that divergences then are too large.
    """
    logits = self.policy.logits(params['policy'], batch, dropout_key)
    targets = jnp.asarray(batch.decoder_target_tokens)
    scores: TokenScores = policy_lib.score_tokens(logits, targets)
    divergences = {}
    for name in self.anchors:
      frozen = jax.lax.stop_gradient(params['anchors'][name])
      divergences[name] = divergence_from(
        self.policy.logits(frozen, batch), logits
      )
    return AnchoredScores(
      log_probs=scores.log_probs,
      log_normalizers=scores.log_normalizers,
      mean_log_probs=scores.mean_log_probs,
      divergences=divergences,
      duals=params['duals'],
    )


def divergence_from(
  anchor_logits: Float[Array, 'b t v'], logits: Float[Array, 'b t v']
) -> Float[Array, 'b t']:
  """KL(p‖q) in nats of each position, p by the anchor's logits."""
  log_p = jax.nn.log_softmax(anchor_logits)
  log_q = jax.nn.log_softmax(logits)
  return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


@functools.lru_cache(maxsize=16)
def network_for(
  policy: policy_lib.Policy, loss: losses.PolicyLoss
) -> Anchored | None:
  """The network that a loss trains, if it is not the policy alone."""
  if not (loss.anchors or loss.duals):
    return None
  return Anchored(policy, loss.anchors, loss.duals)


def frozen_in(training: Any) -> Any:
  """Settings of training under which anchors stay, and what stayed before."""
  optimizer = of_part(training.optimizer)
  optimizer = dataclasses.replace(
    optimizer, frozen=(_FROZEN, *optimizer.frozen)
  )
  return dataclasses.replace(training, optimizer=optimizer)


def of_part(optimizer: Any) -> Any:
  """An optimizer of a policy, where that is a part of what is trained."""
  frozen = tuple(f'policy/{name}' for name in optimizer.frozen)
  return dataclasses.replace(optimizer, frozen=frozen)
