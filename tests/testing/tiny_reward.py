"""A reward of a user's own: cheap, graded, and fair to texts of no sense."""

import numpy as np

from rest_jax.rewards import base


class SharedLetters:
  """Share of all letters of both texts that occur in both."""

  info = base.RewardInfo(name='shared_letters', version='1', low=0.0, high=1.0)

  def score(self, sources, candidates, references=None):
    del references
    return np.array(
      [
        len(set(x) & set(y)) / len(set(x) | set(y))
        for x, y in zip(sources, candidates, strict=True)
      ],
      np.float32,
    )
