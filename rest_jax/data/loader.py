"""Batches of packed training rows; a batch is a pure function of (seed, step).

Nothing is lost at a restart, and every host computes its part alone.
"""

import dataclasses
import functools
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from rest_jax import errors, hosts, preemption, types
from rest_jax.data import packing as packing_lib
from rest_jax.data import training_rows

Packing = packing_lib.Packing
TrainingRows = training_rows.TrainingRows
write_rows = training_rows.write_rows

Mixture = float | int | Literal['union']


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingBatches:
  """An endless sequence of packed batches, by step.

  Rows are packed once; each epoch takes the packed rows in another order, and
  a batch may straddle two epochs, so that nothing is left over.

  Attributes:
    rows: the training rows.
    packing: shape of a batch.
    seed: of packing and order.
    mixture: 'union' takes every row exactly once an epoch. A number λ in [0, 1]
      makes a training row a grown one with that probability (in fixed turns,
      not by chance); then an epoch takes every grown row once (every original
      row where λ is 0).
    process_index: number of this process's part of each batch.
    process_count: how many parts a batch has; they stand one after the other,
      so that the batch is the same however many there are.

  Raises:
    ConfigurationError: when the batch does not divide over the processes, or λ
      asks for rows that do not exist.
    DataError: when a row does not fit into the packing.
  """

  rows: training_rows.TrainingRows
  packing: packing_lib.Packing
  seed: int
  mixture: Mixture = 'union'
  process_index: int = 0
  process_count: int = 1

  def __post_init__(self):
    if self.packing.rows_per_batch % self.process_count:
      raise errors.ConfigurationError(
        f'Packing.rows_per_batch = {self.packing.rows_per_batch} does not '
        f'divide over {self.process_count} processes: choose a multiple.'
      )
    _ = self._plans  # Made now, so that its errors come now.

  @functools.cached_property
  def _plans(self) -> tuple[packing_lib.Plan, ...]:
    """The plans that are mixed: (all), (grown, original) or one of these."""
    if self.mixture == 'union':
      return (self._plan(np.arange(len(self.rows)), 'any'),)
    if isinstance(self.mixture, str) or not 0 <= self.mixture <= 1:
      raise errors.ConfigurationError(
        f"mixture = {self.mixture!r}: must be 'union' or a number in [0, 1]."
      )
    is_original = np.asarray(self.rows.is_original)
    plans = []
    if self.mixture > 0:
      plans.append(self._plan(np.flatnonzero(~is_original), 'grown'))
    if self.mixture < 1:
      plans.append(self._plan(np.flatnonzero(is_original), 'original'))
    return tuple(plans)

  def _plan(self, numbers: np.ndarray, kind: str) -> packing_lib.Plan:
    if not numbers.size:
      raise errors.ConfigurationError(
        f'mixture = {self.mixture!r} asks for {kind} rows, but there are '
        "none: use mixture = 'union', or change the filter."
      )
    # Rows of a group are packed as one, and stand next to each other.
    groups = numbers.reshape(-1, self.rows.group)
    plan = packing_lib.plan_packing(
      self.rows.source_lengths[groups].sum(axis=1),
      self.rows.target_lengths[groups].sum(axis=1),
      self.packing,
      self.seed,
    )
    return packing_lib.Plan(
      groups[plan.pairs].reshape(-1), plan.offsets * self.rows.group
    )

  @functools.cached_property
  def _row_shares(self) -> tuple[float, ...]:
    """The share of packed rows that comes from each plan."""
    if len(self._plans) == 1:
      return (1.0,)
    # λ counts pairs; a packed row holds more of them where they are shorter.
    wanted = (self.mixture, 1.0 - self.mixture)
    shares = [
      share * len(plan) / len(plan.pairs)
      for share, plan in zip(wanted, self._plans, strict=True)
    ]
    return tuple(share / sum(shares) for share in shares)

  @functools.cached_property
  def _dataset(self) -> Any:
    import grain  # A quarter of a second, which not every command needs.

    parts = [
      grain.MapDataset.source(_ShuffledRows(plan, (self.seed, number)))
      for number, plan in enumerate(self._plans)
    ]
    mixed = parts[0]
    if len(parts) > 1:
      mixed = grain.MapDataset.mix(parts, weights=self._row_shares)
    return mixed.batch(
      self.packing.rows_per_batch // self.process_count,
      batch_fn=functools.partial(assemble, self.rows, self.packing),
    )

  def __getitem__(self, step: int) -> types.Batch:
    """Returns this process's rows of a step's batch, as numpy arrays."""
    return self._dataset[step * self.process_count + self.process_index]

  def starting_at(self, step: int) -> Iterator[types.Batch]:
    """Yields the batches of `step`, `step` + 1, … without end."""
    return map(self.__getitem__, itertools.count(step))

  def once(self) -> Iterator[types.Batch]:
    """Yields every row once, in a fixed order; the last batch is padded.

    Of each batch this process's rows.
    """
    for chosen in self._chosen_once():
      yield assemble(self.rows, self.packing, chosen[self._mine])

  def each_token(
    self,
    measure: Callable[[types.Batch], np.ndarray],
    first: int | None = None,
  ) -> Float32[np.ndarray, ' tokens']:
    """A figure of every target token, of `once`, in the order of the rows.

    Args:
      measure: gives the figures of a batch's target tokens, float32 [b, t]:
        of the rows of all processes, from this one's.
      first: of how many rows, from the first on; others have 0. None: all.

    Raises:
      PreemptionError: in all processes, SIGTERM came to one.
    """
    out = np.zeros(len(self.rows.target_tokens), np.float32)
    for chosen in self._chosen_once(first):
      preemption.check_together()
      values = measure(assemble(self.rows, self.packing, chosen[self._mine]))
      unpack(self.rows, chosen, values, out)
    return out

  def _chosen_once(
    self, first: int | None = None
  ) -> Iterator[list[np.ndarray]]:
    """Yields the numbers of the rows in each packed row of each batch."""
    everything = self._plan(np.arange(len(self.rows))[:first], 'any')
    size = self.packing.rows_per_batch
    for start in range(0, len(everything), size):
      last = min(start + size, len(everything))
      chosen = [everything.row(i) for i in range(start, last)]
      chosen += [np.zeros(0, np.int64)] * (size - len(chosen))
      yield chosen

  @property
  def _mine(self) -> slice:
    """This process's packed rows of a batch."""
    share = self.packing.rows_per_batch // self.process_count
    return slice(self.process_index * share, (self.process_index + 1) * share)

  @property
  def steps_per_epoch(self) -> int:
    """Updates after which an epoch is over, rounded up."""
    rows = len(self._plans[0]) / self._row_shares[0]
    return math.ceil(rows / self.packing.rows_per_batch)

  @functools.cached_property
  def padding_share(self) -> float:
    """The share of a batch's positions, on both sides, that is padding."""
    room = self.packing.source_length + self.packing.target_length
    full = 0.0
    for plan, share in zip(self._plans, self._row_shares, strict=True):
      tokens = (
        self.rows.source_lengths[plan.pairs].sum()
        + self.rows.target_lengths[plan.pairs].sum()
      )
      full += share * float(tokens) / (len(plan) * room)
    return 1.0 - full

  @functools.cached_property
  def grown_share(self) -> float:
    """The share of training rows that are grown ones.

    Of a mixture λ, which grain's whole-numbered weights meet within 0.003.
    """
    if len(self._plans) > 1:
      return float(self.mixture)
    pairs = self._plans[0].pairs
    return 1.0 - float(np.asarray(self.rows.is_original)[pairs].mean())


class _ShuffledRows:
  """Numbers of the pairs of each packed row, in a new order each epoch.

  A source for grain, without end. It shuffles by itself, since grain's index
  shuffle takes milliseconds a row where there are few rows.
  """

  def __init__(self, plan: packing_lib.Plan, seed: tuple[int, ...]):
    self._plan = plan
    self._seed = seed
    # A batch may straddle two epochs.
    self._order = functools.lru_cache(maxsize=2)(self._new_order)

  def _new_order(self, epoch: int) -> np.ndarray:
    return np.random.default_rng((*self._seed, epoch)).permutation(
      len(self._plan)
    )

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, index: int) -> np.ndarray:
    epoch, place = divmod(index, len(self._plan))
    return self._plan.row(int(self._order(epoch)[place]))

  def __repr__(self) -> str:
    return f'_ShuffledRows({len(self._plan)} rows, seed={self._seed})'


def assemble(
  rows: training_rows.TrainingRows,
  packing: packing_lib.Packing,
  packed: Sequence[np.ndarray],
) -> types.Batch:
  """Lays pairs out as the worked example of `types.Batch` shows.

  Args:
    rows: the training rows.
    packing: lengths of a row.
    packed: the numbers of the pairs of each row, int64 [k]; may be empty.

  Returns:
    A batch of numpy arrays, [len(packed), source_length or target_length].
  """
  pairs, number = _pairs_and_numbers(packed)
  source = _side_of(rows.source_offsets, packed)
  target = _side_of(rows.target_offsets, packed)
  source_shape = (len(packed), packing.source_length)
  target_shape = (len(packed), packing.target_length)
  inputs = np.zeros(target_shape, np.int32)
  targets = target.lay(target_shape, rows.target_tokens[target.token])
  # Shifted right by one inside each pair; its first input is 0.
  later = target.within > 0
  inputs[target.row[later], target.column[later]] = rows.target_tokens[
    target.token[later] - 1
  ]
  return types.Batch(
    encoder_input_tokens=source.lay(
      source_shape, rows.source_tokens[source.token]
    ),
    decoder_input_tokens=inputs,
    decoder_target_tokens=targets,
    decoder_loss_weights=target.lay(
      target_shape, rows.weights[pairs][target.pair], np.float32
    ),
    encoder_segment_ids=source.lay(source_shape, number[source.pair]),
    decoder_segment_ids=target.lay(target_shape, number[target.pair]),
    decoder_figures={
      name: target.lay(target_shape, values[target.token], np.float32)
      for name, values in rows.figures.items()
    }
    or None,
  )


def unpack(
  rows: training_rows.TrainingRows,
  packed: Sequence[np.ndarray],
  values: Any,
  out: Float32[np.ndarray, ' tokens'],
) -> None:
  """Takes figures of target tokens out of a batch that `assemble` laid out.

  Args:
    rows: the training rows.
    packed: as `assemble` was given.
    values: float32 [b, t], a figure of each target token of the batch; where it
      is spread over processes, all of them have to come here.
    out: a figure of each target token of the rows, in their order; those of
      tokens that the batch holds are written.
  """
  side = _side_of(rows.target_offsets, packed)
  out[side.token] = hosts.fetch(values)[side.row, side.column]


def _pairs_and_numbers(packed) -> tuple[np.ndarray, np.ndarray]:
  """The pairs of a batch, and the number of each in its row, from 1."""
  pairs = np.concatenate(packed).astype(np.int64)
  return pairs, np.concatenate([np.arange(1, len(p) + 1) for p in packed])


def _side_of(offsets: np.ndarray, packed: Sequence[np.ndarray]) -> '_Side':
  pairs, number = _pairs_and_numbers(packed)
  row_of = np.repeat(np.arange(len(packed)), [len(p) for p in packed])
  return _Side(offsets, pairs, row_of, number)


class _Side:
  """Where each token of one side of a batch comes from and goes to.

  Attributes, each int64 [tokens of the batch]:
    pair: the pair, counted within the batch.
    within: the position inside its pair.
    token: the position in the flat array of tokens.
    row: the row of the batch.
    column: the position in that row.
  """

  def __init__(self, offsets, pairs, row_of, number):
    starts = np.asarray(offsets[pairs])
    lengths = np.asarray(offsets[pairs + 1]) - starts
    before = np.cumsum(lengths) - lengths
    # A row begins where its first pair does.
    row_start = np.maximum.accumulate(np.where(number == 1, before, 0))
    self.pair = np.repeat(np.arange(len(pairs)), lengths)
    self.within = np.arange(len(self.pair)) - before[self.pair]
    self.token = starts[self.pair] + self.within
    self.row = row_of[self.pair]
    self.column = (before - row_start)[self.pair] + self.within

  def lay(self, shape, values, dtype=np.int32) -> np.ndarray:
    array = np.zeros(shape, dtype)
    array[self.row, self.column] = values
    return array
