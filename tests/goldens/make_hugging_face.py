"""Makes the tiny Hugging Face models beside it, with what they answer.

Run by hand where torch 2.13, transformers 4.57.6 and safetensors are:

    python tests/goldens/make_hugging_face.py

Weights are random, so that every parameter matters: norms and biases, which
transformers initialises to constants, are drawn too.
"""

import pathlib
import shutil

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
SHAPE = {
  'd_model': 16,
  'd_kv': 6,
  'd_ff': 24,
  'num_layers': 2,
  'num_decoder_layers': 3,
  'num_heads': 2,
  'relative_attention_num_buckets': 8,
  'relative_attention_max_distance': 12,
  'decoder_start_token_id': 0,
}
MODELS = {
  'mt5': (
    transformers.MT5ForConditionalGeneration,
    transformers.MT5Config(**SHAPE, vocab_size=320),
  ),
  # ByT5 is a T5 1.1 whose decoder is shallow, and whose ids are bytes.
  'byt5': (
    transformers.T5ForConditionalGeneration,
    transformers.T5Config(
      **SHAPE | {'num_layers': 3, 'num_decoder_layers': 1},
      vocab_size=384,
      feed_forward_proj='gated-gelu',
      tie_word_embeddings=False,
      tokenizer_class='ByT5Tokenizer',
    ),
  ),
  'umt5': (
    transformers.UMT5ForConditionalGeneration,
    transformers.UMT5Config(**SHAPE, vocab_size=320, tie_word_embeddings=False),
  ),
}
MAX_NEW = 10


def main() -> None:
  """Writes all of them."""
  for seed, (name, (network, config)) in enumerate(MODELS.items()):
    torch.manual_seed(seed)
    model = network(config).eval()
    with torch.no_grad():
      for parameter in model.parameters():
        scale = 1.0 if parameter.dim() == 1 else 0.0
        spread = 0.4 if parameter.shape[-1] != 16 else 0.5
        parameter.copy_(scale + spread * torch.randn_like(parameter))
      model.lm_head.weight[1] *= 2  # So that some outputs end.
    folder = HERE / f'hf_{name}'
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / 'generation_config.json').unlink(missing_ok=True)
    np.savez_compressed(folder / 'expected.npz', **answers(model, seed))


def answers(model, seed: int) -> dict[str, np.ndarray]:
  """Encoder output, logits, greedy and beam outputs for random sources."""
  rng = np.random.default_rng(seed)
  sources = rng.integers(3, model.config.vocab_size, (3, 14))
  targets = rng.integers(3, model.config.vocab_size, (3, 9))
  for row, (source, target) in enumerate(((14, 9), (9, 5), (3, 2))):
    sources[row, source - 1 :], targets[row, target - 1 :] = 0, 0
    sources[row, source - 1], targets[row, target - 1] = 1, 1
  inputs = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  ids = torch.tensor(sources)
  given = {'input_ids': ids, 'attention_mask': (ids > 0).long()}
  with torch.no_grad():
    out = model(**given, decoder_input_ids=torch.tensor(inputs))
    # Its cache takes the decoder to be as deep as the encoder.
    search = {'max_new_tokens': MAX_NEW, 'do_sample': False, 'use_cache': False}
    greedy = model.generate(**given, num_beams=1, **search)
    # Without a length penalty the search's rule is ours with alpha = 0.
    beams = model.generate(
      **given,
      num_beams=4,
      num_return_sequences=4,
      length_penalty=0.0,
      return_dict_in_generate=True,
      output_scores=True,
      **search,
    )
  return {
    'encoder_input_tokens': sources.astype(np.int32),
    'decoder_input_tokens': inputs.astype(np.int32),
    'decoder_target_tokens': targets.astype(np.int32),
    'encoded': out.encoder_last_hidden_state.numpy(),
    'logits': out.logits.numpy(),
    'greedy_tokens': padded(greedy),
    'beam4_tokens': padded(beams.sequences).reshape(3, 4, MAX_NEW),
    'beam4_scores': beams.sequences_scores.numpy().reshape(3, 4),
  }


def padded(ids: torch.Tensor) -> np.ndarray:
  """Outputs without their start id, filled up with 0, not EOS."""
  ids = ids[:, 1:].numpy().astype(np.int32)
  ids[:, 1:][np.cumsum(ids[:, :-1] == 1, axis=1) > 0] = 0
  return np.pad(ids, ((0, 0), (0, MAX_NEW - ids.shape[1])))


if __name__ == '__main__':
  main()
