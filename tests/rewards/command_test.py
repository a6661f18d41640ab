"""Programs as rewards: what they read, what may go wrong, and their end."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import rest_jax
from rest_jax import config
from rest_jax.errors import ConfigurationError, RewardError
from rest_jax.rewards import command, scoring

_LENGTHS = """
  import json, sys
  for line in sys.stdin:
    row = json.loads(line)
    print(len(row['candidate']))
"""
ROWS = (['a', 'b', 'c'], ['x', 'xx', 'xxx'])


@pytest.fixture
def make(tmp_path):
  """Makes a command of a program's text; ends it after the test."""
  made = []

  def make_(program, *arguments, **fields):
    path = tmp_path / f'program_{len(made)}.py'
    path.write_text(textwrap.dedent(program))
    fields = {'high': 100.0, 'start_seconds': 20.0} | fields
    argv = (sys.executable, '-S', str(path), *arguments)
    made.append(command.Command(argv, 'program', '1', **fields))
    return made[-1]

  yield make_
  for one in made:
    one.close()


def _starts(path):
  return len(path.read_text().splitlines())


def test_scores_are_the_programs_and_it_is_kept_alive(make, tmp_path):
  log = tmp_path / 'starts'
  model = make(
    f'open({str(log)!r}, "a").write("started\\n")' + textwrap.dedent(_LENGTHS)
  )
  np.testing.assert_array_equal(model.score(*ROWS), [1, 2, 3])
  np.testing.assert_array_equal(model.score(['ä'] * 2, ['', 'ü\n']), [0, 2])
  assert model.score([], []).shape == (0,)
  assert _starts(log) == 1


def test_it_reads_all_fields_and_knows_where_a_batch_ends(make, tmp_path):
  seen = tmp_path / 'seen'
  model = make(
    f"""
    import sys
    with open({str(seen)!r}, 'w', buffering=1) as file:
      for line in sys.stdin:
        file.write(line)
        print(1)
    """,
    batch_size=2,
  )
  model.score(*ROWS, ['r', 'ö\u2028', 't'])
  first, *rows = map(json.loads, seen.read_text().split('\n')[:-1])
  # It is first asked one row alone.
  assert first == rows[0] | {'id': 0, 'left': 0}
  assert [row['left'] for row in rows] == [1, 0, 0]
  assert [row['id'] for row in rows] == [1, 2, 3]
  assert [row['reference'] for row in rows] == ['r', 'ö\u2028', 't']
  assert [row['candidate'] for row in rows] == ROWS[1]


def test_a_program_may_work_in_batches_and_echo_ids(make):
  model = make("""
    import json, sys
    rows = []
    for line in sys.stdin:
      rows.append(json.loads(line))
      if not rows[-1]['left']:
        for row in rows:
          print(row['id'], len(row['candidate']), sep='\\t')
        rows = []
  """)
  np.testing.assert_array_equal(model.score(*ROWS), [1, 2, 3])


def test_large_batches_pass_through_the_pipes(make):
  """Far more than pipes hold, with answers while it is still being asked."""
  candidates = ['x' * (i % 97) for i in range(5000)]
  model = make(_LENGTHS, batch_size=5000)
  scores = model.score(['s' * 100] * 5000, candidates)
  np.testing.assert_array_equal(scores, [len(c) for c in candidates])


def test_directory_and_environment_are_its_own(make, tmp_path, monkeypatch):
  monkeypatch.setenv('PYTHONPATH', '/ours')
  model = make(
    """
    import os, sys
    good = (os.getcwd() == sys.argv[1] and os.environ['METRIC'] == 'kiwi'
            and 'PYTHONPATH' not in os.environ)
    for line in sys.stdin:
      print(int(good))
    """,
    os.path.realpath(tmp_path),
    directory=str(tmp_path),
    environment={'METRIC': 'kiwi'},
  )
  np.testing.assert_array_equal(model.score(['a'], ['x']), [1])


@pytest.mark.parametrize(
  ('program', 'said'),
  [
    # Garbage, the second time and the first.
    ("print('1' if n < 3 else 'good')", "answered 'good' instead.*row 3"),
    ("print('Loading weights')", "answered 'Loading weights'.*its first row"),
    ("print('nan')", "'nan', which is no number"),
    ("print('1 2 3')", "answered '1 2 3'"),
    ("print(chr(7) * 200000)", 'instead of a score'),
    # Counts and order.
    ("print('1\\n2')", 'more than 1 answers'),
    ("print('1\\n2' if row['left'] == 0 and n > 0 else 1)", 'more than 3'),
    ("print(row['id'] if n < 2 else row['id'] + 1, 1)", 'id 3 where.*id 2'),
    # Neither an end nor an answer.
    ("n == 2 and time.sleep(60); print(1)", '1 of 3 answers in 0.5 s.*row 2'),
    ("n == 3 or print(1)", '2 of 3 answers in 0.5 s.*row 3'),
  ],
)  # fmt: skip
def test_what_a_program_does_wrong_is_named(make, program, said):
  model = make(
    f"""
    import json, sys, time
    print('a warning', file=sys.stderr)
    for n, line in enumerate(sys.stdin):
      row = json.loads(line)
      {program}
    """,
    batch_seconds=0.5,
  )
  with pytest.raises(RewardError, match=said) as caught:
    model.score(*ROWS)
  for part in ("reward 'program'", 'program_0.py', "(source '", 'a warning'):
    assert part in str(caught.value)
  assert '\n' not in str(caught.value)


def test_a_late_answer_too_many_is_found_at_the_next_call(make):
  model = make("""
    import sys, time
    for n, line in enumerate(sys.stdin):
      print(1)
      if n == 3:
        time.sleep(0.2)
        print(7)
  """)
  model.score(*ROWS)
  time.sleep(0.5)
  with pytest.raises(RewardError, match="wrote '7' unasked"):
    model.score(*ROWS)


def test_a_program_that_dies_is_started_again(make, tmp_path):
  log = tmp_path / 'starts'
  program = f"""
    import sys, os
    open({str(log)!r}, 'a').write('started\\n')
    starts = len(open({str(log)!r}).readlines())
    for n, line in enumerate(sys.stdin):
      if n == 2 and starts <= int(sys.argv[1]):
        sys.exit('out of memory')
      print(n)
  """
  # The first row was asked before, alone.
  np.testing.assert_array_equal(make(program, '2').score(*ROWS), [1, 2, 3])
  assert _starts(log) == 3
  log.unlink()
  with pytest.raises(
    RewardError,
    match=r'status 1 after 1 answers after 2 restarts, at row 2.*out of memory',
  ):
    make(program, '9').score(*ROWS)
  assert _starts(log) == 3


def test_a_program_that_cannot_start_is_not_tried_again(make, tmp_path):
  log = tmp_path / 'starts'
  model = make(f"""
    open({str(log)!r}, 'a').write('started\\n')
    raise ImportError('no module comet')
  """)
  with pytest.raises(RewardError, match=r'status 1 after 0.*no module comet'):
    model.score(*ROWS)
  assert _starts(log) == 1
  absent = command.Command(('no-such-program',), 'absent', '1')
  with pytest.raises(RewardError, match="cannot start 'no-such-program'"):
    absent.score(*ROWS)
  nowhere = command.Command(('cat',), 'x', '1', directory=f'{tmp_path}/none')
  with pytest.raises(RewardError, match=r'correct Command\.directory'):
    nowhere.score(*ROWS)


def test_scores_out_of_range_and_missing_references(make):
  with pytest.raises(RewardError, match=r"'program' gave 3.0 for row 2"):
    scoring.raw_scores(make(_LENGTHS, high=2.5), *ROWS, None)
  with pytest.raises(RewardError, match='needs references'):
    make(_LENGTHS, needs_reference=True).score(*ROWS)


@pytest.mark.parametrize(
  ('fields', 'said'),
  [
    ({'argv': ()}, 'argv is empty'),
    ({'batch_size': 0}, 'batch_size = 0'),
    ({'batch_seconds': 0.0}, 'batch_seconds = 0.0'),
    ({'restarts': -1}, 'restarts = -1'),
    ({'low': 1.0}, 'range'),
    ({'name': 'a/b'}, 'cannot name a folder'),
  ],
)
def test_settings_are_checked(fields, said):
  with pytest.raises(ConfigurationError, match=said):
    command.Command(**{'argv': ('cat',), 'name': 'x', 'version': '1'} | fields)


def test_what_changes_no_score_makes_no_stage_stale():
  one = command.Command(('cat',), 'x', '1')
  other = command.Command(
    ('cat',), 'x', '1', batch_size=3, environment={'A': 'b'}, restarts=0
  )
  config.check_types(one)
  assert config.flatten(one, 'r') == config.flatten(other, 'r')
  assert config.flatten(one, 'r')['r.argv[0]'] == 'cat'


# --- Ends --------------------------------------------------------------------

_TALE = """
  import os, subprocess, sys, time
  # A child of its own, and deaf to all but SIGKILL.
  import signal
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  child = subprocess.Popen([sys.executable, '-S', '-c',
                            'import time; time.sleep(600)'])
  with open(sys.argv[1], 'w') as file:
    print(os.getpid(), child.pid, file=file)
  print(1)
  sys.stdin.readline()
  print(1)
  time.sleep(600)
"""
_RUN = """
import sys
from rest_jax.rewards import command
model = command.Command(tuple(sys.argv[1:]), 'tale', '1', batch_seconds=60.0)
print('scoring', flush=True)
model.score(['a'], ['x'])
"""


def _gone(pid):
  try:
    state = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2]
  except (FileNotFoundError, ProcessLookupError):  # It may go as it is read.
    return True
  return state.split()[0] == 'Z'  # Dead; nobody here reaps it.


def _wait_until(true, seconds=15.0):
  deadline = time.monotonic() + seconds
  while not true():
    assert time.monotonic() < deadline
    time.sleep(0.02)


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_a_run_that_is_killed(tmp_path, number):
  program, pids = tmp_path / 'tale.py', tmp_path / 'pids'
  program.write_text(textwrap.dedent(_TALE))
  root = pathlib.Path(rest_jax.__file__).parents[1]
  run = subprocess.Popen(
    [sys.executable, '-c', _RUN, sys.executable, '-S', program, pids],
    env=dict(os.environ, PYTHONPATH=str(root)),
    stdout=subprocess.PIPE,
  )
  try:
    _wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    numbers = [int(pid) for pid in pids.read_text().split()]
    assert not any(map(_gone, numbers))
    run.send_signal(number)
    run.wait(10)
    _wait_until(lambda: all(map(_gone, numbers)))
  finally:
    run.kill()
    run.communicate()


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_it_ends_with_its_reward_model(make, tmp_path):
  pid_file = tmp_path / 'pid'
  model = make(
    f'import os; open({str(pid_file)!r}, "w").write(str(os.getpid()))'
    + textwrap.dedent(_LENGTHS)
  )
  model.score(*ROWS)
  pid = int(pid_file.read_text())
  assert not _gone(pid)
  model.close()
  assert _gone(pid)
  np.testing.assert_array_equal(model.score(*ROWS), [1, 2, 3])
