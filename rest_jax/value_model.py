"""The value V(x, y_<t) as a network, and beside a policy that it judges."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Float, Key

from rest_jax import online_losses
from rest_jax.models.heads import Valuer
from rest_jax.network import Network
from rest_jax.policy import AroundPolicy, Policy
from rest_jax.types import Batch, Params

# A tenth of what layers begin with: values of about 0.1 before any is learned.
_FIRST_READ_OUT = 0.1


@dataclasses.dataclass(frozen=True)
class ValueModel(Network):
  """A T5 network with a scalar at every prefix. Holds no parameters."""

  def score(
    self,
    params: Params,
    batch: Batch,
    dropout_key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'b t']:
    """Returns V(x, y_<t) at each target token y_t, float32. Traceable.

    Args:
      params: the parameters.
      batch: rows of padded or packed pairs.
      dropout_key: a key to train with dropout; None: no dropout.
    """
    rngs = None if dropout_key is None else {'dropout': dropout_key}
    batch = jax.tree.map(jnp.asarray, batch)
    return self._model.apply(
      {'params': params},
      batch.encoder_input_tokens,
      batch.decoder_input_tokens,
      batch.encoder_segment_ids,
      batch.decoder_segment_ids,
      rngs=rngs,
    )

  @functools.cached_property
  def _model(self) -> Valuer:
    return Valuer(self.config, self.placement)


@dataclasses.dataclass(frozen=True)
class PolicyAndValue(AroundPolicy):
  """PPO's network: the policy and a value model; static in `jit`.

  Attributes:
    policy: the policy.
    value: the value model.
  """

  policy: Policy
  value: ValueModel

  def abstract_params(self) -> Params:
    """Returns the tree of `jax.ShapeDtypeStruct`s of the parameters."""
    return {
      'policy': self.policy.abstract_params(),
      'value': self.value.abstract_params(),
    }

  def param_shardings(self) -> Params:
    """Returns the tree of the parameters' `NamedSharding`s."""
    return {
      'policy': self.policy.param_shardings(),
      'value': self.value.param_shardings(),
    }

  def score(
    self,
    params: Params,
    batch: Batch,
    dropout_key: Key[Array, ''] | None = None,
  ) -> online_losses.ActorScores:
    """Scores every target token of a batch. Traceable."""
    scores = self.policy.score(params['policy'], batch, dropout_key)
    found = self.value.score(params['value'], batch, dropout_key)
    return online_losses.ActorScores(log_probs=scores.log_probs, values=found)


def from_policy(model: ValueModel, params: Params, seed: int) -> Params:
  """The policy's parameters with a new read-out, whose values are near 0.

  It must not be 0: the optimizers here move a parameter in proportion to its
  size, and those of 0 would be the last to move.

  Args:
    model: of the policy's shape.
    params: the policy's.
    seed: of what the policy lacks.
  """
  own = traverse_util.flatten_dict(model.init(seed), sep='/')
  given = traverse_util.flatten_dict(params, sep='/')
  for name in own:
    own[name] = given.get(name, _FIRST_READ_OUT * own[name])
  return traverse_util.unflatten_dict(own, sep='/')
