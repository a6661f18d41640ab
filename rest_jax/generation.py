"""Sampling for many sources: buckets of source length, slots of one shape.

The bridge between lists of sources on the host and the policy's slots on the
devices; Grow, Evaluate and Translate all generate through it.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Int, Int32

from rest_jax import hosts
from rest_jax import policy as policy_lib
from rest_jax import slots as slots_lib
from rest_jax.data import buckets as buckets_lib
from rest_jax.decoding import sampling as sampling_lib
from rest_jax.errors import ConfigurationError
from rest_jax.types import Batch, Params, Samples

# Slots are filled an eighth at a time: each source is encoded in a batch of
# this size, and no more slots than this wait for others to end.
_PARTS = 8


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

  def members(self, sources: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Returns the indices of each bucket's sources, the shortest first.

    Raises:
      DataError: a source is longer than the last bucket.
    """
    return buckets_lib.members(sources, self.source_buckets, self._mend)

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

  def put(
    self, source: int, first_sample: int, samples: Samples, row: int
  ) -> int:
    """Writes a source's samples from `first_sample` on, which stand in a row.

    Returns:
      Their tokens.
    """
    rest = slice(first_sample, first_sample + samples.lengths.shape[1])
    for field in dataclasses.fields(self):
      room = getattr(self, field.name)[source, rest]
      room[...] = getattr(samples, field.name)[row, : len(room)]
    return int(self.lengths[source, rest].sum())

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
    purpose: one of `decoding.keys.PURPOSES`.
    step: the Grow step or update that the samples belong to.
    num_samples: n, samples a source.
    sampling: how tokens are drawn; temperature 0 is greedy.
    batching: shapes.
    num_tokens: size of the tokenizer; higher ids are never drawn.
    advance: called now and then with the tokens of samples that have ended.

  Returns:
    The samples, in the order of `sources`.
  """
  out = Generated.empty(len(sources), num_samples, batching.max_decode_len)
  group = batching.group(num_samples)
  num_slots = policy.whole_batches(batching.rows // group)
  at_once = policy.whole_batches(-(-num_slots // _PARTS))
  ids = np.asarray(source_ids)
  of_buckets = batching.members(sources)
  for bucket, members in zip(batching.source_buckets, of_buckets, strict=True):
    # The longest first: when no source is left to fill the slots with, they
    # wait for short ones.
    queue = _Queue(
      members[::-1].tolist(), range(0, num_samples, group), num_slots
    )
    slots = None
    while queue.goes_on:
      if slots is None:
        shape = (num_slots, bucket, group, batching.max_decode_len)
        slots = slots_lib.empty(policy, *shape)
      while queue.fills(at_once):
        places, indices, firsts = queue.take(at_once)
        keys = policy_lib.sample_keys(
          seed, purpose, step, ids[indices], group, firsts
        )
        tokens = buckets_lib.padded([sources[i] for i in indices], bucket)
        slots = slots_lib.fill(policy, params, slots, places, tokens, keys)
      slots, free, samples = slots_lib.decode(
        policy,
        params,
        slots,
        queue.wanted(at_once),
        sampling=sampling,
        num_tokens=num_tokens,
      )
      samples = jax.device_get(samples)
      ended = queue.give(np.asarray(free))
      advance(sum(out.put(*one, samples, place) for place, *one in ended))
  return out


class _Queue:
  """The sources of a bucket on their way through the slots.

  Attributes:
    waiting: (source, first sample) not yet begun, the last of them first.
    held: what each slot holds, None where it is free.
  """

  def __init__(
    self, sources: Iterable[int], firsts: Iterable[int], num_slots: int
  ):
    self.waiting = list(itertools.product(sources, firsts))[::-1]
    self.held: list[tuple[int, int] | None] = [None] * num_slots

  @property
  def goes_on(self) -> bool:
    """Whether a source waits or is in a slot."""
    return bool(self.waiting) or self._num_free < len(self.held)

  @property
  def _num_free(self) -> int:
    return self.held.count(None)

  def fills(self, at_once: int) -> bool:
    """Whether it is time to fill slots, which is done for so many at once."""
    return bool(self.waiting) and self._num_free >= at_once

  def wanted(self, at_once: int) -> int:
    """How many slots are to be free before the next ones are filled."""
    return at_once if self.waiting else len(self.held)

  def take(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Puts what waits longest into free slots.

    Returns:
      The slots, sources and first samples, `count` of each; where less waits,
      the first source again, and a slot that there is not.
    """
    free = [place for place, held in enumerate(self.held) if held is None]
    taken = [self.waiting.pop() for _ in range(min(count, len(self.waiting)))]
    for place, one in zip(free, taken, strict=False):
      self.held[place] = one
    rest = count - len(taken)
    places = free[: len(taken)] + [len(self.held)] * rest
    indices, firsts = zip(*taken, *[taken[0]] * rest, strict=True)
    return np.array(places, np.int32), np.array(indices), np.array(firsts)

  def give(self, free: np.ndarray) -> list[tuple[int, int, int]]:
    """Frees slots that have ended: their numbers, sources and first samples."""
    ended = [
      (place, *held)
      for place, held in enumerate(self.held)
      if held is not None and free[place]
    ]
    for place, *_ in ended:
      self.held[place] = None
    return ended


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
