"""Parts of a stage that several processes write, each its own.

They need not take the same time: a process that has done its parts waits at the
end for those that get on with theirs.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rest_jax import hosts, preemption
from rest_jax.run_directory import Stage

Infos = dict[str, dict[str, Any]]  # Part → counts; see `Stage.write_part`.


def deal(stage: Stage, names: Sequence[str]) -> tuple[list[str], Infos]:
  """Deals the parts that are still to be made to the processes.

  Args:
    stage: begun; what it has of these parts may come from any number of
      processes.
    names: of all parts; the same in all processes.

  Returns:
    The parts that this process is to make, and what is known of those that it
    found made. Every part is in one of the two, in one process.

  Raises:
    CorruptStateError: a part was altered since it was written.
    HostsError: a process failed, or did not come.
  """
  found = {}
  for name in hosts.mine(names):
    found[name] = stage.part(name)
    preemption.check()
  left = [name for name, info in found.items() if info is None]
  of_all = hosts.gather(f'the parts of {stage.name} that are left', left)
  stage.shared = hosts.count() > 1
  stage.seconds_before = sum(
    info.get('seconds', 0.0) for info in found.values() if info is not None
  )
  wanted = {name for of_one in of_all for name in of_one}
  return (
    list(hosts.mine(name for name in names if name in wanted)),
    {name: info for name, info in found.items() if info is not None},
  )


def commit(
  stage: Stage,
  infos: Mapping[str, Mapping[str, Any]],
  counted: Sequence[str],
  began: float,
  extra: dict[str, Any] | None = None,
) -> None:
  """Commits a stage whose parts all processes have written.

  Args:
    stage: begun; has all parts when every process has called this.
    infos: part → counts, of the parts of this process; `seconds` of a part are
      added where it was made before this start.
    counted: names of the counts to sum.
    began: when the stage began, by `time.monotonic`.
    extra: see `Stage.commit`.

  Raises:
    HostsError: a process failed, or did not come.
  """
  everything: dict[str, Mapping[str, Any]] = {}
  before = 0.0  # What earlier starts spent, on the processes that there are.
  mine = [dict(infos), stage.seconds_before]
  for of_one, seconds in hosts.gather(f'the parts of {stage.name}', mine):
    everything |= of_one
    before += seconds / hosts.count()

  def finish() -> None:
    for name in everything:
      hosts.see(stage.folder / name)
    counts = {
      key: sum(info.get(key, 0) for info in everything.values())
      for key in counted
    }
    seconds = before + time.monotonic() - began
    stage.commit(counts, seconds, extra, parts=everything)

  hosts.on_first(finish)
