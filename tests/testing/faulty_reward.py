"""A reward that fails in the way that the variable FAULT names."""

import os

import numpy as np

from rest_jax.rewards import base


class Faulty:
  """0.8 for a candidate of an even number of letters, else 0.4."""

  info = base.RewardInfo(name='faulty', version='1', low=0.0, high=1.0)

  def score(self, sources, candidates, references=None):
    del sources, references
    scores = np.array([0.8, 0.4], np.float32)[[len(c) % 2 for c in candidates]]
    fault = os.environ.get('FAULT')
    if fault == 'nan':
      scores[-1] = np.nan
    elif fault == 'range':
      scores[-1] = 1.5
    elif fault == 'count':
      scores = scores[1:]
    elif fault == 'raise':
      raise ConnectionError('the server\nis away')
    return scores
