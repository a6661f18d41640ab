"""Evaluate: what a policy's outputs are worth on sources it never saw."""

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from typing import Any

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
  hosts,
  language,
  significance,
)
from rest_jax import rewarded as rewarded_lib
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
    sampling: how they are drawn; Grow may draw others.
    temperatures: tried on D_select to find the best one for this policy.
    num_beams: of beam search, for BLEU and chrF.
    alpha: exponent of beam search's brevity penalty.
    batching: shapes of decoding.
    select_sources: sources of D_select used while training (the first ones).
    select_samples: samples for each of these.
    divergence_sources: sources of the split (the first ones) on which
      KL(π‖π_BC) and the entropy are measured; 0 for none. It takes samples at
      T = 1, and BC's parameters beside the policy's.
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
  divergence_sources: int = 128

  def __post_init__(self):
    counts = ('num_samples', 'select_sources', 'select_samples', 'num_beams')
    for name in counts:
      if getattr(self, name) < 1:
        raise ConfigurationError(
          f'Evaluate.{name} = {getattr(self, name)} must be at least 1.'
        )
    if not 0 <= self.alpha < math.inf:
      raise ConfigurationError(
        f'Evaluate.alpha = {self.alpha} must be a number from 0: the search'
        ' could end before the best beam.'
      )
    if self.divergence_sources < 0:
      raise ConfigurationError(
        f'Evaluate.divergence_sources = {self.divergence_sources} must be at'
        ' least 0.'
      )
    if not self.temperatures:
      raise ConfigurationError(
        'Evaluate.temperatures is empty; give at least one, e.g. (0.8,).'
      )
    for temperature in self.temperatures:
      dataclasses.replace(self.sampling, temperature=temperature)  # Checks it.
    try:
      sacrebleu.BLEU(trg_lang=language.primary(self.target_language))
    except (RuntimeError, ImportError) as error:
      raise ConfigurationError(
        f'TARGET_LANGUAGE = {self.target_language!r}: sacrebleu cannot tokenise'
        f' it ({" ".join(str(error).split())}).'
      ) from error


@dataclasses.dataclass(frozen=True)
class _Measured:
  """What was found out of a policy, by all processes.

  Attributes:
    samples: at `Evaluate.sampling`.
    greedy: at temperature 0.
    beams: texts of beam search.
    scores: column → [k, n], further metrics' of the samples.
    figures: of results.csv, but those of what is written.
  """

  samples: rewarded_lib.Outputs
  greedy: rewarded_lib.Outputs
  beams: list[str]
  scores: dict[str, Float[np.ndarray, 'k n']]
  figures: dict[str, Any]


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
  data = rewarded_lib.Split(context, split)
  measured = _measure(
    context, settings, policy_name, data, reward, further_metrics
  )
  told = {'reward_trained_on': ' '.join(reward_trained_on)}
  hosts.on_first(
    lambda: _write(
      context, stage, settings, policy_name, data, measured, told, began
    )
  )


def _measure(
  context: Context,
  settings: Evaluate,
  policy_name: str,
  data: rewarded_lib.Split,
  reward: base.RewardModel,
  further_metrics: Sequence[base.RewardModel],
) -> _Measured:
  """Draws from the policy and scores what it says."""
  params = context.decoding_params(policy_name)
  rewarded = rewarded_lib.Rewarded(context, settings.batching, reward, data)
  progress = functools.partial(context.progress.update, total=5)
  samples = rewarded(params, settings.sampling, settings.num_samples)
  progress(1)
  greedy = rewarded(params, Sampling(temperature=0.0), 1)
  progress(2)
  best_t = _best_temperature(context, settings, reward, params)
  best = dataclasses.replace(settings.sampling, temperature=best_t)
  at_best = rewarded.mean(params, best, settings.num_samples)
  progress(3)
  beams = _beam_texts(context, settings, params, data)
  progress(4)
  further, scores = _all_further(
    context,
    further_metrics,
    data,
    {
      'mean': (samples.texts, settings.num_samples),
      'greedy': (greedy.texts, 1),
    },
  )
  samples, greedy = (
    outputs.gathered(context, len(data.sources))
    for outputs in (samples, greedy)
  )
  figures = _figures(samples.rewards, greedy.rewards) | {
    'reward_best_t': 100 * at_best,
    'best_t': best_t,
    'further': further,
  }
  if settings.divergence_sources:
    figures |= _divergence(context, settings, policy_name, params, data)
  progress(5)
  return _Measured(samples, greedy, beams, scores, figures)


def _write(
  context: Context,
  stage: Stage,
  settings: Evaluate,
  policy_name: str,
  data: rewarded_lib.Split,
  measured: _Measured,
  told: dict[str, str],
  began: float,
) -> None:
  """Writes the outputs and commits the figures, with what is told besides."""
  table = _write_samples(stage, data, measured)
  _write_beams(stage, data, measured)
  figures = (
    measured.figures
    | told
    | diagnostics.describe(table)
    | diagnostics.corpus_scores(
      measured.beams, data.references, settings.target_language
    )
  )
  numbers = (figures | figures['further']).items()
  split = stage.name.rpartition('/')[2]
  context.progress.scalars(
    policy_name,
    0,
    {f'{split}/{k}': v for k, v in numbers if isinstance(v, float)},
  )
  rewards = measured.samples.rewards
  stage.commit(
    counts={'sources': len(data.sources), 'samples': rewards.size},
    seconds=time.monotonic() - began,
    extra={'figures': figures},
  )


def _figures(
  sampled: Float[np.ndarray, 'k n'], greedy: Float[np.ndarray, 'k 1']
) -> dict[str, Any]:
  per_source = sampled.mean(axis=1, dtype=np.float64)
  low, high = significance.bootstrap_interval(per_source)
  return {
    'reward_mean': 100 * float(per_source.mean()),
    'reward_low': 100 * low,
    'reward_high': 100 * high,
    'reward_greedy': 100 * float(greedy.mean(dtype=np.float64)),
  }


def _divergence(
  context: Context,
  settings: Evaluate,
  policy_name: str,
  params: Params,
  data: rewarded_lib.Split,
) -> dict[str, float]:
  return divergence.figures(
    context,
    policy_name,
    params,
    data.source_tokens[: settings.divergence_sources],
    data.source_ids[: settings.divergence_sources],
    num_samples=settings.num_samples,
    batching=settings.batching,
  )


def _all_further(
  context: Context,
  metrics: Sequence[base.RewardModel],
  data: rewarded_lib.Split,
  outputs: dict[str, tuple[Sequence[str], int]],
) -> tuple[dict[str, float | None], dict[str, Float[np.ndarray, 'k n']]]:
  """The means of all further metrics, and their scores of 'mean' outputs.

  Each process scores its share of the outputs, `n` a source. A mean is None
  without references where the metric needs them.

  Args:
    context: the run.
    metrics: the further metrics.
    data: the sources.
    outputs: name → this process's outputs, and n.
  """
  figures: dict[str, float | None] = {}
  scores: dict[str, np.ndarray] = {}
  for metric in metrics:
    known = data.references is not None or not metric.info.needs_reference
    for name, (texts, each) in outputs.items():
      key = f'{metric.info.name}_{name}'
      figures[key] = None
      if known:
        found = _further(context, metric, data, texts, each)
        figures[key] = float(found.mean(dtype=np.float64))
        if name == 'mean':
          scores[best_of_n.SCORE + metric.info.name] = found
  return figures, scores


def _further(
  context: Context,
  metric: base.RewardModel,
  data: rewarded_lib.Split,
  texts: Sequence[str],
  each: int,
) -> Float[np.ndarray, 'k n']:
  """A further metric's scores of outputs, `each` a source, on its own scale."""
  share, size = hosts.share(len(data.sources)), len(data.sources)
  references = data.references and rewarded_lib.repeat(
    data.references[share], each
  )
  scores = scoring.raw_scores(
    metric,
    rewarded_lib.repeat(data.sources[share], each),
    texts,
    references,
    batch_size=context.score_batch_size,
    cache=context.scores,
    advance=rewarded_lib.check,
  )
  return hosts.gather_rows(scores.reshape(-1, each), size)


def _best_temperature(
  context: Context,
  settings: Evaluate,
  reward: base.RewardModel,
  params: Params,
) -> float:
  """The temperature with the highest mean reward on D_select."""
  if len(settings.temperatures) == 1:
    return settings.temperatures[0]
  split = rewarded_lib.Split(context, 'select', settings.select_sources)
  rewarded = rewarded_lib.Rewarded(context, settings.batching, reward, split)

  def mean_at(temperature: float) -> float:
    sampling = dataclasses.replace(settings.sampling, temperature=temperature)
    return rewarded.mean(params, sampling, settings.select_samples)

  return max(settings.temperatures, key=mean_at)


def _beam_texts(
  context: Context, settings: Evaluate, params: Params, data: rewarded_lib.Split
) -> list[str]:
  beams = generation.generate_beam(
    context.decoder,
    params,
    data.source_tokens[hosts.share(len(data.sources))],
    num_beams=settings.num_beams,
    alpha=settings.alpha,
    batching=settings.batching,
    num_tokens=context.tokenizer.size,
    advance=rewarded_lib.check,
  )
  if hosts.count() > 1:
    rows = np.zeros((len(beams), settings.batching.max_decode_len), np.int32)
    for row, tokens in zip(rows, beams, strict=True):
      row[: len(tokens)] = tokens
    rows = hosts.gather_rows(rows, len(data.sources))
    beams = [row[: np.count_nonzero(row)] for row in rows]
  return [context.tokenizer.decode(tokens.tolist()) for tokens in beams]


def _write_samples(
  stage: Stage, data: rewarded_lib.Split, measured: _Measured
) -> pa.Table:
  samples = measured.samples
  table = grow.sample_rows(
    data.table, samples.generated, samples.texts, grow_step=0
  )
  for name, values in ({'reward': samples.rewards} | measured.scores).items():
    table = table.append_column(name, pa.array(values.reshape(-1)))
  stage.write_part('samples.parquet', store.table_bytes(table))
  return table


def _write_beams(
  stage: Stage, data: rewarded_lib.Split, measured: _Measured
) -> None:
  table = pa.table(
    {
      'source_id': data.table['source_id'],
      'source': data.table['source'],
      'reference': data.table['target'],
      'beam': measured.beams,
      'greedy': measured.greedy.texts,
      'greedy_reward': measured.greedy.rewards[:, 0],
    }
  )
  stage.write_part('beam.parquet', store.table_bytes(table))
