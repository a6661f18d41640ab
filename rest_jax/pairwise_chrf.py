"""Sentence chrF of each of a few texts against each of them.

To the bit what `lexical.SentenceChrf` gives pair by pair, and much faster: what
two texts share is counted for all pairs at once, by a sparse product.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int

_CHARACTER_ORDERS = range(1, 7)  # sacrebleu's.
_BETA = 2


def table(texts: Sequence[str]) -> Float32[np.ndarray, 'n n']:
  """Sentence chrF (Popović 2015) with sacrebleu's settings.

  Args:
    texts: n of them.

  Returns:
    float32 [n, n], 0–100: row i holds text i against all others as references.
  """
  # Spaces do not count.
  lines = [''.join(text.split()) for text in texts]
  shape = len(lines), len(lines)
  precision, recall = np.zeros(shape), np.zeros(shape)
  num_orders = np.zeros(shape, np.int64)
  for order in _CHARACTER_ORDERS:
    sizes = np.array([max(len(line) - order + 1, 0) for line in lines])
    counted = (sizes[:, None] > 0) & (sizes > 0)
    matches = np.where(counted, _matches(lines, order), 0)
    precision += matches / np.maximum(sizes[:, None], 1)
    recall += matches / np.maximum(sizes, 1)
    num_orders += counted
  precision /= np.maximum(num_orders, 1)
  recall /= np.maximum(num_orders, 1)
  factor = _BETA**2
  score = (1 + factor) * precision * recall
  below = factor * precision + recall
  score = np.divide(score, below, out=np.zeros(shape), where=below > 0)
  # A perfect score can exceed 100 by rounding.
  return np.clip((100 * score).astype(np.float32), 0.0, 100.0)


def _matches(lines: Sequence[str], order: int) -> Int[np.ndarray, 'n n']:
  """How many n-grams each two lines share, repeated ones as often as both do.

  The k-th time that a line has an n-gram is a column of its own, so that the
  least of two counts is a sum of products of zeros and ones.
  """
  from scipy import sparse  # Slow to import.

  columns, ends, found = [], [0], {}
  for line in lines:
    times = {}
    for start in range(len(line) - order + 1):
      ngram = line[start : start + order]
      k = times[ngram] = times.get(ngram, 0) + 1
      columns.append(found.setdefault((ngram, k), len(found)))
    ends.append(len(columns))
  ones = np.ones(len(columns), np.int64)
  has = sparse.csr_array(
    (ones, np.array(columns, np.int64), np.array(ends, np.int64)),
    shape=(len(lines), len(found)),
  )
  return (has @ has.T).toarray()
