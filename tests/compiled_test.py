"""Where compiled programs are kept."""

import jax
import jax.numpy as jnp
import pytest

from rest_jax import compiled


@pytest.fixture(autouse=True)
def keep_all(monkeypatch):
  """Keeps programs however small and quickly compiled they are."""
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  settings = {
    'jax_persistent_cache_min_compile_time_secs': 0.0,
    'jax_persistent_cache_min_entry_size_bytes': -1,
    'jax_compilation_cache_dir': None,
  }
  before = {name: getattr(jax.config, name) for name in settings}
  for name, value in settings.items():
    jax.config.update(name, value)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def compile_something():
  return jax.jit(lambda x: x * 3 + 1).lower(jnp.arange(7)).compile()


@pytest.mark.parametrize('given', [None, 'elsewhere'])
def test_programs_are_kept_where_the_run_says(given, tmp_path):
  run = tmp_path / 'run'
  folder = run / compiled.FOLDER if given is None else tmp_path / given
  with compiled.kept(given and folder, run):
    compile_something()
  kept = sorted(path.name for path in folder.iterdir())
  assert kept
  with compiled.kept(given and folder, run):
    compile_something()
  assert sorted(path.name for path in folder.iterdir()) == kept
  assert jax.config.jax_compilation_cache_dir is None


def test_the_environments_folder_stays_but_not_against_gin(
  tmp_path, monkeypatch
):
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'theirs'))
  with compiled.kept(None, tmp_path):
    compile_something()
  assert not (tmp_path / compiled.FOLDER).exists()
  with compiled.kept(tmp_path / 'ours', tmp_path):
    compile_something()
  assert list((tmp_path / 'ours').iterdir())
