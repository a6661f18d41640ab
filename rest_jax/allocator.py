"""What the C library does with memory that is freed."""

import ctypes

# Parameters of glibc's mallopt(3), and the largest values that it accepts.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_SETTINGS = (
  (_M_ARENA_MAX, 1),  # Heaps of other arenas end at 64 MiB, and are given back.
  (_M_MMAP_MAX, 0),  # What is mapped alone is always given back.
  (_M_TRIM_THRESHOLD, (1 << 31) - 1),
  (_M_TOP_PAD, 64 << 20),
)


def keep_freed_memory() -> bool:
  """Keeps what is freed for the next allocation, in the whole process.

  On CPU, XLA allocates a program's temporaries each time it runs. By default
  glibc gives them back to the kernel in between, which must then map and clear
  every page anew: a third of the quickstart's processor time went there.

  Returns:
    Whether the C library is one that can be told; others are left as they are.
  """
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is None:
    return False
  accepted = [mallopt(name, value) for name, value in _SETTINGS]
  return all(accepted)
