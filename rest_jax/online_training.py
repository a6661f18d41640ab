"""Online baselines: RLOO and PPO, on the same parts as ReST.

Each update draws samples of its own from the policy as it is: batches of
sources in, updates out. Sampler, rewards, stopping, checkpoints, resume and the
row of results are those of Improve.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from rest_jax import (
  anchored,
  generation,
  hosts,
  losses,
  online_losses,
  preemption,
  rewarded,
  select_reward,
  training_stage,
  value_model,
)
from rest_jax import evaluate as evaluate_lib
from rest_jax.context import BC, Context
from rest_jax.data import one_batch, packing, training_rows
from rest_jax.errors import DataError
from rest_jax.online import Online
from rest_jax.policy import DrawnPolicy
from rest_jax.rewards import base, scoring
from rest_jax.run_directory import Stage
from rest_jax.training import early_stopping, step
from rest_jax.types import Batch, Params, TrainState

_SHAPES = 16  # Of batches, at most; each of them is compiled.


class SourceBatches:
  """Which sources each update trains on; a function of (seed, update).

  Each epoch has an order of its own, and leaves out what fills no batch.
  """

  def __init__(self, count: int, settings: Online, seed: int):
    """Sources are numbered from 0 to `count`.

    Raises:
      DataError: there are fewer than a batch takes.
    """
    self._settings, self._seed, self._count = settings, seed, count
    # A source that came twice into a batch would get the same samples twice.
    self._per_epoch = count // settings.sources_per_update
    if not self._per_epoch:
      raise DataError(
        f'there are {count} sources to sample for, and'
        f' Online.sources_per_update = {settings.sources_per_update}; set it to'
        f' at most {count}.'
      )
    self._order = functools.lru_cache(maxsize=1)(self._new_order)

  def _new_order(self, epoch: int) -> np.ndarray:
    return np.random.default_rng((self._seed, epoch)).permutation(self._count)

  def __getitem__(self, update: int) -> tuple[int, np.ndarray]:
    """The number of the batch of an update, and of its sources, int64 [s]."""
    batch = update // self._settings.updates_per_batch
    size = self._settings.sources_per_update
    epoch, place = divmod(batch, self._per_epoch)
    return batch, self._order(epoch)[place * size : (place + 1) * size]

  def starting_at(self, update: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields those of `update`, `update` + 1, … without end."""
    return map(self.__getitem__, itertools.count(update))


class Trainer:
  """Makes updates on samples that it draws itself; see `fit.fit`.

  Attributes:
    decoded_tokens: tokens drawn so far.
  """

  def __init__(
    self,
    context: Context,
    settings: Online,
    reward: base.RewardModel,
    network: Any,
    behaviour: Params,
    sources: rewarded.Split,
  ):
    """Draws nothing yet.

    Args:
      context: the run.
      settings: how.
      reward: R(x, y).
      network: what is trained: a `DrawnPolicy`, or with a value model.
      behaviour: BC's parameters.
      sources: what to sample for.
    """
    self._context, self._settings, self._reward = context, settings, reward
    self._network, self._behaviour = network, behaviour
    self._policy = _policy_in(network)
    self._sources = sources
    self._step = step.make_train_step(
      network,
      settings.optimizer,
      settings.loss,
      num_microbatches=settings.num_microbatches,
    )
    self._held: tuple[int, Batch] | None = None
    self._updates = 0  # On the samples that are held.
    self._row = _row(settings)
    self._multiple = _rows_multiple(self._policy, settings)
    # No rows for more sources than a batch has.
    lanes = settings.batching.lanes(settings.num_samples)
    self._batching = dataclasses.replace(
      settings.batching,
      rows=min(settings.batching.rows, settings.sources_per_update * lanes),
    )
    self.decoded_tokens = 0

  def __call__(
    self,
    state: TrainState,
    numbered: tuple[int, np.ndarray],
    dropout_key: Any,
    scale: float,
  ) -> tuple[TrainState, step.Metrics]:
    """Makes an update. Without dropout: samples are drawn without it too."""
    del dropout_key
    number, chosen = numbered
    if self._held is None or self._held[0] != number:
      batch = self.experience(state.params, number, chosen).batch()
      self._held = (number, step.put_batch(self._policy, batch))
      self._updates = 0
    self._updates += 1
    return self._step(state, self._held[1], None, scale)

  def interrupted(self) -> bool:
    """Whether to end here: a run cannot go on amid the updates of a batch."""
    whole = self._updates == self._settings.updates_per_batch
    return whole and preemption.due()

  def experience(
    self, params: Params, number: int, chosen: np.ndarray
  ) -> one_batch.OneBatch:
    """Draws samples for some sources, and finds their advantages.

    Args:
      params: of the network.
      number: of the batch; no two draw the same numbers.
      chosen: int64 [s], places of the sources.

    Returns:
      s · n rows, the samples of a source one after another, with the figures
      that the loss needs.
    """
    settings = self._settings
    drawn = self._drawn(params, number, chosen)
    generated, rewards = drawn.generated, drawn.rewards
    self.decoded_tokens += int(generated.lengths.sum())
    made = one_batch.OneBatch(
      _samples([self._sources.source_tokens[i] for i in chosen], generated),
      self._row,
      self._multiple,
      *self._policy.placement.batch_share,
    )
    batch = step.put_batch(self._policy, made.batch())
    # Figures of tokens, [s · n, t].
    lengths = generated.lengths.reshape(-1, 1)
    counted = np.arange(generated.tokens.shape[-1]) < lengths
    old = generated.token_sampling_log_probs.reshape(counted.shape)
    of_bc = step.target_log_probs(self._policy, self._behaviour, batch)
    # Of each token, in nats; its sum is log π(y | x) − log π_BC(y | x).
    ratios = _spread(old[counted] - made.each_token(of_bc), counted)
    penalty = np.float32(settings.kl_coefficient) * ratios
    if settings.algorithm == 'rloo':
      whole = rewards - penalty.sum(axis=1).reshape(rewards.shape)
      advantages = online_losses.leave_one_out(whole).reshape(-1, 1)
      figures = {'advantages': np.broadcast_to(advantages, counted.shape)}
    else:
      promised = step.scores(self._network.value, params['value'], batch)
      promised = _spread(made.each_token(promised), counted)
      figures = self._ppo_figures(rewards, penalty, promised, counted)
      figures['grown_log_probs'] = old
    for name, of_tokens in figures.items():
      made.rows.add_figure(name, of_tokens[counted].astype(np.float32))
    return made

  def _drawn(self, params, number, chosen) -> rewarded.Outputs:
    """Samples of sources, and R(x, y) of each.

    Each process draws and scores for its share of the sources: a sample depends
    on neither.
    """
    mine = chosen[hosts.share(len(chosen))]
    generated = self._draw(params, number, mine)
    texts = generated.texts(self._context.tokenizer)
    rewards = self._rewards(mine, texts)
    outputs = rewarded.Outputs(rewards, texts, generated)
    return outputs.gathered(self._context, len(chosen))

  def _draw(self, params, number, chosen) -> generation.Generated:
    context, settings = self._context, self._settings
    decoder = context.decoder
    policy = decoder.inference_params(policy_of(self._network, params))
    return generation.generate(
      decoder,
      decoder.adopt(policy),
      [self._sources.source_tokens[i] for i in chosen],
      self._sources.source_ids[chosen],
      seed=context.seed,
      purpose='online',
      step=number,
      num_samples=settings.num_samples,
      sampling=settings.sampling,
      batching=self._batching,
      num_tokens=context.tokenizer.size,
      advance=_get_on,
    )

  def _ppo_figures(self, rewards, penalty, promised, counted):
    settings = self._settings
    of_tokens = -penalty
    last = counted.sum(axis=1) - 1
    of_tokens[np.arange(len(last)), last] += rewards.reshape(-1)
    advantages = online_losses.generalized_advantages(
      of_tokens, promised, counted, settings.discount, settings.trace
    )
    deviation = advantages[counted].std() + np.float32(1e-6)
    return {
      'advantages': (advantages - advantages[counted].mean()) / deviation,
      losses.RETURNS: advantages + promised,
    }

  def _rewards(self, chosen, texts) -> np.ndarray:
    """R(x, y) of the samples, float32 [s, n]."""
    n = self._settings.num_samples
    references = self._sources.references
    return scoring.rewards(
      self._reward,
      [self._sources.sources[i] for i in chosen for _ in range(n)],
      texts,
      references and [references[i] for i in chosen for _ in range(n)],
      batch_size=self._context.score_batch_size,
      cache=self._context.scores,
      advance=_get_on,
    ).reshape(len(chosen), n)


def _get_on(done: int) -> None:
  """After tokens or rows. It never ends the run, whose state is not saved."""
  del done
  preemption.look_for_failures()


def _samples(
  sources: list[list[int]], generated: generation.Generated
) -> training_rows.TrainingRows:
  """Every sample of every source, as it was drawn."""
  _, n, length = generated.tokens.shape
  samples = zip(
    generated.tokens.reshape(-1, length),
    generated.lengths.reshape(-1),
    strict=True,
  )
  return training_rows.TrainingRows.of_samples(
    [source for source in sources for _ in range(n)],
    [tokens[:count] for tokens, count in samples],
  )


def _spread(
  values: Float32[np.ndarray, ' tokens'], counted: Bool[np.ndarray, 'b t']
) -> Float32[np.ndarray, 'b t']:
  """Figures of the tokens that count, one after another, where they stand."""
  out = np.zeros(counted.shape, np.float32)
  out[counted] = values
  return out


def _row(settings: Online) -> packing.Packing:
  """The shape of a packed row, which the longest pair fits."""
  batching = settings.batching
  return packing.Packing(
    batching.source_buckets[-1], batching.max_decode_len, rows_per_batch=1
  )


def _rows_multiple(policy: DrawnPolicy, settings: Online) -> int:
  """What the number of packed rows of a batch is a multiple of."""
  parts = policy.placement.num_shards('batch') * settings.num_microbatches
  return -(-settings.samples_per_batch // (_SHAPES * parts)) * parts


def policy_of(network: Any, params: Params) -> Params:
  """The policy's among the parameters of what is trained."""
  return (
    params['policy']
    if isinstance(network, value_model.PolicyAndValue)
    else params
  )


def _policy_in(network: Any) -> DrawnPolicy:
  return (
    network.policy
    if isinstance(network, value_model.PolicyAndValue)
    else network
  )


def drawn_policy(context: Context) -> DrawnPolicy:
  """The policy that online updates are of."""
  return DrawnPolicy(
    context.model, context.layout, num_tokens=context.tokenizer.size
  )


def run(
  context: Context,
  stage: Stage,
  settings: Online,
  evaluation: evaluate_lib.Evaluate,
  reward: base.RewardModel,
) -> None:
  """Trains a policy online.

  Args:
    context: the run.
    stage: where to write; begun.
    settings: how.
    evaluation: how D_select is sampled for the reward.
    reward: R(x, y), which is learned from and decides what to keep.

  Raises:
    NonFiniteError: training diverged.
    RewardError: the reward model failed, or lacks references.
    DataError: there are fewer sources than a batch takes, or one is too long.
  """
  began = time.monotonic()
  behaviour = context.read_params(BC)
  network, start = drawn_policy(context), lambda: behaviour
  if settings.algorithm == 'ppo':
    value = value_model.ValueModel(context.model, context.layout)
    network = value_model.PolicyAndValue(network, value)
    start = functools.partial(_with_critic, behaviour, value, context.seed)
    settings = dataclasses.replace(
      settings, optimizer=anchored.of_part(settings.optimizer)
    )
  sources = rewarded.Split(context, 'grow')
  # Of all sources, before any process draws for some.
  settings.batching.check_fits(max(map(len, sources.source_tokens), default=0))
  trainer = Trainer(context, settings, reward, network, behaviour, sources)
  selecting = select_reward.SelectReward(context, evaluation, reward)
  outcome = training_stage.train(
    context,
    stage,
    network,
    start,
    # Its packing goes unused: `trainer` makes the updates.
    early_stopping.Training(settings.optimizer, _row(settings), settings.loss),
    settings.stopping,
    SourceBatches(len(sources.sources), settings, context.seed),
    lambda params: selecting(policy_of(network, params)),
    figure='reward',
    seed=context.seed,
    decoded=lambda: selecting.decoded_tokens + trainer.decoded_tokens,
    train_step=trainer,
    interrupted=trainer.interrupted,
  )
  batches = -(-outcome.updates // settings.updates_per_batch)
  counts = {
    'samples': batches * settings.samples_per_batch,
    'select_samples': len(outcome.history) * selecting.num_samples,
    # Those of `samples` among them.
    'decoded_tokens': outcome.history[-1].decoded_tokens,
  }
  outcome = dataclasses.replace(
    outcome, params=policy_of(network, outcome.params)
  )
  training_stage.finish(stage, outcome, began, counts)


def _with_critic(
  behaviour: Params, value: value_model.ValueModel, seed: int
) -> Params:
  """The parameters that a `PolicyAndValue` starts from."""
  critic = value_model.from_policy(value, behaviour, seed)
  return {'policy': behaviour, 'value': critic}
