"""Published facts about TPU chips, and the shapes of their slices.

Google Cloud's pages `TPU v4`, `TPU v5e`, `TPU v5p` and `TPU v6e`
(docs.cloud.google.com/tpu/docs/v5e and so on, read in 2026). They give the
links between chips in both directions together; here is one direction, half of
it. For v4 they give none: 6 links of 50 GB/s, Jouppi et al. 2023,
arXiv:2304.01433, table 4.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from rest_jax.errors import ConfigurationError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """A kind of TPU chip.

  Attributes:
    name: as libtpu knows it.
    flops: bfloat16 operations a second, at most.
    memory: bytes of HBM.
    bandwidth: bytes a second between HBM and the chip.
    links: bytes a second that leave a chip over all of its links to others.
    dimensions: of the slices' shapes.
    pod: chips of a whole pod, the largest slice.
    kind: as JAX names its devices.
  """

  name: str
  flops: float
  memory: float
  bandwidth: float
  links: float
  dimensions: int
  pod: int
  kind: str


CHIPS = {
  chip.name: chip
  for chip in (
    Chip('v4', 275e12, 32.0 * GIB, 1200e9, 300e9, 3, 4096, 'TPU v4'),
    Chip('v5e', 197e12, 16e9, 819e9, 200e9, 2, 256, 'TPU v5 lite'),
    Chip('v5p', 459e12, 95.0 * GIB, 2765e9, 600e9, 3, 8960, 'TPU v5'),
    Chip('v6e', 918e12, 32e9, 1638e9, 400e9, 2, 256, 'TPU v6 lite'),
  )
}


def peak_of(devices: Sequence[Any]) -> float | None:
  """Operations a second of some `jax.Device`s; None if one is no TPU here."""
  peaks = {chip.kind: chip.flops for chip in CHIPS.values()}
  found = [peaks.get(device.device_kind) for device in devices]
  return None if None in found else sum(found)


# The slices that `--topology=all` looks at, small ones first.
_SHAPES = {
  2: ('2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16'),
  3: ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8'),
}


@dataclasses.dataclass(frozen=True)
class Slice:
  """Chips that are rented together.

  Attributes:
    chip: their kind.
    shape: how many lie along each dimension.
  """

  chip: Chip
  shape: tuple[int, ...]

  @property
  def name(self) -> str:
    """As it is written on the command line, such as 'v5e:4x4'."""
    return f'{self.chip.name}:{"x".join(map(str, self.shape))}'

  @property
  def num_chips(self) -> int:
    """Chips in all."""
    return math.prod(self.shape)

  @property
  def host_chips(self) -> int:
    """Chips of one host: 4, or 8 where the slice is one host of 8."""
    alone = self.chip.dimensions == 2 and self.num_chips == 8
    return 8 if alone else min(4, self.num_chips)

  @property
  def host(self) -> 'Slice':
    """The part of it that one host has."""
    if self.num_chips <= self.host_chips:
      return self
    return Slice(self.chip, (2, 2, 1)[: self.chip.dimensions])


def parse(topology: str) -> Slice:
  """Reads 'v5e:4x4' or 'v5p:4x4x8'.

  Raises:
    ConfigurationError: an unknown chip, or a shape that it does not have.
  """
  match = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', topology)
  if match is None or match[1] not in CHIPS:
    raise ConfigurationError(
      f'--topology={topology} is unknown; write a chip of {", ".join(CHIPS)}'
      " and a slice's shape, such as v5e:4x4 or v5p:2x2x4, or all."
    )
  chip = CHIPS[match[1]]
  shape = tuple(int(size) for size in match[2].split('x'))
  if len(shape) != chip.dimensions or not 1 <= math.prod(shape) <= chip.pod:
    raise ConfigurationError(
      f'--topology={topology}: slices of {chip.name} have {chip.dimensions}'
      f' dimensions and at most {chip.pod:,} chips; write for example'
      f' {chip.name}:{_SHAPES[chip.dimensions][2]}.'
    )
  return Slice(chip, shape)


def common_slices() -> list[Slice]:
  """Usual slices of every kind of chip, small ones first."""
  return [
    parse(f'{chip.name}:{shape}')
    for chip in CHIPS.values()
    for shape in _SHAPES[chip.dimensions]
  ]
