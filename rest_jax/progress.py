"""What a run says while it works: progress bars on a terminal, else lines.

The only writer to the terminal during a stage, and the only writer of
TensorBoard files. Nothing here influences what a run computes.
"""

import contextlib
import io
import socket
import sys
import time
from collections.abc import Iterator, Mapping

import rich.console
import rich.progress

from rest_jax import scratch, storage
from rest_jax.profiling import Profile

_PLAIN_SECONDS = 15.0  # Seconds between two lines when not on a terminal.
_FLUSH_SECONDS = 30.0  # Seconds after which TensorBoard sees what was written.
_COPY_SECONDS = 300.0  # Likewise in a store, which takes the whole file anew.


def _format(value: float) -> str:
  if isinstance(value, int) or abs(value) >= 1000:
    return f'{value:,.0f}'
  return f'{value:.4g}'


def _describe(metrics: Mapping[str, float]) -> str:
  return '  '.join(f'{k} {_format(v)}' for k, v in metrics.items())


def clock(seconds: float) -> str:
  """`seconds` as minutes and seconds, with hours where there are any."""
  minutes, rest = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{rest:02}' if hours else f'{minutes}:{rest:02}'


class Progress:
  """Shows which stage runs, how far it is and when it will be done.

  On a terminal one live bar a stage; elsewhere a plain line every 15 seconds.
  """

  def __init__(
    self,
    stream: io.TextIOBase | None = None,
    tensorboard: str | None = None,
    profile: Profile | None = None,
  ):
    """Writes to `stream` (standard error by default).

    Args:
      stream: where text goes.
      tensorboard: folder of the TensorBoard files; None writes none.
      profile: what traces some steps.
    """
    self._console = rich.console.Console(
      file=stream or sys.stderr,
      highlight=False,
      emoji=False,
      soft_wrap=True,
    )
    self._tensorboard, self._profile = tensorboard, profile
    if tensorboard is not None:
      scratch.remove(tensorboard)  # What a killed process left.
    self._updates = 0
    self._files: dict[str, _EventFile] = {}
    self._bar = None
    self._stage = ''
    self._began = self._last_line = self._first_time = 0.0
    self._first_done = None

  @contextlib.contextmanager
  def stage(self, name: str) -> Iterator[None]:
    """Brackets one stage; says how long it took when it ends well."""
    self._stage, self._began = name, time.monotonic()
    self._last_line, self._first_done = self._began, None
    self._updates = 0
    if self._console.is_terminal:
      self._bar = rich.progress.Progress(
        rich.progress.TextColumn('{task.description}'),
        rich.progress.BarColumn(bar_width=24),
        rich.progress.TextColumn('{task.fields[text]}'),
        console=self._console,
        transient=True,
      )
      self._task = self._bar.add_task(name, total=None, text='starting')
      self._bar.start()
    else:
      self.note('starting')
    try:
      yield
      self.note(f'done in {clock(time.monotonic() - self._began)}')
    finally:
      self._tell(self._profile and self._profile.close())
      if self._bar is not None:
        self._bar.stop()
      self._bar, self._stage = None, ''

  def count_anew(self) -> None:
    """Steps are counted from the start again, and so is the time left."""
    self._first_done = None

  def update(self, done: int, total: int, **metrics: float) -> None:
    """Shows that `done` of `total` steps are made, with their metrics.

    Args:
      done: steps made.
      total: steps in all; 0 where nobody knows.
      **metrics: figures to show beside.
    """
    self._updates += 1
    self._tell(self._profile and self._profile.step(self._stage, self._updates))
    now = time.monotonic()
    if self._first_done is None:  # Resumed work is not counted as speed.
      self._first_done, self._first_time = done, now
    made, spent = done - self._first_done, now - self._first_time
    left = ''
    if made > 0 and total:
      left = f'  left {clock(spent / made * max(total - done, 0))}'
    of = f'/{total:,}' if total else ''
    text = f'{done:,}{of}  {_describe(metrics)}{left}'
    if self._bar is not None:
      self._bar.update(
        self._task, completed=done, total=total or None, text=text
      )
    elif now - self._last_line >= _PLAIN_SECONDS:
      self._last_line = now
      self.note(text)

  def _tell(self, trace: str | None) -> None:
    if trace:
      self.note(f'a trace for xprof lies in {trace}')

  def note(self, text: str) -> None:
    """Prints one line, headed by the name of the stage."""
    head = f'[{self._stage}] ' if self._stage else ''
    self._console.print(head + text, markup=False)

  def scalars(self, run: str, step: int, metrics: Mapping[str, float]) -> None:
    """Writes `metrics` at `step` to the TensorBoard run of that name.

    Raises:
      StorageError: they cannot be written.
    """
    if self._tensorboard is None:
      return
    with storage.reporting(f'{self._tensorboard}/{run}'):
      if run not in self._files:
        self._files[run] = _EventFile(f'{self._tensorboard}/{run}')
      self._files[run].write(step, metrics)

  def close(self) -> None:
    """Flushes and closes the TensorBoard files.

    Raises:
      StorageError: one cannot be written.
    """
    files, self._files = self._files, {}
    for run, file in files.items():
      with storage.reporting(f'{self._tensorboard}/{run}'):
        file.close()
    if files:
      scratch.remove(self._tensorboard)


class _EventFile:
  """A TensorBoard file, written in the caller's thread.

  tensorboardX's SummaryWriter has a thread of its own; a full disk ends that,
  and whoever writes the tenth scalar after it waits for ever.
  """

  def __init__(self, folder: str):
    from tensorboardX import record_writer  # Slow, so only where needed.

    name = f'events.out.tfevents.{time.time():.0f}.{socket.gethostname()}'
    self._path = f'{folder}/{name}'
    self._written = scratch.local(self._path)
    record_writer.directory_check(str(self._written.parent))
    self._records = record_writer.RecordWriter(str(self._written))
    self._write(file_version='brain.Event:2')
    self._flushed = time.monotonic()
    self._local = storage.is_local(folder)

  def _write(self, **content) -> None:
    from tensorboardX.proto import event_pb2

    event = event_pb2.Event(wall_time=time.time(), **content)
    self._records.write(event.SerializeToString())

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    from tensorboardX import summary

    for name, value in metrics.items():
      self._write(step=step, summary=summary.scalar(name, float(value)))
    wait = _FLUSH_SECONDS if self._local else _COPY_SECONDS
    if time.monotonic() - self._flushed >= wait:
      self._flush()

  def _flush(self) -> None:
    self._records.flush()
    if not self._local:
      storage.write_atomic(self._path, self._written.read_bytes())
    self._flushed = time.monotonic()

  def close(self) -> None:
    try:
      self._flush()
    finally:
      self._records.close()
