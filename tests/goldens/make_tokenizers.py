"""Makes tiny SentencePiece models, and what transformers' tokenizers say.

Run by hand where transformers 4.57.6 and sentencepiece are:

    python tests/goldens/make_tokenizers.py

`t5` has T5's special ids and gets 100 sentinels; `mt5` has sentinels of its
own; `madlad` has MADLAD-400's special ids and language tags.
"""

import json
import pathlib
import shutil

import sentencepiece
import transformers

HERE = pathlib.Path(__file__).parent
TEXTS = (
  'Das Haus steht am Fluss.',
  'the house stands by the river',
  'Zwei Häuser, drei Flüsse!',
  '  two  spaces ',
  'unknown: 北京',
  '',
)
T5 = {'pad_id': 0, 'eos_id': 1, 'unk_id': 2, 'bos_id': -1}
MADLAD = {'unk_id': 0, 'bos_id': 1, 'eos_id': 2, 'pad_id': -1}
TAGS = ['<2de>', '<2en>']


def main() -> None:
  """Writes all of them."""
  models = {
    't5': (T5, [], {'extra_ids': 100}, ['a <extra_id_0> b <extra_id_99>']),
    'mt5': (T5, [f'▁<extra_id_{i}>' for i in (1, 0)], {'extra_ids': 0}, []),
    'madlad': (MADLAD, TAGS, {'extra_ids': 0}, ['<2de> the house', '<2en>x']),
  }
  for name, (special, pieces, settings, more) in models.items():
    folder = HERE / f'tokenizer_{name}'
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    train(folder, special, pieces)
    made = transformers.T5Tokenizer(
      str(folder / 'spiece.model'),
      pad_token='<s>' if name == 'madlad' else '<pad>',
      **settings,
    )
    made.save_pretrained(folder)
    write(folder, made, [*TEXTS, *more])
  folder = HERE / 'tokenizer_byt5'
  shutil.rmtree(folder, ignore_errors=True)
  made = transformers.ByT5Tokenizer()
  made.save_pretrained(folder)
  write(folder, made, TEXTS)


def train(folder: pathlib.Path, special: dict, pieces: list[str]) -> None:
  """Trains a model; without rules of normalisation it is a few kB."""
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([t for t in TEXTS if 'unknown' not in t and t] * 20),
    model_prefix=str(folder / 'spiece'),
    vocab_size=60 + len(pieces),
    user_defined_symbols=pieces,
    normalization_rule_name='identity',
    num_threads=1,
    minloglevel=2,
    hard_vocab_limit=False,
    **special,
  )
  (folder / 'spiece.vocab').unlink()


def write(folder: pathlib.Path, made, texts) -> None:
  """Keeps ids, EOS included, and drops what tests do not read."""
  ids = {text: made(text).input_ids for text in texts}
  expected = {'size': len(made), 'eos_id': made.eos_token_id, 'ids': ids}
  for path in folder.iterdir():
    if path.name not in ('spiece.model', 'tokenizer_config.json'):
      path.unlink()
  text = json.dumps(expected, ensure_ascii=False, indent=1)
  (folder / 'expected.json').write_text(text + '\n')


if __name__ == '__main__':
  main()
