"""Writes a tokenizer beside a checkpoint, as others read it.

Hugging Face's T5 tokenizers take the SentencePiece model as it is, under the
name `spiece.model`; what they must be told stands in `tokenizer_config.json`.
"""

import shutil
from typing import Any

import sentencepiece
from etils import epath

from rest_jax import storage
from rest_jax.data import origin_tokenizer
from rest_jax.data import tokenizer as tokenizer_lib

SPIECE = 'spiece.model'
CONFIG = origin_tokenizer.CONFIG
# Under which names a tokenizer may lie beside a checkpoint.
FILES = (
  SPIECE,
  CONFIG,
  'tokenizer.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'sentencepiece.model',
  tokenizer_lib.MODEL_FILE,
)


def copy(origin: storage.PathLike, folder: storage.PathLike) -> list[str]:
  """Copies the tokenizer files of a checkpoint as they are.

  Returns:
    Their names; none where it has none.

  Raises:
    StorageError: a file cannot be written.
  """
  found = [name for name in FILES if (epath.Path(origin) / name).exists()]
  for name in found:
    with (
      storage.reporting(folder),
      (epath.Path(origin) / name).open('rb') as read,
      (epath.Path(folder) / name).open('wb') as write,
    ):
      shutil.copyfileobj(read, write)
  return found


def write_huggingface(
  folder: storage.PathLike, tokenizer: tokenizer_lib.Tokenizer
) -> None:
  """Writes what `AutoTokenizer` needs for the same ids.

  A prefix of sources is no part of it: transformers' tokenizers have none.

  Args:
    folder: that of the checkpoint.
    tokenizer: the run's.

  Raises:
    StorageError: the folder cannot be written.
  """
  folder = epath.Path(folder)
  if origin_tokenizer.has_our_settings(folder):
    # Copied from where ours lay, it would be taken for a fast tokenizer.
    (folder / tokenizer_lib.SETTINGS_FILE).unlink()
  if isinstance(tokenizer, tokenizer_lib.SentencePieceTokenizer):
    tokenizer.save_model(folder / SPIECE)
    model = sentencepiece.SentencePieceProcessor(
      model_proto=(folder / SPIECE).read_bytes()
    )
    tokens = {
      # MADLAD-400's unknown: the network pads with 0, whatever that is.
      'pad_token': model.id_to_piece(tokenizer_lib.PAD_ID),
      'eos_token': model.id_to_piece(tokenizer.eos_id),
      'unk_token': model.id_to_piece(tokenizer.unk_id),
    }
    # 'legacy' is SentencePiece's own way, which our ids are of.
    values = _config('T5Tokenizer', tokens, tokenizer.extra_ids)
    values['legacy'] = True
  else:
    tokens = {'pad_token': '<pad>', 'eos_token': '</s>', 'unk_token': '<unk>'}
    values = _config('ByT5Tokenizer', tokens, tokenizer.extra_ids)
  storage.write_json_atomic(folder / CONFIG, values)
  storage.write_json_atomic(folder / 'special_tokens_map.json', tokens)


def _config(
  kind: str, tokens: dict[str, str], sentinels: int
) -> dict[str, Any]:
  return {
    'tokenizer_class': kind,
    'extra_ids': sentinels,
    'model_max_length': 1_000_000_000,
    'clean_up_tokenization_spaces': False,
    **tokens,
  }


def load(folder: storage.PathLike) -> tokenizer_lib.Tokenizer | None:
  """The tokenizer that lies beside a checkpoint; None where there is none.

  Raises:
    DataError: a file of it is damaged.
    ConfigurationError: its special ids are not T5's.
  """
  folder = epath.Path(folder)
  foreign = any((folder / name).exists() for name in (SPIECE, CONFIG))
  if (folder / tokenizer_lib.MODEL_FILE).exists() and not foreign:
    return tokenizer_lib.load_tokenizer(folder)
  return origin_tokenizer.find(folder)
