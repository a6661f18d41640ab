"""Parts of a T5 network, with T5X's parameter names, shapes and initialisers.

Each parameter declares its logical axes once, where it is made; `AxesOf` boxes
carry them out of `init` and are removed right after it.
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float, Int

from rest_jax.models import relative_position
from rest_jax.sharding import Placement

Initializer = Callable[..., jax.Array]

# Factors folded into the initialisers instead of the attention logits are
# T5's own; under Adafactor the two are equivalent.
ATTENTION_INIT = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
DENSE_INIT = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')
RELPOS_INIT = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')
EMBEDDING_INIT = nn.initializers.normal(stddev=1.0)


@struct.dataclass
class AxesOf(nn.meta.AxisMetadata):
  """A parameter just made, with the logical names of its axes."""

  value: Any
  axes: tuple[str | None, ...] = struct.field(pytree_node=False)

  def unbox(self):
    return self.value

  def replace_boxed(self, value):
    return self.replace(value=value)

  def add_axis(self, index, params):
    raise NotImplementedError('no transformation of flax stacks layers here')

  remove_axis = add_axis


def with_axes(init: Initializer, *axes: str | None) -> Initializer:
  """Returns an initialiser that says how the axes of its result are called."""
  return lambda *args: AxesOf(init(*args), axes)


def dropout(module: nn.Module, x: jax.Array, rate: float) -> jax.Array:
  """Drops features, the same at every position of a row, as T5 does.

  Active whenever the network is applied with a key named `dropout`.

  Args:
    module: the module that calls, for its keys.
    x: [..., length, features].
    rate: probability that a feature is dropped.
  """
  if rate == 0.0 or not module.has_rng('dropout'):
    return x
  shape = (*x.shape[:-2], 1, x.shape[-1])
  keep = jax.random.bernoulli(module.make_rng('dropout'), 1.0 - rate, shape)
  return x * (keep / jnp.float32(1.0 - rate)).astype(x.dtype)


@jax.custom_vjp
def matmul(
  x: Float[Array, '... i'], kernel: Float[Array, 'i o']
) -> Float[Array, '... o']:
  """Returns x · kernel, with a backward pass that a CPU runs well.

  XLA's CPU compiler transposes the left operand of the kernel's gradient, and
  fuses what makes that operand into the transposition, computing it again in
  strided order: 140 ms instead of 4 for the gradient of 3,072 × 4,096 logits.
  So there the operands are written first, and the narrower one stands on the
  left. A TPU's compiler does better with neither.
  """
  return jnp.dot(x, kernel)


def _matmul_forward(x, kernel):
  return jnp.dot(x, kernel), (x, kernel)


def _matmul_backward(saved, gradient):
  return jax.lax.platform_dependent(
    *saved, gradient, cpu=_gradients_on_cpu, default=_gradients
  )


def _gradients(x, kernel, gradient):
  return jnp.dot(gradient, kernel.T), _over_rows(x, gradient)


def _gradients_on_cpu(x, kernel, gradient):
  x, gradient = jax.lax.optimization_barrier((x, gradient))
  if x.shape[-1] <= gradient.shape[-1]:
    kernel_gradient = _over_rows(x, gradient)
  else:
    kernel_gradient = _over_rows(gradient, x).T
  return jnp.dot(gradient, kernel.T), kernel_gradient


def _over_rows(left, right):
  rows = tuple(range(left.ndim - 1))
  return jax.lax.dot_general(left, right, ((rows, rows), ((), ())))


matmul.defvjp(_matmul_forward, _matmul_backward)


class Dense(nn.Module):
  """A linear map without bias, its kernel a matrix.

  Attributes:
    inputs: features of the input.
    outputs: features of the output.
    axes: logical names of the two axes of the kernel; None: not split.
    init: initialiser of the kernel.
    dtype: in which the product is computed.
  """

  inputs: int
  outputs: int
  axes: tuple[str | None, str | None]
  init: Initializer = DENSE_INIT
  dtype: str = 'float32'

  def setup(self):
    self.kernel = self.param(
      'kernel', with_axes(self.init, *self.axes), (self.inputs, self.outputs)
    )

  def __call__(self, x: Float[Array, '... i']) -> Float[Array, '... o']:
    return matmul(x.astype(self.dtype), self.kernel.astype(self.dtype))


class Embed(nn.Module):
  """Token embeddings; `attend` uses them as the output layer.

  Attributes:
    num_embeddings: rows of the table.
    features: columns of the table.
    dtype: of the vectors returned.
  """

  num_embeddings: int
  features: int
  dtype: str = 'float32'

  def setup(self):
    self.embedding = self.param(
      'embedding',
      with_axes(EMBEDDING_INIT, 'vocab', 'embed'),
      (self.num_embeddings, self.features),
    )

  def __call__(self, tokens: Int[Array, '...']) -> Float[Array, '... e']:
    # Rows first: a cast of the whole table would read all of it.
    return jnp.asarray(self.embedding)[tokens].astype(self.dtype)

  def attend(self, x: Float[Array, '... e']) -> Float[Array, '... v']:
    """Returns float32 products with every embedding, scaled as T5 ties them."""
    x = x.astype(jnp.float32) / math.sqrt(self.features)
    return matmul(x, self.embedding.T)


class RMSNorm(nn.Module):
  """x / rms(x) · scale: T5's layer norm, without mean and bias.

  Zhang and Sennrich 2019, arXiv:1910.07467, equation 4. Computed in float32.
  """

  features: int
  dtype: str = 'float32'
  epsilon: float = 1e-6

  def setup(self):
    self.scale = self.param(
      'scale', with_axes(nn.initializers.ones, 'embed'), (self.features,)
    )

  def __call__(self, x: Float[Array, '... e']) -> Float[Array, '... e']:
    x = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    normed = x * jax.lax.rsqrt(mean_square + self.epsilon)
    scale = jnp.expand_dims(self.scale, range(x.ndim - 1))
    return normed.astype(self.dtype) * scale.astype(self.dtype)


class RelativePositionBias(nn.Module):
  """A learned bias to attention logits for each head and distance bucket.

  Raffel et al. 2020, arXiv:1910.10683, section 2.1.

  Attributes:
    num_heads: attention heads.
    num_buckets: buckets of distances.
    max_distance: distance from which on all share a bucket.
    bidirectional: whether keys may come after queries.
    dtype: of the bias.
  """

  num_heads: int
  num_buckets: int
  max_distance: int
  bidirectional: bool
  dtype: str = 'float32'

  def setup(self):
    self.rel_embedding = self.param(
      'rel_embedding',
      with_axes(RELPOS_INIT, 'heads', 'relpos_buckets'),
      (self.num_heads, self.num_buckets),
    )

  def by_offset(self, first: int, last: int) -> Float[Array, 'h o']:
    """Returns the biases of key − query offsets from `first` to `last`."""
    buckets = relative_position.buckets(
      range(first, last + 1),
      bidirectional=self.bidirectional,
      num_buckets=self.num_buckets,
      max_distance=self.max_distance,
    )
    return self.rel_embedding.astype(self.dtype)[:, buckets]

  def __call__(self, length: int) -> Float[Array, '1 h q k']:
    """Returns the biases between all positions of a sequence."""
    # Row q of the bias is a window of the same 2·length − 1 values.
    offsets = self.by_offset(1 - length, length - 1)
    positions = jnp.arange(length)
    index = positions[None, :] - positions[:, None] + length - 1
    return offsets[None, :, index]


class Mlp(nn.Module):
  """A feed-forward layer; several activations multiply (Shazeer 2020).

  GLU variants improve Transformer, arXiv:2002.05202, equation 6.
  """

  features: int
  hidden: int
  activations: tuple[str, ...]
  dropout_rate: float
  dtype: str
  placement: Placement

  def setup(self):
    make = functools.partial(
      Dense, self.features, self.hidden, ('embed', 'mlp'), dtype=self.dtype
    )
    if len(self.activations) == 1:
      self.wi = make()
    else:
      self.wi = [make() for _ in self.activations]
    self.wo = Dense(
      self.hidden, self.features, ('mlp', 'embed'), dtype=self.dtype
    )

  def __call__(self, x: Float[Array, '*b l e']) -> Float[Array, '*b l e']:
    denses = [self.wi] if len(self.activations) == 1 else self.wi
    hidden = functools.reduce(
      operator.mul,
      (
        dense(x) if name == 'linear' else getattr(nn, name)(dense(x))
        for name, dense in zip(self.activations, denses, strict=True)
      ),
    )
    hidden = dropout(self, hidden, self.dropout_rate)
    axes = ('batch',) + ('length',) * (x.ndim - 2) + ('mlp',)
    return self.wo(self.placement.constrain(hidden, *axes))
