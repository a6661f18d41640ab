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


def check_alike(model_dir: epath.Path, config: str) -> None:
  """Makes sure that all processes run the same, on the same files.

  Args:
    model_dir: the run directory.
    config: the configuration of this process, as text.

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
    },
  )
  path = model_dir / '.hosts'
  mark = hosts.on_first(lambda: _mark(path))
  seen = [mark]
  if not hosts.is_first():
    hosts.see(path)
    seen = [path.read_text()]
  hosts.check_same('MODEL_DIR', {'content of MODEL_DIR': seen[0]})


def _mark(path: epath.Path) -> str:
  """Leaves a mark by which the others know the folder."""
  mark = uuid.uuid4().hex
  storage.write_atomic(path, mark.encode())
  return mark


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
        out[binding] = formats.fingerprint(formats.find(path, binding))
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
