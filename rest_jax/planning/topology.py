"""A pod that is not there: its devices, for which programs are compiled."""

import dataclasses
import importlib.util
import os

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from rest_jax.errors import ConfigurationError
from rest_jax.planning import chips
from rest_jax.sharding import Layout

# Without these libtpu asks the machine's cloud what it is part of. The type is
# this machine's, which has none, and not that of the slice.
_ALONE = {
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
}

# A chip of v4 has two cores, which are one device on the VMs.
_CHIPS = {'v4': {'chip_config_name': 'megacore'}}


def devices(wanted: chips.Slice) -> tuple[jax.Device, ...]:
  """The devices of a slice, to compile for; none of them can run anything.

  Must be called before JAX is used for anything else: it is told that this
  machine has no TPU, so that none is waited for.

  Raises:
    ConfigurationError: libtpu is missing, cannot be loaded, or does not know
      the slice.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise ConfigurationError(
      '--run_mode=plan compiles with libtpu, which is not installed; on Linux,'
      " pip install '.[plan]' in its folder."
    )
  for name, value in _ALONE.items():
    os.environ.setdefault(name, value)
  jax.config.update('jax_platforms', 'cpu')
  options = dict(_CHIPS.get(wanted.chip.name, {}))
  if wanted.host_chips != 4:  # What libtpu takes a host to have.
    options['chips_per_host_bounds'] = [*wanted.shape, 1]
  try:
    description = topologies.get_topology_desc(
      platform='tpu', topology_name=wanted.name, **options
    )
  except Exception as error:  # libtpu has no type of its own for it.
    said = ' '.join(str(error).split())
    raise ConfigurationError(
      f'--topology={wanted.name} cannot be compiled for: {said[:300]}. Choose'
      ' a slice that Google Cloud offers; where the message speaks of a lock'
      ' file, another process uses libtpu: wait for it.'
    ) from error
  return tuple(description.devices)


@dataclasses.dataclass(frozen=True)
class OnSlice(Layout):
  """A layout over given devices instead of this machine's.

  Attributes:
    devices: of the slice.
  """

  devices: tuple[jax.Device, ...] = ()

  @classmethod
  def of(cls, layout: Layout, devices: tuple[jax.Device, ...]) -> 'OnSlice':
    """The same layout over `devices`.

    Raises:
      ConfigurationError: it does not use all of them, or they do not divide.
    """
    fields = {
      field.name: getattr(layout, field.name)
      for field in dataclasses.fields(Layout)
    }
    out = cls(**fields, devices=devices)
    if (used := out.mesh().size) != len(devices):
      raise ConfigurationError(
        f'Layout.data × Layout.model uses {used} of {len(devices)} devices; set'
        ' Layout.data = -1, or name a smaller --topology.'
      )
    return out

  def mesh(self, devices: list[jax.Device] | None = None) -> Mesh:
    """See `Layout.mesh`."""
    return super().mesh(list(self.devices) if devices is None else devices)
