"""Fetches public data sets to a connected machine, checked, as plain text.

`python -m rest_jax.main --run_mode=fetch --dataset=iwslt14 --data_dir=DIR`
writes line-aligned `train`, `dev` and `test` files that `gin/iwslt14.gin` and
`gin/wmt20.gin` read, each with a `.doc` file that names the documents.

Hashes: what has a published one (sacrebleu's test sets, TFDS) is checked
against it. The others' SHA-256 is recorded in `DIR/downloads.json` at the first
download and checked from then on; keep that file with your results.
"""

import contextlib
import html
import itertools
import re
import shutil
import tarfile
import urllib.request
from collections.abc import Iterable, Iterator

import tenacity
from etils import epath

from rest_jax import errors, storage
from rest_jax.data import seqio_library, text

# The archive that fairseq's preparation script uses; the original site is gone.
IWSLT14_URL = 'https://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz'
IWSLT14_TEST = (
  'TED.dev2010',
  'TEDX.dev2012',
  'TED.tst2010',
  'TED.tst2011',
  'TED.tst2012',
)
# File stem → sacrebleu's test set. Reward models have seen wmt19 and wmt20.
WMT20_SETS = {'dev': 'wmt19', 'test': 'wmt20', 'wmt23': 'wmt23'}
WMT20_TRAIN = 'wmt19_translate/zh-en'  # There is no wmt20_translate.
DATASETS = ('iwslt14', 'wmt20')

_LOCK_FILE = 'downloads.json'
_BLOCK = 1 << 20
_DEV_EVERY = 23  # Every 23rd pair of IWSLT14's training text is dev.
_MAX_WORDS = 175
_MAX_RATIO = 1.5

_TAG = re.compile(r'\s*<(\w+)[^>]*>(.*)</\1>\s*')
_SEGMENT = re.compile(r'\s*<seg id="[^"]*">\s*(.*?)\s*</seg>\s*')
_DOCUMENT = re.compile(r'<doc\b[^>]*\bdocid="([^"]*)"')

Pair = tuple[str, str, str]  # Source, target, document.


def fetch(dataset: str | None, data_dir: str | None) -> dict[str, int]:
  """Downloads a data set and writes it as line-aligned text.

  Args:
    dataset: 'iwslt14' or 'wmt20'.
    data_dir: folder to write into.

  Returns:
    Split → number of pairs.

  Raises:
    ConfigurationError: an unknown data set, or no folder.
    DataError: what was downloaded is damaged, another than before, or cannot
      be reached.
    StorageError: the folder cannot be written.
  """
  if dataset not in DATASETS or not data_dir:
    raise errors.ConfigurationError(
      f'fetch needs --dataset, one of {DATASETS}, and --data_dir, not'
      f' {dataset!r} and {data_dir!r}'
    )
  folder = epath.Path(data_dir)
  if dataset == 'iwslt14':
    archive = download(IWSLT14_URL, folder)
    return write_iwslt14(archive, folder)
  counts = {
    stem: _write_pairs(folder, stem, ('zh', 'en'), _sacrebleu_pairs(name))
    for stem, name in WMT20_SETS.items()
  }
  pairs = (
    (_one_line(source), _one_line(target), '')
    for source, target in seqio_library.read_tfds(
      WMT20_TRAIN, 'train', 'zh', 'en'
    )
  )
  counts['train'] = _write_pairs(folder, 'train', ('zh', 'en'), pairs)
  return counts


def download(
  url: str, folder: epath.PathLike, sha256: str | None = None
) -> epath.Path:
  """Downloads a file into a folder, or takes the one that is there.

  Args:
    url: of the file.
    folder: where to; the file keeps its name.
    sha256: what it must be; None: what it was the first time, as recorded in
      the folder's downloads.json.

  Returns:
    The file's path.

  Raises:
    DataError: it cannot be reached after 5 trials, or its SHA-256 is another.
    StorageError: the folder cannot be written.
  """
  folder = epath.Path(folder)
  path = folder / url.rpartition('/')[2]
  lock_path = folder / _LOCK_FILE
  lock = storage.read_json(lock_path) if lock_path.exists() else {}
  expected = sha256 or lock.get(url, {}).get('sha256')
  partial = path.parent / f'{path.name}.part'
  if not path.exists():
    with storage.reporting(folder):
      folder.mkdir(parents=True, exist_ok=True)
    _retrieve(url, partial)
  found = partial if not path.exists() else path
  actual = storage.checksum(found)[1]
  if expected and actual != expected:
    raise errors.DataError(
      f'{found}: SHA-256 {actual}, but {expected} is expected: delete it and'
      f' fetch again; if {url} has changed for good, delete its entry in'
      f' {lock_path}'
    )
  if found == partial:
    with storage.reporting(path):
      partial.replace(path)
  if url not in lock:
    size = path.stat().length
    lock[url] = {'sha256': actual, 'bytes': size}
    storage.write_json_atomic(lock_path, lock)
  return path


def _retrieve(url: str, path: epath.Path) -> None:
  """Writes what stands at a URL, with retries."""
  retry = tenacity.Retrying(
    stop=tenacity.stop_after_attempt(5),
    wait=tenacity.wait_exponential(multiplier=0.5, max=30),
    retry=tenacity.retry_if_exception_type(OSError),
    reraise=True,
  )

  def once() -> None:
    with (
      urllib.request.urlopen(url, timeout=60) as response,
      path.open('wb') as file,
    ):
      shutil.copyfileobj(response, file, _BLOCK)
      told, found = response.headers.get('Content-Length'), file.tell()
    if told is not None and int(told) != found:
      raise OSError(f'it ended after {found:,} of {int(told):,} bytes')

  try:
    retry(once)
  except OSError as error:  # URLError, HTTPError and timeouts are such.
    raise errors.DataError(
      f'{url}: cannot be downloaded ({error}): fetch on a connected machine'
      f' and copy the folder here, or put the file at {path.parent}'
    ) from error


# --- IWSLT14 ----------------------------------------------------------------


def write_iwslt14(
  archive: epath.PathLike, folder: epath.PathLike
) -> dict[str, int]:
  """Turns the IWSLT14 De–En archive into train, dev and test.

  As fairseq's preparation does, pairs of more than 175 words a side, or of more
  than 1.5 times the words of the other side, are left out of the training text,
  and every 23rd of what is left is dev. Unlike there, words are those between
  spaces, and text is neither tokenised nor lower-cased; so counts differ
  slightly from its 160,239 / 7,283 / 6,750.

  Args:
    archive: de-en.tgz.
    folder: where to.

  Returns:
    Split → number of pairs.

  Raises:
    DataError: a file is missing in the archive, or sides do not correspond.
  """
  files = _read_archive(archive)

  def lines(name: str) -> list[str]:
    if name not in files:
      raise errors.DataError(
        f'{archive}: holds no {name}: it is not the IWSLT14 De–En archive'
      )
    return files[name].decode('utf-8').split('\n')

  languages = ('de', 'en')
  train = _aligned(
    'train.tags.de-en',
    *(list(read_tags(lines(f'train.tags.de-en.{l}'))) for l in languages),
  )
  train = [pair for pair in train if _is_clean(*pair[:2])]
  splits = {
    'train': [p for i, p in enumerate(train, 1) if i % _DEV_EVERY],
    'dev': train[_DEV_EVERY - 1 :: _DEV_EVERY],
    'test': [],
  }
  for part in IWSLT14_TEST:
    stem = f'IWSLT14.{part}.de-en'
    splits['test'] += _aligned(
      stem, *(list(read_xml(lines(f'{stem}.{l}.xml'))) for l in languages)
    )
  return {
    name: _write_pairs(epath.Path(folder), name, languages, pairs)
    for name, pairs in splits.items()
  }


def _read_archive(archive: epath.PathLike) -> dict[str, bytes]:
  """Base name → content; nothing is unpacked to disk, so no path can escape."""
  try:
    with (
      epath.Path(archive).open('rb') as raw,
      tarfile.open(fileobj=raw, mode='r:gz') as tar,
    ):
      return {
        member.name.rpartition('/')[2]: tar.extractfile(member).read()
        for member in tar
        if member.isfile()
      }
  except (tarfile.TarError, OSError, EOFError) as error:
    raise errors.DataError(
      f'{archive}: cannot be read ({error}): delete it and fetch again'
    ) from error


def read_tags(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
  """Sentences of a `train.tags` file, each with the talk it stands in.

  Titles and descriptions are sentences; all other tagged lines (url, talkid,
  keywords, speaker …) are not.

  Args:
    lines: of the file.

  Yields:
    (sentence, talk id); a sentence may be empty.
  """
  # The talk's id comes after its url and before its text.
  talk = ''
  lines = list(lines)
  if lines and not lines[-1]:
    lines.pop()  # What follows the last '\n'.
  for line in lines:
    tag = _TAG.fullmatch(line)
    if tag is None:
      yield line.strip(), talk
    elif tag[1] in ('title', 'description'):
      yield tag[2].strip(), talk
    elif tag[1] == 'talkid':
      talk = tag[2].strip()


def read_xml(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
  """Sentences of an `IWSLT14.*.xml` file, each with its document.

  Args:
    lines: of the file; a `<seg>` stands on a line of its own.

  Yields:
    (sentence, document id).
  """
  document = ''
  for line in lines:
    if found := _DOCUMENT.search(line):
      document = found[1]
    elif segment := _SEGMENT.fullmatch(line):
      yield html.unescape(segment[1]).replace('’', "'"), document


def _aligned(
  name: str,
  sources: list[tuple[str, str]],
  targets: list[tuple[str, str]],
) -> list[Pair]:
  if len(sources) != len(targets):
    raise errors.DataError(
      f'{name}: {len(sources)} German and {len(targets)} English sentences:'
      ' the archive is damaged, delete it and fetch again'
    )
  return [
    (source, target, document)
    for (source, document), (target, _) in zip(sources, targets, strict=True)
  ]


def _is_clean(source: str, target: str) -> bool:
  """Whether a pair has words, not too many, and sides of similar length."""
  short, long = sorted((len(source.split()), len(target.split())))
  return short > 0 and long <= _MAX_WORDS and long <= _MAX_RATIO * short


# --- WMT20 ------------------------------------------------------------------


def _sacrebleu_pairs(name: str) -> Iterator[Pair]:
  """A Chinese–English test set of sacrebleu's, which checks its MD5."""
  import sacrebleu.dataset

  dataset = sacrebleu.dataset.DATASETS[name]
  try:
    fields = dataset.fieldnames('zh-en')
    files = dict(zip(fields, dataset.get_files('zh-en'), strict=True))
  # sacrebleu prints what went wrong and exits.
  except (OSError, SystemExit) as error:
    raise errors.DataError(
      f'sacrebleu cannot download {name} zh-en ({error}): fetch on a'
      ' connected machine and copy the folder here'
    ) from error
  reference = next(field for field in fields if field.startswith('ref'))
  columns = (files['src'], files[reference], files['docid'])
  for row in itertools.zip_longest(*map(text.read_lines, columns)):
    if None in row:
      raise errors.DataError(
        f'{columns}: line counts differ: delete the files and fetch again'
      )
    yield row


def _one_line(sentence: str) -> str:
  return ' '.join(sentence.replace('\r', '\n').split('\n')).strip()


# --- Writing ----------------------------------------------------------------


def _write_pairs(
  folder: epath.Path,
  stem: str,
  languages: tuple[str, str],
  pairs: Iterable[Pair],
) -> int:
  """Streams pairs into stem.source, stem.target and stem.doc; counts them."""
  paths = [folder / f'{stem}.{end}' for end in (*languages, 'doc')]
  partials = [path.parent / f'{path.name}.part' for path in paths]
  count = 0
  with storage.reporting(folder):
    folder.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    files = [stack.enter_context(p.open('wb')) for p in partials]
    for pair in pairs:
      with storage.reporting(folder):
        for file, cell in zip(files, pair, strict=True):
          file.write(cell.encode() + b'\n')
      count += 1
  for partial, path in zip(partials, paths, strict=True):
    with storage.reporting(path):
      partial.replace(path)
  return count
