import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from rest_jax import errors, schedule


def stream(*chunks):
  return lambda: (np.asarray(chunk, np.float32) for chunk in chunks)


def test_quantiles_by_hand():
  rewards = stream([0.5, 0.1], [], [0.3, 0.2, 0.4])
  taus = schedule.Quantiles((0.0, 0.4, 0.41, 0.8, 0.99)).resolve(rewards)
  np.testing.assert_array_equal(
    np.float32(taus), np.float32([0.1, 0.2, 0.3, 0.4, 0.5])
  )


def test_an_atom_is_met_exactly_so_that_strict_thresholds_drop_it():
  taus = schedule.Quantiles((0.5,)).resolve(stream([0.2] + [0.7] * 3))
  assert np.float32(taus[0]) == np.float32(0.7)


@hypothesis.given(
  hnp.arrays(
    np.float32,
    st.integers(1, 60),
    elements=st.floats(0, 1, width=32) | st.sampled_from([0.0, 0.5, 1.0]),
  ),
  st.lists(st.floats(0, 0.999), min_size=1, max_size=4),
)
@hypothesis.settings(max_examples=100, deadline=None)
def test_quantiles_are_those_of_sorting(rewards, levels):
  half = len(rewards) // 2
  got = schedule.Quantiles(tuple(levels)).resolve(
    stream(rewards[:half], rewards[half:])
  )
  ordered = np.sort(rewards)
  for level, tau in zip(levels, got, strict=True):
    rank = max(0, int(np.ceil(level * len(rewards))) - 1)
    assert tau == ordered[rank]
    assert (rewards > tau).mean() <= 1 - level + 1e-9


def test_negative_zero_counts_as_zero():
  assert schedule.Quantiles((0.9,)).resolve(stream([-0.0, 0.0])) == (0.0,)


def test_no_rewards_is_a_data_error():
  with pytest.raises(errors.DataError, match='no scored sample'):
    schedule.Quantiles((0.5,)).resolve(stream([]))
  assert schedule.Quantiles(()).resolve(stream([])) == ()


@pytest.mark.parametrize('level', [-0.1, 1.0, float('nan')])
def test_levels_out_of_range(level):
  with pytest.raises(errors.ConfigurationError, match=r'Quantiles\.levels'):
    schedule.Quantiles((0.5, level))


def test_thresholds_are_what_they_are():
  def never():
    raise AssertionError('rewards are not needed')

  assert schedule.Thresholds((0.7, 0.8)).resolve(never) == (0.7, 0.8)


def test_the_papers_schedule_is_accepted():
  schedule.check_schedule((0.7, 0.8, 0.9, 0.95, 0.99), mean_reward=0.699)
  schedule.check_schedule((), mean_reward=0.5)
  schedule.check_schedule((0.3, 0.4), 0.5, allow_below_mean=True)


@pytest.mark.parametrize(
  'taus, message',
  [
    ((0.7, 0.7), r'must rise, but tau_1 = 0\.7 and tau_2 = 0\.7'),
    ((0.7, 0.9, 0.8), r'must rise, but tau_2 = 0\.9 and tau_3 = 0\.8'),
    ((0.5, 0.7), r'tau_1 = 0\.5 is not above V = 0\.5'),
    ((0.7, 1.0), r'tau_2 = 1 is outside'),
    ((-0.1,), r'tau_1 = -0\.1 is outside'),
    ((float('nan'),), r'tau_1 = nan is outside'),
  ],
)
def test_schedules_that_cannot_be(taus, message):
  with pytest.raises(errors.ConfigurationError, match=message):
    schedule.check_schedule(taus, mean_reward=0.5)
