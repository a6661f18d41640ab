"""The policy π_θ(y | x): the seam between the algorithm and the network."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from rest_jax.decoding.beam import Beams, beam_search
from rest_jax.decoding.keys import sample_keys
from rest_jax.decoding.loop import sample
from rest_jax.decoding.sampling import Sampling, only_drawn
from rest_jax.errors import ConfigurationError
from rest_jax.models.config import T5Config
from rest_jax.models.t5 import Transformer
from rest_jax.network import Network
from rest_jax.sharding import Placement
from rest_jax.types import (
  Batch,
  DecodeCache,
  Memory,
  Params,
  Samples,
  TokenScores,
)

__all__ = [
  'AroundPolicy',
  'DrawnPolicy',
  'Policy',
  'sample_keys',
  'score_tokens',
]

Tokens = Int[Array | np.ndarray, 'b s']


@dataclasses.dataclass(frozen=True)
class Policy(Network):
  """A T5 network that translates. Holds no parameters; static in `jit`."""

  def score(
    self,
    params: Params,
    batch: Batch,
    dropout_key: Key[Array, ''] | None = None,
  ) -> TokenScores:
    """Scores every target token of a batch. Traceable; not compiled here.

    Args:
      params: the parameters.
      batch: rows of padded or packed pairs.
      dropout_key: a key to train with dropout; None: no dropout.
    """
    logits = self.logits(params, batch, dropout_key)
    return score_tokens(logits, jnp.asarray(batch.decoder_target_tokens))

  def logits(
    self,
    params: Params,
    batch: Batch,
    dropout_key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'b t v']:
    """Returns float32 logits of every target token; else as `score`."""
    rngs = None if dropout_key is None else {'dropout': dropout_key}
    batch = jax.tree.map(jnp.asarray, batch)
    return self._model.apply(
      {'params': params},
      batch,
      rngs=rngs,
      method=lambda model, batch: model.decode(
        model.encode(batch.encoder_input_tokens, batch.encoder_segment_ids),
        batch.encoder_input_tokens,
        batch.decoder_input_tokens,
        batch.encoder_segment_ids,
        batch.decoder_segment_ids,
      ),
    )

  def is_output(self, name: str) -> bool:
    """See `Network.is_output`; the embedding, where the two are tied."""
    tied = self.config.logits_via_embedding and name.startswith('token_')
    return tied or super().is_output(name)

  def empty_cache(
    self,
    num_sources: int,
    source_length: int,
    *,
    num_samples: int,
    max_decode_len: int,
  ) -> DecodeCache:
    """Room for n samples of t tokens of b sources. Traceable."""
    return self._decoding_model.apply(
      {},
      num_sources,
      source_length,
      num_samples,
      max_decode_len,
      method=Transformer.empty_cache,
    )

  def project_memory(
    self, params: Params, encoder_input_tokens: Tokens
  ) -> Memory:
    """Encodes sources, as far as all samples share it. Traceable."""
    return self._decoding_model.apply(
      {'params': params},
      encoder_input_tokens,
      method=Transformer.project_memory,
    )

  def start_cache(
    self,
    params: Params,
    encoder_input_tokens: Tokens,
    *,
    num_samples: int,
    max_decode_len: int,
  ) -> DecodeCache:
    """Encodes sources, with room for n samples of t tokens. Traceable."""
    return self._decoding_model.apply(
      {'params': params},
      jnp.asarray(encoder_input_tokens),
      num_samples,
      max_decode_len,
      method=Transformer.start_cache,
    )

  def decode_step(
    self, params: Params, tokens: Int[Array, 'b n'], cache: DecodeCache
  ) -> tuple[Float[Array, 'b n v'], DecodeCache]:
    """Returns float32 logits of the token after the given. Traceable."""
    return self._decoding_model.apply(
      {'params': params}, tokens, cache, method=Transformer.decode_step
    )

  def sample(
    self,
    params: Params,
    encoder_input_tokens: Tokens,
    keys: Key[Array, 'b n'],
    *,
    sampling: Sampling,
    max_decode_len: int,
    num_tokens: int | None = None,
  ) -> Samples:
    """Draws n samples a source. Compiled once a shape and setting.

    Temperatures above 0 share their compilation.

    Args:
      params: the parameters.
      encoder_input_tokens: int32, sources; 0 is padding.
      keys: one a sample, see `sample_keys`.
      sampling: how to draw.
      max_decode_len: most tokens of a sample, EOS counted.
      num_tokens: size of the tokenizer; ids from it on, and 0, are never
        drawn. None: the model's vocabulary has no padding.

    Raises:
      ConfigurationError: the batch does not divide over the mesh, or
        num_tokens exceeds the vocabulary.
    """
    self.check_num_tokens(num_tokens)
    temperature, sampling = sampling.traced()
    return _sample(
      self,
      params,
      self.place(encoder_input_tokens),
      self.place(keys),
      temperature,
      sampling,
      max_decode_len,
      num_tokens,
    )

  def greedy(
    self,
    params: Params,
    encoder_input_tokens: Tokens,
    *,
    max_decode_len: int,
    num_tokens: int | None = None,
  ) -> Samples:
    """Takes the most probable token at every step; n = 1. See `sample`."""
    # Greedy decoding reads the shape of the keys alone.
    keys = jax.random.split(
      jax.random.key(0), (encoder_input_tokens.shape[0], 1)
    )
    return self.sample(
      params,
      encoder_input_tokens,
      keys,
      sampling=Sampling(temperature=0.0),
      max_decode_len=max_decode_len,
      num_tokens=num_tokens,
    )

  def beam_search(
    self,
    params: Params,
    encoder_input_tokens: Tokens,
    *,
    num_beams: int = 4,
    alpha: float = 0.6,
    max_decode_len: int,
    num_tokens: int | None = None,
  ) -> Beams:
    """Searches the best sequences of every source, best first.

    Args:
      params: the parameters.
      encoder_input_tokens: int32, sources; 0 is padding.
      num_beams: beams a source, k.
      alpha: exponent of the brevity penalty; 0: none.
      max_decode_len: most tokens of a hypothesis, EOS counted.
      num_tokens: as in `sample`.

    Returns:
      int32 [b, k, t] tokens and float32 [b, k] scores.

    Raises:
      ConfigurationError: as in `sample`, or num_beams below 1.
    """
    self.check_num_tokens(num_tokens)
    if num_beams < 1:
      raise ConfigurationError(f'num_beams = {num_beams!r}: set at least 1.')
    return _beam_search(
      self,
      params,
      self.place(encoder_input_tokens),
      num_beams,
      alpha,
      max_decode_len,
      num_tokens,
    )

  @functools.cached_property
  def _model(self) -> Transformer:
    return Transformer(self.config, self.placement)

  @functools.cached_property
  def _decoding_model(self) -> Transformer:
    """Without the loop over layers, which holds a copy of their parameters."""
    config = dataclasses.replace(self.config, scan_layers=False)
    return Transformer(config, self.placement)

  def check_num_tokens(self, num_tokens: int | None) -> None:
    """Raises ConfigurationError unless the tokenizer fits the vocabulary."""
    if num_tokens is not None and not 1 < num_tokens <= self.config.vocab_size:
      raise ConfigurationError(
        f'The tokenizer has {num_tokens} tokens, T5Config.vocab_size is '
        f'{self.config.vocab_size}; set it to at least as many.'
      )


@dataclasses.dataclass(frozen=True)
class DrawnPolicy(Policy):
  """What samples at T = 1 are drawn from: π over the tokenizer's ids alone.

  A `Policy` is over the whole vocabulary, padding included, as T5's loss is. No
  sample has padding in it, so a policy gradient of that lets probability leak
  into padding, where nothing calls it back.

  Attributes:
    num_tokens: as in `Policy.sample`.
  """

  num_tokens: int | None = None

  def logits(
    self,
    params: Params,
    batch: Batch,
    dropout_key: Key[Array, ''] | None = None,
  ) -> Float[Array, 'b t v']:
    """As of `Policy`, −inf for ids that are never drawn."""
    logits = super().logits(params, batch, dropout_key)
    return only_drawn(logits, self.num_tokens)


class AroundPolicy:
  """A network that a policy is a part of, laid out as the policy is."""

  policy: Policy

  @property
  def config(self) -> T5Config:
    """The policy's."""
    return self.policy.config

  @property
  def mesh(self) -> jax.sharding.Mesh:
    """The policy's."""
    return self.policy.mesh

  @property
  def placement(self) -> Placement:
    """The policy's."""
    return self.policy.placement


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7))
def _sample(
  policy,
  params,
  tokens,
  keys,
  temperature,
  sampling,
  max_decode_len,
  num_tokens,
):
  params = policy.inference_params(params)
  cache = policy.start_cache(
    params,
    tokens,
    num_samples=keys.shape[1],
    max_decode_len=max_decode_len,
  )
  return sample(
    functools.partial(policy.decode_step, params),
    cache,
    keys,
    sampling=sampling,
    num_tokens=num_tokens,
    temperature=temperature,
    eos_id=policy.config.eos_id,
  )


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5, 6))
def _beam_search(
  policy, params, tokens, num_beams, alpha, max_decode_len, num_tokens
):
  params = policy.inference_params(params)
  cache = policy.start_cache(
    params, tokens, num_samples=num_beams, max_decode_len=max_decode_len
  )
  return beam_search(
    functools.partial(policy.decode_step, params),
    cache,
    batch_size=tokens.shape[0],
    num_beams=num_beams,
    alpha=alpha,
    max_decode_len=max_decode_len,
    num_tokens=num_tokens,
    eos_id=policy.config.eos_id,
  )


def score_tokens(
  logits: Float[Array, 'b t v'], targets: Int[Array, 'b t']
) -> TokenScores:
  """Returns what losses need of float32 logits, see `TokenScores`."""
  log_normalizers = jax.nn.logsumexp(logits, axis=-1)
  return TokenScores(
    log_probs=_pick(logits, targets) - log_normalizers,
    log_normalizers=log_normalizers,
    mean_log_probs=jnp.mean(logits, axis=-1) - log_normalizers,
  )


@jax.custom_vjp
def _pick(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns each target's logit.

  A gather whose gradient is a comparison, fused with the others of the logits:
  neither a one-hot array nor a scatter.
  """
  return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


def _pick_forward(logits, targets):
  # The logits are saved for their shape alone.
  return _pick(logits, targets), (logits, targets)


def _pick_backward(saved, gradient):
  logits, targets = saved
  ids = jnp.arange(logits.shape[-1])
  hit = targets[..., None] == ids[None, None, :]
  return jnp.where(hit, gradient[..., None], 0.0), None


_pick.defvjp(_pick_forward, _pick_backward)
