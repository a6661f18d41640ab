"""The records that pass between the parts of rest_jax.

Device records (`Batch`, `DecodeCache`, `Samples`, `TrainState` …) are pytrees
of arrays that may enter `jit`. Text and identifiers stay in Parquet tables and
numpy arrays on the host; the two never mix in one record.
"""

from typing import Any, NamedTuple

import flax.struct

# An array of jax or numpy; or what stands in its place in a tree of the same
# form: a shape, a sharding, a tracer. So it is not checked in the records.
Leaf = Any
Params = Any  # A nested dict of arrays, named as T5X names them.


@flax.struct.dataclass
class Batch:
  """A batch of training pairs, with seqio's field names; 0 is padding.

  Worked example, one row with two packed pairs, (5 6 1 → 7 1), (8 1 → 9 9 1):

    encoder_input_tokens   5 6 1 8 1 0
    encoder_segment_ids    1 1 1 2 2 0
    decoder_target_tokens  7 1 9 9 1 0
    decoder_input_tokens   0 7 0 9 9 0
    decoder_segment_ids    1 1 2 2 2 0
    decoder_loss_weights   w w v v v 0

  Attributes:
    encoder_input_tokens: int32 [b, s].
    decoder_input_tokens: int32 [b, t], the targets shifted right by one, each
      sequence beginning with 0.
    decoder_target_tokens: int32 [b, t].
    decoder_loss_weights: float32 [b, t]: 0 on padding, else the weight of the
      pair (the filter F(x, y; τ) of ReST, times any importance weight).
    encoder_segment_ids: int32 [b, s], the number of the pair in its row from 1
      and 0 on padding; None when every row holds one pair.
    decoder_segment_ids: int32 [b, t], likewise.
    decoder_figures: name → float32 [b, t], what a loss needs to know of each
      target token besides, such as its log-probability when it was drawn; 0 on
      padding. None where it needs nothing.
  """

  encoder_input_tokens: Leaf
  decoder_input_tokens: Leaf
  decoder_target_tokens: Leaf
  decoder_loss_weights: Leaf
  encoder_segment_ids: Leaf = None
  decoder_segment_ids: Leaf = None
  decoder_figures: dict[str, Leaf] | None = None


@flax.struct.dataclass
class TokenScores:
  """What a loss may ask of the policy about each target token.

  Attributes:
    log_probs: float32 [b, t], log π(y_t | y_<t, x) in nats, untempered.
    log_normalizers: float32 [b, t], logsumexp of the logits (for z-loss).
    mean_log_probs: float32 [b, t], the mean of log π(· | y_<t, x) over the
      vocabulary (for label smoothing).
  """

  log_probs: Leaf
  log_normalizers: Leaf
  mean_log_probs: Leaf


class Memory(NamedTuple):
  """What all samples of a source share, see `DecodeCache`."""

  cross_keys: tuple[Leaf, ...]
  cross_values: tuple[Leaf, ...]
  source_mask: Leaf


@flax.struct.dataclass
class DecodeCache:
  """What decoding keeps between steps; N samples of a source share its source.

  Attributes:
    self_keys: one array a decoder layer, [groups, t_max, head_dim, lanes], keys
      of the last t_max tokens of every sample: a ring, that of step i in place
      i mod t_max. A group is b / groups sources, one after another, and its
      lanes are heads × sources × n, the samples fastest; see `models.lanes`.
    self_values: likewise, values.
    cross_keys: one array a decoder layer, [b, heads, head_dim, s], computed
      once a source; see `models.memory`.
    cross_values: likewise, [b, heads, s, head_dim].
    source_mask: bool [b, s], True where the source has a token.
    step: int32 [], steps made.
    begun: int32 [b, n], the step at which each sample began; it has step −
      begun tokens.
  """

  self_keys: tuple[Leaf, ...]
  self_values: tuple[Leaf, ...]
  cross_keys: tuple[Leaf, ...]
  cross_values: tuple[Leaf, ...]
  source_mask: Leaf
  step: Leaf
  begun: Leaf

  @property
  def max_decode_len(self) -> int:
    """Tokens of a sample that there is room for."""
    return self.self_keys[0].shape[1]


@flax.struct.dataclass
class Samples:
  """Outputs of a policy for a batch of sources, n a source.

  Attributes:
    tokens: int32 [b, n, t], ended by EOS where finished, then 0.
    token_log_probs: float32 [b, n, t], nats, untempered, 0 after the end; equal
      to what `Policy.score` gives for the same tokens.
    token_sampling_log_probs: float32 [b, n, t], nats, of the distribution that
      was drawn from (after temperature, top-k, top-p, ε), 0 after the end.
    lengths: int32 [b, n], tokens with EOS counted.
    finished: bool [b, n], whether EOS was reached.
  """

  tokens: Leaf
  token_log_probs: Leaf
  token_sampling_log_probs: Leaf
  lengths: Leaf
  finished: Leaf


@flax.struct.dataclass
class TrainState:
  """Everything that a training step changes.

  Attributes:
    step: int32 [], updates made so far in this stage.
    params: the policy's parameters.
    opt_state: the optax state.
  """

  step: Leaf
  params: Params
  opt_state: Any
