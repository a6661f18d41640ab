"""The real main on a tiny run, end to end."""

import contextlib
import csv
import json
import math
import pathlib
import re
import shlex
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import running
import sacrebleu
import tiny_reward

from rest_jax import alarm, cluster, results, run_lock
from rest_jax.data import store

_POLICIES = {
  'BC': 'supervised',
  'G1 I0': 'grow_1/improve_0',
  'G1 I1': 'grow_1/improve_1',
  'BC+': 'continued/grow_1/improve_1',
  'G1 I1 random': 'random/grow_1/improve_1',
}
_STAGES = {
  'data',
  'supervised',
  'check_reward/references',
  'check_reward/candidates',
  'grow_1/samples',
  'grow_1/scores/shared_letters',
  'grow_1/reward',
  'grow_1/improve_0',
  'grow_1/improve_1',
  'continued/grow_1/improve_0',
  'continued/grow_1/improve_1',
  'random/grow_1/improve_1',
  *(f'{policy}/evaluation/report' for policy in _POLICIES.values()),
}
# Compiled once for each: T > 0 and greedy; the optimizers of BC and Improve;
# parameters and loss. Neither thresholds, learning rates, temperatures, splits,
# controls nor Improve steps add any.
_COMPILED = {
  # Grow and sampled evaluations share their slots; greedy decoding has others.
  'jit(_empty)': 2,
  'jit(_fill)': 2,
  'jit(_decode)': 2,
  'jit(_update)': 1,  # BC and Improve share it.
  'jit(learning_rate)': 2,
  'jit(_beam_search)': 1,
  'jit(<lambda>)': 2,
}


def _stages(run):
  return {str(path.parent.relative_to(run)) for path in run.rglob('stage.json')}


def _started(done):
  """The stages that a process (with its `stderr`) worked on."""
  return re.findall(r'^\[(\S+)\] starting$', done.stderr, re.MULTILINE)


def _read(folder):
  return pa.concat_tables(map(pq.read_table, store.part_paths(folder)))


def _manifest(stage):
  return json.loads((stage / 'stage.json').read_text())


def _one_line(text):
  lines = text.splitlines()
  assert len(lines) == 1, text
  return lines[0]


# --- The whole run ----------------------------------------------------------


def test_a_whole_run_ends_with_the_table_of_all_policies(whole_run):
  table = whole_run.stdout
  for policy in _POLICIES:
    assert re.search(rf'^ *{re.escape(policy)} +report ', table, re.MULTILINE)
  assert f'results: {whole_run.folder}/results.csv' in whole_run.stderr
  assert set(_started(whole_run)) == _STAGES


def test_results_have_a_row_a_policy_and_the_columns_of_the_design(whole_run):
  rows = running.results(whole_run.folder)
  assert [row['policy'] for row in rows] == list(_POLICIES)
  assert list(rows[0]) == [
    *('policy', 'split', 'seed', 'grow_step', 'improve_step', 'loss'),
    *('threshold', 'kept_samples', 'kept_sources', 'distinct_samples'),
    *('reward_mean', 'reward_low', 'reward_high', 'reward_greedy'),
    *('reward_best_t', 'best_t', 'bleu', 'chrf'),
    *('bleu_signature', 'chrf_signature', 'train_tokens'),
    'reward_trained_on',
    'kept_by_length',
    *('kl_bc', 'entropy', 'distinct_1', 'distinct_2', 'length_ratio'),
    *('repeated_share', 'untranslated_share', 'samples_grown'),
    *('samples_drawn', 'decoded_tokens', 'reward_calls'),
    'tuning_trials',
  ]
  by_policy = {row['policy']: row for row in rows}
  for row in rows:
    low, mean, high = (
      float(row[f'reward_{name}']) for name in ('low', 'mean', 'high')
    )
    assert 0 <= low <= mean <= high <= 100
    assert 'tok:13a' in row['bleu_signature']
    assert row['split'] == 'report'
  # The filter keeps some of the samples, and the control as many.
  kept = {name: row['kept_samples'] for name, row in by_policy.items()}
  assert kept['BC'] == kept['BC+'] == ''
  assert 0 < int(kept['G1 I1']) < int(kept['G1 I0']) <= 48
  assert kept['G1 I1 random'] == kept['G1 I1']
  # Improve counts BC's tokens too.
  tokens = {name: int(row['train_tokens']) for name, row in by_policy.items()}
  assert 0 < tokens['BC'] < tokens['G1 I0'] < tokens['G1 I1']


def test_results_are_those_of_the_texts_that_are_stored(whole_run):
  reward = tiny_reward.SharedLetters()
  for row in running.results(whole_run.folder):
    folder = whole_run.folder / _POLICIES[row['policy']] / 'evaluation/report'
    beams = pq.read_table(folder / 'beam.parquet').to_pydict()
    samples = pq.read_table(folder / 'samples.parquet').to_pydict()
    references = [beams['reference']]
    assert beams['reference'] != beams['beam']
    bleu = sacrebleu.BLEU(trg_lang='en').corpus_score(beams['beam'], references)
    chrf = sacrebleu.CHRF().corpus_score(beams['beam'], references)
    found = {name: float(row[name]) for name in ('bleu', 'chrf')}
    assert found == pytest.approx(
      {'bleu': bleu.score, 'chrf': chrf.score}, abs=1e-4
    )
    for name, texts, sources in (
      ('reward_mean', samples['target'], samples['source']),
      ('reward_greedy', beams['greedy'], beams['source']),
    ):
      mean = 100 * reward.score(sources, texts).mean(dtype=np.float64)
      assert float(row[name]) == pytest.approx(mean, abs=1e-4), name
  # Two policies do not write the same.
  assert len({row['chrf'] for row in running.results(whole_run.folder)}) > 1


def test_results_tell_how_far_each_policy_has_gone_from_bc(whole_run):
  def moved(name):
    """Whether a policy, or one that it starts from, kept an update."""
    manifest = _manifest(whole_run.folder / name)
    twin = name.partition('/')[2]
    starts = [
      above
      for above in manifest['inputs']
      if '/improve_' in above and above != twin
    ]
    return manifest['counts']['best_update'] > 0 or any(map(moved, starts))

  for row in running.results(whole_run.folder):
    kl, entropy = float(row['kl_bc']), float(row['entropy'])
    bc = row['policy'] == 'BC'
    assert (kl > 0) == (not bc and moved(_POLICIES[row['policy']]))
    assert kl >= 0
    assert 0 < entropy < 16 * math.log(64)
    for name in ('distinct_1', 'repeated_share', 'untranslated_share'):
      assert 0 <= float(row[name]) <= 1


def test_results_tell_what_each_policy_has_cost(whole_run):
  rows = {row['policy']: row for row in running.results(whole_run.folder)}
  cost = {
    policy: tuple(
      int(row[name])
      for name in ('samples_grown', 'samples_drawn', 'reward_calls')
    )
    for policy, row in rows.items()
  }
  # An evaluation draws 2 samples of 8 sources; one at update 0, 2 and 4.
  steps = [
    len(_manifest(whole_run.folder / f'grow_1/improve_{i}')['extra']['history'])
    for i in (0, 1)
  ]
  first, both = 16 * steps[0], 16 * sum(steps)
  assert cost['BC'] == (0, 0, 0)
  # Grow drew 2 samples of 24 sources, and 64 references have rewards too.
  assert cost['G1 I0'] == (48, 48 + first, 112 + first)
  assert cost['G1 I1'] == (48, 48 + both, 112 + both)
  # The control that never sees a sample pays for D_select's alone.
  assert cost['BC+'][0] == 0 < cost['BC+'][1] == cost['BC+'][2]
  assert int(rows['BC']['decoded_tokens']) == 0
  tokens = int(rows['G1 I1']['decoded_tokens'])
  assert 48 + both <= tokens <= 16 * (48 + both)


def test_best_of_n_reads_the_samples_of_evaluations(whole_run, tmp_path):
  run = running.copy_of(whole_run.folder, tmp_path / 'run')
  ended = running.within(*running.command(run, '--run_mode=best_of_n')[3:])
  assert ended.code == 0, ended.stderr
  with open(run / 'best_of_n.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  # Of two samples a source the half is one: the mean reward of the results.
  found = {
    row['policy']: (row['n'], row['reward'])
    for row in rows
    if row['chosen_by'] == 'reward'
  }
  # Of two samples neither agrees better but by chance; both are there.
  assert {row['n'] for row in rows if row['chosen_by'] == 'mbr'} == {'2'}
  assert found == {
    row['policy']: ('1', row['reward_mean']) for row in running.results(run)
  }
  assert 'G1 I1' in ended.stdout
  missing = running.within(
    *running.command(run, '--run_mode=best_of_n', '--split=select')[3:]
  )
  assert missing.code == 2
  assert 'no policy has two samples' in _one_line(missing.stderr)


def test_an_alarm_warns_or_stops_where_a_policy_is_suspected(
  whole_run, tmp_path, monkeypatch
):
  run = running.copy_of(whole_run.folder, tmp_path / 'run')
  suspicion = alarm.Alarm.suspicion

  def always(self, before, after, higher_is_better):
    suspicion(self, before, after, higher_is_better)  # With the real figures.
    return f'{before["policy"]} to {after["policy"]}'

  monkeypatch.setattr(alarm.Alarm, 'suspicion', always)
  command = running.command(run)[3:]  # Every run has one.
  warned = running.within(*command)
  assert warned.code == 0, warned.stderr
  assert 'ALARM: BC to G1 I0' in warned.stderr
  assert 'ALARM: G1 I0 to G1 I1' in warned.stderr
  silent = running.within(*command, '--gin.rest.ReST.alarm=None')
  assert silent.code == 0, silent.stderr
  assert 'ALARM' not in silent.stderr
  assert 'cannot judge' not in warned.stderr
  # So do the parts of a run; what starts from a policy is held against it.
  parts = (*command, '--run_mode=evaluate')
  assert 'ALARM: BC to G1 I0' in running.within(*parts).stderr
  one = running.within(*parts, '--policy=grow_1/improve_0').stderr
  assert 'ALARM: BC to G1 I0' in one and 'ALARM: G1 I0 to G1 I1' in one
  assert 'ALARM: BC to BC+' not in one
  stopped = running.within(*command, '--gin.ALARM_STOP=True')
  assert stopped.code == 5
  assert 'RewardError: BC to G1 I0; to go on' in stopped.stderr
  # Without references there is nothing that it could read.
  columns = results.Row.columns.fget

  def without(row):
    return columns(row) | {'bleu': None}

  monkeypatch.setattr(results.Row, 'columns', property(without))
  blind = running.within(*command)
  assert 'cannot judge G1 I1: D_report gave it no bleu (has' in blind.stderr


def test_the_run_directory_is_as_designed(whole_run):
  run = whole_run.folder
  assert _stages(run) == _STAGES
  for name in ('config.gin', 'operative_config.gin', 'run.json'):
    assert (run / name).stat().st_size
  assert {path.name for path in (run / 'data').iterdir()} == {
    *('train', 'grow', 'select', 'report', 'test'),
    *('tokenizer.model', 'stage.json'),
  }
  for policy in _POLICIES.values():
    assert {path.name for path in (run / policy).iterdir()} == {
      *('params', 'stage.json', 'evaluation')
    }
    evaluation = run / policy / 'evaluation' / 'report'
    assert {path.name for path in evaluation.iterdir()} == {
      *('samples.parquet', 'beam.parquet', 'stage.json')
    }
  assert list((run / 'tensorboard').rglob('events.out.tfevents.*'))
  facts = json.loads((run / 'run.json').read_text())
  assert facts['seed'] == 0
  assert facts['machine'].endswith(' of its cores')
  stage = json.loads((run / 'supervised' / 'stage.json').read_text())
  assert stage['made_on'] == {
    'devices': len(facts['devices']),
    'machine': facts['machine'],
  }


def test_samples_hold_n_rows_a_source_and_the_references(whole_run):
  grown = whole_run.folder / 'grow_1'
  rows = _read(grown / 'samples')
  assert rows.schema.names == store.SAMPLES_SCHEMA.names
  origins = rows['origin'].to_pylist()
  assert (origins.count('policy'), origins.count('reference')) == (48, 64)
  for row in rows.to_pylist():
    if row['origin'] == 'reference':
      assert row['sample_index'] == store.REFERENCE_INDEX
      assert row['log_prob'] is None
    else:
      assert row['sample_index'] in (0, 1)
      assert row['grow_step'] == 1
      assert len(row['token_log_probs']) == row['length'] <= 16
      assert row['log_prob'] == pytest.approx(sum(row['token_log_probs']))
  for scores in ('scores/shared_letters', 'reward'):
    scored = _read(grown / scores)
    for column in ('source_id', 'sample_index'):
      assert scored[column].to_pylist() == rows[column].to_pylist()


def test_nothing_is_compiled_twice(whole_run):
  compiled = whole_run.report['compiled']
  assert {name: compiled[name] for name in _COMPILED} == _COMPILED
  # The rest are single operations, of two or three shapes at most.
  assert max(compiled.values()) <= 3


def test_a_second_start_skips_everything(whole_run, tmp_path):
  before = running.digests(whole_run.folder, '**/*')
  report = tmp_path / 'report.json'
  done = running.start(
    running.instrument(running.command(whole_run.folder), report=report)
  )
  assert done.stdout == whole_run.stdout
  assert not _started(done)
  report = json.loads(report.read_text())
  assert not report['compiled']
  assert not {'tensorflow', 'seqio'} & set(report['modules'])
  after = running.digests(whole_run.folder, '**/*')
  assert {name for name in before if before[name] != after.get(name)} <= {
    '.lock'  # Holds the process's number.
  }
  assert before.keys() == after.keys()


# --- Parts ------------------------------------------------------------------


@pytest.mark.slow
def test_run_modes_in_turn_give_the_same_bytes_as_the_whole_run(
  whole_run, compiled, tmp_path
):
  run = tmp_path / 'run'
  started = []
  modes = ('supervised', 'grow', 'annotate', 'improve', 'evaluate')
  for mode in (*modes, 'check_reward'):
    done = running.start(
      running.command(run, f'--run_mode={mode}'), cache=compiled
    )
    started.append(_started(done))
  assert started[0] == ['data', 'supervised']
  # Without an evaluation of BC there are no outputs of its to spoil.
  assert started[1] == ['check_reward/references', 'grow_1/samples']
  assert started[5] == ['check_reward/candidates']
  assert started[2] == ['grow_1/scores/shared_letters', 'grow_1/reward']
  assert len(started[3]) == len(started[4]) == 5
  assert _stages(run) == _STAGES
  # The same seed in another MODEL_DIR, too.
  assert running.digests(run) == running.digests(whole_run.folder)
  assert running.results(run) == running.results(whole_run.folder)
  for policy in _POLICIES.values():
    running.assert_equal_parameters(run / policy, whole_run.folder / policy)


def test_one_stage_alone(whole_run, compiled, tmp_path):
  run = running.copy_of(whole_run.folder, tmp_path / 'run')
  shutil.rmtree(run / 'grow_1/improve_1')
  report = tmp_path / 'report.json'
  done = running.start(
    running.instrument(
      running.command(run, '--stage=grow_1/improve_1'), report=report
    ),
    cache=compiled,
  )
  assert _started(done) == ['grow_1/improve_1']
  assert not (run / 'grow_1/improve_1/evaluation').exists()
  modules = json.loads(report.read_text())['modules']
  assert not {'tensorflow', 'seqio'} & set(modules)
  running.assert_equal_parameters(
    run / 'grow_1/improve_1', whole_run.folder / 'grow_1/improve_1'
  )


@pytest.mark.parametrize(
  'flags', [(), ('--gin.translate.Translate.mbr_samples=5',)]
)
def test_translate_gives_a_line_a_line(flags, whole_run, compiled, tmp_path):
  source = tmp_path / 'source.txt'
  source.write_text('zwei\n\nein Haus\u2028mit Garten\nzwei\n')
  done = running.start(
    running.command(
      whole_run.folder,
      '--run_mode=translate',
      '--policy=grow_1/improve_0',
      f'--input={source}',
      *flags,
    ),
    cache=compiled,
  )
  lines = done.stdout.split('\n')
  assert len(lines) == 5 and lines[4] == ''
  assert any(lines)
  assert lines[1] == ''
  assert lines[0] == lines[3]


def test_evaluation_on_test_data_is_logged(whole_run, compiled, tmp_path):
  run = running.copy_of(whole_run.folder, tmp_path / 'run')
  running.start(
    running.command(
      *(run, '--run_mode=evaluate', '--split=test', '--policy=supervised')
    ),
    cache=compiled,
  )
  for split in ('report', 'test'):
    judged = pq.read_table(run / f'supervised/evaluation/{split}/beam.parquet')
    asked = _read(run / 'data' / split)
    assert judged['source_id'].to_pylist() == asked['source_id'].to_pylist()
    assert judged['source'].to_pylist() == asked['source'].to_pylist()
  rows = running.results(run)
  assert [(row['policy'], row['split']) for row in rows[:2]] == [
    ('BC', 'report'),
    ('BC', 'test'),
  ]
  (reading,) = json.loads((run / 'test_readings.json').read_text())
  assert reading['policies'] == ['supervised']


def test_status_of_a_finished_run(whole_run):
  shown = running.within(
    running.TINY, f'--gin.MODEL_DIR={whole_run.folder}', '--run_mode=status'
  )
  assert (shown.code, shown.stderr) == (0, '')
  for stage in _STAGES:
    assert re.search(rf'^ *{stage} +done ', shown.stdout, re.MULTILINE)


def test_status_and_dry_run_of_one_not_begun_touch_nothing(tmp_path):
  run = tmp_path / 'run'
  flags = [running.TINY, f'--gin.MODEL_DIR={run}']
  status = running.within(*flags, '--run_mode=status')
  planned = running.within(*flags, '--dry_run')
  for shown in (status, planned):
    assert shown.code == 0
    assert re.search(r'^ *data +next', shown.stdout, re.MULTILINE)
    for stage in _STAGES - {'data'}:
      assert re.search(rf'^ *{stage} +waits', shown.stdout, re.MULTILINE)
  assert 'parameters; policies' in planned.stdout
  assert not run.exists()


def test_what_only_reads_joins_no_other_process(tmp_path, monkeypatch):
  joined = []
  monkeypatch.setattr(cluster, 'join', lambda *given, **_: joined.append(given))
  line = [running.TINY, f'--gin.MODEL_DIR={tmp_path / "run"}']
  for only in ('--run_mode=status', '--dry_run', '--run_mode=preview'):
    running.within(*line, only)
  assert not joined
  others = ['--coordinator_address=a:1', '--num_processes=2', '--process_id=1']
  assert running.within(*line, '--run_mode=status', *others).code == 0
  assert joined == [('a:1', 2, 1)]


def test_preview_prints_what_each_step_would_keep(whole_run):
  shown = running.within(
    running.TINY,
    f'--gin.MODEL_DIR={whole_run.folder}',
    '--run_mode=preview',
    '--gin.NUM_IMPROVE=2',
    '--gin.THRESHOLDS=(0.3, 0.5)',
  )
  assert shown.code == 0, shown.stderr
  rows = dict(
    re.findall(r'^ *(I\d) +(?:all|R > \S+) +(\d+) ', shown.stdout, re.M)
  )
  assert list(rows) == ['I0', 'I1', 'I2']
  kept = [int(count) for count in rows.values()]
  assert kept == sorted(kept, reverse=True)


# --- Errors -----------------------------------------------------------------


_GOLDENS = pathlib.Path(__file__).parent / 'goldens'

# Flags → what the message must name.
_FAULTS = (
  (['--gin.NUM_SAMPELS=3'], 'NUM_SAMPELS'),
  (['--gin.grow.Grow.num_sampels=3'], 'num_sampels'),
  (['--gin.nosuch.Thing.size=3'], 'nosuch'),
  (
    ['--gin.Improve.learning_rate_decay=1.0'],
    'perhaps improve.Improve is meant',
  ),
  (
    ['--gin.TOKENIZER=@TrainedTokenizer()'],
    'perhaps prepare.TrainedTokenizer is meant',
  ),
  (['--gin.NUM_SAMPLES=%NOPE'], "'NOPE'"),
  (['--gin.REWARD=@nosuch.Reward()'], 'nosuch'),
  # Quantiles are not the schedule that is set.
  (['--gin.schedule.Quantiles.levels=(0.5,)'], 'schedule.Quantiles.levels'),
  (['--gin.NUM_SAMPLES=many'], 'Grow.num_samples'),
  (['--gin.NUM_SAMPLES=2.5'], 'Grow.num_samples'),
  (['--gin.SEED=first'], 'ReST.seed'),
  (['--gin.THRESHOLDS=0.4'], 'Thresholds.taus'),
  (['--gin.THRESHOLDS=(0.5, 0.4)'], 'rising THRESHOLDS'),
  (['--gin.THRESHOLDS=(0.5, 1.0)'], 'THRESHOLDS: tau_2 = 1'),
  (['--gin.LEARNING_RATE=fast'], 'Optimizer.learning_rate'),
  (["--gin.FROZEN=('token_embeder/*',)"], 'FROZEN'),
  (['--gin.NUM_MICROBATCHES=3'], 'NUM_MICROBATCHES'),
  # Of what comes after Grow alone.
  (
    ["--gin.improving/optimizer.Optimizer.frozen=('nosuch',)"],
    "named 'nosuch'",
  ),
  (
    [
      f'--gin.INITIAL_CHECKPOINT_PATH={_GOLDENS / "hf_mt5"}',
      "--gin.t5.T5Config.mlp_activations=('relu',)",
    ],
    "T5Config.mlp_activations = ('relu',), and ",
  ),
  # A tokenizer that is trained here, as it is where none is bound.
  (
    [
      f'--gin.INITIAL_CHECKPOINT_PATH={_GOLDENS / "hf_mt5"}',
      '--gin_file=models/from_checkpoint.gin',
    ],
    'whose ids stand for other texts',
  ),
  (
    [
      '--gin_file=losses/oac.gin',
      "--gin.value/optimizer.Optimizer.frozen=('no_value',)",
    ],
    "named 'no_value'",
  ),
  (['--gin.MAX_TARGET_LENGTH=(16,)'], 'Packing.target_length'),
  (['--gin.CONTROLS=continued'], 'ReST.controls'),
  (["--gin.CONTROLS=('contniued',)"], 'ReST.controls'),
  (['--gin.DEV_SPLIT=3'], 'Data.dev'),
  (['--gin.REWARD=3'], 'Annotate.reward'),
  (['--gin.NUM_IMPROVE=3'], 'NUM_IMPROVE'),
  (['--gin.NUM_GROW=-1'], 'NUM_GROW'),
  (['--gin.TUNING_TRIALS=0'], 'TUNING_TRIALS'),
  (['--gin.TEMPERATURE=-1'], 'Sampling.temperature'),
  (['--gin.THRESHOLDS=(0.4,'], 'THRESHOLDS'),
  (['--gin.SEED'], '--gin.SEED'),
  (['--run_mode=improove'], 'run_mode'),
  (['--nosuch=1'], 'nosuch'),
  (['improve'], 'improve'),
  (['--gin_file=nosuch.gin'], 'nosuch.gin'),
  (['--stage=grow_9/samples'], 'grow_9/samples'),
  (['--stage=grow_1/reward'], 'grow_1/scores/shared_letters'),
  (['--run_mode=preview'], '--run_mode=grow'),
  (['--run_mode=translate'], '--run_mode=supervised'),
  (['--run_mode=evaluate', '--policy=nosuch'], 'nosuch'),
  (['--run_mode=evaluate', '--stage=data'], '--stage=data says nothing'),
  (['--run_mode=improve', '--policy=supervised'], '--policy=supervised says'),
  (['--split=test'], '--split=test says nothing to --run_mode=rest'),
  (['--run_mode=convert', '--dry_run'], '--dry_run=True says nothing'),
)


@pytest.fixture(scope='module')
def prepared(whole_run, tmp_path_factory):
  """A run that has its data and nothing else."""
  run = tmp_path_factory.mktemp('prepared')
  for name in ('data', 'config.gin', 'operative_config.gin', 'run.json'):
    copy = shutil.copytree if name == 'data' else shutil.copy
    copy(whole_run.folder / name, run / name)
  (run / '.lock').touch()
  return run


@pytest.fixture(scope='module')
def faulty(prepared):
  """How main ended with each of `_FAULTS`, on a run with nothing but data."""
  before = running.digests(prepared, '**/*')
  model = f'--gin.MODEL_DIR={prepared}'
  ended = running.in_another(
    [(running.TINY, model, *flags) for flags, _ in _FAULTS]
  )
  assert running.digests(prepared, '**/*').keys() == before.keys()
  return ended


@pytest.mark.parametrize(
  'number', range(len(_FAULTS)), ids=[' '.join(flags) for flags, _ in _FAULTS]
)
def test_a_faulty_command_is_one_line_that_names_the_fault(faulty, number):
  ended, (_, named) = faulty[number], _FAULTS[number]
  assert ended.code == 2, ended
  line = _one_line(ended.stderr)
  assert line.startswith('ConfigurationError: ')
  assert named in line
  assert len(line) < 600
  assert ended.stdout == ''


def test_a_run_file_with_faults(tmp_path):
  def started(text):
    file = tmp_path / 'run.gin'
    file.write_text(text)
    ended = running.within(f'--gin_file={file}')
    assert ended.code == 2, ended
    return _one_line(ended.stderr)

  assert 'nosuch.gin' in started("include 'nosuch.gin'\n")
  header = 'from __gin__ import dynamic_registration\n'
  assert 'nosuch' in started(f'{header}from rest_jax import nosuch\n')
  tiny = (running.TESTING / 'tiny.gin').read_text()
  assert 'MODEL_DIR' in started(tiny)
  assert 'NUM_SAMPELS' in started(f"{tiny}MODEL_DIR='x'\nNUM_SAMPELS = 3\n")


def test_no_gin_file_at_all():
  line = _one_line(running.within().stderr)
  assert 'quickstart.gin' in line


def test_a_second_process_on_a_run_directory_stops(tmp_path):
  run = tmp_path / 'run'
  with contextlib.ExitStack() as stack:
    stack.enter_context(run_lock.hold(run / '.lock'))
    done = running.start(running.command(run), expected=7)
  line = _one_line(done.stderr)
  assert line.startswith('LockedError: ')
  assert str(run) in line
  assert {path.name for path in run.iterdir()} == {'.lock'}


# --- Branches ---------------------------------------------------------------


def _refused(run, *flags):
  """The error and the branching command that a changed binding gives."""
  before = running.digests(run, '**/*')
  ended = running.within(running.TINY, f'--gin.MODEL_DIR={run}', *flags)
  assert ended.code == 2, ended
  line = _one_line(ended.stderr)
  after = running.digests(run, '**/*')
  assert {n for n in after if before.get(n) != after[n]} <= {'.lock'}
  message, _, command = line.partition('branch into another run directory: ')
  python, *arguments = shlex.split(command)
  assert python == 'python'
  return message, [sys.executable, *arguments]


def test_a_changed_improve_step_branches_from_the_grown_data(
  whole_run, compiled, tmp_path
):
  message, command = _refused(
    whole_run.folder, '--gin.IMPROVE_LEARNING_RATE=0.01', '--gin.CONTROLS=()'
  )
  assert 'stage grow_1/improve_0' in message
  assert 'optimizer.learning_rate = 0.02, now 0.01' in message
  assert f'--gin.GROW_FROM={whole_run.folder}' in command
  branch = tmp_path / 'branch'
  done = running.start([*command, f'--gin.MODEL_DIR={branch}'], cache=compiled)
  assert _started(done) == [
    'supervised/evaluation/report',
    'grow_1/improve_0',
    'grow_1/improve_0/evaluation/report',
    'grow_1/improve_1',
    'grow_1/improve_1/evaluation/report',
  ]
  assert not (branch / 'grow_1/samples').exists()
  bc, *improved = running.results(branch)
  assert bc == running.results(whole_run.folder)[0]
  assert [row['policy'] for row in improved] == ['G1 I0', 'G1 I1']

  # A branch of the branch takes what is there from where it is.
  taken = f'--gin.GROW_FROM={whole_run.folder}'
  _, command = _refused(branch, taken, '--gin.IMPROVE_LEARNING_RATE=0.03')
  assert taken in command
  _, command = _refused(branch, taken, '--gin.NUM_SAMPLES=1')
  assert f'--gin.SUPERVISED_FROM={whole_run.folder}' in command
  assert '--gin.GROW_FROM=None' in command
  _, command = _refused(branch, taken, '--gin.SEED=1')
  assert '--gin.GROW_FROM=None' in command
  assert not [c for c in command if c.startswith('--gin.SUPERVISED_FROM')]


def test_changed_sampling_branches_from_the_supervised_policy(
  whole_run, compiled, tmp_path
):
  message, command = _refused(whole_run.folder, '--gin.NUM_SAMPLES=1')
  assert 'stage grow_1/samples' in message
  assert 'Grow.num_samples = 2, now 1' in message
  assert f'--gin.SUPERVISED_FROM={whole_run.folder}' in command
  branch = tmp_path / 'branch'
  done = running.start(
    [*command, f'--gin.MODEL_DIR={branch}', '--run_mode=grow'],
    cache=compiled,
  )
  assert _started(done) == ['check_reward/references', 'grow_1/samples']
  rows = _read(branch / 'grow_1/samples')
  assert rows['sample_index'].to_pylist().count(0) == 24


def test_a_change_is_found_before_anything_is_made(whole_run, tmp_path):
  run = tmp_path / 'run'
  shutil.copytree(whole_run.folder, run)
  shutil.rmtree(run / 'supervised/evaluation')  # Would be made first.
  message, _ = _refused(run, '--gin.IMPROVE_LEARNING_RATE=0.01')
  assert 'stage grow_1/improve_0' in message


def test_rows_are_as_policies_were_made_whatever_is_bound_now(
  whole_run, tmp_path
):
  run = tmp_path / 'run'
  shutil.copytree(whole_run.folder, run)
  before = {row['policy']: row for row in running.results(run)}
  ended = running.within(
    *running.command(run, '--run_mode=grow')[3:],
    *('--gin.THRESHOLDS=(0.5,)', '--gin.CONTROLS=()'),
  )
  assert ended.code == 0, ended
  after = {row['policy']: row for row in running.results(run)}
  assert (
    after['G1 I1']['threshold'] == before['G1 I1']['threshold'] == 'R > 0.25'
  )
  # Controls that are not asked for any more are still there, and named so,
  assert after.pop('BC+ 1.1') == {**before.pop('BC+'), 'policy': 'BC+ 1.1'}
  assert after == before
  # as long as what they were made from is.
  shutil.rmtree(run / 'continued/grow_1/improve_0')
  ended = running.within(*running.command(run, '--gin.CONTROLS=()')[3:])
  assert ended.code == 0, ended
  left = [row['policy'] for row in running.results(run)]
  assert left == [name for name in after if name != 'BC+ 1.1']


def test_a_changed_policy_or_data_starts_anew(whole_run):
  message, command = _refused(whole_run.folder, '--gin.t5.T5Config.emb_dim=32')
  assert 'T5Config.emb_dim = 16, now 32' in message
  assert not [c for c in command if '_FROM=' in c]
  # The branch lies beside the run, however the shell ends its name.
  slashed = f'--gin.MODEL_DIR={whole_run.folder}/'
  ended = running.within(running.TINY, slashed, '--gin.SEED=1')
  assert f'--gin.MODEL_DIR={whole_run.folder}_branch' in ended.stderr
  message, _ = _refused(whole_run.folder, '--gin.VOCAB_SIZE=60')
  assert 'stage data' in message
  assert 'Data.tokenizer.vocab_size = 64, now 60' in message


def test_a_branch_from_nothing_says_so(tmp_path):
  ended = running.within(
    running.TINY,
    f'--gin.MODEL_DIR={tmp_path}/run',
    f'--gin.SUPERVISED_FROM={tmp_path}/nothing',
  )
  assert ended.code == 2
  line = _one_line(ended.stderr)
  assert f'{tmp_path}/nothing' in line


# --- Many devices -----------------------------------------------------------


@pytest.mark.slow
def test_a_whole_run_on_eight_devices(tmp_path):
  run = tmp_path / 'run'
  done = running.start(
    running.command(run, '--gin.MODEL_PARALLEL=2'), devices=8
  )
  assert _stages(run) == _STAGES
  assert set(_started(done)) == _STAGES
  assert len(json.loads((run / 'run.json').read_text())['devices']) == 8
