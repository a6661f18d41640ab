"""The policies of a run: which are trained, from what, in which order."""

import dataclasses
import re

from rest_jax import improve, losses, online, selection
from rest_jax.context import IMPORTED
from rest_jax.rest import ReST


@dataclasses.dataclass(frozen=True)
class PolicyPlan:
  """A policy of the run, as a row of the results.

  Attributes:
    stage: its stage.
    label: its name in the results, e.g. 'G1 I2'.
    start: stage of the policy that it starts from; None for BC.
    grow_step: g, 0 for BC.
    improve_step: i, None for BC.
    trained_on: what its training rows are, for people.
    reported: whether it is evaluated in a whole run.
  """

  stage: str
  label: str
  start: str | None = None
  grow_step: int = 0
  improve_step: int | None = None
  trained_on: str = 'D'
  reported: bool = True


ONLINE = 'online/'  # What the stages of online baselines begin with.
# And those of all policies that are there to compare with.
CONTROLS = ('continued/', 'random/', 'permuted/', ONLINE)
_IMPROVE = re.compile(
  r'((?P<control>continued|random|permuted)/)?'
  r'grow_(?P<g>\d+)/improve_(?P<i>\d+)'
)


def loss_of(run: ReST, policy: PolicyPlan) -> losses.PolicyLoss:
  """The loss that a policy is trained with."""
  if policy.start is None:
    return run.supervised.training.loss
  if policy.stage.startswith(ONLINE):
    return online_of(run, policy).loss
  control = policy.stage.startswith('continued/')
  return improve.loss_of(run.improve, 'continued' if control else 'none')


def online_of(run: ReST, policy: PolicyPlan) -> online.Online:
  """The settings of an online baseline."""
  name = policy.stage.removeprefix(ONLINE)
  return next(found for found in run.online if found.algorithm == name)


def of_stage(name: str) -> PolicyPlan | None:
  """The policy of a stage, by its name alone; None for other stages.

  What it starts from and was trained on is not told by that.
  """
  if name.startswith(ONLINE):
    label = name.removeprefix(ONLINE).upper()
    return PolicyPlan(name, label, trained_on='', reported=False)
  found = _IMPROVE.fullmatch(name)
  if found is None:
    return None
  g, i = int(found['g']), int(found['i'])
  label = _label(g, i, found['control'])
  return PolicyPlan(name, label, None, g, i, '', reported=False)


def _label(grow_step: int, improve_step: int, control: str | None) -> str:
  """The name of an Improve step, or of a control of it, in the results."""
  if control == 'continued':
    return f'BC+ {grow_step}.{improve_step}'
  label = f'G{grow_step} I{improve_step}'
  return f'{label} {control}' if control else label


def policies(run: ReST) -> list[PolicyPlan]:
  """All policies of a run, in the order in which they are trained."""
  bc = PolicyPlan('supervised', 'BC')
  out, controls, start = [bc], [], bc
  continued = bc
  for g in range(1, run.num_grow + 1):
    random = permuted = start
    for i in run.improve_steps:
      last = (g, i) == (run.num_grow, run.num_improve)
      if run.improve.restart_from_base:
        # A control starts as its twin does.
        start = random = permuted = continued = bc
      # Those of other steps are what the last one's start from.
      controlled = last or not run.improve.restart_from_base
      filtered = 'all' if i == 0 else run.improve.schedule.label(i)
      twin = f'grow_{g}/improve_{i}'
      start = PolicyPlan(twin, _label(g, i, None), start.stage, g, i, filtered)
      out.append(start)
      if 'continued' in run.controls and controlled:
        continued = PolicyPlan(
            f'continued/{twin}',
            'BC+' if last else _label(g, i, 'continued'),
            continued.stage, g, i, 'D alone', last,
        )  # fmt: skip
        controls.append(continued)
      if 'random' in run.controls and g == run.num_grow and controlled:
        if i == 0 and not selection.uses_rewards(run.improve.after):
          random = start  # Without a filter both are the same.
        else:
          random = PolicyPlan(
              f'random/{twin}', _label(g, i, 'random'), random.stage, g, i,
              f'random, as many as {filtered}', last,
          )  # fmt: skip
          controls.append(random)
      if 'permuted' in run.controls and g == run.num_grow and controlled:
        if i == 0 and not run.improve.uses_rewards:
          permuted = start  # There is nothing to permute.
        else:
          permuted = PolicyPlan(
              f'permuted/{twin}', _label(g, i, 'permuted'),
              permuted.stage, g, i, f'{filtered}, rewards permuted', last,
          )  # fmt: skip
          controls.append(permuted)
  for settings in run.online:
    controls.append(
      PolicyPlan(
        f'{ONLINE}{settings.algorithm}',
        settings.algorithm.upper(),
        bc.stage,
        trained_on='samples of its own',
      )
    )
  return out + controls


def stores(run: ReST, grow_step: int) -> tuple[str, ...]:
  """The stores of scored rows that make up D_g."""
  imported = () if run.imported_samples is None else (IMPORTED,)
  first = 1 if run.improve.accumulate else grow_step
  grown = (f'grow_{g}' for g in range(first, grow_step + 1))
  return (*grown, *imported)
