"""Scores that are paid for once, whatever happens to the process."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

import rest_jax
from rest_jax.errors import CorruptStateError, RewardError, StorageError
from rest_jax.rewards import base, cache, scoring


@dataclasses.dataclass
class Length:
  """Characters of the candidate, and a log of what was asked."""

  scale: float = 1.0
  version: str = '1'
  needs_reference: bool = False
  asked: list = dataclasses.field(default_factory=list, compare=False)

  @property
  def info(self):
    return base.RewardInfo(
      'length', self.version, 0.0, 100.0, needs_reference=self.needs_reference
    )

  def score(self, sources, candidates, references=None):
    self.asked += zip(sources, candidates, references or sources, strict=True)
    return np.array([self.scale * len(c) for c in candidates], np.float32)


@pytest.fixture
def scores(tmp_path):
  opened = cache.ScoreCache(tmp_path / cache.FOLDER)
  yield opened
  opened.close()


def test_a_pair_is_scored_once_and_the_same_as_without(scores):
  model = Length(scale=1 / 3)
  rows = (list('aabc'), ['x', 'x', 'yy', 'zzz'])
  plain = scoring.raw_scores(Length(scale=1 / 3), *rows, None)
  for _ in range(2):
    found = scoring.raw_scores(model, *rows, None, cache=scores)
    np.testing.assert_array_equal(found, plain)  # To the last bit.
  assert len(model.asked) == 3
  more = scoring.raw_scores(
    model, ['c', 'a'], ['zzz', 'new'], None, cache=scores, batch_size=1
  )
  np.testing.assert_array_equal(more, np.float32([1, 1]))
  assert model.asked[3:] == [('a', 'new', 'a')]


def test_it_lasts_beyond_the_process(scores, tmp_path):
  scoring.raw_scores(Length(), ['a'], ['x'], None, cache=scores)
  scores.close()
  again, model = cache.ScoreCache(tmp_path / cache.FOLDER), Length()
  assert scoring.raw_scores(model, ['a'], ['x'], None, cache=again) == [1]
  assert not model.asked
  again.close()


def test_references_count_only_where_they_are_needed(scores):
  for needs, times in ((True, 2), (False, 1)):
    model = Length(needs_reference=needs)
    for reference in ('r', 's'):
      scoring.raw_scores(model, ['a'], ['x'], [reference], cache=scores)
    assert len(model.asked) == times


@pytest.mark.parametrize(
  'other', [{'scale': 2.0}, {'version': '2'}, {'needs_reference': True}]
)
def test_another_version_or_setting_is_another_metric(scores, other):
  scoring.raw_scores(Length(), ['a'], ['x'], ['r'], cache=scores)
  model = Length(**other)
  found = scoring.raw_scores(model, ['a'], ['x'], ['r'], cache=scores)
  assert model.asked
  assert found == [other.get('scale', 1.0)]


def test_texts_do_not_run_together():
  keys = [('ab', 'c'), ('a', 'bc'), ('a', 'b', 'c'), ('abc', ''), ('ab', 'c ')]
  assert len({cache.key_of(key) for key in keys}) == len(keys)
  assert cache.key_of(('\ud800',))  # Half a character, of a broken decoder.


def test_what_is_out_of_range_is_not_remembered(scores):
  with pytest.raises(RewardError):
    scoring.raw_scores(
      Length(), ['a'] * 2, ['x', 'y' * 101], None, cache=scores
    )
  model = Length()
  scoring.raw_scores(model, ['a'], ['x'], None, cache=scores)
  assert model.asked


_KILLED = """
import os, signal, sys
import numpy as np
from rest_jax.rewards import cache
table = cache.Table(sys.argv[1])
key = lambda i: i.to_bytes(16, 'little')
for start in range(0, 10**9, 100):
  keys = [key(i) for i in range(start, start + 100)]
  table.add(keys, np.arange(start, start + 100, dtype=np.float32))
  print(start, flush=True)
"""


def test_it_survives_a_kill_at_any_moment(tmp_path):
  path = tmp_path / 'x.sqlite'
  root = pathlib.Path(rest_jax.__file__).parents[1]
  run = subprocess.Popen(
    [sys.executable, '-c', _KILLED, path],
    env=dict(os.environ, PYTHONPATH=str(root)),
    stdout=subprocess.PIPE,
    text=True,
  )
  for _ in range(20):
    last = int(run.stdout.readline())
  run.send_signal(signal.SIGKILL)
  said = run.communicate()[0].split()
  last = int(said[-1]) if said else last
  table = cache.Table(path)
  keys = [i.to_bytes(16, 'little') for i in range(last + 300)]
  scores, known = table.find(keys)
  assert known[: last + 100].all()  # All that it said it had stored.
  np.testing.assert_array_equal(scores[known], np.flatnonzero(known))
  assert known.sum() % 100 == 0  # A batch, or nothing of it.
  table.close()


def test_damage_is_seen_and_named(tmp_path):
  path = tmp_path / 'x.sqlite'
  key = b'k' * 16
  table = cache.Table(path)
  table.add([key], np.float32([0.5]))
  table.close()
  with sqlite3.connect(path) as file:
    file.execute('UPDATE scores SET value = ?', (b'\0' * 8,))
  file.close()
  table = cache.Table(path)
  with pytest.raises(CorruptStateError, match=r'x\.sqlite is damaged.*delete'):
    table.find([key])
  table.close()
  path.write_bytes(b'no database, but some text that is long enough' * 100)
  with pytest.raises(CorruptStateError, match=r'x\.sqlite'):
    cache.Table(path)


def test_a_folder_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(StorageError, match='a file stands where'):
    cache.Table(tmp_path / 'file' / 'x.sqlite')
  (tmp_path / 'folder.sqlite').mkdir()
  with pytest.raises(StorageError, match='unable to open'):
    cache.Table(tmp_path / 'folder.sqlite')


def test_a_cache_that_another_program_has_open_is_not_damaged(tmp_path):
  model = Length()
  with contextlib.closing(cache.ScoreCache(tmp_path)) as scores:
    scoring.raw_scores(model, ['a'], ['x'], None, cache=scores)
  (path,) = (p for p in tmp_path.rglob('*') if p.suffix == '.sqlite')
  with contextlib.closing(sqlite3.connect(path)) as other:
    other.execute('BEGIN EXCLUSIVE')
    with (
      contextlib.closing(cache.ScoreCache(tmp_path)) as scores,
      pytest.raises(StorageError, match=r'another program has .* open'),
    ):
      scoring.raw_scores(model, ['b'], ['y'], None, cache=scores)
