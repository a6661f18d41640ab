"""MQM annotations (error spans marked by people), and the scores they come to.

The score of a translation is −1 × the mean over its raters of the sum of the
weights of the errors that a rater marked (Freitag et al. 2021,
arXiv:2104.14478, table 12): a major error 5, a minor one 1, minor punctuation
0.1, a major non-translation 25; 0 is perfect. The files are those of
google/wmt-mqm-human-evaluation; `mqm_prepare` makes rows to train on of them.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

from etils import epath

from rest_jax import errors
from rest_jax.data import text

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


def is_reference(system: str) -> bool:
  """Whether a system's name is that of a reference translation."""
  return system.startswith('ref-')


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
