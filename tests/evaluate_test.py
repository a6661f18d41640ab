import types

import numpy as np
import pytest
import small_run

from rest_jax import errors, evaluate


def test_the_temperature_is_chosen_on_the_other_half(monkeypatch, tmp_path):
  """The best on D_select, whatever D_report would say."""
  asked = []

  class Rewarded:
    def __init__(self, context, batching, reward, split):
      self.split = split

    def mean(self, params, sampling, num_samples):
      asked.append((self.split, sampling.temperature, num_samples))
      return {0.1: 0.2, 0.5: 0.9, 0.8: 0.4}[sampling.temperature]

  fake = types.SimpleNamespace(
    Split=lambda context, name, most: (name, most), Rewarded=Rewarded
  )
  monkeypatch.setattr(evaluate, 'rewarded_lib', fake)
  settings = evaluate.Evaluate(
    'en', temperatures=(0.1, 0.5, 0.8), select_sources=5, select_samples=2
  )
  context = small_run.make(tmp_path)
  found = evaluate._best_temperature(
    context, settings, small_run.Bytes(), params={}
  )
  assert found == 0.5
  assert asked == [(('select', 5), t, 2) for t in (0.1, 0.5, 0.8)]


@pytest.mark.parametrize(
  'changed',
  [
    {'num_samples': 0},
    {'temperatures': ()},
    {'num_beams': 0},
    {'select_samples': 0},
  ],
)
def test_settings_that_cannot_be(changed):
  with pytest.raises(errors.ConfigurationError, match=next(iter(changed))):
    evaluate.Evaluate('en', **changed)


def test_the_interval_is_of_sources_not_of_samples():
  # Samples differ, and sources do not.
  sampled = np.float32([[0, 1], [0, 1], [1, 0]])
  greedy = np.float32([[0.5], [0.25], [0.3]])
  found = evaluate._figures(sampled, greedy)
  assert found == {
    'reward_mean': 50,
    'reward_low': 50,
    'reward_high': 50,
    'reward_greedy': pytest.approx(35),
  }
  apart = evaluate._figures(np.float32([[0, 0], [0.5, 0.5], [1, 1]]), greedy)
  assert apart['reward_low'] < 50 < apart['reward_high']
