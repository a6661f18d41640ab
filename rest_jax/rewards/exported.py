"""A reward that another run learned, from where `convert` has written it.

An export is a T5 with one logit that counts (see `checkpoint.exports`), and
`reward.json`, which says how a pair is read: a learned reward reads tokens that
no text has, and gives rewards, where MetricX reads text and gives errors.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float32

from rest_jax import hosts, storage
from rest_jax.checkpoint import huggingface, names, tokenizer_export
from rest_jax.data.tokenizer import Tokenizer
from rest_jax.errors import ConfigurationError, CorruptStateError, DataError
from rest_jax.rewards import base
from rest_jax.rewards.learned import Ensemble, PairFormat
from rest_jax.rewards.regressor import Buckets, Regressor
from rest_jax.sharding import Layout

FILE = 'reward.json'
# Of which all networks of one reward must have the same.
_FORM = (
  'max_source_length',
  'max_candidate_length',
  'separator_id',
  'bounded',
  'bucket_lengths',
  'tokens_per_batch',
)
_OF_ONE_STAGE = ('members', 'stage_fingerprint')


@dataclasses.dataclass(frozen=True)
class Exported:
  """The mean reward of exported networks, in [0, 1].

  Attributes:
    paths: folders that `--run_mode=convert --format=huggingface` made, one for
      each network of the reward.
    name: of the reward and of its folder of scores.
    dtype: of activations and parameters, 'float32' or 'bfloat16'.
    layout: how the devices form a mesh and share the parameters.
  """

  # Not compared: `info.version` tells what is in the folders.
  paths: tuple[str, ...] = dataclasses.field(compare=False)
  name: str = 'exported'
  dtype: str = 'float32'
  layout: Layout = dataclasses.field(default_factory=Layout, compare=False)

  @functools.cached_property
  def info(self) -> base.RewardInfo:
    """Name and range; the version is a hash of what a score depends on.

    Raises:
      ConfigurationError, DataError: a folder is no export of a learned reward,
        or not one of the same reward as the first.
    """
    return base.RewardInfo(
      name=self.name,
      version=self._fingerprint(),
      low=0.0,
      high=1.0,
      trained_on=tuple(self._forms[0].get('trained_on', ())),
    )

  def score(
    self,
    sources: Sequence[str],
    candidates: Sequence[str],
    references: Sequence[str] | None = None,
  ) -> Float32[np.ndarray, ' n']:
    """Scores n candidates; references are ignored.

    Raises:
      RewardError: not one source a candidate, or broken parameters.
      ConfigurationError, DataError: as `info`, and damaged weights.
    """
    del references
    rewards = self._ensemble.rewards(sources, candidates)
    return rewards.mean(axis=0, dtype=np.float64).astype(np.float32)

  def forget(self) -> None:
    """Lets go of the rewards that are remembered."""
    self._ensemble.forget()

  @functools.cached_property
  def _forms(self) -> tuple[dict[str, Any], ...]:
    """What `reward.json` says of every network."""
    if not self.paths:
      raise ConfigurationError(
        'Exported.paths = (): give the folders of all networks of a reward.'
      )
    forms = tuple(map(read_form, self.paths))
    for path, form in zip(self.paths, forms, strict=True):
      if form is None or huggingface.SCORE_ID not in form:
        raise ConfigurationError(
          f'Exported.paths: {path} is no export of a learned reward: give what'
          ' --run_mode=convert --format=huggingface made of MODEL_DIR/reward.'
        )
      for field in (*_FORM, *_OF_ONE_STAGE):
        if form[field] != forms[0][field]:
          raise ConfigurationError(
            f'Exported.paths: {field} is {form[field]!r} in {path}, and'
            f' {forms[0][field]!r} in {self.paths[0]}: give networks of one'
            ' reward.'
          )
    members = [form['member'] for form in forms]
    wanted = list(range(forms[0]['members']))
    if sorted(members) != wanted:
      raise ConfigurationError(
        f'Exported.paths: these are the networks {members} of a reward that has'
        f' {wanted}: give the folders of all of them, each once.'
      )
    return forms

  @functools.cached_property
  def _tokenizer(self) -> Tokenizer:
    found = [tokenizer_export.load(path) for path in self.paths]
    for path, tokenizer in zip(self.paths, found, strict=True):
      if tokenizer is None:
        raise DataError(f'{path} has no tokenizer: convert the reward again')
      wanted = self._forms[0]['separator_id']
      if tokenizer.size != wanted:
        raise DataError(
          f'{path} has a tokenizer of {tokenizer.size} ids, and the reward'
          f' was trained with one of {wanted}: convert it again'
        )
      if tokenizer.fingerprint != found[0].fingerprint:
        raise ConfigurationError(
          f'Exported.paths: {path} and {self.paths[0]} have different'
          ' tokenizers: give networks of one reward.'
        )
    return found[0]

  @functools.cached_property
  def _sources(self) -> list[huggingface.Source]:
    """The networks, not yet read."""
    out = []
    for path, form in zip(self.paths, self._forms, strict=True):
      source = huggingface.Source(path, form[huggingface.SCORE_ID])
      if names.SCORE not in source.shapes:
        raise DataError(
          f'{path} has no {names.LM_HEAD}, which the reward is read from:'
          ' convert it again'
        )
      out.append(source)
    return out

  @functools.cached_property
  def _ensemble(self) -> Ensemble:
    form = self._forms[0]
    config = dataclasses.replace(self._sources[0].config, dtype=self.dtype)
    # Processes score rows of their own, each with its own devices.
    regressor = Regressor(config, self.layout, local=hosts.count() > 1)
    members = tuple(
      huggingface.restore_params(
        path,
        regressor.placed_inference_params(),
        score_id=one[huggingface.SCORE_ID],
        tokenizer_size=self._tokenizer.size + 1,  # The separator has one too.
      )
      for path, one in zip(self.paths, self._forms, strict=True)
    )
    return Ensemble(
      regressor,
      members,
      self._tokenizer,
      PairFormat(form['max_source_length'], form['max_candidate_length']),
      Buckets(tuple(form['bucket_lengths']), form['tokens_per_batch']),
      form['bounded'],
      self.info.version,
    )

  def _fingerprint(self) -> str:
    # No two trained networks have the same read-out: it stands for all weights.
    digest = hashlib.sha256()
    for source in self._sources:
      for name in (names.SCORE, 'decoder/decoder_norm/scale'):
        if name in source.shapes:
          digest.update(source.read(name).astype(np.float32).tobytes())
    settings = [
      self._tokenizer.fingerprint,
      [repr(source.config) for source in self._sources],
      [[form[field] for field in _FORM] for form in self._forms],
      self.dtype,
    ]
    digest.update(json.dumps(settings).encode())
    return digest.hexdigest()[:16]


def read_form(folder: epath.PathLike) -> dict[str, Any] | None:
  """What the export of a learned reward says of itself; None: it is none.

  Raises:
    DataError: it cannot be read, or is not whole.
  """
  file = epath.Path(folder) / FILE
  try:
    form = storage.read_json(file)
    needed = (*_FORM, *_OF_ONE_STAGE, 'member')
    missing = [field for field in needed if field not in form]
  except (FileNotFoundError, NotADirectoryError):
    return None
  except (OSError, TypeError, CorruptStateError) as error:
    raise DataError(
      f'{file} is not readable ({error}): convert the reward again'
    ) from error
  if missing:
    raise DataError(f'{file} lacks {missing[0]}: convert the reward again')
  return form
