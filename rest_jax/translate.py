"""Translate: one line of text in, one line of text out."""

import dataclasses
import hashlib
import sys

import numpy as np
from etils import epath

from rest_jax import generation, mbr, storage
from rest_jax.context import Context
from rest_jax.data import text as text_lib
from rest_jax.decoding.sampling import Sampling
from rest_jax.errors import ConfigurationError
from rest_jax.evaluate import Evaluate
from rest_jax.types import Params

_STDIN = '/dev/stdin'


@dataclasses.dataclass(frozen=True)
class Translate:
  """How lines are translated.

  Attributes:
    mbr_samples: samples of a line, of which the one that agrees best with all
      of them, by chrF, is its translation (minimum Bayes risk, see `mbr`); 0:
      beam search, as in evaluations.
    mbr_sampling: how they are drawn, by default as in Freitag et al. 2023,
      arXiv:2305.09860.
  """

  mbr_samples: int = 0
  mbr_sampling: Sampling = Sampling(temperature=1.0, epsilon=0.02)

  def __post_init__(self):
    if self.mbr_samples < 0:
      raise ConfigurationError(
        f'Translate.mbr_samples = {self.mbr_samples} must be at least 0.'
      )
    if self.mbr_samples and self.mbr_sampling.is_greedy:
      raise ConfigurationError(
        'Translate.mbr_sampling draws the same sample each time at temperature'
        ' 0; set it above, or mbr_samples = 0.'
      )


def run(
  context: Context,
  settings: Translate,
  evaluate: Evaluate,
  *,
  policy_name: str,
  source: str,
  target: str,
) -> None:
  """Translates a file with a policy; empty lines stay empty.

  Args:
    context: the run.
    settings: how to choose among translations.
    evaluate: the beam and the shapes of decoding.
    policy_name: stage of the policy.
    source: file to read, '.gz' allowed, or '-' for standard input.
    target: file to write, or '-' for standard output.

  Raises:
    ConfigurationError: the output is a folder.
    DataError: the input is missing or no UTF-8; file and line are named.
    StorageError: the output cannot be written.
  """
  if target != '-' and epath.Path(target).is_dir():
    raise ConfigurationError(
      f'--output={target} is a folder; give the file to write.'
    )
  lines = list(text_lib.read_lines(_STDIN if source == '-' else source))
  filled = [i for i, line in enumerate(lines) if line.strip()]
  longest = evaluate.batching.source_buckets[-1]
  tokens, cut = [], 0
  sources = [lines[i] for i in filled]
  for encoded in context.tokenizer.encode_sources(sources):
    cut += len(encoded) >= longest
    tokens.append([*encoded[: longest - 1], context.tokenizer.eos_id])
  if cut:
    context.progress.note(f'{cut:,} lines were cut to {longest} tokens')
  params = context.decoding_params(policy_name)
  if settings.mbr_samples:
    texts = _by_agreement(context, settings, evaluate, params, tokens)
  else:
    texts = _by_beam_search(context, evaluate, params, tokens)
  out = [''] * len(lines)
  for i, text in zip(filled, texts, strict=True):
    # A policy may write line ends; a line must stay a line.
    out[i] = ' '.join(text.splitlines())
  written = ''.join(line + '\n' for line in out)
  if target == '-':
    sys.stdout.write(written)
  else:
    storage.write_atomic(target, written.encode())


def _by_beam_search(
  context: Context,
  evaluate: Evaluate,
  params: Params,
  sources: list[list[int]],
) -> list[str]:
  beams = generation.generate_beam(
    context.decoder,
    params,
    sources,
    num_beams=evaluate.num_beams,
    alpha=evaluate.alpha,
    batching=evaluate.batching,
    num_tokens=context.tokenizer.size,
  )
  return [context.tokenizer.decode(beam.tolist()) for beam in beams]


def _by_agreement(
  context: Context,
  settings: Translate,
  evaluate: Evaluate,
  params: Params,
  sources: list[list[int]],
) -> list[str]:
  # By what it says, so that a line is translated alike wherever it stands.
  ids = np.array([_number(source) for source in sources], np.int64)
  generated = generation.generate(
    context.decoder,
    params,
    sources,
    ids,
    seed=context.seed,
    purpose='translate',
    step=0,
    num_samples=settings.mbr_samples,
    sampling=settings.mbr_sampling,
    batching=evaluate.batching,
    num_tokens=context.tokenizer.size,
  )
  texts = np.array(generated.texts(context.tokenizer), object)
  groups = texts.reshape(len(sources), settings.mbr_samples).tolist()
  return [group[mbr.best(group)] for group in groups]


def _number(source: list[int]) -> int:
  digest = hashlib.blake2b(np.array(source, '<i4').tobytes(), digest_size=8)
  return int.from_bytes(digest.digest(), 'big') >> 1  # An int64 at least 0.
