import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_jax import errors
from rest_jax.data.packing import Packing, plan_packing


def fill_of(plan, lengths):
  """Tokens in each packed row."""
  return np.array(
    [lengths[plan.row(i)].sum() for i in range(len(plan))], np.int64
  )


@settings(max_examples=60, deadline=None)
@given(
  st.lists(st.tuples(st.integers(1, 9), st.integers(1, 7)), max_size=400),
  st.integers(0, 5),
)
def test_every_pair_once_and_no_row_too_full(lengths, seed):
  source = np.array([s for s, _ in lengths], np.int64)
  target = np.array([t for _, t in lengths], np.int64)
  packing = Packing(source_length=9, target_length=7, rows_per_batch=1)
  plan = plan_packing(source, target, packing, seed)
  np.testing.assert_array_equal(np.sort(plan.pairs), np.arange(len(lengths)))
  assert plan.offsets[0] == 0
  assert plan.offsets[-1] == len(lengths)
  assert (np.diff(plan.offsets) >= 1).all()
  assert (fill_of(plan, source) <= 9).all()
  assert (fill_of(plan, target) <= 7).all()


def test_pairs_that_complete_each_other_share_rows():
  """Three of 6 and three of 4 tokens make three rows of 10."""
  lengths = np.array([6, 4, 4, 6, 4, 6])
  plan = plan_packing(lengths, lengths, Packing(10, 10, 1), 3)
  np.testing.assert_array_equal(fill_of(plan, lengths), [10, 10, 10])


def test_both_sides_bind():
  """Short sources do not let long targets share a row."""
  plan = plan_packing(np.ones(4, int), np.full(4, 6), Packing(10, 10, 1), 0)
  assert len(plan) == 4


@pytest.mark.parametrize('mean', [6, 15, 30])
def test_little_padding_at_realistic_lengths(mean):
  """Log-normal sentence lengths, target lengths within 20 % of the source's."""
  rng = np.random.default_rng(0)
  source = np.clip(rng.lognormal(np.log(mean), 0.5, 20_000), 2, 128)
  target = np.clip(source * rng.lognormal(0.0, 0.2, 20_000), 2, 128)
  source, target = source.astype(int), target.astype(int)
  plan = plan_packing(source, target, Packing(128, 128, 1), 0)
  padding = 1 - (source.sum() + target.sum()) / (len(plan) * 256)
  assert padding < 0.08


def test_plan_depends_on_the_seed_alone():
  lengths = np.random.default_rng(0).integers(1, 20, 500)
  first, again, other = (
    plan_packing(lengths, lengths, Packing(32, 32, 1), seed)
    for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(first.pairs, again.pairs)
  np.testing.assert_array_equal(first.offsets, again.offsets)
  assert not np.array_equal(first.pairs, other.pairs)


@pytest.mark.parametrize(
  ('source', 'target', 'named'),
  [([3, 11], [3, 3], '11 source'), ([3, 3], [3, 12], '12 target')],
)
def test_a_pair_too_long_is_named(source, target, named):
  with pytest.raises(errors.DataError, match=f'row 1 has {named} tokens'):
    plan_packing(np.array(source), np.array(target), Packing(10, 11, 1), 0)


@pytest.mark.parametrize(
  'field', ['source_length', 'target_length', 'rows_per_batch']
)
def test_packing_rejects_what_is_not_positive(field):
  shape = {'source_length': 1, 'target_length': 1, 'rows_per_batch': 1}
  with pytest.raises(errors.ConfigurationError, match=f'Packing.{field} = 0'):
    Packing(**shape | {field: 0})
