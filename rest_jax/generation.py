"""Sampling for many sources: buckets of source length, batches of one shape.

The bridge between lists of sources on the host and `Policy.sample` on the
devices; Grow, Evaluate and Translate all generate through it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Int, Int32

from rest_jax import hosts
from rest_jax import policy as policy_lib
from rest_jax.data import buckets as buckets_lib
from rest_jax.decoding import sampling as sampling_lib
from rest_jax.errors import ConfigurationError
from rest_jax.types import Batch, Params, Samples


@dataclasses.dataclass(frozen=True)
class Batching:
  """How sources are put into batches of few fixed shapes for decoding.

  Attributes:
    max_decode_len: tokens a sample may have, EOS counted.
    rows: samples decoded at once (sources × samples a source).
    source_buckets: rising source lengths; a source is padded to the first that
      holds it, and each bucket compiles once.
  """

  max_decode_len: int = 128
  rows: int = 256
  source_buckets: tuple[int, ...] = (32, 64, 128)

  def __post_init__(self):
    if self.max_decode_len < 1 or self.rows < 1:
      raise ConfigurationError(
        f'Batching.max_decode_len = {self.max_decode_len} and Batching.rows ='
        f' {self.rows} must both be at least 1.'
      )
    buckets_lib.check_rising(self.source_buckets, 'Batching.source_buckets')

  def group(self, num_samples: int) -> int:
    """Samples of a source that are drawn at once.

    As few groups as fit into `rows`, all of one size if possible.
    """
    return -(-num_samples // -(-num_samples // self.rows))

  def batches(
    self, sources: Sequence[Sequence[int]], rows: int
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (indices [m], tokens int32 [rows, bucket]), m ≤ rows.

    Raises:
      DataError: a source is longer than the last bucket.
    """
    buckets = self.source_buckets
    return buckets_lib.batches(
      sources, buckets, [rows] * len(buckets), self._mend
    )

  def check_fits(self, longest: int) -> None:
    """Checks that sources of up to so many tokens fit the buckets.

    Raises:
      DataError: they do not.
    """
    buckets_lib.check_fits(longest, self.source_buckets, self._mend)

  @property
  def _mend(self) -> str:
    return (
      f'raise Batching.source_buckets = {self.source_buckets} or lower'
      ' MAX_SOURCE_LENGTH'
    )


@dataclasses.dataclass(frozen=True)
class Generated:
  """Samples on the host, in the order of the sources they were asked for.

  Attributes:
    tokens: int32 [k, n, t], 0 after the end.
    token_log_probs: float32 [k, n, t], nats, untempered.
    token_sampling_log_probs: float32 [k, n, t], nats, as drawn.
    lengths: int32 [k, n], EOS counted.
    finished: bool [k, n].
  """

  tokens: np.ndarray
  token_log_probs: np.ndarray
  token_sampling_log_probs: np.ndarray
  lengths: np.ndarray
  finished: np.ndarray

  @classmethod
  def empty(cls, num_sources: int, num_samples: int, length: int):
    """Room for the samples of `num_sources` sources."""
    shape = (num_sources, num_samples, length)
    return cls(
      tokens=np.zeros(shape, np.int32),
      token_log_probs=np.zeros(shape, np.float32),
      token_sampling_log_probs=np.zeros(shape, np.float32),
      lengths=np.zeros(shape[:2], np.int32),
      finished=np.zeros(shape[:2], bool),
    )

  def put(self, sources: np.ndarray, first_sample: int, samples: Samples):
    """Writes `samples` of `sources`, whose first has index `first_sample`."""
    span = slice(first_sample, first_sample + samples.lengths.shape[1])
    for field in dataclasses.fields(self):
      value = np.asarray(getattr(samples, field.name))[: len(sources)]
      getattr(self, field.name)[sources, span] = value

  def gathered(self, num_sources: int) -> 'Generated':
    """The samples of all processes, each having drawn those of its share.

    Args:
      num_sources: of all processes.
    """
    return Generated(
      *(
        hosts.gather_rows(getattr(self, field.name), num_sources)
        for field in dataclasses.fields(self)
      )
    )


def teacher_forced(
  source_tokens: Int32[np.ndarray, 'b s'],
  targets: Int32[np.ndarray, 'b t'],
  lengths: Int[np.ndarray, 'b'],
) -> Batch:
  """Rows of one source and one sample each, as they are scored.

  Args:
    source_tokens: 0 after the end.
    targets: of the samples, likewise.
    lengths: tokens of each sample; 0 for a row that only fills the batch.
  """
  counted = np.arange(targets.shape[1]) < lengths[:, None]
  return Batch(
    encoder_input_tokens=source_tokens,
    decoder_input_tokens=np.pad(targets[:, :-1], ((0, 0), (1, 0))),
    decoder_target_tokens=targets,
    decoder_loss_weights=counted.astype(np.float32),
  )


def generate(
  policy: policy_lib.Policy,
  params: Params,
  sources: Sequence[Sequence[int]],
  source_ids: np.ndarray,
  *,
  seed: int,
  purpose: str,
  step: int,
  num_samples: int,
  sampling: sampling_lib.Sampling,
  batching: Batching,
  num_tokens: int,
  advance: Callable[[int], None] = lambda tokens: None,
) -> Generated:
  """Draws `num_samples` samples for each source.

  A sample is a function of (seed, purpose, step, source id, sample index) and
  of the shapes in `batching`, not of the other sources.

  Args:
    policy: the policy to sample from.
    params: its parameters.
    sources: k token sequences, EOS included.
    source_ids: int64 [k], the sources' lasting numbers.
    seed: the run's seed.
    purpose: 'grow', 'evaluate' or 'online'.
    step: the Grow step or update that the samples belong to.
    num_samples: n, samples a source.
    sampling: how tokens are drawn; temperature 0 is greedy.
    batching: shapes.
    num_tokens: size of the tokenizer; higher ids are never drawn.
    advance: called after every batch with the number of tokens it decoded.

  Returns:
    The samples, in the order of `sources`.
  """
  out = Generated.empty(len(sources), num_samples, batching.max_decode_len)
  group = batching.group(num_samples)
  batch_size = policy.whole_batches(batching.rows // group)
  for indices, tokens in batching.batches(sources, batch_size):
    ids = buckets_lib.filled(np.asarray(source_ids)[indices], batch_size)
    keys = policy_lib.sample_keys(seed, purpose, step, ids, num_samples)
    for first in range(0, num_samples, group):
      samples = policy.sample(
        params,
        tokens,
        keys[:, first : first + group],
        sampling=sampling,
        max_decode_len=batching.max_decode_len,
        num_tokens=num_tokens,
      )
      out.put(indices, first, samples)
      advance(int(out.lengths[indices, first : first + group].sum()))
  return out


def generate_beam(
  policy: policy_lib.Policy,
  params: Params,
  sources: Sequence[Sequence[int]],
  *,
  num_beams: int,
  alpha: float,
  batching: Batching,
  num_tokens: int,
  advance: Callable[[int], None] = lambda tokens: None,
) -> list[np.ndarray]:
  """The best beam of each source: k arrays of int32 tokens, EOS included."""
  out: list[np.ndarray] = [np.zeros(0, np.int32)] * len(sources)
  batch_size = policy.whole_batches(batching.rows // num_beams)
  for indices, tokens in batching.batches(sources, batch_size):
    beams = policy.beam_search(
      params,
      tokens,
      num_beams=num_beams,
      alpha=alpha,
      max_decode_len=batching.max_decode_len,
      num_tokens=num_tokens,
    )
    best = np.asarray(beams.tokens)[: len(indices), 0]
    for index, row in zip(indices, best, strict=True):
      length = int(np.count_nonzero(row))
      out[index] = row[:length]
    advance(int(np.count_nonzero(best)))
  return out
