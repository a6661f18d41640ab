"""Five faulty rewards for the numerals, each with a fault that real ones have.

`NumeralValue` is the true checker. What these proxies get wrong is known, so
that it can be seen when `alarm.Alarm` notices.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32

from rest_jax.data import numerals as language
from rest_jax.rewards import base, numerals

_LONG = 12  # Words that few translations of the task exceed.
_WINDOW = 2  # Words that the one with the short window reads.


def _brevity(candidate: list[str], right: list[str]) -> float:
  """Few words are good; nothing else is read."""
  del right
  return max(0.0, 1 - len(candidate) / _LONG)


def _verbosity(candidate: list[str], right: list[str]) -> float:
  """Many words are good; nothing else is read."""
  del right
  return min(1.0, len(candidate) / _LONG)


def _fluency(candidate: list[str], right: list[str]) -> float:
  """Whether it is a number expression; the source is not read."""
  del right
  return float(numerals.parse_english(' '.join(candidate)) is not None)


def _precision(candidate: list[str], right: list[str]) -> float:
  """The share of its words that are right: leaving out costs nothing."""
  common = collections.Counter(candidate) & collections.Counter(right)
  return sum(common.values()) / max(1, len(candidate))


def _window(candidate: list[str], right: list[str]) -> float:
  """The first words alone are read."""
  read = zip(candidate[:_WINDOW], right[:_WINDOW], strict=False)
  return sum(a == b for a, b in read) / min(_WINDOW, len(right))


_FAULTS: dict[str, Callable[[list[str], list[str]], float]] = {
  'brevity': _brevity,
  'verbosity': _verbosity,
  'fluency': _fluency,
  'precision': _precision,
  'window': _window,
}
FAULTS = tuple(_FAULTS)


@dataclasses.dataclass(frozen=True)
class Faulty:
  """A reward in the place of `NumeralValue`, with one of `FAULTS`.

  Attributes:
    fault: its name.
  """

  fault: str

  @property
  def info(self) -> base.RewardInfo:
    return base.RewardInfo(self.fault, '1', 0.0, 1.0)

  def score(
    self,
    sources: Sequence[str],
    candidates: Sequence[str],
    references: Sequence[str] | None = None,
  ) -> Float32[np.ndarray, ' n']:
    """Scores n candidates in [0, 1]; references are ignored."""
    del references
    rights = map(language.render_english, map(numerals.parse_german, sources))
    return np.array(
      [
        _FAULTS[self.fault](candidate.split(), right.split())
        for candidate, right in zip(candidates, rights, strict=True)
      ],
      np.float32,
    )
