import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest_jax.models import memory


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('length', [1, 7, 32, 48, 96])
def test_sums_are_those_of_matrix_products(length, dtype):
  rng = np.random.default_rng(length)
  # b, n, h, d = 3, 2, 4, 5
  query = jnp.array(rng.normal(size=(3, 2, 4, 5)), dtype)
  keys = jnp.array(rng.normal(size=(3, 4, 5, length)), dtype)
  values = jnp.array(rng.normal(size=(3, 4, length, 5)), dtype)
  found = jax.jit(memory.dot_keys)(query, keys)
  assert found.dtype == dtype
  wide = [np.asarray(x, np.float64) for x in (query, keys, values)]
  expected = np.einsum('bnhd,bhds->bhns', *wide[:2])
  # A bfloat16 keeps eight bits.
  error = {'float32': 1e-5, 'bfloat16': 8e-3}[dtype]

  def assert_close(found, expected):
    np.testing.assert_allclose(
      np.asarray(found, np.float64), expected, rtol=error, atol=error / 8
    )

  assert_close(found, expected)
  weights = jax.nn.softmax(found)
  mixed = jax.jit(memory.mix_values)(weights, values)
  assert mixed.dtype == dtype
  weights = np.asarray(weights, np.float64)
  assert_close(mixed, np.einsum('bhns,bhsd->bnhd', weights, wide[2]))


def test_a_sample_is_the_same_to_the_bit_whatever_is_beside_it(optimized):
  rng = np.random.default_rng(0)
  query = rng.normal(size=(4, 6, 2, 8)).astype(np.float32)
  keys = rng.normal(size=(4, 2, 8, 20)).astype(np.float32)
  values = rng.normal(size=(4, 2, 20, 8)).astype(np.float32)

  @jax.jit
  def attend(query, keys, values):
    weights = jax.nn.softmax(memory.dot_keys(query, keys))
    return memory.mix_values(weights, values)

  together = attend(query, keys, values)
  for n in (1, 2, 5):
    alone = attend(query[2:3, 1 : 1 + n], keys[2:3], values[2:3])
    np.testing.assert_array_equal(alone, together[2:3, 1 : 1 + n])


@pytest.mark.parametrize('length', [32, 64])
def test_a_sum_on_a_cpu_stays_a_loop(length):
  """Unrolled, its one turn is fused with the turn of axes behind it."""
  weights = jnp.ones((4, 2, 3, length))
  values = jnp.ones((4, 2, length, 8))
  compiled = jax.jit(memory.mix_values).lower(weights, values).compile()
  assert compiled.as_text().count(' while(') == 1
