"""A reward that this run has learned itself: an ensemble of T5 regressors.

R(x, y) is the mean of what K networks, trained alike from other seeds, give the
pair; how far they disagree is a score of its own, to be watched or subtracted:
where it is large, the reward only guesses (Lakshminarayanan et al. 2017,
arXiv:1612.01474).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Float32

from rest_jax.data.tokenizer import EOS_ID, Tokenizer, without_padding
from rest_jax.errors import ConfigurationError, RewardError
from rest_jax.rewards import base
from rest_jax.rewards.regressor import Buckets, Regressor
from rest_jax.types import Params


@dataclasses.dataclass(frozen=True)
class PairFormat:
  """How a source and a candidate become one text of tokens.

  source, a separator, candidate, EOS. The separator is the first id that the
  tokenizer leaves free, so that no text can hold it. A longer source is cut; a
  longer candidate is not read: it gets the lowest reward.

  Attributes:
    max_source_length: tokens of a source, at most.
    max_candidate_length: tokens of a candidate, at most.
  """

  max_source_length: int = 128
  max_candidate_length: int = 128

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if getattr(self, field.name) < 1:
        raise ConfigurationError(
          f'PairFormat.{field.name} = {getattr(self, field.name)} must be at'
          ' least 1.'
        )

  @property
  def max_length(self) -> int:
    """Tokens of a pair, at most, separator and EOS counted."""
    return self.max_source_length + self.max_candidate_length + 2

  def encode(
    self,
    tokenizer: Tokenizer,
    sources: Sequence[str],
    candidates: Sequence[str],
  ) -> list[list[int] | None]:
    """Returns the tokens of n pairs; None where the candidate is too long."""
    out: list[list[int] | None] = []
    for source, candidate in zip(
      map(without_padding, tokenizer.encode_batch(sources)),
      map(without_padding, tokenizer.encode_batch(candidates)),
      strict=True,
    ):
      if len(candidate) > self.max_candidate_length:
        out.append(None)
        continue
      head = list(source[: self.max_source_length])
      out.append([*head, tokenizer.size, *candidate, EOS_ID])
    return out


@dataclasses.dataclass(frozen=True, eq=False)
class Ensemble:
  """Networks that judge alike, with all that they need to read a pair.

  Attributes:
    regressor: the form of every network.
    members: the parameters of each.
    tokenizer: that they were trained with.
    pair: how a pair is written.
    buckets: shapes of batches.
    bounded: whether they give rewards (regression), which are clipped to
      [0, 1]; else (Bradley–Terry) R = σ(score).
    fingerprint: of the stage that holds the members.
    remembered: pairs whose rewards are kept, so that mean and disagreement of
      the same pairs are computed once.
  """

  regressor: Regressor
  members: tuple[Params, ...]
  tokenizer: Tokenizer
  pair: PairFormat
  buckets: Buckets
  bounded: bool
  fingerprint: str
  remembered: int = 1 << 17
  _known: dict[tuple[str, str], np.ndarray] = dataclasses.field(
    default_factory=dict, init=False, repr=False
  )

  def rewards(
    self, sources: Sequence[str], candidates: Sequence[str]
  ) -> Float32[np.ndarray, 'k n']:
    """Returns what each member gives each of n pairs, in [0, 1].

    Raises:
      RewardError: not one source a candidate, or broken parameters.
    """
    if len(sources) != len(candidates):
      raise RewardError(
        f'a learned reward was given {len(sources)} sources and'
        f' {len(candidates)} candidates: give one candidate a source'
      )
    pairs = list(zip(sources, candidates, strict=True))
    new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
    if len(self._known) + len(new) > self.remembered:
      self._known.clear()
      new = list(dict.fromkeys(pairs))
    if new:
      found = self._judge(*map(list, zip(*new, strict=True)))
      self._known.update(zip(new, found.T, strict=True))
    out = np.zeros((len(self.members), len(pairs)), np.float32)
    for place, pair in enumerate(pairs):
      out[:, place] = self._known[pair]
    return out

  def forget(self) -> None:
    """Lets go of the pairs that are remembered."""
    self._known.clear()

  def _judge(
    self, sources: Sequence[str], candidates: Sequence[str]
  ) -> Float32[np.ndarray, 'k n']:
    texts = self.pair.encode(self.tokenizer, sources, candidates)
    read = [i for i, text in enumerate(texts) if text is not None]
    out = np.zeros((len(self.members), len(texts)), np.float32)
    for member, params in enumerate(self.members):
      scores = self.regressor.scores(
        params, [texts[i] for i in read], self.buckets
      )
      out[member, read] = to_reward(scores, self.bounded)
    return out


def to_reward(
  scores: Float32[np.ndarray, ' n'], bounded: bool
) -> Float32[np.ndarray, ' n']:
  """A network's scores as rewards in [0, 1]; see `Ensemble.bounded`."""
  if bounded:
    return np.clip(scores, 0.0, 1.0)
  return (0.5 * (1.0 + np.tanh(0.5 * scores))).astype(np.float32)


class _Learned:
  """What the rewards of an ensemble share; see the classes below."""

  name: str
  # Holds the function that reads the ensemble, once the run has one. A list,
  # since the rewards themselves are values, as all that gin builds.
  _opened: list[Callable[[], Ensemble]]
  _high: ClassVar[float]
  _higher_is_better: ClassVar[bool]

  @property
  def info(self) -> base.RewardInfo:
    return base.RewardInfo(
      name=self.name,
      version='1',
      low=0.0,
      high=self._high,
      higher_is_better=self._higher_is_better,
    )

  def open(self, read: Callable[[], Ensemble]) -> None:
    """Says where the ensemble comes from; it is read at the first score."""
    self._opened[:] = [read]

  def forget(self) -> None:
    """Has the ensemble forget what it has scored."""
    self._ensemble().forget()

  @property
  def fingerprint(self) -> str:
    """Of the stage that the scores come from: another one, other scores.

    Raises:
      RewardError, ConfigurationError: as `score`.
    """
    return self._ensemble().fingerprint

  def score(
    self,
    sources: Sequence[str],
    candidates: Sequence[str],
    references: Sequence[str] | None = None,
  ) -> Float32[np.ndarray, ' n']:
    """Scores n candidates; references are ignored.

    Raises:
      RewardError: not one source a candidate, or no run has opened it.
      ConfigurationError: the reward is not trained yet.
    """
    del references
    return self._statistic(self._ensemble().rewards(sources, candidates))

  def _ensemble(self) -> Ensemble:
    if not self._opened:
      raise RewardError(
        f'reward {self.name!r} is learned by a run, and this one has no'
        ' ReST.train_reward; set it.'
      )
    return self._opened[0]()

  def _statistic(self, rewards):
    raise AssertionError('every reward below has its own')


def _holder():
  # Neither a setting nor compared.
  return dataclasses.field(
    default_factory=list, init=False, repr=False, compare=False
  )


@dataclasses.dataclass(frozen=True)
class Learned(_Learned):
  """The mean reward of the members, in [0, 1].

  Attributes:
    name: of the reward and of its folder of scores.
  """

  name: str = 'learned'
  _opened: list = _holder()
  _high = 1.0
  _higher_is_better = True

  def _statistic(self, rewards: Float32[np.ndarray, 'k n']):
    return rewards.mean(axis=0, dtype=np.float64).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Disagreement(_Learned):
  """The standard deviation of the members' rewards, in [0, 0.5].

  Attributes:
    name: of the score and of its folder.
  """

  name: str = 'learned_std'
  _opened: list = _holder()
  _high = 0.5
  _higher_is_better = False

  def _statistic(self, rewards: Float32[np.ndarray, 'k n']):
    return rewards.std(axis=0, dtype=np.float64).astype(np.float32)


def within(value) -> list[_Learned]:
  """The learned rewards in a configuration, also inside of combinations."""
  if isinstance(value, _Learned):
    return [value]
  if dataclasses.is_dataclass(value):
    parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
  elif isinstance(value, tuple | list):
    parts = list(value)
  else:
    parts = []
  return [found for part in parts for found in within(part)]
