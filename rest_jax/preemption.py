"""SIGTERM: the machine is about to be taken away, so save, and start again.

Every state of a run is written whole or not at all, so a run may be ended at
any point; only training has something to save that is dear, and defers the end
until it has saved. With several processes JAX hears the signal, whichever of
them it is sent to. In training it lets all of them stop at the same update; in
other work, where one is ahead of another, each stops as soon as it is told.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator

from rest_jax import errors, hosts

_heard = False
_deferred = False
_calls = 0  # Of `due`, in step with the other processes.
_NOTICE = 'RECEIVED_PREEMPTION_NOTICE'  # Where JAX tells all of the signal.


@contextlib.contextmanager
def heard() -> Iterator[None]:
  """Turns SIGTERM within into `PreemptionError`; see `deferred`."""
  global _heard
  _heard = False
  # JAX has the signal where there are several processes.
  if hosts.count() > 1 or (
    threading.current_thread() is not threading.main_thread()
  ):
    yield
    return
  before = signal.signal(signal.SIGTERM, _hear)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)
    _heard = False


def _hear(number, frame) -> None:
  del number, frame
  global _heard
  _heard = True
  if not _deferred:
    raise preempted()


def preempted() -> errors.PreemptionError:
  """The error that ends the run."""
  return errors.PreemptionError(
    'SIGTERM: what was made is saved; the same command goes on from here'
  )


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """Within, the signal is only noted, and `due` tells of it.

  Raises:
    PreemptionError: at the end, if nobody has asked.
  """
  with _deferring(True):
    yield
  if _heard:
    raise preempted()


@contextlib.contextmanager
def prompt() -> Iterator[None]:
  """Within, inside of `deferred`, the signal ends the run at once.

  Raises:
    PreemptionError: it came before, or comes.
  """
  with _deferring(False):
    if _heard:
      raise preempted()
    yield


@contextlib.contextmanager
def _deferring(value: bool) -> Iterator[None]:
  global _deferred
  before, _deferred = _deferred, value
  try:
    yield
  finally:
    _deferred = before


def due() -> bool:
  """Whether to stop here. All processes have to ask as often as each other."""
  global _calls
  if hosts.count() == 1:
    return _heard
  from jax.experimental import multihost_utils

  _calls += 1
  return multihost_utils.reached_preemption_sync_point(_calls)


def check() -> None:
  """Ends the run here if the machine is about to be taken away.

  Cheap, and meant for every batch of work that processes do by themselves; by
  it they also learn that another process has failed, and tell that they get on.
  What comes next must not be a collective: the others may be there already, and
  wait for this one.

  Raises:
    PreemptionError: it is.
    HostsError: another process failed.
  """
  if _heard if hosts.count() == 1 else hosts.get_on(_NOTICE):
    raise preempted()


def look_for_failures() -> None:
  """Tells that this process gets on, and learns of others' failures.

  For work that SIGTERM does not end in its midst.

  Raises:
    HostsError: another process failed.
  """
  if hosts.count() > 1:
    hosts.get_on(_NOTICE)


def check_together() -> None:
  """Ends the run here in all processes, which come here equally often.

  For batches that they work on together, where `check` would end some.

  Raises:
    PreemptionError: SIGTERM came to one.
  """
  if due():
    raise preempted()


def agree() -> None:
  """Ends the run in all processes or in none, before work of them together.

  Raises:
    PreemptionError, HostsError: as `check`.
  """
  noticed = _heard
  if hosts.count() > 1:
    noticed = hosts.get_on(_NOTICE, at_once=True)
  if any(hosts.gather('whether to stop', noticed)):
    raise preempted()
