"""rest_jax's side; see `serving`.

python side_rest_jax.py FOLDER grow|natural|beam|train|improve|floor
"""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import serving

import rest_jax
from rest_jax import generation, losses
from rest_jax.checkpoint import formats, huggingface
from rest_jax.data import loader
from rest_jax.decoding.sampling import Sampling
from rest_jax.policy import Policy, sample_keys
from rest_jax.sharding import Layout
from rest_jax.training import optimizer, state, step
from rest_jax.types import Batch

_SIDE = 2048  # Of the matrices whose product shows what the machine can do.


def grow(policy: Policy, params) -> int:
  """Samples of all sources."""
  tokens = serving.sources()
  keys = sample_keys(0, 'grow', 1, np.arange(len(tokens)), serving.SAMPLES)
  samples = policy.sample(
    params,
    tokens,
    keys,
    sampling=Sampling(temperature=serving.TEMPERATURE),
    max_decode_len=serving.NEW_TOKENS,
  )
  return int(np.asarray(samples.lengths).sum())


class Natural:
  """Samples of real sources until they end, as Grow draws them."""

  def __init__(self, folder: str, policy: Policy, params):
    self._policy, self._params = policy, params
    self._sources = serving.natural(folder)

  def __call__(self) -> int:
    generated = generation.generate(
      self._policy,
      self._params,
      self._sources,
      np.arange(len(self._sources)),
      seed=0,
      purpose='grow',
      step=1,
      num_samples=serving.NATURAL_SAMPLES,
      sampling=Sampling(temperature=serving.TEMPERATURE),
      batching=generation.Batching(
        serving.NATURAL_LONGEST, serving.NATURAL_ROWS, (32, 64)
      ),
      num_tokens=self._policy.config.vocab_size,
    )
    return int(generated.lengths.sum())


def beam(policy: Policy, params) -> int:
  """The best beam of all sources."""
  beams = policy.beam_search(
    params,
    serving.sources(),
    num_beams=serving.NUM_BEAMS,
    max_decode_len=serving.NEW_TOKENS,
  )
  return int(np.count_nonzero(np.asarray(beams.tokens)[:, 0]))


class Train:
  """Updates, one at a time."""

  def __init__(self, policy: Policy, params, batch: Batch):
    adam = optimizer.Optimizer(name='adamw', learning_rate=1e-4)
    self._step = step.make_train_step(policy, adam, losses.BehavioralCloning())
    self._state = state.init_state(policy, adam, params)
    self._batch = batch

  def __call__(self) -> int:
    self._state, metrics = self._step(
      self._state, self._batch, jax.random.key(0), 1.0
    )
    jax.block_until_ready(metrics)
    return int(np.count_nonzero(self._batch.decoder_target_tokens))


def pairs_at_random() -> Batch:
  """Rows of one pair each, all of one length."""
  target = serving.targets()
  return Batch(
    encoder_input_tokens=serving.sources(serving.PAIRS),
    decoder_input_tokens=np.pad(target[:, :-1], ((0, 0), (1, 0))),
    decoder_target_tokens=target,
    decoder_loss_weights=np.ones(target.shape, np.float32),
    encoder_segment_ids=np.ones_like(target),
    decoder_segment_ids=np.ones_like(target),
  )


def real_pairs(folder: str) -> Batch:
  """All pairs of a text in one batch, packed as Improve packs them."""
  rows = loader.write_rows(
    pathlib.Path(folder, 'rows'),
    [(*pair, 1.0, False) for pair in serving.pairs(folder)],
  )
  one = loader.TrainingBatches(rows, loader.Packing(128, 128, 1), 0)
  packing = loader.Packing(128, 128, int(one.steps_per_epoch))
  return loader.TrainingBatches(rows, packing, 0)[0]


def floor() -> int:
  """A matrix product; its operations stand where the others' tokens do."""
  a = jnp.ones((_SIDE, _SIDE), jnp.float32)
  jax.block_until_ready(_product(a))
  return 2 * _SIDE**3


@jax.jit
def _product(a):
  return a @ a


def main(folder: str, work: str) -> None:
  """Does what the module says."""
  about = f'rest_jax {rest_jax.__version__}, jax {jax.__version__}'
  if work == 'floor':
    serving.serve(floor, about)
    return
  path = pathlib.Path(folder, 'huggingface')
  policy = Policy(huggingface.read_config(path), Layout(data=1))
  params = formats.restore(formats.find(path), policy.placed_params())
  if work == 'train':
    serving.serve(Train(policy, params, pairs_at_random()), about)
  elif work == 'improve':
    serving.serve(Train(policy, params, real_pairs(folder)), about)
  elif work == 'natural':
    serving.serve(Natural(folder, policy, params), about)
  else:
    does = {'grow': grow, 'beam': beam}[work]
    serving.serve(functools.partial(does, policy, params), about)


if __name__ == '__main__':
  main(*sys.argv[1:])
