"""Rows of different parts of the data that nearly repeat each other.

A reward or a figure on a text that something learned nearly by heart flatters.
Two texts nearly repeat each other where their sets of words have a Jaccard
similarity |A ∩ B| / |A ∪ B| of at least a threshold; two rows, where sources or
targets do. Rows of one part may be as alike as they like.
"""

import collections
import dataclasses
import math
import re

from rest_jax import errors

_WORD = re.compile(r'\w+')


@dataclasses.dataclass(frozen=True)
class NearDuplicates:
  """What counts as a near repetition.

  Case, order and punctuation do not matter. In scripts without spaces a run of
  letters is one word, so there only (nearly) equal texts count.

  Attributes:
    threshold: the least Jaccard similarity, in (0, 1].
  """

  threshold: float = 0.7

  def __post_init__(self):
    if not 0.0 < self.threshold <= 1.0:
      raise errors.ConfigurationError(
        f'NearDuplicates.threshold = {self.threshold} must be in (0, 1].'
      )


class Parts:
  """Looks for near repetitions in the parts that were seen before.

  Exact, by the filter of Chaudhuri et al. 2006 (A primitive operator for
  similarity joins): two sets of similarity t share a word among the first
  n − ⌈t n⌉ + 1 of each, whatever the common order of words. Long words come
  first here, since they are rare. All texts are kept in memory.
  """

  def __init__(self, rule: NearDuplicates):
    self._indexes = (_Index(rule.threshold), _Index(rule.threshold))
    self._part: str | None = None

  def repeats(self, part: str, source: str, target: str | None) -> bool:
    """Whether a row nearly repeats one of another part.

    If not, it is remembered; the rows of a part come one after the other.

    Args:
      part: name of the row's part.
      source: its source.
      target: its target, or None.
    """
    if part != self._part:
      for index in self._indexes:
        index.close_part()
      self._part = part
    sides = [
      (index, frozenset(_WORD.findall(text.lower())))
      for index, text in zip(self._indexes, (source, target), strict=True)
      if text is not None
    ]
    if any(index.has_like(words) for index, words in sides):
      return True
    for index, words in sides:
      index.add(words)
    return False


class _Index:
  """The word sets of one side, by their first words."""

  def __init__(self, threshold: float):
    self._threshold = threshold
    self._sets: list[frozenset[str]] = []
    self._by_word: dict[str, list[int]] = collections.defaultdict(list)
    self._closed = 0

  def close_part(self) -> None:
    """Makes what was added findable."""
    for number in range(self._closed, len(self._sets)):
      for word in self._first(self._sets[number]):
        self._by_word[word].append(number)
    self._closed = len(self._sets)

  def add(self, words: frozenset[str]) -> None:
    if words:
      self._sets.append(words)

  def has_like(self, words: frozenset[str]) -> bool:
    seen = set()
    for word in self._first(words):
      for number in self._by_word.get(word, ()):
        if number in seen:
          continue
        seen.add(number)
        other = self._sets[number]
        common = len(words & other)
        union = len(words) + len(other) - common
        if common >= self._threshold * union - 1e-9:
          return True
    return False

  def _first(self, words: frozenset[str]) -> list[str]:
    # A tiny slack keeps rounding from asking for one word too many.
    least = math.ceil(self._threshold * len(words) - 1e-9)
    return sorted(words, key=_order)[: len(words) - least + 1]


def _order(word: str) -> tuple[int, str]:
  return -len(word), word
