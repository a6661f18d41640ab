"""The check before Grow, combined rewards and commands, through the real main.

Nothing here trains or decodes: what that makes is taken from the tiny run.
"""

import json
import re
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import running

from rest_jax.data import store

_CHECKED = f'--gin_file={running.TESTING / "checked.gin"}'
_WORDY = '--gin.REWARD=@checked_rewards.Wordy()'
_STOP = '--gin.check_reward.CheckReward.stop_run=True'
_PRODUCT = (
  '--gin.REWARD=@combined.Product()',
  '--gin.combined.Product.parts=(@tiny_reward.SharedLetters(),'
  ' @penalties.Length(), @penalties.Repetition())',
)
_LETTERS = ('--gin.REWARD=@command.Command()',)


@pytest.fixture
def prepared(whole_run, tmp_path, monkeypatch):
  """A run that has its data and nothing else."""
  monkeypatch.syspath_prepend(str(running.TESTING))
  run = tmp_path / 'run'
  shutil.copytree(whole_run.folder / 'data', run / 'data')
  return run


def main(run, *flags):
  return running.within(
    running.TINY, _CHECKED, f'--gin.MODEL_DIR={run}', *flags
  )


def started(ended):
  return re.findall(r'^\[(\S+)\] starting$', ended.stderr, re.MULTILINE)


def row_of(table, name):
  (row,) = re.findall(rf'^ *{name} +(.*)$', table, re.MULTILINE)
  return row.split()


def error(ended, code=5):
  assert ended.code == code, ended
  return ended.stderr.splitlines()[-1]


# --- The check --------------------------------------------------------------


def test_a_good_reward_passes(prepared):
  ended = main(
    *(prepared, '--run_mode=check_reward', _STOP),
    '--gin.REWARD=@numerals.NumeralValue()',
  )
  assert ended.code == 0, ended.stderr
  assert started(ended) == ['check_reward/references']
  assert 'numeral_value on spoiled references of D_select' in ended.stdout
  assert 'FAILS' not in ended.stdout
  texts, left_out, _, falls, *_ = row_of(ended.stdout, 'repeat')
  assert int(texts) >= 10
  assert (left_out, falls) == ('0', '100.0')
  # Numbers are words here.
  assert row_of(ended.stdout, 'drop_number')[:2] == ['0', texts]
  assert not (prepared / 'check_reward/candidates').exists()
  spoiled = pq.read_table(prepared / 'check_reward/references/spoiled.parquet')
  kept = json.loads(
    (prepared / 'check_reward/references/stage.json').read_text()
  )
  assert kept['counts'] == {'texts': int(texts), 'spoiled': spoiled.num_rows}
  assert kept['extra']['invariance'] == {
    'batch size': 0, 'order': 0, 'padding': 0
  }  # fmt: skip


def test_a_reward_that_repeating_raises_stops_the_run(prepared, whole_run):
  flags = (prepared, _WORDY, _STOP)
  ended = main(*flags, '--run_mode=check_reward')
  line = error(ended)
  assert line.startswith("RewardError: the reward 'wordy' does not fall")
  assert 'repeat: falls for 0 % of' in line
  assert 'must for 90 %' in line
  assert row_of(ended.stdout, 'repeat')[-1] == 'FAILS'
  assert row_of(ended.stdout, 'truncate')[-1] != 'FAILS'
  assert re.search(r"^repeat: '.*' → '.*': 0\.\d+; ", ended.stdout, re.M)

  # Grow refuses to begin, from what is committed.
  grow = (*flags, '--run_mode=grow')
  bc = f'--gin.SUPERVISED_FROM={whole_run.folder}'
  ended = main(*grow, bc)
  assert 'repeat: falls for 0 %' in error(ended)
  assert started(ended) == ['grow_1/samples']
  assert not list((prepared / 'grow_1/samples').glob('*.parquet'))

  # What it has to be can change without measuring again.
  names = ('Repeat', 'Shuffle', 'AddPunctuation')
  lenient = [f'--gin.perturbations.{n}.min_fall_rate=0.0' for n in names]
  ended = main(*flags, '--run_mode=check_reward', *lenient)
  assert (ended.code, started(ended)) == (0, []), ended
  ended = main(prepared, _WORDY, '--run_mode=check_reward')  # stop_run False.
  assert (ended.code, started(ended)) == (0, [])
  assert 'FAILS' in ended.stdout


def test_another_reward_in_the_same_place_is_an_error(prepared):
  assert main(prepared, _WORDY, '--run_mode=check_reward').code == 0
  ended = main(
    *(prepared, '--run_mode=check_reward'),
    '--gin.REWARD=@numerals.NumeralValue()',
  )
  line = error(ended, 2)
  assert 'stage check_reward/references' in line
  assert 'check_reward/references to check again' in line


def test_a_whole_run_checks_references_and_outputs_of_bc(whole_run, tmp_path):
  """Its reward, a set of letters, fails; but it was told to go on."""
  run = running.copy_of(whole_run.folder, tmp_path / 'run')
  ended = running.within(
    running.TINY, f'--gin.MODEL_DIR={run}', '--run_mode=check_reward'
  )
  assert (ended.code, started(ended)) == (0, [])
  assert 'spoiled references of D_select' in ended.stdout
  assert "spoiled BC's outputs on D_report" in ended.stdout
  assert row_of(ended.stdout.partition('BC')[0], 'repeat')[-1] == 'FAILS'
  assert 'shared_letters on references of D_select: repeat' in whole_run.stderr


def test_no_grow_has_nothing_to_check(prepared):
  ended = main(prepared, '--run_mode=check_reward', '--gin.NUM_GROW=0')
  assert 'NUM_GROW = 0' in error(ended, 2)


# --- Combined rewards -------------------------------------------------------


def scores(folder):
  tables = [pq.read_table(path) for path in store.part_paths(folder)]
  return pa.concat_tables(tables)['score'].to_numpy()


def test_parts_are_scored_once_and_stored_under_their_names(
  whole_run, prepared
):
  flags = (prepared, '--run_mode=annotate', *_PRODUCT)
  flags = (*flags, f'--gin.GROW_FROM={whole_run.folder}')
  ended = main(*flags)
  assert ended.code == 0, ended.stderr
  made = [
    *('length_penalty', 'repetition_penalty', 'product'),
  ]
  # The scores of shared_letters are there already, in the other run.
  assert started(ended) == [
    *(f'grow_1/scores/{name}' for name in made),
    'grow_1/reward',
  ]
  letters = scores(whole_run.folder / 'grow_1/scores/shared_letters')
  length, repetition, product = (
    scores(prepared / f'grow_1/scores/{name}') for name in made
  )
  np.testing.assert_allclose(product, letters * length * repetition, rtol=1e-6)
  np.testing.assert_array_equal(scores(prepared / 'grow_1/reward'), product)
  assert (product < letters).any()

  # A further metric touches nothing that is there.
  before = running.digests(prepared)
  ended = main(
    *flags,
    '--gin.annotate.Annotate.further_metrics=(@numerals.NumeralValue(),)',
  )
  assert started(ended) == ['grow_1/scores/numeral_value']
  assert before.items() <= running.digests(prepared).items()


def test_parts_of_one_name_must_be_one(prepared):
  ended = main(
    prepared,
    *_PRODUCT,
    '--gin.annotate.Annotate.further_metrics=(@other/penalties.Length(),)',
    '--gin.other/penalties.Length.high=3.0',
  )
  assert "'length_penalty' have other settings" in error(ended, 2)


# --- Commands ---------------------------------------------------------------


@pytest.fixture
def letters(whole_run, prepared, tmp_path):
  """Annotates the tiny run's samples by a program; returns how main ended.

  What it is called with goes wrong in the program.
  """
  said = tmp_path / 'wrong'
  program = (sys.executable, '-S', str(running.TESTING / 'letters.py'))

  def annotate(wrong=None, folder=prepared):
    said.unlink(missing_ok=True)
    if wrong:
      # A sample of the last part with samples.
      path = store.part_paths(whole_run.folder / 'grow_1/samples')[2]
      at = pq.read_table(path)['target'].to_pylist()[3]
      said.write_text(f'{wrong}\n{at}')
    return main(
      *(folder, '--run_mode=annotate', *_LETTERS),
      f'--gin.GROW_FROM={whole_run.folder}',
      f'--gin.command.Command.argv={(*program, str(said))!r}',
      '--gin.command.Command.name=letters',
      '--gin.command.Command.version="1"',
      '--gin.command.Command.batch_seconds=0.7',
      '--gin.command.Command.batch_size=8',
    )

  return annotate


@pytest.mark.parametrize(
  ('wrong', 'said'),
  [
    ('die', 'ended with status 3 .*after 2 restarts'),
    ('hang', r'answers in 0\.7 s'),
    ('garbage', "answered 'good' instead of a score"),
    ('few', r'answers in 0\.7 s'),
    ('many', 'gave more than'),
  ],
)
def test_a_command_that_fails_loses_nothing(
  letters, whole_run, prepared, wrong, said
):
  line = error(letters(wrong))
  assert re.search(said, line), line
  assert 'letters.py' in line
  assert 'stderr: scoring' in line
  kept = prepared / 'grow_1/scores/letters'
  before = running.digests(kept)
  assert len(before) == 2  # The parts before.
  assert not (kept / 'stage.json').exists()
  ended = letters()
  assert ended.code == 0, ended.stderr
  assert before.items() <= running.digests(kept).items()
  # The same as by the reward within the process.
  wanted = whole_run.folder / 'grow_1/scores/shared_letters'
  assert running.digests(kept) == running.digests(wanted)
