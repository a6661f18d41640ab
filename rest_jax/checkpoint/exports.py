"""What the writers of other programs' checkpoints share.

A writer asks a `restoring.Source` for one array at a time, and for parts of the
large ones, so a checkpoint passes through without ever being in memory whole.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rest_jax.checkpoint import names
from rest_jax.checkpoint.restoring import Index, Source
from rest_jax.models.config import T5Config

PART_BYTES = 64 << 20  # Of what is read at a time, and of T5X's chunks.
_METRICX_SCORE_ID = 250089  # <extra_id_10> of mT5, which MetricX reads.


def read(source: Source, name: str, index: Index = ()) -> np.ndarray:
  """Part of a parameter (all by default), as float32."""
  return np.asarray(source.read(name, index), np.float32)


def part_shape(shape: Sequence[int]) -> list[int]:
  """Splits the largest axes evenly until a part is small enough."""
  part = list(shape)
  while math.prod(part) * 4 > PART_BYTES:
    axis = int(np.argmax(part))
    size = shape[axis]
    # The next smaller length that divides the axis, so that none is ragged.
    part[axis] = max(n for n in range(1, part[axis]) if size % n == 0)
  return part


def parts(shape: Sequence[int]) -> Iterator[Index]:
  """The indices of an array's parts, of `part_shape` each."""
  steps = part_shape(shape)
  starts = (range(0, n, step) for n, step in zip(shape, steps, strict=True))
  for at in itertools.product(*starts):
    yield tuple(slice(i, i + n) for i, n in zip(at, steps, strict=True))


class ScoreAsLogit:
  """A reward model as a T5, one of whose logits is the reward's raw value.

  MetricX keeps a regressor so (Juraska et al. 2023, WMT23 metrics shared task):
  the weights of that one id are the read-out. Those of all others are 0.
  """

  def __init__(self, inner: Source, vocab_size: int, score_id: int):
    """Wraps a reward model.

    Args:
      inner: its parameters, with `names.SCORE` and without `names.LOGITS`.
      vocab_size: rows of the embedding.
      score_id: the id whose logit is the value.
    """
    self.where = inner.where
    self._inner, self._score_id = inner, score_id
    shapes = dict(inner.shapes)
    emb_dim, _ = shapes.pop(names.SCORE)
    self.shapes = shapes | {names.LOGITS: (emb_dim, vocab_size)}

  def read(self, name: str, index: Index = ()) -> np.ndarray:
    """Part of a parameter."""
    if name != names.LOGITS:
      return self._inner.read(name, index)
    logits = np.zeros(self.shapes[name], np.float32)
    logits[:, self._score_id] = self._inner.read(names.SCORE)[:, 0]
    return logits[index]


def as_model(
  source: Source, config: T5Config, score_id: int | None = None
) -> tuple[Source, T5Config, int | None]:
  """What is written for a policy or a reward model, in others' formats.

  Args:
    source: the parameters.
    config: shape of the network.
    score_id: the id at which a reward model shall answer; None takes
      `score_id_of` its vocabulary.

  Returns:
    The parameters and the shape of a T5; and, for a reward model, the id whose
    logit is its value.
  """
  if names.SCORE not in source.shapes:
    return source, config, None
  if score_id is None:
    score_id = score_id_of(config.vocab_size)
  config = dataclasses.replace(config, logits_via_embedding=False)
  return ScoreAsLogit(source, config.vocab_size, score_id), config, score_id


def score_id_of(vocab_size: int) -> int:
  """The id at which an exported reward model answers: `<extra_id_10>`.

  Its place in mT5, so that MetricX's own program reads the value; in smaller
  vocabularies the eleventh from the end, where T5's own stands.
  """
  if vocab_size > _METRICX_SCORE_ID:
    return _METRICX_SCORE_ID
  return max(vocab_size - 11, 0)


def plain_config(config: T5Config) -> dict[str, Any]:
  """The fields of a configuration as JSON holds them."""
  return {
    name: list(value) if isinstance(value, tuple) else value
    for name, value in dataclasses.asdict(config).items()
  }
