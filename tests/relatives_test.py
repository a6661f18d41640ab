"""RAFT and ReST-EM, which are settings of ReST, through the real main."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import running

from rest_jax.data import store

pytestmark = pytest.mark.slow  # Two whole runs with two Grow steps each.

_POLICIES = ['BC', 'G1 I1', 'G2 I1']


def _run(name, compiled, folder):
  search = f'--gin_search_paths={running.TESTING}'
  preset = f'--gin_file={name}.gin'
  line = running.command(folder, search, preset)
  running.start(line, cache=compiled)
  return folder


@pytest.fixture(scope='module')
def raft(compiled, tmp_path_factory):
  folder = tmp_path_factory.mktemp('raft') / 'run'
  return _run('raft', compiled, folder)


@pytest.fixture(scope='module')
def rest_em(compiled, tmp_path_factory):
  folder = tmp_path_factory.mktemp('rest_em') / 'run'
  return _run('rest_em', compiled, folder)


def _manifest(stage):
  return json.loads((stage / 'stage.json').read_text())


def _samples(run, grow_step):
  """The scored samples of a Grow step, as columns."""
  paths = store.part_paths(run / f'grow_{grow_step}/samples')
  samples = pa.concat_tables(map(pq.read_table, paths))
  rewards = pa.concat_tables(
    map(pq.read_table, store.part_paths(run / f'grow_{grow_step}/reward'))
  )
  table = samples.append_column('reward', rewards['score'])
  return table.filter(pa.compute.equal(table['origin'], 'policy')).to_pandas()


def test_raft_has_one_improve_step_a_grow_step(raft):
  rows = running.results(raft)
  assert [row['policy'] for row in rows] == _POLICIES
  assert {path.name for path in raft.glob('grow_*/improve_*')} == {'improve_1'}


def test_raft_grows_again_from_the_policy_it_made(raft):
  second = _manifest(raft / 'grow_2/samples')
  assert set(second['inputs']) == {'data', 'grow_1/improve_1'}
  first = _samples(raft, 1)
  again = _samples(raft, 2)
  assert (first['source_id'] == again['source_id']).all()
  assert (first['target'] != again['target']).any()


@pytest.mark.parametrize('grow_step', [1, 2])
def test_raft_trains_on_one_sample_of_each_source(raft, grow_step):
  counts = _manifest(raft / f'grow_{grow_step}/improve_1')['counts']
  assert counts['references'] == 0
  table = _samples(raft, grow_step)
  sources = table[table['finished']]['source_id'].nunique()
  assert counts['kept_samples'] == counts['kept_sources'] == sources > 0


def test_rest_em_starts_every_improve_step_from_bc(rest_em):
  assert [row['policy'] for row in running.results(rest_em)] == _POLICIES
  for grow_step in (1, 2):
    inputs = _manifest(rest_em / f'grow_{grow_step}/improve_1')['inputs']
    policies = {name for name in inputs if not name.startswith('grow_')}
    assert policies == {'data', 'supervised'}
  grown_by = _manifest(rest_em / 'grow_2/samples')['inputs']
  assert set(grown_by) == {'data', 'grow_1/improve_1'}


@pytest.mark.parametrize('grow_step', [1, 2])
def test_rest_em_trains_on_a_few_right_samples_a_source(rest_em, grow_step):
  counts = _manifest(rest_em / f'grow_{grow_step}/improve_1')['counts']
  table = _samples(rest_em, grow_step)
  right = table[(table['reward'] > 0.1) & table['finished']]
  distinct = right.drop_duplicates(['source_id', 'target'])
  wanted = distinct.groupby('source_id').size().clip(upper=2).sum()
  assert counts['kept_samples'] == wanted > 0
  assert counts['references'] == 0
