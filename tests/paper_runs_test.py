"""The paper's runs, end to end, on small files of exactly the fetched formats.

`fetch` itself writes the files: only its downloads are replaced.
"""

import csv
import io
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tarfile

import pytest
from absl import flags

import gin
import rest_jax
from rest_jax import main
from rest_jax.data import download, seqio_library
from rest_jax.schedule import Quantiles, Thresholds

# Makes a run small; the rest is what the gin files say.
SMALL = (
  '--gin.VOCAB_SIZE=96',
  '--gin.MAX_SOURCE_LENGTH=32',
  '--gin.MAX_TARGET_LENGTH=32',
  '--gin.generation.Batching.source_buckets=(32,)',
  '--gin.generation.Batching.rows=128',
  '--gin.ACTIVATION_DTYPE=float32',
  '--gin.DROPOUT_RATE=0.0',
  '--gin.t5.T5Config.vocab_size=128',
  '--gin.t5.T5Config.emb_dim=64',
  '--gin.t5.T5Config.num_heads=2',
  '--gin.t5.T5Config.head_dim=32',
  '--gin.t5.T5Config.mlp_dim=128',
  '--gin.t5.T5Config.num_encoder_layers=1',
  '--gin.t5.T5Config.num_decoder_layers=1',
  '--gin.BATCH_ROWS=16',
  '--gin.LEARNING_RATE=0.02',
  '--gin.bc/optimizer.Optimizer.warmup_steps=20',
  '--gin.SUPERVISED_STEPS=50',
  '--gin.SUPERVISED_EVAL_EVERY=50',
  '--gin.IMPROVE_STEPS=10',
  '--gin.IMPROVE_EVAL_EVERY=5',
  '--gin.NUM_IMPROVE=1',
  '--gin.evaluate.Evaluate.temperatures=(0.8,)',
)
CHINESE = (
  {'小明': 'Xiaoming', '小红': 'Xiaohong', '医生': 'The doctor'},
  {'买了': 'bought', '看见': 'saw', '喜欢': 'likes', '画了': 'painted'},
  {'两': 'two', '三': 'three', '五': 'five', '十': 'ten'},
  {'只猫': 'cats', '本书': 'books', '朵花': 'flowers', '张桌子': 'tables'},
)
GERMAN = (
  {'Anna': 'Anna', 'Paul': 'Paul', 'Der Arzt': 'The doctor'},
  {'kauft': 'buys', 'sieht': 'sees', 'mag': 'likes', 'malt': 'paints'},
  {'zwei': 'two', 'drei': 'three', 'fünf': 'five', 'zehn': 'ten'},
  {'Katzen': 'cats', 'Bücher': 'books', 'Blumen': 'flowers'},
)


def sentences(words, space, stop):
  """All pairs that the words make, in an order that mixes them."""
  pairs = [
    (
      space.join(source for source, _ in chosen) + stop,
      ' '.join(target for _, target in chosen) + '.',
    )
    for chosen in itertools.product(*(column.items() for column in words))
  ]
  return [pairs[i * 7 % len(pairs)] for i in range(len(pairs))]


def run(folder, gin_file, *arguments):
  """Runs the real program as a user does, in a folder without gin files."""
  environment = dict(os.environ, JAX_PLATFORMS='cpu')
  environment.pop('XLA_FLAGS', None)  # One device, as on a laptop.
  environment['PYTHONPATH'] = str(pathlib.Path(rest_jax.__file__).parents[1])
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'rest_jax.main', f'--gin_file={gin_file}'),
      *(f'--gin.MODEL_DIR={folder}/run', *SMALL, *arguments),
    ],
    cwd=folder,
    env=environment,
    capture_output=True,
    text=True,
    timeout=500,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def results(folder):
  with open(folder / 'run' / 'results.csv', newline='') as file:
    return list(csv.DictReader(file))


def counts(folder, stage):
  manifest = folder / 'run' / stage / 'stage.json'
  return json.loads(manifest.read_text())['counts']


@pytest.fixture
def wmt20(tmp_path, monkeypatch):
  """DATA_DIR as `fetch` leaves it, and the pairs of its training text."""
  pairs = sentences(CHINESE, '', '。')
  train = [*pairs[:150], ('', 'Nothing.'), ('没有。', ''), *pairs[150:170]]
  rest = [(*pair, f'doc{i % 5}') for i, pair in enumerate(pairs[170:])]
  monkeypatch.setattr(download, '_sacrebleu_pairs', lambda name: rest)
  monkeypatch.setattr(seqio_library, 'read_tfds', lambda *name: train)
  fetched = download.fetch('wmt20', str(tmp_path / 'data'))
  assert fetched == {'dev': 22, 'test': 22, 'wmt23': 22, 'train': 172}
  return tmp_path


@pytest.mark.slow
def test_wmt20(wmt20):
  table = run(
    wmt20,
    'wmt20.gin',
    f'--gin.DATA_DIR={wmt20}/data',
    '--gin.NUM_SAMPLES=5',
  )
  rows = results(wmt20)
  assert [row['policy'] for row in rows] == ['BC', 'G1 I0', 'G1 I1']
  assert all(row['policy'] in table for row in rows)
  assert [row['threshold'] for row in rows] == ['D', 'all', 'R > quantile 0.7']
  for row in rows:
    assert 'tok:13a' in row['bleu_signature']
    assert 0 < float(row['reward_mean']) <= 100
    assert 0 < float(row['chrf']) <= 100
  # The two pairs with an empty side are gone, and counted.
  data = json.loads((wmt20 / 'run/data/stage.json').read_text())
  assert data['extra']['splits']['train']['empty'] == 2
  assert data['extra']['language_pair'] == 'zh-en'
  grown = counts(wmt20, 'grow_1/samples')
  assert (grown['samples'], grown['references']) == (5 * 170, 170)
  # All of D, and at most three in ten of the samples.
  improved = counts(wmt20, 'grow_1/improve_1')
  assert improved['references'] == 170
  assert 0 < improved['kept_samples'] <= 0.3 * 5 * 170


@pytest.mark.slow
def test_english_to_chinese_from_tsv(tmp_path):
  pairs = sentences(CHINESE, '', '。')
  (tmp_path / 'data').mkdir()
  parts = {'train': pairs[:150], 'dev': pairs[150:], 'test': pairs[150:]}
  for name, part in parts.items():
    lines = ''.join(f'{english}\t{chinese}\n' for chinese, english in part)
    (tmp_path / 'data' / f'{name}.tsv').write_text(lines)
  settings = (
    f'--gin.DATA_DIR={tmp_path}/data',
    '--gin.TASK=@tasks.TsvTask()',
    '--gin.SOURCE_LANGUAGE=en',
    '--gin.TARGET_LANGUAGE=zh',
    '--gin.SUPERVISED_STEPS=0',
    '--gin.NUM_GROW=0',
  )
  run(tmp_path, 'wmt20.gin', *settings)
  (row,) = results(tmp_path)
  assert row['policy'] == 'BC'
  assert 'tok:zh' in row['bleu_signature']


def iwslt14_archive(path, pairs):
  """An archive in the format of the IWSLT14 one."""
  header = (
    '<url>http://www.ted.com/talks/1</url>\n<keywords>talks</keywords>\n'
    '<speaker>Somebody</speaker>\n<talkid>{talk}</talkid>\n'
    '<title>{first}</title>\n<description>{first}</description>\n'
  )
  files = {}
  for side, language in enumerate(('de', 'en')):
    texts = [pair[side] for pair in pairs]
    files[f'train.tags.de-en.{language}'] = ''.join(
      header.format(talk=start, first=texts[start])
      + ''.join(f'{text}\n' for text in texts[start : start + 12])
      for start in range(0, len(texts), 12)
    )
    for number, part in enumerate(download.IWSLT14_TEST):
      segments = ''.join(
        f'<seg id="{i}"> {text} </seg>\n' for i, text in enumerate(texts[:4])
      )
      files[f'IWSLT14.{part}.de-en.{language}.xml'] = (
        f'<mteval>\n<doc docid="{number}">\n{segments}</doc>\n</mteval>\n'
      )
  with tarfile.open(path, 'w:gz') as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(f'de-en/{name}')
      member.size = len(content.encode())
      archive.addfile(member, io.BytesIO(content.encode()))
  return path


@pytest.mark.slow
@pytest.mark.release
def test_iwslt14(tmp_path):
  pairs = sentences(GERMAN, ' ', '.')
  archive = iwslt14_archive(tmp_path / 'de-en.tgz', pairs)
  fetched = download.write_iwslt14(archive, tmp_path / 'data')
  assert fetched == {'train': 161, 'dev': 7, 'test': 20}
  settings = (
    f'--gin.DATA_DIR={tmp_path}/data',
    '--gin.VOCAB_SIZE=52',
    '--gin.NUM_SAMPLES=8',
    '--gin.NUM_IMPROVE=2',
  )
  run(tmp_path, 'iwslt14.gin', *settings)
  run(tmp_path, 'iwslt14.gin', *settings, '--run_mode=evaluate', '--split=test')
  rows = results(tmp_path)
  labels = ['BC', 'G1 I0', 'G1 I1', 'G1 I2']
  assert [row['policy'] for row in rows if row['split'] == 'report'] == labels
  assert [row['policy'] for row in rows if row['split'] == 'test'] == labels
  assert all('tok:13a' in row['bleu_signature'] for row in rows)
  grown = counts(tmp_path, 'grow_1/samples')
  assert (grown['samples'], grown['references']) == (8 * 161, 161)
  assert counts(tmp_path, 'data')['test'] == 20
  kept = [
    counts(tmp_path, f'grow_1/improve_{i}')['kept_samples'] for i in range(3)
  ]
  assert kept[0] > kept[1] > kept[2] > 0


@pytest.fixture
def build():
  """Builds a run from a gin file as `main` does; nothing is run."""

  def build_run(gin_file, *bindings):
    main._parse_gin([gin_file], ["DATA_DIR = '/data'", *bindings], [])
    return main._build()

  gin.clear_config()
  flags.FLAGS(['main'])
  yield build_run
  gin.clear_config()


@pytest.mark.parametrize(
  'name, samples, levels, shape',
  [
    ('wmt20', 25, (0.7, 0.8, 0.9, 0.95), (512, 2048, 8)),
    ('iwslt14', 100, (0.7, 0.8, 0.9, 0.95, 0.99), (512, 1024, 4)),
  ],
)
def test_the_papers_settings(build, name, samples, levels, shape):
  run = build(f'{name}.gin')
  assert run.grow.num_samples == samples
  assert run.grow.sampling.temperature == 0.8
  assert run.grow.batching.max_decode_len == 128
  assert run.num_improve == len(levels)
  assert run.improve.schedule == Quantiles(levels)
  assert run.improve.original_data == 'unfiltered'
  assert run.annotate.reward.info.name == 'chrf'
  assert run.data.tokenizer.vocab_size == 32000
  coverage = {'wmt20': 0.9995, 'iwslt14': 1.0}[name]
  assert run.data.tokenizer.character_coverage == coverage
  model = run.model
  assert (model.emb_dim, model.mlp_dim, model.num_heads) == shape
  assert model.num_encoder_layers == model.num_decoder_layers == 6


def test_the_papers_thresholds_with_a_reference_free_reward(build, tmp_path):
  own = tmp_path / 'own.gin'
  own.write_text(
    'from __gin__ import dynamic_registration\n'
    'from rest_jax import schedule\n'
    'from rest_jax.rewards import numerals\n'
    "include 'iwslt14.gin'\n"
    'REWARD = @numerals.NumeralValue()\n'
    "ORIGINAL_DATA = 'filtered'\n"
    'SCHEDULE = @schedule.Thresholds()\n'
  )
  run = build(str(own))
  assert run.improve.schedule == Thresholds((0.7, 0.8, 0.9, 0.95, 0.99))
  assert run.improve.original_data == 'filtered'
