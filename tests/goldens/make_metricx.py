"""Makes tests/goldens/metricx: a tiny random MetricX and its official scores.

  git clone https://github.com/google-research/metricx
  python tests/goldens/make_metricx.py metricx

Needs, in an environment of its own, torch 2.13, transformers 4.57 (5 ties T5's
embeddings), sentencepiece and protobuf. The official model class is run as it
is; it reads the logit of id 250089, so it has that many words here too, of
which the tokens use the first few. What is saved has only these, and the row of
250089 as another id: the scores are the same.
"""

import io
import json
import pathlib
import shutil
import sys
import tempfile

import sentencepiece
import torch
import transformers
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).parent / 'metricx'
OFFICIAL_ID = 250089
SCORE_ID = 7
WORDS = 200
# Not 1024 and 1536, so that the golden's texts may be short.
MAX_INPUT_LENGTH = {23: 80, 24: 90}
ROWS = (
  ('Guten Morgen!', 'Good morning!', 'Good morning!'),
  ('Das Haus ist rot.', 'The house is red.', 'The house is red.'),
  ('Das Haus ist rot.', 'The house', 'The house is red.'),
  ('Das Haus ist rot.', 'The house is red. ' * 2, 'The house is red.'),
  ('Wie spät ist es jetzt?', 'How late is it now?', 'What time is it now?'),
  ('Er kam, sah und ging.', '', 'He came, saw and left.'),
  ('今天天气很好', 'the weather is good today', 'The weather is fine today.'),
  ('Ein  Satz\u00a0mit Lücken', 'a sentence  with gaps ', 'A gapped sentence'),
  ('Zug um Zug ' * 12, 'Move by move', 'One move after another'),
  ('Kurz', 'It is short but it goes on ' * 6, 'Short'),
)


def train_tokenizer() -> None:
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(
      [text for row in ROWS for text in row if text]
      + ['source: candidate: reference:'] * 9
    ),
    model_writer=model,
    model_type='unigram',
    vocab_size=WORDS - 40,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    character_coverage=1.0,
    hard_vocab_limit=False,
    # The usual rule alone is 240 kB.
    normalization_rule_name='identity',
    num_threads=1,
    minloglevel=2,
  )
  (FOLDER / 'spiece.model').write_bytes(model.getvalue())


def official_tokenizer():
  """What AutoTokenizer gives for google/mt5-*, whose settings these are."""
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    shutil.copy(FOLDER / 'spiece.model', folder)
    settings = {'tokenizer_class': 'T5Tokenizer', 'extra_ids': 0}
    (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
    (folder / 'config.json').write_text(json.dumps({'model_type': 'mt5'}))
    return transformers.AutoTokenizer.from_pretrained(folder)


def official_model(metricx) -> torch.nn.Module:
  torch.manual_seed(3)
  config = transformers.MT5Config(
    vocab_size=250112,
    d_model=16,
    d_kv=8,
    d_ff=24,
    num_layers=2,
    num_decoder_layers=1,
    num_heads=3,
    feed_forward_proj='gated-gelu',
    tie_word_embeddings=False,
    decoder_start_token_id=0,
  )
  model = metricx.models.MT5ForRegression(config).eval()
  with torch.no_grad():
    # Larger than at the start of training: a wrong part shall show.
    for name, value in model.named_parameters():
      if value.ndim > 1:
        value.normal_(std=1.0 if 'shared' in name else 0.3)
      else:
        value.uniform_(0.5, 1.5)
    model.lm_head.weight[OFFICIAL_ID] *= 21
  return model


def scores(model, tokenizer, generation: int, reference: bool) -> list[float]:
  found = []
  for source, candidate, good in ROWS:
    if generation == 24:
      text = f'source: {source} candidate: {candidate}'
      text += f' reference: {good}' if reference else ''
    elif reference:
      text = f'candidate: {candidate} reference: {good}'
    else:
      text = f'candidate: {candidate} source: {source}'
    row = tokenizer(
      text,
      max_length=MAX_INPUT_LENGTH[generation],
      truncation=True,
      padding=False,
      return_tensors='pt',
    )
    ids, mask = row['input_ids'][:, :-1], row['attention_mask'][:, :-1]
    assert int(ids.max()) < WORDS
    with torch.no_grad():
      # Written for transformers 4.30: 4.57 mixes its two caches up.
      prediction = model(
        input_ids=ids, attention_mask=mask, use_cache=False
      ).predictions
    found.append(round(float(prediction[0]), 6))
  return found


def save_small(model) -> None:
  """Saves the words in use, in two files as large checkpoints are."""
  state = {name: value.clone() for name, value in model.state_dict().items()}
  head = state['lm_head.weight'][:WORDS].clone()
  head[SCORE_ID] = state['lm_head.weight'][OFFICIAL_ID]
  state['lm_head.weight'] = head
  state['shared.weight'] = state['shared.weight'][:WORDS].clone()
  state = {k: v for k, v in state.items() if 'embed_tokens' not in k}
  halves = [
    {k: v for k, v in state.items() if k.startswith('encoder') == first}
    for first in (True, False)
  ]
  files = {}
  for number, half in enumerate(halves, 1):
    name = f'model-{number:05}-of-00002.safetensors'
    save_file(half, FOLDER / name, metadata={'format': 'pt'})
    files |= dict.fromkeys(half, name)
  index = {'metadata': {}, 'weight_map': dict(sorted(files.items()))}
  text = json.dumps(index, indent=1)
  (FOLDER / 'model.safetensors.index.json').write_text(text + '\n')
  config = model.config.to_dict() | {'vocab_size': WORDS}
  config |= {'model_type': 'mt5', 'architectures': ['MT5ForRegression']}
  kept = (
    'model_type', 'architectures', 'vocab_size', 'd_model', 'd_kv', 'd_ff',
    'num_layers', 'num_decoder_layers', 'num_heads', 'feed_forward_proj',
    'tie_word_embeddings', 'layer_norm_epsilon', 'dropout_rate',
    'decoder_start_token_id', 'relative_attention_num_buckets',
    'relative_attention_max_distance',
  )  # fmt: skip
  text = json.dumps({name: config[name] for name in kept}, indent=1)
  (FOLDER / 'config.json').write_text(text + '\n')


def main() -> None:
  sys.path.insert(0, sys.argv[1])
  import metricx24.models as metricx24

  class Official:
    models = metricx24

  FOLDER.mkdir(exist_ok=True)
  train_tokenizer()
  tokenizer = official_tokenizer()
  model = official_model(Official)
  expected = {
    'score_token_id': SCORE_ID,
    'max_input_length': MAX_INPUT_LENGTH,
    'rows': ROWS,
    'scores': {
      f'{generation}{"" if reference else "_qe"}': scores(
        model, tokenizer, generation, reference
      )
      for generation in (23, 24)
      for reference in (False, True)
    },
  }
  text = json.dumps(expected, indent=1, ensure_ascii=False)
  (FOLDER / 'expected.json').write_text(text + '\n')
  save_small(model)


if __name__ == '__main__':
  main()
