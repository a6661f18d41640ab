import jax.numpy as jnp
import numpy as np
import pytest

from rest_jax.models import lanes


@pytest.mark.parametrize(
  ('sources', 'width', 'together'),
  [
    (8, 128, 1),  # 16 heads × 8 samples fill a row
    (64, 16, 8),  # greedy: 8 sources do
    (6, 200, 3),  # 600 of 640, where 200 of 256 would be used
    (16, 200, 16),  # 25 rows, all full
    (1, 4, 1),
    (7, 4, 7),
  ],
)
def test_sources_share_lanes_where_fewer_stay_empty(sources, width, together):
  assert lanes.sources_in_group(sources, width) == together


def test_lanes_are_heads_then_sources_then_samples():
  b, n, h, d = 4, 3, 2, 5
  x = jnp.arange(b * n * h * d).reshape(b, n, h, d)
  laid = lanes.to_lanes(x, 2)
  assert laid.shape == (2, d, h * 2 * n)
  for source, sample, head in np.ndindex(b, n, h):
    group, place = divmod(source, 2)
    lane = (head * 2 + place) * n + sample
    np.testing.assert_array_equal(laid[group, :, lane], x[source, sample, head])
  np.testing.assert_array_equal(lanes.from_lanes(laid, b, h), x)


def test_what_all_samples_share_is_spread_over_the_lanes_of_its_head():
  x = jnp.arange(6).reshape(1, 3, 2)
  spread = lanes.over_lanes(x, 8)
  np.testing.assert_array_equal(spread[..., :4], np.repeat(x[..., :1], 4, -1))
  np.testing.assert_array_equal(spread[..., 4:], np.repeat(x[..., 1:], 4, -1))
