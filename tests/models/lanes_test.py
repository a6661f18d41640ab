import jax
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


def ring_of(step, begun, length=4, heads=2):
  keys = jnp.zeros((1, length, 1, heads * np.size(begun)))
  return lanes.ring(keys, jnp.int32(step), jnp.array(begun), heads)


def test_a_sample_sees_what_was_written_since_it_began():
  ring = ring_of(6, [[6, 5], [3, 4]])  # two sources with two samples each
  assert ring.place == 2  # the seventh token, in a ring of four
  np.testing.assert_array_equal(ring.ages, [2, 1, 0, 3])
  assert ring.oldest == 3
  seen = np.array(
    [
      [0, 0, 1, 0],  # begins now
      [0, 1, 1, 0],
      [1, 1, 1, 1],
      [1, 1, 1, 0],
    ]
  )
  np.testing.assert_array_equal(ring.seen[0], np.tile(seen, (2, 1)).T)


def test_before_the_ring_is_full_only_what_is_there_is_seen():
  ring = ring_of(1, [[0]], length=5, heads=1)
  np.testing.assert_array_equal(ring.seen[0, :, 0], [1, 1, 0, 0, 0])
  assert ring.oldest == 1


def test_a_mean_of_values_is_the_same_to_the_bit_wherever_it_stands(optimized):
  length, begun = 5, 3
  rng = np.random.default_rng(0)
  values = rng.normal(size=(1, length, 7, 1)).astype(np.float32)
  weights = rng.random((1, length, 1)).astype(np.float32)
  means = []
  for step in range(begun + 2, begun + 2 + length):
    # Three values, the last of them written in this step.
    ring = ring_of(step, [[step - 2]], length, heads=1)
    places = np.asarray(ring.ages)
    seen = np.where(ring.seen, weights[:, places], 0.0)
    means.append(
      lanes.mix_values(jnp.array(values[:, places]), jnp.array(seen), ring)
    )
  np.testing.assert_array_equal(means, np.broadcast_to(means[0], (5, 1, 7, 1)))
  expected = np.sum(values[0, :3] * weights[0, :3, None], 0)
  np.testing.assert_allclose(
    means[0][0], expected / weights[0, :3].sum(), rtol=1e-5
  )


def test_what_lanes_see_is_put_together():
  """Broadcast over heads it would keep a CPU from vectorising the product."""

  def logits(keys, query, step, begun):
    ring = lanes.ring(keys, step, begun, heads=4)
    return jnp.where(ring.seen, lanes.dot_keys(keys, query), -1.0)

  compiled = jax.jit(logits).lower(
    jnp.ones((2, 8, 4, 64)),
    jnp.ones((2, 4, 64)),
    jnp.int32(3),
    jnp.zeros((8, 4), jnp.int32),
  )
  assert ' concatenate(' in compiled.compile().as_text()
