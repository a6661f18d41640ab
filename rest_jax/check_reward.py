"""Check the reward: does it fall where a translation is spoiled?

Before Grow is paid for, references and BC's own outputs are spoiled in several
ways, and the reward of each must fall; see `rewards/checking.py`.

What was measured is committed; what it has to be is held against it whenever
Grow begins, so a changed `min_fall_rate` needs no new measurement.
"""

import dataclasses
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rest_jax.context import Context
from rest_jax.data import store, tasks
from rest_jax.errors import ConfigurationError, DataError, RewardError
from rest_jax.rewards import base, checking
from rest_jax.rewards import perturbations as perturbations_lib
from rest_jax.run_directory import Stage

REFERENCES = 'check_reward/references'  # Stages; this one stops a run.
CANDIDATES = 'check_reward/candidates'
STAGES = (REFERENCES, CANDIDATES)


@dataclasses.dataclass(frozen=True)
class CheckReward:
  """How the reward is checked before Grow.

  Attributes:
    num_sources: texts to spoil, at most.
    perturbations: ways to spoil them, each with its `min_fall_rate`.
    min_texts: a perturbation that applies to fewer texts stops no run.
    tolerance: by how much a reward (in [0, 1]) may differ with batch size,
      order or padding.
    num_examples: texts shown a perturbation, of those whose reward stays.
    stop_run: whether Grow refuses to begin when the check fails.
  """

  num_sources: int = 200
  perturbations: tuple[perturbations_lib.Perturbation, ...] = (
    perturbations_lib.DEFAULT
  )
  min_texts: int = dataclasses.field(default=10, compare=False)
  tolerance: float = dataclasses.field(default=1e-3, compare=False)
  num_examples: int = 2
  stop_run: bool = dataclasses.field(default=True, compare=False)

  def __post_init__(self):
    for name, least in (('num_sources', 2), ('num_examples', 0)):
      if getattr(self, name) < least:
        raise ConfigurationError(
          f'CheckReward.{name} = {getattr(self, name)} must be at least'
          f' {least}.'
        )
    names = [one.name for one in self.perturbations]
    if len(set(names)) < len(names):
      raise ConfigurationError(
        f'CheckReward.perturbations: the names {names} must differ.'
      )


def run(
  context: Context,
  stage: Stage,
  settings: CheckReward,
  reward: base.RewardModel,
  task: tasks.Task,
  beams: str,
) -> None:
  """Measures what a reward does with spoiled texts, and commits it.

  Args:
    context: the run.
    stage: `REFERENCES` or `CANDIDATES`; begun.
    settings: how.
    reward: R(x, y).
    task: whose languages the texts are in.
    beams: stage with BC's outputs, for `CANDIDATES`.

  Raises:
    DataError: there are fewer than two texts with a reference.
    RewardError: the reward failed, or left its range, on a text of these.
  """
  began = time.monotonic()
  limit = settings.num_sources
  if stage.name == REFERENCES:
    texts = _references(context, limit)
  else:
    texts = _candidates(context, beams, limit)
  outcomes, table = checking.measure(
    reward,
    texts,
    settings.perturbations,
    languages=(task.source_language, task.target_language),
    num_examples=settings.num_examples,
    batch_size=context.score_batch_size,
    scores=context.scores,
  )
  invariance = checking.differences(
    reward, texts, batch_size=context.score_batch_size
  )
  stage.write_part('spoiled.parquet', store.table_bytes(table))
  stage.commit(
    counts={'texts': len(texts.sources), 'spoiled': table.num_rows},
    seconds=time.monotonic() - began,
    extra={
      'reward': reward.info.name,
      'of': texts.of,
      'outcomes': [dataclasses.asdict(outcome) for outcome in outcomes],
      'invariance': invariance,
    },
  )
  failures = report(settings, stage).failures
  said = '; '.join(failures) or 'falls wherever it must'
  context.progress.note(f'{reward.info.name} on {texts.of}: {said}')


def _references(context: Context, limit: int) -> checking.Texts:
  """References of D_select, or of D where D_select has too few."""
  columns = ('source_id', 'source', 'target')
  for split, of in (('select', 'D_select'), ('train', 'D')):
    table = next(context.sources(split, columns))  # Its first row group.
    table = table.filter(pc.is_valid(table['target']))
    if table.num_rows > 1:
      table = _spread(table, limit)
      targets = table['target'].to_pylist()
      return checking.Texts(
        f'references of {of}',
        table['source_id'].to_pylist(),
        table['source'].to_pylist(),
        targets,
        targets,
      )
  raise DataError(
    'the reward cannot be checked: fewer than two sources of D have a target;'
    ' add some to TRAIN_SPLIT.'
  )


def _candidates(context: Context, beams: str, limit: int) -> checking.Texts:
  """BC's outputs (beam search) on D_report."""
  folder = context.read(beams).folder
  table = _spread(store.read_part(folder / 'beam.parquet'), limit)
  references = table['reference'].to_pylist()
  return checking.Texts(
    "BC's outputs on D_report",
    table['source_id'].to_pylist(),
    table['source'].to_pylist(),
    table['beam'].to_pylist(),
    None if None in references else references,
  )


def _spread(table: pa.Table, limit: int) -> pa.Table:
  """At most `limit` rows, evenly spread."""
  rows = np.linspace(0, table.num_rows - 1, min(limit, table.num_rows))
  return table.take(np.unique(rows.astype(np.int64)))


def report(settings: CheckReward, stage: Stage) -> checking.Report:
  """What a committed check found, held against the settings of now."""
  extra = stage.manifest['extra']
  outcomes = [checking.Outcome(**outcome) for outcome in extra['outcomes']]
  least = {one.name: one.min_fall_rate for one in settings.perturbations}
  failures = [
    f'{outcome.name}: falls for {100 * outcome.fall_rate:.0f} % of'
    f' {outcome.texts} texts (rises for {outcome.rose}), must for'
    f' {100 * least.get(outcome.name, 0.0):.0f} %'
    for outcome in outcomes
    if outcome.texts >= settings.min_texts
    and outcome.fall_rate < least.get(outcome.name, 0.0)
  ]
  failures += [
    f'{name}: a reward differs by {difference:.2g} with it, may by'
    f' {settings.tolerance:g}'
    for name, difference in extra['invariance'].items()
    if difference > settings.tolerance
  ]
  if not any(outcome.fell or outcome.rose for outcome in outcomes):
    failures.append('it is the same for all texts, spoiled or not')
  return checking.Report(
    extra['reward'],
    extra['of'],
    outcomes,
    [least.get(outcome.name, 0.0) for outcome in outcomes],
    extra['invariance'],
    failures,
  )


def judge(settings: CheckReward, stage: Stage) -> None:
  """Stops a run whose reward failed the check, where there was one.

  Raises:
    RewardError: it failed, and `settings.stop_run` is set.
  """
  if not (settings.stop_run and stage.committed):
    return
  found = report(settings, stage)
  if found.failures:
    examples = found.failing_examples or found.examples
    example = f'; e.g. {examples[0]}' if examples else ''
    raise RewardError(
      f'the reward {found.reward!r} does not fall on spoiled {found.of} as it'
      f' must: {"; ".join(found.failures)}{example}; mend the reward, lower'
      ' perturbations.….min_fall_rate, raise CheckReward.tolerance where'
      ' batches, order or padding matter, or go on with'
      ' check_reward.CheckReward.stop_run = False; --run_mode=check_reward'
      ' shows all.'
    )
