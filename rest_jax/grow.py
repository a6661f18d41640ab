"""Grow: a policy's samples of every source, written to the store.

D_g = {(x_i, y_i) : x_i ~ D, y_i ~ π_θ(· | x_i)} ∪ D (Gulcehre et al. 2023,
arXiv:2308.08998, section 3): the references of D are rows beside the samples.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from etils import epath

from rest_jax import generation, hosts, parts, preemption
from rest_jax.context import Context
from rest_jax.data import store
from rest_jax.decoding.sampling import Sampling
from rest_jax.errors import ConfigurationError, CorruptStateError
from rest_jax.run_directory import Stage

_COUNTS = ('samples', 'sources', 'tokens', 'finished', 'references')
_SOURCE_COLUMNS = ('source_id', 'doc_id', 'domain', 'language_pair', 'source')


@dataclasses.dataclass(frozen=True)
class Grow:
  """How a dataset is grown.

  Attributes:
    num_samples: N, samples a source.
    sampling: how tokens are drawn.
    batching: shapes of decoding.
    samples_per_part: samples a committed part, rounded to whole sources; a
      killed run loses at most one part's work, and one part lies in memory.
  """

  num_samples: int = 25
  sampling: Sampling = Sampling()
  batching: generation.Batching = generation.Batching()
  samples_per_part: int = 32768

  def __post_init__(self):
    for name in ('num_samples', 'samples_per_part'):
      if getattr(self, name) < 1:
        raise ConfigurationError(
          f'Grow.{name} = {getattr(self, name)} must be at least 1.'
        )

  @property
  def sources_per_part(self) -> int:
    """Sources of a part."""
    return max(1, self.samples_per_part // self.num_samples)


def _lists(values: np.ndarray, lengths: np.ndarray) -> pa.ListArray:
  """A column of lists: the first `lengths[i]` values of each row [m, t]."""
  mask = np.arange(values.shape[1]) < lengths[:, None]
  offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
  return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values[mask]))


def sample_rows(
  sources: pa.Table,
  generated: generation.Generated,
  texts: Sequence[str],
  grow_step: int,
) -> pa.Table:
  """Rows of the samples' schema for k sources with n samples each.

  Args:
    sources: k rows of the sources' schema.
    generated: their samples, [k, n, …].
    texts: the k · n decoded samples, source by source.
    grow_step: g.

  Returns:
    k · n rows, the samples of a source together.
  """
  k, n, _ = generated.tokens.shape

  def flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(k * n, *array.shape[2:])

  repeated = np.repeat(np.arange(k), n)
  lengths = flat(generated.lengths)
  columns: dict[str, Any] = {
    name: sources[name].take(repeated).combine_chunks()
    for name in _SOURCE_COLUMNS
  }
  log_probs = flat(generated.token_log_probs)
  return store.samples_table(
    columns
    | {
      'sample_index': np.tile(np.arange(n, dtype=np.int32), k),
      'grow_step': grow_step,
      'origin': 'policy',
      'target': list(texts),
      'target_tokens': _lists(flat(generated.tokens), lengths),
      'length': lengths,
      'finished': flat(generated.finished),
      'log_prob': log_probs.sum(-1),
      'token_log_probs': _lists(log_probs, lengths),
      'token_sampling_log_probs': _lists(
        flat(generated.token_sampling_log_probs), lengths
      ),
    }
  )


def reference_rows(sources: pa.Table, grow_step: int) -> pa.Table:
  """The references of D as rows: `sample_index` −1, no log-probabilities."""
  sources = sources.filter(pa.compute.is_valid(sources['target']))
  columns = {name: sources[name].combine_chunks() for name in _SOURCE_COLUMNS}
  tokens = sources['target_tokens'].combine_chunks()
  return store.samples_table(
    columns
    | {
      'sample_index': np.full(len(sources), store.REFERENCE_INDEX, np.int32),
      'grow_step': grow_step,
      'origin': 'reference',
      'target': sources['target'].combine_chunks(),
      'target_tokens': tokens,
      'length': pa.compute.list_value_length(tokens),
      'finished': np.ones(len(sources), bool),
    }
  )


def _by_source(tables: Sequence[pa.Table]) -> pa.Table:
  """All rows, those of a source together, references first."""
  table = pa.concat_tables(tables)
  return table.sort_by(
    [('source_id', 'ascending'), ('sample_index', 'ascending')]
  )


def run(
  context: Context,
  stage: Stage,
  settings: Grow,
  *,
  policy_name: str,
  grow_step: int,
  split: str = 'grow',
  references: bool = True,
) -> None:
  """Samples from a policy for all of Grow's sources, part by part.

  Args:
    context: the run.
    stage: where to write; begun.
    settings: how.
    policy_name: stage of the policy, e.g. 'supervised'.
    grow_step: g, from 1; 0 for samples of no Grow step.
    split: whose sources.
    references: whether the references of D are rows as well.

  Raises:
    StorageError: a part cannot be written; earlier ones stay.
    DataError: a source is too long for the buckets.
  """
  began = time.monotonic()
  folder = context.split_folder(split)
  total, size = store.count_rows(folder), settings.sources_per_part
  count = check_size(settings, total, stage.name)
  # Found out by one process in the midst of its work, it would be too late.
  hosts.on_first(lambda: settings.batching.check_fits(_longest(folder)))
  params = context.decoding_params(policy_name)
  same_split = references and folder == context.split_folder('train')
  names = list(map(store.part_name, range(count)))
  if references and not same_split:
    names += _reference_names(context, settings, count)
  numbers = {name: number for number, name in enumerate(names)}
  left, infos = parts.deal(stage, names)
  done = sum(info.get('sources', 0) for info in infos.values())
  of_mine = done + sum(
    max(0, min(size, total - numbers[name] * size)) for name in left
  )
  tokens = 0

  def advance(decoded: int) -> None:
    nonlocal tokens
    tokens += decoded
    rate = tokens / (time.monotonic() - began)
    context.progress.update(done, of_mine, **{'tokens/s': rate})
    preemption.check()

  for name in left:
    number, since = numbers[name], time.monotonic()
    if number >= count:
      table = _references_of(context, settings, number - count, grow_step)
      info = {'references': table.num_rows}
    else:
      sources = store.read_rows(folder, number * size, (number + 1) * size)
      table = _grown(context, settings, params, sources, grow_step, advance)
      info = _describe(table)
      if same_split:
        table = _by_source([table, reference_rows(sources, grow_step)])
        info['references'] = table.num_rows - info['samples']
    info['seconds'] = time.monotonic() - since
    stage.write_part(name, store.samples_part(table), info)
    infos[name] = info
    done += info.get('sources', 0)
    context.progress.update(done, of_mine)
    preemption.check()
  parts.commit(stage, infos, _COUNTS, began)


def check_size(settings: Grow, sources: int, name: str) -> int:
  """Into how many parts Grow's sources are cut.

  Args:
    settings: how they are.
    sources: their number.
    name: of the stage, for the error.

  Raises:
    ConfigurationError: there are fewer than processes.
  """
  size = settings.sources_per_part
  count = -(-sources // size)
  if count < hosts.count():
    raise ConfigurationError(
      f'{name}: {sources:,} sources make {count} parts of {size:,}, too few'
      f' for {hosts.count()} processes; lower grow.Grow.samples_per_part, or'
      ' start fewer.'
    )
  return count


def _longest(folder: epath.Path) -> int:
  """The tokens of the longest source."""
  return max(
    pc.max(pc.list_value_length(table['source_tokens'])).as_py()
    for table in store.read_row_groups(folder, ('source_tokens',))
  )


def _grown(
  context: Context,
  settings: Grow,
  params: Any,
  sources: pa.Table,
  grow_step: int,
  advance: Any,
) -> pa.Table:
  generated = generation.generate(
    context.decoder,
    params,
    sources['source_tokens'].to_pylist(),
    sources['source_id'].to_numpy(),
    seed=context.seed,
    purpose='grow',
    step=grow_step,
    num_samples=settings.num_samples,
    sampling=settings.sampling,
    batching=settings.batching,
    num_tokens=context.tokenizer.size,
    advance=advance,
  )
  texts = generated.texts(context.tokenizer)
  return sample_rows(sources, generated, texts, grow_step)


def _describe(table: pa.Table) -> dict[str, int]:
  return {
    'samples': table.num_rows,
    'sources': len(pa.compute.unique(table['source_id'])),
    'tokens': pa.compute.sum(table['length']).as_py(),
    'finished': pa.compute.sum(table['finished']).as_py(),
    'references': 0,
  }


def _reference_names(context: Context, settings: Grow, first: int) -> list[str]:
  """Parts with the references of D where Grow has sources of its own."""
  rows = store.count_rows(context.split_folder('train'))
  # A reference is a row as a sample is.
  count = -(-rows // settings.samples_per_part)
  return list(map(store.part_name, range(first, first + count)))


def _references_of(
  context: Context, settings: Grow, number: int, grow_step: int
) -> pa.Table:
  """The rows of one of these parts."""
  folder, size = context.split_folder('train'), settings.samples_per_part
  sources = store.read_rows(folder, number * size, (number + 1) * size)
  table = reference_rows(sources, grow_step)
  if not table.num_rows:
    raise CorruptStateError(
      f'{folder} holds no target at all; delete the data stage and prepare'
      ' it again.'
    )
  return table
