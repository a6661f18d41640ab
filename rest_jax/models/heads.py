"""T5 with a scalar read-out: one score a text instead of tokens.

The form of MetricX (Juraska et al. 2023, WMT23 metrics shared task): the
encoder reads the text, the decoder takes one step from the start token 0, and a
linear map of its normed output is the score. The parameters are T5X's, with
`decoder/logits_dense` replaced by `decoder/score_dense`. The score is never
scaled: T5 scales outputs that are tied to the embedding, and this one is not.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from rest_jax.models.config import T5Config
from rest_jax.models.layers import Dense, Embed
from rest_jax.models.t5 import Decoder, Encoder, embed, segment_mask
from rest_jax.sharding import Placement


class ScoringDecoder(Decoder):
  """T5's decoder, with a score for output."""

  def setup(self):
    # Linen makes the parameters of `logits_dense` where it is used: nowhere.
    super().setup()
    self.score_dense = Dense(self.config.emb_dim, 1, ('embed', None))


class Scorer(nn.Module):
  """An encoder–decoder that gives each text a number."""

  config: T5Config
  placement: Placement

  def setup(self):
    cfg = self.config
    self.token_embedder = Embed(cfg.vocab_size, cfg.emb_dim, cfg.dtype)
    self.encoder = Encoder(cfg, self.placement)
    self.decoder = ScoringDecoder(cfg, self.placement)

  def __call__(
    self,
    encoder_input_tokens: Int[Array, 'b s'],
    decoder_input_tokens: Int[Array, 'b t'],
    encoder_segment_ids: Int[Array, 'b s'] | None = None,
    decoder_segment_ids: Int[Array, 'b t'] | None = None,
  ) -> Float[Array, 'b t']:
    """Scores the texts of each row.

    Args:
      encoder_input_tokens: int32, texts; 0 is padding.
      decoder_input_tokens: int32, zeros, one for each text of a row.
      encoder_segment_ids: int32, which text of its row a token belongs to,
        from 1; None when each row is one text.
      decoder_segment_ids: int32, which text each position scores.

    Returns:
      float32 scores, unbounded.
    """
    mask = segment_mask(encoder_input_tokens, encoder_segment_ids)
    x = embed(self.token_embedder, encoder_input_tokens, self.placement)
    encoded = self.encoder(x, mask)
    own = self.seen(decoder_input_tokens.shape[1], decoder_segment_ids)
    cross_mask = segment_mask(
      encoder_input_tokens, encoder_segment_ids, decoder_segment_ids
    )
    x = embed(self.token_embedder, decoder_input_tokens, self.placement)
    x = self.decoder(x, encoded, own, cross_mask)
    return self.decoder.score_dense(x)[..., 0]

  def seen(
    self, length: int, segment_ids: Int[Array, 'b t'] | None
  ) -> Bool[Array, '_ 1 t t']:
    """Which positions of the decoder a position sees.

    A text's only position sees itself: T5's causal mask of one token.
    """
    del segment_ids
    return jnp.eye(length, dtype=bool)[None, None]


class Valuer(Scorer):
  """An encoder–decoder that gives each prefix of a target a number.

  The number of a position is of what stands before its target: it sees the
  same as T5's logits there.
  """

  def seen(
    self, length: int, segment_ids: Int[Array, 'b t'] | None
  ) -> Bool[Array, '_ 1 t t']:
    """Itself and what came before it, within its own sequence."""
    causal = jnp.tril(jnp.ones((1, 1, length, length), bool))
    if segment_ids is None:
      return causal
    same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    return causal & same
