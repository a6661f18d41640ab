"""A run directory with an untrained BC and its samples, for tests of stages."""

import dataclasses
import io

import numpy as np
import pyarrow as pa
from etils import epath

from rest_jax import annotate, evaluate, generation, run_directory
from rest_jax.checkpoint import native
from rest_jax.context import PARAMS, Context
from rest_jax.data import store, tokenizer
from rest_jax.data.packing import Packing
from rest_jax.decoding.sampling import Sampling
from rest_jax.models.config import T5Config
from rest_jax.progress import Progress
from rest_jax.rewards import base
from rest_jax.sharding import Layout
from rest_jax.training import step
from rest_jax.types import Batch

PACKING = Packing(32, 32, rows_per_batch=8)
BATCHING = generation.Batching(max_decode_len=8, rows=16, source_buckets=(8,))
SOURCES = 6
SAMPLES = 4
OFFSET = 0.25  # log μ of a token is so much below log π.


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
  grow(context, 'grow_1')
  return context


def grow(context, name, references=False):
  """Makes a store of the samples and their rewards; and of D's references."""
  samples = begun(context, f'{name}/samples')
  table = _samples(context)
  if references:
    table = pa.concat_tables([table, _references()])
  samples.write_part(store.part_name(0), store.samples_part(table))
  samples.commit({'samples': len(table), 'tokens': 0}, 0.0)
  scores = begun(context, f'{name}/scores/bytes')
  annotate.run_scores(context, scores, Bytes(), samples)
  assert context._params is None
  reward = begun(context, f'{name}/reward')
  annotate.run_reward(reward, Bytes(), scores)


def _samples(context):
  """Samples of `SOURCES` sources, as if BC had drawn them.

  An untrained policy hardly ever ends a sample, so they are made up; their
  log-probabilities are BC's own, a sample a row. Sources differ in how long
  their samples are, and the last sample of the last source never ended.
  """
  rng = np.random.default_rng(0)
  sources = [f'g{i}' for i in range(SOURCES) for _ in range(SAMPLES)]
  texts = [
    ''.join(rng.choice(list('abcdefgh'), rng.integers(1, 8))) for _ in sources
  ]
  tokens = [encode(text) for text in texts]
  tokens[-1] = tokens[-1][:-1]
  targets = _padded(tokens)
  batch = Batch(
    encoder_input_tokens=_padded([encode(source) for source in sources]),
    decoder_input_tokens=np.pad(targets[:, :-1], ((0, 0), (1, 0))),
    decoder_target_tokens=targets,
    decoder_loss_weights=(targets != 0).astype(np.float32),
  )
  scores = step.target_log_probs(
    context.policy, context.params('supervised'), batch
  )
  log_probs = [
    np.asarray(row)[: len(ids)].tolist()
    for row, ids in zip(scores, tokens, strict=True)
  ]
  # As if a distribution had been drawn from that is not BC's own.
  drawn = [[value - OFFSET for value in row] for row in log_probs]
  return store.samples_table(
    {
      'source_id': [10**10 + i // SAMPLES for i in range(len(sources))],
      'sample_index': [i % SAMPLES for i in range(len(sources))],
      'grow_step': 1,
      'origin': 'policy',
      'source': sources,
      'target': texts,
      'target_tokens': tokens,
      'finished': [ids[-1] == tokenizer.EOS_ID for ids in tokens],
      'log_prob': [sum(row) for row in log_probs],
      'token_log_probs': log_probs,
      'token_sampling_log_probs': drawn,
    }
  )


def _references():
  sources = [f't{i}' for i in range(SOURCES)]
  return store.samples_table(
    {
      'source_id': list(range(SOURCES)),
      'sample_index': -1,
      'grow_step': 1,
      'origin': 'reference',
      'source': sources,
      'target': ['x'] * SOURCES,
      'target_tokens': [encode('x')] * SOURCES,
      'finished': True,
      'log_prob': None,
      'token_log_probs': None,
      'token_sampling_log_probs': None,
    }
  )


def _padded(rows):
  out = np.zeros((len(rows), 8), np.int32)
  for row, tokens in zip(out, rows, strict=True):
    row[: len(tokens)] = tokens
  return out


def evaluation():
  """How policies are chosen: by two samples of each of four sources."""
  return evaluate.Evaluate(
    'en',
    sampling=Sampling(1.0),
    batching=BATCHING,
    select_sources=4,
    select_samples=2,
  )
