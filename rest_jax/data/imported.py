"""Others' outputs as rows of the store: a teacher's, or a published corpus.

Three formats, told apart by their ending, `.gz` allowed for the first two:

  .tsv      source, target [, doc_id [, domain]], no header, no quoting
  .jsonl    an object a line: source, and target or targets (a list); also
            source_id, doc_id, domain and reference if known
  .parquet  columns named as in .jsonl; such as a part of a run's own store,
            whose references (origin) stay such and whose samples that did not
            end (finished) are left out

Every row becomes a row of origin `imported`; a reference becomes one of origin
`reference`. All outputs for one source stand together, in the order of the
file, in the place where the source was first seen.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from rest_jax import errors, storage
from rest_jax.data import store
from rest_jax.data import text as text_lib
from rest_jax.data import tokenizer as tokenizer_lib

_FIELDS = {
  'source': str,
  'target': str,
  'targets': list,
  'reference': str,
  'source_id': int,
  'doc_id': str,
  'domain': str,
  'origin': str,
  'finished': bool,
}


@dataclasses.dataclass(frozen=True)
class Imported:
  """What `import_samples` read.

  Attributes:
    table: rows of `store.SAMPLES_SCHEMA`.
    samples: rows that are outputs.
    references: rows that are references.
    sources: sources.
    skipped_too_long: outputs left out because they, or their source, had too
      many tokens.
    skipped_unfinished: outputs left out because they never ended.
  """

  table: pa.Table
  samples: int
  references: int
  sources: int
  skipped_too_long: int
  skipped_unfinished: int = 0


@dataclasses.dataclass
class _Source:
  text: str
  where: str
  doc_id: str | None
  domain: str | None
  targets: list[str] = dataclasses.field(default_factory=list)
  reference: str | None = None


def import_samples(
  path: storage.PathLike,
  encode_batch: Callable[[Sequence[str]], Sequence[Sequence[int]]],
  *,
  grow_step: int = 1,
  language_pair: str = '',
  first_id: int = 0,
  max_source_length: int | None = None,
  max_target_length: int | None = None,
  encode_sources: Callable[[Sequence[str]], Sequence[Sequence[int]]]
  | None = None,
  eos_id: int = tokenizer_lib.EOS_ID,
) -> Imported:
  """Reads outputs of another system as sample rows.

  Args:
    path: a .tsv, .jsonl or .parquet file, see the module's top.
    encode_batch: texts → token ids, without EOS (the run's tokenizer).
    grow_step: what the rows' `grow_step` is to be.
    language_pair: likewise, such as `de-en`.
    first_id: number of the first source where the file gives no source_id.
    max_source_length: tokens, EOS counted; longer sources are left out, and
      their outputs counted.
    max_target_length: likewise of outputs; references may be of any length.
    encode_sources: as `encode_batch`, of sources, where they have a prefix.
    eos_id: what ends an output.

  Returns:
    The rows and counts. Where the file gives no source_id, sources are
    numbered in the order of the file; log-probabilities are null.

  Raises:
    DataError: the file is missing, empty, of an unknown format or not UTF-8;
      a line lacks a column, has a wrong type or an empty source; a source_id
      stands for two texts. File and line are named.
  """
  path = epath.Path(path)
  sources: dict[Any, _Source] = {}
  unfinished = 0
  for where, record in _records(path):
    _check_types(where, record)
    if record.pop('finished', None) is False:
      unfinished += 1
      continue
    if record.pop('origin', None) == 'reference':
      record['reference'] = record.pop('target', None)
    _add(sources, where, record)
  if not any(entry.targets for entry in sources.values()):
    raise errors.DataError(f'{path} holds no output: give a file that does')
  numbered = _number(path, sources, first_id)
  outputs = sum(len(entry.targets) for entry in numbered.values())
  if max_source_length is not None:
    numbered = _short_enough(
      numbered, encode_sources or encode_batch, max_source_length
    )
  rows = _rows(numbered, grow_step, language_pair)
  tokens = encode_batch([row['target'] for row in rows])
  kept, references = [], 0
  for row, ids in zip(rows, tokens, strict=True):
    row['target_tokens'] = [*tokenizer_lib.without_padding(ids), eos_id]
    row['length'] = len(row['target_tokens'])
    if row['origin'] == 'reference':
      references += 1
    elif max_target_length is not None and row['length'] > max_target_length:
      continue
    kept.append(row)
  if len(kept) == references:
    raise errors.DataError(
      f'{path}: every output, or its source, is too long (at most '
      f'{max_source_length} and {max_target_length} tokens): raise '
      'MAX_SOURCE_LENGTH or MAX_TARGET_LENGTH'
    )
  return Imported(
    table=pa.Table.from_pylist(kept, schema=store.SAMPLES_SCHEMA),
    samples=len(kept) - references,
    references=references,
    sources=len({row['source_id'] for row in kept}),
    skipped_too_long=outputs - (len(kept) - references),
    skipped_unfinished=unfinished,
  )


def _check_types(where: str, record: dict) -> None:
  for name, value in record.items():
    kind = _FIELDS.get(name)
    if kind and value is not None and not isinstance(value, kind):
      raise errors.DataError(
        f'{where}: {name} is {value!r}, not of type {kind.__name__}: correct it'
      )


def _add(sources: dict[Any, _Source], where: str, record: dict) -> None:
  """Puts one record to its source."""
  text, targets = record.get('source'), list(record.get('targets') or [])
  if record.get('target') is not None:
    targets.append(record['target'])
  if text is None or not (targets or record.get('reference') is not None):
    raise errors.DataError(
      f'{where}: a line needs a source and a target (or targets): add them'
    )
  if not text.strip():
    raise errors.DataError(f'{where}: the source is empty: delete the line')
  if not all(isinstance(target, str) for target in targets):
    raise errors.DataError(f'{where}: targets holds what is not text')
  number = record.get('source_id')
  key = text if number is None else number
  entry = sources.setdefault(
    key, _Source(text, where, record.get('doc_id'), record.get('domain'))
  )
  if entry.text != text:
    raise errors.DataError(
      f'{where}: source_id {number} stands for another source at '
      f'{entry.where}: give each source an id of its own'
    )
  entry.targets.extend(targets)
  if entry.reference is None:
    entry.reference = record.get('reference')


def _number(
  path: epath.Path, sources: dict[Any, _Source], first_id: int
) -> dict[int, _Source]:
  """Sources by id: the file's own ids, or their order in it."""
  given = [key for key in sources if isinstance(key, int)]
  if given and len(given) != len(sources):
    entry = next(e for key, e in sources.items() if isinstance(key, str))
    raise errors.DataError(
      f'{entry.where}: source_id is missing, but other lines of {path} have '
      'one: give it in every line or in none'
    )
  return sources if given else dict(enumerate(sources.values(), first_id))


def _short_enough(
  sources: dict[int, _Source], encode_batch, max_source_length: int
) -> dict[int, _Source]:
  tokens = encode_batch([entry.text for entry in sources.values()])
  return {
    source_id: entry
    for (source_id, entry), ids in zip(sources.items(), tokens, strict=True)
    if len(ids) < max_source_length  # EOS is counted too.
  }


def _rows(
  sources: dict[int, _Source], grow_step: int, language_pair: str
) -> list[dict[str, Any]]:
  rows = []
  for source_id, entry in sources.items():
    texts = [('imported', i, text) for i, text in enumerate(entry.targets)]
    if entry.reference is not None:
      reference = ('reference', store.REFERENCE_INDEX, entry.reference)
      texts.insert(0, reference)
    for origin, sample_index, target in texts:
      rows.append(
        {
          'source_id': source_id,
          'doc_id': entry.doc_id,
          'domain': entry.domain,
          'language_pair': language_pair,
          'sample_index': sample_index,
          'grow_step': grow_step,
          'origin': origin,
          'source': entry.text,
          'target': target,
          'finished': True,
        }
      )
  return rows


def _records(path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (file:line, record) of any of the formats."""
  name = path.name.removesuffix('.gz')
  try:
    if name.endswith('.parquet'):
      yield from _parquet_records(path)
    elif name.endswith('.jsonl'):
      yield from _json_records(path)
    elif name.endswith('.tsv'):
      yield from _tsv_records(path)
    else:
      raise errors.DataError(
        f'{path}: outputs are read from .tsv, .jsonl or .parquet: rename or '
        'convert it'
      )
  except (OSError, pa.ArrowException) as error:
    reason = getattr(error, 'strerror', None) or ' '.join(str(error).split())
    raise errors.DataError(
      f'{path} cannot be read ({reason}): check the path and the file'
    ) from error


def _parquet_records(path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  with storage.seekable(path) as file:
    table = pq.ParquetFile(file, page_checksum_verification=True)
    columns = [n for n in table.schema_arrow.names if n in _FIELDS]
    number = 0
    for batch in table.iter_batches(columns=columns):
      for record in batch.to_pylist():
        number += 1
        yield f'{path}, row {number}', record


def _json_records(path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  for number, line in enumerate(text_lib.read_lines(path), start=1):
    where = f'{path}:{number}'
    try:
      record = json.loads(line)
    except ValueError as error:
      message = f'{where}: not JSON ({error}): correct it'
      raise errors.DataError(message) from error
    if not isinstance(record, dict):
      raise errors.DataError(f'{where}: not a JSON object: correct it')
    yield where, record


def _tsv_records(path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  names = ('source', 'target', 'doc_id', 'domain')
  for number, line in enumerate(text_lib.read_lines(path), start=1):
    where = f'{path}:{number}'
    values = line.split('\t')
    if not 2 <= len(values) <= len(names):
      raise errors.DataError(
        f'{where}: {len(values)} columns, not {", ".join(names)} (the last two '
        'optional): correct it'
      )
    yield where, dict(zip(names, values, strict=False))
