import errno
import io
import os

import pytest

from rest_jax import errors, profiling, progress


def test_clock():
  assert progress.clock(59.9) == '0:59'
  assert progress.clock(61.0) == '1:01'
  assert progress.clock(3723.0) == '1:02:03'


def test_plain_output_is_quiet_and_has_no_control_characters():
  stream = io.StringIO()
  shown = progress.Progress(stream)
  with shown.stage('grow_1/samples'):
    for done in range(1000):
      shown.update(done, 1000, loss=1.5)
  lines = stream.getvalue().splitlines()
  assert lines[0] == '[grow_1/samples] starting'
  assert lines[-1].startswith('[grow_1/samples] done in ')
  # A line every 15 seconds: far fewer than updates.
  assert len(lines) == 2
  assert '\x1b' not in stream.getvalue()


def test_names_in_brackets_are_not_markup():
  stream = io.StringIO()
  progress.Progress(stream).note('[bold]x[/bold]')
  assert stream.getvalue() == '[bold]x[/bold]\n'


def test_tensorboard_files_hold_the_scalars(tmp_path):
  shown = progress.Progress(io.StringIO(), str(tmp_path))
  shown.scalars('supervised', 3, {'train/loss': 2.5})
  shown.close()
  (file,) = (tmp_path / 'supervised').iterdir()
  assert b'train/loss' in file.read_bytes()


def test_a_full_disk_stops_a_run_instead_of_hanging_it(tmp_path, monkeypatch):
  shown = progress.Progress(io.StringIO(), str(tmp_path))
  shown.scalars('supervised', 0, {'train/loss': 2.5})

  def full(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, 'fsync', full)
  monkeypatch.setattr(progress, '_FLUSH_SECONDS', 0.0)
  with pytest.raises(errors.StorageError, match=r'/supervised: .*disk is full'):
    shown.scalars('supervised', 1, {'train/loss': 2.5})
  with pytest.raises(errors.StorageError):
    shown.close()


def test_a_profile_traces_the_steps_of_one_stage(tmp_path):
  stream = io.StringIO()
  profile = profiling.Profile('2:4', str(tmp_path))
  shown = progress.Progress(stream, profile=profile)
  for name, steps in (('data', 1), ('supervised', 5), ('grow_1/samples', 5)):
    with shown.stage(name):
      for done in range(steps):
        shown.update(done, steps)
  assert stream.getvalue().count('a trace for xprof lies in') == 1
  assert [path.name for path in tmp_path.iterdir()] == ['supervised']
  (trace,) = tmp_path.rglob('*.xplane.pb')
  assert trace.stat().st_size


def test_a_profile_that_its_stage_does_not_fill_is_written(tmp_path):
  stream = io.StringIO()
  shown = progress.Progress(
    stream, profile=profiling.Profile('1:9', str(tmp_path))
  )
  with shown.stage('supervised'):
    shown.update(1, 1)
  assert list(tmp_path.rglob('*.xplane.pb'))


@pytest.mark.parametrize('steps', ['', '5', '5:5', '0:5', '5:', 'a:b', '7:5'])
def test_what_is_no_profile_is_refused(steps, tmp_path):
  with pytest.raises(errors.ConfigurationError, match='START:STOP'):
    profiling.Profile(steps, str(tmp_path))
