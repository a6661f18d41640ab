"""Text ↔ ids with sentencepiece or bytes, without TensorFlow.

The ids are those of seqio's vocabularies: 0 padding, 1 EOS, 2 unknown; no id
for the beginning. MADLAD-400's model has 0 unknown, 1 `<s>`, 2 EOS instead.
Encoding adds no EOS; decoding stops at the first one. Of the special ids a text
can hold the unknown alone: `</s>` in it are four characters.

Extra ids are T5's sentinels, after all others: `<extra_id_0>` is the last id. A
text can hold them where a word begins, as with seqio.
"""

import hashlib
import io
import json
import random
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import sentencepiece
from etils import epath

from rest_jax import errors, storage

PAD_ID = 0
EOS_ID = 1
UNK_ID = 2
BYTES_END = 259
# SentencePiece's rules; T5's is the first.
NORMALIZATIONS = ('nmt_nfkc', 'nfkc', 'nmt_nfkc_cf', 'nfkc_cf', 'identity')
MODEL_FILE = 'tokenizer.model'
SETTINGS_FILE = 'tokenizer.json'


@runtime_checkable
class Tokenizer(Protocol):
  """What the rest of the program knows of a tokenizer.

  Attributes:
    extra_ids: sentinels, which are its last ids.
    source_prefix: what `encode_sources` puts before every text.
  """

  extra_ids: int
  source_prefix: str

  @property
  def size(self) -> int:
    """How many ids there are, the special ones counted."""

  @property
  def fingerprint(self) -> str:
    """Changes when any text could get other ids."""

  @property
  def eos_id(self) -> int:
    """The id that ends a text."""

  @property
  def unk_id(self) -> int:
    """The id of what has no other."""

  def encode(self, text: str) -> list[int]:
    """Ids of a text, without EOS."""

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts, without EOS."""

  def encode_sources(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts after the prefix that a policy's sources have, no EOS."""

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids up to the first EOS; ids outside the vocabulary are none."""

  def save(self, folder: epath.PathLike) -> None:
    """Writes what `load_tokenizer` reads."""


class SentencePieceTokenizer:
  """A SentencePiece model, used as T5, mT5 and seqio use it."""

  def __init__(
    self, path: epath.PathLike, extra_ids: int = 0, source_prefix: str = ''
  ):
    """Reads a model file.

    Args:
      path: the '.model' file.
      extra_ids: sentinels to add after the model's own ids.
      source_prefix: what `encode_sources` puts before every text.

    Raises:
      DataError: no such file, or no SentencePiece model.
      ConfigurationError: its id 0 is neither padding nor unknown, or it has no
        EOS.
    """
    path = epath.Path(path)
    self.extra_ids, self.source_prefix = extra_ids, source_prefix
    try:
      self._model = path.read_bytes()
      self._processor = sentencepiece.SentencePieceProcessor(
        model_proto=_with_extra_ids(self._model, extra_ids)
      )
    except (OSError, RuntimeError) as error:
      raise errors.DataError(
        f'{path}: cannot be read as a SentencePiece model'
        f' ({str(error).strip() or "no such file"}): check the path'
      ) from error
    p = self._processor
    special = (p.pad_id(), p.eos_id(), p.unk_id())
    if PAD_ID not in (special[0], special[2]) or special[1] < 1:
      raise errors.ConfigurationError(
        f'{path}: pad, EOS and unk have the ids {special}, T5 needs (0, 1,'
        ' 2), or 0 as unk: train it with --pad_id=0 --eos_id=1 --unk_id=2'
        ' --bos_id=-1'
      )

  @property
  def size(self) -> int:
    return self._processor.vocab_size()

  @property
  def eos_id(self) -> int:
    return self._processor.eos_id()

  @property
  def unk_id(self) -> int:
    return self._processor.unk_id()

  @property
  def fingerprint(self) -> str:
    return _marked(
      hashlib.sha256(self._model).hexdigest(),
      self.extra_ids,
      self.source_prefix,
    )

  def __contains__(self, piece: str) -> bool:
    """Whether the vocabulary has a piece of this spelling."""
    return self._processor.piece_to_id(piece) != self.unk_id

  @property
  def special(self) -> dict[str, int]:
    """Spelling → id of the pieces that no text is cut into."""
    p = self._processor
    return {
      p.id_to_piece(i): i
      for i in range(self.size)
      if p.is_control(i) or p.is_unknown(i)
    }

  def encode(self, text: str) -> list[int]:
    return self._processor.encode(text)

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return self._processor.encode(list(texts))

  def encode_sources(self, texts: Sequence[str]) -> list[list[int]]:
    encoded = self.encode_batch([self.source_prefix + text for text in texts])
    return [without_padding(ids) for ids in encoded]

  def decode(self, ids: Sequence[int]) -> str:
    texts = self.size - self.extra_ids
    return self._processor.decode(
      [i for i in _until(self.eos_id, ids) if PAD_ID < i < texts]
    )

  def save(self, folder: epath.PathLike) -> None:
    """Writes the model as it is, and what is added to it beside it."""
    folder = epath.Path(folder)
    self.save_model(folder / MODEL_FILE)
    if self.extra_ids or self.source_prefix:
      _save_settings(
        folder, 'sentencepiece', self.extra_ids, self.source_prefix
      )

  def save_model(self, path: epath.PathLike) -> None:
    """Writes the model file alone, as it is."""
    storage.write_atomic(epath.Path(path), self._model)


class ByteTokenizer:
  """UTF-8 bytes + 3, as ByT5 and `seqio.ByteVocabulary` count them."""

  eos_id = EOS_ID
  unk_id = UNK_ID

  def __init__(self, extra_ids: int = 0, source_prefix: str = ''):
    """Ids for 256 bytes, and sentinels that no text has."""
    self.extra_ids, self.source_prefix = extra_ids, source_prefix

  @property
  def size(self) -> int:
    return BYTES_END + self.extra_ids

  @property
  def fingerprint(self) -> str:
    return _marked('bytes+3', self.extra_ids, self.source_prefix)

  @property
  def special(self) -> dict[str, int]:
    """Spelling → id of what is no byte, as Hugging Face spells it."""
    return {'<pad>': PAD_ID, '</s>': EOS_ID, '<unk>': UNK_ID}

  def encode(self, text: str) -> list[int]:
    return [byte + 3 for byte in text.encode()]

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    return [self.encode(text) for text in texts]

  def encode_sources(self, texts: Sequence[str]) -> list[list[int]]:
    return self.encode_batch([self.source_prefix + text for text in texts])

  def decode(self, ids: Sequence[int]) -> str:
    kept = (i for i in _until(EOS_ID, ids) if 3 <= i < BYTES_END)
    return bytes(i - 3 for i in kept).decode(errors='ignore')

  def save(self, folder: epath.PathLike) -> None:
    _save_settings(folder, 'bytes', self.extra_ids, self.source_prefix)


def load_tokenizer(
  folder: epath.PathLike, source_prefix: str | None = None
) -> Tokenizer:
  """The tokenizer that `save` wrote into a folder.

  Args:
    folder: of the data stage, or of an export.
    source_prefix: in place of the one that was saved.

  Raises:
    DataError: there is none.
  """
  folder = epath.Path(folder)
  settings: dict[str, Any] = {}
  if (folder / SETTINGS_FILE).exists():
    settings = storage.read_json(folder / SETTINGS_FILE)
  if source_prefix is None:
    source_prefix = settings.get('source_prefix', '')
  added = (settings.get('extra_ids', 0), source_prefix)
  if (folder / MODEL_FILE).exists():
    return SentencePieceTokenizer(folder / MODEL_FILE, *added)
  if settings.get('tokenizer') == 'bytes':
    return ByteTokenizer(*added)
  raise errors.DataError(
    f'{folder}: neither {MODEL_FILE} nor a {SETTINGS_FILE} of bytes: run the'
    ' data stage'
  )


def train_sentencepiece(
  texts: Iterable[str],
  path: epath.PathLike,
  vocab_size: int,
  *,
  byte_fallback: bool = False,
  character_coverage: float = 1.0,
  max_sentences: int = 2_000_000,
  normalization: str = 'nmt_nfkc',
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
    normalization: one of `NORMALIZATIONS`.

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
      normalization_rule_name=normalization,
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


def _with_extra_ids(model: bytes, extra_ids: int) -> bytes:
  """A SentencePiece model with sentinels at its end, the first one last."""
  if not extra_ids:
    return model
  from sentencepiece import sentencepiece_model_pb2

  proto = sentencepiece_model_pb2.ModelProto.FromString(model)
  for i in reversed(range(extra_ids)):
    proto.pieces.add(
      piece=f'▁<extra_id_{i}>', score=0.0, type=proto.SentencePiece.USER_DEFINED
    )
  return proto.SerializeToString()


def _save_settings(
  folder: epath.PathLike, kind: str, extra_ids: int, source_prefix: str
) -> None:
  settings = {'tokenizer': kind}
  if kind == 'bytes':
    settings['offset'] = 3
  if extra_ids:
    settings['extra_ids'] = extra_ids
  if source_prefix:
    settings['source_prefix'] = source_prefix
  content = json.dumps(settings) + '\n'
  storage.write_atomic(epath.Path(folder) / SETTINGS_FILE, content.encode())


def _marked(name: str, extra_ids: int, source_prefix: str) -> str:
  """A fingerprint that what is added changes."""
  if not extra_ids and not source_prefix:
    return name
  return f'{name} {json.dumps([extra_ids, source_prefix])}'


def without_padding(ids: Sequence[int]) -> list[int]:
  """Ids that a network sees: not 0, which MADLAD-400 has for the unknown."""
  return [i for i in ids if i != PAD_ID]


def _until(end: int, ids: Sequence[int]) -> list[int]:
  ids = [int(i) for i in ids]
  return ids[: ids.index(end)] if end in ids else ids
