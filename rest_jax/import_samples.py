"""Import: others' outputs as rows of D_g, beside those that Grow samples.

A file of a teacher's outputs, or of a published corpus such as NewsPaLM, is
read once and stored as samples of origin `imported`. From then on they are
scored, filtered and trained on as a policy's own; they belong to every Grow
step. References in the file serve rewards that need them, and nothing else.
"""

import itertools
import time

from rest_jax.context import Context
from rest_jax.data import imported, prepare, store
from rest_jax.run_directory import Stage

_SOURCES_PER_PART = 8192  # A killed Annotate loses a part's work at most.


def run(context: Context, stage: Stage, path: str, data: prepare.Data) -> None:
  """Writes the rows of a file as samples.

  Args:
    context: the run.
    stage: where to write; begun.
    path: a file that `data.imported` reads.
    data: the run's data, for its lengths and languages.

  Raises:
    DataError: the file cannot be read as it is.
    StorageError: a part cannot be written.
  """
  began = time.monotonic()
  rows = imported.import_samples(
    path,
    context.tokenizer.encode_batch,
    encode_sources=context.tokenizer.encode_sources,
    eos_id=context.tokenizer.eos_id,
    grow_step=0,
    language_pair=data.language_pair,
    first_id=prepare.FIRST_IMPORTED_ID,
    max_source_length=data.max_source_length,
    max_target_length=data.max_target_length,
  )
  starts = store.source_starts(rows.table['source_id'].to_numpy())
  bounds = [*starts[:-1:_SOURCES_PER_PART].tolist(), rows.table.num_rows]
  for number, (low, high) in enumerate(itertools.pairwise(bounds)):
    part = store.samples_part(rows.table.slice(low, high - low))
    stage.write_part(store.part_name(number), part)
  counts = {
    'samples': rows.samples,
    'sources': rows.sources,
    'references': rows.references,
    'too_long': rows.skipped_too_long,
    'unfinished': rows.skipped_unfinished,
    'in_dev': _count_in_dev(context, rows),
  }
  context.progress.note(
    ', '.join(f'{name} {value:,}' for name, value in counts.items())
  )
  stage.commit(counts=counts, seconds=time.monotonic() - began)


def _count_in_dev(context: Context, rows: imported.Imported) -> int:
  """Imported sources that are D_eval's too, whose figures then say less."""
  sources = set(rows.table['source'].to_pylist())
  evaluated = (
    source
    for split in ('select', 'report')
    for table in context.sources(split, ('source',))
    for source in table['source'].to_pylist()
  )
  return len(sources & set(evaluated))
