"""Text ↔ ids with sentencepiece or bytes, without TensorFlow.

The ids are those of seqio's vocabularies: 0 padding, 1 EOS, 2 unknown; no id
for the beginning. Encoding adds no EOS; decoding stops at the first one.
"""

import hashlib
import io
import json
import random
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import sentencepiece
from etils import epath

from rest_jax import errors, storage

PAD_ID = 0
EOS_ID = 1
UNK_ID = 2
MODEL_FILE = 'tokenizer.model'
BYTES_FILE = 'tokenizer.json'


@runtime_checkable
class Tokenizer(Protocol):
  """What the rest of the program knows of a tokenizer."""

  @property
  def size(self) -> int:
    """How many ids there are, the special ones counted."""

  @property
  def fingerprint(self) -> str:
    """Changes when any text could get other ids."""

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without EOS."""

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts, without EOS."""

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids up to the first EOS; ids outside the vocabulary are none."""

  def save(self, folder: epath.PathLike) -> None:
    """Writes what `load_tokenizer` reads."""


class SentencePieceTokenizer:
  """A SentencePiece model, used as T5, mT5 and seqio use it."""

  def __init__(self, path: epath.PathLike):
    """Reads a model file.

    Args:
      path: the '.model' file.

    Raises:
      DataError: no such file, or no SentencePiece model.
      ConfigurationError: its special ids are not T5's (pad 0, EOS 1, unk 2).
    """
    path = epath.Path(path)
    try:
      self._model = path.read_bytes()
      self._processor = sentencepiece.SentencePieceProcessor(
        model_proto=self._model
      )
    except (OSError, RuntimeError) as error:
      raise errors.DataError(
        f'{path}: cannot be read as a SentencePiece model'
        f' ({str(error).strip() or "no such file"}): check the path'
      ) from error
    p = self._processor
    special = (p.pad_id(), p.eos_id(), p.unk_id())
    if special != (PAD_ID, EOS_ID, UNK_ID):
      raise errors.ConfigurationError(
        f'{path}: pad, EOS and unk have the ids {special}, T5 needs (0, 1,'
        ' 2): train it with --pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1'
      )

  @property
  def size(self) -> int:
    return self._processor.vocab_size()

  @property
  def fingerprint(self) -> str:
    return hashlib.sha256(self._model).hexdigest()

  def encode(self, text: str) -> list[int]:
    return self._processor.encode(text)

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return self._processor.encode(list(texts))

  def decode(self, ids: Sequence[int]) -> str:
    return self._processor.decode(
      [i for i in _until_eos(ids) if PAD_ID < i < self.size]
    )

  def save(self, folder: epath.PathLike) -> None:
    storage.write_atomic(epath.Path(folder) / MODEL_FILE, self._model)


class ByteTokenizer:
  """UTF-8 bytes + 3, as ByT5 and `seqio.ByteVocabulary` count them."""

  size = 259
  fingerprint = 'bytes+3'

  def encode(self, text: str) -> list[int]:
    return [byte + 3 for byte in text.encode()]

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return [self.encode(text) for text in texts]

  def decode(self, ids: Sequence[int]) -> str:
    data = bytes(i - 3 for i in _until_eos(ids) if 3 <= i < self.size)
    return data.decode(errors='ignore')

  def save(self, folder: epath.PathLike) -> None:
    content = json.dumps({'tokenizer': 'bytes', 'offset': 3}) + '\n'
    storage.write_atomic(epath.Path(folder) / BYTES_FILE, content.encode())


def load_tokenizer(folder: epath.PathLike) -> Tokenizer:
  """The tokenizer that `save` wrote into a folder.

  Raises:
    DataError: there is none.
  """
  folder = epath.Path(folder)
  if (folder / MODEL_FILE).exists():
    return SentencePieceTokenizer(folder / MODEL_FILE)
  if (folder / BYTES_FILE).exists():
    return ByteTokenizer()
  raise errors.DataError(
    f'{folder}: neither {MODEL_FILE} nor {BYTES_FILE}: run the data stage'
  )


def train_sentencepiece(
  texts: Iterable[str],
  path: epath.PathLike,
  vocab_size: int,
  *,
  byte_fallback: bool = False,
  character_coverage: float = 1.0,
  max_sentences: int = 2_000_000,
) -> SentencePieceTokenizer:
  """Trains a unigram SentencePiece model and writes it.

  The same texts in the same order give the same file: one thread, and where
  there are more than `max_sentences` texts a fixed random choice of them.

  Args:
    texts: sentences of both languages.
    path: the '.model' file to write.
    vocab_size: ids in all, special ones counted.
    byte_fallback: whether unknown characters become bytes, not `unk` (takes
      256 ids).
    character_coverage: share of all characters that get a piece.
    max_sentences: how many texts are kept in memory and trained on.

  Returns:
    The tokenizer.

  Raises:
    ConfigurationError: the texts are too few for `vocab_size`, or `vocab_size`
      too small for their characters.
    DataError: there are no texts.
  """
  sentences = _choose(texts, max_sentences)
  if not sentences:
    raise errors.DataError(
      f'{path}: there is no text to train this tokenizer on: check the'
      ' training split'
    )
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(sentences),
      model_writer=model,
      model_type='unigram',
      vocab_size=vocab_size,
      pad_id=PAD_ID,
      eos_id=EOS_ID,
      unk_id=UNK_ID,
      bos_id=-1,
      byte_fallback=byte_fallback,
      character_coverage=character_coverage,
      max_sentence_length=16384,
      num_threads=1,
      minloglevel=2,
    )
  except RuntimeError as error:
    # Drops sentencepiece's source file and condition.
    reason = str(error).strip().rpartition('] ')[2]
    raise errors.ConfigurationError(
      f'vocab_size = {vocab_size} does not fit the {len(sentences)} training'
      f' texts: {reason}'
    ) from error
  path = epath.Path(path)
  storage.write_atomic(path, model.getvalue())
  return SentencePieceTokenizer(path)


def _choose(texts: Iterable[str], most: int) -> list[str]:
  """At most `most` texts, chosen uniformly by a reservoir of fixed seed."""
  rng = random.Random(0)
  chosen: list[str] = []
  for number, text in enumerate(texts):
    if number < most:
      chosen.append(text)
    elif (place := rng.randrange(number + 1)) < most:
      chosen[place] = text
  return chosen


def _until_eos(ids: Sequence[int]) -> list[int]:
  ids = [int(i) for i in ids]
  return ids[: ids.index(EOS_ID)] if EOS_ID in ids else ids
