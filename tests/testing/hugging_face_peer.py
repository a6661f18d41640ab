"""Opens exported folders with transformers itself, and runs them.

  python hugging_face_peer.py < [{"folder": …, "lines": […]}, …]

Prints JSON, for each folder: `warnings`, what transformers or Python said while
the folder was opened; `architecture`, the class that opened it; of `lines`,
where they are given, `ids` and `translations` by greedy search; of `sources`
and `inputs`, lists of ids, the `logits`.
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


def main(folder, lines=(), sources=None, inputs=None) -> dict[str, object]:
  """Does what the module says."""
  said = _Said()
  transformers.utils.logging.disable_default_handler()
  logging.getLogger('transformers').addHandler(said)
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, config.architectures[0])
    model = kind.from_pretrained(folder).eval()
    out = {'architecture': kind.__name__}
    if lines:
      tokenizer = transformers.AutoTokenizer.from_pretrained(
        folder, use_fast=False
      )
  said.lines += [str(warning.message) for warning in caught]
  # transformers' own function for this refuses the handlers that there are.
  logging.getLogger('transformers').removeHandler(said)
  out['warnings'] = said.lines
  if lines:
    out['ids'] = [tokenizer(line)['input_ids'] for line in lines]
    out['translations'] = []
    for row in out['ids']:
      # transformers' cache fails where encoder and decoder differ in depth.
      found = model.generate(
        torch.tensor([row]), num_beams=1, do_sample=False, use_cache=False
      )
      text = tokenizer.decode(found[0], skip_special_tokens=True)
      out['translations'].append(text)
  if sources is not None:
    ids = torch.tensor(sources)
    with torch.no_grad():
      logits = model(
        input_ids=ids,
        attention_mask=(ids > 0).long(),
        decoder_input_ids=torch.tensor(inputs),
        # Its cache takes the decoder to be as deep as the encoder.
        use_cache=False,
      ).logits
    out['logits'] = logits.tolist()
  return out


if __name__ == '__main__':
  print(json.dumps([main(**job) for job in json.load(sys.stdin)]))
