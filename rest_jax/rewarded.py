"""A policy's outputs for some sources, and the rewards that they get."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from rest_jax import generation, grow, hosts, preemption
from rest_jax.context import Context
from rest_jax.decoding.sampling import Sampling
from rest_jax.rewards import base, scoring
from rest_jax.types import Params


class Split:
  """The sources of D_select, D_report or the test data, in memory."""

  def __init__(self, context: Context, split: str, limit: int | None = None):
    """Reads the first `limit` sources of a split."""
    table = pa.concat_tables(context.sources(split)).slice(0, limit)
    self.table = table
    self.source_ids = table['source_id'].to_numpy()
    self.sources = table['source'].to_pylist()
    self.source_tokens = table['source_tokens'].to_pylist()
    targets = table['target'].to_pylist()
    self.references = None if None in targets else targets


class Rewarded:
  """Draws outputs for a split and gives them their rewards."""

  def __init__(
    self,
    context: Context,
    batching: generation.Batching,
    reward: base.RewardModel,
    split: Split,
  ):
    """Samples are the same for equal parameters, whenever they are drawn."""
    self._context, self._batching = context, batching
    self._reward, self._split = reward, split

  def __call__(
    self, params: Params, sampling: Sampling, num_samples: int
  ) -> tuple[Float[np.ndarray, 'k n'], list[str], generation.Generated]:
    """Rewards [k, n] in [0, 1], texts (k · n) and tokens of the outputs.

    Each process draws and scores its share; what is returned is everybody's,
    but for the rest.
    """
    rewards, texts, generated = self.of_share(params, sampling, num_samples)
    size = len(self._split.sources)
    return hosts.gather_rows(rewards, size), texts, generated

  def of_share(
    self, params: Params, sampling: Sampling, num_samples: int
  ) -> tuple[Float[np.ndarray, 'm n'], list[str], generation.Generated]:
    """The same of this process's share of the sources.

    Raises:
      PreemptionError: SIGTERM came, here or to another process.
    """
    split = self._split
    share = hosts.share(len(split.sources))
    generated = generation.generate(
      self._context.decoder,
      params,
      split.source_tokens[share],
      split.source_ids[share],
      seed=self._context.seed,
      purpose='evaluate',
      step=0,  # The same draws for every policy: differences are sharper.
      num_samples=num_samples,
      sampling=sampling,
      batching=self._batching,
      num_tokens=self._context.tokenizer.size,
      advance=check,
    )
    texts = grow.decode(self._context, generated)
    references = split.references and repeat(
      split.references[share], num_samples
    )
    rewards = scoring.rewards(
      self._reward,
      repeat(split.sources[share], num_samples),
      texts,
      references,
      batch_size=self._context.score_batch_size,
      cache=self._context.scores,
      advance=check,
    ).reshape(-1, num_samples)
    return rewards, texts, generated


def check(done: int) -> None:
  """Ends a batch, of tokens or rows, and with it the run if it is due."""
  del done
  preemption.check()


def repeat(values: Sequence[str], count: int) -> list[str]:
  """Each value so many times in a row."""
  return [value for value in values for _ in range(count)]
