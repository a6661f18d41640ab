"""The settings of a run's tokenizer: trained, given, a checkpoint's, or bytes.

Each of them makes it, or copies it, into the run's `data/`.
"""

import dataclasses
from collections.abc import Iterable

from etils import epath

from rest_jax import errors
from rest_jax.data import origin_tokenizer
from rest_jax.data import tokenizer as tokenizer_lib


@dataclasses.dataclass(frozen=True)
class TrainedTokenizer:
  """SentencePiece, trained on both sides of the training split alone.

  Attributes:
    vocab_size: ids in all.
    byte_fallback: whether unknown characters become bytes.
    character_coverage: share of all characters that get a piece; 0.9995 for
      Chinese or Japanese, whose characters are many.
    max_sentences: texts trained on, at most.
    normalization: SentencePiece's rule for texts before they are cut into
      pieces, 'nmt_nfkc' as for T5, or 'identity'. With the former no policy
      can write what NFKC replaces: '½', '…', and '，', '！' or '（' of Chinese
      and Japanese.
  """

  vocab_size: int = 32000
  byte_fallback: bool = False
  character_coverage: float = 1.0
  max_sentences: int = 2_000_000
  normalization: str = 'nmt_nfkc'

  def __post_init__(self):
    if self.normalization not in tokenizer_lib.NORMALIZATIONS:
      raise errors.ConfigurationError(
        f'TrainedTokenizer.normalization = {self.normalization!r}: use one of'
        f' {", ".join(tokenizer_lib.NORMALIZATIONS)}.'
      )

  def make(
    self, folder: epath.Path, texts: Iterable[str]
  ) -> tokenizer_lib.Tokenizer:
    """Trains it and writes it into a folder."""
    return tokenizer_lib.train_sentencepiece(
      texts,
      folder / tokenizer_lib.MODEL_FILE,
      self.vocab_size,
      byte_fallback=self.byte_fallback,
      character_coverage=self.character_coverage,
      max_sentences=self.max_sentences,
      normalization=self.normalization,
    )


@dataclasses.dataclass(frozen=True)
class GivenTokenizer:
  """A SentencePiece model that exists, such as that of a T5 checkpoint.

  Attributes:
    path: the '.model' file.
    extra_ids: sentinels to add, as 100 for T5; mT5's model has its own.
    source_prefix: what the policy reads before every source, such as
      MADLAD-400's '<2de> '; rewards and the store do not see it.
  """

  path: str
  extra_ids: int = 0
  source_prefix: str = ''

  def make(
    self, folder: epath.Path, texts: Iterable[str]
  ) -> tokenizer_lib.Tokenizer:
    """Copies it into a folder."""
    del texts
    given = tokenizer_lib.SentencePieceTokenizer(
      self.path, self.extra_ids, self.source_prefix
    )
    given.save(folder)
    return given


@dataclasses.dataclass(frozen=True)
class CheckpointTokenizer:
  """The tokenizer in a Hugging Face folder: SentencePiece, or ByT5's bytes.

  Attributes:
    folder: of the checkpoint.
    source_prefix: as of `GivenTokenizer`.
  """

  folder: str
  source_prefix: str = ''

  def make(
    self, folder: epath.Path, texts: Iterable[str]
  ) -> tokenizer_lib.Tokenizer:
    """Copies it into a folder."""
    del texts
    given = origin_tokenizer.read(self.folder, self.source_prefix)
    given.save(folder)
    return given


@dataclasses.dataclass(frozen=True)
class Bytes:
  """UTF-8 bytes, as ByT5 has them.

  Attributes:
    extra_ids: sentinels after them, 125 for ByT5.
    source_prefix: as of `GivenTokenizer`.
  """

  extra_ids: int = 0
  source_prefix: str = ''

  def make(
    self, folder: epath.Path, texts: Iterable[str]
  ) -> tokenizer_lib.Tokenizer:
    """Writes a note of it into a folder."""
    del texts
    made = tokenizer_lib.ByteTokenizer(self.extra_ids, self.source_prefix)
    made.save(folder)
    return made


Made = TrainedTokenizer | GivenTokenizer | CheckpointTokenizer | Bytes | None
