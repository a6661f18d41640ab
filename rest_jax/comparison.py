"""What a comparison finds out: contrasts of policies, and frontiers."""

import dataclasses
import difflib
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64

from rest_jax import significance
from rest_jax.compared_runs import Evaluated, Run
from rest_jax.compared_systems import System
from rest_jax.errors import ConfigurationError

# Columns of results.csv, and what they are called here.
FIGURES = {
  'reward_mean': 'reward',
  'bleu': 'BLEU',
  'chrf': 'chrF',
  'kl_bc': 'KL from BC',
}
COSTS = {'samples_drawn': 'samples drawn', 'device_seconds': 'device-seconds'}
_REWARD = 'reward_mean'
_WANTED = {_REWARD: 1, 'bleu': 1, 'kl_bc': -1}  # Of a frontier: more, or less.


@dataclasses.dataclass(frozen=True)
class Contrast:
  """One policy held against another by one measure.

  Attributes:
    first: name of the one.
    second: name of the other.
    measure: column of the results.
    seeds: how many pairs of runs: of each seed that both have, else (none) one
      of each in the order of their seeds.
    paired: whether these are of the same seed.
    difference: `second` less `first`, the mean over the pairs; × 100 as the
      figures are.
    interval: 95 %, by paired bootstrap over sources.
    over_seeds: Student's 95 % interval over the pairs; None for fewer than two.
    p_bootstrap: of the paired bootstrap.
    p_randomisation: of paired approximate randomisation.
    planned: whether it was named beforehand.
    holm_bootstrap: corrected for all that were not; None for those that were.
    holm_randomisation: likewise.
  """

  first: str
  second: str
  measure: str
  seeds: int
  paired: bool
  difference: float
  interval: tuple[float, float]
  over_seeds: tuple[float, float] | None
  p_bootstrap: float
  p_randomisation: float
  planned: bool
  holm_bootstrap: float | None = None
  holm_randomisation: float | None = None


@dataclasses.dataclass(frozen=True)
class Budget:
  """Who is not beaten by anybody that costs no more than so much.

  Attributes:
    cost: column of the results.
    most: the cost at most.
    best: names of the policies that cost no more and are not dominated.
  """

  cost: str
  most: float
  best: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Tests:
  """How two policies are tested.

  Attributes:
    num_resamples: of the paired bootstraps.
    num_trials: of approximate randomisation.
  """

  num_resamples: int = 1000
  num_trials: int = 10000


def find(name: str, systems: Sequence[System]) -> System:
  """The policy of that name.

  Args:
    name: in full; or without its group, where one alone has it.
    systems: all policies.

  Raises:
    ConfigurationError: there is none, or more than one.
  """
  for system in systems:
    if name == system.name or name in system.also:
      return system
  found = [system for system in systems if system.policy == name]
  if len(found) == 1:
    return found[0]
  if found:
    raise ConfigurationError(
      f'Compare.contrasts names {name!r}, which may be'
      f' {" or ".join(repr(system.name) for system in found)}; give one of'
      ' these.'
    )
  names = [system.name for system in systems]
  near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
  raise ConfigurationError(
    f'Compare.contrasts names {name!r}, which is none of the policies compared'
    f' (did you mean {near[0]!r}?): {", ".join(map(repr, names))}.'
  )


def contrasts(
  systems: Sequence[System],
  like: Run,
  named: Sequence[tuple[str, str]],
  *,
  every_two: bool,
  tests: Tests,
  advance: Callable[[int, int], None] = lambda done, total: None,
) -> list[Contrast]:
  """The contrasts that were named beforehand, then those of every two others.

  Args:
    systems: all policies.
    like: any run, for its references and language.
    named: pairs of names.
    every_two: whether to test the rest.
    tests: how.
    advance: called with the pairs done and all there are.

  Returns:
    For each pair one for each measure; those that were not named are corrected
    by Holm, each measure and test by itself.

  Raises:
    ConfigurationError: a name is none, or both are of the same policy.
  """
  planned = [(find(a, systems), find(b, systems)) for a, b in named]
  for (one, other), names in zip(planned, named, strict=True):
    if one is other:
      raise ConfigurationError(
        f'Compare.contrasts holds {names[0]!r} against {names[1]!r}, which are'
        f' the same policy, {one.name!r}.'
      )
  taken = {frozenset((a.name, b.name)) for a, b in planned}
  rest = [
    pair
    for pair in itertools.combinations(systems, 2)
    if every_two and frozenset(s.name for s in pair) not in taken
  ]
  found: list[Contrast] = []
  for number, (first, second) in enumerate([*planned, *rest]):
    advance(number, len(planned) + len(rest))
    found += _contrast(first, second, like, number < len(planned), tests)
  return _corrected(found)


def _corrected(found: Sequence[Contrast]) -> list[Contrast]:
  out = [contrast for contrast in found if contrast.planned]
  for measure in FIGURES:
    rest = [c for c in found if c.measure == measure and not c.planned]
    by_bootstrap = significance.holm([c.p_bootstrap for c in rest])
    by_randomisation = significance.holm([c.p_randomisation for c in rest])
    out += [
      dataclasses.replace(c, holm_bootstrap=p, holm_randomisation=q)
      for c, p, q in zip(rest, by_bootstrap, by_randomisation, strict=True)
    ]
  return out


def _pairs(
  first: System, second: System
) -> tuple[list[tuple[Evaluated, Evaluated]], bool]:
  """Runs to hold against each other, and whether they are of equal seeds."""
  shared = sorted(first.runs.keys() & second.runs.keys())
  if shared:
    return [(first.runs[seed], second.runs[seed]) for seed in shared], True
  orders = (
    [system.runs[seed] for seed in sorted(system.runs)]
    for system in (first, second)
  )
  return list(zip(*orders, strict=False)), False


def _contrast(
  first: System, second: System, like: Run, planned: bool, tests: Tests
) -> Iterator[Contrast]:
  """One pair, by each measure."""
  pairs, paired = _pairs(first, second)

  def made(measure: str, differences: Sequence[float], **tested) -> Contrast:
    return Contrast(
      first=first.name,
      second=second.name,
      measure=measure,
      seeds=len(pairs),
      paired=paired,
      difference=float(np.mean(differences)),
      over_seeds=significance.t_interval(differences),
      planned=planned,
      **tested,
    )

  rewards = np.array([100 * (b.rewards - a.rewards) for a, b in pairs])
  # Seeds share their sources, which are what is drawn.
  by_source: Float64[np.ndarray, ' k'] = rewards.mean(axis=0)
  low, high, p = significance.paired_bootstrap(by_source, tests.num_resamples)
  yield made(
    _REWARD,
    rewards.mean(axis=1).tolist(),
    interval=(low, high),
    p_bootstrap=p,
    p_randomisation=significance.approximate_randomisation(
      by_source, tests.num_trials
    ),
  )
  if like.references is None:
    return
  tested = significance.corpus_tests(
    [(a.beams, b.beams) for a, b in pairs],
    like.references,
    like.target_language,
    num_resamples=tests.num_resamples,
    num_trials=tests.num_trials,
  )
  for metric, found in tested.items():
    yield made(
      metric,
      found.differences,
      interval=found.interval,
      p_bootstrap=found.p_bootstrap,
      p_randomisation=found.p_randomisation,
    )


def non_dominated(
  points: Float[np.ndarray, 'n m'],
) -> Bool[np.ndarray, ' n']:
  """Which points no other beats: as good in everything, better in something.

  >>> non_dominated(np.array([[1.0, 3.0], [2.0, 2.0], [1.0, 2.0]])).tolist()
  [True, True, False]

  Args:
    points: [n, m]; more is better.
  """
  no_worse = (points[:, None] >= points[None]).all(axis=-1)
  better = (points[:, None] > points[None]).any(axis=-1)
  return ~(no_worse & better).any(axis=0)


def criteria(systems: Sequence[System]) -> list[str]:
  """What a frontier is of: of reward, BLEU and KL what any policy has."""
  return [
    name
    for name in _WANTED
    if any(system.mean(name) is not None for system in systems)
  ]


def placed(systems: Sequence[System], cost: str) -> list[System]:
  """The policies that have all of `criteria` and this cost, cheapest first."""
  names = [*criteria(systems), cost]
  known = [s for s in systems if None not in [s.mean(name) for name in names]]
  return sorted(known, key=lambda system: system.mean(cost))


def frontier(systems: Sequence[System], cost: str) -> list[Budget]:
  """The frontiers of reward, BLEU and KL at rising cost, where they change.

  Args:
    systems: all policies; means over their seeds are compared.
    cost: column of the results.
  """
  known, names = placed(systems, cost), criteria(systems)
  points = np.array(
    [[_WANTED[name] * s.mean(name) for name in names] for s in known]
  )
  out: list[Budget] = []
  for number, system in enumerate(known):
    most = system.mean(cost)
    if number + 1 < len(known) and known[number + 1].mean(cost) == most:
      continue  # Who costs as much is held against it.
    mask = non_dominated(points[: number + 1])
    best = tuple(
      s.name for s, is_best in zip(known, mask, strict=False) if is_best
    )
    if not out or set(out[-1].best) != set(best):
      out.append(Budget(cost, most, best))
  return out
