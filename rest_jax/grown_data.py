"""The scored rows of D_g: streamed, selected, turned into training rows."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rest_jax import (
  behaviour,
  losses,
  pairs,
  preview,
  schedule,
  selection,
)
from rest_jax import rows as rows_lib
from rest_jax.context import IMPORTED, Context
from rest_jax.data import scored
from rest_jax.data.lookup import Lookup
from rest_jax.errors import DataError
from rest_jax.run_directory import Stage

Selections = tuple[selection.Selection, ...]

_BC = losses.BehavioralCloning()

# Where the figures of `losses.STORED` stand in the store.
_STORED = {
  'grown_log_probs': 'token_log_probs',
  'sampling_log_probs': 'token_sampling_log_probs',
}


@runtime_checkable
class Choice(Protocol):
  """What of `improve.Improve` decides which rows there are; see there."""

  schedule: schedule.Schedule
  original_data: str
  before: Selections
  after: Selections
  allow_tau_below_mean: bool


Permutation = Literal['samples', 'texts']


def permutation(choice: Choice, loss: losses.PolicyLoss = _BC) -> Permutation:
  """What the rewards of a control are permuted among.

  So that as many rows of each source are kept as with the true ones: distinct
  texts, where the filter, what stands around it, or pairs compare these.
  """
  if loss.paired:
    return 'texts'
  around = selection.needs_of((*choice.before, *choice.after))
  compares = schedule.compares_texts(choice.schedule)
  return 'texts' if compares or 'text_ids' in around else 'samples'


class GrownData:
  """The scored rows of D_g, as a stream that can be read again.

  References of imported sources are no rows of D: they served the reward.
  """

  def __init__(
    self,
    context: Context,
    settings: Choice,
    stores: Sequence[str],
    *,
    permuted: Permutation | None = None,
  ):
    """Opens the committed stages of some stores; nothing is read yet.

    Args:
      context: the run.
      settings: which rows there are.
      stores: names of the stores.
      permuted: what changes places at random, by the run's seed, taking its
        reward along: the finished samples of each source or its distinct texts,
        and references. The control for the reward; see `permutation`.
    """
    self._context, self._settings = context, settings
    self._permuted = permuted
    self._permuted_by = {'text_ids'} if permuted == 'texts' else set()
    self._deduplicates = len(stores) > 1 and any(
      isinstance(each, selection.Deduplicate)
      for each in (*settings.before, *settings.after)
    )
    self._stores = [
      (context.read(f'{name}/samples'), context.read(f'{name}/reward'))
      for name in stores
    ]

  def _tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Streams whole sources, with `columns` (`origin` too) and `reward`."""
    given = _Given() if self._deduplicates else None
    for store in self._stores:
      yield from self._tables_of(store, columns, given)

  def _tables_of(
    self,
    store: tuple[Stage, Stage],
    columns: Sequence[str],
    given: '_Given | None',
  ) -> Iterator[pa.Table]:
    further: list[str] = []
    if given:
      further += _Given.columns
    if self._permuted:
      further += scored.columns_for(self._permuted_by)
    for table in self._joined(store, [*columns, *further]):
      if self._permuted:
        table = self._with_permuted_rewards(table)
      if given:
        table = table.append_column(scored.GIVEN, given.among(table))
      yield table
    if given:
      given.end_store()

  def _joined(
    self, store: tuple[Stage, Stage], columns: Sequence[str]
  ) -> Iterator[pa.Table]:
    """Streams samples beside their rewards, both as they are stored."""
    samples, reward = store
    imported = samples.name.startswith(f'{IMPORTED}/')
    folders = {'reward': reward.folder}
    penalised = 'log_prob' in columns
    held_against = behaviour.stage_name(samples.name.partition('/')[0])
    if penalised and held_against:
      folders[behaviour.LOG_PROB] = self._context.read(held_against).folder
    columns = list(dict.fromkeys(columns))
    for table in scored.iter_scored(samples.folder, folders, columns):
      if penalised and not held_against:  # BC drew them, or no policy did.
        table = table.append_column(behaviour.LOG_PROB, table['log_prob'])
      if imported:
        table = table.filter(pc.not_equal(table['origin'], 'reference'))
      if table.num_rows:
        yield table

  def _with_permuted_rewards(self, table: pa.Table) -> pa.Table:
    rows = scored.rows_from_table(table, self._permuted_by)
    rewards = rows_lib.permuted_rewards(
      rows, self._context.seed, by_text=bool(self._permuted_by)
    )
    place = table.schema.get_field_index('reward')
    return table.set_column(place, 'reward', pa.array(rewards))

  def _rows(
    self, needs: frozenset[str] = frozenset()
  ) -> Iterator[rows_lib.Rows]:
    for table in self._tables(scored.columns_for(needs)):
      yield scored.rows_from_table(table, needs)

  def _counts(self, rows: rows_lib.Rows) -> np.ndarray:
    """Rows of D_g as this configuration has it: with or without D."""
    if self._settings.original_data == 'filtered':
      return np.ones(len(rows.reward), bool)
    return ~rows.is_reference

  def rewards(self) -> Iterator[np.ndarray]:
    """Streams the rewards that the schedule is held against.

    As they are: a control has the thresholds of its twin.
    """
    for store in self._stores:
      for table in self._joined(store, scored.columns_for(frozenset())):
        rows = scored.rows_from_table(table)
        yield rows.reward[self._counts(rows)]

  def mean_reward(self) -> float:
    """V = E_{D_g}[R].

    Raises:
      DataError: there is no row.
    """
    total, count = 0.0, 0
    for rewards in self.rewards():
      total += float(rewards.sum(dtype=np.float64))
      count += len(rewards)
    if not count:
      raise DataError(
        f'{self._stores[0][0].folder} holds no row to train on; grow again with'
        ' sources, or set Improve.original_data.'
      )
    return total / count

  def selections(self, num_steps: int) -> list[Selections]:
    """The selections of Improve steps 0 … `num_steps`.

    Raises:
      ConfigurationError: filters do not rise, or the first is not above V.
      DataError: there is no row.
    """
    settings = self._settings
    filters = settings.schedule.filters(self.rewards)[:num_steps]
    schedule.check_filters(
      filters,
      self.mean_reward(),
      allow_below_mean=settings.allow_tau_below_mean,
    )
    first = (selection.SamplesOnly(),)
    if settings.original_data == 'filtered':
      first = ()
    return [
      (*first, *settings.before, middle, *settings.after)
      for middle in (selection.Unfiltered(), *filters)
    ]

  def previews(
    self, steps: Sequence[Selections], *, paired: bool = False
  ) -> list[preview.StepPreview]:
    """What each step keeps, or makes pairs of, in one pass."""
    needs = preview.NEEDS.union(*(selection.needs_of(s) for s in steps))
    select = pairs.select if paired else selection.select
    return preview.preview(
      self._rows(needs), steps, select, repeated=len(self._stores) > 1
    )

  def training_rows(
    self,
    selections: Selections,
    loss: losses.PolicyLoss = _BC,
  ) -> Iterator[tuple[Any, ...]]:
    """The rows that pass, with the tokens of their sources.

    Args:
      selections: which rows pass.
      loss: gives their weights; says whether they come in pairs, the better
        sample first, and which stored figures of their tokens it needs.

    Yields:
      Rows as `data.training_rows.write_rows` takes them.

    Raises:
      DataError: the loss needs pairs, and no source has one.
    """
    count = 0
    given = _Given() if self._deduplicates else None
    for store in self._stores:
      for row in self._training_rows_of(store, selections, loss, given):
        count += 1
        yield row
    if loss.paired and not count:
      raise DataError(
        f'no source of {self._stores[0][0].folder} has a sample that passes'
        ' the filter and another one of lower reward, so there is no pair for'
        f' the loss {loss.name!r}: grow more samples (NUM_SAMPLES), or lower'
        ' the threshold.'
      )

  def _training_rows_of(
    self,
    store: tuple[Stage, Stage],
    selections: Selections,
    loss: losses.PolicyLoss,
    given: '_Given | None',
  ) -> Iterator[tuple[Any, ...]]:
    needs = selection.needs_of(selections)
    if loss.paired:
      needs |= {'text_ids'}
    figures = written_figures(loss)
    columns = [*scored.columns_for(needs), 'source', 'target_tokens']
    columns += [_STORED[name] for name in figures if name in _STORED]
    source_tokens = _SourceTokens(self._context)
    for table in self._tables_of(store, columns, given):
      rows = scored.rows_from_table(table, needs)
      kept = self._with_original(rows, selections)
      if loss.paired:
        kept = np.stack(pairs.best_and_worst(rows, kept), axis=1).reshape(-1)
      else:
        kept = np.flatnonzero(kept)
      table = table.take(kept)
      yield from zip(
        source_tokens(table, rows.origin[kept]),
        table['target_tokens'].to_numpy(),
        loss.row_weights(rows.reward[kept]).tolist(),
        rows.is_reference[kept].tolist(),
        *(_figure(name, table) for name in figures),
        strict=True,
      )

  def _with_original(
    self, rows: rows_lib.Rows, selections: Selections
  ) -> np.ndarray:
    kept = selection.select(selections, rows)
    if self._settings.original_data == 'unfiltered':
      return kept | rows.is_reference
    return kept


class _Given:
  """What earlier stores have given: each text of a source is a row once.

  `selection.Deduplicate` sees the samples of one store. A text is remembered by
  8 bytes, of finished samples alone.
  """

  columns = ('source_id', 'target', 'origin', 'finished')

  def __init__(self):
    self._known = np.zeros(0, np.uint64)  # Sorted.
    self._new: list[np.ndarray] = []

  def among(self, table: pa.Table) -> pa.Array:
    """Which samples of a table have a text that an earlier store has given."""
    drawn = pc.and_(pc.equal(table['origin'], 'policy'), table['finished'])
    rows = np.flatnonzero(drawn.to_numpy())
    taken = table.select(('source_id', 'target')).take(rows)
    keys = np.fromiter(
      map(_key, taken['source_id'].to_pylist(), taken['target'].to_pylist()),
      np.uint64,
      len(rows),
    )
    self._new.append(keys)
    given = np.zeros(table.num_rows, bool)
    given[rows[np.isin(keys, self._known)]] = True
    return pa.array(given)

  def end_store(self) -> None:
    """What came since the last call is known from now on."""
    self._known = np.unique(np.concatenate([self._known, *self._new]))
    self._new = []


def _key(source_id: int, text: str) -> int:
  named = f'{source_id} {text}'.encode()
  return int.from_bytes(hashlib.blake2b(named, digest_size=8).digest(), 'big')


class _SourceTokens:
  """The tokens of the sources of rows, asked for in the stores' order."""

  def __init__(self, context: Context):
    wanted = ('source_id', 'source_tokens')
    self._lookups = {
      rows_lib.POLICY: Lookup(context.sources('grow', wanted), wanted[1]),
      rows_lib.REFERENCE: Lookup(context.sources('train', wanted), wanted[1]),
    }
    self._tokenizer = context.tokenizer

  def __call__(self, table: pa.Table, origins: np.ndarray) -> np.ndarray:
    """Lists of ids, EOS included, for rows with these origins [m]."""
    out = np.empty(table.num_rows, object)
    ids = table['source_id'].to_numpy()
    for origin, lookup in self._lookups.items():
      mask = origins == origin
      found = lookup(ids[mask].tolist())
      out[mask] = np.fromiter(found, object, len(found))
    mask = origins == rows_lib.IMPORTED
    if mask.any():  # Sources of others' are in no split of the data.
      found = self._encode(table['source'].filter(mask).to_pylist())
      out[mask] = np.fromiter(found, object, len(found))
    return out

  def _encode(self, texts: Sequence[str]) -> list[list[int]]:
    distinct = list(dict.fromkeys(texts))
    tokens = self._tokenizer.encode_sources(distinct)
    known = dict(zip(distinct, tokens, strict=True))
    return [[*known[text], self._tokenizer.eos_id] for text in texts]


def is_offline(loss: object) -> bool:
  """Whether it is a policy's and asks for nothing that Improve cannot give."""
  return (
    isinstance(loss, losses.PolicyLoss)
    and loss.figure == losses.PolicyLoss.figure
    and {*losses.STORED, losses.RETURNS, *losses.SCORED}.issuperset(loss.needs)
  )


def written_figures(loss: losses.PolicyLoss) -> tuple[str, ...]:
  """The figures that `GrownData.training_rows` gives with each row."""
  return tuple(name for name in loss.needs if name not in losses.SCORED)


def _figure(name: str, table: pa.Table) -> Iterable[np.ndarray]:
  """A figure of the tokens of each row."""
  if name == losses.RETURNS:
    lengths = pc.list_value_length(table['target_tokens']).to_numpy()
    rewards = table['reward'].to_numpy()
    return map(np.full, lengths.tolist(), rewards.tolist())
  return table[_STORED[name]].to_numpy()
