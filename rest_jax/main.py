"""The command line: gin files and flags to one run mode.

  python -m rest_jax.main --gin_file=quickstart.gin
  python -m rest_jax.main --gin_file=wmt20.gin --gin.MODEL_DIR=/runs/wmt20 \
      --gin.DATA_DIR=/data/wmt20 --run_mode=status

The only file that knows gin and flags.
"""

import difflib
import os
import pathlib
import re
import shlex
import sys
import tokenize
import traceback
from collections.abc import Sequence
from typing import Any

from absl import app, flags, logging

import gin
from rest_jax import allocator, cluster, config, hosts, preemption, storage
from rest_jax import bindings as bindings_lib
from rest_jax.errors import ConfigurationError, RestJaxError

RUN_MODES = (
    'rest', 'supervised', 'train_reward', 'check_reward', 'grow', 'annotate',
    'improve', 'evaluate', 'translate', 'preview', 'best_of_n', 'status',
    'plan', 'import_samples', 'fetch', 'convert', 'prepare_mqm', 'compare',
)  # fmt: skip

_GIN_FILE = flags.DEFINE_multi_string(
  'gin_file', [], 'A gin file, of the package or of yours; repeatable.'
)
_GIN_BINDINGS = flags.DEFINE_multi_string(
  'gin_bindings', [], 'A gin binding; --gin.NAME=VALUE is short for it.'
)
_GIN_SEARCH_PATHS = flags.DEFINE_list(
  'gin_search_paths', [], 'Further folders to look for gin files in.'
)
_RUN_MODE = flags.DEFINE_enum('run_mode', 'rest', RUN_MODES, 'What to do.')
_STAGE = flags.DEFINE_string(
  'stage', None, 'Run only this stage, e.g. grow_1/improve_2.'
)
_TOPOLOGY = flags.DEFINE_string(
  'topology', None, 'TPU slice for --run_mode=plan, e.g. v5e:16x16, or all.'
)
_PROFILE = flags.DEFINE_string(
  'profile', None, 'START:STOP: updates or batches to trace, for xprof.'
)
_DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'Print the stages and an estimate of disk; run nothing.'
)
_POLICY = flags.DEFINE_string(
  'policy', None, 'Policy folder in MODEL_DIR, e.g. supervised.'
)
_INPUT = flags.DEFINE_string(
  'input', '-', 'File to read (- is standard input), or folder to convert.'
)
_OUTPUT = flags.DEFINE_string(
  'output', '-', 'File to write (- is standard output), or folder to make.'
)
_FORMAT = flags.DEFINE_enum(
  'format', None, ('huggingface', 't5x', 'native'), 'Format to convert to.'
)
_VERIFY = flags.DEFINE_enum(
  'verify', 'logits', ('logits', 'tensors'), 'What --run_mode=convert compares.'
)
_SPLIT = flags.DEFINE_enum(
  'split', 'report', ('report', 'select', 'test'), 'Data to evaluate on.'
)
_DATASET = flags.DEFINE_string(
  'dataset', None, 'Data set for --run_mode=fetch: wmt20 or iwslt14.'
)
_DATA_DIR = flags.DEFINE_string(
  'data_dir', None, 'Folder that --run_mode=fetch writes to.'
)
_COORDINATOR_ADDRESS = flags.DEFINE_string(
  'coordinator_address', None, 'host:port of the first of several processes.'
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'How many processes run this command together.'
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Which of them this one is, from 0.'
)
_HEARTBEAT_SECONDS = flags.DEFINE_integer(
  'heartbeat_seconds', cluster.HEARTBEAT_SECONDS,
  'Silence after which a process is dead, and the others are aborted.',
  lower_bound=1,
)  # fmt: skip
_BARRIER_SECONDS = flags.DEFINE_float(
  'barrier_seconds', cluster.BARRIER_SECONDS,
  'How long processes wait for one that lives, but does not come.',
  lower_bound=1,
)  # fmt: skip


# Whatever gin and the objects that it builds raise for a faulty configuration.
_GIN_ERRORS = (
    ValueError, TypeError, SyntaxError, OSError, AttributeError, ImportError,
    NameError, RuntimeError, KeyError, tokenize.TokenError,
)  # fmt: skip


def gin_folder() -> pathlib.Path:
  """The folder of the gin files that come with rest_jax."""
  package = pathlib.Path(__file__).parent
  installed = package / 'gin'
  return installed if installed.is_dir() else package.parent / 'gin'


def _parse_gin(
  files: Sequence[str],
  bindings: Sequence[str],
  search_paths: Sequence[str],
) -> None:
  """Parses into gin's global configuration; errors become one line."""
  if not files:
    raise ConfigurationError(
      'no --gin_file given; try --gin_file=quickstart.gin, or one of'
      f' {", ".join(sorted(p.name for p in gin_folder().glob("*.gin")))}.'
    )
  roots = ('', '.', str(gin_folder()), *search_paths)
  bindings_lib.check_presets(files, roots, gin_folder())
  # gin also looks for files inside importable packages, and stumbles over any
  # folder named like the first part of an included path; files are enough.
  gin.config._FILE_READERS[:] = [(open, os.path.isfile)]
  for path in ('.', str(gin_folder()), *search_paths):
    gin.add_config_file_search_path(path)
  for binding in bindings:
    bindings_lib.check_whole(binding)
  for file in files:
    if not any(os.path.exists(os.path.join(root, file)) for root in roots):
      raise ConfigurationError(
        f'--gin_file={file} was not found here, in {gin_folder()} or in'
        f' --gin_search_paths={",".join(search_paths)}.'
      )
  try:
    gin.parse_config_files_and_bindings(list(files), [], finalize_config=False)
    bindings_lib.check_modules(gin.config._IMPORTS)
    # Bindings may name whatever some file has imported, though it uses it not.
    gin.parse_config([*_gin_imports(), *bindings])
    gin.finalize()
  except _GIN_ERRORS as error:
    text = bindings_lib.plain(error)
    if missing := re.match(r'(\w+) set to `%gin\.REQUIRED`', text):
      name = missing[1]
      text = f'{name} must be set; add --gin.{name}=VALUE'
    text += bindings_lib.meant(text, gin.config._IMPORTS)
    raise ConfigurationError(
      f'the gin configuration cannot be read: {text}'
    ) from error


def _gin_imports() -> list[str]:
  """The imports of all files parsed, as gin statements."""
  modules = sorted(
    statement.format()
    for statement in gin.config._IMPORTS
    if not statement.module.startswith('__gin__.')
  )
  return ['from __gin__ import dynamic_registration', *modules]


def _build(described: type | None = None) -> Any:
  """Builds the run (or other object) that gin describes, and checks it."""
  if described is None:
    from rest_jax import rest  # Imports JAX, so only once the flags are right.

    described = rest.ReST
  try:
    run = gin.get_configurable(described)()
  except RestJaxError:
    raise
  except _GIN_ERRORS as error:
    config.check_types_at(error)
    raise ConfigurationError(
      f'the gin configuration cannot be built: {bindings_lib.plain(error)}'
    ) from error
  config.check_types(run)
  _check_all_used()
  return run


def _convert() -> None:
  """Converts a checkpoint; gin files, if any, give the size of its model."""
  from rest_jax import convert
  from rest_jax.models.config import T5Config

  model = None
  if _GIN_BINDINGS.value and not _GIN_FILE.value:
    raise ConfigurationError(
      f'--gin.{_GIN_BINDINGS.value[0]} without --gin_file: the size of a'
      ' checkpoint comes from it or from a gin file; give that too.'
    )
  if _GIN_FILE.value:
    _parse_gin(_GIN_FILE.value, _GIN_BINDINGS.value, _GIN_SEARCH_PATHS.value)
    try:
      model = gin.get_configurable(T5Config)()
    except _GIN_ERRORS as error:
      raise ConfigurationError(
        f'--gin_file gives no whole T5Config: {bindings_lib.plain(error)}'
      ) from error
  convert.run(_INPUT.value, _OUTPUT.value, _FORMAT.value, _VERIFY.value, model)


def _compare(runs: Sequence[str]) -> None:
  """Compares runs; gin files, if any, name what is of interest."""
  from rest_jax import compare

  settings = compare.Compare()
  if _GIN_FILE.value or _GIN_BINDINGS.value:
    _parse_gin(_GIN_FILE.value, _GIN_BINDINGS.value, _GIN_SEARCH_PATHS.value)
    settings = _build(compare.Compare)
  compare.run(runs, settings, split=_SPLIT.value, output=_OUTPUT.value)


def _check_all_used() -> None:
  """Raises when a binding changes nothing: most often it is misspelt."""
  bound = bindings_lib.names(gin.config_str())
  used = bindings_lib.used(gin.operative_config_str(), bound)
  unused = bound - used
  # A file of ours may replace what another one binds; a user's must not miss.
  given = {b.partition('=')[0].strip() for b in _GIN_BINDINGS.value}
  unused -= bindings_lib.shipped_names(gin_folder()) - given
  if unused:
    name = sorted(unused)[0]
    scoped = sorted(other for other in used if other.endswith(f'/{name}'))
    if scoped:
      raise ConfigurationError(
        f'binding {name} changes nothing, since all that it is of have a'
        f' binding of their own: {", ".join(scoped)}; change those.'
      )
    near = difflib.get_close_matches(name, sorted(used), n=1)
    meant = f' (did you mean {near[0]}?)' if near else ''
    raise ConfigurationError(
      f'binding {name} is used by nothing in this configuration; remove it or'
      f' correct its name{meant}.'
    )


def command_line(**changed: str | None) -> str:
  """This process's command, with some gin bindings replaced.

  What chooses a part of this run directory is left out: a stage or a policy
  need not be in another.
  """
  bindings: dict[str, str | None] = {}
  for binding in _GIN_BINDINGS.value:
    name, _, value = binding.partition('=')
    bindings[name.strip()] = bindings_lib.bare_word(value.strip())
  bindings |= changed
  words = [f'--gin_file={file}' for file in _GIN_FILE.value]
  if _GIN_SEARCH_PATHS.value:
    words.append(f'--gin_search_paths={",".join(_GIN_SEARCH_PATHS.value)}')
  words += [f'--gin.{name}={value}' for name, value in bindings.items()]
  if _RUN_MODE.value not in ('rest', 'evaluate'):
    words.append(f'--run_mode={_RUN_MODE.value}')
  if _TOPOLOGY.value:
    words.append(f'--topology={_TOPOLOGY.value}')
  return shlex.join(['python', '-m', 'rest_jax.main', *words])


def _dispatch(run: Any) -> None:
  from rest_jax import session

  mode = _RUN_MODE.value
  texts = session.Texts(
    command='\n'.join(
      f'--{flag.name}={flag.value}'
      for flag in (_RUN_MODE, _STAGE, _DRY_RUN, _POLICY, _SPLIT)
    ),
    config=gin.config_str(),
    operative_config=gin.operative_config_str(),
    branch_command=command_line,
  )
  showing = mode == 'status' or _DRY_RUN.value
  with (
    preemption.heard(),
    session.open_run(
      run, texts, read_only=_reads_only(), profile=_PROFILE.value
    ) as opened,
  ):
    if showing:
      opened.status(dry_run=_DRY_RUN.value)
    elif mode == 'translate':
      opened.translate(_POLICY.value, _INPUT.value, _OUTPUT.value)
    elif mode == 'preview':
      opened.preview()
    elif mode == 'best_of_n':
      opened.best_of_n(_SPLIT.value)
    elif mode == 'evaluate':
      opened.evaluate(_POLICY.value, _SPLIT.value)
    else:
      opened.run(mode, only=_STAGE.value)


def _plan() -> None:
  """Plans for a TPU that need not be there; this machine joins no others."""
  from rest_jax import plan

  _parse_gin(_GIN_FILE.value, _GIN_BINDINGS.value, _GIN_SEARCH_PATHS.value)
  plan.run(_build(), _TOPOLOGY.value, command_line())


def _main(argv: Sequence[str]) -> None:
  if len(argv) > 1 and _RUN_MODE.value != 'compare':
    raise ConfigurationError(
      f'unknown argument {argv[1]!r}; all settings are --flags.'
    )
  _check_flags()
  # Before JAX is imported. A conversion shall need no more than it holds.
  allocator.keep_freed_memory(_RUN_MODE.value != 'convert')
  if _RUN_MODE.value == 'fetch':
    from rest_jax.data import download

    download.fetch(_DATASET.value, _DATA_DIR.value)
  elif _RUN_MODE.value == 'prepare_mqm':
    from rest_jax.data import mqm_prepare

    counts = mqm_prepare.prepare(_INPUT.value, _OUTPUT.value)
    print(', '.join(f'{name} {count:,}' for name, count in counts.items()))
  elif _RUN_MODE.value == 'convert':
    _convert()
  elif _RUN_MODE.value == 'compare':
    _compare(argv[1:])
  elif _RUN_MODE.value == 'plan':
    _plan()
  else:
    _join()
    _parse_gin(_GIN_FILE.value, _GIN_BINDINGS.value, _GIN_SEARCH_PATHS.value)
    _dispatch(_build())


def _check_flags() -> None:
  """Refuses --dry_run, --stage, --policy and --split where they say nothing."""
  mode = _RUN_MODE.value
  elsewhere = ('fetch', 'prepare_mqm', 'convert', 'compare', 'plan')
  shows = ('status', 'preview', 'translate', 'best_of_n', 'evaluate')
  for flag, wrong in (
    (_DRY_RUN, mode in elsewhere),
    (_STAGE, mode in (*elsewhere, *shows) or _DRY_RUN.value),
    (_POLICY, mode not in ('evaluate', 'translate')),
    (_SPLIT, mode not in ('evaluate', 'best_of_n', 'compare')),
  ):
    if wrong and flag.present and flag.value != flag.default:
      raise ConfigurationError(
        f'--{flag.name}={flag.value} says nothing to --run_mode={mode}'
        f'{" --dry_run" * (_DRY_RUN.value and flag is not _DRY_RUN)}; take it'
        ' away, or set another --run_mode.'
      )


def _reads_only() -> bool:
  """Whether the command leaves the run directory as it is."""
  modes = ('status', 'preview', 'translate')
  return _RUN_MODE.value in modes or _DRY_RUN.value


def _join() -> None:
  """Joins the other processes of a run.

  What only reads may be done beside a run, by one process that joins nobody,
  unless flags say that it does.
  """
  given = [
    flag.value for flag in (_COORDINATOR_ADDRESS, _NUM_PROCESSES, _PROCESS_ID)
  ]
  if _reads_only() and given == [None] * 3:
    return
  cluster.join(
    *given,
    heartbeat_seconds=_HEARTBEAT_SECONDS.value,
    barrier_seconds=_BARRIER_SECONDS.value,
  )


def _with_exit_code(argv: Sequence[str]) -> int:
  """Runs all; with other processes it ends here, as they do."""
  try:
    exit_code = _told(argv)
  except Exception as error:
    if hosts.count() == 1:
      raise
    traceback.print_exc()
    hosts.fail(error)
    exit_code = 1
  cluster.leave(exit_code)
  return exit_code


def _told(argv: Sequence[str]) -> int:
  try:
    with storage.answering():
      _main(argv)
    return 0
  except RestJaxError as error:
    # Gin adds a line about what it called; ours name the binding themselves.
    text = str(error).partition('\n  In call to configurable')[0]
    # What others' libraries and metrics say may have several lines.
    text = ' '.join(text.splitlines())
    print(f'{type(error).__name__}: {text}', file=sys.stderr)
    hosts.fail(error)
    return error.exit_code
  except KeyboardInterrupt as error:
    print('interrupted; the same command goes on from here', file=sys.stderr)
    hosts.fail(error)
    return hosts.INTERRUPTED


def _parse_flags(argv: Sequence[str]) -> list[str]:
  try:
    return flags.FLAGS(bindings_lib.rewrite_flags(argv))
  except (flags.Error, ConfigurationError) as error:
    text = ' '.join(str(error).split())
    print(f'ConfigurationError: {text}', file=sys.stderr)
    sys.exit(ConfigurationError.exit_code)


def _to_the_end(argv: Sequence[str]) -> int:
  exit_code = _with_exit_code(argv)
  if 'tensorflow' in sys.modules and '://' in gin.config_str():
    # The threads of its client for object stores abort, now and then, a process
    # that ends as others do.
    cluster.end(exit_code)
  return exit_code


def main() -> None:
  """Entry point of `python -m rest_jax.main`."""
  # gin logs every folder that it looks for a file in as an error.
  logging.set_verbosity(logging.FATAL)
  app.run(_to_the_end, flags_parser=_parse_flags)


if __name__ == '__main__':
  main()
