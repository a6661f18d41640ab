"""Translate: one line of text in, one line of text out, by beam search."""

import sys

from rest_jax import generation, storage
from rest_jax.context import Context
from rest_jax.data import text as text_lib
from rest_jax.evaluate import Evaluate

_STDIN = '/dev/stdin'


def run(
  context: Context,
  settings: Evaluate,
  *,
  policy_name: str,
  source: str,
  target: str,
) -> None:
  """Translates a file with a policy; empty lines stay empty.

  Args:
    context: the run.
    settings: the beam and the shapes of decoding.
    policy_name: stage of the policy.
    source: file to read, '.gz' allowed, or '-' for standard input.
    target: file to write, or '-' for standard output.

  Raises:
    DataError: the input is missing or no UTF-8; file and line are named.
    StorageError: the output cannot be written.
  """
  lines = list(text_lib.read_lines(_STDIN if source == '-' else source))
  filled = [i for i, line in enumerate(lines) if line.strip()]
  longest = settings.batching.source_buckets[-1]
  tokens, cut = [], 0
  sources = [lines[i] for i in filled]
  for encoded in context.tokenizer.encode_sources(sources):
    cut += len(encoded) >= longest
    tokens.append([*encoded[: longest - 1], context.tokenizer.eos_id])
  if cut:
    context.progress.note(f'{cut:,} lines were cut to {longest} tokens')
  beams = generation.generate_beam(
    context.decoder,
    context.decoding_params(policy_name),
    tokens,
    num_beams=settings.num_beams,
    alpha=settings.alpha,
    batching=settings.batching,
    num_tokens=context.tokenizer.size,
  )
  out = [''] * len(lines)
  for i, beam in zip(filled, beams, strict=True):
    # A policy may write line ends; a line must stay a line.
    out[i] = ' '.join(context.tokenizer.decode(beam.tolist()).splitlines())
  written = ''.join(line + '\n' for line in out)
  if target == '-':
    sys.stdout.write(written)
  else:
    storage.write_atomic(target, written.encode())
