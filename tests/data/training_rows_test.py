import math

import numpy as np
import pytest

from rest_jax import errors
from rest_jax.data.training_rows import TrainingRows, write_rows

ROWS = [
  ([5, 6, 1], [7, 1], 1.0, True),
  ([8, 1], [9, 9, 1], 0.25, False),
  ([4, 1], [1], 0.0, False),
  ([3, 3, 3, 1], [2, 1], 2.0, False),
]


def test_rows_come_back_without_those_of_weight_zero(tmp_path):
  write_rows(tmp_path / 'rows', ROWS)
  rows = TrainingRows.open(tmp_path / 'rows')
  assert len(rows) == 3
  np.testing.assert_array_equal(rows.source_lengths, [3, 2, 4])
  np.testing.assert_array_equal(rows.target_lengths, [2, 3, 2])
  source, target, weight, is_original = rows.row(1)
  np.testing.assert_array_equal(source, [8, 1])
  np.testing.assert_array_equal(target, [9, 9, 1])
  assert (weight, is_original) == (0.25, False)
  np.testing.assert_array_equal(rows.is_original, [True, False, False])
  assert isinstance(rows.source_tokens, np.memmap)


def test_samples_in_memory_are_as_rows_that_were_written(tmp_path):
  pairs = [([5, 6, 1], [7, 1]), ([8, 1], [9, 9, 1])]
  written = write_rows(tmp_path, [(*pair, 1.0, False) for pair in pairs])
  made = TrainingRows.of_samples(*zip(*pairs, strict=True))
  for name, value in vars(written).items():
    np.testing.assert_array_equal(getattr(made, name), value)
    assert getattr(value, 'dtype', None) == getattr(
      getattr(made, name), 'dtype', None
    )


def test_many_rows_pass_through_the_buffer(tmp_path):
  count = 30_000
  rows = write_rows(
    tmp_path, (([i + 1, 1], [1, i + 2, 1], 1.0, False) for i in range(count))
  )
  numbers = np.arange(count)
  np.testing.assert_array_equal(rows.source_tokens[::2], numbers + 1)
  np.testing.assert_array_equal(rows.target_tokens[1::3], numbers + 2)
  np.testing.assert_array_equal(rows.row(20_123)[1], [1, 20_125, 1])


def test_the_same_rows_give_the_same_bytes(tmp_path):
  for name in 'ab':
    write_rows(tmp_path / name, ROWS)
  for path in sorted((tmp_path / 'a').iterdir()):
    assert path.read_bytes() == (tmp_path / 'b' / path.name).read_bytes()


def test_writing_again_replaces(tmp_path):
  write_rows(tmp_path, ROWS)
  assert len(write_rows(tmp_path, ROWS[:1])) == 1


def test_an_interrupted_write_is_not_read(tmp_path):
  def interrupted():
    yield ROWS[0]
    raise KeyboardInterrupt

  write_rows(tmp_path, ROWS)
  with pytest.raises(KeyboardInterrupt):
    write_rows(tmp_path, interrupted())
  with pytest.raises(errors.CorruptStateError, match='delete the folder'):
    TrainingRows.open(tmp_path)
  assert len(write_rows(tmp_path, ROWS)) == 3


@pytest.mark.parametrize('name', ['weights', 'source_tokens', 'target_offsets'])
def test_files_cut_short_are_seen(tmp_path, name):
  write_rows(tmp_path, ROWS)
  path = tmp_path / f'{name}.npy'
  path.write_bytes(path.read_bytes()[:-4])
  with pytest.raises(errors.CorruptStateError, match=str(tmp_path)):
    TrainingRows.open(tmp_path)


@pytest.mark.parametrize(
  ('row', 'named'),
  [
    (([5, 1], [], 1.0, True), 'row 1 has target tokens'),
    (([5, 0, 1], [1], 1.0, True), 'row 1 has source tokens'),
    (([5, 1], [1], math.nan, True), 'row 1 has weight nan'),
    (([5, 1], [1], math.inf, True), 'row 1 has weight inf'),
  ],
)
def test_bad_rows_are_named(tmp_path, row, named):
  with pytest.raises(errors.DataError, match=named):
    write_rows(tmp_path, [ROWS[0], row])


def test_nothing_left_is_an_error(tmp_path):
  with pytest.raises(errors.DataError, match='1 had weight 0'):
    write_rows(tmp_path, [ROWS[2]])


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(errors.StorageError, match='MODEL_DIR'):
    write_rows(tmp_path / 'file' / 'rows', ROWS)
