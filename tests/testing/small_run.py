"""A run directory with an untrained BC and its samples, for tests of stages."""

import dataclasses
import io

import numpy as np
from etils import epath

from rest_jax import annotate, evaluate, generation, grow, run_directory
from rest_jax.checkpoint import native
from rest_jax.context import PARAMS, Context
from rest_jax.data import store, tokenizer
from rest_jax.data.packing import Packing
from rest_jax.decoding.sampling import Sampling
from rest_jax.models.config import T5Config
from rest_jax.progress import Progress
from rest_jax.rewards import base
from rest_jax.sharding import Layout

PACKING = Packing(32, 32, rows_per_batch=8)
BATCHING = generation.Batching(max_decode_len=8, rows=16, source_buckets=(8,))
SOURCES = 6
SAMPLES = 4


@dataclasses.dataclass(frozen=True)
class Bytes:
  """Scores a candidate by its UTF-8 bytes, which differ among samples."""

  info = base.RewardInfo('bytes', '1', 0.0, 40.0)

  def score(self, sources, candidates, references=None):
    del sources, references
    return np.array([len(y.encode()) for y in candidates], np.float32)


def encode(text):
  return [*tokenizer.ByteTokenizer().encode(text), tokenizer.EOS_ID]


def begun(context, name):
  stage = context.directory.stage(name)
  stage.begin({}, {})
  return stage


def make(folder):
  """A run whose BC is untrained, and whose samples of it have rewards."""
  directory = run_directory.RunDirectory(epath.Path(folder))
  context = Context(
    directory=directory,
    elsewhere={},
    model=T5Config(384, 8, 1, 1, 1, 8, 8),
    layout=Layout(data=1),
    seed=0,
    progress=Progress(io.StringIO()),
  )
  data = begun(context, 'data')
  for number, split in enumerate(('train', 'grow', 'select')):
    texts = [f'{split[0]}{i}' for i in range(SOURCES)]
    rows = [
      {
        'source_id': 10**10 * number + i,
        'source': text,
        'target': 'x',
        'source_tokens': encode(text),
        'target_tokens': encode('x'),
      }
      for i, text in enumerate(texts)
    ]
    store.write_sources(data.folder / split, rows)
  tokenizer.ByteTokenizer().save(data.folder)
  data.commit({}, 0.0)
  for seed, name in enumerate(('supervised', 'other')):
    stage = begun(context, name)
    params = context.policy.init(seed)
    content = native.save_params(stage.folder / PARAMS, params)
    stage.commit({'updates': 0}, 0.0, contents={PARAMS: content})
  samples = begun(context, 'grow_1/samples')
  settings = grow.Grow(SAMPLES, Sampling(temperature=1.0), BATCHING)
  grow.run(
    context, samples, settings, policy_name='supervised', grow_step=1
  )  # fmt: skip
  scores = begun(context, 'grow_1/scores/bytes')
  annotate.run_scores(context, scores, Bytes(), samples, 64)
  reward = begun(context, 'grow_1/reward')
  annotate.run_reward(context, reward, Bytes(), scores)
  return context


def evaluation():
  """How policies are chosen: by two samples of each of four sources."""
  return evaluate.Evaluate(
    'en',
    sampling=Sampling(1.0),
    batching=BATCHING,
    select_sources=4,
    select_samples=2,
  )
