"""Loads seqio, TensorFlow and TFDS: when called, for that takes 6–14 s."""

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

from rest_jax import errors


def import_seqio():
  """seqio, with TensorFlow kept quiet and off the accelerators.

  Raises:
    ConfigurationError: seqio is not installed.
  """
  try:
    with _quiet():
      import seqio
    import_tensorflow()
  except ImportError as error:
    raise errors.ConfigurationError(
      f'the data stage needs seqio ({error}): pip install seqio'
    ) from error
  return seqio


def import_tensorflow() -> None:
  """Has TensorFlow, whose file system object stores are, quiet and alone."""
  with _quiet():
    import tensorflow as tf
  # It would take all of a GPU's or TPU's memory from jax.
  for kind in ('GPU', 'TPU'):
    try:
      tf.config.set_visible_devices([], kind)
    except RuntimeError:
      break  # TensorFlow has started already, on what it was given then.


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Around imports of TensorFlow and its friends, who warn there.

  What they write to stderr is held back, and shown after an error: TensorFlow's
  C++ logs at import, before any of its settings is read.
  """
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  with contextlib.ExitStack() as stack:
    stack.enter_context(warnings.catch_warnings(action='ignore'))
    if 'tensorflow' not in sys.modules:
      stack.enter_context(_held_stderr())
    yield


@contextlib.contextmanager
def _held_stderr() -> Iterator[None]:
  sys.stderr.flush()
  kept = os.dup(2)
  with tempfile.TemporaryFile() as held:
    os.dup2(held.fileno(), 2)
    try:
      yield
    except BaseException:
      held.seek(0)
      os.write(kept, held.read())
      raise
    finally:
      os.dup2(kept, 2)
      os.close(kept)


def read_tfds(
  name: str, split: str, source: str, target: str
) -> Iterator[tuple[str, str]]:
  """Pairs of a TensorFlow data set, which is downloaded where it is missing.

  Args:
    name: such as 'wmt19_translate/zh-en'.
    split: such as 'train'.
    source: name of the source's feature.
    target: name of the target's feature.

  Yields:
    (source, target).

  Raises:
    DataError: it cannot be downloaded or prepared.
  """
  import_seqio()
  import tensorflow_datasets as tfds

  try:
    dataset = tfds.load(name, split=split, shuffle_files=False)
  except errors.PreemptionError:
    raise
  except Exception as error:  # tfds raises errors of many libraries.
    raise errors.DataError(
      f'TFDS {name} cannot be prepared ({" ".join(str(error).split())}):'
      ' fetch on a connected machine, or use the parts that the mtdata recipe'
      ' wmt22-zhen names'
    ) from error
  for row in tfds.as_numpy(dataset):
    yield row[source].decode(), row[target].decode()
