"""Opens exported folders with transformers itself, and translates with it.

  python hugging_face_peer.py < {"folder": …, "lines": […]}

Prints JSON: `warnings`, what transformers or Python said while the folder was
opened; `ids` and `translations` of the lines, by greedy search.
"""

import json
import logging
import os
import sys
import warnings

os.environ['USE_TF'] = '0'

import torch
import transformers


class _Said(logging.Handler):
  """Keeps what is logged."""

  def __init__(self):
    super().__init__(logging.WARNING)
    self.lines: list[str] = []

  def emit(self, record):
    self.lines.append(record.getMessage())


def main(folder: str, lines: list[str]) -> dict[str, object]:
  """Does what the module says."""
  said = _Said()
  transformers.utils.logging.disable_default_handler()
  transformers.utils.logging.add_handler(said)
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    model = transformers.T5ForConditionalGeneration.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(
      folder, use_fast=False
    )
  said.lines += [str(warning.message) for warning in caught]
  ids = [tokenizer(line)['input_ids'] for line in lines]
  translations = []
  for row in ids:
    out = model.eval().generate(
      torch.tensor([row]), num_beams=1, do_sample=False
    )
    translations.append(tokenizer.decode(out[0], skip_special_tokens=True))
  return {
    'warnings': said.lines,
    'ids': ids,
    'translations': translations,
    'architectures': model.config.architectures,
  }


if __name__ == '__main__':
  print(json.dumps(main(**json.load(sys.stdin))))
