"""One row a policy and split: what a run found."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Row:
  """The figures of one policy on one split.

  Attributes:
    policy: BC, BC+ (the control: BC trained on for as many updates), `G1 I2`
      (second Improve step of the first Grow step), …
    split: select, report or test.
    seed: of the run.
    grow_step: g, 0 for BC.
    improve_step: i, None for BC.
    loss: how the policy was trained last.
    threshold: the selection its training rows passed.
    kept_samples: grown rows that passed it, over all sources.
    kept_sources: sources with at least one such row.
    distinct_samples: distinct (source, target) pairs among them.
    reward_mean: mean reward of samples at `TEMPERATURE`, × 100.
    reward_low: lower end of its 95 % interval (bootstrap over sources).
    reward_high: upper end.
    reward_greedy: mean reward of greedy outputs, × 100.
    reward_best_t: mean reward of samples at `best_t`, × 100.
    best_t: the temperature that was best on D_select.
    bleu: corpus BLEU of beam search; None without references.
    chrf: corpus chrF of beam search.
    bleu_signature: sacrebleu's signature of `bleu`.
    chrf_signature: sacrebleu's signature of `chrf`.
    train_tokens: target tokens seen in training, over all policies and value
      models that it was made from; see `ledger`.
    seconds: of training and evaluating this policy.
    further: what further metrics say of the same outputs, on their own scales:
      `NAME_mean` of the samples of `reward_mean`, `NAME_greedy` of greedy
      outputs; a column each.
    reward_trained_on: data sets of the split that the reward was trained on,
      so that its figures flatter; most often none.
    kept_by_length: share of samples that passed, by decile of source length,
      shortest first: ten numbers with spaces between; `-` where there is none.
    kl_bc: KL(π‖π_BC) in nats a sequence; see `divergence`. None where it was
      not measured.
    entropy: of π, in nats a sequence, from the same samples.
    distinct_1: distinct words over words, of the samples of `reward_mean`.
    distinct_2: distinct pairs of words over words.
    length_ratio: mean of characters of output over those of source.
    repeated_share: share of outputs with a phrase three times in a row.
    untranslated_share: share of outputs that are their source.
    samples_grown: samples drawn to learn from, over all that the policy was
      made from; see `ledger`.
    samples_drawn: these and the samples of D_select that decided when to stop.
    decoded_tokens: of `samples_drawn`.
    reward_calls: pairs of source and target that the reward was asked about.
    device_seconds: seconds times devices, of all stages that made the policy.
    tuning_trials: how many settings of the algorithm were tried on D_select, as
      the run was told.
  """

  policy: str
  split: str
  seed: int
  grow_step: int
  improve_step: int | None
  loss: str
  threshold: str
  kept_samples: int | None
  kept_sources: int | None
  distinct_samples: int | None
  reward_mean: float
  reward_low: float
  reward_high: float
  reward_greedy: float
  reward_best_t: float
  best_t: float
  bleu: float | None
  chrf: float | None
  bleu_signature: str
  chrf_signature: str
  train_tokens: int
  seconds: float
  further: dict[str, float | None] = dataclasses.field(default_factory=dict)
  reward_trained_on: str = ''
  kept_by_length: str = ''
  kl_bc: float | None = None
  entropy: float | None = None
  distinct_1: float | None = None
  distinct_2: float | None = None
  length_ratio: float | None = None
  repeated_share: float | None = None
  untranslated_share: float | None = None
  samples_grown: int | None = None
  samples_drawn: int | None = None
  decoded_tokens: int | None = None
  reward_calls: int | None = None
  device_seconds: float | None = None
  tuning_trials: int | None = None

  @property
  def columns(self) -> dict[str, Any]:
    """Its figures by their names in `results.csv`."""
    return {name: getattr(self, name) for name in _COLUMNS} | self.further


_COLUMNS = [f.name for f in dataclasses.fields(Row) if f.name != 'further']


def to_csv(rows: Sequence[Row]) -> str:
  """The rows as `results.csv` holds them; a missing figure is empty."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  further = dict.fromkeys(name for row in rows for name in row.further)
  names = [*_COLUMNS, *further]
  writer.writerow(names)
  for row in rows:
    columns = row.columns
    values = [columns.get(name) for name in names]
    writer.writerow([f'{v:.4f}' if isinstance(v, float) else v for v in values])
  return text.getvalue()
