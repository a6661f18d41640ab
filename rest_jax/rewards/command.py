"""Any program as a reward: JSON lines in, a score a line out.

Metrics such as COMET pin packages that would break ours, so they run as a
program in an environment of their own. It reads on standard input, a line a
row,

  {"id": 7, "left": 0, "source": "…", "candidate": "…", "reference": null}

and answers each, in order, with a line on standard output: the score (`0.83`),
or the row's id, a tab and the score. The latter is checked, so that an answer
out of order is an error at once; of bare scores only the count can be checked
here, and the order by `--run_mode=check_reward`. `left` is how many rows of
the batch are still to come: a program that works in batches collects rows
until it is 0. There is no more input until all rows are answered. What it
writes on standard error ends up in error messages.

The program is kept alive between calls and ended with the run, also when that
is killed (`guard.py`).
"""

import dataclasses
import os
import shlex
import weakref
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from rest_jax import errors
from rest_jax.rewards import base
from rest_jax.rewards.process import FailureError, Process, Row

# Ours would lead another environment's Python to our packages.
_NOT_INHERITED = ('PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV')


def _running():
  return dataclasses.field(
    default_factory=_Running, init=False, repr=False, compare=False
  )


def _uncompared(default):
  # Scores are the same, so no stage is stale for it.
  return dataclasses.field(default=default, compare=False)


class _Running:
  """The process of a command while there is one."""

  process: Process | None = None

  def start(self, process: Process) -> None:
    self.process = process
    # Also at the end of the interpreter.
    self._finalizer = weakref.finalize(self, process.end)

  def end(self, politely: bool = True) -> None:
    if self.process is not None:
      self._finalizer.detach()
      self.process.end(politely)
      self.process = None


@dataclasses.dataclass(frozen=True)
class Command:
  """A program that scores; what it reads and writes stands above.

  Attributes:
    argv: the program and its arguments; no shell reads them.
    name: of the metric; see `RewardInfo`.
    version: changes whenever the same pair could get another score: of the
      metric, its weights and packages.
    low: the smallest raw score.
    high: the largest raw score.
    higher_is_better: False for error rates.
    needs_reference: whether it reads `reference`.
    trained_on: names of data sets that the metric was fitted on.
    directory: where it is started; None for here.
    environment: variables to set, besides ours (less those that lead Python to
      our packages).
    batch_size: rows sent before answers are waited for.
    start_seconds: limit from its start to its first answer.
    batch_seconds: limit for a batch.
    restarts: how often in a row it is started again when it dies on a batch.
  """

  argv: tuple[str, ...]
  name: str
  version: str
  low: float = 0.0
  high: float = 1.0
  higher_is_better: bool = True
  needs_reference: bool = False
  trained_on: tuple[str, ...] = ()
  directory: str | None = None
  environment: dict[str, str] = dataclasses.field(
    default_factory=dict, compare=False
  )
  batch_size: int = _uncompared(1024)
  start_seconds: float = _uncompared(600.0)
  batch_seconds: float = _uncompared(600.0)
  restarts: int = _uncompared(2)
  _running: _Running = _running()

  def __post_init__(self):
    if not self.argv:
      raise errors.ConfigurationError(
        'Command.argv is empty; give the program and its arguments, e.g.'
        " ('/envs/comet/bin/python', 'score.py')."
      )
    for name, least in (('batch_size', 1), ('restarts', 0)):
      if getattr(self, name) < least:
        raise errors.ConfigurationError(
          f'Command.{name} = {getattr(self, name)} must be at least {least}.'
        )
    for name in ('start_seconds', 'batch_seconds'):
      if not getattr(self, name) > 0:
        raise errors.ConfigurationError(
          f'Command.{name} = {getattr(self, name)} must be more than 0.'
        )
    self.info  # noqa: B018 It checks name and range.

  @property
  def info(self) -> base.RewardInfo:
    return base.RewardInfo(
      self.name, self.version, self.low, self.high, self.higher_is_better,
      self.needs_reference, self.trained_on,
    )  # fmt: skip

  def score(
    self,
    sources: Sequence[str],
    candidates: Sequence[str],
    references: Sequence[str] | None = None,
  ) -> Float32[np.ndarray, ' n']:
    """Scores n candidates by the program, which is started if need be.

    Returns:
      float32 [n], as the program gave them.

    Raises:
      RewardError: it cannot be started, dies again and again, does not answer
        in time, answers too little or too much, out of order, or what is no
        number. The message names command and row and ends with the last lines
        of its standard error.
    """
    if self.needs_reference:
      references = base.check_references(self.info, references)
    given = [None] * len(sources) if references is None else references
    rows = list(zip(sources, candidates, given, strict=True))
    scores: list[float] = []
    for start in range(0, len(rows), self.batch_size):
      scores += self._score_batch(rows[start : start + self.batch_size])
    return np.asarray(scores, np.float32)

  def close(self) -> None:
    """Ends the program, if it runs; the next call starts it again."""
    self._running.end()

  def _score_batch(self, rows: list[Row]) -> list[float]:
    """Scores of a batch; whatever goes wrong ends the process."""
    for left in reversed(range(self.restarts + 1)):
      try:
        if self._running.process is None:
          self._start(rows[0])
        return self._running.process.ask(rows, self.batch_seconds)
      except FailureError as failure:
        tail = self._running.process.last_words()
        self._running.end(politely=False)
        if not (failure.died and left):
          raise self._error(failure, rows, tail) from None
      except BaseException:  # Interrupted: its answers would be misread.
        self._running.end(politely=False)
        raise
    raise AssertionError('the last failure was raised')

  def _start(self, row: Row) -> None:
    """Starts the program and has it answer one row, alone.

    So loading a model has a time limit of its own, and a program that greets,
    or holds its answers back, is found before it is asked much.
    """
    environment = {
      name: value
      for name, value in os.environ.items()
      if name not in _NOT_INHERITED
    }
    # Its `print` is then seen at once, and any text can be printed.
    environment |= {'PYTHONUNBUFFERED': '1', 'PYTHONIOENCODING': 'utf-8'}
    try:
      process = Process(
        self.argv, self.directory, environment | self.environment
      )
    except OSError as error:
      raise errors.RewardError(
        f'reward {self.name!r}: the command {self._words()} cannot be started'
        f' in {self.directory!r} ({error.strerror}): correct Command.directory'
        ' or .argv.'
      ) from error
    self._running.start(process)
    try:
      process.ask([row], self.start_seconds)
    except FailureError as failure:
      raise dataclasses.replace(failure, died=False, starting=True) from None

  def _error(
    self, failure: FailureError, rows: list[Row], tail: str
  ) -> errors.RewardError:
    at = min(failure.row, len(rows) - 1)
    source, candidate, _ = rows[at]
    where = 'its first row' if failure.starting else f'row {at + 1}'
    again = f' after {self.restarts} restarts' if failure.died else ''
    return errors.RewardError(
      f'reward {self.name!r}: the command {self._words()} {failure.what}'
      f'{again}, at {where} of a batch of {len(rows)} (source {source!r:.200},'
      f' candidate {candidate!r:.200}); it last wrote on stderr: {tail}; mend'
      ' it and start the same command again.'
    )

  def _words(self) -> str:
    return f'`{shlex.join(self.argv)}`'
