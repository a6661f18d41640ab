"""Run directories as a comparison reads them: nothing is written there."""

import csv
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float64

from rest_jax import storage
from rest_jax.data import store
from rest_jax.errors import ConfigurationError, CorruptStateError
from rest_jax.run_directory import RunDirectory, Stage

# Of a configuration: what tells runs of one algorithm apart.
_OF_ONE_RUN = (
    'SEED', 'MODEL_DIR', 'DATA_DIR', 'COMPILATION_CACHE', 'SUPERVISED_FROM',
    'REWARD_FROM', 'GROW_FROM', 'TUNING_TRIALS',
)  # fmt: skip
# The alarm changes nothing but what is said of a run.
_ALARM = re.compile(r'ALARM_\w+|alarm\..*|rest\.ReST\.alarm')
# Of an evaluation: what its figures do not depend on in law.
_FREE = re.compile(
  r'SEED|reward_trained_on|Evaluate\.(num_samples|temperatures|select_\w+|'
  r'batching\.(rows|source_buckets)).*'
)
# Classes of `rewards.learned`, as a configuration names them.
_LEARNED = ('Learned', 'Disagreement')
_BINDING = re.compile(r'([\w./]+) = ?(.*)')
_GROWN = re.compile(r'G\d+ I\d+( random| permuted)?')
_EVALUATIONS = '/evaluation/'


@dataclasses.dataclass(frozen=True)
class Evaluated:
  """What one run found out about one policy.

  Attributes:
    policy: its name in the results.
    fingerprint: of its stage.
    rewards: float64 [k], the mean of each source's samples, in [0, 1].
    beams: k translations.
    row: its row of results.csv.
    machine: what the stages of its run were made on, see `machine.describe`;
      '' where they are of an older version.
  """

  policy: str
  fingerprint: str
  rewards: Float64[np.ndarray, ' k']
  beams: tuple[str, ...]
  row: Mapping[str, str]
  machine: str = ''

  def figure(self, name: str) -> float | None:
    """A column of results.csv; None where it is empty or not there."""
    value = self.row.get(name, '')
    return float(value) if value else None


@dataclasses.dataclass(frozen=True)
class Run:
  """One run, as far as it is compared.

  Attributes:
    path: its directory.
    seed: its seed.
    config: its bindings, without what tells seeds of one algorithm apart.
    settings: how its policies were evaluated, and by which reward.
    texts: source and reference of what they were evaluated on.
    policies: policies in the order of the results.
  """

  path: epath.Path
  seed: int
  config: Mapping[str, str]
  settings: Mapping[str, Any]
  texts: tuple[tuple[str, str | None], ...]
  policies: tuple[Evaluated, ...]

  @property
  def references(self) -> tuple[str, ...] | None:
    """The references; None where there are none."""
    found = tuple(reference for _, reference in self.texts)
    return None if None in found else found

  @property
  def target_language(self) -> str:
    """Of the translations."""
    return self.settings['Evaluate.target_language']


def read_all(paths: Sequence[str], split: str) -> list[Run]:
  """Reads runs, and makes sure that they can be compared.

  Args:
    paths: run directories.
    split: 'report', 'select' or 'test'.

  Raises:
    ConfigurationError: there is none, one is no run directory, is given twice
      or is a copy, has no evaluation on the split, or was evaluated on other
      sources, otherwise, or by another reward.
    CorruptStateError: what one committed was altered, or its results.csv says
      otherwise.
  """
  if not paths:
    raise ConfigurationError(
      'no runs to compare: give run directories, as in --run_mode=compare'
      ' runs/a runs/b.'
    )
  runs: list[Run] = []
  for path in paths:
    run = _read(path, split)
    for other in runs:
      if run.path == other.path:
        raise ConfigurationError(f'the run {path} is given twice.')
      if (run.config, run.seed) == (other.config, other.seed):
        raise ConfigurationError(
          f'{run.path} and {other.path} are runs of one configuration with the'
          f' same SEED = {run.seed}: it would count twice; leave one out.'
        )
    if runs:
      _check_same(run.path, run.settings, runs[0].path, runs[0].settings)
      _check_texts(run, runs[0], split)
    runs.append(run)
  return runs


def _read(path: str, split: str) -> Run:
  directory = RunDirectory(storage.absolute(path))
  root = directory.path
  for name in ('config.gin', 'run.json'):
    if not (root / name).exists():
      raise ConfigurationError(
        f'{path} is not a run directory (it has no {name}); give the MODEL_DIR'
        ' of a run.'
      )
  stages = [
    stage
    for stage in directory.stages()
    if stage.name.endswith(_EVALUATIONS + split) and stage.committed
  ]
  if not stages:
    raise ConfigurationError(
      f'the run {path} has no committed evaluation on the {split} data; make it'
      f' with its command and --run_mode=evaluate --split={split}.'
    )
  rows = _rows(root, split)
  first, found, texts = stages[0], {}, None
  machine = _machine(directory)
  for stage in stages:
    stage.verify()
    settings = _settings(stage)
    _check_same(stage.folder, settings, first.folder, _settings(first))
    name = stage.name.partition(_EVALUATIONS)[0]
    if name not in rows:
      raise ConfigurationError(
        f'{root}/results.csv has no row for {name} on the {split} data, which'
        ' was evaluated; start the command of that run again (with all of its'
        ' CONTROLS) to have it written.'
      )
    found[name], of_stage = _evaluated(stage, name, rows[name], machine)
    if texts is not None and of_stage != texts:
      raise ConfigurationError(
        f'{stage.folder} and {first.folder} hold other sources or references;'
        ' evaluate one of the two again.'
      )
    texts = of_stage
  return Run(
    path=root,
    seed=int(first.manifest['config']['SEED']),
    config=_config(root),
    settings=_settings(first),
    texts=texts,
    policies=tuple(found[name] for name in rows if name in found),
  )


def _machine(directory: RunDirectory) -> str:
  """What made the stages of a run, evaluations apart."""
  told = {
    stage.manifest.get('made_on', {}).get('machine')
    for stage in directory.stages()
    if stage.committed and _EVALUATIONS not in stage.name
  } - {None}
  last = storage.read_json(directory.path / 'run.json').get('machine', '')
  return '; '.join(sorted(told)) or last


def _evaluated(
  stage: Stage, name: str, row: Mapping[str, str], machine: str
) -> tuple[Evaluated, tuple[tuple[str, str | None], ...]]:
  """What an evaluation found, and its sources and references."""
  columns = ['source_id', 'source', 'reference', 'beam']
  beams = store.read_part(stage.folder / 'beam.parquet', columns)
  samples = store.read_part(
    stage.folder / 'samples.parquet', ['source_id', 'reward']
  )
  ids = samples['source_id'].to_numpy()
  starts = store.source_starts(ids)
  if ids[starts[:-1]].tolist() != beams['source_id'].to_pylist():
    raise CorruptStateError(
      f'{stage.folder}: samples and translations are of other sources; delete'
      ' it and evaluate again.'
    )
  rewards = np.add.reduceat(
    samples['reward'].to_numpy().astype(np.float64), starts[:-1]
  ) / np.diff(starts)
  told, mean = row.get('reward_mean') or 'nan', 100 * rewards.mean()
  if not abs(float(told) - mean) < 1e-3:
    raise CorruptStateError(
      f'{stage.folder} has the mean reward {mean:.4f}, but results.csv of that'
      f' run says {told}; start its command again to have it written.'
    )
  evaluated = Evaluated(
    policy=row['policy'],
    fingerprint=stage.manifest['inputs'][name],
    rewards=rewards,
    beams=tuple(beams['beam'].to_pylist()),
    row=row,
    machine=machine,
  )
  texts = (beams[name].to_pylist() for name in ('source', 'reference'))
  return evaluated, tuple(zip(*texts, strict=True))


def _rows(root: epath.Path, split: str) -> dict[str, dict[str, str]]:
  """Stage of a policy → its row of results.csv, in its order."""
  path = root / 'results.csv'
  if not path.exists():
    raise ConfigurationError(
      f'{path} is not there; start the command of that run again to have it'
      ' written.'
    )
  rows = csv.DictReader(io.StringIO(path.read_text()))
  needed = {'policy', 'split', 'grow_step', 'improve_step', 'reward_mean'}
  if missing := needed - set(rows.fieldnames or ()):
    raise CorruptStateError(
      f'{path} has no column {sorted(missing)[0]}; start the command of that'
      ' run again to have it written.'
    )
  return {stage_name(row): row for row in rows if row['split'] == split}


def stage_name(row: Mapping[str, str]) -> str:
  """The stage of a policy, from its row of results.csv.

  >>> row = {'policy': 'BC+', 'grow_step': '1', 'improve_step': '4'}
  >>> stage_name(row)
  'continued/grow_1/improve_4'
  """
  policy = row['policy']
  twin = f'grow_{row["grow_step"]}/improve_{row["improve_step"]}'
  if policy == 'BC':
    return 'supervised'
  if policy.startswith('BC+'):
    return f'continued/{twin}'
  if match := _GROWN.fullmatch(policy):
    return f'{match[1].strip()}/{twin}' if match[1] else twin
  return f'online/{policy.lower()}'


def _config(root: epath.Path) -> dict[str, str]:
  """The bindings of a config.gin, without what is of one run alone."""
  found: dict[str, str] = {}
  name = ''
  for line in (root / 'config.gin').read_text().splitlines():
    if binding := _BINDING.match(line):
      name = binding[1]
      found[name] = binding[2]
    elif name and line.strip() and not line.startswith('#'):
      found[name] += line.strip()  # A long value goes on.
  return {
    k: v
    for k, v in found.items()
    if k not in _OF_ONE_RUN and not _ALARM.fullmatch(k)
  }


def _settings(stage: Stage) -> dict[str, Any]:
  """What the figures of an evaluation depend on, but for the policy."""
  manifest = stage.manifest
  settings = {
    name: value
    for name, value in manifest['config'].items()
    # 'NAME: …' are further metrics.
    if not _FREE.fullmatch(name) and ': ' not in name
  }
  # It may be an input for a further metric alone.
  learned = any(
    name.startswith('reward') and value in _LEARNED
    for name, value in settings.items()
  )
  if learned and 'reward' in manifest['inputs']:
    settings['learned reward'] = manifest['inputs']['reward'][:12]
  return settings


def _check_same(
  path: epath.Path,
  settings: Mapping[str, Any],
  other_path: epath.Path,
  other: Mapping[str, Any],
) -> None:
  """Raises where two evaluations differ in more than the policy."""
  missing = 'nothing'
  changed = [
    name
    for name in sorted(settings.keys() | other.keys())
    if settings.get(name, missing) != other.get(name, missing)
  ]
  if not changed:
    return
  differences = '; '.join(
    f'{name} = {settings.get(name, missing)!r}, there'
    f' {other.get(name, missing)!r}'
    for name in changed
  )
  if all(name.startswith('Evaluate') for name in changed):
    raise ConfigurationError(
      f'{path} was evaluated in another way than {other_path}: {differences};'
      ' evaluate both alike.'
    )
  raise ConfigurationError(
    f'{path} was judged by another reward than {other_path}: {differences};'
    ' compare runs of one reward (a learned one is shared by REWARD_FROM, by'
    ' other seeds as an exported one, gin/rewards/exported.gin).'
  )


def _check_texts(run: Run, other: Run, split: str) -> None:
  if run.texts == other.texts:
    return
  where = f'{len(run.texts)} sources, there {len(other.texts)}'
  if len(run.texts) == len(other.texts):
    pairs = zip(run.texts, other.texts, strict=True)
    here, there = next(pair for pair in pairs if pair[0] != pair[1])
    number = 1 if here[0] == there[0] else 0
    name = ('source', 'reference')[number]
    where = f'{name} {here[number]!r}, there {there[number]!r}'
  raise ConfigurationError(
    f'{run.path} was evaluated on other {split} data than {other.path}:'
    f' {where}; compare runs of the same data.'
  )
