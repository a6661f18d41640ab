"""Where what an object store cannot hold lies."""

import os
import tempfile

import pytest

from rest_jax import errors, scratch


@pytest.fixture
def temporary(tmp_path, monkeypatch):
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  return tmp_path


def test_in_the_run_directory_where_that_is_local(tmp_path, temporary):
  path = tmp_path / 'run/supervised/.work/rows'
  assert scratch.local(path) == path
  assert scratch.share(path) == path
  path.mkdir(parents=True)
  scratch.publish(path)
  scratch.remove(path)  # The stage removes it, with all of its work.
  assert path.is_dir()


def test_else_in_a_folder_of_this_user_which_others_cannot_read(temporary):
  one = scratch.local('gs://bucket/run/supervised/.work')
  other = scratch.local('gs://bucket/run/grow_1/improve_1/.work')
  assert one != other
  assert one == scratch.local('gs://bucket/run/supervised/.work')
  root = temporary / f'rest_jax-{os.getuid()}'
  assert root in one.parents and root in other.parents
  assert root.stat().st_mode & 0o777 == 0o700
  rows = scratch.local('gs://bucket/run/supervised/.work/rows')
  rows.mkdir(parents=True)
  scratch.remove('gs://bucket/run/supervised/.work')
  assert not one.exists()
  inside = scratch.local('gs://bucket/../../run')
  assert '..' not in inside.parts and root in inside.parents


def test_a_folder_that_another_laid_there_is_not_used(temporary):
  (temporary / 'elsewhere').mkdir()
  (temporary / f'rest_jax-{os.getuid()}').symlink_to(temporary / 'elsewhere')
  with pytest.raises(errors.StorageError, match='not a folder of this user'):
    scratch.local('gs://bucket/run/supervised/.work')
