"""Restores a checkpoint with T5X itself, and runs T5X's network and searches.

  python t5x_peer.py CHECKPOINT_FOLDER INPUTS.npz OUTPUT.npz

A process of its own, as T5X brings its own settings of JAX. CHECKPOINT_FOLDER
has the fields of T5X's T5Config in `config.json`. INPUTS: encoder_input_tokens,
decoder_input_tokens, steps, num_beams. OUTPUT: params/<name>, logits,
greedy_tokens [b, t], beam_tokens [b, k, t] and beam_scores [b, k], best first.
"""

import inspect
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import seqio
from flax import traverse_util
from t5x import checkpoints, decoding, models, partitioning, train_state
from t5x.examples.t5 import network


class _Ids(seqio.PassThroughVocabulary):
  """Ids without text; EOS is 1."""

  @property
  def eos_id(self):
    return 1


def _model(config: network.T5Config, decode_fn) -> models.EncoderDecoderModel:
  ids = _Ids(config.vocab_size)
  return models.EncoderDecoderModel(
    network.Transformer(config),
    input_vocabulary=ids,
    output_vocabulary=ids,
    optimizer_def=None,
    decode_fn=decode_fn,
  )


def _restore(model, folder: pathlib.Path, shapes):
  """The parameters, restored by T5X's Checkpointer."""
  variables = jax.eval_shape(
    lambda: model.get_initial_variables(jax.random.PRNGKey(0), shapes)
  )
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  state = train_state.InferenceState.create(variables)
  checkpointer = checkpoints.Checkpointer(
    state, partitioner, str(folder.parent), restore_dtype=np.float32
  )
  restored = checkpointer.restore(path=str(folder))
  return restored, jax.tree.map(np.asarray, restored.params)


def main(folder: str, inputs: str, output: str) -> None:
  """Does what the module says."""
  path = pathlib.Path(folder)
  fields = json.loads((path / 'config.json').read_text())
  known = inspect.signature(network.T5Config).parameters
  config = network.T5Config(
    **{k: v for k, v in fields.items() if k in known and k != 'dtype'}
  )
  given = np.load(inputs)
  encoder_tokens = jnp.asarray(given['encoder_input_tokens'])
  decoder_tokens = jnp.asarray(given['decoder_input_tokens'])
  steps, beams = int(given['steps']), int(given['num_beams'])
  model = _model(config, decoding.beam_search)
  shapes = {
    'encoder_input_tokens': encoder_tokens.shape,
    'decoder_input_tokens': decoder_tokens.shape,
  }
  restored, params = _restore(model, path, shapes)
  out = {
    f'params/{name}': value
    for name, value in traverse_util.flatten_dict(
      jax.tree.map(np.asarray, dict(params)), sep='/'
    ).items()
  }
  out['step'] = np.asarray(restored.step)
  out['logits'] = model.module.apply(
    {'params': params},
    encoder_tokens,
    decoder_tokens,
    jnp.ones_like(decoder_tokens),
    enable_dropout=False,
  )
  batch = {
    'encoder_input_tokens': encoder_tokens,
    'decoder_input_tokens': jnp.zeros((len(encoder_tokens), steps), jnp.int32),
  }
  tokens, aux = model.predict_batch_with_aux(
    params,
    batch,
    decoder_params={'alpha': 0.6},
    return_all_decodes=True,
    num_decodes=beams,
  )
  # T5X gives its beams worst first.
  out['beam_tokens'] = tokens[:, ::-1]
  out['beam_scores'] = aux['scores'][:, ::-1]
  greedy = _model(config, decoding.temperature_sample)
  out['greedy_tokens'], _ = greedy.predict_batch_with_aux(
    params,
    batch,
    decoder_params={'temperature': 0.0},
    num_decodes=1,
  )
  np.savez(output, **{name: np.asarray(value) for name, value in out.items()})


if __name__ == '__main__':
  main(*sys.argv[1:])
