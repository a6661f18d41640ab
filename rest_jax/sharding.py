"""Where each axis of each array lives on the device mesh.

The network names its axes logically (`heads`, `vocab`, `batch`); `AxisRules`
says which mesh axis each of them is split over, and `Layout` lays the devices
out as the mesh `('data', 'model')`. Names form a closed set: a misspelt axis is
an error here, where Flax's own helpers would silently replicate the array.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rest_jax.errors import ConfigurationError

MESH_AXES = ('data', 'model')

MeshAxes = str | Sequence[str] | None


@dataclasses.dataclass(frozen=True)
class AxisRules:
  """The mesh axis, several of them, or none, for every logical axis.

  The default splits batches over `data` and, as Megatron does (Shoeybi et al.
  2019, arXiv:1909.08053), heads, feed-forward and vocabulary over `model`.
  Setting `embed='data'`, as `Layout.fsdp` does, also shards the parameters over
  `data`: activations have an axis of their own, `act_embed`, so that no array
  would be split twice over the same mesh axis.

  Attributes:
    batch: rows of a batch (sources; the samples of a source stay together).
    length: positions in a sequence.
    act_embed: features of activations between layers.
    embed: the same features as an axis of parameters.
    heads: attention heads, of activations and of relative position biases.
    kv: features of one head.
    joined_kv: heads times features, as an axis of parameters.
    mlp: features inside a feed-forward layer.
    vocab: the vocabulary, of embeddings and of logits.
    relpos_buckets: buckets of relative positions.
  """

  batch: MeshAxes = 'data'
  length: MeshAxes = None
  act_embed: MeshAxes = None
  embed: MeshAxes = None
  heads: MeshAxes = 'model'
  kv: MeshAxes = None
  joined_kv: MeshAxes = 'model'
  mlp: MeshAxes = 'model'
  vocab: MeshAxes = 'model'
  relpos_buckets: MeshAxes = None

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, list):  # as gin gives them
        object.__setattr__(self, field.name, value := tuple(value))
      for name in _names(value):
        if name not in MESH_AXES:
          raise ConfigurationError(
            f'AxisRules.{field.name} = {value!r}: there is no mesh axis '
            f'{name!r}; use one of {MESH_AXES}, a tuple of them or None.'
          )

  def mesh_axes(self, axis: str) -> tuple[str, ...]:
    """Returns the mesh axes that the logical axis is split over.

    Raises:
      ConfigurationError: no logical axis has this name.
    """
    if axis not in LOGICAL_AXES:
      raise ConfigurationError(
        f'Unknown logical axis {axis!r}; AxisRules knows {LOGICAL_AXES}.'
      )
    return _names(getattr(self, axis))

  def spec(self, *axes: str | None) -> PartitionSpec:
    """Returns how an array with these logical axes is split over the mesh.

    >>> AxisRules().spec('batch', None, 'vocab')
    PartitionSpec('data', None, 'model')

    Args:
      *axes: the logical name of each axis of the array; None: not split.

    Raises:
      ConfigurationError: an unknown name, or one mesh axis used twice.
    """
    split = [self.mesh_axes(axis) if axis else () for axis in axes]
    used = [name for names in split for name in names]
    for name in used:
      if used.count(name) > 1:
        raise ConfigurationError(
          f'AxisRules split an array with the axes {axes} twice over the mesh '
          f'axis {name!r}; map one of the two to None.'
        )
    return PartitionSpec(
      *(names[0] if len(names) == 1 else names or None for names in split)
    )

  def sharding(self, mesh: Mesh, *axes: str | None) -> NamedSharding:
    """Returns `spec(*axes)` on `mesh`."""
    return NamedSharding(mesh, self.spec(*axes))


def _process_of(device: jax.Device) -> int:
  return device.process_index


LOGICAL_AXES = tuple(field.name for field in dataclasses.fields(AxisRules))


def _names(axes: MeshAxes) -> tuple[str, ...]:
  if axes is None:
    return ()
  return (axes,) if isinstance(axes, str) else tuple(axes)


@dataclasses.dataclass(frozen=True)
class Placement:
  """A mesh with its rules: what the network needs to place its activations."""

  mesh: Mesh
  rules: AxisRules

  def sharding(self, *axes: str | None) -> NamedSharding:
    """Returns the sharding of an array with these logical axes."""
    return self.rules.sharding(self.mesh, *axes)

  def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
    """Returns `x`, told to the compiler to be split as its axes say."""
    return jax.lax.with_sharding_constraint(x, self.sharding(*axes))

  def num_shards(self, axis: str) -> int:
    """Returns into how many parts the logical axis is split."""
    return math.prod(
      self.mesh.shape[name] for name in self.rules.mesh_axes(axis)
    )

  @functools.cached_property
  def batch_share(self) -> tuple[int, int]:
    """Which part of a batch this process feeds, and of how many.

    Processes that split a layer's parameters between them feed the same part.

    Raises:
      ConfigurationError: the devices of a process hold no whole part.
    """
    shards = self.num_shards('batch')
    held: dict[int, set[int]] = {}
    indices = self.sharding('batch').devices_indices_map((shards,))
    for device, (part,) in indices.items():
      rows = range(shards)[part]
      held.setdefault(_process_of(device), set()).update(rows)
    mine = held.get(jax.process_index(), set())
    parts = sorted({tuple(sorted(rows)) for rows in held.values()})
    if sum(map(len, parts)) != shards or len({len(p) for p in parts}) > 1:
      raise ConfigurationError(
        f'Layout.model = {dict(self.mesh.shape)["model"]} divides neither the '
        'devices of a process, nor is it a multiple of them, so that no '
        'process has a part of the batch to itself; choose a divisor of '
        f'{jax.local_device_count()}.'
      )
    return parts.index(tuple(sorted(mine))), len(parts)


@dataclasses.dataclass(frozen=True)
class Layout:
  """How the devices form the mesh `('data', 'model')`.

  Attributes:
    data: devices that split a batch; −1: all that `model` leaves.
    model: devices that split each layer's parameters.
    fsdp: whether parameters and optimizer state are split over `data` as well
      (Rajbhandari et al. 2020, arXiv:1910.02054, stage 3), each layer gathered
      where it is used; else each row of devices holds all of them.
    rules: the mesh axis of each logical axis.
  """

  data: int = -1
  model: int = 1
  fsdp: bool = False
  rules: AxisRules = AxisRules()

  def __post_init__(self):
    if self.model < 1 or (self.data < 1 and self.data != -1):
      raise ConfigurationError(
        f'Layout.data = {self.data}, Layout.model = {self.model}: both must be '
        'at least 1, or data −1 for all the devices that model leaves.'
      )
    if self.fsdp and self.rules.embed not in (None, 'data'):
      raise ConfigurationError(
        f'Layout.fsdp splits parameters over data, and AxisRules.embed = '
        f'{self.rules.embed!r} over something else; set one of the two.'
      )

  @property
  def axis_rules(self) -> AxisRules:
    """The rules, with what `fsdp` adds to them."""
    if not self.fsdp:
      return self.rules
    return dataclasses.replace(self.rules, embed='data')

  def mesh(self, devices: list[jax.Device] | None = None) -> Mesh:
    """Returns the mesh over `devices` (default: all of them).

    The devices of a process stand together, so that `model` lies within a
    process where it is small enough. Fewer devices than there are may be asked
    for on a single host; the first ones are taken.

    Raises:
      ConfigurationError: the devices do not suffice or do not divide.
    """
    devices = jax.devices() if devices is None else devices
    devices = sorted(devices, key=lambda one: (_process_of(one), one.id))
    if self.data == -1 and len(devices) % self.model:
      raise ConfigurationError(
        f'Layout.model = {self.model} does not divide {len(devices)} devices; '
        'choose a divisor.'
      )
    data = len(devices) // self.model if self.data == -1 else self.data
    wanted = data * self.model
    if wanted > len(devices) or (
      wanted < len(devices) and jax.process_count() > 1
    ):
      raise ConfigurationError(
        f'Layout.data × Layout.model = {data} × {self.model} needs {wanted} '
        f'devices, there are {len(devices)}; set Layout.data = -1 to use all.'
      )
    # Explicit axes, the default of jax.make_mesh, would make every constraint
    # below raise: the compiler is to propagate shardings, guided by them.
    return Mesh(
      np.array(devices[:wanted]).reshape(data, self.model),
      MESH_AXES,
      axis_types=(AxisType.Auto,) * len(MESH_AXES),
    )
