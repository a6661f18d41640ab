"""MetricX-23 and MetricX-24 as rewards, from the released checkpoints.

An mT5 whose score is the logit of `<extra_id_10>` at the decoder's first step,
clipped to [0, 25]: the number of MQM points that a person would take off, so
lower is better (Juraska et al. 2023 and 2024, WMT metrics shared tasks). Only
that one column of the output layer is read. docs/guide/metricx.md tells how to
get a checkpoint into a form that is read here.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from etils import epath
from jaxtyping import Float32

from rest_jax import errors, hosts, storage
from rest_jax.checkpoint import huggingface, names
from rest_jax.data.tokenizer import SentencePieceTokenizer
from rest_jax.rewards import base
from rest_jax.rewards.regressor import Buckets, Regressor
from rest_jax.sharding import Layout

WORST = 25.0
TOKENIZER = 'spiece.model'
GUIDE = 'docs/guide/metricx.md'
_ARCHITECTURE = 'MT5ForRegression'
_TRUNCATIONS = ('worst', 'cut')

_log = logging.getLogger(__name__)
_log.setLevel(logging.WARNING)  # The command line silences the root logger.


@dataclasses.dataclass(frozen=True)
class _MetricX:
  """What both generations share; see the classes below.

  Attributes:
    path: folder of `config.json` and safetensors files, in one or in shards.
    use_reference: whether candidates are scored against references too.
    tokenizer_path: mT5's SentencePiece model; '' for `spiece.model` in `path`.
    max_input_length: tokens of an input, the EOS counted that is then dropped.
    truncation: what becomes of a longer input: 'worst' gives it the score 25,
      'cut' scores its beginning, as the official programs do.
    score_token_id: whose logit is the score.
    dtype: of activations and parameters, 'float32' or 'bfloat16'.
    buckets: the shapes in which texts are scored; the longest must hold
      `max_input_length` − 1 tokens.
    layout: how the devices form a mesh and share the parameters.
    name: of the metric and of its folder of scores; None for 'metricx_24' and
      its like, '_qe' after it without references.
    counts: of 'scored' inputs and of those that were 'too_long', so far.
  """

  # Not compared: `info.version` tells what is in the folder.
  path: str = dataclasses.field(compare=False)
  use_reference: bool = False
  tokenizer_path: str = dataclasses.field(default='', compare=False)
  max_input_length: int = 0
  truncation: str = 'worst'
  score_token_id: int = 250089
  dtype: str = 'float32'
  buckets: Buckets = Buckets(lengths=(64, 128, 256, 512, 1024, 1536))
  layout: Layout = dataclasses.field(default_factory=Layout, compare=False)
  # `info` has it.
  name: str | None = dataclasses.field(default=None, compare=False)
  counts: collections.Counter = dataclasses.field(
    default_factory=collections.Counter, init=False, compare=False, repr=False
  )

  NAME: ClassVar[str]
  TRAINED_ON: ClassVar[tuple[str, ...]]

  def __post_init__(self):
    of = type(self).__name__
    if self.truncation not in _TRUNCATIONS:
      raise errors.ConfigurationError(
        f'{of}.truncation = {self.truncation!r}: choose one of {_TRUNCATIONS}.'
      )
    if not 2 <= self.max_input_length <= self.buckets.lengths[-1] + 1:
      raise errors.ConfigurationError(
        f'{of}.max_input_length = {self.max_input_length} must be at least 2,'
        f' and at most one more than the longest of {of}.buckets,'
        f' {self.buckets.lengths[-1]}: raise Buckets.lengths or lower it.'
      )

  def texts(
    self,
    sources: Sequence[str],
    candidates: Sequence[str],
    references: Sequence[str] | None,
  ) -> list[str]:
    """What the model reads of each row; its generation decides."""
    raise AssertionError('every generation below has its own')

  @functools.cached_property
  def info(self) -> base.RewardInfo:
    """Name, range, direction; the version is a hash of the checkpoint's own.

    Raises:
      ConfigurationError, DataError: see `_source` and `_tokenizer`.
    """
    own = self.NAME if self.use_reference else f'{self.NAME}_qe'
    return base.RewardInfo(
      name=self.name or own,
      version=self._fingerprint(),
      low=0.0,
      high=WORST,
      higher_is_better=False,
      needs_reference=self.use_reference,
      trained_on=self.TRAINED_ON,
    )

  def score(
    self,
    sources: Sequence[str],
    candidates: Sequence[str],
    references: Sequence[str] | None = None,
  ) -> Float32[np.ndarray, ' n']:
    """Scores n candidates; how many inputs were too long is logged.

    Returns:
      float32 [n], 0 (best) to 25.

    Raises:
      RewardError: references are needed and missing, there are not as many as
        candidates, or the network gave a NaN.
      ConfigurationError, DataError: the checkpoint cannot be read.
    """
    info = self.info  # Looks at the checkpoint first.
    if self.use_reference:
      references = base.check_references(info, references)
    else:
      references = None
    for given in (sources, references):
      if given is not None and len(given) != len(candidates):
        raise errors.RewardError(
          f'reward {info.name!r} was given {len(given)} sources or'
          f' references for {len(candidates)} candidates: give one each'
        )
    ids = self._tokenizer.encode_batch(
      self.texts(sources, candidates, references)
    )
    most = self.max_input_length - 1  # EOS is counted, but never read.
    too_long = np.array([len(row) > most for row in ids], bool)
    self.counts.update(scored=len(ids), too_long=int(too_long.sum()))
    if too_long.any():
      _log.warning(
        'reward %s: %d of %d inputs are longer than %d tokens (%s)',
        info.name,
        too_long.sum(),
        len(ids),
        most,
        self.truncation,
      )
    scores = np.full(len(ids), WORST, np.float32)
    scored = ~too_long if self.truncation == 'worst' else np.ones_like(too_long)
    rows = [ids[i][:most] for i in np.flatnonzero(scored)]
    if rows:
      # The network's own check refuses a NaN, which a clip would let through.
      scores[scored] = self._regressor.scores(self._params, rows, self.buckets)
    return np.clip(scores, 0.0, WORST)

  @functools.cached_property
  def _source(self) -> huggingface.Source:
    """The checkpoint, its headers read and its form checked.

    Raises:
      ConfigurationError: the weights are pickled, or are not MetricX's.
      DataError: a file is missing or damaged.
    """
    of, folder = type(self).__name__, epath.Path(self.path)
    safe = (huggingface.WEIGHTS, huggingface.INDEX)
    if not any((folder / name).exists() for name in safe):
      if any(path.name.endswith('.bin') for path in _files(folder, of)):
        raise errors.ConfigurationError(
          f'{of}.path = {self.path!r} has its weights in .bin files, which are'
          ' pickled and never loaded here: convert them to safetensors as'
          f' {GUIDE} shows.'
        )
      raise errors.DataError(
        f'{of}.path = {self.path!r} has neither {safe[0]} nor {safe[1]}: give'
        ' the folder of a MetricX checkpoint'
      )
    tensors = huggingface.tensors(folder)
    words = tensors[names.LM_HEAD].shape[0] if names.LM_HEAD in tensors else 0
    if words and not 0 <= self.score_token_id < words:
      raise errors.ConfigurationError(
        f'{of}.score_token_id = {self.score_token_id} is outside of the'
        f' vocabulary of {self.path}, which has {words} ids.'
      )
    source = huggingface.Source(folder, self.score_token_id)
    raw = storage.read_json(folder / huggingface.CONFIG)
    made = raw.get('architectures') or [_ARCHITECTURE]
    tied = source.config.logits_via_embedding or raw.get('tie_word_embeddings')
    if _ARCHITECTURE not in made or tied:
      what = f'a {made[0]}' if _ARCHITECTURE not in made else 'tied'
      raise errors.ConfigurationError(
        f'{of}.path = {self.path!r} is {what}, and MetricX is an'
        f' {_ARCHITECTURE} with an output layer of its own: give the folder of'
        ' a released MetricX.'
      )
    return source

  @functools.cached_property
  def _tokenizer(self) -> SentencePieceTokenizer:
    path = epath.Path(self.tokenizer_path or epath.Path(self.path) / TOKENIZER)
    if not path.exists():
      of = type(self).__name__
      raise errors.DataError(
        f'{path} is missing: MetricX is released without its tokenizer; copy'
        f' {TOKENIZER} of google/mt5-xl there, or set {of}.tokenizer_path'
      )
    return SentencePieceTokenizer(path)

  @functools.cached_property
  def _regressor(self) -> Regressor:
    config = dataclasses.replace(self._source.config, dtype=self.dtype)
    # Processes score rows of their own, each with its own devices.
    return Regressor(config, self.layout, local=hosts.count() > 1)

  @functools.cached_property
  def _params(self):
    return huggingface.restore_params(
      self.path,
      self._regressor.placed_inference_params(),
      score_id=self.score_token_id,
      tokenizer_size=self._tokenizer.size,
    )

  def _fingerprint(self) -> str:
    """Hash of all that a score depends on, without reading gigabytes.

    No two trained checkpoints have the same read-out, so it stands for all
    weights.
    """
    digest = hashlib.sha256()
    for name in (names.SCORE, 'decoder/decoder_norm/scale'):
      if name in self._source.shapes:
        digest.update(self._source.read(name).astype(np.float32).tobytes())
    settings = (
      self._tokenizer.fingerprint,
      repr(self._source.config),
      self.use_reference,
      self.max_input_length,
      self.truncation,
      self.dtype,
      self.buckets.lengths,
    )
    digest.update(json.dumps(settings).encode())
    return digest.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class MetricX24(_MetricX):
  """MetricX-24 (Juraska et al. 2024), with or without references by one model.

  A source too long cuts the candidate away, so by default a text too long gets
  the worst score. Its settings are described above, in `_MetricX`.
  """

  max_input_length: int = 1536

  NAME = 'metricx_24'
  TRAINED_ON = tuple(f'wmt{year}' for year in range(15, 23))

  def texts(self, sources, candidates, references):
    """`source: … candidate: …`, and ` reference: …` where there is one."""
    texts = [
      f'source: {source} candidate: {candidate}'
      for source, candidate in zip(sources, candidates, strict=True)
    ]
    if references is None:
      return texts
    pairs = zip(texts, references, strict=True)
    return [f'{text} reference: {reference}' for text, reference in pairs]


@dataclasses.dataclass(frozen=True)
class MetricX23(_MetricX):
  """MetricX-23 (Juraska et al. 2023): one model with references, one without.

  Give the checkpoint that fits `use_reference`; nothing in the files tells
  them apart. Its settings are described above, in `_MetricX`.
  """

  max_input_length: int = 1024

  NAME = 'metricx_23'
  # The released ones: https://github.com/google-research/metricx, README.
  TRAINED_ON = tuple(f'wmt{year}' for year in range(15, 22))

  def texts(self, sources, candidates, references):
    """`candidate: … source: …`, or `candidate: … reference: …`."""
    kind = 'source' if references is None else 'reference'
    others = sources if references is None else references
    return [
      f'candidate: {candidate} {kind}: {other}'
      for candidate, other in zip(candidates, others, strict=True)
    ]


def _files(folder: epath.Path, of: str) -> list[epath.Path]:
  if not folder.is_dir():
    raise errors.DataError(
      f'{of}.path = {str(folder)!r} is no folder: give the one of a MetricX'
      ' checkpoint'
    )
  return list(folder.iterdir())
