"""The machine that a run computes on, in words: device-seconds are of it."""

import collections
import os
import pathlib
import platform
import re
from typing import Any

import jax


def describe() -> str:
  """Of all devices, such as '4 × TPU v4', or 'AMD EPYC, 2 of its cores'."""
  kinds = collections.Counter(device.device_kind for device in jax.devices())
  if set(kinds) != {'cpu'}:
    return ', '.join(f'{count} × {kind}' for kind, count in kinds.items())
  if hasattr(os, 'sched_getaffinity'):
    cores = len(os.sched_getaffinity(0))
  else:
    cores = os.cpu_count() or 1
  return f'{_processor()}, {cores} of its cores'


def facts() -> dict[str, Any]:
  """How many devices there are, and `describe`, as JSON can hold them."""
  return {'devices': jax.device_count(), 'machine': describe()}


def _processor() -> str:
  """The processor's name, as the system gives it."""
  told = pathlib.Path('/proc/cpuinfo')
  if told.exists():
    text = told.read_text(errors='replace')
    if found := re.search(r'^model name\s*:\s*(.+)$', text, re.MULTILINE):
      return found[1].strip()
  return platform.processor() or platform.machine()
