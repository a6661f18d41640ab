"""A model that is a table: logits depend on the last token alone."""

import jax.numpy as jnp
import numpy as np

from rest_jax.types import DecodeCache


def table_step(table):
  """Returns a decode step whose cache notes the tokens it was given.

  The note, in the place of the self-attention keys, is what a beam search must
  reorder: at each step it must hold the history of every live beam.
  """
  table = jnp.asarray(table, jnp.float32)

  def decode_step(tokens, cache):
    position = jnp.arange(cache.self_keys[0].shape[1])[None, :, None]
    noted = jnp.where(
      position == cache.step, tokens[:, None, :], cache.self_keys[0]
    )
    cache = cache.replace(self_keys=(noted,), step=cache.step + 1)
    return table[tokens], cache

  return decode_step


def empty_cache(num_sources, num_samples, max_decode_len):
  shape = (num_sources, max_decode_len, num_samples)
  return DecodeCache(
    self_keys=(jnp.zeros(shape, jnp.int32),),
    self_values=(),
    cross_keys=(),
    cross_values=(),
    source_mask=jnp.ones((num_sources, 1), bool),
    step=jnp.zeros((), jnp.int32),
    begun=jnp.zeros((num_sources, num_samples), jnp.int32),
  )


def random_table(seed, vocab=6, spread=1.5):
  rng = np.random.default_rng(seed)
  return (spread * rng.normal(size=(vocab, vocab))).astype(np.float32)


def log_softmax(table):
  shifted = table - table.max(-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
