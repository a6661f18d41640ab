"""A policy's outputs for some sources, and the rewards that they get."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from rest_jax import generation, hosts, preemption
from rest_jax.context import Context
from rest_jax.decoding.sampling import Sampling
from rest_jax.rewards import base, scoring
from rest_jax.types import Params


class Split:
  """The sources of a split, such as D_report, in memory."""

  def __init__(self, context: Context, split: str, limit: int | None = None):
    """Reads the first `limit` sources of a split."""
    table = pa.concat_tables(context.sources(split)).slice(0, limit)
    self.table = table
    self.source_ids = table['source_id'].to_numpy()
    self.sources = table['source'].to_pylist()
    self.source_tokens = table['source_tokens'].to_pylist()
    targets = table['target'].to_pylist()
    self.references = None if None in targets else targets


@dataclasses.dataclass(frozen=True)
class Outputs:
  """Outputs for the k sources of a split, or of this process's share of it.

  Attributes:
    rewards: [k, n], in [0, 1].
    texts: k · n, source by source.
    generated: their tokens.
  """

  rewards: Float[np.ndarray, 'k n']
  texts: list[str]
  generated: generation.Generated

  def gathered(self, context: Context, num_sources: int) -> 'Outputs':
    """Those of all processes, from those of this one's share."""
    if hosts.count() == 1:
      return self
    fields = dataclasses.fields(self.generated)
    drawn = [getattr(self.generated, field.name) for field in fields]
    rewards, *drawn = hosts.gather_each([self.rewards, *drawn], num_sources)
    generated = generation.Generated(*drawn)
    return Outputs(rewards, generated.texts(context.tokenizer), generated)


class Rewarded:
  """Draws outputs for a split and gives them their rewards.

  Each process does so for its share of the sources.
  """

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

  def mean(self, params: Params, sampling: Sampling, num_samples: int) -> float:
    """The mean reward of all processes' outputs."""
    rewards = self(params, sampling, num_samples).rewards
    everybodys = hosts.gather_rows(rewards, len(self._split.sources))
    return float(everybodys.mean(dtype=np.float64))

  def __call__(
    self, params: Params, sampling: Sampling, num_samples: int
  ) -> Outputs:
    """Draws `num_samples` outputs for each source of this process's share.

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
    texts = generated.texts(self._context.tokenizer)
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
    return Outputs(rewards, texts, generated)


def check(done: int) -> None:
  """Ends a batch, of tokens or rows, and with it the run if it is due."""
  del done
  preemption.check()


def repeat(values: Sequence[str], count: int) -> list[str]:
  """Each value so many times in a row."""
  return [value for value in values for _ in range(count)]
