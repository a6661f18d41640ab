"""The arrays of a checkpoint of ours, which orbax writes and reads.

Apart from `native`, since orbax takes a third of a second to import and most
commands that look at a run read no arrays.
"""

import math
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from rest_jax import hosts

_CHUNK_BYTES = 16 << 20  # What is read at a time, and so buffered, at least.

Tree = Any


def save(path: epath.Path, tree: Tree) -> None:
  """Writes a tree of arrays; every process its part.

  Args:
    path: absolute, of a folder that is not there.
    tree: a pytree of arrays.
  """
  with _checkpointer(tree) as checkpointer:
    args = jax.tree.map(
      lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree
    )
    checkpointer.save(
      path,
      args=ocp.args.PyTreeSave(
        tree, save_args=args, ocdbt_target_data_file_size=_CHUNK_BYTES
      ),
    )


def restore(path: epath.Path, abstract: Tree, *, partial: bool) -> Tree:
  """Reads a tree of arrays, each straight to where it shall lie.

  Args:
    path: absolute, that `save` wrote to.
    abstract: a pytree of `jax.ShapeDtypeStruct`.
    partial: whether more may lie there.
  """
  restore_args = ocp.checkpoint_utils.construct_restore_args(abstract)
  with _checkpointer(abstract) as checkpointer:
    return checkpointer.restore(
      path,
      args=ocp.args.PyTreeRestore(
        abstract, restore_args=restore_args, partial_restore=partial
      ),
    )


def of_several(tree: Tree) -> bool:
  """Whether arrays of a tree lie on devices of several processes."""
  shardings = (leaf.sharding for leaf in jax.tree.leaves(tree))
  return not all(one is None or one.is_fully_addressable for one in shardings)


def _checkpointer(tree: Tree) -> ocp.Checkpointer:
  """What saves or restores a tree: every process, or this one for itself.

  Where all is this process's own, orbax must not wait for the others; else it
  waits by barriers with a time limit.
  """
  options = ocp.options.MultiprocessingOptions()
  if hosts.count() > 1:
    options = _of_all() if of_several(tree) else _of_this_one()
  # It copies one of the largest arrays at a time, not all.
  largest = max(
    math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
    for leaf in jax.tree.leaves(tree)
  )
  limit = 1 + max(largest, _CHUNK_BYTES)  # More than any, orbax asks.
  handler = ocp.PyTreeCheckpointHandler(
    handler_impl=ocp.BasePyTreeCheckpointHandler(
      save_concurrent_bytes=limit,
      save_device_host_concurrent_bytes=limit,
      multiprocessing_options=options,
    ),
    multiprocessing_options=options,
  )
  return ocp.Checkpointer(handler, multiprocessing_options=options)


def _of_all() -> ocp.options.MultiprocessingOptions:
  return ocp.options.MultiprocessingOptions(
    active_processes=set(range(hosts.count()))
  )


def _of_this_one() -> ocp.options.MultiprocessingOptions:
  me = jax.process_index()
  return ocp.options.MultiprocessingOptions(
    primary_host=me,
    active_processes={me},
    barrier_sync_key_prefix=f'process_{me}',
  )
