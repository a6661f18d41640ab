"""A program that answers rows with scores: its process and its pipes.

`command.Command` says what it reads and writes, and is all that others use.
"""

import collections
import contextlib
import dataclasses
import json
import os
import select
import selectors
import subprocess
import sys
import time

import numpy as np

from rest_jax.rewards import guard

_STDERR_LINES = 5  # Of the program's, in a message.
_MAX_LINE = 1 << 16  # Bytes of an answer; a longer one is no score.
_MAX_READS = 256  # In a row, of a program that never stops writing.
_LOOK_AFTER = 0.02  # Seconds to wait for answers that nobody asked for.
_END_SECONDS = 5.0

Row = tuple[str, str, str | None]  # Source, candidate, reference.


@dataclasses.dataclass(eq=False)
class FailureError(Exception):
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


class Process:
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

  def ask(self, rows: list[Row], seconds: float) -> list[float]:
    """Sends rows and waits for their scores.

    Raises:
      FailureError: the program did not answer as it should.
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
      raise FailureError(f'wrote {self._lines[0]!r:.200} unasked', 0)
    self._exchange(data.encode('utf-8'), len(rows), seconds)
    answers = [self._lines.popleft() for _ in rows]
    scores = [
      _score_in(answer, first + i, i) for i, answer in enumerate(answers)
    ]
    if len(answers[-1].split()) == 1 and not self._lines:
      self._look(_LOOK_AFTER)  # One too many of bare scores would shift all.
    if self._lines:
      raise FailureError(
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
          raise FailureError(
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

  def _death(self) -> FailureError:
    with contextlib.suppress(subprocess.TimeoutExpired):
      self._popen.wait(_END_SECONDS)
    code = self._popen.returncode
    how = 'closed its output' if code is None else f'ended with status {code}'
    never = code == guard.NOT_STARTED
    answered = len(self._lines)
    return FailureError(f'{how} after {answered} answers', answered, not never)

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
    raise FailureError(
      f'answered {answer!r:.200} instead of a score', row
    ) from None
  if id_ != wanted:
    raise FailureError(
      f'answered the row with id {id_} where that with id {wanted} was due', row
    )
  if not np.isfinite(score):
    raise FailureError(f'answered {answer!r:.200}, which is no number', row)
  return score
