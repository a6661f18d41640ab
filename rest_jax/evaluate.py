"""Evaluate: what a policy's outputs are worth on sources it never saw."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import sacrebleu
from jaxtyping import Float

from rest_jax import generation, grow, hosts, preemption, results
from rest_jax import rewarded as rewarded_lib
from rest_jax.context import Context
from rest_jax.data import store
from rest_jax.decoding.sampling import Sampling
from rest_jax.errors import ConfigurationError, PreemptionError
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


def select_reward(
  context: Context, settings: Evaluate, reward: base.RewardModel
):
  """A function from parameters to their mean reward on D_select.

  It raises PreemptionError, in all processes, when SIGTERM came to one.
  """
  split = rewarded_lib.Split(context, 'select', settings.select_sources)
  rewarded = rewarded_lib.Rewarded(context, settings.batching, reward, split)

  def evaluate(params: Params) -> float:
    decoder = context.decoder
    params = decoder.adopt(decoder.decode_params(params))
    stopped = None
    try:
      rewards, _, _ = rewarded.of_share(
        params, settings.sampling, settings.select_samples
      )
    except PreemptionError as error:
      stopped, rewards = error, None
    # To save what was trained, all have to stop where one does.
    if any(hosts.gather('whether to stop', stopped is not None)):
      raise stopped or preemption.preempted()
    rewards = hosts.gather_rows(rewards, len(split.sources))
    return float(rewards.mean(dtype=np.float64))

  return evaluate


def corpus_scores(
  outputs: Sequence[str],
  references: Sequence[str] | None,
  target_language: str,
) -> dict[str, Any]:
  """Corpus BLEU and chrF with their sacrebleu signatures.

  Args:
    outputs: n translations.
    references: n references; None gives None for both figures.
    target_language: chooses BLEU's tokeniser.

  Returns:
    `bleu`, `chrf` (0–100 or None), `bleu_signature`, `chrf_signature`.
  """
  if references is None:
    return {
        'bleu': None, 'chrf': None, 'bleu_signature': '', 'chrf_signature': ''
    }  # fmt: skip
  bleu, chrf = sacrebleu.BLEU(trg_lang=target_language), sacrebleu.CHRF()
  return {
    'bleu': bleu.corpus_score(outputs, [references]).score,
    'chrf': chrf.corpus_score(outputs, [references]).score,
    'bleu_signature': str(bleu.get_signature()),
    'chrf_signature': str(chrf.get_signature()),
  }


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
  params = context.decoding_params(policy_name)
  data = rewarded_lib.Split(context, split)
  rewarded = rewarded_lib.Rewarded(context, settings.batching, reward, data)
  num_samples = settings.num_samples
  progress = functools.partial(context.progress.update, total=4)
  sampled, texts, generated = rewarded(params, settings.sampling, num_samples)
  progress(1)
  greedy, greedy_texts, greedily = rewarded(
    params, Sampling(temperature=0.0), 1
  )
  progress(2)
  best_t = _best_temperature(context, settings, reward, params)
  at_best, _, _ = rewarded(
    params,
    dataclasses.replace(settings.sampling, temperature=best_t),
    num_samples,
  )
  progress(3)
  beams = _beam_texts(context, settings, params, data)
  progress(4)
  further = {
    f'{metric.info.name}_{name}': _further(context, metric, data, some, each)
    for metric in further_metrics
    for name, some, each in (
      ('mean', texts, num_samples),
      ('greedy', greedy_texts, 1),
    )
  }
  texts, generated = _everybodys(context, data, texts, generated)
  greedy_texts, _ = _everybodys(context, data, greedy_texts, greedily)
  figures = _figures(sampled, greedy) | {
    'reward_best_t': 100 * float(at_best.mean(dtype=np.float64)),
    'best_t': best_t,
    'reward_trained_on': ' '.join(reward_trained_on),
    'further': further,
  }

  def finish() -> None:
    figures.update(
      corpus_scores(beams, data.references, settings.target_language)
    )
    _write_samples(stage, data, sampled, texts, generated)
    _write_beams(stage, data, beams, greedy_texts, greedy)
    numbers = {k: v for k, v in figures.items() if isinstance(v, float)}
    numbers |= {k: v for k, v in further.items() if v is not None}
    context.progress.scalars(policy_name, 0, numbers)
    stage.commit(
      counts={'sources': len(data.sources), 'samples': sampled.size},
      seconds=time.monotonic() - began,
      extra={'figures': figures},
    )

  hosts.on_first(finish)


def _figures(
  sampled: Float[np.ndarray, 'k n'], greedy: Float[np.ndarray, 'k 1']
) -> dict[str, Any]:
  per_source = sampled.mean(axis=1, dtype=np.float64)
  low, high = results.bootstrap_interval(per_source)
  return {
    'reward_mean': 100 * float(per_source.mean()),
    'reward_low': 100 * low,
    'reward_high': 100 * high,
    'reward_greedy': 100 * float(greedy.mean(dtype=np.float64)),
  }


def _everybodys(
  context: Context,
  data: rewarded_lib.Split,
  texts: list[str],
  generated: generation.Generated,
) -> tuple[list[str], generation.Generated]:
  """The outputs of all processes, from those of this one's share."""
  if hosts.count() == 1:
    return texts, generated
  generated = generated.gathered(len(data.sources))
  return grow.decode(context, generated), generated


def _further(
  context: Context,
  metric: base.RewardModel,
  data: rewarded_lib.Split,
  texts: Sequence[str],
  each: int,
) -> float | None:
  """A further metric's mean over outputs, `each` a source, on its own scale.

  Each process scores its share. None without references where the metric needs
  them.
  """
  if data.references is None and metric.info.needs_reference:
    return None
  share, size = hosts.share(len(data.sources)), len(data.sources)
  references = data.references and rewarded_lib.repeat(
    data.references[share], each
  )
  scores = scoring.raw_scores(
    metric,
    rewarded_lib.repeat(data.sources[share], each),
    texts,
    references,
    cache=context.scores,
  )
  scores = hosts.gather_rows(scores.reshape(-1, each), size)
  return float(scores.mean(dtype=np.float64))


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
    rewards, _, _ = rewarded(params, sampling, settings.select_samples)
    return float(rewards.mean(dtype=np.float64))

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
  stage: Stage,
  data: rewarded_lib.Split,
  rewards: np.ndarray,
  texts: Sequence[str],
  generated: generation.Generated,
) -> None:
  table = grow.sample_rows(data.table, generated, texts, grow_step=0)
  table = table.append_column('reward', pa.array(rewards.reshape(-1)))
  stage.write_part('samples.parquet', store.table_bytes(table))


def _write_beams(
  stage: Stage,
  data: rewarded_lib.Split,
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
