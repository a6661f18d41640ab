"""The data stage: a task, read once into numbered, tokenised rows.

Later stages read these rows alone: neither seqio nor the raw files. A source's
number never changes, so samples and scores can always be joined to it.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from rest_jax import errors
from rest_jax.data import near_duplicates as near_lib
from rest_jax.data import splits, tasks
from rest_jax.data import tokenizer as tokenizer_lib
from rest_jax.data.run_tokenizers import (
  Bytes,
  CheckpointTokenizer,
  GivenTokenizer,
  Made,
  TrainedTokenizer,
)

# The tokenizers too, for bindings call them `prepare.TrainedTokenizer` and so
# on.
__all__ = [
  'COUNTS',
  'FIRST_IMPORTED_ID',
  'OVER_LONG_POLICIES',
  'SPLIT_STRIDE',
  'Bytes',
  'CheckpointTokenizer',
  'Data',
  'GivenTokenizer',
  'TrainedTokenizer',
  'Writer',
]

OVER_LONG_POLICIES = ('skip', 'truncate')
# What is counted of every split. `rewritten`: rows whose target the tokenizer
# gives back otherwise, but for spaces; `in_dev`: rows whose source is D_eval's
# too; `near_duplicates`: rows left out for they nearly repeat one of another
# part.
COUNTS = (
  'rows',
  'with_target',
  'source_tokens',
  'target_tokens',
  'unknown_tokens',
  'over_long',
  'empty',
  'rewritten',
  'in_dev',
  'near_duplicates',
)
# A source's number is that of its row, plus this for every split of the task
# that the run names before: numbers are unique in a run.
SPLIT_STRIDE = 10_000_000_000
# Sources of imported samples are numbered after those of the splits that a run
# without a learned reward can name; a fifth split comes after them.
FIRST_IMPORTED_ID = 4 * SPLIT_STRIDE
Writer = Callable[[epath.Path, Iterable[Mapping[str, Any]]], Any]


@dataclasses.dataclass(frozen=True)
class Data:
  """Which rows serve which purpose, and how they are cut into tokens.

  A split is written as 'train', 'train[:50%]', 'train[50%:]' or 'train[:1000]'
  of the task's numbered rows.

  Attributes:
    task: where the text comes from.
    tokenizer: made for, or given to, the run; None with a `SeqioTask`, which
      brings its own.
    train: split that BC learns from; every row needs a target.
    grow: split whose sources Grow samples; '' for the same as `train`.
    dev: split of D_eval, which is cut into D_select and D_report.
    test: split that only `evaluate --split=test` reads; '' for none.
    reward: split whose sources a reward model learns on; '' for none.
    near_duplicates: what counts as a near repetition across these parts, of
      which the part that learns loses its row; None keeps all.
    max_source_length: tokens of a source, EOS counted, at most.
    max_target_length: likewise of a target.
    over_long: what happens to longer rows: 'skip' or 'truncate' (targets of
      D as texts too).
  """

  task: tasks.Task
  tokenizer: Made = None
  train: str = 'train'
  grow: str = ''
  dev: str = 'dev'
  test: str = ''
  reward: str = ''
  near_duplicates: near_lib.NearDuplicates | None = None
  max_source_length: int = 128
  max_target_length: int = 128
  over_long: str = 'skip'

  @property
  def language_pair(self) -> str:
    """Such as 'de-en'."""
    return f'{self.task.source_language}-{self.task.target_language}'

  def prepare(
    self,
    folder: epath.PathLike,
    writer: Writer,
    advance: Callable[[int], None] = lambda rows: None,
  ) -> dict[str, Any]:
    """Writes `train`, `grow`, `select`, `report`, `test` and the tokenizer.

    `grow` is not written where it is the same as `train`, `test` not where
    there is none.

    Args:
      folder: of the stage; each purpose gets a folder in it.
      writer: writes rows into a folder, as `store.write_sources`.
      advance: called with the number of rows after each 1000 of them.

    Returns:
      What a reader must know of the data, as plain values: 'language_pair',
      'tokenizer' {'size', 'fingerprint'}, and 'splits': purpose → `COUNTS`;
      'dev' holds what `select` and `report` lack: the rows that were over long
      or empty before the cut.

    Raises:
      ConfigurationError: bindings that do not fit the data or each other.
      DataError: text that cannot be read, or no rows left for a purpose.
    """
    self._check()
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made = self._make_tokenizer(folder)
    preparation = _Preparation(self, made, folder, writer, advance)
    # Of two rows that nearly repeat each other, the one that comes first stays.
    if self.test:
      preparation.write('test', self.test)
    dev_sources = preparation.write_dev()
    preparation.write(
      'train', self.train, needs_target=True, held_out=dev_sources
    )
    if self.reward:
      preparation.write('reward', self.reward, held_out=dev_sources)
    if self.grow and self.grow != self.train:
      preparation.write('grow', self.grow, held_out=dev_sources)
    return {
      'language_pair': self.language_pair,
      'tokenizer': {'size': made.size, 'fingerprint': made.fingerprint},
      'splits': {
        purpose: {count: counts[count] for count in COUNTS}
        for purpose, counts in preparation.report.items()
      },
    }

  def part(self, expression: str) -> splits.Slice:
    """The rows that a split expression means."""
    return splits.parse(expression, self._count)

  def first_id(self, expression: str) -> int:
    """The number of row 0 of an expression's split, unique in the run."""
    expressions = (self.train, self.grow, self.dev, self.test, self.reward)
    names = dict.fromkeys(e.partition('[')[0] for e in expressions if e)
    first = SPLIT_STRIDE * list(names).index(expression.partition('[')[0])
    return first if first < FIRST_IMPORTED_ID else first + SPLIT_STRIDE

  def _check(self) -> None:
    if self.over_long not in OVER_LONG_POLICIES:
      raise errors.ConfigurationError(
        f'Data.over_long = {self.over_long!r}: use one of {OVER_LONG_POLICIES}'
      )
    for name in ('max_source_length', 'max_target_length'):
      if getattr(self, name) < 2:
        raise errors.ConfigurationError(
          f'Data.{name} = {getattr(self, name)}: a token and EOS need 2'
        )
    if isinstance(self.task, tasks.SeqioTask) != (self.tokenizer is None):
      raise errors.ConfigurationError(
        f'Data.tokenizer = {self.tokenizer!r} with a'
        f' {type(self.task).__name__}: a SeqioTask brings its own (None), any'
        ' other task needs one'
      )

  def _make_tokenizer(self, folder: epath.Path) -> tokenizer_lib.Tokenizer:
    if self.tokenizer is None:
      made = tasks.seqio_tokenizer(self.task)
      made.save(folder)
      return made
    part = self.part(self.train)
    texts = (
      side
      for row in self.task.rows(part.split)
      if row['id'] in part
      for side in (row['source'], row['target'])
      if side is not None
    )
    return self.tokenizer.make(folder, texts)

  def _count(self, split: str) -> int:
    if isinstance(self.task, tasks.SeqioTask):
      return sum(1 for _ in tasks.tokenized(self.task, splits.Slice(split)))
    return self.task.count(split)


class _Preparation:
  """The data stage at work, with what it counts."""

  def __init__(self, data, made, folder, writer, advance):
    self._data = data
    self._tokenizer = made
    self._folder = folder
    self._writer = writer
    self._advance = advance
    self.report: dict[str, collections.Counter] = {}
    self._parts = data.near_duplicates and near_lib.Parts(data.near_duplicates)

  def write(
    self,
    purpose: str,
    expression: str,
    needs_target: bool = False,
    held_out: frozenset[str] = frozenset(),
  ) -> None:
    """Streams the rows of one purpose into its folder."""
    counts = self.report.setdefault(purpose, collections.Counter())
    rows = self._rows(expression, counts)

    def checked() -> Iterator[Mapping[str, Any]]:
      for row in rows:
        if needs_target and row['target'] is None:
          raise errors.DataError(
            f'{purpose} split {expression!r}, row {row["source_id"]}: no'
            ' target, and supervised training needs one'
          )
        if self._repeats(purpose, row, counts):
          continue
        if row['source'] in held_out:
          counts['in_dev'] += 1
        row = self._counted(row, counts)
        yield self._with_text_as_cut(row) if purpose == 'train' else row

    self._writer(self._folder / purpose, checked())
    self._require_rows(purpose, expression)

  def write_dev(self) -> frozenset[str]:
    """Cuts D_eval (held in memory) in two; returns all of its sources."""
    expression = self._data.dev
    before = collections.Counter()
    rows = list(self._rows(expression, before))
    if not rows:
      raise errors.DataError(_no_rows('dev', expression, before))
    keys = [row['doc_id'] or row['source'] for row in rows]
    selected = splits.cut_in_two(keys)
    self.report['dev'] = before
    for purpose, wanted in (('report', False), ('select', True)):
      counts = self.report[purpose] = collections.Counter()
      part = [
        r
        for r, k in zip(rows, keys, strict=True)
        if (k in selected) == wanted and not self._repeats(purpose, r, counts)
      ]
      self._writer(
        self._folder / purpose,
        (self._counted(row, counts) for row in part),
      )
    return frozenset(row['source'] for row in rows)

  def _with_text_as_cut(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of D whose text is that of its tokens, where these may be cut.

    What is trained on has to be what a reward judges. To judge others by, a
    reference stays whole.
    """
    if not self._may_be_cut(row):
      return row
    return dict(row) | {'target': self._tokenizer.decode(row['target_tokens'])}

  def _may_be_cut(self, row: Mapping[str, Any]) -> bool:
    return (
      self._data.over_long == 'truncate'
      and row['target'] is not None
      and len(row['target_tokens']) == self._data.max_target_length
    )

  def _rows(
    self, expression: str, counts: collections.Counter
  ) -> Iterator[dict[str, Any]]:
    """Rows of a split that fit the lengths, by the policy for longer ones."""
    model_file = self._folder / tokenizer_lib.MODEL_FILE
    rows = tasks.tokenized(
      self._data.task,
      self._data.part(expression),
      str(model_file) if model_file.exists() else None,
      counts,
      extra_ids=self._tokenizer.extra_ids,
      source_prefix=self._tokenizer.source_prefix,
    )
    first_id = self._data.first_id(expression)
    for number, row in enumerate(rows, 1):
      if number % 1000 == 0:
        self._advance(1000)
      fitted = self._fitted(row, counts)
      if fitted is not None:
        yield fitted | {'source_id': first_id + fitted['source_id']}

  def _fitted(
    self, row: Mapping[str, Any], counts: collections.Counter
  ) -> dict[str, Any] | None:
    """The row, truncated where it must be, or None where it is skipped."""
    row = dict(row, language_pair=self._data.language_pair)
    # A text of nothing but spaces has no tokens but EOS.
    if row['source'] is None or any(
      row[key] is not None and len(row[key]) < 2
      for key in ('source_tokens', 'target_tokens')
    ):
      counts['empty'] += 1
      return None
    limits = {
      'source_tokens': self._data.max_source_length,
      'target_tokens': self._data.max_target_length,
    }
    over_long = [
      key for key, limit in limits.items() if len(row[key] or ()) > limit
    ]
    if not over_long:
      return row
    counts['over_long'] += 1
    if self._data.over_long == 'skip':
      return None
    for key in over_long:
      row[key] = [*row[key][: limits[key] - 1], self._tokenizer.eos_id]
    return row

  def _repeats(
    self, purpose: str, row: Mapping[str, Any], counts: collections.Counter
  ) -> bool:
    """Whether a row nearly repeats one of an earlier part; remembers it."""
    if self._parts is None:
      return False
    repeats = self._parts.repeats(purpose, row['source'], row['target'])
    counts['near_duplicates'] += repeats
    return repeats

  def _counted(
    self, row: Mapping[str, Any], counts: collections.Counter
  ) -> Mapping[str, Any]:
    counts['rows'] += 1
    counts['source_tokens'] += len(row['source_tokens'])
    for key in ('source_tokens', 'target_tokens'):
      ids = row[key] or ()
      counts['unknown_tokens'] += sum(i == self._tokenizer.unk_id for i in ids)
      if ids and max(ids) >= self._tokenizer.size:
        raise errors.DataError(
          f'row {row["source_id"]}: the id {max(ids)} is beyond the'
          f" tokenizer's {self._tokenizer.size}: a task's extra ids cannot"
          ' be used'
        )
    if row['target'] is not None:
      counts['with_target'] += 1
      counts['target_tokens'] += len(row['target_tokens'])
      counts['rewritten'] += self._is_rewritten(row)
    if self._tokenizer.unk_id != tokenizer_lib.PAD_ID:
      return row
    return dict(row) | {
      key: row[key] and tokenizer_lib.without_padding(row[key])
      for key in ('source_tokens', 'target_tokens')
    }

  def _is_rewritten(self, row: Mapping[str, Any]) -> bool:
    if self._may_be_cut(row):
      return False
    given_back = self._tokenizer.decode(row['target_tokens'])
    return given_back.split() != row['target'].split()

  def _require_rows(self, purpose: str, expression: str) -> None:
    counts = self.report[purpose]
    if not counts['rows']:
      raise errors.DataError(_no_rows(purpose, expression, counts))


def _no_rows(purpose: str, expression: str, counts: collections.Counter) -> str:
  return (
    f'{purpose} split {expression!r} has no rows left ({counts["over_long"]}'
    f' over long, {counts["empty"]} empty): widen the split or the lengths'
  )
