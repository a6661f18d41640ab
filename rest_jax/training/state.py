"""The state of training: parameters, optimiser state, step; and its shardings.

A policy is anything with `abstract_params()`, `param_shardings()` and `mesh`.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from rest_jax import types
from rest_jax.training import optimizer as optimizer_lib


@functools.lru_cache(maxsize=16)
def state_shardings(
  policy, optimizer: optimizer_lib.Optimizer
) -> types.TrainState:
  """The sharding of every array of the training state.

  Optimiser arrays shaped like a parameter lie where the parameter does. Others
  (counts, and Adafactor's row and column moments, which are small) are
  replicated.

  Args:
    policy: the policy that is trained.
    optimizer: its optimiser.

  Returns:
    A `TrainState` of `jax.sharding.NamedSharding`.
  """
  replicated = jax.sharding.NamedSharding(
    policy.mesh, jax.sharding.PartitionSpec()
  )
  params = policy.abstract_params()
  shardings = policy.param_shardings()

  def of_param(leaf, param, sharding):
    if isinstance(leaf, optax.MaskedNode):  # A frozen parameter has no state.
      return leaf
    return sharding if leaf.shape == param.shape else replicated

  opt_state = optax.tree_map_params(
    optimizer.direction,
    of_param,
    jax.eval_shape(optimizer.direction.init, params),
    params,
    shardings,
    transform_non_params=lambda _: replicated,
    is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode),
  )
  return types.TrainState(
    step=replicated, params=shardings, opt_state=opt_state
  )


def abstract_state(
  policy, optimizer: optimizer_lib.Optimizer
) -> types.TrainState:
  """Shapes, dtypes and shardings of the training state, to restore one into.

  Args:
    policy: the policy that is trained.
    optimizer: its optimiser.

  Returns:
    A `TrainState` of `jax.ShapeDtypeStruct` with shardings.
  """
  shapes = jax.eval_shape(
    lambda params: _initial(optimizer, params), policy.abstract_params()
  )
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    shapes,
    state_shardings(policy, optimizer),
  )


def init_state(
  policy, optimizer: optimizer_lib.Optimizer, params: types.Params
) -> types.TrainState:
  """A fresh state at step 0, from the parameters of the policy before.

  The parameters are copied, since the train step takes its state's buffers
  (donation) and the caller's must outlive it.

  Args:
    policy: the policy that is trained.
    optimizer: its optimiser.
    params: where training starts, as `policy.abstract_params()`.

  Returns:
    The state, sharded as `state_shardings` says.
  """
  return _jitted_init(policy, optimizer)(params)


@functools.lru_cache(maxsize=16)
def _jitted_init(policy, optimizer):
  return jax.jit(
    functools.partial(_initial, optimizer),
    out_shardings=state_shardings(policy, optimizer),
  )


def _initial(optimizer, params) -> types.TrainState:
  return types.TrainState(
    step=jnp.zeros((), jnp.int32),
    params=jax.tree.map(jnp.copy, params),
    opt_state=optimizer.direction.init(params),
  )
