"""`--run_mode=plan` as a user has it, on this machine's devices.

The real main, with the CPU's compiler in place of the TPU's; what that one says
is in planning/compiled_test.py.
"""

import re

import jax
import pytest
import running

from rest_jax import plan
from rest_jax.planning import estimate, topology
from rest_jax.planning.chips import CHIPS
from rest_jax.planning.costs import Costs
from rest_jax.planning.estimate import Floor, Work

XXL = (
  '--gin_file=wmt20.gin',
  '--gin_file=models/mt5_xxl.gin',
  '--gin.DATA_DIR=/nowhere',
  '--gin.ACTIVATION_DTYPE=bfloat16',  # After the size file, which resets it.
  '--gin.REMAT=full',
  '--gin.BATCH_ROWS=1024',
)


@pytest.fixture
def here(monkeypatch):
  """This machine's 8 devices stand for a slice of 8 chips."""
  monkeypatch.setattr(topology, 'devices', lambda where: tuple(jax.devices()))


def planned(tmp_path, *arguments):
  return running.within(
    running.TINY,
    f'--gin.MODEL_DIR={tmp_path}/run',
    '--run_mode=plan',
    *arguments,
  )


def table(page, title):
  """The rows of the table under a heading, as lists of cells."""
  section = page.partition(f'## {title}')[2].partition('\n## ')[0]
  rows = [line for line in section.splitlines() if line.startswith('| ')]
  return [[cell.strip() for cell in row[2:-2].split(' | ')] for row in rows[2:]]


@pytest.mark.slow
def test_the_page_tells_everything_and_makes_nothing(tmp_path, here):
  ended = planned(
    tmp_path,
    '--topology=v5e:2x4',
    '--gin.MODEL_PARALLEL=2',
    '--gin.NUM_MICROBATCHES=2',
  )
  assert (ended.code, ended.stderr) == (0, '')
  assert not (tmp_path / 'run').exists()
  page = ended.stdout
  assert '--run_mode=plan --topology=v5e:2x4' in page
  assert 'data 4 × model 2' in page and 'Improve fits' in page
  assert 'Grow fits' in page and 'worked out from Grow, fits' in page
  memory = {row[0]: row[1:] for row in table(page, 'Memory of a chip')}
  assert memory['a chip has'] == ['16.00', '16.00']
  times = {row[0]: row for row in table(page, 'Operations')}
  assert set(times) == {'an update', 'Grow: encoding', 'Grow: one step'}
  for row in times.values():
    bounds = [float(cell) for cell in row[4:7]]
    assert float(row[7]) == max(bounds)
    assert row[8] in ('compute', 'memory', 'collectives')
  kinds = {(row[0], row[1]) for row in table(page, 'Collectives')}
  assert ('an update', 'all-reduce') in kinds  # Of layers and of gradients.
  assert ('Grow: one step', 'all-reduce') in kinds
  hours = {row[0]: row[1] for row in table(page, 'How long')}
  assert hours['BC'] == '6 updates'
  # G1 I0, G1 I1, BC+ twice, and random once: 5 trainings of 4 updates.
  assert hours['Improve'] == '20 updates'
  # The numerals' split names no number of rows.
  assert hours['Grow'] == '1 × all sources × 2'
  assert hours['evaluation in training'] == '240 samples'


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ((), '--topology= is unknown; write a chip of'),
    (('--topology=v5e:3y3',), '--topology=v5e:3y3 is unknown'),
    (('--topology=v5e:2x2x2',), 'slices of v5e have 2 dimensions'),
    (('--topology=v5e:2x4', '--gin.MODEL_PARALLEL=3'), 'does not divide 8'),
    (('--topology=v5e:2x4', '--gin.sharding.Layout.data=2'), 'uses 2 of 8'),
    (('--topology=v5e:2x4', '--gin.BATCH_ROWS=12'), 'set BATCH_ROWS to a'),
    (('--topology=v5e:2x4', '--gin.MODEL_PARALLEL=4'), 'AxisRules.heads'),
  ],
)
def test_what_cannot_be_planned_is_one_line(tmp_path, here, arguments, message):
  ended = planned(tmp_path, *arguments)
  assert ended.code == 2
  assert message in ended.stderr
  assert ended.stderr.count('\n') == 1 and ended.stdout == ''


def test_without_libtpu_it_says_how_to_get_it(tmp_path, monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  ended = planned(tmp_path, '--topology=v5e:2x4')
  assert ended.code == 2
  assert "pip install '.[plan]'" in ended.stderr


def test_all_compares_slices_and_picks_one():
  ended = running.within(*XXL, '--run_mode=plan', '--topology=all')
  assert (ended.code, ended.stderr) == (0, '')
  rows = {
    row[0]: row
    for row in (
      [cell.strip() for cell in line[2:-2].split(' | ')]
      for line in ended.stdout.splitlines()
      if line.startswith('| v')
    )
  }
  assert 'does not fit' in rows['v5e:2x2'][2]  # 52 GB of parameters alone.
  assert 'FSDP' in rows['v5e:16x16'][2]
  # More chips of a kind are never slower.
  hours = [
    float(rows[f'v5e:{s}'][9].replace(',', '')) for s in ('8x8', '16x16')
  ]
  assert hours[1] < hours[0]
  fitting = [row for row in rows.values() if 'does not fit' not in row[2]]
  picked = re.search(r'The fewest chips: (\S+),', ended.stdout)[1]
  assert int(rows[picked][1]) == min(int(row[1]) for row in fitting)


def test_a_floor_is_the_slowest_of_three():
  costs = Costs(197e12, 2 * 819e9, {'all-reduce': (1.0, 1.0, 0.5 * 200e9)})
  floor = Floor.of(costs, CHIPS['v5e'])
  assert (floor.compute, floor.memory, floor.collectives) == (1.0, 2.0, 0.5)
  assert floor.seconds == 2.0 and floor.bound == 'memory'


def test_hours_are_work_by_rates():
  work = Work(3600, 7200, 1000, 25, 2, 500)
  hours = estimate.hours(work, supervised=2.0, improve=0.5, samples=10.0)
  assert hours.supervised == 2.0 and hours.improve == 1.0
  assert hours.grow == pytest.approx(2 * 1000 * 25 / 10 / 3600)
  assert hours.total == pytest.approx(3.0 + 5000 / 3600 + 50 / 3600)
  unknown = estimate.hours(Work(3600, 7200, None, 25, 2, 500), 2.0, 0.5, 10.0)
  assert unknown.grow is None and unknown.total < hours.total
  start, step = Floor(0.5, 0.0, 0.0), Floor(0.0, 0.01, 0.0)
  assert estimate.samples_per_second(start, step, 50, 200) == 200.0


@pytest.mark.parametrize(
  ('expression', 'rows'),
  [('train', None), ('train[:50%]', None), ('train[100:350]', 250)],
)
def test_sources_are_counted_where_the_split_names_them(expression, rows):
  assert plan.rows_of(expression) == rows
