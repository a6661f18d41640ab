"""Hugging Face's own network, where it is installed, to compare ours with.

The only file that knows torch and transformers; neither is needed.
"""

import importlib.metadata
import importlib.util
import os

import numpy as np

from rest_jax import errors, storage

# 5 ties the embeddings of every T5, whatever its checkpoint says.
_MAJOR = '4'


def why_not() -> str | None:
  """Why nothing can be compared; None where it can."""
  if importlib.util.find_spec('transformers') is None:
    return 'transformers is not installed'
  if importlib.util.find_spec('torch') is None:
    return 'torch is not installed'
  version = importlib.metadata.version('transformers')
  if version.partition('.')[0] != _MAJOR:
    return f'transformers {version} is not of version 4'
  return None


def version() -> str:
  """The version of transformers that is installed."""
  return importlib.metadata.version('transformers')


def logits(
  folder: storage.PathLike,
  encoder_tokens: np.ndarray,
  decoder_tokens: np.ndarray,
) -> np.ndarray:
  """The logits that transformers computes of a checkpoint, in float32.

  Args:
    folder: a folder of Hugging Face.
    encoder_tokens: int32 [b, s], 0 is padding.
    decoder_tokens: int32 [b, t].

  Returns:
    float32 [b, t, v].

  Raises:
    ConfigurationError: transformers finds weights missing, left over, or of
      other shapes.
  """
  # It would import TensorFlow too, which takes longer than all the rest.
  os.environ.setdefault('USE_TF', '0')
  import torch
  import transformers

  config = transformers.AutoConfig.from_pretrained(
    str(folder), local_files_only=True
  )
  kinds = {
    't5': transformers.T5ForConditionalGeneration,
    'mt5': transformers.MT5ForConditionalGeneration,
    'umt5': transformers.UMT5ForConditionalGeneration,
  }
  model, found = kinds[config.model_type].from_pretrained(
    str(folder),
    config=config,
    dtype=torch.float32,
    local_files_only=True,
    use_safetensors=True,
    output_loading_info=True,
  )
  problems = {kind: sorted(names) for kind, names in found.items() if names}
  if problems:
    raise errors.ConfigurationError(
      f'transformers does not open {folder} as it is: {problems}.'
    )
  model.eval()
  encoder = torch.from_numpy(encoder_tokens.astype(np.int64))
  with torch.no_grad():
    out = model(
      input_ids=encoder,
      attention_mask=(encoder > 0).long(),
      decoder_input_ids=torch.from_numpy(decoder_tokens.astype(np.int64)),
      # Its cache may take the decoder to be as deep as the encoder.
      use_cache=False,
    )
  return out.logits.numpy()
