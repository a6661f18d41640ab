"""Sampling for many sources: buckets of source length, slots of one shape.

The bridge between lists of sources on the host and the policy's slots on the
devices; Grow, Evaluate and Translate all generate through it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Int, Int32

from rest_jax import policy as policy_lib
from rest_jax import slots as slots_lib
from rest_jax.data import buckets as buckets_lib
from rest_jax.data import tokenizer as tokenizer_lib
from rest_jax.decoding import sampling as sampling_lib
from rest_jax.decoding.loop import Drawn
from rest_jax.errors import ConfigurationError
from rest_jax.types import Batch, Params

# Slots are filled an eighth at a time: each source is encoded in a batch of
# this size, and no more slots than this wait for others to end.
_PARTS = 8
_LOGITS = 1 << 25  # Held at once where whole samples are scored.
# Samples that a lane draws one after another. More would leave fewer lanes idle
# while the last samples of a source end, but hold more sources at a time.
_TURNS = 4


@dataclasses.dataclass(frozen=True)
class Batching:
  """How sources are put into batches of few fixed shapes for decoding.

  Attributes:
    max_decode_len: tokens a sample may have, EOS counted.
    rows: samples decoded at once (sources × lanes of each, see `lanes`).
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

  def lanes(self, num_samples: int) -> int:
    """Samples of a source that are drawn at a time: a quarter, two at least."""
    lanes = max(2, -(-num_samples // _TURNS))
    return min(num_samples, self.rows, lanes)

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
    self, drawn: Drawn, sources: Int[np.ndarray, ' b'], eos_id: int
  ) -> int:
    """Writes tokens that were drawn in b slots.

    Args:
      drawn: on the host.
      sources: the source of each slot.
      eos_id: ends a sample.

    Returns:
      How many they are.
    """
    at = np.nonzero(drawn.places >= 0)
    samples, positions = np.divmod(drawn.places[at], self.tokens.shape[-1])
    place = (sources[at[1]], samples, positions)
    for name in ('tokens', 'token_log_probs', 'token_sampling_log_probs'):
      getattr(self, name)[place] = getattr(drawn, name)[at]
    np.add.at(self.lengths, place[:2], 1)
    ends = self.tokens[place] == eos_id
    self.finished[place[0][ends], samples[ends]] = True
    return len(positions)

  def texts(self, tokenizer: tokenizer_lib.Tokenizer) -> list[str]:
    """The k · n texts, source by source."""
    flat = self.tokens.reshape(-1, self.tokens.shape[-1])
    return [
      tokenizer.decode(row[:length].tolist())
      for row, length in zip(flat, self.lengths.reshape(-1), strict=True)
    ]


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


def scored_at_once(policy: policy_lib.Policy, batching: Batching) -> int:
  """Rows of `teacher_forced` that are scored at once.

  No more than are decoded at once, and so few that their logits, of which
  decoding holds those of one token, do not fill the memory of a device.
  """
  shards = policy.placement.num_shards('batch')
  held = _LOGITS * policy.placement.num_shards('vocab')  # Of a shard's rows.
  room = held // (batching.max_decode_len * policy.config.vocab_size)
  room = max(1, room) * shards
  return min(policy.whole_batches(batching.rows), room)


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
    advance: called now and then with the tokens drawn since.

  Returns:
    The samples, in the order of `sources`.
  """
  out = Generated.empty(len(sources), num_samples, batching.max_decode_len)
  num_lanes = batching.lanes(num_samples)
  num_slots = policy.whole_batches(batching.rows // num_lanes)
  at_once = _filled_at_once(num_slots, policy.placement.num_shards('batch'))
  ids = np.asarray(source_ids)
  of_buckets = batching.members(sources)
  for bucket, members in zip(batching.source_buckets, of_buckets, strict=True):
    # The longest first: when no source is left to fill the slots with, they
    # wait for short ones.
    queue = _Queue(members[::-1].tolist(), num_slots)
    slots = None
    while queue.goes_on:
      if slots is None:
        shape = slots_lib.Shape(
          num_slots, bucket, num_lanes, num_samples, batching.max_decode_len
        )
        slots = slots_lib.empty(policy, shape)
      while queue.fills(at_once):
        places, indices = queue.take(at_once)
        keys = policy_lib.sample_keys(
          seed, purpose, step, ids[indices], num_samples
        )
        tokens = buckets_lib.padded([sources[i] for i in indices], bucket)
        slots = slots_lib.fill(policy, params, slots, places, tokens, keys)
      slots, free, drawn = slots_lib.decode(
        policy,
        params,
        slots,
        queue.wanted(at_once),
        sampling=sampling,
        num_tokens=num_tokens,
      )
      drawn = jax.device_get(drawn)
      advance(out.put(drawn, queue.sources, policy.config.eos_id))
      queue.give(np.asarray(free))
  return out


def _filled_at_once(num_slots: int, shards: int) -> int:
  """Slots that are filled together: an eighth of a process's, by devices."""
  return -(-num_slots // (_PARTS * shards)) * shards


class _Queue:
  """The sources of a bucket on their way through the slots.

  Attributes:
    waiting: sources not yet begun, the last of them first.
    sources: int64 [b], what each slot holds; −1 where it is free.
  """

  def __init__(self, sources: Sequence[int], num_slots: int):
    self.waiting = list(sources)[::-1]
    self.sources = np.full(num_slots, -1)

  @property
  def goes_on(self) -> bool:
    """Whether a source waits or is in a slot."""
    return bool(self.waiting) or self._free.size < self.sources.size

  @property
  def _free(self) -> np.ndarray:
    return np.flatnonzero(self.sources < 0)

  def fills(self, at_once: int) -> bool:
    """Whether it is time to fill slots, which is done for so many at once."""
    return bool(self.waiting) and self._free.size >= at_once

  def wanted(self, at_once: int) -> int:
    """How many slots are to be free before the next ones are filled."""
    return at_once if self.waiting else self.sources.size

  def take(self, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts what waits longest into free slots.

    Returns:
      The slots and sources, `count` of each; where less waits, the first source
      again, and a slot that there is not.
    """
    taken = [self.waiting.pop() for _ in range(min(count, len(self.waiting)))]
    places = self._free[: len(taken)]
    self.sources[places] = taken
    rest = count - len(taken)
    return (
      np.pad(places, (0, rest), constant_values=self.sources.size),
      np.array(taken + taken[:1] * rest),
    )

  def give(self, free: np.ndarray) -> None:
    """Frees slots that have ended."""
    self.sources[free] = -1


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
  """The best beam of each source.

  Args:
    policy: the policy to search with.
    params: its parameters.
    sources: k token sequences, EOS included.
    num_beams: hypotheses kept a source.
    alpha: exponent of the brevity penalty, see `decoding.beam`.
    batching: shapes.
    num_tokens: size of the tokenizer; higher ids are never chosen.
    advance: called after each batch with the tokens found.

  Returns:
    k arrays of int32 tokens, EOS included where it was reached.
  """
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
