"""What every T5 network on a mesh is, whatever it gives: its parameters.

`Policy` (tokens) and `Regressor` (a score) are such networks.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rest_jax.errors import ConfigurationError
from rest_jax.models.config import T5Config
from rest_jax.models.layers import AxesOf
from rest_jax.sharding import Layout, Placement
from rest_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Network:
  """A T5 network on a mesh. Holds no parameters; hashable, static in `jit`.

  Parameters are nested dicts of float32 arrays, named as T5X names them
  (`inference_params` are of other dtypes). A
  subclass says in `_model` which Linen module they belong to; it is made by
  calling that with two arrays of tokens.

  Attributes:
    config: the shape of the network.
    layout: the mesh and how arrays are split over it.
    local: whether each process computes by itself on its own devices, the mesh
      being over those; else all processes compute together.
  """

  config: T5Config
  layout: Layout = dataclasses.field(default_factory=Layout)
  local: bool = False

  @functools.cached_property
  def mesh(self) -> Mesh:
    """The mesh over the devices.

    Raises:
      ConfigurationError: the devices do not form it, or it does not divide
        the network's sizes.
    """
    return self.placement.mesh

  @functools.cached_property
  def placement(self) -> Placement:
    """The mesh with the layout's rules, checked against the network's sizes."""
    devices = jax.local_devices() if self.local else None
    placement = Placement(self.layout.mesh(devices), self.layout.axis_rules)
    config = self.config
    sizes = {
      'act_embed': config.emb_dim,
      'embed': config.emb_dim,
      'heads': config.num_heads,
      'kv': config.head_dim,
      'joined_kv': config.num_heads * config.head_dim,
      'mlp': config.mlp_dim,
      'vocab': config.vocab_size,
      'relpos_buckets': config.relpos_num_buckets,
    }
    for axis, size in sizes.items():
      if size % (shards := placement.num_shards(axis)):
        raise ConfigurationError(
          f'AxisRules.{axis} splits an axis of {size} over {shards} devices; '
          'change Layout.model, the rule, or the size in T5Config.'
        )
    return placement

  def abstract_params(self) -> Params:
    """Returns the tree of `jax.ShapeDtypeStruct`s of the parameters."""
    return jax.tree.map(_unbox, self._boxed_params, is_leaf=_is_box)

  def param_shardings(self) -> Params:
    """Returns the tree of the parameters' `NamedSharding`s."""
    return jax.tree.map(
      lambda box: self.placement.sharding(*box.axes),
      self._boxed_params,
      is_leaf=_is_box,
    )

  def placed_params(self) -> Params:
    """Returns shapes with shardings, which parameters are restored into."""
    return self._placed(self.abstract_params())

  def inference_params(self, params: Params) -> Params:
    """Returns parameters in the dtypes that layers compute in. Traceable.

    A device reads and holds half as much where activations are bfloat16. The
    cast is the one that each layer would make: what comes out stays the same
    to the bit. The output layer stays float32.
    """
    dtype = self.config.dtype

    def cast(path, leaf):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      return leaf if self.is_output(name) else jnp.asarray(leaf, dtype)

    return jax.tree_util.tree_map_with_path(cast, params)

  def placed_inference_params(self) -> Params:
    """Returns shapes with shardings of what `inference_params` returns."""
    params = self.abstract_params()
    return self._placed(jax.eval_shape(self.inference_params, params))

  def _placed(self, abstract: Params) -> Params:
    return jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding
      ),
      abstract,
      self.param_shardings(),
    )

  def is_output(self, name: str) -> bool:
    """Whether a parameter is the output layer's, which computes in float32."""
    return name.startswith(('decoder/logits_dense/', 'decoder/score_dense/'))

  def init(self, seed: int) -> Params:
    """Returns new parameters, made where they are to live."""
    return self._jitted_init(jax.random.key(seed))

  def adopt(self, params: Params) -> Params:
    """Returns a network's parameters, placed as this one's.

    They are moved from device to device where the two are laid out otherwise,
    and are the same arrays where they are not.

    Args:
      params: parameters of a network of the same form, on the same devices (of
        all processes).
    """
    wanted = self.param_shardings()
    if _placed_as(params, wanted):
      return params
    if not self.local or jax.process_count() == 1:
      return jax.device_put(params, wanted)
    # Every row of devices of `whole` holds all parameters, so what lies here of
    # them is what this process needs.
    whole = Layout(model=self.layout.model).mesh()
    here = Layout(model=self.layout.model).mesh(jax.local_devices())

    def moved(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
      spec = _without_data(sharding.spec)
      leaf = jax.device_put(leaf, NamedSharding(whole, spec))
      leaf = jax.make_array_from_single_device_arrays(
        leaf.shape,
        NamedSharding(here, spec),
        [shard.data for shard in leaf.addressable_shards],
      )
      return jax.device_put(leaf, sharding)

    return jax.tree.map(moved, params, wanted)

  def place(self, rows: jax.Array | np.ndarray) -> jax.Array:
    """Returns rows [b, …] split over the mesh's data devices.

    Raises:
      ConfigurationError: they do not divide.
    """
    if rows.shape[0] % (shards := self.placement.num_shards('batch')):
      raise ConfigurationError(
        f'A batch of {rows.shape[0]} sources does not divide over {shards} '
        'devices; set a batch size that is a multiple, or lower Layout.data.'
      )
    return jax.device_put(rows, self.placement.sharding('batch', None))

  def whole_batches(self, rows: int) -> int:
    """Returns `rows`, rounded up to what divides over the data devices.

    A local network gets its share of them: as many a device as if the devices
    of all processes were one's.
    """
    if self.local:
      rows = -(-rows // jax.process_count())
    shards = self.placement.num_shards('batch')
    return -(-max(1, rows) // shards) * shards

  @functools.cached_property
  def _jitted_init(self):
    """Compiled once, which takes longer than all else of a small network."""
    return jax.jit(
      lambda key: jax.tree.map(_unbox, self._init(key), is_leaf=_is_box),
      out_shardings=self.param_shardings(),
    )

  def _init(self, key: jax.Array) -> Params:
    # The batch must divide over the mesh: one source a shard.
    tokens = jnp.ones((self.placement.num_shards('batch'), 1), jnp.int32)
    return self._model.init({'params': key}, tokens, tokens)['params']

  @functools.cached_property
  def _boxed_params(self) -> Params:
    return jax.eval_shape(self._init, jax.random.key(0))


def _without_data(spec: PartitionSpec) -> PartitionSpec:
  """How a parameter is split over `model` alone."""

  def left(axes: str | tuple[str, ...] | None) -> tuple[str, ...] | None:
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return tuple(axis for axis in axes if axis != 'data') or None

  return PartitionSpec(*map(left, spec))


def _placed_as(params: Params, shardings: Params) -> bool:
  leaves, wanted = jax.tree.leaves(params), jax.tree.leaves(shardings)
  return all(
    isinstance(leaf, jax.Array) and leaf.sharding == sharding
    for leaf, sharding in zip(leaves, wanted, strict=True)
  )


def _is_box(leaf) -> bool:
  return isinstance(leaf, AxesOf)


def _unbox(box: AxesOf):
  return box.value
