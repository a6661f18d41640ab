"""Holds the imports of every module against the layers of the design."""

import ast
import fnmatch
import pathlib
import subprocess
import sys

import pytest

import rest_jax

_PACKAGE = pathlib.Path(rest_jax.__file__).parent

# Nothing imports from a layer above its own. The first pattern that matches a
# module decides; every module must match one.
_LAYERS = (
  (0, 'rest_jax'),
  (0, 'errors'),
  (1, 'job'),
  (1, 'hosts'),
  (1, 'preemption'),
  (1, 'cluster'),
  (1, 'bindings'),
  (1, 'types'),
  (1, 'sharding'),
  (1, 'storage'),
  (1, 'config'),
  (1, 'allocator'),
  (1, 'machine'),
  (1, 'language'),
  (1, 'pairwise_chrf'),
  (2, 'losses'),
  (2, 'reward_losses'),
  (2, 'offline_losses'),
  (3, 'constrained_losses'),
  (3, 'online_losses'),
  (2, 'pairs'),
  (2, 'mbr'),
  (2, 'best_of_n'),
  (2, 'significance'),
  (2, 'rows'),
  (2, 'selection'),
  (2, 'random_control'),
  (2, 'penalised'),
  (2, 'schedule'),
  (2, 'top_share'),
  (2, 'preview'),
  (3, 'diagnostics'),
  (2, 'run_lock'),
  (2, 'compiled'),
  (2, 'results'),
  (2, 'alarm'),
  (1, 'profiling'),
  (1, 'scratch'),
  (2, 'progress'),
  (2, 'terminal'),
  (2, 'models.*'),
  (2, 'decoding.*'),
  (3, 'rewards.learned'),
  (3, 'rewards.regressor'),
  (3, 'rewards.metricx'),
  (3, 'rewards.exported'),
  (2, 'rewards.*'),
  (3, 'data.store'),
  (3, 'data.loader'),
  (3, 'data.one_batch'),
  (3, 'data.scored'),
  (3, 'data.imported'),
  (3, 'data.mqm_prepare'),
  (2, 'data.*'),
  (3, 'network'),
  (3, 'policy'),
  (3, 'slots'),
  (3, 'generation'),
  (3, 'divergence'),
  (3, 'anchored'),
  (3, 'value_model'),
  (3, 'context'),
  (3, 'run_directory'),
  (3, 'parts'),
  (3, 'tables'),
  (3, 'compared_runs'),
  (3, 'compared_systems'),
  (4, 'comparison'),
  (4, 'comparison_tables'),
  (4, 'comparison_plots'),
  (5, 'compare'),
  (4, 'proof'),
  (4, 'run_policy'),
  (4, 'model_card'),
  (5, 'convert'),
  (3, 'training.*'),
  (3, 'checkpoint.*'),
  (4, 'supervised'),
  (4, 'training_stage'),
  (4, 'judging'),
  (4, 'train_reward'),
  (4, 'grow'),
  (4, 'annotate'),
  (4, 'check_reward'),
  (4, 'import_samples'),
  (4, 'improve'),
  (4, 'grown_data'),
  (4, 'values'),
  (4, 'online'),
  (4, 'online_training'),
  (4, 'rewarded'),
  (4, 'evaluate'),
  (4, 'score_parts'),
  (4, 'select_reward'),
  (4, 'behaviour'),
  (4, 'translate'),
  (2, 'planning.chips'),
  (2, 'planning.costs'),
  (2, 'planning.counts'),
  (4, 'planning.*'),
  (5, 'rest'),
  (5, 'policy_plan'),
  (5, 'prerequisites'),
  (5, 'branching'),
  (5, 'stages'),
  (5, 'stage_plan'),
  (5, 'improve_stages'),
  (5, 'ledger'),
  (5, 'reports'),
  (5, 'session'),
  (5, 'plan'),
  (5, 'fingerprints'),
  (6, 'main'),
)
# Libraries that few files may know: name → patterns of these files.
_CONFINED = {
  'flax.linen': ('models.*',),
  'gin': ('main',),
  'absl': ('main',),
  'orbax': ('checkpoint.native_arrays',),
  'seqio': ('data.seqio_library',),
  'tensorflow': ('data.seqio_library', 'data.tasks'),
  'tensorflow_datasets': ('data.seqio_library',),
  'urllib': ('data.download',),
  'tensorboardX': ('progress',),
  'matplotlib': ('comparison_plots',),
  # What loads or runs code that a file brings.
  'pickle': (),
  'cloudpickle': (),
  'dill': (),
  'joblib': (),
  'marshal': (),
  'shelve': (),
  'runpy': (),
  # Optional at most, and never of the core.
  't5x': (),
  # But for comparing a conversion with its origin, where they are installed.
  'torch': ('checkpoint.transformers_peer',),
  'transformers': ('checkpoint.transformers_peer',),
}
_SLOW = ('seqio', 'tensorflow', 'tensorflow_datasets', 'tensorboardX')
_CALLS_NEVER_MADE = ('eval', 'exec', 'compile', '__import__')
# Files that tools and tests import for themselves, so they have to be fast.
_WITHOUT_JAX = (
  'compare',
  'run_directory',
  'selection',
  'data.store',
  'data.numerals',
  'data.tokenizer',
  'data.text',
  'data.mqm_prepare',
  'rewards.agreement',
  'rewards.command',
  'rewards.guard',
  'rewards.lexical',
  'rewards.muse',
  'rewards.numerals',
  'rewards.process',
)


def _name(path: pathlib.Path) -> str:
  """The module's name below rest_jax; 'rest_jax' for the package itself."""
  parts = path.relative_to(_PACKAGE).with_suffix('').parts
  parts = parts[:-1] if parts[-1] == '__init__' else parts
  return '.'.join(parts) or 'rest_jax'


_TREES = {
  _name(path): ast.parse(path.read_text(), str(path))
  for path in sorted(_PACKAGE.rglob('*.py'))
}


def _imports(tree: ast.AST) -> list[tuple[str, ast.stmt]]:
  """Everything imported, as dotted names: `from a import b` is 'a.b'."""
  found = []
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found += [(alias.name, node) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'line {node.lineno}: a relative import'
      found += [(f'{node.module}.{alias.name}', node) for alias in node.names]
  return found


def _own_modules(tree: ast.AST) -> set[str]:
  """Names of our modules that a module imports."""
  found = set()
  for name, _ in _imports(tree):
    if name == 'rest_jax':
      found.add(name)
    elif name.startswith('rest_jax.'):
      inner = name.removeprefix('rest_jax.')
      # `from rest_jax.policy import Policy` imports the module before it.
      while inner and inner not in _TREES:
        inner = inner.rpartition('.')[0]
      found.add(inner or 'rest_jax')
  return found


def _layer(name: str) -> int:
  for layer, pattern in _LAYERS:
    if fnmatch.fnmatch(name, pattern) or f'{name}.*' == pattern:
      return layer
  raise AssertionError(f'{name} has no layer: add it to the table')


def _within(name: str, patterns: tuple[str, ...]) -> bool:
  return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


@pytest.mark.parametrize('name', _TREES)
def test_nothing_imports_upwards(name):
  above = {
    other
    for other in _own_modules(_TREES[name])
    if _layer(other) > _layer(name)
  }
  assert not above, f'{name} is of layer {_layer(name)}'


def test_the_table_names_no_module_that_is_gone():
  learned = {'rewards.learned', 'rewards.metricx'}  # To come.
  for _, pattern in _LAYERS:
    if pattern not in learned:
      assert any(fnmatch.fnmatch(name, pattern) for name in _TREES), pattern


def test_no_module_imports_itself_round_a_corner():
  left = {name: _own_modules(tree) for name, tree in _TREES.items()}
  while free := [name for name, needs in left.items() if not needs & set(left)]:
    for name in free:
      del left[name]
  assert not left, 'these import each other'


def test_decoding_knows_no_model_and_models_no_decoding():
  for name, tree in _TREES.items():
    room = name.partition('.')[0]
    other = {'decoding': 'models.', 'models': 'decoding.'}.get(room)
    if other:
      assert not [m for m in _own_modules(tree) if m.startswith(other)], name


@pytest.mark.parametrize('library', _CONFINED)
def test_a_library_stays_where_it_belongs(library):
  users = {
    name
    for name, tree in _TREES.items()
    for imported, _ in _imports(tree)
    if imported == library or imported.startswith(f'{library}.')
  }
  allowed = _CONFINED[library]
  assert {name for name in users if not _within(name, allowed)} == set()
  if allowed and library not in ('tensorflow_datasets',):
    assert users, f'{library} is confined to {allowed}, which do not use it'


@pytest.mark.parametrize('library', _SLOW)
def test_slow_libraries_are_imported_within_functions(library):
  for name, tree in _TREES.items():
    for node in tree.body:
      if not isinstance(node, ast.FunctionDef | ast.ClassDef):
        imported = {found.partition('.')[0] for found, _ in _imports(node)}
        assert library not in imported, name


@pytest.mark.parametrize('name', _TREES)
def test_no_text_or_file_is_run_as_code(name):
  for node in ast.walk(_TREES[name]):
    if not isinstance(node, ast.Call):
      continue
    where = f'{name}, line {node.lineno}'
    if isinstance(node.func, ast.Name):
      assert node.func.id not in _CALLS_NEVER_MADE, where
    if isinstance(node.func, ast.Attribute):
      target = ast.unparse(node.func)
      assert target not in ('os.system', 'os.popen', 'yaml.load'), where
    for keyword in node.keywords:
      if keyword.arg in ('shell', 'allow_pickle'):
        assert isinstance(keyword.value, ast.Constant), where
        assert keyword.value.value is False, where


def _loaded(modules: str, libraries: set[str]) -> str:
  """Which of some libraries a process has after importing some modules."""
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      f'import sys, {modules}\nprint(sorted({libraries} & set(sys.modules)))',
    ],
    cwd=_PACKAGE.parent,
    capture_output=True,
    text=True,
    check=True,
    timeout=120,
  )
  return done.stdout.strip()


def test_light_modules_import_neither_jax_nor_tensorflow():
  modules = ', '.join(f'rest_jax.{name}' for name in _WITHOUT_JAX)
  assert _loaded(modules, {'jax', 'flax', 'tensorflow', 'seqio'}) == '[]'


def test_looking_at_a_run_waits_for_no_library_that_makes_one():
  slow = {'grain', 'orbax', 'seqio', 'tensorflow'}
  assert _loaded('rest_jax.session', slow) == '[]'
