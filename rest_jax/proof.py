"""Proof of a conversion: the tensors by round trip, the logits on fixed ids.

A round trip shows that nothing was lost, but one through a wrong table is
perfect too: so the logits are also held against the origin's own network, where
that is installed.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from rest_jax import errors
from rest_jax.checkpoint import exports, restoring, transformers_peer
from rest_jax.models.config import T5Config
from rest_jax.policy import Policy
from rest_jax.sharding import Layout

TOLERANCE = 1e-4  # Of logits, times the largest of them where that is above 1.
NOT_COMPARED = 'not compared with the origin'
_BLOCK = 1 << 22  # Values that are compared at a time.


@dataclasses.dataclass(frozen=True)
class Proof:
  """What was compared, and how it came out.

  Attributes:
    tensors: how many arrays came back bit for bit.
    values: how many numbers they hold.
    logits: sentences on the logits, one a comparison; none with
      `--verify=tensors`.
  """

  tensors: int
  values: int
  logits: tuple[str, ...] = ()

  @property
  def lines(self) -> list[str]:
    """For people."""
    return [
      f'tensors: all {self.tensors} ({self.values:,} numbers) read back equal,'
      ' bit for bit in float32',
      *self.logits,
    ]


def compare_tensors(
  given: restoring.Source, written: restoring.Source
) -> Proof:
  """Holds what was written against what was given, a part at a time.

  Raises:
    CorruptStateError: names, shapes or values differ; it lists them.
  """
  restoring.check(written, given.shapes)
  differing = [
    name
    for name, shape in given.shapes.items()
    if not all(
      _same_bits(
        exports.read(given, name, index), exports.read(written, name, index)
      )
      for index in exports.parts(shape)
    )
  ]
  if differing:
    raise errors.CorruptStateError(
      f'{written.where} does not hold what was written into it:'
      f' {", ".join(differing)} differ; nothing was committed: check the disk,'
      ' and convert again.'
    )
  values = sum(map(math.prod, given.shapes.values()))
  return Proof(len(given.shapes), values)


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
  rows = max(1, _BLOCK // max(1, one[:1].size))
  return all(
    np.array_equal(
      np.ascontiguousarray(one[i : i + rows]).view(np.uint32),
      np.ascontiguousarray(other[i : i + rows]).view(np.uint32),
    )
    for i in range(0, one.shape[0], rows)
  )


def batch(vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
  """The fixed batch: int32 [2, 12] sources, one padded, and [2, 8] inputs."""
  ids = np.arange(40, dtype=np.int64) * 7919 % max(1, vocab_size - 3) + 3
  ids = np.minimum(ids, vocab_size - 1).astype(np.int32)
  sources, inputs = ids[:24].reshape(2, 12), ids[24:].reshape(2, 8)
  sources[:, -1] = 1
  sources[1, 6:] = (1, 0, 0, 0, 0, 0)
  inputs[:, 0] = 0
  return sources, inputs


def logits(source: restoring.Source, config: T5Config) -> np.ndarray:
  """Our logits of a T5 on the fixed batch, in float32: [2, 8, vocab_size]."""
  config = dataclasses.replace(config, dtype='float32', dropout_rate=0.0)
  policy = Policy(config, Layout(data=1))
  params = restoring.restore(source, policy.abstract_params())
  sources, inputs = batch(config.vocab_size)

  @jax.jit
  def run(params, sources, inputs):
    cache = policy.start_cache(
      params, sources, num_samples=1, max_decode_len=inputs.shape[1]
    )

    def step(cache, tokens):
      out, cache = policy.decode_step(params, tokens, cache)
      return cache, out[:, 0]

    return jax.lax.scan(step, cache, inputs.T[..., None])[1]

  # Not in the fewer bits that accelerators multiply float32 with.
  with jax.default_matmul_precision('highest'):
    out = run(params, jnp.asarray(sources), jnp.asarray(inputs))
  return np.moveaxis(np.asarray(out), 0, 1)


def compare_logits(
  given: restoring.Source,
  written: restoring.Source,
  config: T5Config,
  *,
  origin: epath.Path | None,
  export: epath.Path | None,
) -> tuple[str, ...]:
  """Compares logits: of both in our network, and in transformers'.

  Args:
    given: the input, as a T5.
    written: what was read back, as a T5.
    config: its shape.
    origin: the input where it is a folder of Hugging Face.
    export: what was written where it is one.

  Returns:
    A sentence for each comparison.

  Raises:
    CorruptStateError: logits differ by more than `TOLERANCE` allows.
    ConfigurationError: transformers does not open a folder.
  """
  ours = logits(given, config)
  lines = [_line('read back', ours, logits(written, config))]
  reason = transformers_peer.why_not()
  peers = {'the input': origin, 'the output': export}
  for name, folder in peers.items():
    if folder is not None and reason is None:
      theirs = transformers_peer.logits(folder, *batch(config.vocab_size))
      peer = f'{name} in transformers {transformers_peer.version()}'
      lines.append(_line(peer, ours, theirs))
  if origin is None:
    lines.append(f'{NOT_COMPARED}: the input is no folder of Hugging Face')
  elif reason is not None:
    lines.append(f'{NOT_COMPARED}: {reason}')
  return tuple(lines)


def _line(name: str, ours: np.ndarray, theirs: np.ndarray) -> str:
  largest = float(np.abs(ours).max())
  allowed = TOLERANCE * max(1.0, largest)
  difference = float(np.abs(ours - theirs).max())
  # A NaN is never within the tolerance.
  if not difference <= allowed:
    raise errors.CorruptStateError(
      f'the logits of {name} differ by {difference:.3g} from ours,'
      f' {allowed:.3g} is allowed (largest logit {largest:.3g}); nothing was'
      ' committed: report this, with the configuration of the model.'
    )
  return (
    f'logits, {name}: differ by at most {difference:.2g}, largest'
    f' {largest:.3g}, allowed {allowed:.2g}'
  )
