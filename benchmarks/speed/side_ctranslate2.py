"""CTranslate2's side; see `serving`.

  python side_ctranslate2.py FOLDER make|grow|natural|beam [float32|int8]

`make` converts the model that stands in Hugging Face's format.
"""

import functools
import os
import pathlib
import sys
from collections.abc import Sequence

import ctranslate2
import serving


def make(folder: pathlib.Path) -> None:
  """Writes the checkpoint."""
  converter = ctranslate2.converters.TransformersConverter(
    str(folder / 'huggingface')
  )
  converter.convert(str(folder / 'ctranslate2'), force=True)


def _words(sources: Sequence[Sequence[int]]) -> list[list[str]]:
  return [[*map(str, row[:-1]), '</s>'] for row in sources]


def grow(model: ctranslate2.Translator) -> int:
  """Samples of all sources."""
  found = model.translate_batch(
    _words(serving.sources().tolist()),
    beam_size=1,
    num_hypotheses=serving.SAMPLES,
    sampling_topk=0,
    sampling_temperature=serving.TEMPERATURE,
    min_decoding_length=serving.NEW_TOKENS,
    max_decoding_length=serving.NEW_TOKENS,
  )
  return sum(len(words) for one in found for words in one.hypotheses)


def natural(model: ctranslate2.Translator, folder: str) -> int:
  """Samples of real sources until they end, which it takes out of a batch."""
  found = model.translate_batch(
    _words(serving.natural(folder)),
    beam_size=1,
    num_hypotheses=serving.NATURAL_SAMPLES,
    sampling_topk=0,
    sampling_temperature=serving.TEMPERATURE,
    max_decoding_length=serving.NATURAL_LONGEST,
    max_batch_size=serving.NATURAL_ROWS // serving.NATURAL_SAMPLES,
  )
  # EOS is not among them; it is a token that was decoded, but for those cut.
  lengths = [len(words) for one in found for words in one.hypotheses]
  return sum(min(n + 1, serving.NATURAL_LONGEST) for n in lengths)


def beam(model: ctranslate2.Translator) -> int:
  """The best beam of all sources."""
  found = model.translate_batch(
    _words(serving.sources().tolist()),
    beam_size=serving.NUM_BEAMS,
    max_decoding_length=serving.NEW_TOKENS,
  )
  return sum(len(one.hypotheses[0]) for one in found)


def main(folder: str, work: str, compute_type: str = 'float32') -> None:
  """Does what the module says."""
  path = pathlib.Path(folder)
  if work == 'make':
    make(path)
    return
  model = ctranslate2.Translator(
    str(path / 'ctranslate2'),
    compute_type=compute_type,
    inter_threads=1,
    intra_threads=len(os.sched_getaffinity(0)),
  )
  natural_of = functools.partial(natural, folder=folder)
  does = {'grow': grow, 'natural': natural_of, 'beam': beam}[work]
  about = f'ctranslate2 {ctranslate2.__version__}, {model.compute_type}'
  serving.serve(lambda: does(model), about)


if __name__ == '__main__':
  main(*sys.argv[1:])
