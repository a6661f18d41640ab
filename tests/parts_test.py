"""Parts of a stage that several starts write."""

import time

from etils import epath

from rest_jax import parts, run_directory


def test_seconds_of_a_stage_are_those_of_all_its_starts(tmp_path):
  directory = run_directory.RunDirectory(epath.Path(tmp_path))
  names = ['part-00000.parquet', 'part-00001.parquet']
  first = directory.stage('grow_1/samples')
  first.begin({}, {})
  assert parts.deal(first, names) == (names, {})
  first.write_part(names[0], b'one', {'samples': 3, 'seconds': 100.0})
  # Killed here; the same command goes on.
  stage, began = directory.stage('grow_1/samples'), time.monotonic()
  left, infos = parts.deal(stage, names)
  assert left == names[1:]
  info = {'samples': 4, 'seconds': 50.0}
  stage.write_part(names[1], b'two', info)
  parts.commit(stage, infos | {names[1]: info}, ('samples',), began)
  assert stage.manifest['counts'] == {'samples': 7}
  # What this start took is told by its own clock.
  assert 100.0 <= stage.manifest['seconds'] < 150.0
