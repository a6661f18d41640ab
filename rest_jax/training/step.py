"""One jitted update of the policy, and one jitted evaluation of its loss.

The only place where token losses are summed and divided: both sums are taken
over all microbatches and hosts first, Σ_t w_t ∇ℓ_t / Σ w. So the update does
not depend on how a batch is cut, where a token's loss asks nothing of others'.

A policy is anything hashable with `score(params, batch, dropout_key)`,
`abstract_params()`, `param_shardings()`, `mesh` and `placement`; a loss is a
`losses.TokenLoss` on whatever `score` gives. So reward models train here too.
"""

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import optax

from rest_jax import errors, types
from rest_jax import losses as losses_lib
from rest_jax.training import optimizer as optimizer_lib
from rest_jax.training import state as state_lib

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class TrainStep:
  """Makes one update; compiled once a batch shape, whatever the schedule.

  Attributes:
    policy: the policy that is trained.
    optimizer: how.
    loss: its token losses and `normalization`.
    num_microbatches: parts of a batch that are computed one after another to
      save memory; the result is the same but for rounding.
  """

  policy: object
  optimizer: optimizer_lib.Optimizer
  loss: losses_lib.TokenLoss
  num_microbatches: int = 1

  def __post_init__(self):
    if self.num_microbatches < 1:
      raise errors.ConfigurationError(
        f'num_microbatches = {self.num_microbatches}: must be at least 1.'
      )

  def __call__(
    self,
    state: types.TrainState,
    batch: types.Batch,
    dropout_key: jax.Array | None = None,
    learning_rate_scale: float | jax.Array = 1.0,
  ) -> tuple[types.TrainState, Metrics]:
    """Makes one update.

    Args:
      state: the state before; its buffers are given up (donated).
      batch: this process's rows, numpy, or global jax arrays.
      dropout_key: a typed key; the step and the microbatch are folded in. None
        for no dropout.
      learning_rate_scale: factor on the optimiser's learning rate.

    Returns:
      The state after, and metrics, each a scalar: `loss`, the loss's plain
      figure (`nll`, nats a token, unsmoothed), `tokens` (that count),
      `weight_sum`, `grad_norm` (before clipping), `param_norm` (after the
      update), `learning_rate`, `finite`.

    Raises:
      ConfigurationError: when the batch divides neither into the microbatches
        nor over the mesh's data axis.
    """
    batch = put_batch(self.policy, batch)
    self.check_rows(batch.encoder_input_tokens.shape[0])
    scale = jnp.asarray(learning_rate_scale, jnp.float32)
    rate = self._learning_rate(state.step, scale)
    return self.jitted(state, batch, dropout_key, rate)

  def check_rows(self, rows: int, binding: str = 'BATCH_ROWS') -> None:
    """Raises a ConfigurationError where a batch of `rows` does not divide."""
    shards = self.policy.placement.num_shards('batch')
    if rows % (self.num_microbatches * shards):
      raise errors.ConfigurationError(
        f'A batch of {rows} rows does not divide into NUM_MICROBATCHES = '
        f"{self.num_microbatches} parts over {shards} 'data' devices: set "
        f'{binding} to a multiple of their product.'
      )

  @property
  def jitted(self):
    """`(state, batch, dropout_key, rate) -> (state, metrics)`, donated."""
    # No learning rate is compiled in: BC and each Improve step share a program.
    return _jitted_update(
      dataclasses.replace(self, optimizer=self.optimizer.without_schedule())
    )

  @functools.cached_property
  def _learning_rate(self):
    def learning_rate(step, scale):
      return self.optimizer.learning_rate_at(step) * scale

    state = state_lib.state_shardings(self.policy, self.optimizer)
    return jax.jit(learning_rate, out_shardings=state.step)

  def _update(self, state, batch, dropout_key, rate):
    if dropout_key is not None:
      dropout_key = jax.random.fold_in(dropout_key, state.step)
    grads, sums = self.gradient(state.params, batch, dropout_key, state.step)
    # A batch without weight (only padding) changes nothing, instead of 0 / 0.
    normalizer = jnp.where(sums['normalizer'] > 0, sums['normalizer'], 1.0)
    grads = jax.tree.map(lambda g: g / normalizer, grads)
    directions, opt_state = self.optimizer.direction.update(
      grads, state.opt_state, state.params
    )
    params = jax.tree.map(
      lambda p, d: p - (rate * d).astype(p.dtype), state.params, directions
    )
    metrics = mean_metrics(sums)
    metrics['grad_norm'] = optax.tree.norm(grads)
    metrics['param_norm'] = optax.tree.norm(params)
    metrics['learning_rate'] = rate
    metrics['finite'] = jnp.isfinite(
      metrics['loss'] + metrics['grad_norm'] + metrics['param_norm']
    )
    return (
      types.TrainState(step=state.step + 1, params=params, opt_state=opt_state),
      metrics,
    )

  def gradient(self, params, batch, dropout_key, update=0):
    """Σ_t w_t ∇ℓ_t and the sums of the loss, over all microbatches."""
    loss = self.loss
    if isinstance(loss, losses_lib.PolicyLoss):
      loss = loss.at(jnp.asarray(update))

    def of_part(index, part):
      key = dropout_key
      if key is not None:
        key = jax.random.fold_in(key, index)
      return jax.grad(
        lambda p: _sums(self.policy, loss, p, part, key), has_aux=True
      )(params)

    count = self.num_microbatches
    if count == 1:
      return of_part(0, batch)
    parts = jax.tree.map(lambda x: _split_rows(x, count), batch)
    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype),
      jax.eval_shape(of_part, 0, jax.tree.map(lambda x: x[0], parts)),
    )

    def add_part(total, indexed):
      return jax.tree.map(jnp.add, total, of_part(*indexed)), None

    total, _ = jax.lax.scan(add_part, zeros, (jnp.arange(count), parts))
    return total


@functools.lru_cache(maxsize=16)
def _jitted_update(step: TrainStep):
  state = state_lib.state_shardings(step.policy, step.optimizer)
  replicated = state.step
  return jax.jit(
    step._update,
    in_shardings=(state, batch_sharding(step.policy), replicated, replicated),
    out_shardings=(state, replicated),
    donate_argnums=0,
  )


@dataclasses.dataclass(frozen=True)
class EvalStep:
  """Sums the loss over a batch, without dropout.

  Attributes:
    policy: the policy that is evaluated.
    loss: its token losses and `normalization`.
  """

  policy: object
  loss: losses_lib.TokenLoss

  def __call__(self, params: types.Params, batch: types.Batch) -> Metrics:
    """Returns sums that may be added over batches, then `mean_metrics`.

    Args:
      params: the policy's parameters.
      batch: this process's rows, numpy, or global jax arrays.

    Returns:
      Scalars `loss_sum`, `nll_sum` (named as the loss's plain figure is),
      `normalizer`, `weight_sum`, `tokens`.
    """
    return self.jitted(params, put_batch(self.policy, batch))

  @functools.cached_property
  def jitted(self):
    """`(params, batch) -> sums`, compiled once a batch shape."""
    return jax.jit(
      lambda params, batch: _sums(self.policy, self.loss, params, batch, None)[
        1
      ],
      in_shardings=(self.policy.param_shardings(), batch_sharding(self.policy)),
    )


@functools.lru_cache(maxsize=16)
def make_train_step(
  policy,
  optimizer: optimizer_lib.Optimizer,
  loss: losses_lib.TokenLoss,
  *,
  num_microbatches: int = 1,
) -> TrainStep:
  """The train step of these settings, always the same one: compiled once."""
  return TrainStep(policy, optimizer, loss, num_microbatches)


@functools.lru_cache(maxsize=16)
def make_eval_step(policy, loss: losses_lib.TokenLoss) -> EvalStep:
  """The evaluation step of these settings, the same one each time."""
  return EvalStep(policy, loss)


def target_log_probs(
  policy, params: types.Params, batch: types.Batch
) -> jax.Array:
  """The log π(y_t | y_<t, x) of a batch's targets, float32 [b, t], nats."""
  return scores(policy, params, batch).log_probs


def scores(network, params: types.Params, batch: types.Batch):
  """What a network's `score` gives, without dropout; compiled once a shape."""
  return _scores(network, params, put_batch(network, batch))


@functools.partial(jax.jit, static_argnums=0)
def _scores(network, params, batch):
  return network.score(params, batch)


def evaluate_loss(
  eval_step: EvalStep, params: types.Params, batches: Iterable[types.Batch]
) -> dict[str, float]:
  """The exact mean loss over batches: sums first, one division.

  Args:
    eval_step: from `make_eval_step`.
    params: the policy's parameters.
    batches: for example `TrainingBatches.once()`, each row once.

  Returns:
    `loss`, the plain figure (`nll`, nats a token), `tokens`, `weight_sum`.

  Raises:
    DataError: when no token of the batches has weight.
  """
  sums = None
  for batch in batches:
    part = eval_step(params, batch)
    sums = part if sums is None else jax.tree.map(jnp.add, sums, part)
  if sums is None or not float(sums['normalizer']):
    raise errors.DataError(
      'There is no target token to evaluate the loss on: the split is empty '
      'or all its weights are 0.'
    )
  return {name: float(x) for name, x in mean_metrics(sums).items()}


def mean_metrics(sums: Metrics) -> Metrics:
  """Turns sums of `EvalStep` into what `evaluate_loss` returns."""

  def divide(x, y):
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1.0), 0.0)

  figures = {
    name.removesuffix('_sum'): divide(value, sums['weight_sum'])
    for name, value in sums.items()
    if name.endswith('_sum') and name not in ('loss_sum', 'weight_sum')
  }
  return figures | {
    'loss': divide(sums['loss_sum'], sums['normalizer']),
    'tokens': sums['tokens'],
    'weight_sum': sums['weight_sum'],
  }


def batch_sharding(policy) -> jax.sharding.NamedSharding:
  """Where a batch's arrays [rows, length] lie: rows over the data axis."""
  return policy.placement.sharding('batch', 'length')


def put_batch(policy, batch: types.Batch) -> types.Batch:
  """Puts each process's rows of a batch on its devices.

  Args:
    policy: its mesh and rules, and which part of a batch is this process's.
    batch: numpy arrays, the rows of this process; jax arrays are left alone.

  Returns:
    The batch as global jax arrays.

  Raises:
    ConfigurationError: when the rows do not divide over the data axis.
  """
  leaves = jax.tree.leaves(batch)
  if all(isinstance(leaf, jax.Array) for leaf in leaves):
    return batch
  shards = policy.placement.num_shards('batch')
  rows = leaves[0].shape[0] * policy.placement.batch_share[1]
  if rows % shards:
    raise errors.ConfigurationError(
      f"A batch of {rows} rows does not divide over {shards} 'data' devices: "
      'set BATCH_ROWS to a multiple of that.'
    )
  sharding = batch_sharding(policy)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), batch
  )


def _sums(policy, loss, params, batch, dropout_key):
  """Σ w ℓ to differentiate, and all sums that are divided later."""
  scores = policy.score(params, batch, dropout_key)
  weights = batch.decoder_loss_weights
  # Where w = 0 a loss may be anything, even infinite, and must not count.
  counts = weights != 0
  token_losses = jnp.where(counts, loss(scores, batch), 0.0)
  plain = loss.plain(scores, batch)
  loss_sum = jnp.sum(weights * token_losses)
  return loss_sum, {
    'loss_sum': loss_sum,
    f'{loss.figure}_sum': jnp.sum(
      jnp.abs(weights) * jnp.where(counts, plain, 0.0)
    ),
    'normalizer': losses_lib.loss_normalizer(batch, loss.normalization),
    'weight_sum': losses_lib.loss_normalizer(batch, 'tokens'),
    'tokens': losses_lib.count_tokens(batch),
  }


def _split_rows(x: jax.Array, count: int) -> jax.Array:
  # Every count-th row, so that each part keeps rows of every data device and
  # no row moves between devices.
  return jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)
