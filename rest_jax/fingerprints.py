"""What a run depends on, hashed: to tell when it is another, here or there."""

import pathlib
import uuid
from importlib import metadata

from etils import epath

import rest_jax
from rest_jax import hosts, storage
from rest_jax.checkpoint import formats
from rest_jax.errors import ConfigurationError, DataError
from rest_jax.run_directory import Stage
from rest_jax.stages import StagePlan

PACKAGES = (
    'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'seqio', 'grain',
    'numpy', 'pyarrow', 'sacrebleu', 'sentencepiece',
)  # fmt: skip


def check_alike(
  model_dir: epath.Path, config: str, command: str, *, read_only: bool
) -> None:
  """Makes sure that all processes run the same, on the same files.

  Args:
    model_dir: the run directory.
    config: the configuration of this process, as text.
    command: what it is to do with it, as text.
    read_only: whether the run directory must stay as it is.

  Raises:
    ConfigurationError: they do not; says which, and where they differ.
  """
  if hosts.count() == 1:
    return
  hosts.check_same(
    'what the processes run',
    {
      'version of the code': storage.fingerprint_of(
        [
          [path.name, storage.checksum(path)[1]]
          for path in sorted(
            pathlib.Path(rest_jax.__file__).parent.rglob('*.py')
          )
        ]
      ),
      'versions of packages': '\n'.join(
        f'{name} {metadata.version(name)}' for name in PACKAGES
      ),
      'configuration': config,
      'command': command,
    },
  )
  if read_only:
    return
  path = model_dir / '.hosts'
  mark = hosts.on_first(lambda: _mark(path))
  hosts.see(path, mark)
  hosts.gather('MODEL_DIR is seen by all', None)


def _mark(path: epath.Path) -> str:
  """Leaves a mark by which the others know the folder."""
  mark = uuid.uuid4().hex
  storage.write_atomic(path, mark.encode())
  return mark


def check_inputs(plan: StagePlan, stage: Stage) -> None:
  """Makes sure that all processes make a stage from the same.

  Each reads for itself what lies outside the run: checkpoints, and the folders
  of rewards, whose hashes are among their settings.

  Raises:
    ConfigurationError: they do not; says which, and where they differ.
    DataError: what it is made from cannot be read.
  """
  if hosts.count() == 1 or not plan.together:
    return
  if hosts.on_first(lambda: stage.committed):
    return
  settings = storage.canonical(dict(plan.config))
  hosts.check_same(
    f'what {plan.name} is made from',
    {
      f'content of {binding}': sha256
      for binding, sha256 in outside(plan, stage).items()
    }
    | {
      f'setting of {plan.name}': '\n'.join(
        f'{name} = {value!r}' for name, value in sorted(settings.items())
      )
    },
  )


def changed(plan: StagePlan, stage: Stage) -> dict[str, str] | None:
  """What a committed stage would have to be made from, where it was not.

  As far as that is known before what it reads is there: so a changed setting
  is found before hours of training that nothing could use.

  Returns:
    What `Stage.begin` refuses; None where settings and inputs are the same.
  """
  known = stage.manifest['inputs']
  inputs = {name: known.get(name, 'not made') for name in plan.inputs}
  for binding in (*plan.files, *plan.checkpoints):
    if binding in known:
      inputs[binding] = known[binding]
  same = stage.made_with(plan.config) and inputs == known
  return None if same else inputs


def _of_checkpoint(path: str, binding: str, known: str | None) -> str:
  """Its fingerprint; `known` where that is it by the rules of before."""
  found = formats.find(path, binding)
  now = formats.fingerprint(found)
  if known not in (None, now) and known == formats.fingerprint(
    found, hidden=True
  ):
    return known
  return now


def outside(plan: StagePlan, stage: Stage) -> dict[str, str]:
  """Binding → SHA-256 of what lies outside the run; see `StagePlan`.

  A committed stage can do without it.

  Raises:
    ConfigurationError, DataError: it cannot be read.
  """
  out = {}
  known = stage.manifest['inputs'] if stage.committed else {}
  for binding, path in (plan.files | plan.checkpoints).items():
    if stage.committed and binding not in known:
      continue  # Made before checkpoints had fingerprints.
    try:
      if binding in plan.files:
        out[binding] = storage.checksum(path)[1]
      else:
        before = stage.made_from.get(binding)
        out[binding] = _of_checkpoint(path, binding, before)
    except (OSError, ConfigurationError) as error:
      if not stage.committed:
        if isinstance(error, ConfigurationError):
          raise
        raise DataError(
          f'{binding} = {path!r} cannot be read'
          f' ({error.strerror or error}); check the path.'
        ) from error
      out[binding] = known.get(binding)
  return out
