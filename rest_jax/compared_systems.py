"""The policies of several runs: seeds of one configuration together."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from rest_jax import storage
from rest_jax.compared_runs import Evaluated, Run


@dataclasses.dataclass(frozen=True)
class System:
  """One policy of one configuration, with all of its seeds.

  Attributes:
    name: the policy's; the group's before it where there are several.
    group: name of the runs of its configuration.
    policy: its name in the results.
    runs: seed → what its run found.
    paths: seed → its run directory.
    also: names that it has in other groups, which share it.
  """

  name: str
  group: str
  policy: str
  runs: Mapping[int, Evaluated]
  paths: Mapping[int, epath.Path]
  also: tuple[str, ...] = ()

  def values(self, figure: str) -> list[float]:
    """A figure of each seed; none at all where one lacks it."""
    found = [evaluated.figure(figure) for evaluated in self.runs.values()]
    return [] if None in found else found

  def mean(self, figure: str) -> float | None:
    """The mean of a figure over the seeds; None where one lacks it."""
    values = self.values(figure)
    return float(np.mean(values)) if values else None


def systems(runs: Sequence[Run]) -> list[System]:
  """The policies of all runs, each configuration's seeds together.

  What several configurations share, as runs do that branch from one, is there
  once, under the name of the one with most seeds, or the first of these.
  """
  grouped: dict[str, list[Run]] = {}
  for run in runs:
    grouped.setdefault(storage.fingerprint_of(run.config), []).append(run)
  # The same names, in whatever order a group's runs are given.
  groups = [sorted(g, key=lambda run: run.seed) for g in grouped.values()]
  names = group_names([[run.path for run in group] for group in groups])
  found: list[System] = []
  for name, group in zip(names, groups, strict=True):
    labels = dict.fromkeys(p.policy for run in group for p in run.policies)
    for label in labels:
      of_seeds = {
        run.seed: (policy, run.path)
        for run in group
        for policy in run.policies
        if policy.policy == label
      }
      system = System(
        name=f'{name} {label}' if len(groups) > 1 else label,
        group=name,
        policy=label,
        runs={seed: policy for seed, (policy, _) in of_seeds.items()},
        paths={seed: path for seed, (_, path) in of_seeds.items()},
      )
      found.append(system)
  return _shared_once(found)


def _shared_once(systems: Sequence[System]) -> list[System]:
  """Each policy once: where it has most seeds, and there the first."""
  out: list[System] = []
  # Whoever holds another comes before it, whatever the order of the runs.
  for system in sorted(systems, key=lambda system: -len(system.runs)):
    for place, other in enumerate(out):
      if _holds(other, system):
        also = (*other.also, system.name)
        out[place] = dataclasses.replace(other, also=also)
        break
    else:
      out.append(system)
  order = [system.name for system in systems]
  return sorted(out, key=lambda system: order.index(system.name))


def _holds(system: System, other: System) -> bool:
  """Whether `system` has all seeds of the other, of the same parameters."""
  prints = {seed: run.fingerprint for seed, run in system.runs.items()}
  return all(
    prints.get(seed) == run.fingerprint for seed, run in other.runs.items()
  )


def group_names(paths: Sequence[Sequence[epath.Path]]) -> list[str]:
  """Names of groups of run directories: what their paths have in common.

  >>> a = [[epath.Path('/r/seed_0/dpo'), epath.Path('/r/seed_1/dpo')]]
  >>> group_names(a)
  ['dpo']
  >>> group_names([[epath.Path('/r/bc_0'), epath.Path('/r/bc_1')]])
  ['bc']
  """
  longest = max(len(path.parts) for group in paths for path in group)
  for depth in range(1, longest + 1):
    names = [_common([path.parts[-depth:] for path in g]) for g in paths]
    if len(set(names)) == len(names):
      return names
  short = (_common([path.parts[-1:] for path in group]) for group in paths)
  return [f'{name} {number}' for number, name in enumerate(short, 1)]


def _common(ends: Sequence[Sequence[str]]) -> str:
  """What ends of paths share: equal parts, and how unequal ones begin."""
  shared = []
  for parts in zip(*ends, strict=False):
    begin = functools.reduce(_beginning, parts)
    shared.append(begin if len(set(parts)) == 1 else begin.rstrip('_-. '))
  return '/'.join(part for part in shared if part) or '/'.join(ends[0])


def _beginning(one: str, other: str) -> str:
  length = 0
  while length < min(len(one), len(other)) and one[length] == other[length]:
    length += 1
  return one[:length]
