"""T5X's side; see `serving`, and docs/t5x.md for how to install T5X.

python side_t5x.py FOLDER grow|natural|beam|train|improve
"""

import functools
import inspect
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import seqio
import serving
from t5x import checkpoints, decoding, models, partitioning, train_state
from t5x.examples.t5 import network


class _Ids(seqio.PassThroughVocabulary):
  """Ids without text; EOS is 1."""

  @property
  def eos_id(self):
    return 1


def _model(folder: pathlib.Path, decode_fn) -> models.EncoderDecoderModel:
  fields = json.loads((folder / 'config.json').read_text())
  known = inspect.signature(network.T5Config).parameters
  config = network.T5Config(
    **{k: v for k, v in fields.items() if k in known and k != 'dtype'}
  )
  ids = _Ids(config.vocab_size)
  return models.EncoderDecoderModel(
    network.Transformer(config),
    input_vocabulary=ids,
    output_vocabulary=ids,
    optimizer_def=None,
    decode_fn=decode_fn,
  )


def _params(model, folder: pathlib.Path):
  shape = serving.sources().shape
  variables = jax.eval_shape(
    lambda: model.get_initial_variables(
      jax.random.PRNGKey(0),
      {'encoder_input_tokens': shape, 'decoder_input_tokens': shape},
    )
  )
  checkpointer = checkpoints.Checkpointer(
    train_state.InferenceState.create(variables),
    partitioning.PjitPartitioner(num_partitions=1),
    str(folder.parent),
    restore_dtype=np.float32,
  )
  restored = checkpointer.restore(path=str(folder)).params
  return jax.tree.map(jnp.asarray, restored)


def _decoder(
  model,
  params,
  batches: list[np.ndarray],
  length: int,
  num_decodes: int,
  best: int,
  decoder_params,
):
  """What decodes all sources and counts the tokens of the `best` last of each.

  T5X gives the best sequence last.
  """

  @jax.jit
  def decode(params, tokens, key):
    batch = {
      'encoder_input_tokens': tokens,
      'decoder_input_tokens': jnp.zeros((len(tokens), length), jnp.int32),
    }
    return model.predict_batch_with_aux(
      params,
      batch,
      rng=key,
      decoder_params=dict(decoder_params),  # It adds the key to them.
      return_all_decodes=True,
      num_decodes=num_decodes,
    )[0]

  def count() -> int:
    found = [decode(params, x, jax.random.PRNGKey(0)) for x in batches]
    return sum(int(np.count_nonzero(np.asarray(x)[:, -best:])) for x in found)

  return count


def _trainer(model, params, source: np.ndarray, target: np.ndarray):
  adam = optax.adamw(1e-4)
  batch = {
    'encoder_input_tokens': jnp.asarray(source),
    'decoder_input_tokens': jnp.pad(target[:, :-1], ((0, 0), (1, 0))),
    'decoder_target_tokens': jnp.asarray(target),
    'decoder_loss_weights': jnp.asarray(target > 0, jnp.float32),
  }

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def update(params, moments, key):
    gradient = jax.grad(lambda p: model.loss_fn(p, batch, key)[0])(params)
    changes, moments = adam.update(gradient, moments, params)
    return optax.apply_updates(params, changes), moments

  state = [params, adam.init(params)]

  def train() -> int:
    state[:] = update(*state, jax.random.PRNGKey(0))
    jax.block_until_ready(state)
    return int(np.count_nonzero(target))

  return train


def main(folder: str, work: str) -> None:
  """Does what the module says."""
  path = pathlib.Path(folder, 't5x', 'checkpoint_0').resolve()
  samples = work in ('grow', 'natural')
  decode = decoding.temperature_sample if samples else decoding.beam_search
  model = _model(path, decode)
  params = _params(model, path)
  sampling = {'temperature': serving.TEMPERATURE, 'topk': 0}
  one, new = [serving.sources()], serving.NEW_TOKENS
  n, beams = serving.SAMPLES, serving.NUM_BEAMS
  if work == 'grow':
    does = _decoder(model, params, one, new, n, n, sampling)
  elif work == 'natural':
    batches, n = serving.natural_batches(folder), serving.NATURAL_SAMPLES
    longest = serving.NATURAL_LONGEST
    does = _decoder(model, params, batches, longest, n, n, sampling)
  elif work == 'beam':
    does = _decoder(model, params, one, new, beams, 1, {'alpha': 0.6})
  elif work == 'train':
    pairs = serving.sources(serving.PAIRS), serving.targets()
    does = _trainer(model, params, *pairs)
  else:
    pairs = map(serving.padded, zip(*serving.pairs(folder), strict=True))
    does = _trainer(model, params, *pairs)
  serving.serve(does, f't5x, jax {jax.__version__}')


if __name__ == '__main__':
  main(*sys.argv[1:])
