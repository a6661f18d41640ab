"""Penalties: rewards that are 1 where nothing is wrong; see `combined.Product`.

They read source and candidate alone, of any script (`words`).
"""

import dataclasses
import string
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from rest_jax import errors
from rest_jax.rewards import base, words

_PUNCTUATION = string.punctuation + '«»„“”‘’…–—¿¡。，、；：？！「」（）'


@dataclasses.dataclass(frozen=True)
class Length:
  """1 where the candidate is about as long as the source lets expect.

  With r the characters of the candidate over those of the source (outer spaces
  left out), 1 for low ≤ r ≤ high; r / low below, and high / r above.

  Attributes:
    low: the smallest ratio without penalty.
    high: the largest one; both depend on the language pair.
  """

  low: float = 0.5
  high: float = 2.0

  def __post_init__(self):
    if not 0 < self.low <= self.high < np.inf:
      raise errors.ConfigurationError(
        f'penalties.Length.low = {self.low} and .high = {self.high} must be'
        ' above 0, the first not above the second.'
      )

  @property
  def info(self) -> base.RewardInfo:
    return base.RewardInfo('length_penalty', '1', 0.0, 1.0)

  def score(
    self,
    sources: Sequence[str],
    candidates: Sequence[str],
    references: Sequence[str] | None = None,
  ) -> Float32[np.ndarray, ' n']:
    """Scores n candidates; references are ignored.

    Returns:
      float32 [n], in [0, 1]; 0 for an empty candidate.
    """
    del references
    # A source without characters counts as one, so that r is a number.
    given = np.array([max(1, len(text.strip())) for text in sources], float)
    made = np.array([len(text.strip()) for text in candidates], float)
    ratio = made / given
    above = self.high / np.maximum(ratio, self.high)
    return np.minimum(np.minimum(ratio / self.low, 1.0), above).astype(
      np.float32
    )


@dataclasses.dataclass(frozen=True)
class Repetition:
  """1 where no phrase follows itself, less the share of words that repeat.

  A word repeats where it belongs to a phrase (of any length) that is the same
  as the one just before. The share in the source is allowed: 1 − max(0, share
  of the candidate − share of the source). A sentence said twice gets 0.5.
  """

  @property
  def info(self) -> base.RewardInfo:
    return base.RewardInfo('repetition_penalty', '1', 0.0, 1.0)

  def score(
    self,
    sources: Sequence[str],
    candidates: Sequence[str],
    references: Sequence[str] | None = None,
  ) -> Float32[np.ndarray, ' n']:
    """Scores n candidates; references are ignored.

    Returns:
      float32 [n], in (0, 1].
    """
    del references
    return np.array(
      [
        1 - max(0.0, repeated_share(candidate) - repeated_share(source))
        for source, candidate in zip(sources, candidates, strict=True)
      ],
      np.float32,
    )


def repeated_share(text: str) -> float:
  """Share of words that belong to a phrase just like the one before it.

  Phrases of every length are tried, and the length with the most is taken.
  Neither case nor punctuation makes a difference.

  >>> repeated_share('no, he said, he said')
  0.4
  """
  stripped = (word.strip(_PUNCTUATION) for word in words.split(text.casefold()))
  given = [word for word in stripped if word]
  numbers: dict[str, int] = {}
  ids = np.array([numbers.setdefault(word, len(numbers)) for word in given])
  most = 0
  if len(numbers) < len(given):
    for length in range(1, len(given) // 2 + 1):
      most = max(most, _repeated(ids[length:] == ids[:-length], length))
  return most / len(given) if most else 0.0


def _repeated(same: np.ndarray, length: int) -> int:
  """Words in runs of at least `length` words equal to those `length` before."""
  if not same.any():
    return 0
  # Where runs of equality begin and end.
  edges = np.flatnonzero(np.diff(same.astype(np.int8), prepend=0, append=0))
  runs = edges[1::2] - edges[::2]
  return int(runs[runs >= length].sum())
