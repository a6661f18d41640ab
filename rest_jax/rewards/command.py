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

import collections
import contextlib
import dataclasses
import json
import os
import select
import selectors
import shlex
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from rest_jax import errors
from rest_jax.rewards import base, guard

_STDERR_LINES = 5  # Of the program's, in a message.
_MAX_LINE = 1 << 16  # Bytes of an answer; a longer one is no score.
_MAX_READS = 256  # In a row, of a program that never stops writing.
_LOOK_AFTER = 0.02  # Seconds to wait for answers that nobody asked for.
_END_SECONDS = 5.0
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

  process: '_Process | None' = None

  def start(self, process: '_Process') -> None:
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

  def _score_batch(self, rows: list['_Row']) -> list[float]:
    """Scores of a batch; whatever goes wrong ends the process."""
    for left in reversed(range(self.restarts + 1)):
      try:
        if self._running.process is None:
          self._start(rows[0])
        return self._running.process.ask(rows, self.batch_seconds)
      except _FailureError as failure:
        tail = self._running.process.last_words()
        self._running.end(politely=False)
        if not (failure.died and left):
          raise self._error(failure, rows, tail) from None
      except BaseException:  # Interrupted: its answers would be misread.
        self._running.end(politely=False)
        raise
    raise AssertionError('the last failure was raised')

  def _start(self, row: '_Row') -> None:
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
      process = _Process(
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
    except _FailureError as failure:
      raise dataclasses.replace(failure, died=False, starting=True) from None

  def _error(
    self, failure: '_FailureError', rows: list['_Row'], tail: str
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


_Row = tuple[str, str, str | None]  # Source, candidate, reference.


@dataclasses.dataclass(eq=False)
class _FailureError(Exception):
  """What a program did wrong.

  Attributes:
    what: in words that follow 'the command'.
    row: of the batch, from 0.
    died: whether it may do better when started again.
    starting: whether it has answered nothing yet.
  """

  what: str
  row: int
  died: bool = False
  starting: bool = False


class _Process:
  """A running program and its pipes, on none of which we ever block."""

  def __init__(self, argv, directory, environment):
    leash, self._leash = os.pipe()
    try:
      self._popen = subprocess.Popen(
        [sys.executable, '-I', '-S', guard.__file__, str(leash), *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=directory,
        env=environment,
        pass_fds=(leash,),
        bufsize=0,
        # A Ctrl-C is for the run, which then ends the program.
        start_new_session=True,
      )
    except OSError:
      os.close(self._leash)
      raise
    finally:
      os.close(leash)
    popen = self._popen
    for pipe in (popen.stdin, popen.stdout, popen.stderr):
      os.set_blocking(pipe.fileno(), False)
    self._open = {popen.stdout, popen.stderr}
    self._lines: collections.deque[str] = collections.deque()
    self._pieces = {popen.stdout: b'', popen.stderr: b''}
    self._said: collections.deque[str] = collections.deque(maxlen=_STDERR_LINES)
    self._next_id = 0

  def ask(self, rows: list[_Row], seconds: float) -> list[float]:
    """Sends rows and waits for their scores.

    Raises:
      _FailureError: the program did not answer as it should.
    """
    first = self._next_id
    self._next_id += len(rows)
    names = ('id', 'left', 'source', 'candidate', 'reference')
    data = ''.join(
      json.dumps(
        dict(zip(names, (first + i, len(rows) - 1 - i, *row), strict=True))
      )
      + '\n'
      for i, row in enumerate(rows)
    )
    self._look(0.0)  # What came since the last answer was due.
    if self._lines:
      raise _FailureError(f'wrote {self._lines[0]!r:.200} unasked', 0)
    self._exchange(data.encode('utf-8'), len(rows), seconds)
    answers = [self._lines.popleft() for _ in rows]
    scores = [
      _score_in(answer, first + i, i) for i, answer in enumerate(answers)
    ]
    if len(answers[-1].split()) == 1 and not self._lines:
      self._look(_LOOK_AFTER)  # One too many of bare scores would shift all.
    if self._lines:
      raise _FailureError(
        f'gave more than {len(rows)} answers ({self._lines[0]!r:.200} is too'
        ' many)', len(rows) - 1,
      )  # fmt: skip
    return scores

  def _exchange(self, data: bytes, count: int, seconds: float) -> None:
    """Writes all data and reads until there are `count` lines."""
    deadline = time.monotonic() + seconds
    stdin, left = self._popen.stdin, memoryview(data)
    with selectors.DefaultSelector() as selector:
      selector.register(stdin, selectors.EVENT_WRITE)
      for pipe in self._open:
        selector.register(pipe, selectors.EVENT_READ)
      while len(self._lines) < count:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
          raise _FailureError(
            f'gave {len(self._lines)} of {count} answers in {seconds:g} s (is'
            ' its output flushed? are the limits of Command long enough?)',
            len(self._lines),
          )
        ready = [key.fileobj for key, _ in selector.select(min(0.2, remaining))]
        # Its last words are read before it counts as dead.
        if not ready and self._popen.poll() is not None:
          raise self._death()
        for pipe in ready:
          if pipe is not stdin:
            if not self._read(pipe):
              selector.unregister(pipe)
          elif left:
            left = left[self._write(left[:_MAX_LINE]) :]
          else:
            selector.unregister(stdin)
        if self._popen.stdout not in self._open and len(self._lines) < count:
          raise self._death()

  def _write(self, data: memoryview) -> int:
    """Writes what fits; to a program that stopped reading, all is written."""
    try:
      return os.write(self._popen.stdin.fileno(), data)
    except BlockingIOError:
      return 0
    except BrokenPipeError:
      return len(data)

  def _look(self, seconds: float) -> None:
    """Reads what is there already, or comes within some seconds."""
    for _ in range(_MAX_READS):
      ready, _, _ = select.select([*self._open], [], [], seconds)
      if not ready:
        return
      for pipe in ready:
        self._read(pipe)

  def _read(self, pipe) -> bool:
    """Reads what is there; whether more may come."""
    try:
      data = os.read(pipe.fileno(), 1 << 16)
    except BlockingIOError:
      return True
    *lines, rest = (self._pieces[pipe] + data).split(b'\n')
    if not data:
      self._open.discard(pipe)
      lines, rest = ([rest] if rest else []), b''
    if pipe is self._popen.stderr:
      rest = rest[-_MAX_LINE:]
      # Progress bars return to the start of their line.
      said = [line.rpartition(b'\r')[2] for line in lines]
      self._said.extend(_text(line) for line in said if line.strip())
    else:
      if len(rest) > _MAX_LINE:
        lines, rest = [*lines, rest[:_MAX_LINE]], b''
      self._lines.extend(map(_text, lines))
    self._pieces[pipe] = rest
    return bool(data)

  def _death(self) -> _FailureError:
    with contextlib.suppress(subprocess.TimeoutExpired):
      self._popen.wait(_END_SECONDS)
    code = self._popen.returncode
    how = 'closed its output' if code is None else f'ended with status {code}'
    never = code == guard.NOT_STARTED
    answered = len(self._lines)
    return _FailureError(f'{how} after {answered} answers', answered, not never)

  def last_words(self) -> str:
    """The last lines of its standard error, in one."""
    self._look(0.0)
    rest = _text(self._pieces[self._popen.stderr])
    return ' | '.join([*self._said, *([rest] if rest else [])]) or 'nothing'

  def end(self, politely: bool = True) -> None:
    """Ends it: by the end of its input, else by signals."""
    popen = self._popen
    popen.stdin.close()
    if politely:
      with contextlib.suppress(subprocess.TimeoutExpired):
        popen.wait(_END_SECONDS)
    os.close(self._leash)  # The guard's sign.
    try:
      popen.wait(2 * _END_SECONDS)
    except subprocess.TimeoutExpired:
      popen.kill()
      popen.wait()
    popen.stdout.close()
    popen.stderr.close()


def _text(line: bytes) -> str:
  return line.decode('utf-8', errors='replace').strip()


def _score_in(answer: str, wanted: int, row: int) -> float:
  """The score of an answer, which may begin with the id of its row."""
  *ids, text = answer.split() or ['']
  try:
    id_, score = int(*ids) if ids else wanted, float(text)
  except (TypeError, ValueError):
    raise _FailureError(
      f'answered {answer!r:.200} instead of a score', row
    ) from None
  if id_ != wanted:
    raise _FailureError(
      f'answered the row with id {id_} where that with id {wanted} was due', row
    )
  if not np.isfinite(score):
    raise _FailureError(f'answered {answer!r:.200}, which is no number', row)
  return score
