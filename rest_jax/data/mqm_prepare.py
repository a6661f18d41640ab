"""Rows to train a reward on, of MQM annotations, checked against their scores.

  python -m rest_jax.main --run_mode=prepare_mqm --input=FOLDER --output=FILE

FOLDER holds files such as `mqm_ted_ende.tsv.gz` as google/wmt-mqm-human-
evaluation publishes them, and beside them `mqm_ted_ende.avg_seg_scores.tsv.gz`
with the scores that they should come to. FILE (.tsv or .parquet) has a row a
translation, in the form in which a reward model is trained.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
from etils import epath

from rest_jax import errors, storage
from rest_jax.data import mqm, store, text

_SCORES_SUFFIX = '.avg_seg_scores'
_NAME = re.compile(r'.*_([a-z]{2})([a-z]{2})\.tsv(\.gz)?')
_ROUNDING = 1e-6  # Shipped scores have six decimals.


@dataclasses.dataclass(frozen=True)
class Agreement:
  """How computed scores compare with those shipped beside the annotations.

  Attributes:
    systems: translations by systems whose score is the shipped one.
    references: likewise, of reference translations.
    disagreements: a line for every one whose score is another, with the errors
      that ours is the sum of.
    missing: a line for every shipped score without a translation.
    not_shipped: a line for every translation without a shipped score.
    not_annotated: shipped rows that say themselves that nobody annotated them.
  """

  systems: int
  references: int
  disagreements: tuple[str, ...]
  missing: tuple[str, ...]
  not_shipped: tuple[str, ...]
  not_annotated: int


def read_shipped_scores(
  path: epath.PathLike,
) -> dict[tuple[str, int], float | None]:
  """Reads a file of published scores: system, score, segment.

  Returns:
    (system, segment) → score; None where nobody annotated it.

  Raises:
    DataError: the header or a line is of another form, or a score stands
      twice.
  """
  path = epath.Path(path)
  scores: dict[tuple[str, int], float | None] = {}
  for number, line in enumerate(text.read_lines(path), 1):
    cells = re.split('[ \t]+', line)
    if number == 1:
      if cells != ['system', 'mqm_avg_score', 'seg_id']:
        raise errors.DataError(
          f'{path}:1: the header is not system, mqm_avg_score, seg_id: give a'
          ' file of averaged MQM scores'
        )
      continue
    try:
      system, score, segment = cells
      key = system, int(segment)
      value = None if score == 'None' else float(score)
    except ValueError as error:
      raise errors.DataError(
        f'{path}:{number}: {line!r} is not system, score, segment: correct it'
      ) from error
    if key in scores:
      raise errors.DataError(
        f'{path}:{number}: a second score of {system}, segment {segment}:'
        ' delete one'
      )
    scores[key] = value
  return scores


def compare(
  translations: Sequence[mqm.Translation],
  shipped: dict[tuple[str, int], float | None],
) -> Agreement:
  """Holds computed scores against the shipped ones, translation by translation.

  Args:
    translations: as `mqm.read_translations` gives them.
    shipped: as `read_shipped_scores` does.

  Returns:
    Counts, and a line for every row that differs.
  """
  equal = collections.Counter()
  disagreements, not_shipped = [], []
  left = dict(shipped)
  for translation in translations:
    key = translation.system, translation.segment
    theirs = left.pop(key, None)
    if theirs is None:
      not_shipped.append(_explained(translation, theirs))
    elif abs(theirs - translation.score) > _ROUNDING:
      disagreements.append(_explained(translation, theirs))
    else:
      equal['ref' if mqm.is_reference(translation.system) else 'system'] += 1
  missing = [key for key, score in left.items() if score is not None]
  return Agreement(
    systems=equal['system'],
    references=equal['ref'],
    disagreements=tuple(disagreements),
    missing=tuple(f'{system}, segment {seg}' for system, seg in missing),
    not_shipped=tuple(not_shipped),
    not_annotated=len(left) - len(missing),
  )


def _explained(translation: mqm.Translation, theirs: float | None) -> str:
  """What a score is the sum of, beside the shipped one."""
  raters = '; '.join(
    f'{rater}: '
    + ' + '.join(
      f'{mqm.weight(severity, category):g} ({severity} {category})'
      for severity, category in marked
    )
    for rater, marked in translation.errors.items()
  )
  return (
    f'{translation.system}, segment {translation.segment}: shipped {theirs},'
    f' computed {translation.score:g} of {raters}'
  )


def prepare(source: str | None, target: str | None) -> dict[str, int]:
  """Makes a file of scored rows from annotations, and checks the scores.

  Args:
    source: a file of annotations, or a folder of them; each may have a file
      of shipped scores beside it.
    target: the '.tsv' or '.parquet' file to write, with the columns source,
      candidate, score, document (see `mqm.common_documents`), system, segment,
      language_pair.

  Returns:
    Counts of rows, documents and checked scores.

  Raises:
    ConfigurationError: no input or output, or an output of another ending.
    DataError: no such files, or as `mqm.read_translations`, or scores disagree
      with the shipped ones; the message explains the first.
    StorageError: the output cannot be written.
  """
  if source in (None, '-') or target in (None, '-'):
    raise errors.ConfigurationError(
      'prepare_mqm needs --input, a file or folder of MQM annotations, and'
      ' --output, the .tsv or .parquet file to write'
    )
  if not str(target).endswith(('.tsv', '.parquet')):
    raise errors.ConfigurationError(
      f'--output={target} must end in .tsv or .parquet: rename it'
    )
  files, counts = {}, collections.Counter()
  for path in _annotation_files(epath.Path(source)):
    pair = '-'.join(_NAME.fullmatch(path.name).groups()[:2])
    if pair in files:
      raise errors.DataError(
        f'{path}: a second file of {pair}: prepare them one by one'
      )
    files[pair] = mqm.read_translations(path)
    counts.update(_check(path, files[pair]))
  names = mqm.common_documents(files)
  rows = [row for pair in files for row in _rows(pair, files[pair], names)]
  table = pa.Table.from_pylist(rows)
  if str(target).endswith('.parquet'):
    storage.write_atomic(target, store.table_bytes(table))
  else:
    storage.write_atomic(target, _tsv(rows).encode())
  return {
    'rows': len(rows),
    'documents': len(set(names.values())),
    **counts,
  }


def _annotation_files(source: epath.Path) -> list[epath.Path]:
  paths = sorted(source.iterdir()) if source.is_dir() else [source]
  paths = [path for path in paths if _SCORES_SUFFIX not in path.name]
  named = [path for path in paths if _NAME.fullmatch(path.name)]
  if not named:
    raise errors.DataError(
      f'{source}: no annotations whose name tells the language pair, such as'
      ' mqm_ted_ende.tsv or .tsv.gz: check --input'
    )
  return named


def _check(path: epath.Path, translations: Sequence[mqm.Translation]):
  """Counts of scores that the file beside it confirms; none is no error."""
  stem, dot, ending = path.name.partition('.tsv')
  beside = path.parent / f'{stem}{_SCORES_SUFFIX}{dot}{ending}'
  if not beside.exists():
    return {'unchecked_scores': len(translations)}
  found = compare(translations, read_shipped_scores(beside))
  for what, lines in (
    ('disagree', found.disagreements),
    ('have no annotations', found.missing),
    ('are not shipped', found.not_shipped),
  ):
    if lines:
      raise errors.DataError(
        f'{beside}: {len(lines)} scores {what}, first {lines[0]}: fetch both'
        ' files again, or move this one away to go on unchecked'
      )
  return {
    'equal_system_scores': found.systems,
    'equal_reference_scores': found.references,
    'not_annotated': found.not_annotated,
  }


def _rows(
  pair: str,
  translations: Iterable[mqm.Translation],
  names: dict[tuple[str, str], str],
) -> Iterator[dict[str, object]]:
  for row in translations:
    yield {
      'source': row.source,
      'candidate': row.candidate,
      'score': row.score,
      'document': names[pair, row.document],
      'system': row.system,
      'segment': row.segment,
      'language_pair': pair,
    }


def _tsv(rows: Sequence[dict[str, object]]) -> str:
  """Rows under a header; no cell of the files read can hold a tab or LF."""
  lines = ['\t'.join(rows[0])]
  lines += ['\t'.join(str(cell) for cell in row.values()) for row in rows]
  return '\n'.join(lines) + '\n'
