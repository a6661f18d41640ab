"""How right a learned reward is on rows that it did not learn from."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rest_jax.data import store
from rest_jax.data.reward_rows import Example
from rest_jax.rewards import agreement, learned
from rest_jax.run_directory import Stage


def judge(
  stage: Stage, ensemble: learned.Ensemble, examples: Sequence[Example]
) -> dict[str, float]:
  """Writes what the ensemble says of held-out rows, and how right it is.

  Returns:
    `disagreement`, the mean standard deviation; `accuracy`, the share of pairs
    of one source (of preferences) in the right order; `tau_within` and `tau`,
    Kendall's within a source and over all; those that are defined.
  """
  texts = [(e.source, text) for e in examples for text in e.candidates]
  sources, candidates = map(list, zip(*texts, strict=True))
  rewards = ensemble.rewards(sources, candidates)
  mean = rewards.mean(axis=0, dtype=np.float64)
  std = rewards.std(axis=0, dtype=np.float64)
  wanted = [
    e.score if e.score is not None else float(place == 0)
    for e in examples
    for place in range(len(e.candidates))
  ]
  columns = {
    'source': sources,
    'candidate': candidates,
    'wanted': wanted,
    'reward': mean,
    'disagreement': std,
  }
  stage.write_part('held_out.parquet', store.table_bytes(pa.table(columns)))
  figures = {'disagreement': float(std.mean())}
  # A preference is between two candidates, scores compare all of a source.
  numbers: dict[Any, int] = {}
  groups = [
    numbers.setdefault(e.source if ensemble.bounded else i, len(numbers))
    for i, e in enumerate(examples)
    for _ in e.candidates
  ]
  if len(numbers) < len(groups):
    found = agreement.agreement(np.array(wanted), mean, np.array(groups))
    figures['accuracy'] = found.accuracy
    if math.isfinite(found.tau_within):
      figures['tau_within'] = found.tau_within
  tau = agreement.kendall_tau(np.array(wanted), mean)
  if ensemble.bounded and math.isfinite(tau):
    figures['tau'] = tau
  return figures
