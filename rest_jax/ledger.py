"""What a policy has cost, so that policies are compared at equal cost.

Every stage that a policy was made from counts once, its own run or another's
(GROW_FROM, …). A control does not pay for its twin, of which it takes only the
number of updates. Evaluations, checks and the data stage cost no policy.
"""

import dataclasses
from collections.abc import Iterator

from rest_jax import policy_plan, storage
from rest_jax.context import IMPORTED, Context
from rest_jax.run_directory import Stage


@dataclasses.dataclass(frozen=True)
class Spent:
  """The cost of a policy; None where a stage of an older version lacks it.

  Attributes:
    samples_grown: samples drawn to learn from, by policy or reward.
    samples_drawn: these, and those of D_select that decided when to stop.
    decoded_tokens: tokens of all of them, EOS counted.
    reward_calls: pairs of source and target that the reward was asked about,
      those whose score it remembered included.
    train_tokens: target tokens trained on, by every policy and value model
      that it was made from; those of policies that drew its samples too.
    device_seconds: seconds of the stages times the devices that each was made
      on; of a stage that was interrupted, all but what was lost with it, and
      of a learned reward those since its last start.
  """

  samples_grown: int | None
  samples_drawn: int | None
  decoded_tokens: int | None
  reward_calls: int | None
  train_tokens: int
  device_seconds: float | None


def spent(context: Context, policy_name: str) -> Spent:
  """The cost of a committed policy stage."""
  grown = tokens = calls = trained = 0
  selecting: list[tuple[int | None, int | None]] = []
  seconds: list[float | None] = []
  for stage in _stages(context, policy_name):
    counts = stage.manifest['counts']
    trained += counts.get('train_tokens', 0)
    if stage.name.endswith('/samples') and not _imported(stage):
      grown += counts['samples']
      tokens += counts['tokens']
    elif stage.name.endswith('/reward'):
      calls += counts['rows']
    elif stage.name.startswith(policy_plan.ONLINE):
      grown += counts['samples']
      calls += counts['samples']
      selecting.append((counts['select_samples'], counts['decoded_tokens']))
    elif '/improve_' in stage.name:
      selecting.append(
        (counts.get('select_samples'), counts.get('select_tokens'))
      )
    seconds.append(_device_seconds(stage))
  samples = _total(samples for samples, _ in selecting)
  more_tokens = _total(tokens for _, tokens in selecting)
  return Spent(
    samples_grown=grown,
    samples_drawn=_total((grown, samples)),
    decoded_tokens=_total((tokens, more_tokens)),
    reward_calls=_total((calls, samples)),
    train_tokens=trained,
    device_seconds=_total(seconds),
  )


def is_whole(context: Context, policy_name: str) -> bool:
  """Whether a policy and all that it was made from are there, as they were."""
  seen, left = set(), [policy_name]
  while left:
    stage = context.stage(left.pop())
    if not stage.committed:
      return False
    for name, fingerprint in stage.manifest['inputs'].items():
      if _is_binding(name) or name in seen:
        continue
      seen.add(name)
      above = context.stage(name)
      if not above.committed or above.fingerprint != fingerprint:
        return False
      left.append(name)
  return True


def _stages(context: Context, policy_name: str) -> Iterator[Stage]:
  """The policy's stage and all that it was made from, but for the data."""
  seen, left = set(), [policy_name]
  while left:
    name = left.pop()
    if name in seen or name == 'data' or _is_binding(name):
      continue
    seen.add(name)
    stage = context.stage(name)
    yield stage
    twin = name.partition('/')[2]  # Of a control, which reads it too.
    left += [above for above in stage.manifest['inputs'] if above != twin]


def _is_binding(name: str) -> bool:
  """Whether an input is a file outside of the run, named by its binding.

  Such as IMPORTED_SAMPLES or TrainReward.rows.path; stages have neither form.
  """
  return name.isupper() or '.' in name.partition('/')[0]


def _imported(stage: Stage) -> bool:
  return stage.name.startswith(f'{IMPORTED}/')


def _total(values):
  """The sum; None where a value is."""
  values = list(values)
  return None if None in values else sum(values)


def _device_seconds(stage: Stage) -> float | None:
  if made_on := stage.manifest.get('made_on'):
    return stage.manifest['seconds'] * made_on['devices']
  # Of an older version: all stages count as made by the last command.
  root = stage.folder.parents[stage.name.count('/')]
  if not (root / 'run.json').exists():
    return None
  devices = storage.read_json(root / 'run.json')['devices']
  return stage.manifest['seconds'] * len(devices)
