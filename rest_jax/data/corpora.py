"""Corpora: the raw rows of text files and of the embedded task.

A row is {'id': its number in its split, from 0, 'source', 'target' (None where
there is none), 'document' (''), 'domain' ('')}.
"""

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from rest_jax import errors
from rest_jax.data import numerals, text

Row = Mapping[str, Any]


def _datasets():
  # Not compared: the rows are the same, whatever they are called.
  return dataclasses.field(default_factory=dict, compare=False)


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
    datasets: split → names of the public data sets in it, e.g. {'test':
      ('wmt20',)}; what a reward was trained on is held against them.
    name: of the seqio task.
  """

  data_dir: str
  source_language: str
  target_language: str
  files: dict[str, str]
  documents: dict[str, str] = dataclasses.field(default_factory=dict)
  monolingual: tuple[str, ...] = ()
  empty: str = 'error'
  datasets: dict[str, tuple[str, ...]] = _datasets()
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
    datasets: as of `BitextTask`.
    name: of the seqio task.
  """

  data_dir: str
  source_language: str
  target_language: str
  files: dict[str, str]
  columns: tuple[str, ...] = ('source', 'target')
  empty: str = 'error'
  datasets: dict[str, tuple[str, ...]] = _datasets()
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


def _file_of(task: BitextTask | TsvTask, split: str) -> str:
  if split not in task.files:
    raise errors.ConfigurationError(
      f'{type(task).__name__}.files has no split {split!r}, only'
      f' {sorted(task.files)}: add it or name another in Data'
    )
  return task.files[split]
