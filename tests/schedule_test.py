import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from rest_jax import errors, schedule, selection

# A machine that is busy with other things makes examples slowly.
LOAD = [hypothesis.HealthCheck.too_slow]


def stream(*chunks):
  return lambda: (np.asarray(chunk, np.float32) for chunk in chunks)


def test_quantiles_by_hand():
  rewards = stream([0.5, 0.1], [], [0.3, 0.2, 0.4])
  taus = schedule.Quantiles((0.0, 0.4, 0.41, 0.8, 0.99)).resolve(rewards)
  np.testing.assert_array_equal(
    np.float32(taus), np.float32([0.1, 0.2, 0.3, 0.4, 0.5])
  )


def test_a_round_level_is_not_one_rank_too_high():
  rewards = np.arange(100) / 100
  for level in (0.07, 0.14, 0.28, 0.55, 0.56):
    (tau,) = schedule.Quantiles((level,)).resolve(stream(rewards))
    assert (rewards > tau + 1e-6).sum() == round(100 * (1 - level))


def test_an_atom_is_met_exactly_so_that_strict_thresholds_drop_it():
  taus = schedule.Quantiles((0.5,)).resolve(stream([0.2] + [0.7] * 3))
  assert np.float32(taus[0]) == np.float32(0.7)


@hypothesis.given(
  hnp.arrays(
    np.float32,
    st.integers(1, 60),
    elements=st.floats(0, 0.875, width=32) | st.sampled_from([0.0, 0.5]),
  ),
  st.lists(st.floats(0, 0.999), min_size=1, max_size=4, unique=True).map(
    sorted
  ),
)
@hypothesis.settings(
  max_examples=100, deadline=None, suppress_health_check=LOAD
)
def test_quantiles_are_those_of_sorting(rewards, levels):
  half = len(rewards) // 2
  got = schedule.Quantiles(tuple(levels)).resolve(
    stream(rewards[:half], rewards[half:])
  )
  ordered = np.sort(rewards)
  for level, tau in zip(levels, got, strict=True):
    rank = max(0, int(np.ceil(level * len(rewards) - 1e-6)) - 1)
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


def test_a_quantile_that_no_reward_exceeds():
  rewards = stream([0.1, 1.0, 1.0, 1.0])
  assert schedule.Quantiles((0.25,)).resolve(rewards)[0] < 1
  with pytest.raises(errors.ConfigurationError, match=r'holds 0\.5, but so'):
    schedule.Quantiles((0.25, 0.5)).resolve(rewards)


def test_filters_of_each_kind_of_schedule():
  rewards = stream([0.25, 0.5, 0.75, 0.875])
  assert schedule.Thresholds((0.7, 0.8)).filters(rewards) == [
    selection.Threshold(0.7),
    selection.Threshold(0.8),
  ]
  assert schedule.Quantiles((0.5, 0.75)).filters(rewards) == [
    selection.Threshold(0.5),
    selection.Threshold(0.75),
  ]
  percentiles = schedule.PerSource('percentile', (50.0, 90.0))
  assert percentiles.filters(rewards) == [
    selection.Percentile(50.0),
    selection.Percentile(90.0),
  ]
  assert schedule.PerSource('interpolated', (0.5,)).filters(rewards) == [
    selection.Interpolated(0.5)
  ]
  assert schedule.PerSource('top_k', (4.0, 1.0)).filters(rewards) == [
    selection.TopK(4),
    selection.TopK(1),
  ]


@pytest.mark.parametrize(
  'rule, values', [('percentile', (90.0, 50.0)), ('top_k', (1.0, 4.0))]
)
def test_bars_of_sources_must_get_stricter(rule, values):
  with pytest.raises(errors.ConfigurationError, match='must get stricter'):
    schedule.PerSource(rule, values)


@pytest.mark.parametrize(
  'make',
  [
    lambda: schedule.Thresholds((0.9, 0.8)),
    lambda: schedule.Thresholds((0.9, 1.0)),
    lambda: schedule.Quantiles((0.5, 0.5)),
    lambda: schedule.PerSource('percentile', (50.0, 101.0)),
  ],
)
def test_impossible_schedules_are_errors_when_they_are_made(make):
  with pytest.raises(errors.ConfigurationError):
    make()


@pytest.mark.parametrize(
  'whole, start, labels',
  [
    (
      schedule.Thresholds((0.7, 0.8)),
      schedule.Thresholds((0.7,)),
      ('R > 0.7', 'R > 0.8'),
    ),
    (
      schedule.Quantiles((0.5, 0.9)),
      schedule.Quantiles((0.5,)),
      ('R > quantile 0.5', 'R > quantile 0.9'),
    ),
    (
      schedule.PerSource('top_k', (4.0, 1.0)),
      schedule.PerSource('top_k', (4.0,)),
      ('top_k 4 a source', 'top_k 1 a source'),
    ),
  ],
)
def test_schedules_count_label_and_begin(whole, start, labels):
  assert isinstance(whole, schedule.Schedule)
  assert whole.num_steps == 2
  assert (whole.label(1), whole.label(2)) == labels
  first = whole.first(1)
  assert first.num_steps == 1
  assert first == start


def test_only_global_thresholds_are_held_against_the_mean():
  schedule.check_filters([selection.Percentile(50.0)], 0.9)
  with pytest.raises(errors.ConfigurationError, match='not above V'):
    schedule.check_filters([selection.Threshold(0.5)], 0.9)
  schedule.check_filters([selection.Threshold(0.5)], 0.9, allow_below_mean=True)


def test_top_k_takes_whole_numbers():
  with pytest.raises(errors.ConfigurationError, match='whole numbers'):
    schedule.PerSource('top_k', (2.5,))
