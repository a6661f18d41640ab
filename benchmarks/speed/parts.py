"""Where the time of a work goes, by the parts of the network, on a CPU.

  taskset -c 0 python parts.py FOLDER grow|natural|beam

FOLDER is one that `compare.py` has filled. The work is done once to compile,
once for its time, and once under JAX's profiler. Each operation of the trace
belongs to the module in whose name it was traced, which XLA's text of the
compiled program tells; a fusion counts as its root. Use one core: on several,
operations overlap.
"""

import collections
import functools
import os
import pathlib
import re
import sys
import tempfile
import time

_PROGRAMS = tempfile.TemporaryDirectory()
os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    f'--xla_dump_to={_PROGRAMS.name} --xla_dump_hlo_as_text',
  ]
)

os.environ.pop('JAX_COMPILATION_CACHE_DIR', None)  # Has no text of programs.

import jax  # noqa: E402
import side_rest_jax  # noqa: E402

from rest_jax.checkpoint import formats, huggingface  # noqa: E402
from rest_jax.policy import Policy  # noqa: E402
from rest_jax.sharding import Layout  # noqa: E402

# The first that is found in an operation's name says what it is part of.
_PARTS = {
  'the encoder, keys and values of sources': r'encode\b|project_memory',
  'projections of attention': r'attention\S*/(query|key|value|out)/',
  'attention to tokens before': r'self_attention|\bring\b',
  'attention to sources': r'encoder_decoder_attention',
  'feed-forward': r'/mlp/',
  'logits': r'logits|attend|token_embedder',
  'norms, residuals, embedding': r'decode_step',
  'drawing or choosing tokens': r'jit\(_(sample|decode|beam_search)\)',
}
# Those that only hold others.
_HOLDS = re.compile(r'^(while|call|conditional)[.\d]*$')
_NAMED = re.compile(r'^\s*(?:ROOT )?%?(\S+) = .*op_name="([^"]*)"', re.M)


def names() -> dict[tuple[int, str], str]:
  """Where each operation comes from, by the program's number and its own."""
  found = {}
  programs = pathlib.Path(_PROGRAMS.name)
  for path in programs.glob('*cpu_after_optimizations.txt'):
    program = int(re.search(r'module_(\d+)', path.name)[1])
    for operation, name in _NAMED.findall(path.read_text()):
      found[program, operation] = name
  return found


def part_of(name: str) -> str:
  """The part of the network that an operation of this name belongs to."""
  for part, pattern in _PARTS.items():
    if re.search(pattern, name):
      return part
  return 'other'


def spent(folder: str) -> collections.Counter:
  """Seconds of each (part, whether it is a product of matrices) of a trace."""
  (path,) = pathlib.Path(folder).rglob('*.xplane.pb')
  origins, seconds = names(), collections.Counter()
  for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
    for line in plane.lines:
      for event in line.events:
        stats = dict(event.stats)
        operation = stats.get('hlo_op')
        if operation is None or _HOLDS.match(operation):
          continue
        name = origins.get((stats['program_id'], operation), '')
        seconds[part_of(name), 'dot_general' in name] += event.duration_ns / 1e9
  return seconds


def table(seconds: collections.Counter) -> list[str]:
  """Shares of all seconds, in Markdown."""
  total = sum(seconds.values())

  def line(part: str, product: float, rest: float) -> str:
    shares = (f'{100 * x / total:.0f} %' for x in (product + rest, product))
    return f'| {part} | ' + ' | '.join(shares) + ' |'

  lines = [
    '| part | share | of which products of matrices |',
    '|---|---:|---:|',
  ]
  for part in (*_PARTS, 'other'):
    product, rest = seconds[part, True], seconds[part, False]
    if product + rest:
      lines.append(line(part, product, rest))
  products = sum(x for (_, product), x in seconds.items() if product)
  return [*lines, line('all', products, total - products)]


def main(folder: str, work: str) -> None:
  """Does what the module says."""
  path = pathlib.Path(folder, 'huggingface')
  policy = Policy(huggingface.read_config(path), Layout(data=1))
  params = formats.restore(formats.find(path), policy.placed_params())
  if work == 'natural':
    run = side_rest_jax.Natural(folder, policy, params)
  else:
    does = {'grow': side_rest_jax.grow, 'beam': side_rest_jax.beam}[work]
    run = functools.partial(does, policy, params)
  run()
  start = time.perf_counter()
  run()
  wall = time.perf_counter() - start
  with tempfile.TemporaryDirectory() as traced:
    with jax.profiler.trace(traced):
      run()
    seconds = spent(traced)
  total = sum(seconds.values())
  print(f'{wall:.2f} s without the profiler; {total:.2f} s in operations with')
  print('\n'.join(table(seconds)))


if __name__ == '__main__':
  main(*sys.argv[1:])
