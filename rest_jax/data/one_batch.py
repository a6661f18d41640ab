"""Few training rows, packed into one batch: those of an online update."""

import numpy as np
from jaxtyping import Float32

from rest_jax import types
from rest_jax.data import loader, packing, training_rows


class OneBatch:
  """All of some rows, in a batch with few more packed rows than they need.

  Attributes:
    rows: the training rows; figures added to them are in the next `batch`.
  """

  def __init__(
    self,
    rows: training_rows.TrainingRows,
    shape: packing.Packing,
    multiple: int,
    process_index: int = 0,
    process_count: int = 1,
  ):
    """Packs them; the same rows always in the same way.

    Args:
      rows: in memory.
      shape: of a packed row; `rows_per_batch` is not looked at.
      multiple: of which the batch's rows are one, so that batches have few
        shapes, each of which is compiled. Rows that are left over are empty.
      process_index: number of this process's part of the batch.
      process_count: how many parts it has, one after the other; `multiple`
        divides by it.

    Raises:
      DataError: when a row does not fit into a packed one.
    """
    self.rows, self._shape = rows, shape
    plan = packing.plan_packing(
      rows.source_lengths, rows.target_lengths, shape, seed=0
    )
    self._packed = [plan.row(i) for i in range(len(plan))]
    self._packed += [np.zeros(0, np.int64)] * (-len(plan) % multiple)
    share = len(self._packed) // process_count
    self._mine = slice(process_index * share, (process_index + 1) * share)

  def batch(self) -> types.Batch:
    """Returns this process's rows of it, as numpy arrays."""
    return loader.assemble(self.rows, self._shape, self._packed[self._mine])

  def each_token(self, values: types.Leaf) -> Float32[np.ndarray, ' tokens']:
    """A figure of every target token of the rows, in their order.

    Args:
      values: float32 [b, t], of the batch's, of all processes; see `unpack`.
    """
    out = np.empty(len(self.rows.target_tokens), np.float32)
    loader.unpack(self.rows, self._packed, values, out)
    return out
