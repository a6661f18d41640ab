"""Convert: a checkpoint or a run's policy into another program's format.

What is written stands under a temporary name until its proof is complete, and
is then renamed: an output is whole and proven, or not there.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from flax import traverse_util

from rest_jax import model_card, proof, run_policy, storage
from rest_jax.checkpoint import (
  exports,
  formats,
  huggingface,
  huggingface_export,
  native,
  restoring,
  t5x,
  t5x_export,
  tokenizer_export,
)
from rest_jax.context import PARAMS
from rest_jax.data import tokenizer as tokenizer_lib
from rest_jax.errors import ConfigurationError, DataError
from rest_jax.models.config import T5Config
from rest_jax.policy import Policy
from rest_jax.rewards import exported
from rest_jax.sharding import Layout

FORMATS = ('huggingface', 't5x', 'native')
_READERS = {
  'huggingface': huggingface.Source,
  't5x': t5x.Source,
  'native': native.Source,
}
_STEP = re.compile(r'checkpoint_(\d+)')


@dataclasses.dataclass(frozen=True)
class _Input:
  """What is converted.

  Attributes:
    format: 'run', or one of `FORMATS`.
    folder: as given.
    source: its parameters.
    config: shape of its network.
    tokenizer: that belongs to it; None where none was found.
    run: the policy, where it is one of a run.
    step: training updates, as far as it tells.
    theirs: file name → content of Hugging Face's configurations in it.
    reward: how a learned reward reads a pair; see `rewards.exported`.
  """

  format: str
  folder: epath.Path
  source: restoring.Source
  config: T5Config
  tokenizer: tokenizer_lib.Tokenizer | None = None
  run: run_policy.RunPolicy | None = None
  step: int = 0
  theirs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  reward: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class _Model:
  """An input as the output has it.

  Attributes:
    source: its parameters; of a reward model with a logit for its read-out,
      unless the output is our own format.
    config: shape of its network.
    score_id: for a reward model, the id whose logit is its value.
  """

  source: restoring.Source
  config: T5Config
  score_id: int | None


def run(
  source: str,
  target: str,
  output_format: str | None,
  verify: str = 'logits',
  model: T5Config | None = None,
) -> None:
  """Converts a checkpoint, proves it, and only then gives it its name.

  Args:
    source: a folder of Hugging Face, a checkpoint of T5X or of rest_jax, or a
      policy of a run, such as `MODEL_DIR/grow_1/improve_3`, or its learned
      reward, `MODEL_DIR/reward`.
    target: the folder to make; nothing may be there.
    output_format: one of `FORMATS`.
    verify: 'logits' for tensors and logits; 'tensors' for these alone, which
      needs no more memory than the largest takes.
    model: shape of the network, for inputs that do not tell it.

  Raises:
    ConfigurationError: a flag is missing or cannot be, or the checkpoint is not
      of the model that it says; all differences are listed.
    DataError: the input is no checkpoint, or a file of it is damaged.
    CorruptStateError: the proof failed, or a file of a run was altered.
    StorageError: the output cannot be written.
  """
  _check_flags(source, target, output_format)
  given = _open(epath.Path(source), model)
  written = _as_written(given, output_format)
  _check(given, written)
  final = epath.Path(target)
  temporary = final.parent / f'.{final.name}.tmp-{os.getpid()}'
  with storage.reporting(final.parent):
    temporary.mkdir(parents=True, exist_ok=False)
  try:
    _write(temporary, given, written, output_format)
    found = _prove(temporary, given, written, output_format, verify)
    card = model_card.text(
      source,
      run=given.run,
      proof=found.lines,
      score_id=written.score_id,
      source_prefix=given.tokenizer.source_prefix if given.tokenizer else '',
      reward=given.reward,
    )
    storage.write_atomic(temporary / 'README.md', card.encode())
    with storage.reporting(final):
      storage.sync_folder(temporary)
      temporary.rename(final)
      storage.sync(final.parent)
  finally:
    temporary.rmtree(missing_ok=True)
  for line in found.lines:
    print(line)
  if not any((final / name).exists() for name in tokenizer_export.FILES):
    print('no tokenizer lies beside the input: put it beside the output')
  print(f'{given.format} → {output_format}: {final}')


def _check_flags(source: str, target: str, output_format: str | None) -> None:
  for flag, value in (('input', source), ('output', target)):
    if value == '-':
      raise ConfigurationError(
        f'--run_mode=convert needs --{flag}=PATH, a folder.'
      )
  if output_format not in FORMATS:
    raise ConfigurationError(
      f'--run_mode=convert needs --format, one of {", ".join(FORMATS)}.'
    )
  if not storage.is_local(target):
    raise ConfigurationError(
      f'--output={target} must be a local folder; copy it to the object store'
      ' when it is there.'
    )
  if epath.Path(target).exists():
    raise ConfigurationError(
      f'--output={target} exists already; give another path, or remove it.'
    )
  if not epath.Path(source).exists():
    raise DataError(f'--input={source} is not there: check the path')


# -- Reading ------------------------------------------------------------------


def _open(path: epath.Path, model: T5Config | None) -> _Input:
  """Recognises the input's format and opens it; no array is read yet."""
  policy = run_policy.find(path.parent if path.name == PARAMS else path)
  if policy is not None:
    tokenizer = tokenizer_lib.load_tokenizer(policy.data.folder)
    return _Input(
      'run',
      path,
      native.Source(policy.params),
      policy.config,
      tokenizer,
      policy,
      policy.updates,
      reward=policy.reads(tokenizer),
    )
  found = formats.find(path, '--input')
  if found.format == 'huggingface':
    return _open_huggingface(path)
  source = _READERS[found.format](found.path)
  step = _STEP.fullmatch(found.path.name)
  return _Input(
    found.format,
    found.path,
    source,
    model or _config_beside(found),
    tokenizer_export.load(found.path) if found.path.is_dir() else None,
    step=source.extra.get('step', 0)
    if isinstance(source, native.Source)
    else int(step[1] if step else 0),
    reward=exported.read_form(found.path),
  )


def _open_huggingface(path: epath.Path) -> _Input:
  source = huggingface.Source(path)
  theirs = {
    name: storage.read_json(path / name)
    for name in ('config.json', 'generation_config.json')
    if (path / name).exists()
  }
  return _Input(
    'huggingface',
    path,
    source,
    source.config,
    tokenizer_export.load(path),
    theirs=theirs,
    reward=exported.read_form(path),
  )


def _config_beside(found: formats.Found) -> T5Config:
  """The shape in a `config.json` with T5Config's fields, in or beside."""
  for folder in (found.path, found.path.parent):
    if (folder / t5x_export.CONFIG).exists():
      return formats.read_config(dataclasses.replace(found, path=folder))
  raise ConfigurationError(
    f'--input={found.path} does not tell the size of its model; add'
    ' --gin_file=models/t5_1_1_base.gin or another, or put a config.json with'
    ' the fields of T5Config beside it.'
  )


def _as_written(given: _Input, output_format: str) -> _Model:
  if output_format == 'native':
    return _Model(given.source, given.config, None)
  config = given.theirs.get('config.json', given.reward or {})
  score_id = config.get(huggingface.SCORE_ID)
  model = _Model(*exports.as_model(given.source, given.config, score_id))
  if given.reward is not None and model.score_id is None:
    # T5X's tree has the logit already.
    return dataclasses.replace(model, score_id=score_id)
  return model


def _check(given: _Input, written: _Model) -> None:
  """Holds names and shapes against the model's before anything is written."""
  source, config, _ = exports.as_model(written.source, written.config)
  wanted = traverse_util.flatten_dict(
    Policy(config, Layout(data=1)).abstract_params(), sep='/'
  )
  restoring.check(
    source,
    {name: leaf.shape for name, leaf in wanted.items()},
    given.tokenizer.size if given.tokenizer is not None else None,
  )


# -- Writing ------------------------------------------------------------------


def _write(
  folder: epath.Path, given: _Input, written: _Model, output_format: str
) -> None:
  """Writes the checkpoint, its tokenizer and its run's configuration."""
  config = written.config
  if output_format == 'huggingface':
    huggingface_export.write(
      folder,
      config,
      written.source,
      origin=given.theirs.get('config.json'),
      generation=_generation(given),
      score_id=written.score_id,
    )
  elif output_format == 't5x':
    t5x_export.write(folder, config, written.source, given.step)
  else:
    _write_native(folder, written, given.step)
  _write_tokenizer(folder, given, output_format)
  if given.reward is not None:
    reward = dict(given.reward)
    if written.score_id is not None:
      reward[huggingface.SCORE_ID] = written.score_id
    storage.write_json_atomic(folder / exported.FILE, reward)
  if given.run is not None:
    for name, content in given.run.texts.items():
      storage.write_atomic(folder / name, content)


def _generation(given: _Input) -> dict[str, Any]:
  """How transformers is to generate: what ours never draws, it shall not."""
  origin, eos_id = (
    given.theirs.get('generation_config.json'),
    given.config.eos_id,
  )
  if given.run is None or given.tokenizer is None or given.reward is not None:
    return huggingface_export.generation_config(origin, eos_id=eos_id)
  beyond = range(given.tokenizer.size, given.config.vocab_size)
  length = given.run.data.manifest['config'].get('Data.max_target_length')
  return huggingface_export.generation_config(
    origin, (tokenizer_lib.PAD_ID, *beyond), length, eos_id
  )


def _write_native(folder: epath.Path, written: _Model, step: int) -> None:
  abstract = traverse_util.unflatten_dict(
    {
      name: jax.ShapeDtypeStruct(shape, jnp.float32)
      for name, shape in written.source.shapes.items()
    },
    sep='/',
  )
  params = restoring.restore(written.source, abstract)
  native.save_params(folder, params, {'step': step})
  storage.write_json_atomic(
    folder / t5x_export.CONFIG, exports.plain_config(written.config)
  )


def _write_tokenizer(
  folder: epath.Path, given: _Input, output_format: str
) -> None:
  copied: list[str] = []
  if given.run is None:
    copied = tokenizer_export.copy(given.folder, folder)
  if given.tokenizer is None:  # One that only others read may be there.
    return
  if output_format == 'huggingface':
    if tokenizer_export.CONFIG not in copied:
      tokenizer_export.write_huggingface(folder, given.tokenizer)
  elif given.run is not None:
    given.tokenizer.save(folder)


def _prove(
  folder: epath.Path,
  given: _Input,
  written: _Model,
  output_format: str,
  verify: str,
) -> proof.Proof:
  """Reads back what was written, and compares."""
  read_back = _READERS[output_format](folder)
  if output_format != 'native':
    read_back, _, _ = exports.as_model(
      read_back, written.config, written.score_id
    )
  found = proof.compare_tensors(written.source, read_back)
  if verify == 'tensors':
    return found
  source, config, score_id = exports.as_model(written.source, written.config)
  read_back, _, _ = exports.as_model(read_back, written.config, score_id)
  lines = proof.compare_logits(
    source,
    read_back,
    config,
    origin=given.folder if given.format == 'huggingface' else None,
    export=folder if output_format == 'huggingface' else None,
  )
  return dataclasses.replace(found, logits=lines)
