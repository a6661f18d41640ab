"""A job of several processes, as one of them sees it through JAX's service.

The coordination service keeps what is set under keys for all to read, and says
nothing of who is missing; that is found out here. See `hosts`, by which
everything else asks.
"""

import dataclasses
import json
import time
from collections.abc import Mapping
from typing import Any

from rest_jax import errors

KEY = 'rest_jax'  # Before all keys of ours.
FAILED = f'{KEY}/failed'
_LEFT = f'{KEY}/left/'
PROGRESS = f'{KEY}/progress/'
POLL_SECONDS = 1.0  # Between two looks whether another process has failed.


@dataclasses.dataclass
class Job:
  """More than one process, seen from this one.

  Attributes:
    client: of JAX's coordination service.
    index: number of this process.
    names: the host of every process.
    heartbeat_seconds: after which JAX takes a silent process for dead.
    barrier_seconds: after which a process that does not come is missing.
    turn: how often the processes have come together.
    alone: whether the first process works while the others wait for it.
    told: keys that the others may still have to read.
    steps: how often this process has said that it gets on.
    lost: those that did not come.
    next_look: before which it need not look again, by `time.monotonic`.
  """

  client: Any
  index: int
  names: list[str]
  heartbeat_seconds: int
  barrier_seconds: float
  turn: int = 0
  alone: bool = False
  told: list[str] = dataclasses.field(default_factory=list)
  steps: int = 0
  lost: list[int] = dataclasses.field(default_factory=list)
  next_look: float = 0.0

  def describe(self, index: int) -> str:
    return f'process {index} on {self.names[index]}'

  def set(self, key: str, value: Any) -> None:
    self.client.key_value_set(key, json.dumps(value))

  def has(self, key: str) -> str | None:
    """What is set under a key, if anything is."""
    try:
      return self.client.key_value_try_get(key)
    except RuntimeError:  # Not found, JAX says.
      return None

  def within(self, folder: str) -> dict[int, Any]:
    """What processes have set in a folder, by their number."""
    return {
      int(key.rpartition('/')[2]): json.loads(value)
      for key, value in self.client.key_value_dir_get(folder)
    }

  def missing(self, found: Mapping[int, Any]) -> list[int]:
    return [i for i in range(len(self.names)) if i not in found]

  def raise_if_failed(self) -> None:
    """Raises what another process has told before it ended."""
    if (told := self.has(FAILED)) is not None:
      index, exit_code, text = json.loads(told)
      raise errors.HostsError(f'{self.describe(index)}: {text}', exit_code)

  def say_that_it_leaves(self) -> None:
    self.client.key_value_set(f'{_LEFT}{self.index}', '""', True)

  def await_others(self) -> None:
    """Waits until the others have left, but for those that are lost."""
    deadline = time.monotonic() + self.heartbeat_seconds
    while time.monotonic() < deadline:
      left = {self.index, *self.lost, *self.within(_LEFT)}
      if not self.missing(dict.fromkeys(left)):
        return
      time.sleep(0.1)

  def collect(self, folder: str, what: str) -> list[Any]:
    """What every process has set in a folder, for the first process."""
    patience, pause = _Patience(self, self.barrier_seconds), 0.002
    while missing := self.missing(found := self.within(folder)):
      self.raise_if_failed()
      if patience.ended:
        patience.renew_for(missing, what)
      time.sleep(pause)
      pause = min(1.5 * pause, 0.25)
    for index, (other, _) in found.items():
      if other != what:
        raise errors.HostsError(
          f'{self.describe(index)} is at {other!r}, and the first process at'
          f' {what!r}: start the same command on all hosts.'
        )
    return [found[i][1] for i in range(len(self.names))]

  def wait_for(
    self, key: str, folder: str | None = None, what: str = ''
  ) -> Any:
    """What the first process tells.

    Args:
      key: where it does.
      folder: where all processes set something before it can tell; None waits
        as long as the first process lives.
      what: they come to, for the error.
    """
    patience = _Patience(self, self.barrier_seconds + 10 * POLL_SECONDS)
    while True:
      try:
        value = self.client.blocking_key_value_get(
          key, int(1000 * POLL_SECONDS)
        )
        return json.loads(value)
      except RuntimeError as error:
        if 'DEADLINE_EXCEEDED' not in str(error):
          raise
      self.raise_if_failed()
      if folder is None or not patience.ended:
        continue
      found = self.within(folder)
      if 0 in found or self.has(key) is not None:
        patience.renew()  # The first is there: it finds out, and tells.
      else:
        patience.renew_for(self.missing(found), what)


class _Patience:
  """How long to wait for others: longer while they get on with their work."""

  def __init__(self, job: Job, seconds: float):
    self._job, self._seconds = job, seconds
    self.renew()

  def renew(self) -> None:
    self._deadline = time.monotonic() + self._seconds
    self._progress = self._job.within(PROGRESS)

  @property
  def ended(self) -> bool:
    return time.monotonic() > self._deadline

  def renew_for(self, missing: list[int], what: str) -> None:
    """Waits on for processes that do not come.

    Raises:
      HostsError: one of them has not got on in all the time; it is named.
    """
    now, job = self._job.within(PROGRESS), self._job
    stuck = [i for i in missing if now.get(i) == self._progress.get(i)]
    if stuck:
      job.lost = stuck
      raise errors.HostsError(
        f'{", ".join(map(job.describe, stuck))} did not come to {what!r}'
        f' within {job.barrier_seconds:g} s: look at its log, and start the'
        ' same command again on all hosts; --barrier_seconds sets the limit.'
      )
    self.renew()
