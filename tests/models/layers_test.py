import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rest_jax.models.layers import AxesOf, RMSNorm, matmul


@pytest.mark.parametrize(('inputs', 'outputs'), [(3, 5), (5, 3)])
@pytest.mark.parametrize('rows', [(4,), (2, 4)])
def test_the_hand_written_backward_pass_is_that_of_a_product(
  inputs, outputs, rows
):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(*rows, inputs)), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(inputs, outputs)), jnp.float32)
  weights = jnp.asarray(rng.normal(size=(*rows, outputs)), jnp.float32)
  ours, plain = (
    jax.jit(
      jax.value_and_grad(
        lambda x, kernel, f=f: jnp.sum(weights * f(x, kernel)), (0, 1)
      )
    )(x, kernel)
    for f in (matmul, jnp.dot)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    ours,
    plain,
  )


def test_the_norm_by_hand():
  # rms(3, 4) = √12.5; the scale is 1 and 2.
  x = jnp.array([[3.0, 4.0]])
  params = {'params': {'scale': jnp.array([1.0, 2.0])}}
  got = RMSNorm(2).apply(params, x)
  np.testing.assert_allclose(got, [[3 / 12.5**0.5, 8 / 12.5**0.5]], rtol=1e-5)


def test_a_box_gives_back_what_it_holds():
  box = AxesOf(jnp.zeros((2, 3)), ('embed', 'mlp'))
  assert box.replace_boxed(1.0).unbox() == 1.0
