"""The run that a checkpoint of ours lies in, and what it tells of it.

The shapes of parameters do not show which text an id stands for, nor which
activation a layer has; the manifests beside them do. A run that took its data
or BC from another one (SUPERVISED_FROM, GROW_FROM) does not tell.
"""

import dataclasses
from typing import Any

from etils import epath

from rest_jax import errors, storage
from rest_jax.models.config import T5Config

_RUN, _STAGE, _DATA = 'run.json', 'stage.json', 'data'
_MODEL = 'tokenizer.model'
# Fields of a model that change what it computes, and none of its parameters.
UNSEEN = ('mlp_activations', 'relpos_max_distance', 'eos_id')


@dataclasses.dataclass(frozen=True)
class TrainedIn:
  """What a run says of a checkpoint in it.

  Attributes:
    folder: the run directory.
    tokenizer: fingerprint of its tokenizer; None where it does not tell.
    model: name of a field of `T5Config` → value, of those in `UNSEEN` that it
      tells.
  """

  folder: epath.Path
  tokenizer: str | None
  model: dict[str, Any]

  @classmethod
  def find(cls, checkpoint: epath.Path) -> 'TrainedIn | None':
    """The run whose stage a checkpoint is, if it lies in any."""
    for folder in checkpoint.parents:
      if str(folder) in ('/', 'gs://'):
        break
      if (folder / _RUN).exists():
        data = _manifest(folder / _DATA)
        tokenizer = data.get('extra', {}).get('tokenizer', {})
        bindings = _manifest(folder / 'supervised').get('config', {})
        return cls(folder, tokenizer.get('fingerprint'), _unseen(bindings))
    return None

  def check_tokenizer(self, fingerprint: str) -> None:
    """Raises ConfigurationError where ids stand for other texts there."""
    if self.tokenizer not in (None, fingerprint):
      raise errors.ConfigurationError(
        f'INITIAL_CHECKPOINT_PATH is a policy of {self.folder}, whose tokenizer'
        ' (or its source_prefix) is another than that of the data here: its ids'
        f' stand for other texts. Bind {self._own_tokenizer()} in another'
        ' MODEL_DIR; if that is meant, start from a copy of the checkpoint'
        ' outside of the run.'
      )

  def _own_tokenizer(self) -> str:
    """The bindings of the run's tokenizer."""
    settings = self.folder / _DATA / 'tokenizer.json'
    kept = storage.read_json(settings) if settings.exists() else {}
    name, fields = 'GivenTokenizer', {'path': str(self.folder / _DATA / _MODEL)}
    if kept.get('tokenizer') == 'bytes':
      name, fields = 'Bytes', {}
    for field in ('extra_ids', 'source_prefix'):
      if kept.get(field):
        fields[field] = kept[field]
    return ', '.join(
      [
        f'TOKENIZER = @prepare.{name}()',
        *(f'prepare.{name}.{k} = {v!r}' for k, v in fields.items()),
      ]
    )

  def check_model(self, config: T5Config) -> None:
    """Raises ConfigurationError where its model is another function."""
    for name, theirs in self.model.items():
      if canonical(getattr(config, name)) != canonical(theirs):
        raise errors.ConfigurationError(
          f'T5Config.{name} = {getattr(config, name)!r}, and the run'
          f' {self.folder}, whose policy INITIAL_CHECKPOINT_PATH is, has'
          f" {theirs!r}: bind that run's."
        )


def canonical(value: Any) -> Any:
  """With one name for the function that has two."""
  if isinstance(value, tuple):
    return tuple('silu' if name == 'swish' else name for name in value)
  return value


def _manifest(folder: epath.Path) -> dict[str, Any]:
  path = folder / _STAGE
  return storage.read_json(path) if path.exists() else {}


def _unseen(bindings: dict[str, Any]) -> dict[str, Any]:
  """`UNSEEN` from a stage's recorded bindings, where a tuple is flattened."""
  out = {}
  for name in UNSEEN:
    key = f'T5Config.{name}'
    if key in bindings:
      out[name] = bindings[key]
    elif f'{key}[0]' in bindings:
      items = [v for k, v in bindings.items() if k.startswith(f'{key}[')]
      out[name] = tuple(items)
  return out
