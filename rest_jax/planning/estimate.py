"""Seconds and hours, worked out from costs and a chip's published figures."""

import dataclasses

from rest_jax.planning.chips import Chip
from rest_jax.planning.costs import Costs


@dataclasses.dataclass(frozen=True)
class Floor:
  """The least time a program can take on a chip, by each of three bounds.

  Attributes:
    compute: seconds of its operations at the chip's peak.
    memory: seconds of its bytes at the memory's bandwidth.
    collectives: seconds of what it sends, over all links at once.
  """

  compute: float
  memory: float
  collectives: float

  @classmethod
  def of(cls, costs: Costs, chip: Chip) -> 'Floor':
    """The floor of these costs."""
    return cls(
      costs.flops / chip.flops,
      costs.bytes / chip.bandwidth,
      costs.moved / chip.links,
    )

  @property
  def seconds(self) -> float:
    """The largest of the three: they may overlap wholly."""
    return max(self.compute, self.memory, self.collectives)

  @property
  def bound(self) -> str:
    """Which of the three it is."""
    return max(
      ('compute', 'memory', 'collectives'),
      key=lambda name: getattr(self, name),
    )


@dataclasses.dataclass(frozen=True)
class Work:
  """How much there is to do in a whole run, as its configuration says.

  Attributes:
    supervised_updates: at most; training may stop sooner.
    improve_updates: at most, of all Improve steps and controls together.
    sources: of one Grow step, or None where only the data would tell.
    num_samples: N.
    num_grow: G.
    evaluated_samples: drawn on D_select while Improve steps train.
  """

  supervised_updates: int
  improve_updates: int
  sources: int | None
  num_samples: int
  num_grow: int
  evaluated_samples: int


@dataclasses.dataclass(frozen=True)
class Hours:
  """Estimated hours of a run's parts, all at the programs' floors.

  Attributes:
    supervised: of BC.
    grow: of all Grow steps; None where the number of sources is not known.
    improve: of all updates of Improve steps and controls.
    evaluate: of the samples on D_select while they train.
  """

  supervised: float
  grow: float | None
  improve: float
  evaluate: float

  @property
  def total(self) -> float:
    """Of what is known."""
    return self.supervised + (self.grow or 0.0) + self.improve + self.evaluate


def samples_per_second(
  start: Floor, step: Floor, steps: int, samples: int
) -> float:
  """Samples a second of Grow, where each takes all the steps it may."""
  return samples / (start.seconds + steps * step.seconds)


def hours(
  work: Work, supervised: float, improve: float, samples: float
) -> Hours:
  """Hours of the whole schedule.

  Args:
    work: what there is to do.
    supervised: seconds of an update of BC.
    improve: seconds of an update of an Improve step.
    samples: a second.
  """
  grow = None
  if work.sources is not None:
    grow = work.num_grow * work.sources * work.num_samples / samples / 3600
  return Hours(
    supervised=work.supervised_updates * supervised / 3600,
    grow=grow,
    improve=work.improve_updates * improve / 3600,
    evaluate=work.evaluated_samples / samples / 3600,
  )
