"""MQM annotations (error spans marked by people) as rows with a score each.

  python -m rest_jax.main --run_mode=prepare_mqm --input=FOLDER --output=FILE

FOLDER holds files such as `mqm_ted_ende.tsv.gz` as google/wmt-mqm-human-
evaluation publishes them, and beside them `mqm_ted_ende.avg_seg_scores.tsv.gz`
with the scores that they should come to. FILE (.tsv or .parquet) has a row a
translation, in the form in which a reward model is trained.

The score of a translation is −1 × the mean over its raters of the sum of the
weights of the errors that a rater marked (Freitag et al. 2021,
arXiv:2104.14478, table 12): a major error 5, a minor one 1, minor punctuation
0.1, a major non-translation 25; 0 is perfect.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
from etils import epath

from rest_jax import errors, storage
from rest_jax.data import store, text

# What a severity weighs, unless its category is one of the next table. A note
# of the rater's (neutral) is no error.
SEVERITIES = {'major': 5.0, 'minor': 1.0, 'neutral': 0.0, 'no-error': 0.0}
CATEGORIES = {
  ('major', 'non-translation'): 25.0,
  ('minor', 'fluency/punctuation'): 0.1,
}
COLUMNS = (
    'system', 'doc', 'doc_id', 'seg_id', 'rater', 'source', 'target',
    'category', 'severity',
)  # fmt: skip
# The score files spell the reference translations otherwise.
_SYSTEM_NAMES = {'ref': 'ref-A', 'refB': 'ref-B'}
_SCORES_SUFFIX = '.avg_seg_scores'
_NAME = re.compile(r'.*_([a-z]{2})([a-z]{2})\.tsv(\.gz)?')
_ROUNDING = 1e-6  # Shipped scores have six decimals.


@dataclasses.dataclass(frozen=True)
class Translation:
  """One translation of one segment, with the errors that raters marked.

  Attributes:
    system: who made it, spelt as in the score files.
    document: name of the talk or text, as in the file.
    position: number of the segment in its document.
    segment: number of the segment in the test set.
    source: text, marks of error spans removed.
    candidate: likewise.
    errors: rater → the errors marked, as (severity, category).
  """

  system: str
  document: str
  position: int
  segment: int
  source: str
  candidate: str
  errors: dict[str, list[tuple[str, str]]]

  @property
  def score(self) -> float:
    """−1 × the mean over raters of the sum of weights; 0 is perfect."""
    # Exact sums: 0.1 + 0.1 + 1 in another order would break a tie.
    sums = [
      math.fsum(weight(severity, category) for severity, category in marked)
      for marked in self.errors.values()
    ]
    return 0.0 - math.fsum(sums) / len(sums)  # Not -0.0.


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


def weight(severity: str, category: str) -> float:
  """What one marked error weighs, in MQM points; case does not matter.

  Args:
    severity: 'Major', 'Minor', 'Neutral' or 'No-error'.
    category: such as 'Fluency/Punctuation'; a table entry for a category holds
      for what stands under it too ('Fluency/Punctuation/…').

  Raises:
    KeyError: another severity.
  """
  severity = severity.lower()
  path = category.lower().split('/')
  path[0] = path[0].rstrip('!')  # 'Non-translation!'
  for depth in range(len(path), 0, -1):
    special = CATEGORIES.get((severity, '/'.join(path[:depth])))
    if special is not None:
      return special
  return SEVERITIES[severity]


def read_translations(path: epath.PathLike) -> list[Translation]:
  """Reads a file of annotations, one marked error a line.

  Args:
    path: a tab-separated file with a header and without quoting, plain or
      '.gz'.

  Returns:
    The translations in the order of the file.

  Raises:
    DataError: columns are missing; a line has another number of cells, no
      number where one belongs, an empty text or an unknown severity; or a
      translation or source differs between lines by more than its marks. File
      and line are named.
  """
  path = epath.Path(path)
  found: dict[tuple[str, int], Translation] = {}
  sources: dict[int, str] = {}
  for where, cells in _records(path):
    new = _translation(where, cells)
    known = found.setdefault((new.system, new.segment), new)
    source = sources.setdefault(new.segment, new.source)
    if known.candidate != new.candidate or source != new.source:
      raise errors.DataError(
        f'{where}: the text of segment {new.segment} of {new.system} is not'
        ' the one of an earlier line, even without <v> and </v>: correct it'
      )
    if known is not new:
      for rater, marked in new.errors.items():
        known.errors.setdefault(rater, []).extend(marked)
  if not found:
    raise errors.DataError(f'{path}: no annotations in it: check the path')
  return list(found.values())


def _records(path: epath.Path) -> Iterator[tuple[str, dict[str, str]]]:
  """Yields (file:line, cells by column)."""
  lines = text.read_lines(path)
  header = next(lines, '').split('\t')
  if absent := [name for name in COLUMNS if name not in header]:
    raise errors.DataError(
      f'{path}:1: no column {", ".join(absent)}: give a file of MQM annotations'
      f' with the columns {", ".join(COLUMNS)}'
    )
  for number, line in enumerate(lines, 2):
    cells = line.split('\t')
    if len(cells) != len(header):
      raise errors.DataError(
        f'{path}:{number}: {len(cells)} cells under {len(header)} columns:'
        ' correct the line'
      )
    yield f'{path}:{number}', dict(zip(header, cells, strict=True))


def _translation(where: str, cells: dict[str, str]) -> Translation:
  """A translation with the one error of a line."""
  try:
    position, segment = int(cells['doc_id']), int(cells['seg_id'])
  except ValueError as error:
    raise errors.DataError(
      f'{where}: doc_id {cells["doc_id"]!r} and seg_id {cells["seg_id"]!r} must'
      ' be whole numbers: correct them'
    ) from error
  severity, category = cells['severity'], cells['category']
  if severity.lower() not in SEVERITIES:
    raise errors.DataError(
      f'{where}: severity {severity!r} has no weight: use one of'
      f' {", ".join(SEVERITIES)}'
    )
  source, candidate = (
    cells[name].replace('<v>', '').replace('</v>', '')
    for name in ('source', 'target')
  )
  if not (source.strip() and candidate.strip()):
    raise errors.DataError(
      f'{where}: the source or the target is empty: delete the line'
    )
  return Translation(
    system=_SYSTEM_NAMES.get(cells['system'], cells['system']),
    document=cells['doc'],
    position=position,
    segment=segment,
    source=source,
    candidate=candidate,
    errors={cells['rater']: [(severity, category)]},
  )


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
  translations: Sequence[Translation],
  shipped: dict[tuple[str, int], float | None],
) -> Agreement:
  """Holds computed scores against the shipped ones, translation by translation.

  Args:
    translations: as `read_translations` gives them.
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
      equal['ref' if is_reference(translation.system) else 'system'] += 1
  missing = [key for key, score in left.items() if score is not None]
  return Agreement(
    systems=equal['system'],
    references=equal['ref'],
    disagreements=tuple(disagreements),
    missing=tuple(f'{system}, segment {seg}' for system, seg in missing),
    not_shipped=tuple(not_shipped),
    not_annotated=len(left) - len(missing),
  )


def is_reference(system: str) -> bool:
  """Whether a system's name is that of a reference translation."""
  return system.startswith('ref-')


def _explained(translation: Translation, theirs: float | None) -> str:
  """What a score is the sum of, beside the shipped one."""
  raters = '; '.join(
    f'{rater}: '
    + ' + '.join(
      f'{weight(severity, category):g} ({severity} {category})'
      for severity, category in marked
    )
    for rater, marked in translation.errors.items()
  )
  return (
    f'{translation.system}, segment {translation.segment}: shipped {theirs},'
    f' computed {translation.score:g} of {raters}'
  )


def common_documents(
  files: dict[str, Sequence[Translation]],
) -> dict[tuple[str, str], str]:
  """Names documents so that one that stands in several files has one name.

  The same talk is translated from English in one file and into English in
  another, under other numbers. Two documents are the same where most segments
  of the shorter share a text, be it source or translation: a model trained on
  one would have read the other.

  Args:
    files: language pair → translations.

  Returns:
    (language pair, document) → name, such as 'en-de/talk.1'.
  """
  segments: dict[tuple[str, str], dict[int, set[str]]] = {}
  for pair, translations in files.items():
    for row in translations:
      document = segments.setdefault((pair, row.document), {})
      texts = document.setdefault(row.position, set())
      texts.update((row.source, row.candidate))
  names: dict[tuple[str, str], str] = {}
  for key, document in segments.items():
    same = (
      name
      for other, name in names.items()
      if other[0] != key[0] and _overlap(document, segments[other]) > 0.5
    )
    names[key] = next(same, '/'.join(key))
  return names


def _overlap(a: dict[int, set[str]], b: dict[int, set[str]]) -> float:
  """Share of the shorter document's segments that the other one has."""
  short, long = sorted((a, b), key=len)
  texts = set().union(*long.values())
  return sum(not texts.isdisjoint(s) for s in short.values()) / len(short)


def prepare(source: str | None, target: str | None) -> dict[str, int]:
  """Makes a file of scored rows from annotations, and checks the scores.

  Args:
    source: a file of annotations, or a folder of them; each may have a file
      of shipped scores beside it.
    target: the '.tsv' or '.parquet' file to write, with the columns source,
      candidate, score, document (see `common_documents`), system, segment,
      language_pair.

  Returns:
    Counts of rows, documents and checked scores.

  Raises:
    ConfigurationError: no input or output, or an output of another ending.
    DataError: no such files, or as `read_translations`, or scores disagree
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
    files[pair] = read_translations(path)
    counts.update(_check(path, files[pair]))
  names = common_documents(files)
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


def _check(path: epath.Path, translations: Sequence[Translation]):
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
  translations: Iterable[Translation],
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
