"""T5's buckets of relative positions."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Int


def buckets(
  offsets: Iterable[int] | np.ndarray,
  *,
  bidirectional: bool,
  num_buckets: int,
  max_distance: int,
) -> Int[np.ndarray, ' o']:
  """Returns the bucket of each key − query offset.

  Half of a direction's buckets hold one distance each, the other half grow
  logarithmically up to `max_distance`, beyond which all share the last one
  (Raffel et al. 2020, arXiv:1910.10683, section 2.1).

  >>> buckets(
  ...   [-9, -2, -1, 0, 1, 2],
  ...   bidirectional=True, num_buckets=8, max_distance=16,
  ... ).tolist()
  [3, 2, 1, 0, 5, 6]

  Args:
    offsets: position of the key minus position of the query.
    bidirectional: whether keys after the query have buckets of their own (the
      upper half); otherwise they share bucket 0.
    num_buckets: of both directions together.
    max_distance: the first distance that surely falls into the last bucket.
  """
  offsets = np.asarray(offsets, np.int32)
  first = 0
  if bidirectional:
    num_buckets //= 2
    first = np.where(offsets > 0, num_buckets, 0)
    distance = np.abs(offsets)
  else:
    distance = np.maximum(-offsets, 0)
  num_exact = num_buckets // 2
  # The float32 logarithm and its ε are T5X's: a boundary that fell elsewhere
  # would read a public checkpoint's biases wrongly.
  ratio = distance.astype(np.float32) / num_exact + np.finfo(np.float32).eps
  octaves = np.log(ratio) / np.log(max_distance / num_exact)
  logarithmic = num_exact + (octaves * (num_buckets - num_exact)).astype(
    np.int32
  )
  logarithmic = np.minimum(logarithmic, num_buckets - 1)
  return first + np.where(distance < num_exact, distance, logarithmic)
