"""Training of a reward model: what the learned reward of a run comes from.

Regression on scores, or Bradley–Terry on preferences (`losses`), by the same
training step, loop and packing as the policy's: a text of source and candidate
stands in the place of a source, what is to be learned of it in that of a target
token. Each of K members starts from another seed; the best by its loss on
held-out sources is kept of each.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rest_jax import (
  grow,
  hosts,
  judging,
  losses,
  reward_losses,
  scratch,
  supervised,
  training_stage,
)
from rest_jax.checkpoint import native
from rest_jax.context import REWARD_DATA, Context
from rest_jax.data import loader, reward_rows, scored, splits
from rest_jax.data import tokenizer as tokenizer_lib
from rest_jax.data.reward_rows import Example
from rest_jax.errors import ConfigurationError, DataError
from rest_jax.models.config import T5Config
from rest_jax.rewards import base, learned
from rest_jax.rewards.regressor import Buckets, Regressor
from rest_jax.run_directory import Stage
from rest_jax.training import early_stopping, step
from rest_jax.types import Params

STAGE = 'reward'


@dataclasses.dataclass(frozen=True)
class OwnSamples:
  """BC's samples of the `reward` part of the data, scored by a metric.

  So a reward without references learns one that needs them.

  Attributes:
    metric: what the reward is to learn.
    grow: how the samples are drawn.
  """

  metric: base.RewardModel
  grow: grow.Grow

  learns = 'scores'

  @property
  def trained_on(self) -> tuple[str, ...]:
    """What the metric was fitted on, and so what learns from it."""
    return self.metric.info.trained_on

  @property
  def sample_stage(self) -> str:
    """The stage of the samples."""
    return f'{REWARD_DATA}/samples'

  @property
  def score_stage(self) -> str:
    """The stage of the metric's scores."""
    return f'{REWARD_DATA}/scores/{self.metric.info.name}'


@dataclasses.dataclass(frozen=True)
class TrainReward:
  """How a reward is learned.

  Attributes:
    rows: what from; scores are learned by regression, preferences by
      Bradley–Terry.
    model: shape of each member; its vocabulary has to be larger than the
      tokenizer's, for the separator.
    training: optimizer and batch shape. Packing.target_length is the number
      of texts a row may hold; the loss is that of the rows.
    stopping: until when, by the loss on held-out sources.
    pair: how a pair becomes tokens.
    buckets: shapes of batches for scoring.
    num_members: K; more than one costs as many times as much, and tells where
      the reward only guesses.
    held_out: share of the rows, by whole documents or sources.
  """

  rows: reward_rows.ScoredFile | reward_rows.PreferredFile | OwnSamples
  model: T5Config
  training: early_stopping.Training
  stopping: early_stopping.Stopping
  pair: learned.PairFormat = learned.PairFormat()
  buckets: Buckets = Buckets()
  num_members: int = 1
  held_out: float = 0.1

  def __post_init__(self):
    if self.num_members < 1:
      raise ConfigurationError(
        f'TrainReward.num_members = {self.num_members} must be at least 1.'
      )
    if not 0.0 < self.held_out < 1.0:
      raise ConfigurationError(
        f'TrainReward.held_out = {self.held_out} must be in (0, 1).'
      )
    longest = self.pair.max_length
    texts = 1 if self.bounded else 2
    rooms = (
      ('buckets.lengths', self.buckets.lengths[-1], longest),
      (
        'training.packing.source_length',
        self.training.packing.source_length,
        texts * longest,
      ),
      (
        'training.packing.target_length',
        self.training.packing.target_length,
        texts,
      ),
    )
    for name, room, wanted in rooms:
      if room < wanted:
        raise ConfigurationError(
          f'TrainReward.{name} has room for {room}, but a row of its data may'
          f' need {wanted}; raise it, or lower PairFormat.max_source_length and'
          ' max_candidate_length.'
        )

  @property
  def bounded(self) -> bool:
    """Whether scores in [0, 1] are learned, not preferences."""
    return self.rows.learns == 'scores'

  @property
  def loss(self) -> losses.TokenLoss:
    """The loss that belongs to the rows."""
    if self.bounded:
      return reward_losses.Regression()
    return reward_losses.BradleyTerry()


def params_folder(member: int) -> str:
  """Folder of a member's parameters in the stage."""
  return f'params_{member}'


def open_ensemble(context: Context, settings: TrainReward) -> learned.Ensemble:
  """Reads the members that a committed stage holds.

  Raises:
    ConfigurationError: the stage is not there yet.
    CorruptStateError: a file of it was altered.
  """
  stage = context.read(STAGE)
  return _ensemble(context, stage, settings, stage.fingerprint)


def _ensemble(
  context: Context, stage: Stage, settings: TrainReward, fingerprint: str
) -> learned.Ensemble:
  """Reads the members; each process scores rows of its own with them."""
  regressor = dataclasses.replace(
    _regressor(context, settings),
    layout=context.decoding_layout or context.layout,
    local=hosts.count() > 1,
  )
  abstract = regressor.placed_inference_params()
  return learned.Ensemble(
    regressor,
    tuple(
      native.restore_params(stage.folder / params_folder(member), abstract)
      for member in range(settings.num_members)
    ),
    context.tokenizer,
    settings.pair,
    settings.buckets,
    settings.bounded,
    fingerprint,
  )


def run(context: Context, stage: Stage, settings: TrainReward) -> None:
  """Trains every member, one after the other, and judges them together.

  Args:
    context: the run.
    stage: where to write; begun.
    settings: how.

  Raises:
    DataError: rows that cannot be learned from.
    NonFiniteError: training diverged.
  """
  began = time.monotonic()
  regressor = _regressor(context, settings)
  training = dataclasses.replace(settings.training, loss=settings.loss)
  held_out: list[Example] = []
  paths = stage.work / 'rows', stage.work / 'dev_rows'

  def write() -> int:
    train, kept = _split(settings, _examples(context, settings))
    held_out.extend(kept)
    rows = _TokenRows(context.tokenizer, settings.pair)
    loader.write_rows(scratch.local(paths[0]), rows(train))
    loader.write_rows(scratch.local(paths[1]), rows(held_out))
    return rows.too_long

  too_long = hosts.on_first(write)
  written, dev_rows = (
    loader.TrainingRows.open(scratch.share(path)) for path in paths
  )
  context.progress.note(
    f'{len(written):,} rows to learn from, {len(dev_rows):,} held out,'
    f' {too_long:,} too long'
  )
  infos = []
  for member in range(settings.num_members):
    info = hosts.on_first(functools.partial(_made, stage, member))
    if info is None:
      info = _train_member(
        context, stage, training, settings.stopping, regressor,
        written, dev_rows, member,
      )  # fmt: skip
    infos.append(info)

  def finish() -> None:
    figures = judging.judge(
      stage, _ensemble(context, stage, settings, ''), held_out
    )
    context.progress.note(
      'held out: ' + ', '.join(f'{k} {v:.4f}' for k, v in figures.items())
    )
    stage.commit(
      counts={
        'members': len(infos),
        'rows': len(written),
        'held_out': len(dev_rows),
        'too_long': too_long,
        'updates': sum(info['updates'] for info in infos),
      }
      | figures,
      seconds=time.monotonic() - began,
      extra={'members': infos, 'trained_on': settings.rows.trained_on},
      contents={
        params_folder(member): info['content']
        for member, info in enumerate(infos)
      },
    )

  hosts.on_first(finish)


def _made(stage: Stage, member: int) -> dict[str, Any] | None:
  """How a member was trained; None where it was not, or its networks left."""
  there = native.is_checkpoint(stage.folder / params_folder(member))
  return stage.part(_info(member)) if there else None


def _info(member: int) -> str:
  """The part that says how a member was trained."""
  return f'member_{member}.json'


def _regressor(context: Context, settings: TrainReward) -> Regressor:
  size = context.tokenizer.size
  if settings.model.vocab_size <= size:
    raise ConfigurationError(
      f'TrainReward.model.vocab_size = {settings.model.vocab_size} must be more'
      f" than the tokenizer's {size} ids, since one more separates source and"
      ' candidate.'
    )
  return Regressor(settings.model, context.layout)


def _examples(context: Context, settings: TrainReward) -> Iterator[Example]:
  if not isinstance(settings.rows, OwnSamples):
    yield from settings.rows.examples()
    return
  info = settings.rows.metric.info
  tables = scored.iter_scored(
    context.read(settings.rows.sample_stage).folder,
    {'score': context.read(settings.rows.score_stage).folder},
    ('source', 'target'),
  )
  for table in tables:
    distinct = table.group_by(('source', 'target'), use_threads=False)
    table = distinct.aggregate([('score', 'min')])
    units = base.to_unit_interval(table['score_min'].to_numpy(), info)
    for source, target, unit in zip(
      table['source'].to_pylist(),
      table['target'].to_pylist(),
      units.tolist(),
      strict=True,
    ):
      yield Example(source, (target,), unit, source)


def _split(
  settings: TrainReward, examples: Iterator[Example]
) -> tuple[list[Example], list[Example]]:
  """The rows to train on, and those of held-out sources.

  A source of several documents is on one side alone: what is trained on has
  none that is held out.
  """
  rows = list(examples)
  chosen = splits.held_out((row.group for row in rows), settings.held_out)
  kept = [row for row in rows if row.group in chosen]
  known = {row.source for row in kept}
  train = [
    row for row in rows if row.group not in chosen and row.source not in known
  ]
  if not train:
    raise DataError(
      f'the {len(chosen)} documents held out have all sources that there are:'
      ' give rows of more sources, or without the column document'
    )
  return train, kept


class _TokenRows:
  """Turns examples into training rows; counts what is too long."""

  def __init__(
    self, tokenizer: tokenizer_lib.Tokenizer, pair: learned.PairFormat
  ):
    self._tokenizer, self._pair = tokenizer, pair
    self.too_long = 0

  def __call__(
    self, examples: Sequence[Example]
  ) -> Iterator[supervised.TrainingRow]:
    for example in examples:
      texts = self._pair.encode(
        self._tokenizer,
        [example.source] * len(example.candidates),
        example.candidates,
      )
      if None in texts:
        self.too_long += 1
        continue
      targets = (reward_losses.BETTER, reward_losses.WORSE)
      if example.score is not None:
        targets = (reward_losses.level_of(example.score),)
      tokens = np.concatenate(texts).astype(np.int32)
      yield tokens, np.array(targets, np.int32), 1.0, True


def _train_member(
  context: Context,
  stage: Stage,
  training: early_stopping.Training,
  stopping: early_stopping.Stopping,
  regressor: Regressor,
  rows: loader.TrainingRows,
  dev_rows: loader.TrainingRows,
  member: int,
) -> dict[str, Any]:
  """Trains one member and keeps its best parameters; returns what it was."""
  # Far from those of runs whose seeds are neighbours of this one's.
  seed = (context.seed + 1000 * member) % 2**31
  figure, share = training.loss.figure, regressor.placement.batch_share
  dev = loader.TrainingBatches(dev_rows, training.packing, 0, 'union', *share)
  eval_step = step.make_eval_step(regressor, training.loss)

  def evaluate(params: Params) -> float:
    return -step.evaluate_loss(eval_step, params, dev.once())[figure]

  outcome = training_stage.train(
    context,
    stage,
    regressor,
    functools.partial(regressor.init, seed),
    training,
    stopping,
    loader.TrainingBatches(rows, training.packing, seed, 'union', *share),
    evaluate,
    figure=f'dev_{figure}',
    seed=seed,
    member=member,
    unit='texts',
  )
  info = {
    'content': native.save_params(
      stage.folder / params_folder(member), outcome.params
    ),
    'seed': seed,
    'updates': outcome.updates,
    'best_update': outcome.best.step,
    f'dev_{figure}': -outcome.best.value,
  }
  data = json.dumps(info, indent=1).encode()
  hosts.on_first(lambda: stage.write_part(_info(member), data, info))
  return info
