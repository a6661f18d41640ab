"""Token sequences of any length as batches of few fixed shapes.

What a network computes for a sequence depends on its batch's shape, in the last
bits; so the shape is a function of the sequence's own length alone.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from rest_jax.errors import ConfigurationError, DataError


def check_rising(buckets: Sequence[int], name: str) -> None:
  """Raises ConfigurationError unless `buckets` are rising lengths."""
  if not buckets or list(buckets) != sorted(set(buckets)) or buckets[0] < 1:
    raise ConfigurationError(
      f'{name} = {tuple(buckets)} must be rising lengths, for example'
      ' (32, 64, 128).'
    )


def check_fits(longest: int, buckets: Sequence[int], mend: str) -> None:
  """Raises DataError unless a source of so many tokens fits a bucket."""
  if longest > buckets[-1]:
    raise DataError(
      f'a source of {longest} tokens does not fit the longest bucket'
      f' ({buckets[-1]}); {mend}.'
    )


def batches(
  sequences: Sequence[Sequence[int]],
  buckets: Sequence[int],
  rows: Sequence[int],
  mend: str,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields each sequence once, in the first bucket that holds it.

  Args:
    sequences: token sequences.
    buckets: rising lengths.
    rows: rows of a batch, for each bucket.
    mend: what to do about a sequence that no bucket holds, for the message.

  Yields:
    (indices [m], tokens int32 [rows, bucket]), m ≤ rows; 0 is padding. The last
    batch of a bucket is filled with copies of its first sequence, which cost
    no extra decoding steps.

  Raises:
    DataError: a sequence is longer than the last bucket.
  """
  of_buckets = members(sequences, buckets, mend)
  for bucket, size, inside in zip(buckets, rows, of_buckets, strict=True):
    for start in range(0, len(inside), size):
      indices = inside[start : start + size]
      rows_of = [sequences[index] for index in filled(indices, size)]
      yield indices, padded(rows_of, bucket)


def members(
  sequences: Sequence[Sequence[int]], buckets: Sequence[int], mend: str
) -> list[np.ndarray]:
  """Returns which sequences belong into each bucket, the shortest first.

  Args:
    sequences: token sequences.
    buckets: rising lengths.
    mend: as in `batches`.

  Raises:
    DataError: a sequence is longer than the last bucket.
  """
  lengths = np.array([len(sequence) for sequence in sequences], np.int64)
  check_fits(int(max(lengths, default=0)), buckets, mend)
  bucket_of = np.searchsorted(buckets, lengths)
  # Like lengths together: beams run until the longest output of a batch ends.
  order = np.argsort(lengths, kind='stable')
  return [order[bucket_of[order] == b] for b in range(len(buckets))]


def padded(sequences: Sequence[Sequence[int]], length: int) -> np.ndarray:
  """Returns sequences as int32 [k, length], 0 after the end of each."""
  tokens = np.zeros((len(sequences), length), np.int32)
  for row, sequence in zip(tokens, sequences, strict=True):
    row[: len(sequence)] = sequence
  return tokens


def filled(indices: np.ndarray, size: int) -> np.ndarray:
  """Returns `indices` [m] and copies of the first of them, `size` in all."""
  return np.concatenate([indices, np.repeat(indices[:1], size - len(indices))])
