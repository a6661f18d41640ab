"""MetricX live against PyTorch, where torch and transformers are installed."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='torch is not installed')
transformers = pytest.importorskip('transformers')
if int(transformers.__version__.split('.')[0]) > 4:
  pytest.skip('transformers 5 ties embeddings', allow_module_level=True)

from rest_jax.rewards import metricx  # noqa: E402
from rest_jax.rewards.regressor import Buckets  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]
SPIECE = ROOT / 'tests/goldens/metricx/spiece.model'
SCORE_ID = 33
TEXTS = ['Das Haus ist rot.', 'Kurz', 'Guten Morgen! ' * 4, 'Zug um Zug']


@pytest.fixture(scope='module')
def network():
  """A random mT5 with transformers' own code."""
  torch.manual_seed(11)
  model = transformers.MT5ForConditionalGeneration(
    transformers.MT5Config(
      vocab_size=256,
      d_model=24,
      d_kv=6,
      d_ff=40,
      num_layers=3,
      num_decoder_layers=2,
      num_heads=4,
      decoder_start_token_id=0,
    )
  ).eval()
  with torch.no_grad():
    for value in model.parameters():
      value.normal_(std=0.4) if value.ndim > 1 else value.uniform_(0.5, 1.5)
    model.shared.weight.mul_(2)
    model.lm_head.weight[SCORE_ID] *= 6
  return model


def expected(model, texts):
  tokenizer = transformers.MT5Tokenizer(str(SPIECE), extra_ids=0, legacy=True)
  found = []
  for text in texts:
    ids = torch.tensor([tokenizer(text)['input_ids'][:-1]])
    with torch.no_grad():
      logits = model(
        input_ids=ids, decoder_input_ids=torch.zeros(1, 1, dtype=torch.long)
      ).logits
    found.append(float(torch.clamp(logits[0, 0, SCORE_ID], 0, 25)))
  return np.array(found)


def score(folder):
  model = metricx.MetricX24(
    str(folder),
    tokenizer_path=str(SPIECE),
    score_token_id=SCORE_ID,
    max_input_length=200,
    buckets=Buckets((64, 256), 1024),
  )
  return model.score(TEXTS, TEXTS[::-1])


def inputs():
  return [
    f'source: {source} candidate: {candidate}'
    for source, candidate in zip(TEXTS, TEXTS[::-1], strict=True)
  ]


def test_scores_equal_pytorchs(network, tmp_path):
  network.save_pretrained(tmp_path, safe_serialization=True)
  as_metricx(tmp_path)
  there = expected(network, inputs())
  assert len(set(there)) > 2
  np.testing.assert_allclose(score(tmp_path), there, rtol=0, atol=1e-3)


def test_the_recipe_of_the_guide_converts_pickled_weights(network, tmp_path):
  guide = (ROOT / 'docs/guide/metricx.md').read_text()
  recipe = re.search(r'```python\n(.*?)```', guide, re.DOTALL).group(1)
  (tmp_path / 'to_safetensors.py').write_text(recipe)
  folder = tmp_path / 'checkpoint'
  network.save_pretrained(
    folder, safe_serialization=False, max_shard_size='50KB'
  )
  as_metricx(folder)
  assert len(list(folder.glob('pytorch_model-*.bin'))) > 1
  command = [sys.executable, str(tmp_path / 'to_safetensors.py'), str(folder)]
  subprocess.run(command, check=True, timeout=300)
  np.testing.assert_allclose(
    score(folder), expected(network, inputs()), rtol=0, atol=1e-3
  )


def as_metricx(folder):
  path = folder / 'config.json'
  text = path.read_text()
  assert 'MT5ForConditionalGeneration' in text
  path.write_text(
    text.replace('MT5ForConditionalGeneration', 'MT5ForRegression')
  )
