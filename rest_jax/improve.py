"""Improve: the next policy, trained on the rows of D_g that pass a filter.

J(θ) = E_(x,y)~D_g [F(x, y; τ_i) · L(x, y; θ)] (Gulcehre et al. 2023,
arXiv:2308.08998, equation 2). The control rows are Improve steps too: they
differ in which rows they train on, and in nothing else.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from etils import epath

from rest_jax import evaluate as evaluate_lib
from rest_jax import hosts, preview, schedule, selection, supervised
from rest_jax import rows as rows_lib
from rest_jax.context import IMPORTED, Context
from rest_jax.data import loader, scored
from rest_jax.data.lookup import Lookup
from rest_jax.errors import ConfigurationError, DataError
from rest_jax.rewards import base
from rest_jax.run_directory import Stage
from rest_jax.training import early_stopping

Control = Literal['none', 'random', 'continued']
Selections = tuple[selection.Selection, ...]


@dataclasses.dataclass(frozen=True)
class Improve:
  """How a policy is improved on a grown dataset.

  Attributes:
    training: optimizer (with the learning rate of the first Improve step),
      loss and batch shape.
    stopping: until when, by the reward on D_select.
    schedule: the rising filters of Improve steps 1 … I.
    include_unfiltered: whether Improve step 0, on the whole of D_g, is made.
    original_data: whether references of D train beside samples: 'none',
      'unfiltered' (all of them), or 'filtered' (those that pass the filter).
    mixture: 'union', or λ, the probability that a training row is a grown one.
    before: further selections, applied before the schedule's.
    after: further selections, applied after it.
    learning_rate_decay: factor on the learning rate from one Improve step to
      the next, in each Grow step anew.
    allow_tau_below_mean: whether τ_1 ≤ V = E_{D_g}[R] is accepted.
    restart_from_base: whether each Improve step starts from BC (ReST-EM)
      instead of from the policy before it.
  """

  training: early_stopping.Training
  stopping: early_stopping.Stopping
  schedule: schedule.Schedule
  include_unfiltered: bool = True
  original_data: Literal['none', 'unfiltered', 'filtered'] = 'filtered'
  mixture: float | Literal['union'] = 'union'
  before: Selections = ()
  after: Selections = ()
  learning_rate_decay: float = 0.5
  allow_tau_below_mean: bool = dataclasses.field(default=False, compare=False)
  restart_from_base: bool = False

  def __post_init__(self):
    if not 0 < self.learning_rate_decay <= 1:
      raise ConfigurationError(
        f'Improve.learning_rate_decay = {self.learning_rate_decay} must be in'
        ' (0, 1]: learning rates fall from step to step.'
      )
    if self.mixture != 'union' and (
      isinstance(self.mixture, str) or not 0 <= self.mixture <= 1
    ):
      raise ConfigurationError(
        f"MIXTURE = {self.mixture!r} must be 'union' or a number in [0, 1]."
      )


@dataclasses.dataclass(frozen=True)
class Step:
  """One Improve step of a run, or the control beside it.

  Attributes:
    start: stage of the policy that it starts from.
    grow_step: g, from 1.
    improve_step: i; 0 is unfiltered.
    stores: the stores of scored rows that make up D_g: that of Grow step g,
      and that of imported samples where there are any.
    control: 'none' for ReST itself; 'random' trains on random rows, as many a
      source as the filter keeps; 'continued' on the references of D alone.
    twin: for a control, the stage whose number of updates it makes.
  """

  start: str
  grow_step: int
  improve_step: int
  stores: tuple[str, ...]
  control: Control = 'none'
  twin: str | None = None


class GrownData:
  """The scored rows of D_g, as a stream that can be read again.

  References of imported sources are no rows of D: they served the reward.
  """

  def __init__(
    self, context: Context, settings: Improve, stores: Sequence[str]
  ):
    """Opens the committed stages of some stores; nothing is read yet."""
    self._context, self._settings = context, settings
    self._stores = [
      (context.read(f'{name}/samples'), context.read(f'{name}/reward'))
      for name in stores
    ]

  def _tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Streams whole sources, with `columns` (`origin` too) and `reward`."""
    for samples, reward in self._stores:
      imported = samples.name.startswith(f'{IMPORTED}/')
      for table in scored.iter_scored(
        samples.folder, {'reward': reward.folder}, columns
      ):
        if imported:
          table = table.filter(pc.not_equal(table['origin'], 'reference'))
        if table.num_rows:
          yield table

  def _rows(
    self, needs: frozenset[str] = frozenset()
  ) -> Iterator[rows_lib.Rows]:
    for table in self._tables(scored.columns_for(needs)):
      yield scored.rows_from_table(table, needs)

  def _counts(self, rows: rows_lib.Rows) -> np.ndarray:
    """Rows of D_g as this configuration has it: with or without D."""
    if self._settings.original_data == 'filtered':
      return np.ones(len(rows.reward), bool)
    return ~rows.is_reference

  def rewards(self) -> Iterator[np.ndarray]:
    """Streams the rewards that the schedule is held against."""
    for rows in self._rows():
      yield rows.reward[self._counts(rows)]

  def mean_reward(self) -> float:
    """V = E_{D_g}[R]."""
    total, count = 0.0, 0
    for rewards in self.rewards():
      total += float(rewards.sum(dtype=np.float64))
      count += len(rewards)
    if not count:
      raise DataError(
        f'{self._stores[0][0].folder} holds no row to train on; grow again with'
        ' sources, or set Improve.original_data.'
      )
    return total / count

  def selections(self, num_steps: int) -> list[Selections]:
    """The selections of Improve steps 0 … `num_steps`."""
    settings = self._settings
    filters = settings.schedule.filters(self.rewards)[:num_steps]
    schedule.check_filters(
      filters,
      self.mean_reward(),
      allow_below_mean=settings.allow_tau_below_mean,
    )
    first = (selection.SamplesOnly(),)
    if settings.original_data == 'filtered':
      first = ()
    return [
      (*first, *settings.before, middle, *settings.after)
      for middle in (selection.Unfiltered(), *filters)
    ]

  def previews(self, steps: Sequence[Selections]) -> list[preview.StepPreview]:
    """What each step keeps, in one pass."""
    needs = preview.NEEDS.union(*(selection.needs_of(s) for s in steps))
    return preview.preview(self._rows(needs), steps)

  def training_rows(
    self, selections: Selections
  ) -> Iterator[supervised.TrainingRow]:
    """The rows that pass, with the tokens of their sources."""
    needs = selection.needs_of(selections)
    columns = [*scored.columns_for(needs), 'source', 'target_tokens']
    source_tokens = _SourceTokens(self._context)
    for table in self._tables(list(dict.fromkeys(columns))):
      rows = scored.rows_from_table(table, needs)
      kept = np.flatnonzero(self._with_original(rows, selections))
      is_original = rows.is_reference[kept]
      table = table.take(kept)
      sources = source_tokens(table, rows.origin[kept])
      targets = table['target_tokens'].to_numpy()
      for source, target, reference in zip(
        sources, targets, is_original, strict=True
      ):
        yield source, target, 1.0, bool(reference)

  def _with_original(
    self, rows: rows_lib.Rows, selections: Selections
  ) -> np.ndarray:
    kept = selection.select(selections, rows)
    if self._settings.original_data == 'unfiltered':
      return kept | rows.is_reference
    return kept


class _SourceTokens:
  """The tokens of the sources of rows, asked for in the stores' order."""

  def __init__(self, context: Context):
    wanted = ('source_id', 'source_tokens')
    self._lookups = {
      rows_lib.POLICY: Lookup(context.sources('grow', wanted), wanted[1]),
      rows_lib.REFERENCE: Lookup(context.sources('train', wanted), wanted[1]),
    }
    self._tokenizer = context.tokenizer

  def __call__(self, table: pa.Table, origins: np.ndarray) -> np.ndarray:
    """Lists of ids, EOS included, for rows with these origins [m]."""
    out = np.empty(table.num_rows, object)
    ids = table['source_id'].to_numpy()
    for origin, lookup in self._lookups.items():
      mask = origins == origin
      found = lookup(ids[mask].tolist())
      out[mask] = np.fromiter(found, object, len(found))
    mask = origins == rows_lib.IMPORTED
    if mask.any():  # Sources of others' are in no split of the data.
      found = self._encode(table['source'].filter(mask).to_pylist())
      out[mask] = np.fromiter(found, object, len(found))
    return out

  def _encode(self, texts: Sequence[str]) -> list[list[int]]:
    distinct = list(dict.fromkeys(texts))
    tokens = self._tokenizer.encode_sources(distinct)
    known = dict(zip(distinct, tokens, strict=True))
    return [[*known[text], self._tokenizer.eos_id] for text in texts]


def run(
  context: Context,
  stage: Stage,
  settings: Improve,
  evaluation: evaluate_lib.Evaluate,
  reward: base.RewardModel,
  step: Step,
) -> None:
  """Trains the next policy.

  Args:
    context: the run.
    stage: where to write; begun.
    settings: how.
    evaluation: how D_select is sampled for the reward.
    reward: R(x, y), which decides when to stop and what to keep.
    step: which step.

  Raises:
    ConfigurationError: the schedule does not rise, or begins below V.
    DataError: no row passes the filter.
    NonFiniteError: training diverged.
    RewardError: the reward model failed.
  """
  began = time.monotonic()
  counts, mixture = hosts.on_first(
    lambda: _write_rows(context, stage, settings, step)
  )
  rows = loader.TrainingRows(_rows_folder(stage))
  stopping = settings.stopping
  if step.twin is not None:
    updates = context.read(step.twin).manifest['counts']['updates']
    stopping = dataclasses.replace(
      stopping, max_steps=updates, patience=updates + 1
    )
  batches = loader.TrainingBatches(
    rows,
    settings.training.packing,
    context.seed,
    mixture,
    *context.policy.placement.batch_share,
  )
  context.progress.note(
    f'{len(rows):,} rows, {100 * batches.grown_share:.0f} % grown,'
    f' {batches.steps_per_epoch:,} updates an epoch,'
    f' {100 * batches.padding_share:.1f} % padding'
  )
  reporter = supervised.Reporter(
    context,
    stage,
    stopping.max_steps,
    'reward',
    flops=supervised.update_flops(context.model, settings.training),
  )
  outcome = early_stopping.train(
    context.policy,
    context.params(step.start),
    settings.training,
    stopping,
    batches,
    evaluate_lib.select_reward(context, evaluation, reward),
    folder=stage.work / 'checkpoints',
    # Dropout must differ from step to step, or errors would repeat.
    seed=context.seed + 1000 * step.grow_step + step.improve_step + 1,
    learning_rate_scale=settings.learning_rate_decay
    ** (step.improve_step - (0 if settings.include_unfiltered else 1)),
    where=stage.name,
    on_step=reporter.on_step,
    on_evaluation=reporter.on_evaluation,
  )
  if not outcome.best.step:
    context.progress.note(
      'no update improved the reward on D_select: the policy stays as it was'
    )
  supervised.finish(stage, outcome, began, counts)


def random_control(chosen: Selections, num_after: int, seed: int) -> Selections:
  """Random rows, as many of each source as `chosen` keeps.

  They are drawn from what the filter chose among: D_g as the configuration has
  it, less what the selections before the filter drop.

  Args:
    chosen: selections before the filter, the filter, and those after it.
    num_after: how many selections stand after the filter.
    seed: of the draw.
  """
  filter_at = len(chosen) - 1 - num_after
  like = selection.RandomLike(chosen[filter_at:], seed=seed)
  return (*chosen[:filter_at], like)


def _rows_folder(stage: Stage) -> epath.Path:
  return stage.work / 'rows'


def _write_rows(
  context: Context, stage: Stage, settings: Improve, step: Step
) -> tuple[dict[str, int], float | str]:
  """Writes what the step trains on; returns its counts and mixture."""
  folder = _rows_folder(stage)
  if step.control == 'continued':
    rows = loader.write_rows(folder, supervised.original_rows(context, 'train'))
    return {'references': len(rows)}, 'union'
  grown = GrownData(context, settings, step.stores)
  chosen = grown.selections(step.improve_step)[step.improve_step]
  if step.control == 'random':
    chosen = random_control(chosen, len(settings.after), context.seed)
  (kept,) = grown.previews([chosen])
  trained_on = kept.kept_samples + kept.kept_references
  if not trained_on and settings.original_data != 'unfiltered':
    i = step.improve_step
    label = settings.schedule.label(i) if i else 'that they reached EOS'
    raise DataError(
      f'{stage.name}: none of {kept.samples:,} samples passes the filter'
      f' ({label}); lower it (THRESHOLDS, SCHEDULE), or grow more samples.'
    )
  rows = loader.write_rows(folder, grown.training_rows(chosen))
  counts = {
    'kept_samples': kept.kept_samples,
    'kept_sources': kept.kept_sources,
    'starved_sources': kept.starved_sources,
    'distinct_samples': kept.distinct_samples,
    'references': int(rows.is_original.sum()),
  }
  context.progress.note(
    f'{kept.kept_samples:,} of {kept.samples:,} samples kept (reward'
    f' {kept.mean_reward:.3f}), {kept.starved_sources:,} of'
    f' {kept.sources:,} sources starved'
  )
  has_both = 0 < counts['references'] < len(rows)
  mixture = settings.mixture if has_both else 'union'
  return counts, mixture
