"""Corpora as seqio tasks, and seqio tasks that users have registered.

`tokenized` runs the raw rows of a corpus through a seqio task made of it, or
reads one that the user has registered.
"""

import collections
import dataclasses
import functools
import importlib
import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from rest_jax import errors
from rest_jax.data import seqio_library, splits
from rest_jax.data import tokenizer as tokenizer_lib
from rest_jax.data.corpora import BitextTask, NumeralsTask, Row, TsvTask

# Rows that pass into and out of TensorFlow at a time; one by one costs twice
# the time.
_CHUNK = 512
# What a row has beside its tokens.
_KEPT = ('inputs_pretokenized', 'targets_pretokenized', 'doc_id', 'domain')


@dataclasses.dataclass(frozen=True)
class SeqioTask:
  """A seqio task or mixture that the user has registered.

  Its features must be 'inputs' and 'targets' with one vocabulary, of
  SentencePiece or bytes; 'doc_id' and 'domain' are kept where a task has them.
  A mixture ends where its first task does.

  Attributes:
    mixture_or_task_name: its name in seqio's registry.
    mixture_or_task_module: module to import first, which registers it.
    source_language: code, e.g. 'de'.
    target_language: code, e.g. 'en'.
    datasets: as of `BitextTask`.
  """

  mixture_or_task_name: str
  source_language: str
  target_language: str
  mixture_or_task_module: str | None = None
  # Not compared: the rows are the same, whatever they are called.
  datasets: dict[str, tuple[str, ...]] = dataclasses.field(
    default_factory=dict, compare=False
  )


Task = BitextTask | TsvTask | NumeralsTask | SeqioTask


def find_seqio_task(task: SeqioTask):
  """The user's registered task or mixture.

  Raises:
    ConfigurationError: its module cannot be imported, or it is not registered,
      or has no features 'inputs' and 'targets' of one vocabulary.
  """
  seqio = seqio_library.import_seqio()
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
      f'seqio task {name!r} has the features {sorted(features)}: it needs'
      " 'inputs' and 'targets'"
    )
  if features['inputs'].vocabulary != features['targets'].vocabulary:
    raise errors.ConfigurationError(
      f'seqio task {name!r} has two vocabularies: T5 shares one'
    )
  return found


def seqio_tokenizer(task: SeqioTask) -> tokenizer_lib.Tokenizer:
  """The vocabulary of a user's seqio task, without seqio."""
  found = find_seqio_task(task)
  vocabulary = found.output_features['targets'].vocabulary
  path = getattr(vocabulary, 'sentencepiece_model_file', None)
  if path is not None:
    return tokenizer_lib.SentencePieceTokenizer(path, vocabulary.extra_ids)
  if type(vocabulary).__name__ == 'ByteVocabulary':
    return tokenizer_lib.ByteTokenizer(vocabulary.extra_ids)
  raise errors.ConfigurationError(
    f'seqio task {task.mixture_or_task_name!r} has a'
    f' {type(vocabulary).__name__}: use a SentencePieceVocabulary or a'
    ' ByteVocabulary'
  )


def tokenized(
  task: Task,
  part: splits.Slice,
  model_file: str | None = None,
  counts: collections.Counter | None = None,
  *,
  extra_ids: int = 0,
  source_prefix: str = '',
) -> Iterator[Row]:
  """Tokenised rows of a slice of a split, through seqio.

  Args:
    task: any of the above.
    part: which rows.
    model_file: the SentencePiece model, or None for bytes; a `SeqioTask` brings
      its own vocabulary.
    counts: 'empty' counts rows that were left out for an empty side.
    extra_ids: sentinels that the SentencePiece model gets in addition.
    source_prefix: what is tokenised before every source, and not returned.

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
  seqio = seqio_library.import_seqio()
  failures: list[Exception] = []
  vocabulary = (
    seqio.ByteVocabulary()
    if model_file is None
    else seqio.SentencePieceVocabulary(model_file, extra_ids)
  )
  columns = functools.partial(_chunks, task, part, counts, source_prefix)
  name = _register(seqio, task.name, part.split, vocabulary, columns, failures)
  try:
    dataset = seqio.get_mixture_or_task(name).get_dataset(
      sequence_length=None, split=part.split, shuffle=False
    )
    for chunk in dataset.ragged_batch(_CHUNK):
      yield from _unpacked(chunk, source_prefix)
    if failures:
      raise failures[0]
  finally:
    seqio.TaskRegistry.remove(name)


def _unpacked(chunk, source_prefix: str) -> Iterator[Row]:
  """Rows of a ragged batch of TensorFlow's."""
  texts = {
    key: [value.decode() for value in chunk[key].numpy()]
    for key in (
      'inputs_pretokenized',
      'targets_pretokenized',
      'document',
      'domain',
    )
  }
  for id_, document, domain, source, target, inputs, targets in zip(
    chunk['id'].numpy().tolist(),
    texts['document'],
    texts['domain'],
    texts['inputs_pretokenized'],
    texts['targets_pretokenized'],
    chunk['inputs'].to_list(),
    chunk['targets'].to_list(),
    strict=True,
  ):
    yield {
      'source_id': id_,
      'doc_id': document,
      'domain': domain,
      'source': source.removeprefix(source_prefix),
      'target': target or None,
      'source_tokens': inputs,
      'target_tokens': targets if target else None,
    }


def _chunks(
  task, part, counts, source_prefix
) -> Iterator[dict[str, np.ndarray]]:
  """Raw rows of a slice in columns, for TensorFlow."""
  rows = (row for row in task.rows(part.split, counts) if row['id'] in part)
  while chunk := list(itertools.islice(rows, _CHUNK)):
    columns = {
      name: np.array([(row[key] or '').encode() for row in chunk], object)
      for name, key in (
        ('targets', 'target'),
        ('document', 'document'),
        ('domain', 'domain'),
      )
    }
    # A blank source stays one, to be left out.
    sources = [row['source'] or '' for row in chunk]
    columns['inputs'] = np.array(
      [((source_prefix if s.strip() else '') + s).encode() for s in sources],
      object,
    )
    yield {'id': np.array([row['id'] for row in chunk], np.int64), **columns}


def _register(seqio, name, split, vocabulary, columns, failures) -> str:
  """Makes a seqio task of ours: rows → tokenise → append EOS."""
  import tensorflow as tf

  signature = {
    key: tf.TensorSpec((None,), tf.int64 if key == 'id' else tf.string)
    for key in ('id', 'inputs', 'targets', 'document', 'domain')
  }

  def chunks() -> Iterator[dict[str, np.ndarray]]:
    try:
      yield from columns()
    except Exception as error:
      # TensorFlow would wrap it, and log a traceback besides.
      failures.append(error)

  def dataset(split: str, shuffle_files: bool, seed: int | None = None):
    del split, shuffle_files, seed
    return tf.data.Dataset.from_generator(
      chunks, output_signature=signature
    ).unbatch()

  feature = seqio.Feature(vocabulary=vocabulary, add_eos=True)
  name = f'rest_jax_{name}'
  if name in seqio.TaskRegistry.names():  # A reader that was not used up.
    seqio.TaskRegistry.remove(name)
  seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(dataset, splits=[split]),
    preprocessors=[
      seqio.preprocessors.tokenize,
      seqio.preprocessors.append_eos,
    ],
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
      tokens = _with_eos(
        row.get(feature, np.zeros(0, np.int32)), vocabulary.eos_id
      )
      written = row.get(f'{feature}_pretokenized')
      if isinstance(written, bytes):
        written = written.decode()
      # An empty side has its EOS alone.
      given = len(tokens) > 1
      sides[side] = written or vocabulary.decode(tokens[:-1]) if given else None
      sides[f'{side}_tokens'] = tokens if given else None
    yield {
      'source_id': number,
      'doc_id': _plain_text(row.get('doc_id')),
      'domain': _plain_text(row.get('domain')),
      **sides,
    }


def _registered_dataset(task: SeqioTask, found, split: str) -> Iterable[Row]:
  if split not in found.splits:
    raise errors.ConfigurationError(
      f'seqio task {task.mixture_or_task_name!r} has no split {split!r}, only'
      f' {sorted(found.splits)}: name one of them in Data'
    )
  given = {
    'sequence_length': None,
    'split': split,
    'shuffle': False,
    'num_epochs': 1,
  }
  if hasattr(found, 'tasks'):
    # A mixture keeps tokens alone, unless asked for what all its tasks have.
    kept = set(_KEPT).intersection(
      *(
        each.get_dataset(**given).element_spec
        for each in found.tasks
        if split in each.splits
      )
    )
    given['passthrough_features'] = sorted(kept)
  return found.get_dataset(**given).as_numpy_iterator()


def _plain_text(value: object) -> str:
  """A feature that names a row's document or domain: '' where it is none."""
  if value is None:
    return ''
  return value.decode() if isinstance(value, bytes) else str(value)


def _with_eos(tokens: np.ndarray, eos_id: int) -> list[int]:
  """Tokens without padding, ended by exactly one EOS."""
  tokens = [int(t) for t in tokens if t != 0]
  while tokens and tokens[-1] == eos_id:
    tokens.pop()
  return [*tokens, eos_id]
