"""The value V(x, y_<t): what reward a prefix of a sample still promises.

A T5 encoder–decoder with a scalar at every prefix, trained on the Monte-Carlo
returns of the stored samples:

  L(φ) = E_{(x,y)~D_g} Σ_t (V_φ(x, y_<t) − R(x, y))²

The reward comes at the end and is not discounted (the ReST paper, appendix
A.8.4, discounts by a γ that it does not give), so that it is the return of
every prefix, and A(x, y_≤t) = R(x, y) − V(x, y_<t) is the advantage of a token.
"""

import dataclasses
import functools
import hashlib
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, Key

from rest_jax import (
  grown_data,
  hosts,
  losses,
  offline_losses,
  online_losses,
  scratch,
  selection,
  training_stage,
)
from rest_jax.checkpoint import native
from rest_jax.context import BC, PARAMS, Context
from rest_jax.data import loader
from rest_jax.errors import ConfigurationError, DataError
from rest_jax.models.heads import Valuer
from rest_jax.network import Network
from rest_jax.policy import AroundPolicy, Policy
from rest_jax.rewards import agreement
from rest_jax.run_directory import Stage
from rest_jax.training import early_stopping, step
from rest_jax.types import Batch, Params

# A tenth of what layers begin with: values of about 0.1 before any is learned.
_FIRST_READ_OUT = 0.1
_JUDGED = 4096  # Samples whose order is compared.


@dataclasses.dataclass(frozen=True)
class TrainValue:
  """How the value model is trained; it begins as BC with a new read-out.

  Attributes:
    training: optimizer and batch shape; the loss is the value's, whatever is
      set.
    stopping: until when, by the loss on held-out sources.
    held_out: share of the sources.
  """

  training: early_stopping.Training
  stopping: early_stopping.Stopping
  held_out: float = 0.1

  def __post_init__(self):
    if not 0.0 < self.held_out < 1.0:
      raise ConfigurationError(
        f'TrainValue.held_out = {self.held_out} must be in (0, 1).'
      )


@dataclasses.dataclass(frozen=True)
class ValueModel(Network):
  """A T5 network with a scalar at every prefix. Holds no parameters."""

  def score(
    self,
    params: Params,
    batch: Batch,
    dropout_key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'b t']:
    """Returns V(x, y_<t) at each target token y_t, float32. Traceable.

    Args:
      params: the parameters.
      batch: rows of padded or packed pairs.
      dropout_key: a key to train with dropout; None: no dropout.
    """
    rngs = None if dropout_key is None else {'dropout': dropout_key}
    batch = jax.tree.map(jnp.asarray, batch)
    return self._model.apply(
      {'params': params},
      batch.encoder_input_tokens,
      batch.decoder_input_tokens,
      batch.encoder_segment_ids,
      batch.decoder_segment_ids,
      rngs=rngs,
    )

  @functools.cached_property
  def _model(self) -> Valuer:
    return Valuer(self.config, self.placement)


@dataclasses.dataclass(frozen=True)
class ActorCritic(AroundPolicy):
  """PPO's network: the policy and a value model; static in `jit`.

  Attributes:
    policy: the policy.
    value: the value model.
  """

  policy: Policy
  value: ValueModel

  def abstract_params(self) -> Params:
    """Returns the tree of `jax.ShapeDtypeStruct`s of the parameters."""
    return {
      'policy': self.policy.abstract_params(),
      'value': self.value.abstract_params(),
    }

  def param_shardings(self) -> Params:
    """Returns the tree of the parameters' `NamedSharding`s."""
    return {
      'policy': self.policy.param_shardings(),
      'value': self.value.param_shardings(),
    }

  def score(
    self,
    params: Params,
    batch: Batch,
    dropout_key: Key[Array, ''] | None = None,
  ) -> online_losses.ActorScores:
    """Scores every target token of a batch. Traceable."""
    scores = self.policy.score(params['policy'], batch, dropout_key)
    found = self.value.score(params['value'], batch, dropout_key)
    return online_losses.ActorScores(log_probs=scores.log_probs, values=found)


def from_policy(model: ValueModel, params: Params, seed: int) -> Params:
  """The policy's parameters with a new read-out, whose values are near 0.

  It must not be 0: the optimizers here move a parameter in proportion to its
  size, and those of 0 would be the last to move.

  Args:
    model: of the policy's shape.
    params: the policy's.
    seed: of what the policy lacks.
  """
  own = traverse_util.flatten_dict(model.init(seed), sep='/')
  given = traverse_util.flatten_dict(params, sep='/')
  for name in own:
    own[name] = given.get(name, _FIRST_READ_OUT * own[name])
  return traverse_util.unflatten_dict(own, sep='/')


def stage_name(grow_step: int, *, permuted: bool) -> str:
  """The stage of a Grow step's value model."""
  return f'{"permuted/" if permuted else ""}grow_{grow_step}/value'


def run(
  context: Context,
  stage: Stage,
  settings: TrainValue,
  grown: grown_data.GrownData,
) -> None:
  """Trains the value model on all finished samples of D_g, and judges it.

  Args:
    context: the run.
    stage: where to write; begun.
    settings: how.
    grown: the samples and their rewards.

  Raises:
    DataError: no sample is left to train on, or to hold out.
    NonFiniteError: training diverged.
  """
  began = time.monotonic()
  loss = offline_losses.ValueRegression()
  training = dataclasses.replace(settings.training, loss=loss)
  model = ValueModel(context.model, context.layout)
  paths = {name: stage.work / name for name in ('rows', 'held_out')}

  def write() -> None:
    for name, path in paths.items():
      loader.write_rows(
        scratch.local(path),
        _part(_rows(grown, loss), settings.held_out, name == 'held_out'),
        figures=grown_data.written_figures(loss),
      )

  hosts.on_first(write)
  parts = {
    name: loader.TrainingBatches(
      loader.TrainingRows.open(scratch.share(path)),
      training.packing,
      context.seed,
      'union',
      *model.placement.batch_share,
    )
    for name, path in paths.items()
  }
  eval_step = step.make_eval_step(model, loss)

  def evaluate(params: Params) -> float:
    found = step.evaluate_loss(eval_step, params, parts['held_out'].once())
    return -found[loss.figure]

  outcome = training_stage.train(
    context,
    stage,
    model,
    lambda: from_policy(model, context.read_params(BC), context.seed),
    training,
    settings.stopping,
    parts['rows'],
    evaluate,
    figure=f'dev_{loss.figure}',
    seed=context.seed,
  )
  figures = {
    f'{name}_{figure}': value
    for name, batches in parts.items()
    for figure, value in judge(model, outcome.params, batches).items()
  }
  context.progress.note(
    ', '.join(f'{name} {value:.4f}' for name, value in figures.items())
  )
  counts = {name: len(batches.rows) for name, batches in parts.items()}
  training_stage.finish(stage, outcome, began, counts | figures)


def read(context: Context, stage_name: str) -> tuple[ValueModel, Params]:
  """The value model that a committed stage holds, and its parameters."""
  model = ValueModel(context.model, context.layout)
  folder = context.read(stage_name).folder / PARAMS
  return model, native.restore_params(folder, model.placed_params())


def judge(
  model: ValueModel, params: Params, batches: loader.TrainingBatches
) -> dict[str, float]:
  """How the values of whole samples order them, against their rewards.

  Kendall's τ_b and Spearman's ρ over the first samples, as the ReST paper gives
  them for its value functions; those that are defined. A sample's value is the
  one before its last token. Where rewards tie, no τ_b of untied values reaches
  1, so the share of the pairs of different reward in the right order, as C − D
  over their number, stands beside it.
  """
  rows = batches.rows
  ends = rows.target_offsets[1 : 1 + _JUDGED]
  values = batches.each_token(
    functools.partial(step.scores, model, params), first=len(ends)
  )
  found, wanted = (
    values[ends - 1],
    np.asarray(rows.figures['returns'])[ends - 1],
  )
  figures = {
    'kendall': agreement.kendall_tau(wanted, found),
    'kendall_untied': kendall_untied(wanted, found),
    'spearman': spearman(wanted, found),
  }
  return {k: v for k, v in figures.items() if math.isfinite(v)}


def kendall_untied(
  wanted: Float[np.ndarray, ' n'], found: Float[np.ndarray, ' n']
) -> float:
  """(C − D) / (C + D + T): Kendall's τ over the pairs that `wanted` orders.

  Somers' d: T are the pairs among them that `found` ties. It is 1 for a perfect
  order however many of `wanted` are equal.

  >>> kendall_untied(np.array([1.0, 1, 1, 3]), np.array([0.1, 0.3, 0.2, 0.9]))
  1.0

  Returns:
    In [−1, 1]; NaN where all of `wanted` are equal, or a number is NaN.
  """
  if not (ordered := _untied_pairs(wanted)):
    return math.nan
  if not (told := _untied_pairs(found)):
    return 0.0
  # τ_b is C − D, a whole number, by the geometric mean of the two.
  tau = agreement.kendall_tau(wanted, found)
  if math.isnan(tau):
    return tau
  return round(tau * math.sqrt(told * ordered)) / ordered


def _untied_pairs(values: Float[np.ndarray, ' n']) -> int:
  _, counts = np.unique(values, return_counts=True)
  return math.comb(len(values), 2) - sum(math.comb(int(n), 2) for n in counts)


def spearman(
  wanted: Float[np.ndarray, ' n'], found: Float[np.ndarray, ' n']
) -> float:
  """Spearman's ρ: the correlation of ranks, equal numbers sharing theirs.

  >>> round(spearman(np.array([1.0, 2, 3]), np.array([1.0, 9, 3])), 2)
  0.5

  Returns:
    In [−1, 1]; NaN where either side is constant or n < 2.
  """
  from scipy import stats  # Slow to import.

  if not (_untied_pairs(wanted) and _untied_pairs(found)):
    return math.nan
  ranks = [stats.rankdata(values) for values in (wanted, found)]
  return float(np.corrcoef(*ranks)[0, 1])


def _rows(
  grown: grown_data.GrownData, loss: losses.PolicyLoss
) -> Iterator[tuple[Any, ...]]:
  """All finished samples, whatever their reward."""
  return grown.training_rows((selection.SamplesOnly(),), loss)


def _part(
  rows: Iterable[tuple[Any, ...]], share: float, held_out: bool
) -> Iterator[tuple[Any, ...]]:
  """The rows of about that share of the sources, or of all others.

  Raises:
    DataError: there is none.
  """
  count = 0
  for row in rows:
    tokens = np.asarray(row[0], np.int32).tobytes()
    digest = hashlib.blake2b(tokens, digest_size=8).digest()
    chosen = int.from_bytes(digest, 'little') < share * 2**64
    if chosen == held_out:
      count += 1
      yield row
  if not count:
    what = 'held out' if held_out else 'left to train on'
    raise DataError(
      f'no finished sample is {what} for the value model: set'
      f' TrainValue.held_out = {share:g}, the share of sources,'
      f' {"higher" if held_out else "lower"}, or grow from more sources.'
    )
