"""A policy or reward model of a run directory, found without gin files.

Everything that it takes stands in the run: its shape and history in the
`stage.json` files, its tokenizer in `data/`, its figures beside it.
"""

import ast
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from rest_jax import errors, storage, train_reward
from rest_jax.context import PARAMS
from rest_jax.data import reward_rows
from rest_jax.data.tokenizer import Tokenizer
from rest_jax.models.config import T5Config
from rest_jax.run_directory import RunDirectory, Stage

_RUN = 'run.json'
_STAGE = 'stage.json'
_FROM = re.compile(
  r'^(SUPERVISED_FROM|REWARD_FROM|GROW_FROM) = (.*)$', re.MULTILINE
)
_MEMBER = re.compile(train_reward.params_folder(0).replace('0', r'(\d+)'))
_PREFERENCES = reward_rows.PreferredFile.__name__
_CONTINUED = re.compile(r'\\\n\s*')  # gin breaks lines that are long.
_TEXTS = ('config.gin', 'operative_config.gin')


@dataclasses.dataclass(frozen=True)
class RunPolicy:
  """A committed stage that holds parameters.

  Attributes:
    root: the run directory.
    stage: the stage.
    config: shape of its network.
    member: which network of a learned reward it is; None for a policy.
  """

  root: epath.Path
  stage: Stage
  config: T5Config
  member: int | None = None

  @property
  def params(self) -> epath.Path:
    """Folder of its parameters."""
    if self.member is None:
      return self.stage.folder / PARAMS
    return self.stage.folder / train_reward.params_folder(self.member)

  @property
  def data(self) -> Stage:
    """The data stage of its run."""
    return stage_of(self.root, 'data')

  @property
  def updates(self) -> int:
    """Training updates from the start of its run, or of the reward, to it."""
    if self.member is not None:
      members = self.stage.manifest['extra']['members']
      return members[self.member]['best_update']
    return sum(s.manifest['counts'].get('best_update', 0) for s in self.lineage)

  @property
  def lineage(self) -> list[Stage]:
    """The stages that made it, itself first: each started from the next."""
    return _lineage(self.root, self.stage)

  @property
  def grown(self) -> list[str]:
    """The Grow steps that its training read, such as 'grow_1'."""
    found = {
      name.partition('/')[0]
      for stage in self.lineage
      for name in stage.manifest['inputs']
      if name.endswith('/samples')
    }
    return sorted(found)

  @property
  def texts(self) -> dict[str, bytes]:
    """The run's configuration files, by name."""
    return {
      name: (self.root / name).read_bytes()
      for name in _TEXTS
      if (self.root / name).exists()
    }

  @property
  def figures(self) -> dict[str, dict[str, Any]]:
    """Evaluated split → figures."""
    found = {}
    for split in ('report', 'select', 'test'):
      name = f'{self.stage.name}/evaluation/{split}'
      stage = RunDirectory(self.root).stage(name)
      if stage.committed:
        found[split] = stage.manifest['extra']['figures']
    return found

  def reads(self, tokenizer: Tokenizer) -> dict[str, Any] | None:
    """How a network of a learned reward reads a pair; see `rewards.exported`.

    Args:
      tokenizer: the run's.

    Returns:
      None for a policy.
    """
    if self.member is None:
      return None
    values = self.stage.manifest['config']
    lengths = (  # Rising; their names are sorted as text.
      value
      for name, value in values.items()
      if name.startswith('TrainReward.buckets.lengths[')
    )
    return {
      'max_source_length': values['TrainReward.pair.max_source_length'],
      'max_candidate_length': values['TrainReward.pair.max_candidate_length'],
      'separator_id': tokenizer.size,
      'bounded': values['TrainReward.rows'] != _PREFERENCES,
      'bucket_lengths': sorted(lengths),
      'tokens_per_batch': values['TrainReward.buckets.tokens_per_batch'],
      'member': self.member,
      'members': self.stage.manifest['counts']['members'],
      'stage_fingerprint': self.stage.fingerprint,
      'trained_on': self.stage.manifest['extra'].get('trained_on', []),
    }


def find(folder: epath.PathLike) -> RunPolicy | None:
  """What a folder such as `MODEL_DIR/grow_1/improve_3` holds.

  Args:
    folder: of a policy; or of a learned reward, `MODEL_DIR/reward`, or of one
      of its networks, `MODEL_DIR/reward/params_2`.

  Returns:
    None where the folder is no stage with parameters.

  Raises:
    ConfigurationError: it is one, but its run cannot be found; or it is a
      reward of several networks, which are listed.
    CorruptStateError: a `stage.json` or a file of the stage was altered.
  """
  folder = storage.absolute(folder)
  match = _MEMBER.fullmatch(folder.name)
  folder = folder.parent if match else folder
  if not (folder / _STAGE).exists():
    return None
  members = _members(folder)
  if not members and not (folder / PARAMS).is_dir():
    return None
  for root in folder.parents:
    if (root / _RUN).exists():
      break
  else:
    raise errors.ConfigurationError(
      f'--input={folder} is a stage, but no folder above it is a run directory'
      f' (has {_RUN}): give it in its run, or its {PARAMS}/ with --gin_file for'
      ' the size.'
    )
  stage = RunDirectory(root).stage(str(folder.relative_to(root)))
  stage.verify()
  if not members:
    return RunPolicy(root, stage, _config(root, stage))
  member = int(match[1]) if match else members[0]
  if match is None and len(members) > 1:
    folders = ', '.join(
      str(folder / train_reward.params_folder(i)) for i in members
    )
    raise errors.ConfigurationError(
      f'--input={folder} holds {len(members)} networks, whose mean is the'
      f' reward: convert each of {folders}.'
    )
  config = read_config(_renamed(stage.manifest['config']))
  return RunPolicy(root, stage, config, member)


def _members(folder: epath.Path) -> list[int]:
  """The numbers of the networks of a learned reward."""
  names = (path.name for path in folder.iterdir())
  return sorted(
    int(match[1]) for name in names if (match := _MEMBER.fullmatch(name))
  )


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
  """The shape of a reward's networks, named as that of a policy is."""
  prefix = 'TrainReward.model.'
  return {
    f'T5Config.{name.removeprefix(prefix)}': value
    for name, value in values.items()
    if name.startswith(prefix)
  }


def _lineage(root: epath.Path, stage: Stage) -> list[Stage]:
  """The stages that made a policy, itself first: each started from the next."""
  out = [stage]
  while True:
    made_from = out[-1].manifest['inputs']
    twin = out[-1].name.partition('/')[2]  # Of a control, which it reads too.
    above = [
      name
      for name in made_from
      if name != twin and (name == 'supervised' or '/improve_' in name)
    ]
    if not above:
      return out
    out.append(stage_of(root, above[0], made_from[above[0]]))


def stage_of(
  root: epath.Path, name: str, fingerprint: str | None = None
) -> Stage:
  """The committed stage of that name, in a run or in what it branched from.

  Args:
    root: the run.
    name: of the stage.
    fingerprint: its fingerprint; runs that this one branched from in different
      ways may each have a stage of the name. None: the first that is found.

  Raises:
    ConfigurationError: it is in none of them.
  """
  seen: list[epath.Path] = []
  roots = [epath.Path(root)]
  while roots:
    root = roots.pop(0)
    seen.append(root)
    stage = RunDirectory(root).stage(name)
    if stage.committed and fingerprint in (None, stage.fingerprint):
      return stage
    roots += [path for path in _branched_from(root) if path not in seen]
  raise errors.ConfigurationError(
    f'stage {name} is in none of {", ".join(map(str, seen))}: bring back the'
    ' run that this one branched from (SUPERVISED_FROM, REWARD_FROM,'
    ' GROW_FROM).'
  )


def _branched_from(root: epath.Path) -> list[epath.Path]:
  path = root / _TEXTS[0]
  if not path.exists():
    return []
  out = []
  for _, text in _FROM.findall(_CONTINUED.sub('', path.read_text())):
    try:
      value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
      continue  # Another macro's value, which a stage cannot be read from.
    if isinstance(value, str):
      out.append(storage.absolute(value))
  return out


def _config(root: epath.Path, stage: Stage) -> T5Config:
  """The shape that a stage states, or else that its run's BC was made with."""
  values = stage.manifest['config']
  if 'T5Config.vocab_size' not in values:
    values = _lineage(root, stage)[-1].manifest['config']
  return read_config(values)


def read_config(values: Mapping[str, Any]) -> T5Config:
  """The `T5Config.…` among the values that a stage was made with.

  Raises:
    ConfigurationError: they are not whole, or another version's.
  """
  fields: dict[str, Any] = {}
  for name, value in values.items():
    prefix, _, field = name.partition('.')
    if prefix == 'T5Config' and field:
      field, bracket, _ = field.partition('[')
      if bracket:
        fields.setdefault(field, []).append(value)
      else:
        fields[field] = value
  known = {field.name for field in dataclasses.fields(T5Config)}
  unknown = sorted(set(fields) - known)
  if unknown or 'vocab_size' not in fields:
    problem = f'no field {unknown[0]}' if unknown else 'no vocab_size'
    raise errors.ConfigurationError(
      f'the stage states {problem} of T5Config: convert it with the version of'
      ' rest_jax that made it.'
    )
  return T5Config(**fields)
