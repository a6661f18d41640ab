"""What the compiler says of a program: memory, operations, bytes, collectives.

Everything is of one chip. The compiler counts the body of a loop once, and an
array that is updated in place as if it were read and written whole.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

_KINDS = (
  'all-gather',
  'reduce-scatter',
  'all-reduce',
  'all-to-all',
  'collective-permute',
)
_COLLECTIVE = re.compile(
  rf'^\s*(?:ROOT )?%?[\w.-]+ = (.+?) ({"|".join(_KINDS)})(-start)?\('
)
_COMPUTATION = re.compile(r'^(?:ENTRY )?%?([\w.-]+) .*\{$')
_ARRAY = re.compile(r'\b([a-z]\w*)\[([\d,]*)\]')
_GROUPS = re.compile(r'replica_groups=\{\{([\d,]*)\}')
_IOTA_GROUPS = re.compile(r'replica_groups=\[([\d,]+)\]<=')
_MESH_GROUPS = re.compile(r'replica_groups=mesh\[([^]]*)\][^{]*\{([^}]*)\}')
_AXIS = re.compile(r"'(\w+)'=(\d+)")
_CHANNEL = re.compile(r'channel_id=(\d+)')


@dataclasses.dataclass(frozen=True)
class Collective:
  """An exchange between chips.

  Attributes:
    kind: as XLA names it, 'all-gather' and so on.
    bytes: of its largest side on one chip: what a gather gives, what a
      reduction reads.
    chips: that take part in one group.
  """

  kind: str
  bytes: int | float
  chips: int

  @property
  def moved(self) -> float:
    """Bytes that a chip must send at least, over all of its links.

    (n − 1) / n of the whole for a gather, a scatter or an exchange among n, and
    twice that where a sum must reach all (Thakur et al. 2005, Optimization of
    collective communication operations in MPICH, section 4).
    """
    if self.kind == 'collective-permute':
      return self.bytes
    share = (self.chips - 1) / self.chips
    return (2 if self.kind == 'all-reduce' else 1) * share * self.bytes


@dataclasses.dataclass(frozen=True)
class Costs:
  """What one run of a program takes on one chip.

  Attributes:
    flops: operations.
    bytes: read and written, as the compiler counts them.
    collectives: kind → (how many, bytes, bytes that must be sent).
  """

  flops: float
  bytes: int | float
  collectives: Mapping[str, tuple[float, float, float]]

  @property
  def moved(self) -> float:
    """Bytes sent to other chips."""
    return sum(sent for _, _, sent in self.collectives.values())

  def __add__(self, other: 'Costs') -> 'Costs':
    kinds = {**self.collectives, **other.collectives}
    none = (0.0, 0.0, 0.0)
    return Costs(
      self.flops + other.flops,
      self.bytes + other.bytes,
      {
        kind: tuple(
          a + b
          for a, b in zip(
            self.collectives.get(kind, none),
            other.collectives.get(kind, none),
            strict=True,
          )
        )
        for kind in sorted(kinds)
      },
    )

  def __mul__(self, factor: int | float) -> 'Costs':
    return Costs(
      self.flops * factor,
      self.bytes * factor,
      {
        kind: tuple(factor * x for x in figures)
        for kind, figures in self.collectives.items()
      },
    )

  def __sub__(self, other: 'Costs') -> 'Costs':
    return self + other * -1.0


def extrapolate(one: Costs, two: Costs, layers: int) -> Costs:
  """Costs of `layers` layers from those of one and of two.

  Every further layer costs what the second one did.
  """
  return one + (two - one) * (layers - 1)


@dataclasses.dataclass(frozen=True)
class Memory:
  """What a program needs of one chip's memory, in bytes.

  Attributes:
    arguments: what it is given, such as parameters and optimizer state.
    outputs: what it returns and that takes no argument's place.
    temporaries: what it keeps meanwhile: activations, gradients, caches.
    code: the program.
  """

  arguments: float
  outputs: float
  temporaries: float
  code: float

  @property
  def total(self) -> float:
    """All of it."""
    return self.arguments + self.outputs + self.temporaries + self.code


def memory_of(compiled: Any) -> Memory:
  """The memory of a `jax.stages.Compiled`."""
  stats = compiled.memory_analysis()
  return Memory(
    arguments=float(stats.argument_size_in_bytes),
    outputs=float(stats.output_size_in_bytes - stats.alias_size_in_bytes),
    temporaries=float(stats.temp_size_in_bytes),
    code=float(stats.generated_code_size_in_bytes),
  )


def costs_of(compiled: Any) -> Costs:
  """The costs of a `jax.stages.Compiled`."""
  analysis = compiled.cost_analysis()
  kinds: dict[str, tuple[float, float, float]] = {}
  for found in collectives_in(compiled.as_text()):
    count, size, sent = kinds.get(found.kind, (0.0, 0.0, 0.0))
    kinds[found.kind] = (count + 1, size + found.bytes, sent + found.moved)
  return Costs(
    float(analysis.get('flops', 0.0)),
    float(analysis.get('bytes accessed', 0.0)),
    kinds,
  )


def collectives_in(text: str) -> list[Collective]:
  """The collectives of a compiled module's text, each once.

  One that goes on beside computations is written again in each of them, and
  under the same channel.
  """
  found, computation, channels = [], '', set()
  for line in text.splitlines():
    if opened := _COMPUTATION.match(line):
      computation = opened[1]
    match = _COLLECTIVE.match(line)
    if match is None:
      continue
    if channel := _CHANNEL.search(line):
      if channel[1] in channels:
        continue
      channels.add(channel[1])
    kind, chips = match[2], _group_size(line)
    arrays = [_array_bytes(*array) for array in _ARRAY.findall(match[1])]
    size = float(sum(arrays))
    if match[3] and kind == 'all-gather':
      size *= chips / (chips + 1)  # The operands are listed beside the results.
    elif match[3] and kind == 'collective-permute':
      size = float(max(arrays))
    if kind == 'reduce-scatter':
      size *= chips
    # A sum of which a chip keeps its part, as the TPU's compiler writes it.
    if kind == 'all-reduce' and 'reduce-scatter' in computation:
      kind = 'reduce-scatter'
    if chips > 1:
      found.append(Collective(kind, size, chips))
  return found


def _group_size(line: str) -> int:
  """How many chips take part together; three ways to write it are in use."""
  if groups := _IOTA_GROUPS.search(line):
    return int(groups[1].split(',')[-1])
  if groups := _GROUPS.search(line):
    return groups[1].count(',') + 1
  if groups := _MESH_GROUPS.search(line):
    sizes = {name: int(size) for name, size in _AXIS.findall(groups[1])}
    return math.prod(
      sizes[name] for name in groups[2].replace("'", '').split(',')
    )
  if 'source_target_pairs=' in line:
    return 2
  raise ValueError(f'cannot tell which chips take part: {line.strip()}')


def _array_bytes(dtype: str, shape: str) -> float:
  bits = re.search(r'\d+', dtype)
  size = 1.0 if dtype == 'pred' or bits is None else int(bits[0]) / 8
  return size * math.prod(int(n) for n in shape.split(',') if n)
