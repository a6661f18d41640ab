"""The runs of benchmarks/family.py: every one of them builds as it is meant."""

import dataclasses
import importlib
import itertools
import json
import pathlib
import re

import pytest
from absl import flags
from absl.testing import flagsaver

import gin
from rest_jax import main, policy_plan, schedule, stages

_BENCHMARKS = pathlib.Path(__file__).parents[1] / 'benchmarks'


def _loaded(name):
  """A module of the benchmarks, which find each other as scripts do."""
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(_BENCHMARKS)
    return importlib.import_module(name)


family = _loaded('family')
family_rows = _loaded('family_rows')
faulty_rewards = _loaded('faulty_rewards')
family_alarm = _loaded('family_alarm')
family_tables = _loaded('family_tables')

_RUNS = [
  (task, table, name)
  for task, settings in family.TASKS.items()
  for table, runs in family.tables(settings).items()
  for name in runs
]


def build(task, variant, name, folder):
  """The run that a command line describes, built as main builds it."""
  settings = family.TASKS[task]
  line = ['rest_jax']
  line += family.flags(settings, variant, 3, folder / 'base', folder / name)
  line += [f'--gin.{path}={folder}' for path in settings.paths]
  with flagsaver.flagsaver():
    gin.clear_config(clear_constants=True)
    flags.FLAGS.unparse_flags()
    try:
      main._parse_flags(line)
      main._parse_gin(main._GIN_FILE.value, main._GIN_BINDINGS.value, ())
      return main._build()
    finally:
      gin.clear_config(clear_constants=True)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """All of them, by task, table and name; `base` too."""
  folder = tmp_path_factory.mktemp('family')
  made = {
    (task, table, name): build(
      task, family.tables(family.TASKS[task])[table][name], name, folder
    )
    for task, table, name in _RUNS
  }
  for task in family.TASKS:
    base = family.base(family.TASKS[task])
    made[task, 'base', 'base'] = build(task, base, 'base', folder)
  return made


@pytest.mark.parametrize('task', family.TASKS)
def test_every_run_takes_the_stages_of_base_that_are_its_own(task, runs):
  base, tables = runs[task, 'base', 'base'], family.tables(family.TASKS[task])
  made = {plan.name: plan.config for plan in stages.plan(base)}
  for (of_task, table, name), run in runs.items():
    if of_task != task:
      continue
    assert run.seed == base.seed == 3
    evaluation = dataclasses.replace(
      run.evaluate, num_samples=base.evaluate.num_samples
    )
    assert evaluation == base.evaluate, (table, name)
    shared = ['data', 'supervised']
    repeats = '' if table == 'base' else tables[table][name].repeats
    if repeats == 'evaluation':
      shared.append('supervised/evaluation/report')
    elif repeats == 'policies':
      shared += [n for n in made if re.fullmatch(r'grow_1/improve_\d', n)]
    if run.grow_from:
      shared += [n for n in made if n.startswith('grow_1/') if 'rov' not in n]
    own = {plan.name: plan.config for plan in stages.plan(run)}
    for stage in shared:
      assert own[stage] == made[stage], (table, name, stage)


@pytest.mark.parametrize('task', family.TASKS)
def test_runs_are_what_they_are_called(task, runs):
  def loss(name):
    return runs[task, 'losses', name].improve.training.loss

  names = {name: loss(name).name for name in family.LOSSES}
  assert names == {
    **{name: name for name in family.LOSSES},
    'linear': 'reward-weighted bc',
    'exponential': 'reward-weighted bc',
  }
  assert loss('linear').weighting == 'linear'
  assert all(
    runs[task, 'losses', name].num_improve == 1 for name in family.LOSSES
  )
  assert not any(
    runs[task, 'losses', name].improve.include_unfiltered
    for name in family.LOSSES
  )
  assert runs[task, 'losses_by_step', 'gold'].num_improve > 1
  assert not any(runs[task, 'losses', name].controls for name in family.LOSSES)
  assert runs[task, 'thresholds', 'top_k'].improve.schedule == (
    schedule.PerSource('top_k', (4.0, 3.0, 2.0, 1.0))
  )
  assert runs[task, 'best_of_n', 'best_of_n'].evaluate.num_samples == 64
  em = runs[task, 'relatives', 'rest_em'].improve
  assert em.restart_from_base
  assert f'THRESHOLDS={em.schedule.taus}' == family.TASKS[task].right
  for name, loss_name in (('raft', 'bc'), ('raft_plus_plus', 'raft++')):
    right = runs[task, 'relatives', f'{name}_right'].improve
    assert right.training.loss.name == loss_name
    assert right.schedule == em.schedule


@pytest.mark.parametrize('task', family.TASKS)
@pytest.mark.parametrize('name', ['rloo', 'ppo'])
def test_online_baselines_draw_what_grow_draws(task, name, runs):
  run = runs[task, 'table_1', name]
  (settings,) = run.online
  batches = settings.stopping.max_steps // settings.updates_per_batch
  grown = family.TASKS[task].grown
  assert abs(batches * settings.samples_per_batch - grown) < 64
  assert [p.label for p in policy_plan.policies(run)] == ['BC', name.upper()]


def test_the_alarms_delay_is_from_the_first_harm_to_the_first_ring():
  def figures(reward, truth, bleu):
    row = {'policy': 'x', 'split': 'report', 'reward_mean': reward}
    return row | {'truth': truth, 'greedy': truth, 'bleu': bleu, 'chrf': bleu}

  rows = [
    figures(50, 80, 90),
    figures(60, 70, 91),  # Harm that it does not see,
    figures(70, 71, 90),  # and a ring at what is none.
  ]
  steps = [family_alarm.Step(*pair) for pair in itertools.pairwise(rows)]
  assert family_alarm.delay(steps, 0.0) == '1'
  assert family_alarm.delay(steps[::-1], 0.0) == '-1'
  assert family_alarm.delay(steps, 2.0) == 'missed'
  assert family_alarm.delay(steps[1:], 0.0) == '–'


def test_gathered_rows_are_named_after_their_run(tmp_path):
  for name, text in (('base', 'policy,x\nBC,1\n'), ('b', 'policy,y\nBC,2\n')):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'results.csv').write_text(text)
  path = tmp_path / 'new' / 'rows.csv'
  files = {name: tmp_path / name / 'results.csv' for name in ('base', 'b')}
  family_rows.gather(files, path)
  assert path.read_text() == 'run,policy,x,y\nbase,BC,1,\nb,BC,,2\n'


def test_tables_are_those_of_the_committed_rows(tmp_path, monkeypatch):
  committed = _BENCHMARKS.parent / 'docs' / 'results' / 'family'
  line = ['family_tables.py', f'--rows={committed}', f'--out={tmp_path}']
  monkeypatch.setattr('sys.argv', line)
  family_tables.main()
  made = {path.name for path in tmp_path.iterdir()}
  assert made == {p.name for p in committed.iterdir() if p.suffix != '.csv'}
  for page in committed.glob('*.md'):
    assert (tmp_path / page.name).read_text() == page.read_text()


def test_runs_of_a_seed_share_base_and_nothing_else(tmp_path):
  places = {
    (task, table, name): family.place(tmp_path / task, table, name)
    for task, table, name in _RUNS
  }
  assert len(set(places.values())) == len(places)
  for table in ('losses', 'thresholds'):
    assert family.place(tmp_path, table, 'base') == tmp_path / 'base'


def test_what_base_made_alike_is_copied_once_it_is_committed(tmp_path):
  base, run = tmp_path / 'base', tmp_path / 'losses' / 'dpo'
  evaluation = 'supervised/evaluation/report'
  (base / evaluation).mkdir(parents=True)
  family.copy_repeated(family.Variant(), base, run)
  assert not run.exists()
  (base / evaluation / 'stage.json').write_text('{}')
  family.copy_repeated(family.Variant(), base, run)
  assert (run / evaluation / 'stage.json').read_text() == '{}'
  (run / evaluation / 'stage.json').write_text('its own')
  family.copy_repeated(family.Variant(), base, run)
  assert (run / evaluation / 'stage.json').read_text() == 'its own'
  # A policy without its evaluations.
  policy = base / 'grow_1' / 'improve_0'
  (policy / 'evaluation').mkdir(parents=True)
  (policy / 'stage.json').write_text('{}')
  more = tmp_path / 'best_of_n' / 'best_of_n'
  family.copy_repeated(family.Variant(repeats='policies'), base, more)
  copied = [path.name for path in (more / 'grow_1' / 'improve_0').iterdir()]
  assert copied == ['stage.json']
  assert not (more / 'supervised').exists()
  # Two Grow steps begin with the whole of the first.
  two = tmp_path / 'table_1' / 'two_grows'
  family.copy_repeated(family.Variant(repeats='steps'), base, two)
  copied = {path.name for path in (two / 'grow_1' / 'improve_0').iterdir()}
  assert copied == {'evaluation', 'stage.json'}
  assert (two / evaluation / 'stage.json').exists()


def test_value_models_are_told_with_the_rows_of_their_run(tmp_path):
  (tmp_path / 'a' / 'grow_1' / 'value').mkdir(parents=True)
  (tmp_path / 'a' / 'results.csv').write_text('policy,x\nBC,1\nG1 I1,2\n')
  counts = {'rows': 7, 'rows_kendall': 0.5, 'held_out_spearman': 0.25}
  path = tmp_path / 'a' / 'grow_1' / 'value' / 'stage.json'
  path.write_text(json.dumps({'counts': counts}))
  files = {'a': tmp_path / 'a' / 'results.csv'}
  family_rows.gather(files, tmp_path / 'rows.csv')
  assert (tmp_path / 'rows.csv').read_text() == (
    'run,policy,x,value_rows_kendall,value_held_out_spearman\n'
    'a,BC,1,,\na,G1 I1,2,0.5000,0.2500\n'
  )


@pytest.mark.parametrize(
  ('candidate', 'rewards'),
  [
    # brevity, verbosity, fluency, precision, window
    ('forty-two thousand and seven', (2 / 3, 1 / 3, 1.0, 1.0, 1.0)),
    ('forty-two thousand', (5 / 6, 1 / 6, 1.0, 1.0, 1.0)),
    ('forty-two seven seven', (3 / 4, 1 / 4, 0.0, 2 / 3, 0.5)),
    ('', (1.0, 0.0, 0.0, 0.0, 0.0)),
  ],
)
def test_faulty_rewards_have_their_faults(candidate, rewards):
  source = 'zweiundvierzigtausendsieben'
  for fault, expected in zip(faulty_rewards.FAULTS, rewards, strict=True):
    found = faulty_rewards.Faulty(fault).score([source], [candidate])
    assert found == pytest.approx([expected]), fault


def _row(run, policy, reward, truth, bleu):
  return {
    'run': run,
    'split': 'report',
    'policy': policy,
    'reward_mean': str(reward),
    'numeral_value_mean': str(truth / 100),
    'numeral_value_greedy': str(truth / 100),
    'bleu': str(bleu),
    'chrf': str(bleu),
  }


def test_the_alarms_table_counts_harm_that_was_and_was_not_seen():
  faults = ('right', *faulty_rewards.FAULTS)
  rows = [_row(fault, 'BC', 50, 80, 90) for fault in faults]
  rows += [_row('base', 'BC', 50, 80, 90)]
  for fault, truth, bleu in (
    ('right', 81, 89.9),  # Rings for noise.
    ('brevity', 70, 80.0),
    ('verbosity', 70, 91.0),  # Harm that the alarm does not see.
    ('fluency', 81, 91.0),
    ('precision', 79.8, 91.0),  # A little harm is none, and not its absence.
    ('window', 80, 90.0),
  ):
    rows.append(_row(fault, 'G1 I1', 60, truth, bleu))
  lines, _ = family_alarm.tables({3: rows})
  told = {line.split(' | ')[0][2:]: line for line in lines if '| 3 | +' in line}
  assert list(told) == list(faults)
  assert told['right'].endswith('| – | G1 | – | – | – |')
  assert told['brevity'].endswith('| G1 | G1 | G1 | 0 | 0 |')
  assert told['verbosity'].endswith('| G1 | – | – | missed | missed |')
  assert '+10.0 | -0.2 | -0.2 | +1.0 | – | – | – | – | – |' in told['precision']
  assert lines[-2:] == [
    '| 0 | 2 | 1 | 1 | 0 | 3 | 1 |',
    '| 0.2 | 2 | 1 | 1 | 0 | 3 | 0 |',
  ]
