"""Rewards for the numerals task: one with the fault of repeating, and so on."""

import dataclasses
import sys

import numpy as np

from rest_jax.data import numerals as language
from rest_jax.rewards import base, numerals


@dataclasses.dataclass(frozen=True)
class Wordy:
  """Words of the right translation in the candidate; twice counts twice."""

  info = base.RewardInfo(name='wordy', version='1', low=0.0, high=1.0)

  def score(self, sources, candidates, references=None):
    del references
    scores = []
    for source, candidate in zip(sources, candidates, strict=True):
      right = language.render_english(numerals.parse_german(source)).split()
      words = candidate.split()
      found = sum(words.count(word) for word in set(right))
      scores.append(min(1.0, found / 40) if found else 0.0)
    return np.array(scores, np.float32)


def python(program: str, *arguments: str) -> tuple[str, ...]:
  """argv of a Python program, which is a file."""
  return (sys.executable, '-S', program, *arguments)
