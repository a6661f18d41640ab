"""How fast a stage trains, for its curves."""

import time


class Speed:
  """Means over the updates since they were last asked for.

  What lies between updates, such as an evaluation, counts for nothing, and so
  does the first update, which compiles.
  """

  def __init__(self, flops: float | None = None, peak: float | None = None):
    """Begins with the next update.

    Args:
      flops: operations that an update must make, of all devices together.
      peak: operations a second that all devices could make; None where that
        is not known.
    """
    self._flops, self._peak = flops, peak
    self._mark: float | None = None
    self._clear()

  def _clear(self) -> None:
    self._updates, self._tokens = 0, 0.0
    self._seconds = self._input_seconds = 0.0

  def add(self, tokens: float, input_seconds: float) -> None:
    """Takes down an update.

    Args:
      tokens: that it trained on.
      input_seconds: that it waited for its batch.
    """
    now = time.monotonic()
    if self._mark is not None:
      self._updates += 1
      self._tokens += tokens
      self._seconds += now - self._mark
      self._input_seconds += input_seconds
    self._mark = now

  def skip(self) -> None:
    """Leaves out the time since the last update."""
    if self._mark is not None:
      self._mark = time.monotonic()

  def means(self) -> dict[str, float]:
    """Returns the figures, empty where there are none, and begins anew.

    Seconds an update, tokens a second, the share of the time that was spent
    waiting for batches, and the model's operations as a share of the peak
    (MFU, Chowdhery et al. 2022, arXiv:2204.02311, appendix B).
    """
    if not self._updates:
      return {}
    each = self._seconds / self._updates
    out = {
      'seconds_per_update': each,
      'tokens_per_second': self._tokens / self._seconds,
      'input_share': self._input_seconds / self._seconds,
    }
    if self._flops and self._peak:
      out['model_flop_utilization'] = self._flops / each / self._peak
    self._clear()
    return out
