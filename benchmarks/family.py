"""Runs of the algorithms that are compared, one command a task, table and seed.

  python benchmarks/family.py --task=numerals --table=losses --seed=0 \
      --out=runs/family [--dry_run]

Each row of a table is a run directory of its own, TABLE/NAME within
OUT/TASK/seed_SEED. `base` there, of all tables, trains BC and grows the store;
the others take both from it (GROW_FROM), or BC alone where they sample for
themselves (SUPERVISED_FROM), and what they would make just so again. A run that
is done is skipped and one that was killed goes on, so the same command does
until it ends. The rows of the runs that are done are gathered in
OUT/TASK_TABLE_SEED.csv: those of results.csv (or best_of_n.csv) with the run's
name before them and, where it trained a value model, how that orders samples
after them.
"""

import argparse
import dataclasses
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import family_rows
import faulty_rewards

_HERE = pathlib.Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Task:
  """What runs on a task have in common.

  Attributes:
    files: gin files.
    bindings: gin bindings.
    one_step: bindings of a schedule of one Improve step, in the middle.
    right: binding of what counts as right, where rewards are made binary.
    grown: samples that one Grow step draws; online baselines draw as many.
    paths: bindings that the command line has to give.
    base: bindings of `base` alone.
    learned_reward: whether `base` learns the reward.
    best_of_n: gin files of that table.
  """

  files: tuple[str, ...]
  bindings: tuple[str, ...]
  one_step: tuple[str, ...]
  right: str
  grown: int
  paths: tuple[str, ...] = ()
  base: tuple[str, ...] = ("CONTROLS=('continued', 'random')",)
  learned_reward: bool = False
  best_of_n: tuple[str, ...] = ()


_NO_CONTROLS = 'CONTROLS=()'
_FILTERED_ALONE = 'improve.Improve.include_unfiltered=False'
_MULTI30K = (
  "ORIGINAL_DATA='none'",
  'PACKED_SOURCE_LENGTH=128',
  'PACKED_TARGET_LENGTH=128',
  'BATCH_ROWS=24',  # As many tokens as 48 rows of 64.
)
TASKS = {
  'numerals': Task(
    ('quickstart.gin',),
    ("ORIGINAL_DATA='none'",),
    ('THRESHOLDS=(0.9,)', 'NUM_IMPROVE=1', _FILTERED_ALONE),
    right='THRESHOLDS=(0.99,)',
    grown=6000 * 8,
  ),
  # A third of it, for many seeds.
  'short': Task(
    ('quickstart.gin',),
    (
      "ORIGINAL_DATA='none'",
      'tasks.NumeralsTask.num_grow=2000',
      'SUPERVISED_STEPS=1000',
      'IMPROVE_STEPS=100',
    ),
    ('THRESHOLDS=(0.9,)', 'NUM_IMPROVE=1', _FILTERED_ALONE),
    right='THRESHOLDS=(0.99,)',
    grown=2000 * 8,
    base=(_NO_CONTROLS, 'NUM_IMPROVE=1'),
  ),
  'multi30k': Task(
    ('multi30k.gin', 'evaluation/muse.gin'),
    (*_MULTI30K, "GROW_SPLIT='train[50%:67%]'"),
    ('schedule.Quantiles.levels=(0.85,)', 'NUM_IMPROVE=1', _FILTERED_ALONE),
    right='THRESHOLDS=(0.6,)',
    grown=4930 * 8,
    paths=('DATA_DIR',),
    # The numerals' sources of Grow have no references, which metrics need.
    best_of_n=(str(_HERE / 'best_of_n_metrics.gin'),),
  ),
}
# The same on a reward that `base` learns, and all others take from it.
TASKS['learned'] = dataclasses.replace(
  TASKS['multi30k'],
  files=('multi30k_learned.gin', str(_HERE / 'learned_metrics.gin')),
  bindings=(*_MULTI30K, "GROW_SPLIT='train[60%:77%]'", 'NUM_SAMPLES=8'),
  grown=4804 * 8,  # Without near repetitions of other parts.
  best_of_n=(),  # It has its own.
  learned_reward=True,
)

_LOSS = 'improving/early_stopping.Training.loss'


@dataclasses.dataclass(frozen=True)
class Variant:
  """A run of a table.

  Attributes:
    files: gin files after the task's.
    bindings: gin bindings after the task's.
    shares: what it takes of `base`: 'grow', 'supervised' or nothing.
    one_step: whether it makes but one Improve step, a filtered one.
    mode: the run mode that shows its rows.
    repeats: what it would make just as `base` did, so that it is copied from
      there: the 'evaluation' of BC, all 'steps' of the first Grow step beside
      it, their 'policies' alone, or nothing.
  """

  files: tuple[str, ...] = ()
  bindings: tuple[str, ...] = (_NO_CONTROLS,)
  shares: str = 'grow'
  one_step: bool = False
  mode: str = 'rest'
  repeats: str = 'evaluation'


def _loss(name: str, module: str, *bindings: str) -> Variant:
  """A loss that a module of the package has."""
  load = {'losses': (), 'offline_losses': ('losses/offline.gin',)}[module]
  return Variant(load, (_NO_CONTROLS, f'{_LOSS}=@{module}.{name}()', *bindings))


LOSSES = {
  'bc': Variant(),
  'linear': _loss(
    'RewardWeighted', 'losses', "losses.RewardWeighted.weighting='linear'"
  ),
  'exponential': _loss('RewardWeighted', 'losses'),
  'raft++': _loss('ClippedImportance', 'offline_losses'),
  'gold': _loss('Gold', 'offline_losses'),
  'dpo': _loss('Preference', 'offline_losses'),
  'ipo': _loss(
    'Preference', 'offline_losses', "offline_losses.Preference.form='ipo'"
  ),
  'oac': Variant(('losses/oac.gin',)),
  'v-mpo': Variant(('losses/vmpo.gin',)),
  'bvmpo': Variant(
    ('losses/bvmpo.gin',),
    (_NO_CONTROLS, 'constrained_losses.BVMPO.lambda_steps=100'),
  ),
}


def _schedule(
  rule: str, values: str, controls: str = _NO_CONTROLS, *bindings: str
) -> Variant:
  return Variant(
    bindings=(
      controls,
      *bindings,
      'SCHEDULE=@schedule.PerSource()',
      f"schedule.PerSource.rule='{rule}'",
      f'schedule.PerSource.values={values}',
    )
  )


def _online(task: Task) -> dict[str, Variant]:
  """Online baselines that draw as many samples as Grow does."""
  online = {}
  for name, reuse in (('rloo', 1), ('ppo', 5)):
    updates = task.grown // (16 * 4) * reuse
    every = updates // 10 // reuse * reuse
    online[name] = Variant(
      (f'online/{name}.gin',),
      (
        _NO_CONTROLS,
        'NUM_GROW=0',
        f'IMPROVE_STEPS={updates}',
        f'IMPROVE_EVAL_EVERY={every}',
        # Not PATIENCE, which is BC's too.
        'improving/early_stopping.Stopping.patience=10',
      ),
      'supervised',
    )
  return online


def _faulty(task: Task) -> dict[str, dict[str, Variant]]:
  """RAFT on a right reward and on faulty ones, for the numerals alone."""
  if 'quickstart.gin' not in task.files:
    return {}
  raft = ('presets/raft.gin',)
  faulty = {
    fault: Variant(
      (*raft, str(_HERE / 'faulty_rewards.gin')),
      (_NO_CONTROLS, f"FAULT='{fault}'"),
      'supervised',
      repeats='',
    )
    for fault in faulty_rewards.FAULTS
  }
  return {'alarm': {'right': Variant(raft, shares='supervised'), **faulty}}


def _relatives(task: Task) -> dict[str, Variant]:
  """As many samples in all as base draws, in several Grow steps."""

  def relative(preset: str, *bindings: str) -> Variant:
    files = (f'presets/{preset}.gin',)
    return Variant(files, (_NO_CONTROLS, *bindings), 'supervised')

  two = ('NUM_GROW=2', 'NUM_SAMPLES=4')
  four = ('NUM_GROW=4', 'NUM_SAMPLES=2')
  # On right samples alone, as RAFT++'s authors have it.
  right = (
    'SCHEDULE=@schedule.Thresholds()',
    task.right,
    'improve.Improve.allow_tau_below_mean=True',
  )
  return {
    'raft': relative('raft', *four),
    'raft_right': relative('raft', *four, *right),
    'raft_plus_plus': relative('raft_plus_plus', *four),
    'raft_plus_plus_right': relative('raft_plus_plus', *four, *right),
    'rest_em': relative('rest_em', *two, task.right),
    'expert_iteration': relative('expert_iteration', *two, task.right),
    'iterative_dpo': relative('iterative_dpo', *two),
    'mbr_finetuning': relative('mbr_finetuning', 'NUM_GROW=1', 'NUM_SAMPLES=8'),
  }


def tables(task: Task) -> dict[str, dict[str, Variant]]:
  """The runs of each table, but for `base`, which all of them need."""
  return {
    'table_1': {
      # The second Grow's mean may lie above the first τ.
      'two_grows': Variant(
        bindings=(
          _NO_CONTROLS,
          'NUM_GROW=2',
          'improve.Improve.allow_tau_below_mean=True',
        ),
        repeats='steps',
      ),
      **_online(task),
    },
    'losses': {
      name: dataclasses.replace(variant, one_step=True)
      for name, variant in LOSSES.items()
    },
    'losses_by_step': {
      name: variant for name, variant in LOSSES.items() if name != 'bc'
    },
    'thresholds': {
      'percentile': _schedule('percentile', '(50.0, 75.0, 90.0, 95.0)'),
      'interpolated': _schedule('interpolated', '(0.0, 0.25, 0.5, 0.75)'),
      'top_k': _schedule('top_k', '(4.0, 3.0, 2.0, 1.0)'),
      'original_data': Variant(
        bindings=(_NO_CONTROLS, "ORIGINAL_DATA='unfiltered'")
      ),
      'no_decay': Variant(
        bindings=(_NO_CONTROLS, 'improve.Improve.learning_rate_decay=1.0')
      ),
    },
    # With one row of each source: under a global threshold, sources with more
    # good samples weigh more however rewards are permuted within them.
    'permuted': {
      'best': _schedule(
        'top_k',
        '(1.0,)',
        "CONTROLS=('continued', 'permuted')",
        'NUM_IMPROVE=1',
        _FILTERED_ALONE,
      )
    },
    **_faulty(task),
    'relatives': _relatives(task),
    'best_of_n': {
      'best_of_n': Variant(
        task.best_of_n,
        bindings=(_NO_CONTROLS, 'evaluate.Evaluate.num_samples=64'),
        mode='best_of_n',
        repeats='policies',
      )
    },
  }


def base(task: Task) -> Variant:
  """What trains BC and grows the store that the other runs share."""
  return Variant(bindings=task.base, shares='')


def place(folder: pathlib.Path, table: str, name: str) -> pathlib.Path:
  """The run directory of a row. Tables have rows of the same name."""
  return folder / name if name == 'base' else folder / table / name


def flags(
  task: Task, variant: Variant, seed: int, base: pathlib.Path, run: pathlib.Path
) -> list[str]:
  """The flags of a run, without its paths to data.

  Args:
    task: its task.
    variant: which of its runs.
    seed: of all that is drawn.
    base: run directory that it may take stages from.
    run: its own run directory.
  """
  bindings = list(task.bindings)
  if variant.one_step:
    bindings += task.one_step
  bindings += variant.bindings
  # Each algorithm has the settings that it was first tried with.
  bindings += ['TUNING_TRIALS=1']
  bindings += [f'SEED={seed}', f'MODEL_DIR={run}']
  if variant.shares:
    shared = [variant.shares, *(['reward'] if task.learned_reward else [])]
    bindings += [f'{name.upper()}_FROM={base}' for name in shared]
  return [
    *(f'--gin_file={file}' for file in (*task.files, *variant.files)),
    *(f'--gin.{binding}' for binding in bindings),
  ]


def copy_repeated(
  variant: Variant, base: pathlib.Path, run: pathlib.Path
) -> None:
  """Copies committed stages of `base` that a run would make just so again."""
  evaluation = base / 'supervised' / 'evaluation' / 'report'
  policies = sorted(base.glob('grow_1/improve_*'))
  made = {
    '': [],
    'evaluation': [evaluation],
    'steps': [evaluation, *policies],
    'policies': policies,
  }[variant.repeats]
  # Evaluations for the best of N are of more samples.
  left_out = ('evaluation',) if variant.repeats == 'policies' else ()
  for folder in made:
    wanted = run / folder.relative_to(base)
    if (folder / 'stage.json').exists() and not wanted.exists():
      wanted.parent.mkdir(parents=True, exist_ok=True)
      begun = wanted.with_name('copying')
      shutil.rmtree(begun, ignore_errors=True)
      shutil.copytree(folder, begun, ignore=shutil.ignore_patterns(*left_out))
      begun.rename(wanted)


def rows_of(variant: Variant) -> str:
  """The file of its rows, in its run directory."""
  return 'best_of_n.csv' if variant.mode == 'best_of_n' else 'results.csv'


def _parser() -> argparse.ArgumentParser:
  """Of the command line."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--task', choices=TASKS, required=True)
  parser.add_argument('--table', required=True)
  parser.add_argument('--seed', type=int, required=True)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--data_dir', help='of tasks that read files')
  parser.add_argument('--runs', help='a,b: these rows of the table alone')
  parser.add_argument(
    '--no_controls', action='store_true', help='base without controls'
  )
  parser.add_argument('--dry_run', action='store_true')
  return parser


def main() -> None:
  """Runs a table, or prints its commands."""
  parser = _parser()
  given = parser.parse_args()
  task = TASKS[given.task]
  known = {'base': {}, **tables(task)}
  if given.table not in known:
    parser.error(f'--table={given.table}: it has {", ".join(known)}')
  if task.paths and not given.data_dir:
    parser.error(f'--task={given.task} needs --data_dir')
  paths = [f'--gin.{name}={given.data_dir}' for name in task.paths]
  folder = given.out.resolve() / given.task / f'seed_{given.seed}'
  rows = known[given.table]
  chosen = given.runs.split(',') if given.runs else list(rows)
  if unknown := set(chosen) - set(rows):
    parser.error(f'--runs: {given.table} has no {", ".join(sorted(unknown))}')
  first = base(task)
  if given.no_controls:
    others = [b for b in first.bindings if not b.startswith('CONTROLS=')]
    first = dataclasses.replace(first, bindings=(_NO_CONTROLS, *others))
  rows = {'base': first, **rows}
  runs = {name: rows[name] for name in ('base', *chosen)}
  places = {name: place(folder, given.table, name) for name in rows}
  if given.no_controls and (places['base'] / 'continued').exists():
    parser.error('--no_controls: base has controls already')
  # Where faulty_rewards.gin finds its rewards.
  python_path = os.pathsep.join(
    filter(None, [str(_HERE), os.environ.get('PYTHONPATH')])
  )
  compiled = given.out.resolve() / 'compilation_cache'
  environment = {
    'JAX_COMPILATION_CACHE_DIR': str(compiled),  # Runs have programs in common.
    **os.environ,
    'PYTHONPATH': python_path,
  }
  for name, variant in runs.items():
    command = [sys.executable, '-m', 'rest_jax.main']
    command += flags(task, variant, given.seed, places['base'], places[name])
    command += paths
    if name != 'base' and not given.dry_run:
      copy_repeated(variant, places['base'], places[name])
    modes = ['rest'] if variant.mode == 'rest' else ['rest', variant.mode]
    for mode in modes:
      line = [*command, f'--run_mode={mode}']
      print(shlex.join(line), flush=True)
      if not given.dry_run:
        subprocess.run(line, check=True, env=environment)
  if not given.dry_run:
    path = given.out / f'{given.task}_{given.table}_{given.seed}.csv'
    files = {name: places[name] / rows_of(rows[name]) for name in rows}
    done = {name: file for name, file in files.items() if file.exists()}
    family_rows.gather(done, path)
    print(path)


if __name__ == '__main__':
  main()
