"""What processes tell each other, without other processes."""

import contextlib
import json
import math
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from rest_jax import (
  cluster,
  evaluate,
  fingerprints,
  generation,
  grow,
  hosts,
  job,
  parts,
  preemption,
  rewarded,
  select_reward,
  stages,
)
from rest_jax.context import Context
from rest_jax.errors import (
  ConfigurationError,
  DataError,
  HostsError,
  PreemptionError,
  RestJaxError,
  RewardError,
  StorageError,
)
from rest_jax.models.config import T5Config
from rest_jax.policy import Policy
from rest_jax.rewards import lexical
from rest_jax.run_directory import RunDirectory


class Service:
  """JAX's coordination service, as far as `hosts` knows it."""

  def __init__(self):
    self.values: dict[str, str] = {}
    self.changed = threading.Condition()

  def key_value_set(self, key, value, allow_overwrite=False):
    with self.changed:
      if key in self.values and not allow_overwrite:
        raise RuntimeError(f'ALREADY_EXISTS: {key}')
      self.values[key] = value
      self.changed.notify_all()

  def key_value_try_get(self, key):
    with self.changed:
      if key not in self.values:
        raise RuntimeError(f'NOT_FOUND: {key}')
      return self.values[key]

  def blocking_key_value_get(self, key, timeout_in_ms):
    with self.changed:
      if not self.changed.wait_for(
        lambda: key in self.values, timeout_in_ms / 1000
      ):
        raise RuntimeError(f'DEADLINE_EXCEEDED: {key}')
      return self.values[key]

  def key_value_dir_get(self, folder):
    with self.changed:
      return [(k, v) for k, v in self.values.items() if k.startswith(folder)]

  def key_value_delete(self, key):
    with self.changed:
      for name in [name for name in self.values if name.startswith(key)]:
        del self.values[name]


@pytest.fixture
def service(monkeypatch):
  monkeypatch.setattr(job, 'POLL_SECONDS', 0.05)
  yield Service()
  hosts.become(None)


def become(service, index, names=('a', 'b', 'c'), barrier_seconds=0.3):
  hosts.become(job.Job(service, index, list(names), 1, barrier_seconds))


def others_say(service, turn, what, values):
  """Sets what processes 1 … would, with their own values."""
  for index, value in enumerate(values, 1):
    service.key_value_set(
      f'rest_jax/turn/{turn}/{index}', json.dumps([what, value])
    )


def test_alone_everything_is_what_it_was():
  assert (hosts.index(), hosts.count(), hosts.is_first()) == (0, 1, True)
  assert hosts.gather('x', {'a': 1}) == [{'a': 1}]
  assert hosts.on_first(lambda: (1, 2)) == (1, 2)
  assert hosts.share(5) == slice(0, 5)
  assert list(hosts.mine('abc')) == ['a', 'b', 'c']
  rows = np.ones((2, 3))
  assert hosts.gather_rows(rows, 2) is rows
  assert hosts.gather_each([rows, rows[:1]], 2)[0] is rows
  np.testing.assert_array_equal(hosts.fetch(jnp.ones(2)), np.ones(2))
  hosts.check_same('x', {'name': 'text'})
  hosts.fail(RewardError('nobody hears it'))
  cluster.leave(0)


def test_the_first_gathers_and_tells(service):
  others_say(service, 0, 'numbers', [1, 2])
  become(service, 0)
  assert hosts.gather('numbers', 0) == [0, 1, 2]
  become(service, 2)
  service.key_value_delete('rest_jax/turn/0/2')
  assert hosts.gather('numbers', 2) == [0, 1, 2]


def test_what_all_have_read_is_deleted(service):
  become(service, 0, ['a'])
  for turn in range(5):
    hosts.gather('x', turn)
    hosts.on_first(lambda: 'y')
  kept = [key for key in service.values if not key.startswith('rest_jax/left')]
  assert kept == ['rest_jax/result/8', 'rest_jax/result/9']


def test_who_is_missing_is_named_and_all_are_told(service):
  others_say(service, 0, 'the end', [None])
  become(service, 0)
  with pytest.raises(
    HostsError, match=r'^process 2 on c did not come'
  ) as error:
    hosts.gather('the end', None)
  assert error.value.exit_code == 9
  become(service, 1)
  service.key_value_delete('rest_jax/turn/0/1')
  with pytest.raises(HostsError, match='on a: HostsError: process 2 on c'):
    hosts.gather('the end', None)


def test_a_first_process_that_does_not_come_is_named(service):
  service.key_value_set('rest_jax/turn/0/2', json.dumps(['the end', None]))
  become(service, 1)
  with pytest.raises(HostsError, match=r'^process 0 on a did not come to'):
    hosts.gather('the end', None)


def test_a_first_process_that_is_there_tells_who_is_missing(service):
  """It came later, so its limit ends later than that of the others."""
  service.key_value_set('rest_jax/turn/0/0', json.dumps(['the end', None]))
  told = threading.Timer(
    1.5, service.key_value_set, ('rest_jax/result/0', '[1, 2, 3]')
  )
  told.start()
  become(service, 1, barrier_seconds=0.05)
  assert hosts.gather('the end', None) == [1, 2, 3]
  told.join()


@contextlib.contextmanager
def getting_on(service, *numbers):
  """These processes say so all the time."""
  ended = threading.Event()

  def say():
    steps = 0
    while not ended.wait(0.01):
      steps += 1
      for number in numbers:
        service.key_value_set(f'rest_jax/progress/{number}', f'{steps}', True)

  thread = threading.Thread(target=say)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()


@pytest.mark.parametrize('index, other', [(0, 1), (1, 0)])
def test_who_gets_on_no_more_is_named(service, index, other):
  service.key_value_set('rest_jax/progress/2', '5')
  become(service, index, barrier_seconds=0.05)
  with (
    getting_on(service, other),
    pytest.raises(HostsError, match=r'^process 2 on c did not come'),
  ):
    hosts.gather('the end', None)


@pytest.mark.parametrize('index', [0, 1])
def test_who_gets_on_is_waited_for(service, index):
  def come():
    if index:
      service.key_value_set('rest_jax/result/0', '[7, 7, 7]')
    else:
      others_say(service, 0, 'the end', [7, 7])

  become(service, index, barrier_seconds=0.05)
  coming = threading.Timer(1.5, come)  # Many times the limit.
  coming.start()
  with getting_on(service, *{0, 1, 2} - {index}):
    assert hosts.gather('the end', 7) == [7, 7, 7]
  coming.join()


def test_it_says_that_it_gets_on_and_hears_of_failures(service):
  become(service, 1)
  assert not hosts.get_on('sign')
  assert service.values['rest_jax/progress/1'] == '1'
  hosts.job().next_look = math.inf
  assert not hosts.get_on('sign')  # Too soon to say more.
  assert service.values['rest_jax/progress/1'] == '1'
  hosts.job().next_look = 0
  service.key_value_set('sign', '')
  assert hosts.get_on('sign')
  assert service.values['rest_jax/progress/1'] == '2'
  become(service, 2)
  hosts.fail(KeyboardInterrupt())
  become(service, 1)
  with pytest.raises(HostsError, match='process 2 on c') as error:
    hosts.get_on('sign')
  assert error.value.exit_code == 130


def test_signals_to_another_process_end_this_one(service):
  become(service, 1)
  preemption.check()
  hosts.job().next_look = math.inf
  service.key_value_set('RECEIVED_PREEMPTION_NOTICE', 'now')
  preemption.check()  # Too soon to look again, and before a stage is not.
  service.key_value_set('rest_jax/result/0', '[false, true, false]')
  with pytest.raises(PreemptionError):
    preemption.agree()
  assert json.loads(service.values['rest_jax/turn/0/1'])[1] is True
  hosts.job().next_look = 0
  with pytest.raises(PreemptionError):
    preemption.check()


def test_all_end_before_a_stage_or_none(service):
  become(service, 2)
  service.key_value_set('rest_jax/result/0', '[false, false, false]')
  preemption.agree()
  service.key_value_set('rest_jax/result/1', '[false, true, false]')
  with pytest.raises(PreemptionError):  # Another has heard, this one not yet.
    preemption.agree()


def test_processes_that_are_elsewhere_are_named(service):
  others_say(service, 0, 'Improve', [None, None])
  become(service, 0)
  with pytest.raises(HostsError, match="process 1 on b is at 'Improve'"):
    hosts.gather('Grow', None)


def test_an_error_ends_the_others_with_its_status(service):
  become(service, 1)
  hosts.fail(RewardError('R(x, y)\nis broken'))
  hosts.fail(RewardError('later'))  # The first counts.
  for index, wait in (
    (0, lambda: hosts.gather('x', None)),
    (2, lambda: hosts.gather('x', None)),
    (2, lambda: hosts.on_first(lambda: None)),
  ):
    become(service, index)
    with pytest.raises(
      HostsError, match=r'^process 1 on b: RewardError: R\(x, y\) is broken$'
    ) as error:
      wait()
    assert error.value.exit_code == RewardError.exit_code
    service.key_value_delete('rest_jax/turn')


def test_the_first_works_alone_and_the_others_get_its_result(service):
  become(service, 0)

  def work():
    # What it calls sees no other process.
    assert hosts.gather('x', 3) == [3]
    assert hosts.on_first(lambda: 4) == 4
    assert hosts.share(5) == slice(0, 5)
    assert list(hosts.mine(range(3))) == [0, 1, 2]
    return {'a': (1, 2)}

  assert hosts.on_first(work) == {'a': [1, 2]}
  become(service, 1)
  assert hosts.on_first(lambda: pytest.fail('not here')) == {'a': [1, 2]}
  become(service, 0)
  with pytest.raises(ZeroDivisionError):
    hosts.on_first(lambda: 1 // 0)
  assert hosts.share(6) == slice(0, 2)


@pytest.mark.parametrize('size', [0, 1, 2, 3, 7, 9])
def test_shares_are_all_and_disjoint(service, size):
  items, parts, taken = list(range(size)), [], []
  for index in range(3):
    become(service, index)
    parts += items[hosts.share(size)]
    taken += hosts.mine(items)
  assert parts == items
  assert sorted(taken) == items


def test_what_differs_is_named(service):
  become(service, 0)
  same = {'code': 'x', 'configuration': 'A = 1\nSEED = 0\nB = 2'}
  other = same | {'configuration': 'A = 1\nSEED = 7\nB = 2'}
  others_say(service, 0, 'the start', [same, other])
  with pytest.raises(ConfigurationError) as error:
    hosts.check_same('the start', same)
  assert str(error.value) == (
    'process 2 on c has another configuration than process 0 on a (-SEED = 0;'
    ' +SEED = 7): start the same command, with the same code and data, on all'
    ' hosts.'
  )


@pytest.mark.parametrize(
  'given, message',
  [
    ((None, 2, None), '--coordinator_address, --process_id must be given'),
    (('a:1', 2, 2), r'--process_id=2 must be in 0 … 1'),
    (('a:1', 2, -1), r'--process_id=-1 must be in 0 … 1'),
  ],
)
def test_flags_that_find_nobody(given, message):
  with pytest.raises(ConfigurationError, match=message):
    cluster.join(*given)
  assert hosts.count() == 1


def test_one_process_needs_no_cluster(monkeypatch):
  monkeypatch.setenv('SLURM_STEP_NUM_TASKS', '1')
  cluster.join()
  cluster.join('a:1', 1, 0)
  assert hosts.count() == 1


def test_the_first_goes_when_the_others_have_gone(service):
  service.key_value_set('rest_jax/left/1', '""')
  become(service, 0)
  hosts.job().heartbeat_seconds = 60
  hosts.job().lost = [2]  # Of which no more is heard.
  hosts.await_others()
  hosts.job().lost, hosts.job().heartbeat_seconds = [], 0.3
  began = time.monotonic()
  hosts.await_others()
  assert time.monotonic() - began >= 0.3
  become(service, 2)
  hosts.job().say_that_it_leaves()
  become(service, 0)
  hosts.job().heartbeat_seconds = 60
  hosts.await_others()


def test_parts_that_are_left_are_dealt(service, tmp_path):
  stage = RunDirectory(tmp_path).stage('grow_1/samples')
  stage.begin({}, {})
  names = [f'part-{number:05d}.parquet' for number in range(7)]
  for number in (0, 3, 4):  # As two processes have left them.
    stage.write_part(names[number], b'x', {'rows': number})
  service.key_value_set(
    'rest_jax/result/0',
    json.dumps([[names[6]], [names[1]], [names[2], names[5]]]),
  )
  become(service, 1)
  left, infos = parts.deal(stage, names)
  assert left == [names[2]]
  assert infos == {names[4]: {'rows': 4}}
  assert json.loads(service.values['rest_jax/turn/0/1'])[1] == [names[1]]
  assert stage.shared


def test_a_stage_has_the_parts_that_a_listing_does_not_show(tmp_path):
  stage = RunDirectory(tmp_path).stage('grow_1/samples')
  stage.begin({}, {})
  left, infos = parts.deal(stage, ['part-00000.parquet'])
  assert (left, infos, stage.shared) == (['part-00000.parquet'], {}, False)
  stage.write_part('part-00000.parquet', b'x', {'rows': 3})
  stage._files = list  # NFS, at times.
  parts.commit(stage, {'part-00000.parquet': {'rows': 3}}, ('rows',), 0.0)
  assert stage.manifest['counts'] == {'rows': 3}
  assert list(stage.manifest['files']) == ['part-00000.parquet']


def test_a_file_of_the_job_before_is_not_taken_for_this_ones(
  service, tmp_path, monkeypatch
):
  become(service, 1)
  path = epath.Path(tmp_path / 'mark')
  path.write_text('old')
  replaced = threading.Timer(0.3, path.write_text, ('new',))
  replaced.start()
  hosts.see(path, 'new')
  replaced.join()
  assert path.read_text() == 'new'
  monkeypatch.setattr(hosts, '_SEEN_SECONDS', 0.1)
  with pytest.raises(StorageError, match='a folder that all hosts share'):
    hosts.see(path, 'another')


def test_other_inputs_or_settings_of_a_stage_are_named(service, tmp_path):
  def plan(name):
    path = tmp_path / name
    path.write_text(name)
    return stages.StagePlan(
      'supervised', 'supervised', (), {'rate': 1}, print, together=True,
      files={'FILE': str(path)},
    )  # fmt: skip

  stage = RunDirectory(tmp_path).stage('supervised')
  service.key_value_set('rest_jax/result/0', 'false')
  become(service, 1)
  made, said = plan('mine'), plan('theirs')
  what = 'what supervised is made from'
  theirs = {
    'content of FILE': fingerprints.outside(said, stage)['FILE'],
    'setting of supervised': 'rate = 1',
  }
  mine = theirs | {'content of FILE': fingerprints.outside(made, stage)['FILE']}
  service.key_value_set('rest_jax/result/1', json.dumps([theirs, mine, mine]))
  with pytest.raises(
    ConfigurationError, match='process 1 on b has another content of FILE'
  ):
    fingerprints.check_inputs(made, stage)
  assert json.loads(service.values['rest_jax/turn/1/1']) == [what, mine]


def test_gke_tells_of_several_workers_where_libtpu_asks_for_none(monkeypatch):
  monkeypatch.setattr(cluster.importlib.util, 'find_spec', lambda name: name)
  monkeypatch.setenv('JAX_PLATFORMS', 'tpu')
  monkeypatch.setenv('TPU_SKIP_MDS_QUERY', 'true')
  for told, several in (('', False), ('localhost', False), ('a.x,b.x', True)):
    monkeypatch.setenv('TPU_WORKER_HOSTNAMES', told)
    assert cluster._on_tpu() == several


@pytest.mark.parametrize(
  'error, launched, message',
  [
    (ValueError('coordinator_address should be defined.'), '1', None),
    (ValueError('coordinator_address should be defined.'), '4', 'did not find'),
    (ConnectionError('metadata.google.internal\nis away'), '1', 'internal is'),
    # Who comes too late is waited for by starting again.
    (
      RuntimeError('DEADLINE_EXCEEDED: barrier'),
      '4',
      'did not find',
    ),
  ],
)
def test_where_jax_finds_no_others(error, launched, message, monkeypatch):
  def initialize(*args, **settings):
    raise error

  monkeypatch.setenv('SLURM_STEP_NUM_TASKS', launched)
  monkeypatch.setattr(cluster, '_on_tpu', lambda: True)
  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  before = jax.config.jax_cpu_collectives_implementation
  try:
    if message is None:
      cluster.join()
      assert jax.config.jax_cpu_collectives_implementation == before
    else:
      with pytest.raises(RestJaxError, match=message) as caught:
        cluster.join()
      late = 'DEADLINE' in str(error)
      assert caught.value.exit_code == (75 if late else 2)
  finally:
    jax.config.update('jax_cpu_collectives_implementation', before)
  assert hosts.count() == 1


@pytest.mark.parametrize('here', [False, True])
def test_an_evaluation_while_training_ends_in_all_or_in_none(
  here, service, monkeypatch
):
  """To save what was trained they must all be there."""

  def outputs(self, *_):
    if here:
      raise preemption.preempted()
    drawn = generation.Generated.empty(1, 1, 2)
    return rewarded.Outputs(np.zeros((1, 1), np.float32), [''], drawn)

  def one_source(self, *_):
    self.sources = ['x']

  monkeypatch.setattr(rewarded.Split, '__init__', one_source)
  monkeypatch.setattr(rewarded.Rewarded, '__call__', outputs)
  context = object.__new__(Context)
  vars(context)['decoder'] = Policy(T5Config(vocab_size=16))
  monkeypatch.setattr(Policy, 'adopt', lambda self, params: params)
  settings = evaluate.Evaluate(target_language='en')
  mean = select_reward.SelectReward(context, settings, lexical.SentenceChrf())
  become(service, 1)
  told = [not here, here, False]  # By whom of the three it was heard.
  service.key_value_set('rest_jax/result/0', json.dumps(told))
  with pytest.raises(PreemptionError):
    mean({})
  said = json.loads(service.values['rest_jax/turn/0/1'])
  assert said == ['whether to stop', here]


def test_too_few_or_too_long_sources_are_found_beforehand(service):
  become(service, 0)
  settings = grow.Grow(num_samples=2, samples_per_part=8)
  assert grow.check_size(settings, 9, 'grow_1/samples') == 3
  with pytest.raises(
    ConfigurationError, match=r'8 sources make 2 parts of 4, too few for 3'
  ):
    grow.check_size(settings, 8, 'grow_1/samples')
  settings.batching.check_fits(128)
  with pytest.raises(DataError, match=r'a source of 129 tokens does not fit'):
    settings.batching.check_fits(129)
