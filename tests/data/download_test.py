import gzip
import hashlib
import io
import json
import tarfile
import urllib.error
import urllib.request

import pytest
import sacrebleu.dataset
import tenacity

from rest_jax import errors
from rest_jax.data import download, seqio_library, text

TAGS = """<url>http://www.ted.com/talks/{talk}</url>
<keywords>talks, {talk}</keywords>
<speaker>Somebody</speaker>
<talkid>{talk}</talkid>
<title>{title}</title>
<description>TED Talk: {title}</description>
"""
XML = """<?xml version="1.0" encoding="UTF-8"?>
<mteval>
<srcset setid="x" srclang="german">
<doc docid="{doc}" genre="lectures">
<url>http://www.ted.com/talks/x</url>
<title>Not a segment</title>
<seg id="1"> {one} </seg>
<seg id="2"> {two} </seg>
</doc>
</srcset>
</mteval>
"""


def tar(path, files):
  with tarfile.open(path, 'w:gz') as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content.encode())
      archive.addfile(member, io.BytesIO(content.encode()))
  return path


def iwslt14(path, **changes):
  """An archive in the format of the IWSLT14 one, with 46 + 4 training lines."""
  files = {}
  for language, word in (('de', 'Satz'), ('en', 'sentence')):
    lines = [f' {word} number {i}' for i in range(46)]
    files[f'de-en/train.tags.de-en.{language}'] = (
      TAGS.format(talk=1, title=f'{word} one')
      + '\n'.join(lines[:20])
      + '\n'
      + TAGS.format(talk=2, title=f'{word} two')
      + '\n'.join(lines[20:])
      + '\n'
    )
    for part in download.IWSLT14_TEST:
      files[f'de-en/IWSLT14.{part}.de-en.{language}.xml'] = XML.format(
        doc=part, one=f'{word} &amp; more', two=f'it’s {word}'
      )
  files.update(changes)
  return tar(path, files)


def lines(path):
  return list(text.read_lines(path))


def test_iwslt14_is_cut_as_fairseq_cuts_it(tmp_path):
  archive = iwslt14(tmp_path / 'de-en.tgz')
  counts = download.write_iwslt14(archive, tmp_path)
  assert counts == {'train': 48, 'dev': 2, 'test': 10}
  # Titles and descriptions are sentences; the other tags are not.
  expected = [
    'sentence one',
    'TED Talk: sentence one',
    *(f'sentence number {i}' for i in range(20)),
    'sentence two',
    'TED Talk: sentence two',
    *(f'sentence number {i}' for i in range(20, 46)),
  ]
  assert lines(tmp_path / 'dev.en') == [expected[22], expected[45]]
  assert lines(tmp_path / 'train.en') == [
    line for i, line in enumerate(expected, 1) if i % 23
  ]
  assert lines(tmp_path / 'dev.doc') == ['2', '2']
  assert lines(tmp_path / 'train.doc') == ['1'] * 22 + ['2'] * 26
  for split in counts:
    assert len(lines(tmp_path / f'{split}.de')) == counts[split]


def test_iwslt14_test_is_five_sets_in_order(tmp_path):
  download.write_iwslt14(iwslt14(tmp_path / 'a.tgz'), tmp_path)
  assert lines(tmp_path / 'test.de')[:2] == ['Satz & more', "it's Satz"]
  assert lines(tmp_path / 'test.doc') == [
    part for part in download.IWSLT14_TEST for _ in range(2)
  ]


def test_training_pairs_that_cannot_be_translations_are_left_out(tmp_path):
  german = ['gut', '', 'x ' * 176, 'eins zwei drei', 'eins zwei', 'a b c d']
  english = ['good', 'some', 'x ' * 176, 'one two', 'one', 'a b']
  archive = iwslt14(
    tmp_path / 'a.tgz',
    **{
      'de-en/train.tags.de-en.de': '\n'.join(german) + '\n',
      'de-en/train.tags.de-en.en': '\n'.join(english) + '\n',
    },
  )
  download.write_iwslt14(archive, tmp_path)
  # 3 : 2 words is just within the ratio of 1.5, 2 : 1 is not.
  assert lines(tmp_path / 'train.de') == ['gut', 'eins zwei drei']


def test_archives_that_are_not_iwslt14(tmp_path):
  with pytest.raises(errors.DataError, match=r'holds no train\.tags'):
    download.write_iwslt14(tar(tmp_path / 'a.tgz', {'x': 'y'}), tmp_path)
  unequal = iwslt14(
    tmp_path / 'b.tgz', **{'de-en/train.tags.de-en.de': 'nur einer\n'}
  )
  with pytest.raises(errors.DataError, match='1 German and 50 English'):
    download.write_iwslt14(unequal, tmp_path)
  (tmp_path / 'c.tgz').write_bytes(gzip.compress(b'no archive'))
  with pytest.raises(errors.DataError, match='fetch again'):
    download.write_iwslt14(tmp_path / 'c.tgz', tmp_path)


def test_nothing_is_unpacked_to_where_an_archive_points(tmp_path):
  inner = tmp_path / 'inner'
  inner.mkdir()
  archive = iwslt14(inner / 'a.tgz', **{'../../outside.txt': 'evil'})
  download.write_iwslt14(archive, inner)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['inner']


@pytest.fixture
def served(tmp_path):
  """A file and its URL on this machine."""
  path = tmp_path / 'server' / 'de-en.tgz'
  path.parent.mkdir()
  iwslt14(path)
  return path, path.as_uri()


def test_the_first_download_is_recorded_and_later_ones_are_checked(
  served, tmp_path
):
  remote, url = served
  folder = tmp_path / 'data'
  path = download.download(url, folder)
  digest = hashlib.sha256(remote.read_bytes()).hexdigest()
  lock = json.loads((folder / 'downloads.json').read_text())
  assert lock[url] == {'sha256': digest, 'bytes': remote.stat().st_size}
  # What is there is not fetched again, but checked again.
  remote.write_bytes(b'changed')
  assert download.download(url, folder) == path
  path.write_bytes(b'damaged')
  with pytest.raises(errors.DataError, match=digest):
    download.download(url, folder)
  path.unlink()
  with pytest.raises(errors.DataError, match=digest):
    download.download(url, folder)
  assert not path.exists()


def test_a_published_hash_is_held_against_the_first_download(served, tmp_path):
  with pytest.raises(errors.DataError, match='0000 is expected'):
    download.download(served[1], tmp_path / 'data', sha256='0000')
  assert not (tmp_path / 'data' / 'downloads.json').exists()


def test_fetching_iwslt14_end_to_end(served, tmp_path, monkeypatch):
  monkeypatch.setattr(download, 'IWSLT14_URL', served[1])
  counts = download.fetch('iwslt14', str(tmp_path / 'data'))
  assert counts == {'train': 48, 'dev': 2, 'test': 10}
  assert not list((tmp_path / 'data').glob('*.part'))


class Answer(io.BytesIO):
  """What `urlopen` gives, of a server that tells the length."""

  @property
  def headers(self):
    return {'Content-Length': '2'}


def test_a_bad_connection_is_tried_again(tmp_path, monkeypatch):
  answers = [
    urllib.error.URLError('down'),
    TimeoutError(),
    Answer(b'o'),  # It was closed half-way.
    Answer(b'ok'),
  ]
  calls = []

  def urlopen(url, timeout):
    calls.append(url)
    answer = answers.pop(0)
    if isinstance(answer, Exception):
      raise answer
    return answer

  monkeypatch.setattr(urllib.request, 'urlopen', urlopen)
  monkeypatch.setattr(tenacity.nap.time, 'sleep', lambda seconds: None)
  path = download.download('https://host/file', tmp_path)
  assert path.read_bytes() == b'ok'
  assert len(calls) == 4
  answers.extend([urllib.error.URLError('down')] * 5)
  with pytest.raises(errors.DataError, match='connected machine'):
    download.download('https://host/other', tmp_path)
  assert not answers


class FakeTestSet:
  """What is used of sacrebleu's test sets, on local files."""

  def __init__(self, folder, fields, contents):
    self._fields = fields
    self._paths = []
    for field, content in zip(fields, contents, strict=True):
      path = folder / field.replace(':', '-')
      path.write_text(content)
      self._paths.append(str(path))

  def fieldnames(self, language_pair):
    assert language_pair == 'zh-en'
    return self._fields

  def get_files(self, language_pair):
    return self._paths


def test_fetching_wmt20(tmp_path, monkeypatch):
  for name, fields in (
    ('wmt19', ['src', 'ref', 'docid', 'genre', 'origlang']),
    ('wmt20', ['src', 'ref', 'docid', 'genre', 'origlang']),
    ('wmt23', ['src', 'ref:refA', 'docid', 'origlang', 'sys']),
  ):
    folder = tmp_path / name
    folder.mkdir()
    contents = [f'{field}\n{name}\u2028x\n' for field in fields]
    monkeypatch.setitem(
      sacrebleu.dataset.DATASETS, name, FakeTestSet(folder, fields, contents)
    )
  monkeypatch.setattr(
    seqio_library,
    'read_tfds',
    lambda *args: iter([('一\n二', 'one\r\ntwo ')]),
  )
  folder = tmp_path / 'data'
  counts = download.fetch('wmt20', str(folder))
  assert counts == {'dev': 2, 'test': 2, 'wmt23': 2, 'train': 1}
  assert lines(folder / 'dev.zh') == ['src', 'wmt19\u2028x']
  assert lines(folder / 'test.en') == ['ref', 'wmt20\u2028x']
  assert lines(folder / 'wmt23.en') == ['ref:refA', 'wmt23\u2028x']
  assert lines(folder / 'dev.doc')[0] == 'docid'
  assert lines(folder / 'train.zh') == ['一 二']
  assert lines(folder / 'train.en') == ['one  two']


@pytest.mark.parametrize('args', [('wmt21', 'x'), (None, 'x'), ('wmt20', None)])
def test_what_cannot_be_fetched(args):
  with pytest.raises(errors.ConfigurationError, match='--dataset, one of'):
    download.fetch(*args)


def test_a_folder_that_cannot_be_written(served, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.StorageError, match='file'):
    download.download(served[1], tmp_path / 'file')
