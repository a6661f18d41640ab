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
  ):
    """Packs them; the same rows always in the same way.

    Args:
      rows: in memory.
      shape: of a packed row; `rows_per_batch` is not looked at.
      multiple: of which the batch's rows are one, so that batches have few
        shapes, each of which is compiled. Rows that are left over are empty.

    Raises:
      DataError: when a row does not fit into a packed one.
    """
    self.rows, self._shape = rows, shape
    plan = packing.plan_packing(
      rows.source_lengths, rows.target_lengths, shape, seed=0
    )
    self._packed = [plan.row(i) for i in range(len(plan))]
    self._packed += [np.zeros(0, np.int64)] * (-len(plan) % multiple)

  def batch(self) -> types.Batch:
    """Returns it as numpy arrays."""
    return loader.assemble(self.rows, self._shape, self._packed)

  def each_token(self, values: types.Leaf) -> Float32[np.ndarray, ' tokens']:
    """A figure of every target token of the rows, in their order.

    Args:
      values: float32 [b, t], of the batch's.
    """
    out = np.empty(len(self.rows.target_tokens), np.float32)
    loader.unpack(self.rows, self._packed, values, out)
    return out
