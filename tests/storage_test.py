import os
import threading

import pytest

from rest_jax import errors, storage


def test_files_are_asked_together_and_answer_in_order():
  together = threading.Barrier(2, timeout=30)

  def slow(name):
    if name in 'ab':
      together.wait()  # Neither ends before the other has begun.
    return name.upper()

  assert storage.of_each(slow, 'abcdefgh') == list('ABCDEFGH')
  assert storage.of_each(slow, []) == []


def test_the_first_file_in_order_that_fails_is_told():
  failed = threading.Event()

  def fail(name):
    if name == 'c':
      failed.set()
    elif name == 'b':
      failed.wait(30)  # The later one fails before it.
    else:
      return name
    raise errors.CorruptStateError(name)

  with pytest.raises(errors.CorruptStateError, match='b'):
    storage.of_each(fail, 'abc')


def test_a_folder_is_forced_to_disk_from_its_files_upwards(
  tmp_path, monkeypatch
):
  (tmp_path / 'state' / 'd').mkdir(parents=True)
  (tmp_path / 'state' / 'd' / 'x').write_text('x')
  (tmp_path / 'state' / 'y').write_text('y')
  synced = []
  monkeypatch.setattr(storage, 'sync', lambda path: synced.append(path))
  storage.sync_folder(tmp_path / 'state')
  names = [os.path.relpath(path, tmp_path) for path in synced]
  assert names == ['state/d/x', 'state/d', 'state/y', 'state']


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
  with pytest.raises(errors.StorageError, match='gone'):
    storage.sync_folder(tmp_path / 'gone')
