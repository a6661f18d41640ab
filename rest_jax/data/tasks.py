"""Tasks: where parallel text comes from, as gin objects and as seqio tasks.

A task of ours gives raw rows; `tokenized` runs them through a seqio task made
of it, or through one that the user has registered. This is the only file that
imports seqio and TensorFlow, and only inside functions: that takes 6–14 s.
"""

import collections
import dataclasses
import importlib
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from rest_jax import errors
from rest_jax.data import numerals, splits, text

Row = Mapping[str, Any]
_EOS_ID = 1


@dataclasses.dataclass(frozen=True)
class BitextTask:
  """Line-aligned text files, plain or '.gz'.

  Attributes:
    data_dir: folder of the files.
    source_language: code, e.g. 'de'; it stands for `{lang}` in file names.
    target_language: code, e.g. 'en'.
    files: split → file name, e.g. {'train': 'train.{lang}.gz'}.
    documents: split → file that names the document of every line; may lack
      splits.
    monolingual: splits that have sources only.
    empty: 'error' or 'skip' at an empty line.
    name: of the seqio task.
  """

  data_dir: str
  source_language: str
  target_language: str
  files: dict[str, str]
  documents: dict[str, str] = dataclasses.field(default_factory=dict)
  monolingual: tuple[str, ...] = ()
  empty: str = 'error'
  name: str = 'bitext'

  def rows(
      self, split: str, counts: collections.Counter | None = None
  ) -> Iterator[Row]:
    """Raw rows of a split, as `text.read_aligned` gives them."""
    source = self._path(split, self.source_language)
    target = (
        None
        if split in self.monolingual
        else self._path(split, self.target_language)
    )
    document = self.documents.get(split)
    if document is not None:
      document = epath.Path(self.data_dir) / document
    return text.read_aligned(
        source, target, document, empty=self.empty, counts=counts
    )

  def count(self, split: str) -> int:
    """Lines of a split, empty ones counted."""
    return text.count_lines(self._path(split, self.source_language))

  def _path(self, split: str, language: str) -> epath.Path:
    name = _file_of(self, split)
    if '{lang}' not in name and split not in self.monolingual:
      raise errors.ConfigurationError(
          f'BitextTask.files[{split!r}] = {name!r} names one file for two'
          " languages: write '{lang}' where they differ, or list the split in"
          ' BitextTask.monolingual'
      )
    return epath.Path(self.data_dir) / name.replace('{lang}', language)


@dataclasses.dataclass(frozen=True)
class TsvTask:
  """Tab-separated files without header and quoting, plain or '.gz'.

  Attributes:
    data_dir: folder of the files.
    source_language: code, e.g. 'zh'.
    target_language: code, e.g. 'en'.
    files: split → file name, e.g. {'train': 'train.tsv'}.
    columns: what stands in each column, as `text.read_tsv` takes it.
    empty: 'error' or 'skip' at an empty cell.
    name: of the seqio task.
  """

  data_dir: str
  source_language: str
  target_language: str
  files: dict[str, str]
  columns: tuple[str, ...] = ('source', 'target')
  empty: str = 'error'
  name: str = 'tsv'

  def rows(
      self, split: str, counts: collections.Counter | None = None
  ) -> Iterator[Row]:
    """Raw rows of a split, as `text.read_tsv` gives them."""
    path = self._path(split)
    return text.read_tsv(path, self.columns, empty=self.empty, counts=counts)

  def count(self, split: str) -> int:
    """Lines of a split, empty ones counted."""
    return text.count_lines(self._path(split))

  def _path(self, split: str) -> epath.Path:
    return epath.Path(self.data_dir) / _file_of(self, split)


@dataclasses.dataclass(frozen=True)
class NumeralsTask:
  """The embedded task: German number expressions → English.

  Attributes:
    num_train: pairs of 'train', a share of which is wrong.
    num_grow: sources of 'grow', which have no references.
    num_dev: pairs of 'dev', all right.
    num_test: pairs of 'test', all right.
    wrong_share: probability that a training reference is wrong, in [0, 1].
    seed: of the draws.
    name: of the seqio task.
  """

  num_train: int = 3000
  num_grow: int = 6000
  num_dev: int = 600
  num_test: int = 600
  wrong_share: float = 0.25
  seed: int = 0
  name: str = 'numerals'

  source_language = 'de'
  target_language = 'en'

  def rows(
      self, split: str, counts: collections.Counter | None = None
  ) -> Iterator[Row]:
    """Raw rows of a split; the domain is the kind of expression."""
    del counts  # Nothing is skipped.
    wrong_share = self.wrong_share if split == 'train' else 0.0
    generated = numerals.generate(
        split, self.count(split), self.seed, wrong_share
    )
    for number, row in enumerate(generated):
      yield {
          'id': number,
          'source': row['source'],
          'target': None if split == 'grow' else row['target'],
          'document': '',
          'domain': row['domain'],
      }

  def count(self, split: str) -> int:
    """Rows of a split."""
    return getattr(self, f'num_{split}', 0)


@dataclasses.dataclass(frozen=True)
class SeqioTask:
  """A seqio task or mixture that the user has registered.

  Its features must be 'inputs' and 'targets' with one vocabulary, of
  SentencePiece or bytes; 'doc_id' and 'domain' are kept where a task has them.

  Attributes:
    mixture_or_task_name: its name in seqio's registry.
    mixture_or_task_module: module to import first, which registers it.
    source_language: code, e.g. 'de'.
    target_language: code, e.g. 'en'.
    seed: of a mixture's interleaving.
  """

  mixture_or_task_name: str
  source_language: str
  target_language: str
  mixture_or_task_module: str | None = None
  seed: int = 0


Task = BitextTask | TsvTask | NumeralsTask | SeqioTask


def _file_of(task: BitextTask | TsvTask, split: str) -> str:
  if split not in task.files:
    raise errors.ConfigurationError(
        f'{type(task).__name__}.files has no split {split!r}, only'
        f' {sorted(task.files)}: add it or name another in Data'
    )
  return task.files[split]


def import_seqio():
  """seqio, with TensorFlow kept quiet and off the accelerators.

  Raises:
    ConfigurationError: seqio is not installed.
  """
  # TensorFlow and its friends warn at import, and would take all of a TPU's or
  # GPU's memory from jax.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      import seqio
      import tensorflow as tf
  except ImportError as error:
    raise errors.ConfigurationError(
        f'the data stage needs seqio ({error}): pip install seqio'
    ) from error
  for kind in ('GPU', 'TPU'):
    try:
      tf.config.set_visible_devices([], kind)
    except RuntimeError:
      break  # TensorFlow has started already, on what it was given then.
  return seqio


def find_seqio_task(task: SeqioTask):
  """The user's registered task or mixture.

  Raises:
    ConfigurationError: its module cannot be imported, or it is not registered,
      or has no features 'inputs' and 'targets' of one vocabulary.
  """
  seqio = import_seqio()
  if task.mixture_or_task_module:
    try:
      importlib.import_module(task.mixture_or_task_module)
    except ImportError as error:
      raise errors.ConfigurationError(
          f'MIXTURE_OR_TASK_MODULE {task.mixture_or_task_module!r} cannot be'
          f' imported ({error}): put its folder on PYTHONPATH'
      ) from error
  name = task.mixture_or_task_name
  try:
    found = seqio.get_mixture_or_task(name)
  except ValueError as error:
    raise errors.ConfigurationError(
        f'MIXTURE_OR_TASK_NAME {name!r} is not registered with seqio: name the'
        ' module that registers it in MIXTURE_OR_TASK_MODULE'
    ) from error
  features = found.output_features
  if not {'inputs', 'targets'} <= set(features):
    raise errors.ConfigurationError(
        f"seqio task {name!r} has the features {sorted(features)}: it needs"
        " 'inputs' and 'targets'"
    )
  if features['inputs'].vocabulary != features['targets'].vocabulary:
    raise errors.ConfigurationError(
        f'seqio task {name!r} has two vocabularies: T5 shares one'
    )
  return found


def tokenized(
    task: Task,
    part: splits.Slice,
    model_file: str | None = None,
    counts: collections.Counter | None = None,
) -> Iterator[Row]:
  """Tokenised rows of a slice of a split, through seqio.

  Args:
    task: any of the above.
    part: which rows.
    model_file: the SentencePiece model, or None for bytes; a `SeqioTask` brings
      its own vocabulary.
    counts: 'empty' counts rows that were left out for an empty side.

  Yields:
    {'source_id': number of the row in its split, 'doc_id', 'domain',
    'source', 'target' (None where there is none), 'source_tokens',
    'target_tokens' (None)}; tokens are lists of int that end with EOS.

  Raises:
    ConfigurationError, DataError: as the task's `rows`.
  """
  if isinstance(task, SeqioTask):
    yield from _registered_rows(task, part)
    return
  seqio = import_seqio()
  failures: list[Exception] = []
  name = _register(seqio, task, part, model_file, counts, failures)
  try:
    dataset = seqio.get_mixture_or_task(name).get_dataset(
        sequence_length=None, split=part.split, shuffle=False
    )
    for row in dataset.as_numpy_iterator():
      has_target = bool(row['targets_pretokenized'])
      yield {
          'source_id': int(row['id']),
          'doc_id': row['document'].decode(),
          'domain': row['domain'].decode(),
          'source': row['inputs_pretokenized'].decode(),
          'target': (
              row['targets_pretokenized'].decode() if has_target else None
          ),
          'source_tokens': row['inputs'].tolist(),
          'target_tokens': row['targets'].tolist() if has_target else None,
      }
  except Exception:
    # TensorFlow wraps what the rows raised; the first error is the cause.
    if failures:
      raise failures[0] from None
    raise
  finally:
    seqio.TaskRegistry.remove(name)


def _register(seqio, task, part, model_file, counts, failures) -> str:
  """Makes a seqio task of ours: rows → tokenise → append EOS."""
  import tensorflow as tf

  signature = {
      key: tf.TensorSpec((), tf.int64 if key == 'id' else tf.string)
      for key in ('id', 'inputs', 'targets', 'document', 'domain')
  }

  def rows() -> Iterator[Row]:
    try:
      for row in task.rows(part.split, counts):
        if row['id'] not in part:
          continue
        yield {
            'id': row['id'],
            'inputs': row['source'],
            'targets': row['target'] or '',
            'document': row['document'],
            'domain': row['domain'],
        }
    except Exception as error:
      failures.append(error)
      raise

  def dataset(split: str, shuffle_files: bool, seed: int | None = None):
    del split, shuffle_files, seed
    return tf.data.Dataset.from_generator(rows, output_signature=signature)

  vocabulary = (
      seqio.ByteVocabulary()
      if model_file is None
      else seqio.SentencePieceVocabulary(model_file)
  )
  feature = seqio.Feature(vocabulary=vocabulary, add_eos=True)
  name = f'rest_jax_{task.name}'
  if name in seqio.TaskRegistry.names():  # A reader that was not used up.
    seqio.TaskRegistry.remove(name)
  seqio.TaskRegistry.add(
      name,
      source=seqio.FunctionDataSource(dataset, splits=[part.split]),
      preprocessors=[seqio.preprocessors.tokenize,
                     seqio.preprocessors.append_eos],
      output_features={'inputs': feature, 'targets': feature},
  )
  return name


def _registered_rows(task: SeqioTask, part: splits.Slice) -> Iterator[Row]:
  """Rows of the user's seqio task, numbered in its own unshuffled order."""
  found = find_seqio_task(task)
  vocabulary = found.output_features['inputs'].vocabulary
  for number, row in enumerate(_registered_dataset(task, found, part.split)):
    if number not in part:
      if part.high is not None and number >= part.high:
        return
      continue
    sides = {}
    for side, feature in (('source', 'inputs'), ('target', 'targets')):
      tokens = _with_eos(row.get(feature, ()))
      written = row.get(f'{feature}_pretokenized')
      if isinstance(written, bytes):
        written = written.decode()
      # An empty side has its EOS alone.
      given = len(tokens) > 1
      sides[side] = (
          written or vocabulary.decode(tokens[:-1]) if given else None
      )
      sides[f'{side}_tokens'] = tokens if given else None
    yield {
        'source_id': number,
        'doc_id': row.get('doc_id', b'').decode(),
        'domain': row.get('domain', b'').decode(),
        **sides,
    }


def _registered_dataset(task: SeqioTask, found, split: str) -> Iterable[Row]:
  try:
    return found.get_dataset(
        sequence_length=None, split=split, shuffle=False, seed=task.seed
    ).as_numpy_iterator()
  except (ValueError, KeyError) as error:
    raise errors.ConfigurationError(
        f'seqio task {task.mixture_or_task_name!r} cannot give the split'
        f' {split!r} ({error}): it has {sorted(found.splits)}'
    ) from error


def _with_eos(tokens: Iterable[int]) -> list[int]:
  """Tokens without padding, ended by exactly one EOS."""
  tokens = [int(t) for t in np.asarray(tokens).ravel() if t != 0]
  while tokens and tokens[-1] == _EOS_ID:
    tokens.pop()
  return [*tokens, _EOS_ID]
