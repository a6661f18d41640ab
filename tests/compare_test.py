"""--run_mode=compare on runs of the real main."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pytest
import running
from absl import flags
from absl.testing import flagsaver
from etils import epath

import gin
from rest_jax import compare as compare_lib
from rest_jax import (
  compared_runs,
  config,
  main,
  policy_plan,
  run_directory,
  storage,
)
from rest_jax.data import store
from rest_jax.rewards import learned

_SMALL = (
  '--gin_file=compare/contrasts.gin',
  "--gin.CONTRASTS=(('BC+', 'G1 I1'), ('BC', 'G1 I0'))",
  '--gin.compare.Compare.num_resamples=40',
  '--gin.compare.Compare.num_trials=50',
)


def compare(*arguments):
  return running.within('--run_mode=compare', *map(str, arguments))


def remade(run, to, seed=None, rewards=None, beams=None, config=(), inputs=()):
  """A copy of a run whose evaluations are committed anew with changes.

  Args:
    run: a run directory.
    to: where to.
    seed: another seed, whose policies are others then.
    rewards: from rewards to others.
    beams: from the table of translations to another.
    config: settings of the evaluations to add.
    inputs: stages to add that they read.
  """
  running.copy_of(run, to)
  means = {}
  for name in sorted(to.rglob('evaluation/report/stage.json')):
    stage = run_directory.RunDirectory(to).stage(
      str(name.parent.relative_to(to))
    )
    manifest = json.loads(name.read_text())
    samples = store.read_part(stage.folder / 'samples.parquet')
    translations = store.read_part(stage.folder / 'beam.parquet')
    policy = stage.name.removesuffix('/evaluation/report')
    settings, read = manifest['config'] | dict(config), manifest['inputs']
    if seed is not None:
      settings['SEED'] = seed
      read[policy] = storage.sha256_of(f'{policy} {seed}'.encode())
    if rewards is not None:
      changed = pa.array(rewards(samples['reward'].to_numpy()), pa.float32())
      place = samples.column_names.index('reward')
      samples = samples.set_column(place, 'reward', changed)
    if beams is not None:
      translations = beams(translations)
    shutil.rmtree(stage.folder)
    stage = run_directory.RunDirectory(to).stage(stage.name)
    stage.begin(settings, read | dict(inputs))
    stage.write_part('samples.parquet', store.table_bytes(samples))
    stage.write_part('beam.parquet', store.table_bytes(translations))
    stage.commit(manifest['counts'], manifest['seconds'], manifest['extra'])
    means[policy] = 100 * samples['reward'].to_numpy().mean(dtype=np.float64)
  rows = read_csv(to / 'results.csv')
  for row in rows:
    row['reward_mean'] = means[compared_runs.stage_name(row)]
    row['seed'] = row['seed'] if seed is None else seed
  write_csv(to / 'results.csv', rows)
  if seed is not None:
    path = to / 'config.gin'
    path.write_text(path.read_text().replace('SEED = 0', f'SEED = {seed}'))
  return to


def read_csv(path):
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


def write_csv(path, rows):
  text = io.StringIO()
  writer = csv.DictWriter(text, list(rows[0]))
  writer.writeheader()
  writer.writerows(rows)
  path.write_text(text.getvalue())


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('compare')


@pytest.fixture(scope='module')
def other_seed(whole_run, folder):
  """The run again with another seed: all its rewards are lower by a tenth."""
  return remade(
    whole_run.folder, folder / 'other', 7, lambda values: 0.9 * values
  )


# --- Two seeds --------------------------------------------------------------


def contents(run):
  """Digests of a run's files; tests in other processes take its lock."""
  found = running.digests(run, '**/*')
  return {name: digest for name, digest in found.items() if name != '.lock'}


@pytest.fixture(scope='module')
def compared(whole_run, other_seed, folder):
  before = contents(whole_run.folder)
  ended = compare(
    whole_run.folder, other_seed, *_SMALL, f'--output={folder}/out'
  )
  assert ended.code == 0, ended.stderr
  assert contents(whole_run.folder) == before
  return folder / 'out', ended


def test_both_seeds_of_every_policy_are_in_the_tables(
  compared, whole_run, other_seed
):
  out, ended = compared
  means = {}
  for run, seed in ((whole_run.folder, '0'), (other_seed, '7')):
    for row in read_csv(run / 'results.csv'):
      means.setdefault(row['policy'], {})[seed] = float(row['reward_mean'])
  rows = read_csv(out / 'comparison.csv')
  found = {}
  for row in rows:
    found.setdefault(row['name'], {})[row['seed']] = float(row['reward_mean'])
    assert row['run'] == str(whole_run.folder if row['seed'] == '0' else
                             other_seed)  # fmt: skip
  assert found == means
  for policy, (first, second) in ((p, m.values()) for p, m in means.items()):
    mean = re.escape(f'{(first + second) / 2:.2f}')
    assert re.search(rf'^ *{re.escape(policy)} +2 +{mean} ', ended.stdout, re.M)
  assert 'trials' in ended.stdout
  assert f'comparison: {out}/comparison.html' in ended.stderr


def test_contrasts_are_those_named_then_every_two_others(compared):
  rows = read_csv(compared[0] / 'contrasts.csv')
  assert {row['measure'] for row in rows} == {'reward_mean', 'bleu', 'chrf'}
  rows = [row for row in rows if row['measure'] == 'reward_mean']
  pairs = [(row['first'], row['second']) for row in rows]
  assert pairs[:2] == [('BC+', 'G1 I1'), ('BC', 'G1 I0')]
  assert len(set(map(frozenset, pairs))) == len(pairs) == 5 * 4 / 2
  assert [row['planned'] for row in rows] == ['True'] * 2 + ['False'] * 8
  corrected = [bool(row['holm_bootstrap']) for row in rows]
  assert corrected == [False] * 2 + [True] * 8
  means = {}
  for row in read_csv(compared[0] / 'comparison.csv'):
    means.setdefault(row['name'], []).append(float(row['reward_mean']))
  for row in rows:
    difference = np.mean(means[row['second']]) - np.mean(means[row['first']])
    assert float(row['difference']) == pytest.approx(difference, abs=1e-3)
    assert (row['seeds'], row['paired']) == ('2', 'True')
    low, high = (float(row[f'interval_{end}']) for end in ('low', 'high'))
    assert low <= float(row['difference']) <= high
    for p in (float(row['p_bootstrap']), float(row['p_randomisation'])):
      assert 0 < p <= 1


def test_frontiers_begin_with_bc_and_hold_what_the_results_say(compared):
  rows = read_csv(compared[0] / 'frontiers.csv')
  assert {row['cost'] for row in rows} == {'samples_drawn', 'device_seconds'}
  means = {}
  for row in read_csv(compared[0] / 'comparison.csv'):
    for cost in ('samples_drawn', 'device_seconds'):
      means.setdefault((row['name'], cost), []).append(float(row[cost]))
  assert rows[0]['name'] == 'BC'
  for row in rows:
    assert np.mean(means[row['name'], row['cost']]) <= float(row['most']) + 1e-3


def test_the_page_holds_all_and_is_the_same_every_time(
  compared, whole_run, other_seed, folder
):
  out, _ = compared
  page = (out / 'comparison.html').read_text()
  assert page.count('<svg') == 3
  assert page.count('<table>') == 5
  assert not re.search(r'(src|href)="http', page)
  again = compare(
    other_seed, whole_run.folder, *_SMALL, f'--output={folder}/again'
  )
  assert again.code == 0
  names = sorted(path.name for path in out.iterdir())
  assert names == sorted(path.name for path in (folder / 'again').iterdir())
  for name in names:
    assert (folder / 'again' / name).read_bytes() == (out / name).read_bytes()


def test_one_run_is_compared_within_itself_without_gin(
  whole_run, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  few = compare_lib.Compare(num_resamples=10, num_trials=10)
  monkeypatch.setattr(compare_lib, 'Compare', lambda: few)
  ended = compare(whole_run.folder)
  assert ended.code == 0, ended.stderr
  assert (tmp_path / 'comparison' / 'comparison.html').exists()
  assert 'Contrasts' not in ended.stdout
  assert 'Every two other policies' in ended.stdout


def test_every_policy_is_found_by_its_row(tmp_path):
  arguments = (
    '--gin_file=quickstart.gin',
    '--gin_file=online/rloo.gin',
    '--gin.NUM_GROW=2',
    "--gin.CONTROLS=('continued', 'random', 'permuted')",
    f'--gin.MODEL_DIR={tmp_path}/run',
  )
  with flagsaver.flagsaver():
    gin.clear_config(clear_constants=True)
    flags.FLAGS.unparse_flags()
    try:
      main._parse_flags(['rest_jax', *arguments])
      main._parse_gin(main._GIN_FILE.value, main._GIN_BINDINGS.value, ())
      run = main._build()
    finally:
      gin.clear_config(clear_constants=True)
  policies = policy_plan.policies(run)
  assert len(policies) > 20
  for policy in policies:
    row = {
      'policy': policy.label,
      'grow_step': str(policy.grow_step),
      'improve_step': '' if policy.improve_step is None else
                      str(policy.improve_step),
    }  # fmt: skip
    assert compared_runs.stage_name(row) == policy.stage


# --- Bad input --------------------------------------------------------------


def refused(ended, code, *texts):
  """Checks that a command ended with one line that has all of some texts."""
  assert ended.code == code, ended.stderr
  (line,) = (
    line
    for line in ended.stderr.splitlines()
    if not line.startswith('[compare]')
  )
  for text in texts:
    assert text in line
  assert not ended.stdout


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    ((), 'no runs to compare'),
    (('{run}', '{run}'), 'the run {run} is given twice'),
    (('{run}', '{run}/../{name}/'), 'is given twice'),
    (('{run}', '{run}/data'), '{run}/data is not a run directory'),
    (('{run}/no',), '{run}/no is not a run directory (it has no config.gin)'),
    (
      ('{run}', '--split=select'),
      '{run} has no committed evaluation on the select data',
    ),
    (('{run}', '--output={run}/data'), 'is in the run {run}'),
    (('{run}', '--output={run}'), 'is in the run {run}'),
    (
      ('{run}', '--gin.compare.Compare.num_trials=0', *_SMALL[:2]),
      'Compare.num_trials = 0 must be at least 1',
    ),
    (
      ('{run}', *_SMALL[:1], "--gin.CONTRASTS=(('BC', 'G1 I9'),)"),
      "names 'G1 I9', which is none of the policies compared",
    ),
    (
      ('{run}', *_SMALL[:1], "--gin.CONTRASTS=(('BC', 'BC'),)"),
      'the same policy',
    ),
    (
      ('{run}', *_SMALL, '--gin.compare.Compare.num_trial=3'),
      'num_trial',
    ),
    (('{run}', *_SMALL[:1]), 'CONTRASTS must be set'),
  ],
)
def test_what_cannot_be_compared_is_refused(whole_run, arguments, said):
  known = {'run': whole_run.folder, 'name': whole_run.folder.name}
  arguments = [a.format(**known) if '(' not in a else a for a in arguments]
  refused(compare(*arguments), 2, said.format(**known))


def test_learned_rewards_are_known_by_the_names_of_their_classes():
  kinds = (learned.Learned(), learned.Disagreement())
  names = tuple(config.flatten(kind, 'reward')['reward'] for kind in kinds)
  assert names == compared_runs._LEARNED


def test_other_modes_take_no_arguments(whole_run):
  ended = running.within('--run_mode=status', str(whole_run.folder))
  refused(ended, 2, f"unknown argument '{whole_run.folder}'")


def test_a_copy_is_not_another_seed(whole_run, tmp_path):
  copy = running.copy_of(whole_run.folder, tmp_path / 'copy')
  said = 'same SEED = 0: it would count twice'
  refused(compare(whole_run.folder, copy), 2, str(copy), said)


def _other_source(table):
  sources = table['source'].to_pylist()
  sources[3] = 'something else'
  return table.set_column(1, 'source', pa.array(sources))


def _other_reference(table):
  references = table['reference'].to_pylist()
  references[0] = 'another one'
  return table.set_column(2, 'reference', pa.array(references))


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    (
      {'beams': _other_source},
      "on other report data than {run}: source 'something else', there",
    ),
    (
      {'beams': _other_reference},
      "on other report data than {run}: reference 'another one', there",
    ),
    (
      {'config': {'RewardInfo.version': '2'}},
      "another reward than {run}: RewardInfo.version = '2', there '1'",
    ),
    (
      {
        'config': {'reward': 'Learned'},
        'inputs': {'reward': '0123456789abcdef'},
      },
      "another reward than {run}: learned reward = '0123456789ab'",
    ),
    (
      {'config': {'Evaluate.sampling.temperature': 0.7}},
      'in another way than {run}: Evaluate.sampling.temperature = 0.7, there',
    ),
  ],
)
def test_runs_of_other_data_or_rewards_are_named(
  whole_run, tmp_path, changes, said
):
  other = remade(whole_run.folder, tmp_path / 'other', 7, **changes)
  said = said.format(run=whole_run.folder)
  refused(compare(whole_run.folder, other), 2, str(other), said)


def test_other_numbers_of_samples_and_further_metrics_do_not_matter(
  whole_run, tmp_path
):
  other = remade(
    whole_run.folder,
    tmp_path / 'other',
    7,
    config={
      'Evaluate.num_samples': 3,
      'Evaluate.select_sources': 9,
      'Evaluate.batching.rows': 5,
      'ter: RewardInfo.name': 'ter',
    },
    inputs={'reward': '0123456789abcdef'},  # Of a further metric.
  )
  runs = compared_runs.read_all([str(whole_run.folder), str(other)], 'report')
  assert [run.seed for run in runs] == [0, 7]


def _flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def _reseed(path):
  path.write_text(path.read_text().replace('"SEED": 0', '"SEED": 1'))


def _stale(path):
  rows = read_csv(path)
  rows[0]['reward_mean'] = '99.0'
  write_csv(path, rows)


@pytest.mark.parametrize(
  ('file', 'alter', 'code', 'said'),
  [
    (
      'grow_1/improve_1/evaluation/report/samples.parquet',
      _flip,
      4,
      'samples.parquet was altered after it was committed',
    ),
    (
      'supervised/evaluation/report/beam.parquet',
      lambda path: path.unlink(),
      4,
      'beam.parquet cannot be read',
    ),
    (
      'supervised/evaluation/report/stage.json',
      _reseed,
      4,
      'stage.json was altered after the commit',
    ),
    ('results.csv', _stale, 4, 'but results.csv of that run says 99.0'),
    (
      'results.csv',
      lambda path: write_csv(path, read_csv(path)[:-1]),
      2,
      'results.csv has no row for random/grow_1/improve_1 on the report data',
    ),
    ('results.csv', lambda path: path.unlink(), 2, 'results.csv is not there'),
    (
      'results.csv',
      lambda path: path.write_text('policy,split\n'),
      4,
      'results.csv has no column grow_step',
    ),
    ('config.gin', lambda path: path.unlink(), 2, 'it has no config.gin'),
  ],
)  # fmt: skip
def test_altered_files_are_named(whole_run, tmp_path, file, alter, code, said):
  run = running.copy_of(whole_run.folder, tmp_path / 'run')
  alter(run / file)
  refused(compare(run), code, str(tmp_path / 'run'), said)


def test_an_alarm_is_no_other_configuration(tmp_path):
  config = 'SEED = 0\nNUM_SAMPLES = 2\n'
  alarm = (
    "ALARM_HELD_OUT = ('bleu', 'chrf')\n"
    'alarm.Alarm.held_out = %ALARM_HELD_OUT\n'
    'rest.ReST.alarm = @alarm.Alarm()\n'
  )
  found = []
  for number, text in enumerate((config, config + alarm, config + 'X = 1\n')):
    (tmp_path / str(number)).mkdir()
    (tmp_path / str(number) / 'config.gin').write_text(text)
    found.append(compared_runs._config(epath.Path(tmp_path / str(number))))
  assert found[0] == found[1] == {'NUM_SAMPLES': '2'}
  assert found[2] != found[0]
