"""Evaluate: what a policy's outputs are worth on sources it never saw."""

import dataclasses
import functools
import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import sacrebleu
from jaxtyping import Float

from rest_jax import (
  best_of_n,
  diagnostics,
  divergence,
  generation,
  grow,
  results,
)
from rest_jax.context import Context
from rest_jax.data import store
from rest_jax.decoding.sampling import Sampling
from rest_jax.errors import ConfigurationError
from rest_jax.rewards import base, scoring
from rest_jax.run_directory import Stage
from rest_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Evaluate:
  """How policies are evaluated.

  Attributes:
    target_language: ISO 639-1 code; sacrebleu tokenises Chinese, Japanese and
      Korean by it.
    num_samples: samples a source for the mean reward.
    sampling: how they are drawn; as in Grow.
    temperatures: tried on D_select to find the best one for this policy.
    num_beams: of beam search, for BLEU and chrF.
    alpha: exponent of beam search's brevity penalty.
    batching: shapes of decoding.
    select_sources: sources of D_select used while training (the first ones).
    select_samples: samples for each of these.
    divergence: whether KL(π‖π_BC) and the entropy are measured, which takes
      samples at T = 1 and BC's parameters beside the policy's.
  """

  target_language: str
  num_samples: int = 4
  sampling: Sampling = Sampling()
  temperatures: tuple[float, ...] = (0.1, 0.3, 0.5, 0.8)
  num_beams: int = 4
  alpha: float = 0.6
  batching: generation.Batching = generation.Batching()
  select_sources: int = 512
  select_samples: int = 4
  divergence: bool = True

  def __post_init__(self):
    counts = ('num_samples', 'select_sources', 'select_samples', 'num_beams')
    for name in counts:
      if getattr(self, name) < 1:
        raise ConfigurationError(
          f'Evaluate.{name} = {getattr(self, name)} must be at least 1.'
        )
    if not self.temperatures:
      raise ConfigurationError(
        'Evaluate.temperatures is empty; give at least one, e.g. (0.8,).'
      )
    for temperature in self.temperatures:
      dataclasses.replace(self.sampling, temperature=temperature)  # Checks it.
    try:
      sacrebleu.BLEU(trg_lang=self.target_language)
    except (RuntimeError, ImportError) as error:
      raise ConfigurationError(
        f'TARGET_LANGUAGE = {self.target_language!r}: sacrebleu cannot tokenise'
        f' it ({" ".join(str(error).split())}).'
      ) from error


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
    settings: Evaluate,
    reward: base.RewardModel,
    split: Split,
  ):
    """Samples are the same for equal parameters, whenever they are drawn."""
    self._context, self._settings = context, settings
    self._reward, self._split = reward, split

  def __call__(
    self, params: Params, sampling: Sampling, num_samples: int
  ) -> tuple[Float[np.ndarray, 'k n'], list[str], generation.Generated]:
    """Rewards [k, n] in [0, 1], texts (k · n) and tokens of the outputs."""
    split = self._split
    generated = generation.generate(
      self._context.policy,
      params,
      split.source_tokens,
      split.source_ids,
      seed=self._context.seed,
      purpose='evaluate',
      step=0,  # The same draws for every policy: differences are sharper.
      num_samples=num_samples,
      sampling=sampling,
      batching=self._settings.batching,
      num_tokens=self._context.tokenizer.size,
    )
    texts = grow.decode(self._context, generated)
    references = split.references and _repeat(split.references, num_samples)
    rewards = scoring.rewards(
      self._reward,
      _repeat(split.sources, num_samples),
      texts,
      references,
      cache=self._context.scores,
    )
    return rewards.reshape(-1, num_samples), texts, generated


def _repeat(values: Sequence[str], count: int) -> list[str]:
  return [value for value in values for _ in range(count)]


class SelectReward:
  """From parameters to their mean reward on D_select; counts what it costs.

  Attributes:
    num_samples: samples that each call draws.
    decoded_tokens: tokens of all calls so far.
  """

  def __init__(
    self, context: Context, settings: Evaluate, reward: base.RewardModel
  ):
    """Reads the sources; draws nothing yet."""
    split = Split(context, 'select', settings.select_sources)
    self._rewarded = Rewarded(context, settings, reward, split)
    self._settings = settings
    self.num_samples = len(split.sources) * settings.select_samples
    self.decoded_tokens = 0

  def __call__(self, params: Params) -> float:
    """The mean reward, in [0, 1]."""
    settings = self._settings
    rewards, _, generated = self._rewarded(
      params, settings.sampling, settings.select_samples
    )
    self.decoded_tokens += int(generated.lengths.sum())
    return float(rewards.mean(dtype=np.float64))


def run(
  context: Context,
  stage: Stage,
  settings: Evaluate,
  *,
  policy_name: str,
  split: str,
  reward: base.RewardModel,
  further_metrics: Sequence[base.RewardModel] = (),
  reward_trained_on: Sequence[str] = (),
) -> None:
  """Evaluates one policy on one split and writes its outputs beside.

  Args:
    context: the run.
    stage: where to write; begun.
    settings: how.
    policy_name: stage of the policy.
    split: 'report', 'select' or 'test'.
    reward: R(x, y).
    further_metrics: metrics that judge the same outputs beside it.
    reward_trained_on: data sets of this split that the reward was trained on;
      a mark in the results.

  Raises:
    RewardError: a metric failed, or the reward needs references and the split
      has none.
  """
  began = time.monotonic()
  params = context.params(policy_name)
  data = Split(context, split)
  rewarded = Rewarded(context, settings, reward, data)
  progress = functools.partial(context.progress.update, total=5)
  sampled, texts, generated = rewarded(
    params, settings.sampling, settings.num_samples
  )
  progress(1)
  greedy, greedy_texts, _ = rewarded(params, Sampling(temperature=0.0), 1)
  progress(2)
  best_t = _best_temperature(context, settings, reward, params)
  at_best, _, _ = rewarded(
    params,
    dataclasses.replace(settings.sampling, temperature=best_t),
    settings.num_samples,
  )
  progress(3)
  beams = _beam_texts(context, settings, params, data)
  progress(4)
  table = grow.sample_rows(data.table, generated, texts, grow_step=0)
  described = diagnostics.describe(table)
  if settings.divergence:
    described |= _divergence(context, settings, policy_name, params, data)
  progress(5)
  table = table.append_column('reward', pa.array(sampled.reshape(-1)))
  _write_beams(stage, data, beams, greedy_texts, greedy)
  figures = _reward_mean(sampled) | {
    'reward_greedy': 100 * float(greedy.mean(dtype=np.float64)),
    'reward_best_t': 100 * float(at_best.mean(dtype=np.float64)),
    'best_t': best_t,
    'reward_trained_on': ' '.join(reward_trained_on),
  }
  figures |= diagnostics.corpus_scores(
    beams, data.references, settings.target_language
  )
  figures |= described
  figures['further'], table = _all_further(
    context, further_metrics, data, table, greedy_texts
  )
  stage.write_part('samples.parquet', store.table_bytes(table))
  numbers = figures | figures['further']
  numbers = {k: v for k, v in numbers.items() if isinstance(v, float)}
  context.progress.scalars(policy_name, 0, numbers)
  stage.commit(
    counts={'sources': len(data.sources), 'samples': sampled.size},
    seconds=time.monotonic() - began,
    extra={'figures': figures},
  )


def _reward_mean(sampled: Float[np.ndarray, 'k n']) -> dict[str, float]:
  per_source = sampled.mean(axis=1, dtype=np.float64)
  low, high = results.bootstrap_interval(per_source)
  return {
    'reward_mean': 100 * float(per_source.mean()),
    'reward_low': 100 * low,
    'reward_high': 100 * high,
  }


def _divergence(
  context: Context,
  settings: Evaluate,
  policy_name: str,
  params: Params,
  data: Split,
) -> dict[str, float]:
  return divergence.figures(
    context,
    policy_name,
    params,
    data.source_tokens,
    data.source_ids,
    num_samples=settings.num_samples,
    batching=settings.batching,
  )


def _all_further(
  context: Context,
  metrics: Sequence[base.RewardModel],
  data: Split,
  samples: pa.Table,
  greedy: Sequence[str],
) -> tuple[dict[str, float | None], pa.Table]:
  """The figures of all further metrics, and the samples with their scores."""
  figures: dict[str, float | None] = {}
  texts = samples['target'].to_pylist()
  for metric in metrics:
    means, scores = _further(context, metric, data, texts, greedy)
    figures |= means
    if scores is not None:
      name = best_of_n.SCORE + metric.info.name
      samples = samples.append_column(name, pa.array(scores))
  return figures, samples


def _further(
  context: Context,
  metric: base.RewardModel,
  data: Split,
  sampled: Sequence[str],
  greedy: Sequence[str],
) -> tuple[dict[str, float | None], np.ndarray | None]:
  """A further metric's means over sampled and greedy outputs, on its own scale.

  And its scores of the sampled ones. None without references where the metric
  needs them.
  """
  out: dict[str, float | None] = {}
  of_samples = None
  for name, texts in (('mean', sampled), ('greedy', greedy)):
    count = len(texts) // len(data.sources)
    references = data.references and _repeat(data.references, count)
    value = None
    if references is not None or not metric.info.needs_reference:
      scores = scoring.raw_scores(
        metric,
        _repeat(data.sources, count),
        texts,
        references,
        cache=context.scores,
      )
      value = float(scores.mean(dtype=np.float64))
      of_samples = scores if name == 'mean' else of_samples
    out[f'{metric.info.name}_{name}'] = value
  return out, of_samples


def _best_temperature(
  context: Context,
  settings: Evaluate,
  reward: base.RewardModel,
  params: Params,
) -> float:
  """The temperature with the highest mean reward on D_select."""
  if len(settings.temperatures) == 1:
    return settings.temperatures[0]
  split = Split(context, 'select', settings.select_sources)
  rewarded = Rewarded(context, settings, reward, split)

  def mean_at(temperature: float) -> float:
    sampling = dataclasses.replace(settings.sampling, temperature=temperature)
    rewards, _, _ = rewarded(params, sampling, settings.select_samples)
    return float(rewards.mean(dtype=np.float64))

  return max(settings.temperatures, key=mean_at)


def _beam_texts(
  context: Context, settings: Evaluate, params: Params, data: Split
) -> list[str]:
  beams = generation.generate_beam(
    context.policy,
    params,
    data.source_tokens,
    num_beams=settings.num_beams,
    alpha=settings.alpha,
    batching=settings.batching,
    num_tokens=context.tokenizer.size,
  )
  return [context.tokenizer.decode(tokens.tolist()) for tokens in beams]


def _write_beams(
  stage: Stage,
  data: Split,
  beams: Sequence[str],
  greedy: Sequence[str],
  greedy_rewards: np.ndarray,
) -> None:
  table = pa.table(
    {
      'source_id': data.table['source_id'],
      'source': data.table['source'],
      'reference': data.table['target'],
      'beam': list(beams),
      'greedy': list(greedy),
      'greedy_reward': greedy_rewards[:, 0],
    }
  )
  stage.write_part('beam.parquet', store.table_bytes(table))
