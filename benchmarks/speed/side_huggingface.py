"""Hugging Face's side, in torch; see `serving`.

  python side_huggingface.py FOLDER make|words|grow|natural|beam|train|improve

`make` writes the model of all sides: T5-small's shape, with random weights;
`words` a tokenizer for a model that is there, whose words are numbers.
"""

import functools
import os
import pathlib
import sys

import numpy as np
import serving
import tokenizers
import torch
import transformers


def _model(folder: pathlib.Path):
  return transformers.T5ForConditionalGeneration.from_pretrained(
    folder / 'huggingface'
  )


def make(folder: pathlib.Path) -> None:
  """Writes the checkpoint."""
  torch.manual_seed(0)
  config = transformers.T5Config(
    vocab_size=serving.VOCAB_SIZE,
    d_model=512,
    d_kv=64,
    d_ff=2048,
    num_layers=6,
    num_heads=8,
    decoder_start_token_id=0,
  )
  model = transformers.T5ForConditionalGeneration(config)
  model.save_pretrained(folder / 'huggingface')
  write_words(folder)


def write_words(folder: pathlib.Path) -> None:
  """Writes the tokenizer beside the checkpoint."""
  config = transformers.T5Config.from_pretrained(folder / 'huggingface')
  # CTranslate2 converts no model without a tokenizer: each id is its own word.
  words = ['<pad>', '</s>', '<unk>', *map(str, range(3, config.vocab_size))]
  vocabulary = {word: number for number, word in enumerate(words)}
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(
      tokenizers.models.WordLevel(vocabulary, unk_token='<unk>')
    ),
    pad_token='<pad>',
    eos_token='</s>',
    unk_token='<unk>',
  ).save_pretrained(folder / 'huggingface')


@torch.inference_mode()
def grow(model) -> int:
  """Samples of all sources."""
  tokens = model.generate(
    torch.from_numpy(serving.sources()).long(),
    do_sample=True,
    temperature=serving.TEMPERATURE,
    top_k=0,
    top_p=1.0,
    num_return_sequences=serving.SAMPLES,
    min_new_tokens=serving.NEW_TOKENS,
    max_new_tokens=serving.NEW_TOKENS,
  )
  return tokens[:, 1:].numel()


@torch.inference_mode()
def natural(model, folder: str) -> int:
  """Samples of real sources, batch by batch until the last of one ends."""
  count = 0
  for batch in serving.natural_batches(folder):
    tokens = torch.from_numpy(batch).long()
    found = model.generate(
      tokens,
      attention_mask=(tokens > 0).long(),
      do_sample=True,
      temperature=serving.TEMPERATURE,
      top_k=0,
      top_p=1.0,
      num_return_sequences=serving.NATURAL_SAMPLES,
      max_new_tokens=serving.NATURAL_LONGEST,
    )
    count += int((found[:, 1:] != 0).sum())
  return count


@torch.inference_mode()
def beam(model) -> int:
  """The best beam of all sources."""
  tokens = model.generate(
    torch.from_numpy(serving.sources()).long(),
    num_beams=serving.NUM_BEAMS,
    max_new_tokens=serving.NEW_TOKENS,
  )
  return int((tokens[:, 1:] != 0).sum())


class Train:
  """Updates, one at a time."""

  def __init__(self, model, sources: np.ndarray, targets: np.ndarray):
    self._model = model.train()
    self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    self._sources = torch.from_numpy(sources).long()
    targets = torch.from_numpy(targets).long()
    self._labels = torch.where(targets > 0, targets, -100)

  def __call__(self) -> int:
    loss = self._model(
      input_ids=self._sources,
      attention_mask=(self._sources > 0).long(),
      labels=self._labels,
    ).loss
    loss.backward()
    self._optimizer.step()
    self._optimizer.zero_grad()
    loss.item()
    return int((self._labels > 0).sum())


def main(folder: str, work: str) -> None:
  """Does what the module says."""
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  path = pathlib.Path(folder)
  if work == 'make':
    make(path)
    return
  if work == 'words':
    write_words(path)
    return
  model = _model(path).eval()
  about = f'transformers {transformers.__version__}, torch {torch.__version__}'
  if work == 'train':
    pairs = serving.sources(serving.PAIRS), serving.targets()
    serving.serve(Train(model, *pairs), about)
  elif work == 'improve':
    pairs = map(serving.padded, zip(*serving.pairs(folder), strict=True))
    serving.serve(Train(model, *pairs), about)
  else:
    natural_of = functools.partial(natural, folder=folder)
    does = {'grow': grow, 'natural': natural_of, 'beam': beam}[work]
    serving.serve(lambda: does(model), about)


if __name__ == '__main__':
  main(*sys.argv[1:])
