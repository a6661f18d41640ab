"""A trace of what host and devices do, for xprof; see `--profile`."""

import re

from rest_jax import scratch
from rest_jax.errors import ConfigurationError


class Profile:
  """Traces some steps of the first stage that makes so many.

  A step is an update where a stage trains, and a batch where it decodes or
  scores, counted from the stage's beginning in this process.
  """

  def __init__(self, steps: str, folder: str):
    """Traces nothing yet.

    Args:
      steps: 'START:STOP': after step START, until step STOP is made.
      folder: where a folder is made for the stage that is traced.

    Raises:
      ConfigurationError: no such steps.
    """
    match = re.fullmatch(r'(\d+):(\d+)', steps)
    if match is None or not 1 <= int(match[1]) < int(match[2]):
      raise ConfigurationError(
        f'--profile={steps}: write START:STOP, two steps with 1 ≤ START < STOP,'
        ' such as 10:15.'
      )
    self._start, self._stop = int(match[1]), int(match[2])
    self._folder = folder
    self._stage: str | None = None  # That is being traced, or was.
    self._tracing = False

  def step(self, stage: str, made: int) -> str | None:
    """Begins or ends the trace where it is time to.

    Args:
      stage: that makes steps.
      made: how many, so far.

    Returns:
      Where the trace lies, once it is written.
    """
    if self._stage is None and made == self._start:
      import jax  # Those who only show progress need not wait for it.

      self._stage, self._tracing = stage, True
      jax.profiler.start_trace(str(scratch.local(self._path)))
    elif self._tracing and made == self._stop:
      return self.close()
    return None

  def close(self) -> str | None:
    """Writes what is traced until now; returns where."""
    if not self._tracing:
      return None
    import jax

    self._tracing = False
    jax.profiler.stop_trace()
    scratch.publish(self._path)
    scratch.remove(self._path)
    return self._path

  @property
  def _path(self) -> str:
    return f'{self._folder}/{self._stage}'
