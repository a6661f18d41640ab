"""Recognises a checkpoint, whoever wrote it, and reads its parameters."""

import dataclasses
import hashlib
import re
from typing import Literal

from etils import epath
from flax import traverse_util

from rest_jax import errors, storage
from rest_jax.checkpoint import (
  huggingface,
  native,
  restoring,
  t5x,
  trained_in,
)
from rest_jax.models.config import T5Config
from rest_jax.types import Params

Format = Literal['native', 't5x', 'huggingface']

_STAGE_PARAMS = 'params'  # Where a stage of a run keeps its policy.
_T5X_CONFIG = 'config.json'  # Ours, of T5Config's fields.
_STEP = re.compile(r'checkpoint_(\d+)')
# A larger file is known by its size and every 16th MiB: any training changes
# all of it, and reading 45 GB at each start of a run would take minutes.
_WHOLE_FILE = 256 << 20
_SAMPLE, _STRIDE = 1 << 20, 16 << 20


@dataclasses.dataclass(frozen=True)
class Found:
  """A checkpoint.

  Attributes:
    format: who wrote it.
    path: its folder, or the file that it is.
    note: what was chosen among several; '' where there was no choice.
  """

  format: Format
  path: epath.Path
  note: str = ''


def find(
  path: storage.PathLike, binding: str = 'INITIAL_CHECKPOINT_PATH'
) -> Found:
  """Finds the checkpoint that a path means.

  Args:
    path: of a checkpoint, of a folder with several (`checkpoint_N` of T5X, or
      numbers of ours; the last is taken), or of a stage of a run.
    binding: where the path was given, for errors.

  Raises:
    ConfigurationError: there is none.
  """
  given = epath.Path(path)
  for folder in (given, given / _STAGE_PARAMS):
    if native.is_checkpoint(folder):
      return Found('native', folder)
  own = native.Checkpoints(given)
  step = own.latest()
  if step is not None:
    return Found('native', own.path(step), _chosen(given, str(step), own))
  if huggingface.is_checkpoint(given):
    return Found('huggingface', given)
  if t5x.is_checkpoint(given):
    return Found('t5x', given)
  steps = _t5x_steps(given)
  if steps:
    last = steps[max(steps)]
    note = f'{given} holds {len(steps)} checkpoints: {last.name} is taken'
    return Found('t5x', last, note if len(steps) > 1 else '')
  raise errors.ConfigurationError(
    f"{binding} = '{path}' holds no checkpoint: neither one of rest_jax"
    ' (checkpoint.json, or a stage of a run), nor of T5X (checkpoint,'
    ' checkpoint_N), nor of Hugging Face (config.json with safetensors): give'
    ' the folder of one.'
  )


def check_names(
  found: Found, abstract: Params, *, tokenizer_size: int | None = None
) -> None:
  """Holds names and shapes against the model's; reads no array.

  Raises:
    ConfigurationError: they are not those of `abstract`; all of it is listed.
    CorruptStateError, DataError: its index or headers are missing or damaged.
  """
  if found.format == 'native':
    native.check_initial(found.path, abstract)
    return
  reader = huggingface if found.format == 'huggingface' else t5x
  wanted = traverse_util.flatten_dict(abstract, sep='/')
  shapes = {name: leaf.shape for name, leaf in wanted.items()}
  restoring.check(reader.Source(found.path), shapes, tokenizer_size)


def restore(
  found: Found, abstract: Params, *, tokenizer_size: int | None = None
) -> Params:
  """Reads a checkpoint's parameters, straight into the shards of `abstract`.

  Args:
    found: the checkpoint.
    abstract: nested dict of `jax.ShapeDtypeStruct`.
    tokenizer_size: ids of the tokenizer, for which there must be embeddings.

  Raises:
    ConfigurationError: names or shapes are not those of `abstract`.
    CorruptStateError: a file of ours was altered.
    DataError: a file of another program is missing or damaged.
  """
  if found.format == 'native':
    return native.restore_initial(found.path, abstract)
  reader = huggingface if found.format == 'huggingface' else t5x
  return reader.restore_params(
    found.path, abstract, tokenizer_size=tokenizer_size
  )


def model(
  path: str | None,
  *,
  dropout_rate: float | None = None,
  dtype: str = 'float32',
  float32_attention_logits: bool = False,
  remat: str = 'none',
  scan_layers: bool = False,
) -> T5Config:
  """The shape of the model in a checkpoint that tells it.

  Those of Hugging Face do (`config.json`), and those that rest_jax wrote for
  T5X; T5X's own do not.

  Args:
    path: of the checkpoint, as `INITIAL_CHECKPOINT_PATH`.
    dropout_rate: None takes the checkpoint's.
    dtype: of activations; see `T5Config`, as for those below.
    float32_attention_logits: whether attention logits are float32 in any case.
    remat: 'none', 'minimal' or 'full'.
    scan_layers: whether training compiles all layers as one loop.

  Raises:
    ConfigurationError: there is no such checkpoint, or a model that rest_jax
      cannot run.
    DataError: a file of it is missing or damaged.
  """
  if path is None:
    raise errors.ConfigurationError(
      'INITIAL_CHECKPOINT_PATH = None, and the model takes its shape from it:'
      ' give the folder of a checkpoint.'
    )
  found = find(path)
  config = read_config(found)
  return dataclasses.replace(
    config,
    dropout_rate=config.dropout_rate if dropout_rate is None else dropout_rate,
    dtype=dtype,
    float32_attention_logits=float32_attention_logits,
    remat=remat,
    scan_layers=scan_layers,
  )


def read_config(found: Found) -> T5Config:
  """The shape of a checkpoint's model; see `model`."""
  if found.format == 'huggingface':
    return huggingface.read_config(found.path)
  try:
    fields = storage.read_json(found.path / _T5X_CONFIG)
    return T5Config(**fields)
  except (OSError, errors.CorruptStateError, TypeError) as error:
    raise errors.ConfigurationError(
      f'{found.path} does not tell the shape of its model (no readable'
      f' {_T5X_CONFIG} of rest_jax): include the file of its size, such as'
      " 'models/t5_1_1_small.gin'."
    ) from error


def check_model(found: Found, config: T5Config) -> None:
  """Holds a model against a checkpoint's own, in what no shape would show.

  A checkpoint that does not tell its model is passed over.

  Raises:
    ConfigurationError: its parameters are those of another function.
    DataError: a file of it is missing or damaged.
  """
  if found.format == 'native':
    origin = trained_in.TrainedIn.find(found.path)
    if origin is not None:
      origin.check_model(config)
  if found.format == 'huggingface':
    told = huggingface.CONFIG
  elif (found.path / _T5X_CONFIG).exists():
    told = _T5X_CONFIG
  else:
    return
  try:
    own = read_config(found)
  except errors.ConfigurationError:
    if found.format != 'huggingface':  # Another program's file.
      return
    raise
  for field in trained_in.UNSEEN:
    ours, theirs = getattr(config, field), getattr(own, field)
    if trained_in.canonical(ours) != trained_in.canonical(theirs):
      raise errors.ConfigurationError(
        f'T5Config.{field} = {ours!r}, and {found.path / told} says'
        f" {theirs!r}: take the checkpoint's, or all of its model by"
        " 'models/from_checkpoint.gin'."
      )


def fingerprint(found: Found, *, hidden: bool = False) -> str:
  """SHA-256 that tells whether a checkpoint has been changed.

  It covers the names and sizes of all files, what small files hold, and every
  16th MiB of those above 256 MiB. A checkpoint of ours is known by its index,
  which has the checksums of all its files.

  Args:
    found: the checkpoint.
    hidden: whether what is hidden in a folder of Hugging Face counts, such as
      .git, where reading changes files; version 0.1 counted it.
  """
  if found.format == 'native':
    return storage.checksum(native.index_path(found.path))[1]
  digest = hashlib.sha256()
  for name, path in sorted(_files(found.path).items()):
    if name.startswith('.') and found.format == 'huggingface' and not hidden:
      continue
    size = path.stat().length
    digest.update(f'{name}\n{size}\n'.encode())
    with path.open('rb') as file:
      for start in range(0, size, _stride(size)):
        file.seek(start)
        digest.update(file.read(min(_SAMPLE, size - start)))
  return digest.hexdigest()


def _stride(size: int) -> int:
  return _SAMPLE if size <= _WHOLE_FILE else _STRIDE


def _chosen(folder: epath.Path, name: str, own: native.Checkpoints) -> str:
  count = len(own.steps())
  return f'{folder} holds {count} checkpoints: {name} is taken' * (count > 1)


def _t5x_steps(folder: epath.Path) -> dict[int, epath.Path]:
  if not folder.is_dir():
    return {}
  return {
    int(match.group(1)): path
    for path in folder.iterdir()
    if (match := _STEP.fullmatch(path.name)) and t5x.is_checkpoint(path)
  }


def _files(path: epath.Path, prefix: str = '') -> dict[str, epath.Path]:
  """Relative name → file, of a folder and all folders in it."""
  if not path.is_dir():
    return {path.name: path}
  files = {}
  for child in path.iterdir():
    if child.is_dir():
      files |= _files(child, f'{prefix}{child.name}/')
    else:
      files[prefix + child.name] = child
  return files
