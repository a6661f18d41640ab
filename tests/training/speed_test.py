import pytest

from rest_jax.training import speed


@pytest.fixture
def clock(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(speed.time, 'monotonic', lambda: now[0])
  return now


def test_means_are_over_what_was_trained(clock):
  counted = speed.Speed(flops=6e9, peak=1e10)
  assert counted.means() == {}
  clock[0] = 30.0  # Compiling.
  counted.add(100.0, 5.0)
  assert counted.means() == {}
  for _ in range(3):
    clock[0] += 2.0
    counted.add(100.0, 0.5)
  clock[0] += 50.0  # An evaluation.
  counted.skip()
  clock[0] += 2.0
  counted.add(100.0, 0.5)
  assert counted.means() == {
    'seconds_per_update': 2.0,
    'tokens_per_second': 50.0,
    'input_share': 0.25,
    'model_flop_utilization': pytest.approx(0.3),
  }
  assert counted.means() == {}


def test_of_devices_without_a_known_peak_no_share_is_told(clock):
  counted = speed.Speed(flops=6e9, peak=None)
  counted.add(1.0, 0.0)
  clock[0] = 1.0
  counted.add(1.0, 0.0)
  assert 'model_flop_utilization' not in counted.means()
