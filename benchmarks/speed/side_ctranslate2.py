"""CTranslate2's side; see `serving`.

  python side_ctranslate2.py FOLDER make|grow|beam [float32|int8]

`make` converts the model that Hugging Face's side made.
"""

import os
import pathlib
import sys

import ctranslate2
import serving


def make(folder: pathlib.Path) -> None:
  """Writes the checkpoint."""
  converter = ctranslate2.converters.TransformersConverter(
    str(folder / 'huggingface')
  )
  converter.convert(str(folder / 'ctranslate2'), force=True)


def _words() -> list[list[str]]:
  return [[*map(str, row[:-1].tolist()), '</s>'] for row in serving.sources()]


def grow(model: ctranslate2.Translator) -> int:
  """Samples of all sources."""
  found = model.translate_batch(
    _words(),
    beam_size=1,
    num_hypotheses=serving.SAMPLES,
    sampling_topk=0,
    sampling_temperature=serving.TEMPERATURE,
    min_decoding_length=serving.NEW_TOKENS,
    max_decoding_length=serving.NEW_TOKENS,
  )
  return sum(len(words) for one in found for words in one.hypotheses)


def beam(model: ctranslate2.Translator) -> int:
  """The best beam of all sources."""
  found = model.translate_batch(
    _words(),
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
  does = {'grow': grow, 'beam': beam}[work]
  about = f'ctranslate2 {ctranslate2.__version__}, {model.compute_type}'
  serving.serve(lambda: does(model), about)


if __name__ == '__main__':
  main(*sys.argv[1:])
