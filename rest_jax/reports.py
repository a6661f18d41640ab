"""What a run directory shows: results, status, previews, a disk estimate."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from rest_jax import (
  best_of_n,
  check_reward,
  grown_data,
  ledger,
  policy_plan,
  rest,
  results,
  stages,
  storage,
  tables,
  terminal,
)
from rest_jax.context import Context
from rest_jax.data import store
from rest_jax.errors import ConfigurationError, RewardError
from rest_jax.policy import Policy
from rest_jax.progress import clock


def result_rows(run: rest.ReST, context: Context) -> list[results.Row]:
  """A row for every committed evaluation.

  Also of policies that the configuration no longer asks for, and with the loss
  and the filter that a policy was trained with, whatever is bound now.
  """
  out = []
  planned = policy_plan.policies(run)
  for policy in [*planned, *_former(context, planned)]:
    for split in ('report', 'select', 'test'):
      out.append(_row_of(run, context, policy, split))
  return [row for row in out if row is not None]


def _former(
  context: Context, planned: Sequence[policy_plan.PolicyPlan]
) -> list[policy_plan.PolicyPlan]:
  """Policies of an earlier configuration that were evaluated."""
  known = {policy.stage for policy in planned}
  root = context.directory.path
  found = [
    path
    for pattern in ('grow_*/improve_*', '*/grow_*/improve_*', 'online/*')
    for path in root.glob(f'{pattern}/evaluation/*/stage.json')
  ]
  below = len(root.parts)
  names = sorted({'/'.join(path.parts[below:-3]) for path in found} - known)
  return [
    policy
    for policy in map(policy_plan.of_stage, names)
    if policy is not None and ledger.is_whole(context, policy.stage)
  ]


def _row_of(
  run: rest.ReST,
  context: Context,
  policy: policy_plan.PolicyPlan,
  split: str,
) -> results.Row | None:
  """A row of results; None where there is no such evaluation."""
  evaluation = context.directory.stage(f'{policy.stage}/evaluation/{split}')
  if not evaluation.committed:
    return None
  spent = ledger.spent(context, policy.stage)
  manifest = context.stage(policy.stage).manifest
  counts, extra = manifest['counts'], manifest['extra']
  return results.Row(
    policy=policy.label,
    split=split,
    seed=run.seed,
    grow_step=policy.grow_step,
    improve_step=policy.improve_step,
    loss=extra.get('loss') or _loss_of(run, policy),
    threshold=extra.get('trained_on', policy.trained_on),
    kept_samples=counts.get('kept_samples'),
    kept_sources=counts.get('kept_sources'),
    distinct_samples=counts.get('distinct_samples'),
    kept_by_length=' '.join(
      '-' if share is None else f'{share:.4f}'
      for share in extra.get('kept_by_length', ())
    ),
    seconds=manifest['seconds'] + evaluation.manifest['seconds'],
    tuning_trials=run.tuning_trials,
    **dataclasses.asdict(spent),
    **evaluation.manifest['extra']['figures'],
  )


def _loss_of(run: rest.ReST, policy: policy_plan.PolicyPlan) -> str:
  """The loss of a stage that does not tell it: BC, and online baselines."""
  if policy in policy_plan.policies(run):
    return policy_plan.loss_of(run, policy).name
  return ''


def show_results(run: rest.ReST, context: Context) -> None:
  """Writes results.csv and prints the table of all policies."""
  rows = result_rows(run, context)
  if not rows:
    return
  path = context.directory.path / 'results.csv'
  storage.write_atomic(path, results.to_csv(rows).encode())
  terminal.show(tables.results_table(rows))
  context.progress.note(
    f'results: {path}; samples, scores and policies: {context.directory.path}'
  )


def show_preview(run: rest.ReST, context: Context) -> None:
  """Prints what each Improve step would train on, before any training.

  Raises:
    ConfigurationError: nothing is scored yet; or, below the table, what would
      stop an Improve step.
  """
  lenient = dataclasses.replace(run.improve, allow_tau_below_mean=True)
  shown = 0
  for g in range(1, run.num_grow + 1):
    if not context.stage(f'grow_{g}/reward').committed:
      continue
    shown += 1
    stores = policy_plan.stores(run, g)
    grown = grown_data.GrownData(context, lenient, stores)
    steps = grown.selections(run.num_improve)
    terminal.show(f'Grow {g}: V = E[R] = {grown.mean_reward():.4f} over D_g')
    terminal.show(
      tables.preview_table(grown.previews(steps), run.improve.schedule)
    )
    strict = grown_data.GrownData(context, run.improve, stores)
    strict.selections(run.num_improve)
  if not run.num_grow:
    raise ConfigurationError('NUM_GROW = 0: there is no Grow step to preview.')
  if not shown:
    raise ConfigurationError(
      'nothing is grown and scored yet; run --run_mode=grow and'
      ' --run_mode=annotate first.'
    )


def check_alarm(
  run: rest.ReST, context: Context, evaluated: Sequence[str]
) -> None:
  """Says where a policy's reward rose while all that is beside it fell.

  Args:
    run: the run.
    context: the run, opened.
    evaluated: stages that an evaluation read, its policy among them; the
      policy is held against the one that it started from.

  Raises:
    RewardError: it did, and the alarm stops the run.
  """
  if run.alarm is None:
    return
  policies = {policy.stage: policy for policy in policy_plan.policies(run)}
  for policy in policies.values():
    if policy.stage not in evaluated or policy.start is None:
      continue
    before, after = (
      _row_of(run, context, each, 'report')
      for each in (policies[policy.start], policy)
    )
    if before is None or after is None:
      continue
    if missing := run.alarm.missing(after.columns):
      context.progress.note(
        f'the alarm cannot judge {policy.label}: D_report gave it no'
        f' {" and no ".join(missing)} (has it references?)'
      )
    text = run.alarm.suspicion(before.columns, after.columns, run.held_out)
    if text is None:
      continue
    if run.alarm.stop_run:
      show_results(run, context)
      raise RewardError(f'{text}; to go on, set alarm.Alarm.stop_run = False.')
    context.progress.note(f'ALARM: {text}')


def show_best_of_n(run: rest.ReST, context: Context, split: str) -> None:
  """Writes best_of_n.csv and prints it: what choosing by reward would give.

  From the samples that evaluations stored. And for each policy the N at which
  BC equals it.

  Raises:
    ConfigurationError: no evaluation has two samples a source or more, or one
      has another number than `evaluate.Evaluate.num_samples`.
  """
  rows, of_bc = [], None
  for policy in policy_plan.policies(run):
    stage = context.stage(f'{policy.stage}/evaluation/{split}')
    if not stage.committed or run.evaluate.num_samples < 2:
      continue
    stage.verify()
    table = store.read_part(stage.folder / 'samples.parquet')
    sources = len(np.unique(table['source_id'].to_numpy()))
    each = table.num_rows // sources
    if each != run.evaluate.num_samples:
      raise ConfigurationError(
        f'{stage.folder} has {each} samples a source, and'
        f' evaluate.Evaluate.num_samples = {run.evaluate.num_samples}: delete'
        f' the folders evaluation/{split} of all policies and run'
        f' --run_mode=evaluate --split={split}, or set it to {each}.'
      )
    columns = {
      name: table[name].to_numpy().reshape(sources, -1)
      for name in table.column_names
      if name == 'reward' or name.startswith(best_of_n.SCORE)
    }
    rewards = columns.pop('reward')
    rows += best_of_n.rows(policy.label, rewards, columns, of_bc)
    texts = np.array(table['target'].to_pylist(), object).reshape(sources, -1)
    rows.append(
      best_of_n.mbr_row(policy.label, texts.tolist(), rewards, columns)
    )
    if policy.start is None:
      of_bc = rewards
  if not rows:
    raise ConfigurationError(
      f'no policy has two samples a source on the {split} data; set'
      ' evaluate.Evaluate.num_samples and run --run_mode=evaluate'
      f' --split={split}.'
    )
  name = 'best_of_n' if split == 'report' else f'best_of_n_{split}'
  path = context.directory.path / f'{name}.csv'
  storage.write_atomic(path, tables.best_of_n_csv(rows, split).encode())
  terminal.show(tables.best_of_n_table(rows))
  context.progress.note(f'best-of-N: {path}')


def show_checks(run: rest.ReST, context: Context) -> None:
  """Prints what the reward does with spoiled texts.

  Raises:
    ConfigurationError: nothing was checked.
    RewardError: below the tables: it does not fall as it must.
  """
  found = [context.stage(name) for name in check_reward.STAGES]
  found = [stage for stage in found if stage.committed]
  for stage in found:
    report = check_reward.report(run.check_reward, stage)
    terminal.show(tables.check_table(report))
    for example in report.examples:
      terminal.show(example)
  if not found:
    raise ConfigurationError(
      'there is nothing to check the reward for: NUM_GROW = 0.'
    )
  check_reward.judge(run.check_reward, found[0])


def show_status(
  run: rest.ReST, context: Context, *, dry_run: bool = False
) -> None:
  """Prints what is committed, what is next and what it has cost.

  Args:
    run: the run.
    context: the run, opened.
    dry_run: whether to add what the whole run will need on disk.
  """
  shown = [context.stage(plan.name) for plan in stages.plan(run)]
  seconds = sum((s.manifest['seconds'] for s in shown if s.committed), 0.0)
  terminal.show(f'{run.model_dir}: {clock(seconds)} so far')
  terminal.show(
    tables.status_table([(s, s.name in context.elsewhere) for s in shown])
  )
  if dry_run:
    terminal.show(_disk_estimate(run))


def _disk_estimate(run: rest.ReST) -> str:
  """What the run will need on disk, from the configuration alone."""
  model = Policy(config=run.model, layout=run.layout).abstract_params()
  params = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(model))
  kept = len(policy_plan.policies(run)) * params * 4
  # While a stage trains: two checkpoints; Adafactor's moments are small.
  moments = 2 if run.improve.training.optimizer.name == 'adamw' else 0
  training = 2 * params * 4 * (1 + moments)
  length = run.grow.batching.max_decode_len
  # A token: its id, two log-probabilities and some four characters.
  a_source = run.grow.num_samples * length * 16
  return (
    f'{params:,} parameters; policies {kept / 1e9:.2f} GB, checkpoints'
    f' while training {training / 1e9:.2f} GB; samples at most'
    f' {a_source / 1e3:.0f} kB a source and Grow step (before'
    f' compression, at {length} tokens each)'
  )
