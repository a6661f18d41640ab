"""Compiled programs are kept, so that a run that goes on compiles none.

Of several processes JAX has the first alone keep what it compiles. The others
find it where they share its disk and run the same program, as in training; what
each decodes on a TPU's devices of its own they compile again after every start.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

from rest_jax import scratch
from rest_jax.storage import PathLike

FOLDER = 'compilation_cache'  # In a run directory.
_VARIABLE = 'JAX_COMPILATION_CACHE_DIR'


@contextlib.contextmanager
def kept(folder: PathLike | None, model_dir: PathLike) -> Iterator[None]:
  """Keeps what JAX compiles within, and takes from there what it finds.

  JAX knows a program by its text, its options and the versions and devices
  that it is compiled for, so what changed is compiled anew. A folder may serve
  several runs, and may be deleted at any time.

  Args:
    folder: where to; None: the environment's JAX_COMPILATION_CACHE_DIR, and
      without it a folder of the run directory, or one that stands for it.
    model_dir: the run directory.
  """
  if folder is None and os.environ.get(_VARIABLE):
    yield
    return
  before = jax.config.jax_compilation_cache_dir
  if folder is None:
    folder = scratch.local(os.path.join(model_dir, FOLDER))
  jax.config.update('jax_compilation_cache_dir', os.fspath(folder))
  try:
    with warnings.catch_warnings():
      # Nothing is lost with it, and a full disk is told of by what matters.
      warnings.filterwarnings('ignore', 'Error .* persistent compilation cache')
      yield
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
    compilation_cache.reset_cache()
