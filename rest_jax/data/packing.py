"""Packing several training pairs into one row of fixed length.

A plan is made once, from lengths alone, and is the same wherever it is made.
"""

import dataclasses

import numpy as np

from rest_jax import errors


@dataclasses.dataclass(frozen=True)
class Packing:
  """The fixed shape of a batch of packed pairs.

  Attributes:
    source_length: tokens of source a row has room for.
    target_length: tokens of target a row has room for.
    rows_per_batch: rows of a batch, over all hosts.

  Raises:
    ConfigurationError: when a value is less than 1.
  """

  source_length: int
  target_length: int
  rows_per_batch: int

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value < 1:
        raise errors.ConfigurationError(
          f'Packing.{field.name} = {value}: must be at least 1.'
        )


@dataclasses.dataclass(frozen=True)
class Plan:
  """Which pairs share a row.

  Attributes:
    pairs: int64 [n], numbers of pairs, those of one packed row together.
    offsets: int64 [rows + 1]; packed row r is pairs[offsets[r]:offsets[r+1]].
  """

  pairs: np.ndarray
  offsets: np.ndarray

  def __len__(self) -> int:
    return len(self.offsets) - 1

  def row(self, index: int) -> np.ndarray:
    """The numbers of the pairs in one packed row, int64 [k]."""
    return self.pairs[self.offsets[index] : self.offsets[index + 1]]


# Windows packed at once: enough to vectorise over, few enough for the cache.
_WINDOWS_AT_ONCE = 256


def plan_packing(
  source_lengths: np.ndarray,
  target_lengths: np.ndarray,
  packing: Packing,
  seed: int,
) -> Plan:
  """Packs every pair exactly once, on both sides at the same time.

  The pairs are shuffled and cut into windows; in each window they go, longest
  first, into the fullest row that still has room on both sides (best fit
  decreasing). All windows take their step together, in numpy.

  Args:
    source_lengths: int [n], tokens, each from 1 to `packing.source_length`.
    target_lengths: int [n], tokens, each from 1 to `packing.target_length`.
    packing: the shape of a row.
    seed: of the shuffle.

  Returns:
    The plan. It leaves few percent of padding where the two sides' lengths
    stand to each other as `source_length` to `target_length` do, and where
    pairs are short beside them.

  Raises:
    DataError: when a pair does not fit into a row.
  """
  source_lengths = np.asarray(source_lengths)
  target_lengths = np.asarray(target_lengths)
  _check_fit(source_lengths, packing.source_length, 'source')
  _check_fit(target_lengths, packing.target_length, 'target')
  count = len(source_lengths)
  if not count:
    return Plan(np.zeros(0, np.int64), np.zeros(1, np.int64))
  fill = max(
    source_lengths.mean() / packing.source_length,
    target_lengths.mean() / packing.target_length,
  )
  # About 64 rows a window, so that its last, half empty row hardly counts.
  window = int(np.clip(64 / fill, 64, 4096))
  order = np.random.default_rng(seed).permutation(count)
  per_group = window * _WINDOWS_AT_ONCE
  pairs, sizes = [], []
  for start in range(0, count, per_group):
    group = order[start : start + per_group]
    packed, group_sizes = _pack_windows(
      group, source_lengths, target_lengths, packing, window
    )
    pairs.append(packed)
    sizes.append(group_sizes)
  offsets = np.concatenate([[0], np.cumsum(np.concatenate(sizes))])
  return Plan(np.concatenate(pairs), offsets.astype(np.int64))


def _check_fit(lengths: np.ndarray, room: int, side: str):
  wrong = np.flatnonzero((lengths > room) | (lengths < 1))
  if wrong.size:
    row = int(wrong[0])
    raise errors.DataError(
      f'Training row {row} has {int(lengths[row])} {side} tokens, but '
      f'Packing.{side}_length = {room} ({wrong.size} such rows): raise '
      f"Packing.{side}_length, or lower the task's max_{side}_length."
    )


def _pack_windows(group, source_lengths, target_lengths, packing, window):
  """Packs windows of pairs side by side.

  Args:
    group: int64 [m], numbers of pairs.
    source_lengths: of all pairs.
    target_lengths: of all pairs.
    packing: the shape of a row.
    window: pairs a window.

  Returns:
    The group's pairs, row by row, and the number of pairs of each row.
  """
  windows = -(-len(group) // window)
  padded = np.full(windows * window, -1, np.int64)
  padded[: len(group)] = group
  padded = padded.reshape(windows, window)
  real = padded >= 0
  # In units of a row's room, so that the two sides can be compared.
  source = np.where(real, source_lengths[padded], 0).astype(np.int32)
  target = np.where(real, target_lengths[padded], 0).astype(np.int32)
  size = np.maximum(
    source / packing.source_length, target / packing.target_length
  )
  by_size = np.argsort(-size, axis=1, kind='stable')
  padded, source, target = (
    np.take_along_axis(x, by_size, axis=1) for x in (padded, source, target)
  )
  row_of = _best_fit(source, target, packing)
  row_of += np.arange(windows)[:, None] * window
  # What pads the last window stands last in it, having size 0.
  row_of = np.where(padded >= 0, row_of, windows * window).ravel()
  by_row = np.argsort(row_of, kind='stable')[: len(group)]
  sizes = np.bincount(row_of[by_row])
  return padded.ravel()[by_row], sizes[sizes > 0]


def _best_fit(source, target, packing) -> np.ndarray:
  """The row, within its window, that each pair goes into, int64 [w, window]."""
  windows, window = source.shape
  each = np.arange(windows)
  source_room = np.full((windows, window), packing.source_length, np.int32)
  target_room = np.full((windows, window), packing.target_length, np.int32)
  slack = np.full((windows, window), 2.0, np.float32)
  used = np.zeros(windows, np.int64)
  row_of = np.empty((windows, window), np.int64)
  for j in range(window):
    # One empty row beyond those in use, which always has room.
    open_rows = slice(0, int(used.max()) + 1)
    s, t = source[:, j], target[:, j]
    fits = (source_room[:, open_rows] >= s[:, None]) & (
      target_room[:, open_rows] >= t[:, None]
    )
    # Empty rows have the greatest slack, and the first of them is taken.
    chosen = np.where(fits, slack[:, open_rows], np.float32(4.0)).argmin(axis=1)
    source_room[each, chosen] -= s
    target_room[each, chosen] -= t
    slack[each, chosen] = (
      source_room[each, chosen] / packing.source_length
      + target_room[each, chosen] / packing.target_length
    )
    used = np.maximum(used, chosen + (s > 0))
    row_of[:, j] = chosen
  return row_of
