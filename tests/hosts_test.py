"""What processes tell each other, without other processes."""

import json
import threading

import numpy as np
import pytest

from rest_jax import cluster, hosts
from rest_jax.errors import ConfigurationError, HostsError, RewardError


class Service:
  """JAX's coordination service, as far as `hosts` knows it."""

  def __init__(self):
    self.values: dict[str, str] = {}
    self.changed = threading.Condition()

  def key_value_set(self, key, value):
    with self.changed:
      if key in self.values:
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
  monkeypatch.setattr(hosts, 'POLL_SECONDS', 0.05)
  yield Service()
  hosts.become(None)


def become(service, index, names=('a', 'b', 'c'), barrier_seconds=0.3):
  hosts.become(hosts.Job(service, index, list(names), 1, barrier_seconds))


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


def test_a_first_process_that_says_nothing_is_named(service):
  become(service, 1)
  with pytest.raises(HostsError, match='process 0 on a told nothing'):
    hosts.gather('the end', None)


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
