"""Training of a reward model: what the learned reward of a run comes from.

Regression on scores, or Bradley–Terry on preferences (`losses`), by the same
training step, loop and packing as the policy's: a text of source and candidate
stands in the place of a source, what is to be learned of it in that of a target
token. Each of K members starts from another seed; the best by its loss on
held-out sources is kept of each.
"""

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rest_jax import grow, losses, supervised
from rest_jax.checkpoint import native
from rest_jax.context import REWARD_DATA, Context
from rest_jax.data import loader, reward_rows, scored, splits, store
from rest_jax.data import tokenizer as tokenizer_lib
from rest_jax.data.reward_rows import Example
from rest_jax.errors import ConfigurationError
from rest_jax.models.config import T5Config
from rest_jax.rewards import agreement, base, learned
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
    return losses.Regression() if self.bounded else losses.Preference()


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
  regressor = _regressor(context, settings)
  abstract = regressor.placed_params()
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
    stage.fingerprint,
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
  train, held_out = _split(settings, _examples(context, settings))
  rows = _TokenRows(context.tokenizer, settings.pair)
  written = loader.write_rows(stage.work / 'rows', rows(train))
  dev_rows = loader.write_rows(stage.work / 'dev_rows', rows(held_out))
  context.progress.note(
    f'{len(written):,} rows to learn from, {len(dev_rows):,} held out,'
    f' {rows.too_long:,} too long'
  )
  dev = loader.TrainingBatches(dev_rows, training.packing, seed=0)
  contents, members, infos = {}, [], []
  for member in range(settings.num_members):
    info = stage.part(f'member_{member}.json')
    folder = stage.folder / params_folder(member)
    if info is None:
      info = _train_member(
        context, stage, settings, training, regressor, written, dev, member
      )
    members.append(native.restore_params(folder, regressor.placed_params()))
    contents[folder.name] = info['content']
    infos.append(info)
  figures = _judge(
    stage,
    learned.Ensemble(
      regressor,
      tuple(members),
      context.tokenizer,
      settings.pair,
      settings.buckets,
      settings.bounded,
      fingerprint='',
    ),
    held_out,
  )
  context.progress.note(
    'held out: ' + ', '.join(f'{k} {v:.4f}' for k, v in figures.items())
  )
  stage.commit(
    counts={
      'members': len(members),
      'rows': len(written),
      'held_out': len(dev_rows),
      'too_long': rows.too_long,
      'updates': sum(info['updates'] for info in infos),
    }
    | figures,
    seconds=time.monotonic() - began,
    extra={'members': infos},
    contents=contents,
  )


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
  """The rows to train on, and those of held-out sources."""
  rows = list(examples)
  chosen = splits.held_out((row.group for row in rows), settings.held_out)
  return (
    [row for row in rows if row.group not in chosen],
    [row for row in rows if row.group in chosen],
  )


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
      targets = (losses.BETTER, losses.WORSE)
      if example.score is not None:
        targets = (losses.level_of(example.score),)
      tokens = np.concatenate(texts).astype(np.int32)
      yield tokens, np.array(targets, np.int32), 1.0, True


def _train_member(
  context: Context,
  stage: Stage,
  settings: TrainReward,
  training: early_stopping.Training,
  regressor: Regressor,
  rows: loader.TrainingRows,
  dev: loader.TrainingBatches,
  member: int,
) -> dict[str, Any]:
  """Trains one member and keeps its best parameters; returns what it was."""
  seed = context.seed + member
  figure = training.loss.figure
  eval_step = step.make_eval_step(regressor, training.loss)

  def evaluate(params: Params) -> float:
    return -step.evaluate_loss(eval_step, params, dev.once())[figure]

  reporter = supervised.Reporter(
    context, stage, settings.stopping.max_steps, f'dev_{figure}', unit='texts'
  )
  outcome = early_stopping.train(
    regressor,
    regressor.init(seed),
    training,
    settings.stopping,
    loader.TrainingBatches(rows, training.packing, seed),
    evaluate,
    folder=stage.work / f'checkpoints_{member}',
    seed=seed,
    learning_rate_scale=1.0,
    where=f'{stage.name}, member {member}',
    on_step=reporter.on_step,
    on_evaluation=reporter.on_evaluation,
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
  stage.write_part(
    f'member_{member}.json', json.dumps(info, indent=1).encode(), info
  )
  return info


def _judge(
  stage: Stage, ensemble: learned.Ensemble, examples: Sequence[Example]
) -> dict[str, float]:
  """Writes what the ensemble says of held-out rows, and how right it is.

  Returns:
    `disagreement`, the mean standard deviation; `accuracy`, the share of pairs
    of one source (of preferences) in the right order; `tau_within` and `tau`,
    Kendall's within a source and over all; those that are defined.
  """
  texts = [(e.source, text) for e in examples for text in e.candidates]
  sources, candidates = map(list, zip(*texts, strict=True))
  rewards = ensemble.rewards(sources, candidates)
  mean = rewards.mean(axis=0, dtype=np.float64)
  std = rewards.std(axis=0, dtype=np.float64)
  wanted = [
    e.score if e.score is not None else float(place == 0)
    for e in examples
    for place in range(len(e.candidates))
  ]
  columns = {
    'source': sources,
    'candidate': candidates,
    'wanted': wanted,
    'reward': mean,
    'disagreement': std,
  }
  stage.write_part('held_out.parquet', store.table_bytes(pa.table(columns)))
  figures = {'disagreement': float(std.mean())}
  # A preference is between two candidates, scores compare all of a source.
  numbers: dict[Any, int] = {}
  groups = [
    numbers.setdefault(e.source if ensemble.bounded else i, len(numbers))
    for i, e in enumerate(examples)
    for _ in e.candidates
  ]
  if len(numbers) < len(groups):
    found = agreement.agreement(np.array(wanted), mean, np.array(groups))
    figures['accuracy'] = found.accuracy
    if math.isfinite(found.tau_within):
      figures['tau_within'] = found.tau_within
  tau = agreement.kendall_tau(np.array(wanted), mean)
  if ensemble.bounded and math.isfinite(tau):
    figures['tau'] = tau
  return figures
