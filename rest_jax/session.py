"""An open run directory: runs its stages and shows what they found."""

import contextlib
import dataclasses
import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata

import jax
import numpy as np
import rich.box
import rich.console
import rich.table
from etils import epath

import rest_jax
from rest_jax import generation, improve, rest, results, storage
from rest_jax.context import IMPORTED, Context
from rest_jax.errors import ConfigurationError, DataError
from rest_jax.progress import Progress, clock
from rest_jax.run_directory import RunDirectory, Stage

_PACKAGES = (
    'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'seqio', 'grain',
    'numpy', 'pyarrow', 'sacrebleu', 'sentencepiece',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Texts:
  """What the command line knows and a run directory records.

  Attributes:
    config: the gin configuration as given.
    operative_config: the gin configuration as used.
    branch_command: this process's command with some gin bindings replaced.
  """

  config: str
  operative_config: str
  branch_command: Callable[..., str]


@contextlib.contextmanager
def open_run(
  run: rest.ReST, texts: Texts, *, read_only: bool
) -> Iterator['Session']:
  """Opens a run directory, alone unless only to read.

  Raises:
    LockedError: another process is working there.
    StorageError: the folder cannot be written.
  """
  # Checkpoints need absolute paths; resolve() leaves gs:// and the like alone.
  directory = RunDirectory(epath.Path(run.model_dir).resolve())
  with contextlib.ExitStack() as stack:
    if not read_only:
      stack.enter_context(directory.lock())
    tensorboard = None if read_only else f'{directory.path}/tensorboard'
    progress = Progress(tensorboard=tensorboard)
    stack.callback(progress.close)
    session = Session(run, texts, directory, progress)
    if not read_only:
      session.record()
    yield session


class Session:
  """The run modes on one run directory."""

  def __init__(
    self,
    run: rest.ReST,
    texts: Texts,
    directory: RunDirectory,
    progress: Progress,
  ):
    """Use `open_run`."""
    self._run, self._texts = run, texts
    self._directory, self._progress = directory, progress
    self._stages = rest.stages(run)
    self._context = Context(
      directory=directory,
      elsewhere=self._elsewhere(),
      model=run.model,
      layout=run.layout,
      seed=run.seed,
      progress=progress,
    )

  def _elsewhere(self) -> dict[str, Stage]:
    """Stages that are taken from other runs."""
    out = {}
    sources = (
      (self._run.supervised_from, ('supervised',)),
      (self._run.grow_from, ('supervised', 'grow_1/')),
    )
    for path, prefixes in sources:
      for plan in self._stages if path else ():
        taken = plan.name.startswith(prefixes) and plan.kind in (
            'supervised', 'grow', 'annotate'
        )  # fmt: skip
        if taken:
          out[plan.name] = RunDirectory(path).stage(plan.name)
          if not out[plan.name].committed:
            raise ConfigurationError(
              f'{path} has no committed stage {plan.name} to branch from;'
              ' finish it there, or train it here.'
            )
    return out

  def record(self) -> None:
    """Writes the configuration and what it runs on."""
    path = self._directory.path
    storage.write_atomic(path / 'config.gin', self._texts.config.encode())
    storage.write_atomic(
      path / 'operative_config.gin', self._texts.operative_config.encode()
    )
    facts = {
      'rest_jax': rest_jax.__version__,
      'python': platform.python_version(),
      'packages': {name: metadata.version(name) for name in _PACKAGES},
      'seed': self._run.seed,
      'devices': [str(device) for device in jax.devices()],
      'processes': jax.process_count(),
    }
    storage.write_json_atomic(path / 'run.json', facts)

  # -- Running stages ---------------------------------------------------------

  def run(self, mode: str, only: str | None = None) -> None:
    """Runs the stages of a mode, skipping what is committed.

    Args:
      mode: 'rest' for all stages, else the kind of stages.
      only: the one stage to run.

    Raises:
      ConfigurationError: no such stage, or what it reads is not there yet.
    """
    chosen = [
      plan
      for plan in self._stages
      if plan.name == only
      or (only is None and mode in ('rest', plan.kind))
      or plan.kind == 'data'
    ]
    if only is not None and only not in {plan.name for plan in chosen}:
      names = ', '.join(plan.name for plan in self._stages)
      raise ConfigurationError(
        f'--stage={only} is not a stage of this run; it has {names}.'
      )
    if mode == 'import_samples' and self._run.imported_samples is None:
      raise ConfigurationError(
        '--run_mode=import_samples needs IMPORTED_SAMPLES, a .tsv, .jsonl or'
        ' .parquet file of outputs; set it in every later command too.'
      )
    ran = 0
    for plan in chosen:
      missing = [
        name for name in plan.inputs if not self._context.stage(name).committed
      ]
      if missing and ran and mode != 'rest':
        break  # Later Grow steps wait for other kinds of stages.
      self._run_stage(plan)
      ran += plan.kind != 'data'
    self.show_results()

  def _run_stage(self, plan: rest.StagePlan) -> None:
    stage = self._context.stage(plan.name)
    inputs = {
      name: self._context.read(name).fingerprint for name in plan.inputs
    } | _fingerprints(plan.files, stage)
    stage.begin(plan.config, inputs, self._branch_hint(plan))
    if stage.committed:
      return
    with self._progress.stage(plan.name):
      plan.execute(self._context, stage)

  def _branch_hint(self, plan: rest.StagePlan) -> str:
    changed = {'MODEL_DIR': f'{self._run.model_dir}_branch'}
    here = str(self._directory.path)
    if plan.kind in ('grow', 'annotate') and plan.name.startswith('grow_1/'):
      changed['SUPERVISED_FROM'] = self._run.supervised_from or here
    elif plan.name.startswith(f'{IMPORTED}/'):
      # Made before anything else, so there may be little to take along.
      if self._context.stage('grow_1/reward').committed:
        changed['GROW_FROM'] = self._run.grow_from or here
      elif self._context.stage('supervised').committed:
        changed['SUPERVISED_FROM'] = self._run.supervised_from or here
    elif plan.kind in ('improve', 'evaluate', 'grow', 'annotate'):
      changed['GROW_FROM'] = self._run.grow_from or here
    command = self._texts.branch_command(**changed)
    return f'branch into another run directory: {command}'

  # -- Results ----------------------------------------------------------------

  def rows(self) -> list[results.Row]:
    """A row for every committed evaluation."""
    out = []
    plans = {policy.stage: policy for policy in rest.policies(self._run)}
    for policy in plans.values():
      for split in ('report', 'select', 'test'):
        stage = self._context.directory.stage(
          f'{policy.stage}/evaluation/{split}'
        )
        if stage.committed:
          out.append(self._row(plans, policy, split, stage))
    return out

  def _row(self, plans, policy, split, evaluation: Stage) -> results.Row:
    lineage, at = [], policy
    while at is not None:
      lineage.append(self._context.stage(at.stage).manifest)
      at = plans.get(at.start)
    counts = lineage[0]['counts']
    return results.Row(
      policy=policy.label,
      split=split,
      seed=self._run.seed,
      grow_step=policy.grow_step,
      improve_step=policy.improve_step,
      loss='bc',
      threshold=policy.trained_on,
      kept_samples=counts.get('kept_samples'),
      kept_sources=counts.get('kept_sources'),
      distinct_samples=counts.get('distinct_samples'),
      train_tokens=sum(m['counts'].get('train_tokens', 0) for m in lineage),
      seconds=lineage[0]['seconds'] + evaluation.manifest['seconds'],
      **evaluation.manifest['extra']['figures'],
    )

  def show_results(self) -> None:
    """Writes results.csv and prints the table of all policies."""
    rows = self.rows()
    if not rows:
      return
    path = self._directory.path / 'results.csv'
    storage.write_atomic(path, results.to_csv(rows).encode())
    console = rich.console.Console(width=_table_width(), highlight=False)
    console.print(results.to_table(rows))
    self._progress.note(
      f'results: {path}; samples, scores and policies: {self._directory.path}'
    )

  # -- Other modes ------------------------------------------------------------

  def evaluate(self, policy_name: str | None, split: str) -> None:
    """Evaluates one policy, or all that are there, on a split."""
    known = {policy.stage: policy for policy in rest.policies(self._run)}
    if policy_name is not None and policy_name not in known:
      raise ConfigurationError(
        f'--policy={policy_name} is not a policy of this run; it has'
        f' {", ".join(known)}.'
      )
    chosen = [
      policy
      for policy in known.values()
      if policy.stage == policy_name
      or (
        policy_name is None
        and policy.reported
        and self._context.stage(policy.stage).committed
      )
    ]
    if not chosen:
      raise ConfigurationError(
        f'{self._run.model_dir} has no policy yet; train one with'
        ' --run_mode=supervised.'
      )
    if split == 'test':
      self._log_test_reading([policy.stage for policy in chosen])
    for policy in chosen:
      self._run_stage(rest.evaluation_stage(self._run, policy, split))
    self.show_results()

  def _log_test_reading(self, names: Sequence[str]) -> None:
    """Every reading of test data is logged: figures on them wear out."""
    if not (self._context.read('data').folder / 'test').exists():
      raise ConfigurationError(
        'this run has no test data; set TEST_SPLIT and start a new run.'
      )
    path = self._directory.path / 'test_readings.json'
    readings = json.loads(path.read_text()) if path.exists() else []
    readings.append({'policies': list(names)})
    storage.write_json_atomic(path, readings)

  def preview(self) -> None:
    """Prints what each Improve step would train on, before any training."""
    console = rich.console.Console(width=_table_width(), highlight=False)
    shown = 0
    for g in range(1, self._run.num_grow + 1):
      if not self._context.stage(f'grow_{g}/reward').committed:
        continue
      shown += 1
      grown = improve.GrownData(
        self._context, self._run.improve, rest.stores(self._run, g)
      )
      steps = grown.selections(self._run.num_improve)
      console.print(f'Grow {g}: V = E[R] = {grown.mean_reward():.4f} over D_g')
      console.print(self._preview_table(grown.previews(steps)))
    if not shown:
      raise ConfigurationError(
        'nothing is grown and scored yet; run --run_mode=grow and'
        ' --run_mode=annotate first.'
      )

  def _preview_table(self, previews) -> rich.table.Table:
    table = rich.table.Table(box=rich.box.SIMPLE)
    for name in ('step', 'keeps', 'samples', 'of', 'sources', 'starved',
                 'duplicates', 'references', 'reward', 'length'):  # fmt: skip
      table.add_column(name, justify='left' if name == 'keeps' else 'right')
    for i, kept in enumerate(previews):
      label = 'all' if i == 0 else self._run.improve.schedule.label(i)
      table.add_row(
          f'I{i}', label, f'{kept.kept_samples:,}', f'{kept.samples:,}',
          f'{kept.kept_sources:,}', f'{kept.starved_sources:,}',
          f'{kept.duplicates:,}', f'{kept.kept_references:,}',
          f'{kept.mean_reward:.3f}', f'{kept.mean_length:.1f}',
      )  # fmt: skip
    return table

  def status(self, dry_run: bool = False) -> None:
    """Prints what is committed, what is next and what it has cost."""
    console = rich.console.Console(width=_table_width(), highlight=False)
    table = rich.table.Table(box=rich.box.SIMPLE)
    table.add_column('stage')
    table.add_column('state')
    table.add_column('what it holds')
    table.add_column('time', justify='right')
    total, next_found = 0.0, False
    for plan in self._stages:
      stage = self._context.stage(plan.name)
      if stage.committed:
        manifest = stage.manifest
        counts = ', '.join(
          f'{name} {value:,.4g}'
          if isinstance(value, float)
          else f'{name} {value:,}'
          for name, value in manifest['counts'].items()
        )
        total += manifest['seconds']
        state = 'elsewhere' if plan.name in self._context.elsewhere else 'done'
        table.add_row(plan.name, state, counts, clock(manifest['seconds']))
        continue
      state = 'begun' if stage.begun else ('waits' if next_found else 'next')
      next_found = True
      table.add_row(plan.name, state, '', '')
    console.print(f'{self._run.model_dir}: {clock(total)} so far')
    console.print(table)
    if dry_run:
      console.print(self._disk_estimate())

  def _disk_estimate(self) -> str:
    """What the run will need on disk, from the configuration alone."""
    run = self._run
    model = jax.eval_shape(lambda: self._policy_without_data().init(0))
    params = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(model))
    kept = len(rest.policies(run)) * params * 4
    # While a stage trains: two checkpoints with optimizer state.
    training = 2 * params * 4 * (3 if _has_moments(run) else 2)
    length = run.grow.batching.max_decode_len
    # A token: its id, two log-probabilities and some four characters.
    a_source = run.grow.num_samples * length * 16
    return (
      f'{params:,} parameters; policies {kept / 1e9:.2f} GB, checkpoints'
      f' while training {training / 1e9:.2f} GB; samples at most'
      f' {a_source / 1e3:.0f} kB a source and Grow step (before'
      f' compression, at {length} tokens each)'
    )

  def _policy_without_data(self):
    from rest_jax.policy import Policy

    return Policy(config=self._run.model, layout=self._run.layout)

  def translate(
    self, policy_name: str | None, source: str, target: str
  ) -> None:
    """Translates a file, a line a line, with beam search.

    Args:
      policy_name: stage of the policy; None takes the last one trained.
      source: file to read, or '-' for standard input.
      target: file to write, or '-' for standard output.
    """
    name = policy_name or self._last_policy()
    lines = _read_lines(source)
    tokenizer, batching = self._context.tokenizer, self._run.evaluate.batching
    longest = batching.source_buckets[-1]
    tokens = [[*tokenizer.encode(line), 1] for line in lines]
    cut = sum(len(t) > longest for t in tokens)
    if cut:
      print(f'{cut} lines were cut to {longest} tokens', file=sys.stderr)
    tokens = [
      t if len(t) <= longest else [*t[: longest - 1], 1] for t in tokens
    ]
    filled = [i for i, line in enumerate(lines) if line.strip()]
    beams = generation.generate_beam(
      self._context.policy,
      self._context.params(name),
      [tokens[i] for i in filled],
      num_beams=self._run.evaluate.num_beams,
      alpha=self._run.evaluate.alpha,
      batching=batching,
      num_tokens=tokenizer.size,
    )
    out = [''] * len(lines)
    for i, beam in zip(filled, beams, strict=True):
      out[i] = ' '.join(tokenizer.decode(beam.tolist()).splitlines())
    text = ''.join(line + '\n' for line in out)
    if target == '-':
      sys.stdout.write(text)
    else:
      storage.write_atomic(target, text.encode())

  def _last_policy(self) -> str:
    trained = [
      policy.stage
      for policy in rest.policies(self._run)
      if not policy.stage.startswith(('continued/', 'random/'))
      and self._context.stage(policy.stage).committed
    ]
    if not trained:
      raise ConfigurationError(
        f'{self._run.model_dir} has no policy yet; train one with'
        ' --run_mode=supervised.'
      )
    return trained[-1]


def _fingerprints(files: dict[str, str], stage: Stage) -> dict[str, str]:
  """Binding → SHA-256 of its file, which a committed stage can do without."""
  out = {}
  for binding, path in files.items():
    try:
      out[binding] = storage.checksum(path)[1]
    except OSError as error:
      if not stage.committed:
        raise DataError(
          f'{binding} = {path!r} cannot be read'
          f' ({error.strerror or error}); check the path.'
        ) from error
      out[binding] = stage.manifest['inputs'].get(binding)
  return out


def _has_moments(run: rest.ReST) -> bool:
  return run.improve.training.optimizer.name == 'adamw'


def _table_width() -> int | None:
  """Files and pipes get tables as wide as they need to be."""
  return None if sys.stdout.isatty() else 160


def _read_lines(source: str) -> list[str]:
  try:
    if source == '-':
      data = sys.stdin.buffer.read()
    else:
      with open(source, 'rb') as file:
        data = file.read()
  except OSError as error:
    raise DataError(
      f'--input={source} cannot be read ({error.strerror}).'
    ) from error
  lines = data.split(b'\n')
  if lines and not lines[-1]:
    lines.pop()
  out = []
  for number, line in enumerate(lines, 1):
    try:
      out.append(line.decode('utf-8').removesuffix('\r'))
    except UnicodeDecodeError as error:
      raise DataError(
        f'--input={source}, line {number}: not UTF-8 ({error.reason} at byte'
        f' {error.start}); convert the file to UTF-8.'
      ) from error
  return out
