import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_jax.models.relative_position import buckets

T5 = {'num_buckets': 32, 'max_distance': 128}


def test_backward_distances_by_hand():
  # 32 buckets one way: 0 … 15 exact, then 16 · log_8(d / 16) more.
  # log_8(32/16) = 1/3: 16 + 5; log_8(64/16) = 2/3: 16 + 10; the last is 31.
  offsets = [0, -1, -15, -16, -32, -64, -127, -128, -5000, 1, 9]
  expected = [0, 1, 15, 16, 21, 26, 31, 31, 31, 0, 0]
  got = buckets(offsets, bidirectional=False, **T5)
  np.testing.assert_array_equal(got, expected)


def test_both_directions_have_half_of_the_buckets():
  # 16 a direction: 0 … 7 exact, then 8 · log_16(d / 8) more.
  offsets = [0, -1, -7, -8, -32, 1, 7, 8, 32, 1000]
  expected = [0, 1, 7, 8, 12, 17, 23, 24, 28, 31]
  got = buckets(offsets, bidirectional=True, **T5)
  np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize('bidirectional', [False, True])
@given(
  quarter=st.integers(1, 16),
  factor=st.integers(2, 8),
  distances=st.lists(st.integers(0, 2000), min_size=2),
)
def test_buckets_grow_with_distance(bidirectional, quarter, factor, distances):
  num_buckets = 4 * quarter
  distances = np.sort(distances)
  got = buckets(
    -distances,
    bidirectional=bidirectional,
    num_buckets=num_buckets,
    max_distance=factor * num_buckets,
  )
  assert np.all(np.diff(got) >= 0)
  assert got.min() >= 0
  last = num_buckets // 2 if bidirectional else num_buckets
  assert np.all(got[distances > factor * num_buckets] == last - 1)
