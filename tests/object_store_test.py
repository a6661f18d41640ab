"""Checkpoints in an object store, `gs://`, read over the wire."""

import json
import pathlib
import shutil
import subprocess
import sys

import fake_gcs
import numpy as np
import pytest
import running
from foreign import flat, random_params, t5x

from rest_jax.checkpoint import huggingface, native, t5x_export
from rest_jax.models.config import T5Config
from rest_jax.policy import Policy
from rest_jax.sharding import Layout

GOLDEN = pathlib.Path(__file__).parent / 'goldens/hf_mt5'
TINY = T5Config(
  vocab_size=24,
  emb_dim=8,
  num_heads=2,
  num_encoder_layers=2,
  num_decoder_layers=1,
  head_dim=4,
  mlp_dim=12,
)
# TensorFlow, whose file system etils takes for gs://, is imported by each.
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  """A bucket with checkpoints of T5X and of Hugging Face."""
  if shutil.which('openssl') is None:
    pytest.skip('openssl, which makes the certificate, is not installed')
  root = tmp_path_factory.mktemp('store')
  params = flat(random_params(Policy(TINY, Layout(data=1))))
  for step in (9, 10):
    folder = root / f'bucket/t5/checkpoint_{step}'
    t5x(folder, {name: value * step for name, value in params.items()})
  (root / 'bucket/t5/config.json').write_text(json.dumps(vars(TINY)))
  source = huggingface.Source(GOLDEN)
  t5x_export.write(
    root / 'bucket/mt5/checkpoint_0', source.config, source, step=0
  )
  shutil.copytree(GOLDEN, root / 'bucket/hugging_face')
  with fake_gcs.serving(root, tmp_path_factory.mktemp('certificate')) as server:
    yield server, params


def start(server, arguments, cache=None):
  return subprocess.run(
    arguments,
    env=running.environment(cache) | server.environment(),
    capture_output=True,
    text=True,
    timeout=running.SECONDS,
  )


def convert(server, source, target, to='native'):
  return start(
    server,
    [
      *(sys.executable, '-m', 'rest_jax.main', '--run_mode=convert'),
      f'--input={source}',
      f'--output={target}',
      f'--format={to}',
      '--verify=tensors',
    ],
  )


def test_the_last_checkpoint_of_a_folder_of_t5xs(store, tmp_path):
  server, params = store
  done = convert(server, 'gs://bucket/t5', tmp_path / 'out')
  assert done.returncode == 0, done.stderr
  found = native.Source(tmp_path / 'out')
  assert found.extra == {'step': 10}
  assert set(found.shapes) == set(params)
  for name, value in params.items():
    np.testing.assert_array_equal(found.read(name), value * 10, name)


def test_a_folder_of_hugging_faces(store, tmp_path):
  server, _ = store
  done = convert(server, 'gs://bucket/hugging_face', tmp_path / 'out')
  assert done.returncode == 0, done.stderr
  given, found = huggingface.Source(GOLDEN), native.Source(tmp_path / 'out')
  for name in given.shapes:
    np.testing.assert_array_equal(found.read(name), given.read(name), name)


def test_what_is_not_there_is_one_line(store, tmp_path):
  server, _ = store
  done = convert(server, 'gs://bucket/nothing', tmp_path / 'out')
  assert done.returncode == 3
  assert 'gs://bucket/nothing is not there' in done.stderr.splitlines()[-1]


@pytest.mark.release
def test_a_run_begins_from_it(store, tmp_path, compiled):
  """INITIAL_CHECKPOINT_PATH; what is frozen is what lies in the bucket."""
  server, _ = store
  line = running.command(
    tmp_path / 'run',
    '--run_mode=supervised',
    '--gin_file=models/from_checkpoint.gin',
    '--gin.INITIAL_CHECKPOINT_PATH=gs://bucket/mt5/checkpoint_0',
    '--gin.TOKENIZER=@prepare.Bytes()',
    "--gin.FROZEN=('token_embedder/*',)",
  )
  done = start(server, line, compiled)
  assert done.returncode == 0, done.stderr
  made = running.parameters(tmp_path / 'run/supervised')
  given = huggingface.Source(GOLDEN)
  name = 'token_embedder/embedding'
  found = made[''.join(f"['{part}']" for part in name.split('/'))]
  np.testing.assert_array_equal(found, given.read(name))
  stage = json.loads((tmp_path / 'run/supervised/stage.json').read_text())
  text = 'gs://bucket/mt5/checkpoint_0'
  assert stage['config']['Supervised.initial_checkpoint_path'] == text
