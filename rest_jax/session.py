"""An open run directory: runs its stages and shows what they found."""

import contextlib
import dataclasses
import datetime
import functools
import itertools
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata

import jax

import rest_jax
from rest_jax import (
  branching,
  compiled,
  fingerprints,
  hosts,
  machine,
  policy_plan,
  preemption,
  prerequisites,
  reports,
  rest,
  scratch,
  stages,
  storage,
  train_reward,
  translate,
)
from rest_jax.context import Context
from rest_jax.data import seqio_library
from rest_jax.errors import ConfigurationError, DataError, StorageError
from rest_jax.profiling import Profile
from rest_jax.progress import Progress
from rest_jax.rewards import cache, learned
from rest_jax.run_directory import RunDirectory, Stage


@dataclasses.dataclass(frozen=True)
class Texts:
  """What the command line knows and a run directory records.

  Attributes:
    command: the flags that choose what to do.
    config: the gin configuration as given.
    operative_config: the gin configuration as used.
    branch_command: this process's command with some gin bindings replaced.
  """

  command: str
  config: str
  operative_config: str
  branch_command: Callable[..., str]


@contextlib.contextmanager
def open_run(
  run: rest.ReST, texts: Texts, *, read_only: bool, profile: str | None = None
) -> Iterator['Session']:
  """Opens a run directory, alone unless only to read.

  Args:
    run: what is run.
    texts: its configuration.
    read_only: whether nothing is to be written.
    profile: steps to trace, see `profiling.Profile`.

  Raises:
    ConfigurationError: no such steps to trace.
    LockedError: another job is working there.
    StorageError: the folder cannot be written.
    HostsError: another process of this job failed.
  """
  # Checkpoints need absolute paths.
  directory = RunDirectory(storage.absolute(run.model_dir))
  if not storage.is_local(run.model_dir):
    seqio_library.import_tensorflow()
  with contextlib.ExitStack() as stack:
    if not read_only and hosts.is_first():
      stack.enter_context(directory.lock())
    fingerprints.check_alike(
      directory.path, texts.config, texts.command, read_only=read_only
    )
    tensorboard = None if read_only else f'{directory.path}/tensorboard'
    stream = None
    if not hosts.is_first():
      stream, tensorboard = stack.enter_context(open(os.devnull, 'w')), None
    tracer = profile and Profile(profile, f'{directory.path}/profile')
    progress = Progress(stream, tensorboard, tracer)
    stack.enter_context(_closed_at_the_end(progress))
    scores = None
    if not read_only:
      stack.enter_context(compiled.kept(run.compilation_cache, directory.path))
    if run.annotate.cache_scores and not read_only:
      folder = scratch.local(directory.path / _score_cache())
      scores = cache.ScoreCache(folder)
      stack.callback(scores.close)
    yield Session(run, texts, directory, progress, scores)


@contextlib.contextmanager
def _closed_at_the_end(progress: Progress) -> Iterator[None]:
  """Closes it; that curves lack their end hides nothing that ended the run."""
  try:
    yield
  except BaseException:
    with contextlib.suppress(StorageError):
      progress.close()
    raise
  progress.close()


def _score_cache() -> str:
  """A folder for each process: nothing else may open its files."""
  if hosts.is_first():
    return cache.FOLDER
  return f'{cache.FOLDER}/process_{hosts.index()}'


class Session:
  """The run modes on one run directory."""

  def __init__(
    self,
    run: rest.ReST,
    texts: Texts,
    directory: RunDirectory,
    progress: Progress,
    scores: cache.ScoreCache | None = None,
  ):
    """Use `open_run`."""
    self._run, self._texts = run, texts
    self._directory, self._progress = directory, progress
    self._recorded = False
    self._valid: dict[str, Stage] = {}  # Committed, and found to be valid.
    self._stages = stages.plan(run)
    self._context = Context(
      directory=directory,
      elsewhere=branching.elsewhere(run, self._stages),
      model=run.model,
      layout=run.layout,
      decoding_layout=run.decoding_layout,
      seed=run.seed,
      progress=progress,
      scores=scores,
      score_batch_size=run.annotate.batch_size,
    )
    read = functools.cache(
      lambda: train_reward.open_ensemble(self._context, run.train_reward)
    )
    for reward in learned.within(run.annotate):
      reward.open(read)

  def _record(self) -> None:
    """Writes the configuration and what it runs on, once something is made.

    So a command that is refused leaves no trace of what it was refused for.
    """
    if self._recorded:
      return
    self._recorded = True
    prerequisites.check_layouts(self._run)
    path = self._directory.path
    storage.write_atomic(path / 'config.gin', self._texts.config.encode())
    storage.write_atomic(
      path / 'operative_config.gin', self._texts.operative_config.encode()
    )
    facts = {
      'rest_jax': rest_jax.__version__,
      'python': platform.python_version(),
      'packages': {
        name: metadata.version(name) for name in fingerprints.PACKAGES
      },
      'seed': self._run.seed,
      'devices': [str(device) for device in jax.devices()],
      'machine': machine.describe(),
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
    names = hosts.on_first(
      lambda: [
        plan.name
        for plan in self._stages
        if plan.name == only
        or (only is None and self._belongs(plan, mode))
        or plan.kind == 'data'
      ]
    )
    chosen = [plan for plan in self._stages if plan.name in names]
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
    hosts.on_first(lambda: self._check_ahead(chosen))
    ran = 0
    for plan in chosen:
      missing = hosts.on_first(functools.partial(self._missing, plan))
      if missing and mode == 'grow' and plan.kind == 'check_reward':
        continue  # BC is not evaluated yet: its outputs cannot be spoiled.
      if missing and ran and mode != 'rest':
        break  # Later Grow steps wait for other kinds of stages.
      self._run_stage(plan)
      if plan.kind == 'evaluate':
        self._check_alarm(plan.inputs)
      ran += plan.kind != 'data'
    if mode == 'check_reward':
      show = reports.show_checks
    else:
      show = reports.show_results
    hosts.on_first(lambda: show(self._run, self._context))

  def _check_ahead(self, chosen: Sequence[stages.StagePlan]) -> None:
    """Finds what would stop a later stage before an earlier one is made."""
    pending = []
    for plan in chosen:
      stage = self._context.stage(plan.name)
      if not stage.committed:
        pending.append(plan.name)
        continue
      inputs = fingerprints.changed(plan, stage)
      if inputs is not None:
        stage.begin(plan.config, inputs, self._hint(plan))
    prerequisites.check_checkpoint(self._run, pending)
    prerequisites.check_updates(self._run, pending)

  def _hint(self, plan: stages.StagePlan) -> str:
    """What to do to keep a stage that is committed beside one made anew."""
    return branching.hint(
      self._run, self._context, plan, self._texts.branch_command
    )

  def _check_alarm(self, evaluated: Sequence[str]) -> None:
    hosts.on_first(
      lambda: reports.check_alarm(self._run, self._context, evaluated)
    )

  def _missing(self, plan: stages.StagePlan) -> list[str]:
    """What a stage reads and is not there yet."""
    return [
      name for name in plan.inputs if not self._context.stage(name).committed
    ]

  def _belongs(self, plan: stages.StagePlan, mode: str) -> bool:
    """Whether a stage is one of a run mode's."""
    if plan.kind == 'check_reward' and mode in ('rest', 'grow'):
      # What the check is to spare is paid for where there are samples.
      return not self._context.stage('grow_1/samples').committed
    return mode in ('rest', plan.kind)

  def _run_stage(self, plan: stages.StagePlan) -> None:
    stage = self._context.stage(plan.name)
    resumed = stage.begun
    fingerprints.check_inputs(plan, stage)
    if hosts.on_first(lambda: self._begin(plan).committed):
      scratch.remove(stage.work)  # A process may have died on its commit.
      return
    try:
      with self._progress.stage(plan.name):
        self._execute(plan, stage)
    except (ConfigurationError, DataError) as error:
      # Other settings or data are the mend, and nothing made here goes with
      # them; but what an earlier process left is not ours to delete, nor what
      # another one still writes.
      if not resumed and hosts.is_first() and not stage.shared:
        hosts.fail(error)
        hosts.await_others()  # They may be reading what is deleted now.
        stage.abandon()
        scratch.remove(stage.work)
      raise
    scratch.remove(stage.work)
    if not hosts.is_first():
      hosts.see(stage.folder / 'stage.json')
    # What all read from now on is the same for all.
    hosts.check_same(plan.name, {f'content of {plan.name}': stage.fingerprint})

  def _execute(self, plan: stages.StagePlan, stage: Stage) -> None:
    """Makes a stage: all processes together, or the first one alone."""
    preemption.agree()
    hosts.on_first(self._record)
    stage.made_on = machine.facts()
    if plan.together:
      plan.execute(self._context, stage)
    else:
      hosts.on_first(lambda: plan.execute(self._context, stage))

  def _begin(self, plan: stages.StagePlan) -> Stage:
    """Begins a stage, goes on with it, or checks that it is still valid.

    So is checked all that it is made from: the parts of a run (--stage,
    --run_mode) must not mix configurations either.
    """
    if plan.name in self._valid:
      return self._valid[plan.name]
    stage = self._context.stage(plan.name)
    inputs = fingerprints.outside(plan, stage)
    for name in plan.inputs:
      self._context.read(name)
      (made_by,) = (other for other in self._stages if other.name == name)
      inputs[name] = self._begin(made_by).fingerprint
    stage.begin(plan.config, inputs, self._hint(plan))
    if stage.committed:
      self._valid[plan.name] = stage
    return stage

  # -- Other modes ------------------------------------------------------------

  def evaluate(self, policy_name: str | None, split: str) -> None:
    """Evaluates one policy, or all that are there, on a split."""
    known = {policy.stage: policy for policy in policy_plan.policies(self._run)}
    if policy_name is not None and policy_name not in known:
      raise ConfigurationError(
        f'--policy={policy_name} is not a policy of this run; it has'
        f' {", ".join(known)}.'
      )
    names = hosts.on_first(
      lambda: [
        policy.stage
        for policy in known.values()
        if policy.stage == policy_name
        or (
          policy_name is None
          and policy.reported
          and self._context.stage(policy.stage).committed
        )
      ]
    )
    chosen = [known[name] for name in names]
    if not chosen:
      raise ConfigurationError(
        f'{self._run.model_dir} has no policy yet; train one with'
        ' --run_mode=supervised.'
      )
    plans = [
      stages.evaluation_stage(self._run, policy, split) for policy in chosen
    ]
    if split == 'test':
      hosts.on_first(lambda: self._log_test_reading(plans))
    for plan in plans:
      self._run_stage(plan)
    if split == 'report':
      # And those that were evaluated before what they started from.
      self._check_alarm(
        [p.stage for p in known.values() if {p.stage, p.start} & set(names)]
      )
    hosts.on_first(lambda: reports.show_results(self._run, self._context))

  def _log_test_reading(self, plans: Sequence[stages.StagePlan]) -> None:
    """Every reading of test data is logged: figures on them wear out."""
    for name in itertools.chain.from_iterable(plan.inputs for plan in plans):
      self._context.read(name)  # Nothing is read where it is not there.
    if not (self._context.read('data').folder / 'test').exists():
      raise ConfigurationError(
        'this run has no test data; set TEST_SPLIT and start a new run.'
      )
    read = [
      plan.name.partition('/evaluation/')[0]
      for plan in plans
      if not self._context.stage(plan.name).committed
    ]
    if not read:
      return
    path = self._directory.path / 'test_readings.json'
    readings = storage.read_json(path) if path.exists() else []
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    readings.append({'time': now, 'policies': read})
    storage.write_json_atomic(path, readings)

  def preview(self) -> None:
    """Prints what each Improve step would train on; see `reports`."""
    hosts.on_first(lambda: reports.show_preview(self._run, self._context))

  def best_of_n(self, split: str) -> None:
    """Prints what choosing among samples would give; see `reports`."""
    hosts.on_first(
      lambda: reports.show_best_of_n(self._run, self._context, split)
    )

  def status(self, dry_run: bool = False) -> None:
    """Prints what is committed and what is next; see `reports`."""
    hosts.on_first(
      lambda: reports.show_status(self._run, self._context, dry_run=dry_run)
    )

  def translate(
    self, policy_name: str | None, source: str, target: str
  ) -> None:
    """Translates a file, a line a line.

    Args:
      policy_name: stage of the policy; None takes the last one trained.
      source: file to read, or '-' for standard input.
      target: file to write, or '-' for standard output.
    """
    hosts.on_first(
      lambda: translate.run(
        self._context,
        self._run.translate,
        self._run.evaluate,
        policy_name=policy_name or self._last_policy(),
        source=source,
        target=target,
      )
    )

  def _last_policy(self) -> str:
    trained = [
      policy.stage
      for policy in policy_plan.policies(self._run)
      if not policy.stage.startswith(policy_plan.CONTROLS)
      and self._context.stage(policy.stage).committed
    ]
    if not trained:
      raise ConfigurationError(
        f'{self._run.model_dir} has no policy yet; train one with'
        ' --run_mode=supervised.'
      )
    return trained[-1]
