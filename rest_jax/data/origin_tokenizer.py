"""The tokenizer that a Hugging Face folder of the T5 family brings.

The ids are those that the checkpoint was trained with: SentencePiece's own, as
seqio has them. What transformers adds to them is read from the folder's files,
by the rules of its T5Tokenizer and ByT5Tokenizer (4.57): sentinels after the
model's pieces, the first one last; and tokens of a user's, which it cuts out of
a text before SentencePiece sees it, and which are refused here.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from rest_jax import errors
from rest_jax.data import tokenizer as tokenizer_lib

# Names that such a folder has for the SentencePiece model.
MODEL_FILES = (
  'spiece.model',
  'sentencepiece.model',
  tokenizer_lib.MODEL_FILE,
)
CONFIG = 'tokenizer_config.json'
_MODEL_CONFIG = 'config.json'
_ADDED = 'added_tokens.json'
_SENTINEL = re.compile(r'▁?<extra_id_(\d+)>')
_FIRST = ('▁<extra_id_0>', '<extra_id_0>')
_T5_EXTRA_IDS = 100  # What transformers adds where a folder is silent,
_BYT5_EXTRA_IDS = 125  # and to bytes.


def read(
  folder: epath.PathLike, source_prefix: str = ''
) -> tokenizer_lib.Tokenizer:
  """Reads the tokenizer of a folder.

  Args:
    folder: of the checkpoint.
    source_prefix: what sources begin with, such as MADLAD-400's '<2de> '.

  Raises:
    DataError: the folder has no tokenizer, or a damaged one.
    ConfigurationError: its special ids are not a T5's, or it gives tokens of a
      user's ids that SentencePiece would not.
  """
  folder = epath.Path(folder)
  found = find(folder, source_prefix)
  if found is None:
    raise errors.DataError(
      f'{folder}: no tokenizer ({", ".join(MODEL_FILES)}; a fast one alone,'
      ' tokenizer.json, is not read): fetch the SentencePiece model too'
    )
  _refuse_added(folder, found)
  return found


def find(
  folder: epath.PathLike, source_prefix: str = ''
) -> tokenizer_lib.SentencePieceTokenizer | tokenizer_lib.ByteTokenizer | None:
  """The tokenizer of a folder, whatever a user has added to it.

  An export of ours for T5X, or of its own form, says what it has. A ByT5 has
  none but bytes. A SentencePiece model is taken as it is. There are
  as many sentinels as `tokenizer_config.json` lists, else as its `extra_ids`
  says; where it is silent, as many as transformers has, if the model has
  embeddings for them; and none where the pieces have their own, as mT5's have.

  Args:
    folder: of the checkpoint.
    source_prefix: see `read`.

  Returns:
    None where there is none.

  Raises:
    DataError: a file of it is damaged.
    ConfigurationError: its special ids are not a T5's.
  """
  folder = epath.Path(folder)
  if _is_ours(folder):
    return tokenizer_lib.load_tokenizer(folder, source_prefix or None)
  settings = _settings(folder)
  listed = len({token for token, _ in _added(folder) if _is_sentinel(token)})
  if settings.get('tokenizer_class') == 'ByT5Tokenizer':
    extra_ids = _extra_ids(
      settings, listed, tokenizer_lib.BYTES_END, _BYT5_EXTRA_IDS
    )
    return tokenizer_lib.ByteTokenizer(extra_ids, source_prefix)
  model = _model_file(folder)
  if model is None:
    return None
  plain = tokenizer_lib.SentencePieceTokenizer(model, 0, source_prefix)
  if any(piece in plain for piece in _FIRST):
    return plain
  extra_ids = _extra_ids(settings, listed, plain.size, _T5_EXTRA_IDS)
  return tokenizer_lib.SentencePieceTokenizer(model, extra_ids, source_prefix)


def has_our_settings(folder: epath.Path) -> bool:
  """Whether a tokenizer.json is ours, not a fast tokenizer of transformers.

  Raises:
    DataError: it is damaged.
  """
  return 'tokenizer' in _json(folder / tokenizer_lib.SETTINGS_FILE)


def _is_ours(folder: epath.Path) -> bool:
  """Whether a folder is an export of ours that no other library reads."""
  if any((folder / name).exists() for name in (*MODEL_FILES[:2], CONFIG)):
    return False
  if has_our_settings(folder):
    return True
  config = _json(folder / _MODEL_CONFIG)
  model = folder / tokenizer_lib.MODEL_FILE
  return model.exists() and bool(config) and 'model_type' not in config


def _model_file(folder: epath.Path) -> epath.Path | None:
  for name in MODEL_FILES:
    if (folder / name).exists():
      return folder / name
  return None


def _extra_ids(
  settings: dict[str, Any], listed: int, size: int, silent: int
) -> int:
  """How many sentinels come after `size` ids."""
  if listed:  # A ByT5 lists them, and says `extra_ids` = 0 all the same.
    return listed
  given = settings.get('extra_ids')
  if given is not None:
    return given
  rows = settings.get('vocab_size', size + silent)
  return silent if rows >= size + silent else 0


def _refuse_added(
  folder: epath.Path,
  tokenizer: tokenizer_lib.SentencePieceTokenizer | tokenizer_lib.ByteTokenizer,
) -> None:
  """Refuses tokens whose ids texts would not get from our tokenizer.

  Raises:
    ConfigurationError: there are some; they are listed.
  """
  special = tokenizer.special
  size, in_bytes = tokenizer.size, _model_file(folder) is None
  wrong = []
  for token, id_ in _added(folder):
    sentinel = _SENTINEL.fullmatch(token)
    if sentinel is None:
      fits = token in special and id_ in (None, special[token])
    elif in_bytes or not tokenizer.extra_ids:  # No text has them, or pieces.
      fits = id_ is None or id_ < size
    else:
      fits = id_ in (None, size - 1 - int(sentinel[1]))
    if not fits and token not in wrong:
      wrong.append(token)
  if wrong:
    shown = ', '.join(wrong[:4]) + (', …' if len(wrong) > 4 else '')
    raise errors.ConfigurationError(
      f'{folder}: transformers gives {len(wrong)} tokens ids that its'
      f' SentencePiece model does not ({shown}); where no text has them, set'
      ' TOKENIZER = @prepare.GivenTokenizer() with its .model file, or'
      ' @prepare.Bytes() for ByT5'
    )


def _added(folder: epath.Path) -> Iterator[tuple[str, int | None]]:
  """Tokens that the folder's files add or name, with their ids if given."""
  settings = _settings(folder)
  for id_, token in (settings.get('added_tokens_decoder') or {}).items():
    yield _content(token), int(id_)
  for token in settings.get('additional_special_tokens') or ():
    yield _content(token), None
  for token, id_ in _json(folder / _ADDED).items():
    yield token, id_


def _content(token: Any) -> str:
  """The spelling of a token, which may be written with its settings."""
  return str(token.get('content')) if isinstance(token, dict) else str(token)


def _is_sentinel(token: str) -> bool:
  return _SENTINEL.fullmatch(token) is not None


def _settings(folder: epath.Path) -> dict[str, Any]:
  """What the folder says of its tokenizer; its model knows the class too."""
  return _json(folder / _MODEL_CONFIG) | _json(folder / CONFIG)


def _json(path: epath.Path) -> dict[str, Any]:
  """The object in a file; an empty one where there is no file."""
  if not path.exists():
    return {}
  try:
    found = json.loads(path.read_bytes())
  except ValueError as error:
    raise errors.DataError(
      f'{path} is not readable as JSON ({error}): fetch it again'
    ) from error
  if not isinstance(found, dict):
    raise errors.DataError(f'{path} holds no JSON object: fetch it again')
  return found
