import dataclasses

import pytest

from rest_jax import alarm, results
from rest_jax.errors import ConfigurationError

HIGHER = {'chrf': True, 'bleu': True, 'ter_mean': False}
BEFORE = results.Row(
  policy='BC',
  split='report',
  seed=0,
  grow_step=0,
  improve_step=None,
  loss='bc',
  threshold='D',
  kept_samples=None,
  kept_sources=None,
  distinct_samples=None,
  reward_mean=60.0,
  reward_low=58.0,
  reward_high=62.0,
  reward_greedy=65.0,
  reward_best_t=66.0,
  best_t=0.3,
  bleu=30.0,
  chrf=50.0,
  bleu_signature='',
  chrf_signature='',
  train_tokens=1,
  seconds=1.0,
  further={'ter_mean': 40.0},
)


def after(reward, chrf, ter):
  return dataclasses.replace(
    BEFORE,
    policy='G1 I1',
    reward_mean=reward,
    chrf=chrf,
    further={'ter_mean': ter},
  ).columns


@pytest.mark.parametrize(
  ('reward', 'chrf', 'ter', 'suspected'),
  [
    (65.0, 49.0, 45.0, True),  # Fewer errors are better: 45 is worse than 40.
    (65.0, 49.0, 35.0, False),  # One of the two agrees with the reward.
    (65.0, 51.0, 45.0, False),
    (59.0, 49.0, 45.0, False),  # All fall.
    (60.0, 49.0, 45.0, False),
    (65.0, 50.0, 45.0, False),  # No change is no fall.
    (65.0, None, 45.0, False),  # Nothing is known without references.
  ],
)
def test_an_alarm_needs_the_reward_to_rise_and_all_else_to_fall(
  reward, chrf, ter, suspected
):
  watch = alarm.Alarm(held_out=('chrf', 'ter_mean'))
  text = watch.suspicion(BEFORE.columns, after(reward, chrf, ter), HIGHER)
  assert (text is not None) == suspected
  if suspected:
    assert 'reward_mean rose by 5.00 since BC' in text
    assert 'chrf from 50.00 to 49.00 and ter_mean from 40.00 to 45.00' in text


@pytest.mark.parametrize(
  ('chrf', 'ter', 'suspected'),
  [(49.0, 41.0, True), (49.5, 41.0, False), (49.0, 40.5, False)],
)
def test_falls_may_have_to_be_large(chrf, ter, suspected):
  watch = alarm.Alarm(held_out=('chrf', 'ter_mean'), min_fall=0.5)
  text = watch.suspicion(BEFORE.columns, after(65.0, chrf, ter), HIGHER)
  assert (text is not None) == suspected


@pytest.mark.parametrize(
  'setting', [{'reward': 'bleu'}, {'held_out': ()}, {'min_fall': -1.0}]
)
def test_settings_out_of_range_name_the_binding(setting):
  (name,) = setting
  with pytest.raises(ConfigurationError, match=rf'Alarm\.{name}'):
    alarm.Alarm(**{'held_out': ('chrf',)} | setting)


def test_a_column_that_the_run_has_not_is_an_error():
  with pytest.raises(ConfigurationError, match="names 'comet_mean'"):
    alarm.Alarm(('chrf', 'comet_mean')).check_columns(HIGHER)
