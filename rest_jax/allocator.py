"""What the C library does with memory that is freed."""

import ctypes

# Parameters of glibc's mallopt(3), and the largest values that it accepts.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_M_MMAP_MAX, _M_ARENA_MAX = -4, -8
_KEEP = (
  (_M_ARENA_MAX, 1),  # Heaps of other arenas end at 64 MiB, and are given back.
  (_M_MMAP_MAX, 0),  # What is mapped alone is always given back.
  (_M_TRIM_THRESHOLD, (1 << 31) - 1),
  (_M_TOP_PAD, 64 << 20),
)
_GIVE_BACK = (
  (_M_ARENA_MAX, 1),
  (_M_MMAP_THRESHOLD, 1 << 20),
)


def keep_freed_memory(keep: bool = True) -> bool:
  """Keeps what is freed for the next allocation, in the whole process.

  On CPU, XLA allocates a program's temporaries each time it runs. By default
  glibc gives them back to the kernel in between, which must then map and clear
  every page anew: a third of the quickstart's processor time went there.

  Args:
    keep: False gives large buffers back at once, for a process that reads and
      writes much more than it ever holds: by default glibc keeps those of up
      to 32 MiB, in an arena for each thread.

  Returns:
    Whether the C library is one that can be told; others are left as they are.
  """
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is None:
    return False
  settings = _KEEP if keep else _GIVE_BACK
  accepted = [mallopt(name, value) for name, value in settings]
  return all(accepted)
