"""The relatives of ReST, which are presets, through the real main."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import running

from rest_jax.data import store

pytestmark = pytest.mark.slow  # Whole runs with two Grow steps each.

_POLICIES = ['BC', 'G1 I1', 'G2 I1']


_COMMON = ('NUM_GROW=2', 'CONTROLS=()')
_BINDINGS = {
  'raft': ('NUM_SAMPLES=3',),
  'raft_global': (
    *('NUM_SAMPLES=4', 'top_share.TopShares.shares=(0.5,)'),
    'CONTROLS=("random",)',
  ),
  'raft_plus_plus': ('NUM_SAMPLES=3',),
  'rest_em': ('NUM_SAMPLES=4', 'THRESHOLDS=(0.1,)', 'selection.Cap.k=2'),
  'expert_iteration': ('THRESHOLDS=(0.1,)',),
  'iterative_dpo': (
    *('NUM_SAMPLES=4', 'PACKED_SOURCE_LENGTH=48', 'PACKED_TARGET_LENGTH=32'),
    'SUPERVISED_FROM=None',  # Its BC is packed as its pairs are.
  ),
  'mbr_finetuning': ('NUM_SAMPLES=4',),
  'qe_finetuning': ('NUM_GROW=1', 'NUM_SAMPLES=4'),
}


def _fixture(name):
  """The run of a preset on the tiny run, smaller in some numbers."""

  @pytest.fixture(scope='module', name=name)
  def run(whole_run, compiled, tmp_path_factory):
    folder = tmp_path_factory.mktemp(name) / 'run'
    common = (*_COMMON, f'SUPERVISED_FROM={whole_run.folder}')
    bindings = [f'--gin.{b}' for b in (*common, *_BINDINGS[name])]
    preset = f'--gin_file=presets/{name}.gin'
    line = running.command(folder, preset, *bindings)
    running.start(line, cache=compiled)
    return folder

  return run


raft = _fixture('raft')
raft_global = _fixture('raft_global')
raft_plus_plus = _fixture('raft_plus_plus')
rest_em = _fixture('rest_em')
expert_iteration = _fixture('expert_iteration')
iterative_dpo = _fixture('iterative_dpo')
mbr_finetuning = _fixture('mbr_finetuning')
qe_finetuning = _fixture('qe_finetuning')


@pytest.fixture(scope='module')
def offline_rl(whole_run, compiled, tmp_path_factory):
  """OAC on the tiny run's samples, beside RLOO and permuted rewards."""
  folder = tmp_path_factory.mktemp('offline_rl') / 'run'
  files = ('losses/oac.gin', 'online/rloo.gin')
  bindings = (
    f'GROW_FROM={whole_run.folder}',
    'CONTROLS=("permuted",)',
    'values.TrainValue.held_out=0.25',
  )
  line = running.command(
    folder,
    *(f'--gin_file={file}' for file in files),
    *(f'--gin.{binding}' for binding in bindings),
  )
  running.start(line, cache=compiled)
  return folder


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


@pytest.mark.parametrize('grow_step', [1, 2])
def test_global_raft_trains_on_the_best_half_of_all(raft_global, grow_step):
  stage = raft_global / f'grow_{grow_step}/improve_1'
  counts = _manifest(stage)['counts']
  table = _samples(raft_global, grow_step)
  best = table.nlargest(len(table) // 2, 'reward')
  above = table[table['reward'] > best['reward'].min()]
  reaching = table[table['reward'] >= best['reward'].min()]
  least, most = above['finished'].sum(), reaching['finished'].sum()
  assert least <= counts['kept_samples'] <= most
  assert counts['references'] == 0
  if grow_step == 2:
    control = _manifest(raft_global / 'random/grow_2/improve_1')['counts']
    assert control['kept_samples'] == counts['kept_samples']


def test_raft_plus_plus_learns_by_its_own_loss(raft_plus_plus):
  rows = running.results(raft_plus_plus)
  assert [row['policy'] for row in rows] == _POLICIES
  assert [row['loss'] for row in rows] == ['bc', 'raft++', 'raft++']


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
  wanted = right.groupby('source_id').size().clip(upper=2).sum()
  assert counts['kept_samples'] == wanted > 0
  assert counts['references'] == 0


def test_expert_iteration_gathers_samples_and_restarts(expert_iteration):
  first, second = (
    _manifest(expert_iteration / f'grow_{g}/improve_1') for g in (1, 2)
  )
  stores = {n for n in second['inputs'] if n.endswith('/samples')}
  assert stores == {'grow_1/samples', 'grow_2/samples'}
  assert 'supervised' in second['inputs']
  assert 'grow_1/improve_1' not in second['inputs']
  assert second['counts']['kept_samples'] > first['counts']['kept_samples'] > 0
  # The ledger counts the samples of both Grow steps.
  drawn = {
    row['policy']: int(row['samples_grown'])
    for row in running.results(expert_iteration)
  }
  assert drawn == {'BC': 0, 'G1 I1': 48, 'G2 I1': 96}


@pytest.mark.parametrize('grow_step', [1, 2])
def test_dpo_trains_on_a_pair_of_each_source_that_has_one(
  iterative_dpo, grow_step
):
  counts = _manifest(iterative_dpo / f'grow_{grow_step}/improve_1')['counts']
  table = _samples(iterative_dpo, grow_step)
  rewards = table[table['finished']].groupby('source_id')['reward']
  wanted = int((rewards.max() > rewards.min()).sum())
  assert counts['pairs'] == wanted > 0
  rows = running.results(iterative_dpo)
  assert [row['loss'] for row in rows] == ['bc', 'dpo', 'dpo']


def test_mbr_trains_on_one_sample_of_each_source_whatever_its_reward(
  mbr_finetuning,
):
  counts = _manifest(mbr_finetuning / 'grow_1/improve_1')['counts']
  table = _samples(mbr_finetuning, 1)
  sources = table[table['finished']]['source_id'].nunique()
  assert counts['kept_samples'] == counts['kept_sources'] == sources > 0


def test_qe_finetuning_trains_on_the_best_sample_of_each_source(qe_finetuning):
  rows = running.results(qe_finetuning)
  assert [row['policy'] for row in rows] == ['BC', 'G1 I1']
  counts = _manifest(qe_finetuning / 'grow_1/improve_1')['counts']
  sources = _samples(qe_finetuning, 1)
  sources = sources[sources['finished']]['source_id'].nunique()
  assert counts['kept_samples'] == counts['kept_sources'] == sources > 0
  assert counts['references'] == 0


def test_offline_and_online_rl_stand_in_one_table_with_their_control(
  offline_rl,
):
  rows = {row['policy']: row for row in running.results(offline_rl)}
  assert list(rows) == ['BC', 'G1 I0', 'G1 I1', 'G1 I1 permuted', 'RLOO']
  assert rows['G1 I1']['loss'] == rows['G1 I1 permuted']['loss'] == 'oac'
  assert rows['RLOO']['loss'] == 'rloo'
  assert int(rows['RLOO']['samples_grown']) > 0
  # A value model is trained on the rewards that its policy learns from.
  own = _manifest(offline_rl / 'grow_1/value')
  assert own['config']['permuted'] is False
  for policy, value in (
    ('grow_1/improve_1', 'grow_1/value'),
    ('permuted/grow_1/improve_1', 'permuted/grow_1/value'),
  ):
    assert value in _manifest(offline_rl / policy)['inputs']
  permuted = _manifest(offline_rl / 'permuted/grow_1/value')
  assert permuted['config']['permuted'] is True
  assert permuted['counts']['rows'] == own['counts']['rows']
  assert permuted['extra']['history'] != own['extra']['history']
