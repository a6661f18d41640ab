"""Makes tiny SentencePiece models, and what transformers' tokenizers say.

Run by hand where transformers 4.57.6 and sentencepiece 0.2 are:

    python tests/goldens/make_tokenizers.py

It writes `tokenizer_{t5,mt5,madlad,byt5}` beside it, the same bytes each time.
With `--ask` it writes nothing, and prints what transformers says of folders and
texts that it is given: [{"folder": …, "texts": […]}, …] on standard input.

`t5` has T5's special ids and gets 100 sentinels; `mt5` has sentinels of its
own. `madlad` is laid out as MADLAD-400's. Of that,
https://huggingface.co/google/madlad400-3b-mt says in tokenizer_config.json 0
`<unk>`, 1 `<s>` (which pads), 2 `</s>`, no sentinels, `legacy` false, and in
config.json the same ids, `decoder_start_token_id` 0 and 256,000 ids;
https://github.com/ggml-org/llama.cpp/issues/9030 shows that its pieces go on
with a line feed and the language tags, whose scores are 0 as those of
user-defined pieces are, and that it keeps repeated blanks.
"""

import io
import json
import pathlib
import shutil
import sys

import sentencepiece
import transformers

HERE = pathlib.Path(__file__).parent
TEXTS = (
  'Das Haus steht am Fluss.',
  'the house stands by the river',
  'Zwei Häuser, drei Flüsse!',
  'two  spaces ',
  'unknown: 北京',
  'Euro € and ½',
  '',
)
T5 = {'pad_id': 0, 'eos_id': 1, 'unk_id': 2, 'bos_id': -1}
MADLAD = {
  'unk_id': 0,
  'bos_id': 1,
  'eos_id': 2,
  'pad_id': -1,
  'remove_extra_whitespaces': False,
}
TAGS = ['\n', '<2de>', '<2en>']
# Name → settings of training, pieces, settings of transformers, more texts, and
# texts of which transformers' ids are not SentencePiece's.
MODELS = {
  't5': (
    T5,
    [],
    {'extra_ids': 100},
    ['a <extra_id_0> b <extra_id_99>', '<extra_id_1>', '  two'],
    ['a </s> b', 'a<extra_id_0>b', 'a <extra_id_0>.'],
  ),
  'mt5': (
    T5,
    [f'▁<extra_id_{i}>' for i in (1, 0)],
    {'extra_ids': 0},
    ['a <extra_id_0> b', '  two'],
    ['a </s> b'],
  ),
  'madlad': (
    MADLAD,
    TAGS,
    {'extra_ids': 0, 'pad_token': '<s>', 'legacy': False},
    ['<2de> the house', '<2en>x', '<2de>  the', 'the\nhouse', '  two'],
    ['a </s> b'],
  ),
}


def main() -> None:
  """Writes all of them."""
  for name, (training, pieces, settings, more, differs) in MODELS.items():
    folder = HERE / f'tokenizer_{name}'
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    train(folder, training, pieces)
    made = transformers.T5Tokenizer(str(folder / 'spiece.model'), **settings)
    made.save_pretrained(folder)
    write(folder, made, [*TEXTS, *more], differs)
  folder = HERE / 'tokenizer_byt5'
  shutil.rmtree(folder, ignore_errors=True)
  made = transformers.ByT5Tokenizer()
  made.save_pretrained(folder)
  write(folder, made, [*TEXTS, '  two'], ['a </s> b', 'a <extra_id_0> b'])


def train(folder: pathlib.Path, training: dict, pieces: list[str]) -> None:
  """Trains a model; without rules of normalisation it is a few kB."""
  model = io.BytesIO()  # A file's name would be written into the model.
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXTS[:4] * 20),
    model_writer=model,
    vocab_size=60 + len(pieces),
    user_defined_symbols=pieces,
    normalization_rule_name='identity',
    num_threads=1,
    minloglevel=2,
    hard_vocab_limit=False,
    **training,
  )
  (folder / 'spiece.model').write_bytes(model.getvalue())


def answers(made, texts) -> dict:
  """What a tokenizer says; its ids have EOS at the end."""
  return {
    'size': len(made),
    'eos_id': made.eos_token_id,
    'unk_id': made.unk_token_id,
    'ids': [made(text).input_ids for text in texts],
  }


def write(folder: pathlib.Path, made, texts, differs) -> None:
  """Keeps what it says, and drops what tests do not read."""
  expected = answers(made, [*texts, *differs])
  ids = expected.pop('ids')
  expected['ids'] = dict(zip(texts, ids[: len(texts)], strict=True))
  expected['differs'] = dict(zip(differs, ids[len(texts) :], strict=True))
  for path in folder.iterdir():
    if path.name not in ('spiece.model', 'tokenizer_config.json'):
      path.unlink()
  text = json.dumps(expected, ensure_ascii=False, indent=1)
  (folder / 'expected.json').write_text(text + '\n')


def ask(questions: list[dict]) -> list[dict]:
  """What the slow tokenizers of folders say."""
  return [
    answers(
      transformers.AutoTokenizer.from_pretrained(
        question['folder'], use_fast=False
      ),
      question['texts'],
    )
    for question in questions
  ]


if __name__ == '__main__':
  if sys.argv[1:] == ['--ask']:
    print(json.dumps(ask(json.load(sys.stdin))))
  else:
    main()
