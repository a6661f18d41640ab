"""The rows of a grown dataset, and what they are drawn with."""

import numpy as np
import pyarrow as pa
import pytest
import small_run
from small_run import BATCHING, begun

from rest_jax import annotate, generation, grow
from rest_jax.data import store
from rest_jax.decoding.sampling import Sampling
from rest_jax.rewards import base

SETTINGS = grow.Grow(
  num_samples=2, sampling=Sampling(0.8), batching=BATCHING, samples_per_part=6
)


@pytest.fixture(scope='module')
def context(tmp_path_factory):
  return small_run.make(tmp_path_factory.mktemp('run'))


def test_rows_of_samples_by_hand(context):
  sources = store.read_rows(context.split_folder('grow'), 1, 2)
  generated = generation.Generated(
    tokens=np.array([[[5, 1, 0], [6, 7, 1]]], np.int32),
    lengths=np.array([[2, 3]], np.int32),
    finished=np.array([[True, False]]),
    token_log_probs=np.float32([[[-1, -2, 0], [-3, -4, -5]]]),
    token_sampling_log_probs=np.float32([[[-0.5, -0.25, 0], [-0.125, -1, -2]]]),
  )
  table = grow.sample_rows(sources, generated, ['a', 'b'], grow_step=3)
  found = {name: table[name].to_pylist() for name in table.column_names}
  assert found['source_id'] == [10**10 + 1] * 2
  assert found['source'] == ['g1', 'g1']
  assert found['target'] == ['a', 'b']
  assert found['sample_index'] == [0, 1]
  assert found['grow_step'] == [3, 3]
  assert found['target_tokens'] == [[5, 1], [6, 7, 1]]
  assert found['length'] == [2, 3]
  assert found['finished'] == [True, False]
  assert found['log_prob'] == [-3, -12]
  assert found['token_log_probs'] == [[-1, -2], [-3, -4, -5]]
  # Those of the distribution that was drawn from, not the policy's.
  assert found['token_sampling_log_probs'] == [[-0.5, -0.25], [-0.125, -1, -2]]


def grown(context, name, grow_step):
  stage = begun(context, f'{name}/samples')
  grow.run(
    *(context, stage, SETTINGS),
    policy_name='supervised',
    grow_step=grow_step,
    references=False,
  )
  return pa.concat_tables(map(store.read_part, store.part_paths(stage.folder)))


def test_each_grow_step_draws_samples_of_its_own(context):
  first, second, again = (
    grown(context, name, step)
    for name, step in (('one', 1), ('two', 2), ('three', 1))
  )
  assert len(first) == 2 * small_run.SOURCES
  assert first['target_tokens'].equals(again['target_tokens'])
  assert first['source_id'].equals(second['source_id'])
  pairs = zip(first['target_tokens'], second['target_tokens'], strict=True)
  assert sum(a != b for a, b in pairs) > small_run.SOURCES


class LengthOfReference:
  """Scores whatever it is given by its reference."""

  info = base.RewardInfo('reference', '1', 0.0, 40.0, needs_reference=True)

  def score(self, sources, candidates, references=None):
    return np.array([len(text) for text in references], np.float32)


@pytest.mark.parametrize(
  ('grow_rows', 'wanted'),
  [
    # Samples of Grow's sources, whose references are Grow's; then D's own.
    ([(10**10, 0), (10**10, 1)], [5, 5]),
    ([(0, -1)], [3]),
    # Where Grow samples D's sources, samples and references stand together.
    ([(0, -1), (0, 0), (0, 1)], [3, 3, 3]),
  ],
)
def test_each_row_is_scored_by_the_reference_of_its_source(
  tmp_path, grow_rows, wanted
):
  context = small_run.make(tmp_path)
  same = len(grow_rows) == 3
  for split, number, target in (('train', 0, 'abc'), ('grow', 1, 'vier!')):
    if not (same and split == 'grow'):
      rows = [
        {
          'source_id': 10**10 * number,
          'source': 'drei',
          'target': target,
          'source_tokens': [9, 1],
          'target_tokens': [9, 1],
        }
      ]
      store.write_sources(tmp_path / 'fresh' / split, rows)
  if same:
    store.write_sources(tmp_path / 'fresh' / 'grow', rows)
  context.sources = lambda split, columns: store.read_row_groups(
    tmp_path / 'fresh' / split, columns
  )
  samples = begun(context, 'asked/samples')
  table = store.samples_table(
    {
      'source_id': [source for source, _ in grow_rows],
      'sample_index': [index for _, index in grow_rows],
      'grow_step': 1,
      'origin': ['reference' if i < 0 else 'policy' for _, i in grow_rows],
      'source': 'drei',
      'target': ['x'] * len(grow_rows),
      'target_tokens': [[9, 1]] * len(grow_rows),
      'finished': True,
      'log_prob': None,
      'token_log_probs': None,
      'token_sampling_log_probs': None,
    }
  )
  samples.write_part(store.part_name(0), store.samples_part(table))
  samples.commit({'samples': len(table)}, 0.0)
  stage = begun(context, 'asked/scores/reference')
  annotate.run_scores(context, stage, LengthOfReference(), samples)
  (path,) = store.part_paths(stage.folder)
  assert store.read_part(path)['score'].to_pylist() == wanted
