"""What every side of a comparison is: a process that works when it is told to.

It warms up, says that it is ready, and then does its work once for each line on
its standard input, answering with the seconds that it took. So the sides can
take turns while each keeps its programs, weights and threads.
"""

import json
import os
import pathlib
import resource
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

SOURCES, SAMPLES, LENGTH, NEW_TOKENS, PAIRS = 16, 8, 32, 32, 64
# Of `natural`: samples of real sources by a real policy, as long as they come.
NATURAL_SAMPLES, NATURAL_ROWS, NATURAL_LONGEST = 16, 256, 64
TEMPERATURE, NUM_BEAMS = 0.8, 4
VOCAB_SIZE = 32128
_WARM_UPS, _WARM_SECONDS = 2, 20.0


def sources(rows: int = SOURCES) -> np.ndarray:
  """int32 [rows, LENGTH] of ids at random, each ended by EOS (1)."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(3, VOCAB_SIZE - 128, (rows, LENGTH))
  tokens[:, -1] = 1
  return tokens.astype(np.int32)


def targets(rows: int = PAIRS) -> np.ndarray:
  """int32 [rows, LENGTH], likewise."""
  return sources(2 * rows)[rows:]


def natural(folder: str | pathlib.Path) -> list[list[int]]:
  """The sources of `natural`, EOS included, as `compare.py` wrote them."""
  return json.loads(pathlib.Path(folder, 'sources.json').read_text())


def natural_batches(
  folder: str | pathlib.Path, buckets: tuple[int, ...] = (32, 64)
) -> list[np.ndarray]:
  """Those sources in batches, like lengths together, 0 after the end.

  Args:
    folder: where they are.
    buckets: lengths that sources are padded to.
  """
  ordered = sorted(natural(folder), key=len)
  size = NATURAL_ROWS // NATURAL_SAMPLES
  batches = []
  for start in range(0, len(ordered), size):
    some = ordered[start : start + size]
    length = min(x for x in buckets if x >= len(some[-1]))
    batches.append(
      np.array([row + [0] * (length - len(row)) for row in some], np.int32)
    )
  return batches


def pairs(folder: str | pathlib.Path) -> list[tuple[list[int], list[int]]]:
  """The pairs of `improve`, EOS included, as `compare.py` wrote them."""
  read = json.loads(pathlib.Path(folder, 'pairs.json').read_text())
  return [tuple(pair) for pair in read]


def padded(sequences: Sequence[Sequence[int]]) -> np.ndarray:
  """int32 [k, longest], 0 after the end of each."""
  out = np.zeros((len(sequences), max(map(len, sequences))), np.int32)
  for row, sequence in zip(out, sequences, strict=True):
    row[: len(sequence)] = sequence
  return out


def serve(work: Callable[[], int], about: str) -> None:
  """Answers for ever.

  Args:
    work: does it once, all of it, and returns how many tokens it made.
    about: the library and its version.
  """
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # Whatever else prints, prints to standard error.
  began = time.perf_counter()
  for _ in range(_WARM_UPS):
    work()
    if time.perf_counter() - began > _WARM_SECONDS:
      break
  print(json.dumps({'about': about}), file=answers, flush=True)
  for _ in sys.stdin:
    began = time.perf_counter()
    tokens = work()
    seconds = time.perf_counter() - began
    print(
      json.dumps({'seconds': seconds, 'tokens': tokens, 'peak_mb': _peak()}),
      file=answers,
      flush=True,
    )


def _peak() -> float:
  """The most memory that this process has had, in MB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
