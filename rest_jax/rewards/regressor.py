"""A T5 network that gives a text a score: what learned rewards are made of."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Key

from rest_jax.data import buckets as buckets_lib
from rest_jax.data.tokenizer import EOS_ID
from rest_jax.errors import ConfigurationError, RewardError
from rest_jax.models.heads import Scorer
from rest_jax.network import Network
from rest_jax.types import Batch, Params

Tokens = Int[Array | np.ndarray, 'b s']


@dataclasses.dataclass(frozen=True)
class Buckets:
  """The fixed shapes in which texts are scored.

  Attributes:
    lengths: rising lengths; a text is padded to the first that holds it, and
      each of them compiles once.
    tokens_per_batch: rows times length of a batch, about.
  """

  lengths: tuple[int, ...] = (32, 64, 128, 256)
  tokens_per_batch: int = 8192

  def __post_init__(self):
    object.__setattr__(self, 'lengths', tuple(self.lengths))
    buckets_lib.check_rising(self.lengths, 'Buckets.lengths')
    if self.tokens_per_batch < 1:
      raise ConfigurationError(
        f'Buckets.tokens_per_batch = {self.tokens_per_batch} must be at least'
        ' 1.'
      )


@dataclasses.dataclass(frozen=True)
class Regressor(Network):
  """A T5 network with a scalar read-out. Holds no parameters."""

  def predict(
    self,
    params: Params,
    encoder_input_tokens: Tokens,
    dropout_key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'b']:
    """Returns the score of each text, float32, unbounded. Traceable.

    Args:
      params: the parameters.
      encoder_input_tokens: int32, a text a row; 0 is padding.
      dropout_key: a key to train with dropout; None: no dropout.
    """
    tokens = jnp.asarray(encoder_input_tokens)
    return self._apply(params, dropout_key, tokens, tokens[:, :1])[:, 0]

  def score(
    self,
    params: Params,
    batch: Batch,
    dropout_key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'b t']:
    """Returns the score of each text of packed rows, for training. Traceable.

    A row holds texts one after the other, each ended by EOS, and has a target
    for each of them, in the same order: position j of the targets is what is
    to be learned of text j, and what it may be is the loss's affair.

    Args:
      params: the parameters.
      batch: rows of packed texts; of the targets only their places count.
      dropout_key: a key to train with dropout; None: no dropout.
    """
    tokens = jnp.asarray(batch.encoder_input_tokens)
    ended = jnp.cumsum(tokens == EOS_ID, axis=1)
    text = jnp.where(tokens > 0, 1 + ended - (tokens == EOS_ID), 0)
    targets = jnp.asarray(batch.decoder_target_tokens)
    place = jnp.broadcast_to(
      jnp.arange(1, 1 + targets.shape[1])[None], targets.shape
    )
    return self._apply(params, dropout_key, tokens, targets, text, place)

  def scores(
    self,
    params: Params,
    texts: Sequence[Sequence[int]],
    buckets: Buckets,
    *,
    advance: Callable[[int], None] = lambda rows: None,
  ) -> Float32[np.ndarray, ' n']:
    """Scores texts on the host's side.

    A score depends on its own text alone, to the last bit: neither on which
    others are scored with it nor on their order.

    Args:
      params: the parameters.
      texts: n token sequences.
      buckets: the shapes of batches.
      advance: called after every batch with the number of texts scored.

    Returns:
      float32 [n], unbounded.

    Raises:
      DataError: a text is longer than the longest bucket.
      RewardError: a score is NaN or infinite.
    """
    rows = [
      self.whole_batches(buckets.tokens_per_batch // length)
      for length in buckets.lengths
    ]
    out = np.zeros(len(texts), np.float32)
    for indices, tokens in buckets_lib.batches(
      texts, buckets.lengths, rows, 'raise Buckets.lengths'
    ):
      scores = _predict(self, params, self.place(tokens))
      out[indices] = np.asarray(scores)[: len(indices)]
      advance(len(indices))
    if not np.isfinite(out).all():
      at = int(np.flatnonzero(~np.isfinite(out))[0])
      raise RewardError(
        f'the network gave {out[at]} for text {at} of {len(texts)}: its'
        ' parameters are broken; train or convert them again.'
      )
    return out

  def _apply(self, params, dropout_key, tokens, places, *segment_ids):
    rngs = None if dropout_key is None else {'dropout': dropout_key}
    return self._model.apply(
      {'params': params},
      tokens,
      jnp.zeros_like(places),
      *segment_ids,
      rngs=rngs,
    )

  @functools.cached_property
  def _model(self) -> Scorer:
    return Scorer(self.config, self.placement)


@functools.partial(jax.jit, static_argnums=0)
def _predict(regressor, params, tokens):
  return regressor.predict(params, tokens)
