"""A stage with a number for every row of a store, part by part."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float32

from rest_jax import hosts, parts, preemption
from rest_jax.context import Context
from rest_jax.data import store
from rest_jax.run_directory import Stage

# The path of a part of samples → float32 [rows].
Scorer = Callable[[epath.Path], Float32[np.ndarray, ' rows']]


def run(
  context: Context,
  stage: Stage,
  samples: Stage,
  make_scorer: Callable[[], Scorer],
  extra: dict[str, Any] | None = None,
) -> None:
  """Scores every row of a grown dataset; each process writes parts of its own.

  Args:
    context: the run.
    stage: where to write; begun.
    samples: the grown dataset; committed.
    make_scorer: called once in every process, when it is known what is left.
    extra: see `Stage.commit`.

  Raises:
    PreemptionError: SIGTERM came; what is written stays.
  """
  began = time.monotonic()
  samples.verify()
  # As committed: a listing of the folder may differ from host to host (NFS).
  names = [
    name for name in sorted(samples.manifest['files']) if store.is_part(name)
  ]
  left, infos = parts.deal(stage, names)
  score = make_scorer()
  done = before = sum(info['rows'] for info in infos.values())
  total = store.count_rows(samples.folder) // hosts.count()
  for name in left:
    since, path = time.monotonic(), samples.folder / name
    hosts.see(path)
    scores = score(path)
    info = {'rows': len(scores), 'seconds': time.monotonic() - since}
    stage.write_part(name, store.scores_part(path, scores), info)
    infos[name] = info
    done += info['rows']
    context.progress.update(
      done, total, **{'rows/s': (done - before) / (time.monotonic() - began)}
    )
    preemption.check()
  parts.commit(stage, infos, ('rows',), began, extra)
