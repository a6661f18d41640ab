"""log π_BC(y | x) of stored samples, which later policies are held against."""

from collections.abc import Sequence

import jax
import numpy as np
from etils import epath
from jaxtyping import Float32

from rest_jax import generation, preemption, score_parts
from rest_jax.context import BC, Context
from rest_jax.data import store
from rest_jax.data.lookup import Lookup
from rest_jax.run_directory import Stage
from rest_jax.training import step
from rest_jax.types import Params

LOG_PROB = 'bc_log_prob'  # The stage beside a store's samples, and its column.


def stage_name(samples_store: str) -> str | None:
  """The stage of a store, e.g. 'grow_2'; None where no later policy grew it."""
  if samples_store == 'grow_1' or not samples_store.startswith('grow_'):
    return None
  return f'{samples_store}/{LOG_PROB}'


def run(
  context: Context,
  stage: Stage,
  samples: Stage,
  batching: generation.Batching,
) -> None:
  """Scores what a policy drew with BC, in nats; 0 for references.

  Args:
    context: the run.
    stage: where to write; begun.
    samples: the grown dataset; committed.
    batching: shapes, those of Grow.
  """

  def make_scorer() -> score_parts.Scorer:
    params = context.decoding_params(BC)
    columns = ('source_id', 'source_tokens')
    tokens_of = Lookup(context.sources('grow', columns), columns[1])

    def score(path: epath.Path) -> Float32[np.ndarray, ' rows']:
      table = store.read_part(path, ('source_id', 'origin', 'target_tokens'))
      drawn = np.flatnonzero(np.array(table['origin'].to_pylist()) == 'policy')
      found = np.zeros(table.num_rows, np.float32)
      own = table.take(drawn)
      found[drawn] = log_probs(
        context,
        params,
        tokens_of(own['source_id'].to_pylist()),
        own['target_tokens'].to_pylist(),
        batching,
      )
      return found

    return score

  score_parts.run(context, stage, samples, make_scorer)


def log_probs(
  context: Context,
  params: Params,
  sources: Sequence[Sequence[int]],
  targets: Sequence[Sequence[int]],
  batching: generation.Batching,
) -> Float32[np.ndarray, ' m']:
  """Log π(y | x) of m pairs, in nats; compiled once a source bucket.

  Args:
    context: the run.
    params: of π, placed for `Context.decoder`.
    sources: tokens, EOS included.
    targets: tokens, with EOS where it was reached.
    batching: shapes.
  """
  policy = context.decoder
  rows = generation.scored_at_once(policy, batching)
  out = np.zeros(len(sources), np.float32)
  for indices, source_tokens in batching.batches(sources, rows):
    tokens = np.zeros((rows, batching.max_decode_len), np.int32)
    lengths = np.zeros(rows, np.int32)
    for row, index in enumerate(indices):
      lengths[row] = len(targets[index])
      tokens[row, : lengths[row]] = targets[index]
    batch = generation.teacher_forced(source_tokens, tokens, lengths)
    batch = jax.tree.map(policy.place, batch)
    found = np.array(step.target_log_probs(policy, params, batch))
    found *= np.asarray(batch.decoder_loss_weights)
    out[indices] = found.sum(axis=1)[: len(indices)]
    preemption.check()
  return out
