"""Whatever is wrong: one line that says what, where and how to mend it.

And nothing that was committed is touched. All runs are of the real main.
"""

import dataclasses
import gzip
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import rest_jax
from rest_jax import storage

TESTING = pathlib.Path(__file__).parent / 'testing'


@dataclasses.dataclass(frozen=True)
class Ended:
  """How main ended: its exit status and what it wrote."""

  code: int
  stdout: str
  stderr: str

  @property
  def notes(self):
    """Lines of progress."""
    lines = self.stderr.split('\n')
    return [line for line in lines if line.startswith(('[', 'results: '))]

  @property
  def errors(self):
    """All other lines."""
    notes = {*self.notes, ''}
    return [line for line in self.stderr.split('\n') if line not in notes]


class Program:
  """The real main, in a process of its own that stays."""

  def __init__(self):
    environment = dict(os.environ, JAX_PLATFORMS='cpu')
    environment.pop('XLA_FLAGS', None)  # One device.
    environment.pop('TF_CPP_MIN_LOG_LEVEL', None)  # As TensorFlow would talk.
    root = pathlib.Path(rest_jax.__file__).parents[1]
    environment['PYTHONPATH'] = f'{root}{os.pathsep}{TESTING}'
    self.process = subprocess.Popen(
      [sys.executable, TESTING / 'worker.py'],
      env=environment,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def __call__(self, run, data, *arguments, full=None, fault=None):
    request = {
      'argv': [
        f'--gin_file={TESTING / "faulty.gin"}',
        f'--gin.MODEL_DIR={run}',
        f'--gin.DATA_DIR={data}',
        *arguments,
      ],
      'environment': {} if fault is None else {'FAULT': fault},
      'full': full,
    }
    print(json.dumps(request), file=self.process.stdin, flush=True)
    return Ended(**json.loads(self.process.stdout.readline()))


@pytest.fixture(scope='module')
def program():
  started = Program()
  yield started
  started.process.stdin.close()
  assert started.process.wait(60) == 0
  started.process.stdout.close()


def write_data(folder):
  folder.mkdir()
  for name, count in (('train', 24), ('dev', 8), ('mono', 20)):
    for language, word in (('de', 'satz'), ('en', 'line')):
      text = ''.join(f'{word} {i}\n' for i in range(100, 100 + count))
      (folder / f'{name}.{language}').write_text(text)
  (folder / 'mono.en').unlink()
  return folder


@pytest.fixture
def data(tmp_path):
  """Sound data, for a test to spoil."""
  return write_data(tmp_path / 'data')


@dataclasses.dataclass(frozen=True)
class Base:
  """A run that was finished, and its data."""

  run: pathlib.Path
  data: pathlib.Path


@pytest.fixture(scope='module')
def base(program, tmp_path_factory):
  folder = tmp_path_factory.mktemp('base')
  done = Base(folder / 'run', write_data(folder / 'data'))
  ended = program(done.run, done.data)
  assert (ended.code, ended.errors) == (0, []), ended.stderr
  return done


@pytest.fixture
def run(base, tmp_path):
  """A copy of the finished run."""
  return shutil.copytree(base.run, tmp_path / 'run')


def back_to(run, *without):
  """Takes stages of a copied run away."""
  for stage in without:
    shutil.rmtree(run / stage)


def committed(run):
  """Digests of all files of the committed stages."""
  stages = [path.parent for path in run.rglob('stage.json')]
  return {
    path: storage.checksum(path)
    for path in run.rglob('*')
    if path.is_file() and any(path.is_relative_to(stage) for stage in stages)
  }


def refused(ended, code, *parts):
  """Holds the one line of an error against what it must say."""
  assert ended.code == code, ended
  assert len(ended.errors) == 1, ended.stderr
  (line,) = ended.errors
  assert re.match(r'[A-Z][A-Za-z]+Error: \S', line), line
  # It comes last, and says what to do.
  assert ended.stderr.endswith(line + '\n')
  for part in parts:
    assert re.search(part, line), (part, line)


# --- Text -------------------------------------------------------------------


def append(path, content):
  with open(path, 'ab') as file:
    file.write(content)


@pytest.mark.parametrize(
  'spoil, message',
  [
    (
      lambda data: append(data / 'train.en', b'one more\n'),
      r'line counts differ .*train\.de: 24, .*train\.en: 25.*must correspond',
    ),
    (
      lambda data: [
        append(data / f'train.{l}', text)
        for l, text in (('de', b'\n'), ('en', b'x\n'))
      ],
      r"train\.de:25: an empty line: .*'skip'",
    ),
    (
      lambda data: [
        append(data / f'dev.{l}', text)
        for l, text in (('de', b'gr\xfc\xdfe\n'), ('en', b'greetings\n'))
      ],
      r'dev\.de:9: byte 3 .*0xfc.* is no UTF-8: convert',
    ),
    (
      lambda data: (data / 'train.en').unlink(),
      r'train\.en: no such file: check',
    ),
    (
      lambda data: [(data / f'dev.{l}').write_text('') for l in ('de', 'en')],
      r'dev\.de: no lines in it',
    ),
    (
      lambda data: [
        (data / f'dev.{l}').write_text('same\n' * 3) for l in ('de', 'en')
      ],
      r'dev split has 1 different .* at least two',
    ),
    (
      lambda data: [
        (data / f'train.{l}').write_text('far too long a sentence\n' * 3)
        for l in ('de', 'en')
      ],
      r'no row is left .*train.*too long',
    ),
  ],
  ids=[
    *('counts', 'empty_line', 'utf8', 'missing', 'empty', 'one_source'),
    'all_over_long',
  ],
)
def test_text_that_cannot_be_read_as_it_is(
  program, data, tmp_path, spoil, message
):
  spoil(data)
  ended = program(tmp_path / 'run', data, '--stage=data')
  refused(ended, 3, 'DataError', message)
  assert not list((tmp_path / 'run').rglob('stage.json'))


def test_a_mended_file_goes_on_with_the_same_command(program, data, tmp_path):
  good = (data / 'train.en').read_bytes()
  append(data / 'train.en', b'one more\n')
  assert program(tmp_path / 'run', data, '--stage=data').code == 3
  (data / 'train.en').write_bytes(good)
  ended = program(tmp_path / 'run', data, '--stage=data')
  assert (ended.code, ended.errors) == (0, [])


def test_a_damaged_archive(program, data, tmp_path):
  for language in ('de', 'en'):
    packed = gzip.compress(bytes(range(256)) * 40)
    (data / f'packed.{language}.gz').write_bytes(packed[:-20])
  ended = program(
    *(tmp_path / 'run', data, '--stage=data', '--gin.TRAIN_SPLIT=packed')
  )
  refused(ended, 3, r'packed\.de\.gz')


@pytest.mark.parametrize('policy, kept', [('skip', 24), ('truncate', 25)])
def test_over_long_lines_are_counted(program, data, tmp_path, policy, kept):
  for language in ('de', 'en'):
    append(data / f'train.{language}', b'far too long a sentence\n')
  ended = program(
    *(tmp_path / 'run', data, '--stage=data'),
    f'--gin.prepare.Data.over_long={policy}',
  )
  assert (ended.code, ended.errors) == (0, [])
  assert '[data] train: 1 rows over_long' in ended.notes
  manifest = json.loads((tmp_path / 'run/data/stage.json').read_text())
  assert manifest['counts']['train'] == kept
  assert manifest['extra']['splits']['train']['over_long'] == 1


def test_empty_lines_can_be_skipped_and_are_counted(program, data, tmp_path):
  append(data / 'train.de', b' \nmehr\n')
  append(data / 'train.en', b'x\n\n')
  ended = program(
    *(tmp_path / 'run', data, '--stage=data'),
    '--gin.tasks.BitextTask.empty=skip',
  )
  assert (ended.code, ended.errors) == (0, [])
  assert '[data] train: 2 rows empty' in ended.notes


@pytest.mark.parametrize(
  'flags, code, message',
  [
    (['--gin.TRAIN_SPLIT=nosuch'], 2, r"no split 'nosuch'"),
    (['--gin.GROW_SPLIT=train[50%:40%]'], 2, r'train\[50%:40%\]'),
    (['--gin.TRAIN_SPLIT=mono'], 3, r"'mono', row \d+: no target"),
    (['--gin.prepare.Data.over_long=drop'], 2, r"over_long = 'drop'.*skip"),
    (['--gin.tasks.BitextTask.empty=keep'], 2, r"empty = 'keep'.*skip"),
    (
      ['--gin.TOKENIZER=@prepare.TrainedTokenizer()', '--gin.VOCAB_SIZE=999'],
      2,
      r'vocab_size = 999 .* training texts',
    ),
    (
      [
        '--gin.TOKENIZER=@prepare.GivenTokenizer()',
        '--gin.prepare.GivenTokenizer.path=nosuch.model',
      ],
      3,
      r'nosuch\.model',
    ),
    (['--gin.DATA_DIR=%gin.REQUIRED'], 2, 'DATA_DIR must be set'),
  ],
)
def test_settings_that_do_not_fit_the_data(
  program, data, tmp_path, flags, code, message
):
  ended = program(tmp_path / 'run', data, '--stage=data', *flags)
  refused(ended, code, message)


def test_references_that_a_reward_needs_are_missed_before_anything_is_trained(
  program, data, tmp_path
):
  ended = program(
    *(tmp_path / 'run', data, '--gin.GROW_SPLIT=mono'),
    '--gin.REWARD=@lexical.SentenceChrf()',
  )
  refused(ended, 5, "'chrf' needs references", '20 of 20', 'GROW_SPLIT')
  stages = [path.parent.name for path in tmp_path.rglob('stage.json')]
  assert stages == ['data']


@pytest.mark.parametrize(
  'name, content, message',
  [
    ('nosuch.tsv', None, r'IMPORTED_SAMPLES = .*nosuch\.tsv.*check the path'),
    ('a.tsv', b'satz 1\tline 1\nsatz 2\n', r'a\.tsv:2: 1 columns'),
    ('a.jsonl', b'{"source": "\xff"}\n', r'a\.jsonl:1: .*UTF-8'),
    ('a.tsv', b'satz\tfar too long a sentence\n', r'too long .*16 and 16'),
  ],
)
def test_samples_that_cannot_be_imported(
  program, base, run, tmp_path, name, content, message
):
  if content is not None:
    (tmp_path / name).write_bytes(content)
  before = committed(run)
  ended = program(
    *(run, base.data, '--run_mode=import_samples'),
    f'--gin.IMPORTED_SAMPLES={tmp_path / name}',
  )
  refused(ended, 3, message)
  assert committed(run) == before


def test_import_samples_without_a_file(program, base, run):
  ended = program(run, base.data, '--run_mode=import_samples')
  refused(ended, 2, 'IMPORTED_SAMPLES')


def test_another_import_branches_without_growing_again(
  program, base, run, tmp_path
):
  (tmp_path / 'a.tsv').write_text('satz 1\tline 1\n')
  flags = (f'--gin.IMPORTED_SAMPLES={tmp_path}/a.tsv',)
  ended = program(run, base.data, '--run_mode=import_samples', *flags)
  assert (ended.code, ended.errors) == (0, [])
  before = committed(run)
  # What was trained without it is not mixed with it.
  ended = program(run, base.data, *flags)
  refused(
    *(ended, 2, 'stage grow_1/improve_0', 'imported/samples nothing'),
    f'--gin.GROW_FROM={run}',
  )
  (tmp_path / 'a.tsv').write_text('satz 1\tline 2\n')
  ended = program(run, base.data, '--run_mode=import_samples', *flags)
  refused(
    *(ended, 2, 'stage imported/samples', 'input IMPORTED_SAMPLES'),
    f'--gin.GROW_FROM={run}',
  )
  (tmp_path / 'a.tsv').unlink()  # A committed stage does without the file.
  ended = program(run, base.data, '--run_mode=import_samples', *flags)
  assert (ended.code, ended.errors) == (0, [])
  assert before.items() <= committed(run).items()


# --- The disk ---------------------------------------------------------------


@pytest.mark.parametrize('where', ['data/train.de/run', '/proc/run'])
def test_a_folder_that_cannot_be_made(program, data, tmp_path, where):
  run = tmp_path / where
  ended = program(run, data)
  refused(ended, 8, 'StorageError: cannot write', str(run))


@pytest.mark.parametrize(
  'full, stage',
  [
    (r'/data/train/', 'data'),
    (r'/supervised/\.work/checkpoints/', 'supervised'),
    (r'/grow_1/samples/.*part-00001', 'grow_1/samples'),
    (r'/grow_1/reward/.*part-00000', 'grow_1/reward'),
    (r'/improve_1/\.work/rows/', 'grow_1/improve_1'),
    (r'/improve_1/.*stage\.json', 'grow_1/improve_1'),
  ],
)
def test_a_full_disk_loses_nothing_and_the_same_command_goes_on(
  program, base, run, full, stage
):
  back_to(run, stage)
  before = committed(run)
  ended = program(run, base.data, full=full)
  refused(ended, 8, 'StorageError', str(run), 'free s')
  assert before.items() <= committed(run).items()
  assert not (run / stage / 'stage.json').exists()
  assert not [path for path in run.rglob('*.tmp-*') if 'part' in path.name]
  ended = program(run, base.data)
  assert (ended.code, ended.errors) == (0, []), ended.stderr
  assert (run / stage / 'stage.json').exists()


@pytest.fixture
def small_disk(tmp_path):
  """A disk of 256 kB, where the machine lets us make one."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', str(folder)]
  made = subprocess.run(mount, capture_output=True)
  if made.returncode:
    pytest.skip('only root can mount a small disk')
  yield folder
  subprocess.run(['umount', '--lazy', str(folder)], check=True)


def test_a_disk_that_is_really_full(program, data, small_disk):
  run = small_disk / 'run'
  ended = program(run, data)
  refused(ended, 8, 'StorageError', str(run))
  before = committed(run)
  assert before
  remount = ['mount', '-o', 'remount,size=64m', str(small_disk)]
  subprocess.run(remount, check=True)
  ended = program(run, data)
  assert (ended.code, ended.errors) == (0, []), ended.stderr
  assert before.items() <= committed(run).items()


# --- What was committed has been altered ------------------------------------


def truncate(path):
  path.write_bytes(path.read_bytes()[:-10])


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


@pytest.mark.parametrize('spoil', [truncate, flip, pathlib.Path.unlink])
@pytest.mark.parametrize(
  'file, without',
  [
    ('grow_1/samples/part-00000.parquet', ['grow_1/scores', 'grow_1/reward']),
    ('grow_1/reward/part-00001.parquet', ['grow_1/improve_1']),
    ('data/select/part-00000.parquet', ['grow_1/improve_1']),
    ('grow_1/improve_0/params/checkpoint.json', ['grow_1/improve_1']),
  ],
)
def test_a_committed_file_that_was_altered(
  program, base, run, spoil, file, without
):
  back_to(run, *without)
  spoil(run / file)
  before = committed(run)
  ended = program(run, base.data)
  refused(ended, 4, 'CorruptStateError', re.escape(str(run / file)), 'delete')
  assert committed(run) == before


def test_a_part_of_an_unfinished_stage_that_was_altered(program, base, run):
  back_to(run, 'grow_1/samples')
  ended = program(run, base.data, full=r'/grow_1/samples/.*part-00001')
  assert ended.code == 8
  part = run / 'grow_1/samples/part-00000.parquet'
  truncate(part)
  ended = program(run, base.data)
  refused(ended, 4, re.escape(str(part)), 'delete that file')
  part.unlink()
  assert program(run, base.data).code == 0


def test_a_manifest_that_was_altered(program, base, run):
  manifest = run / 'grow_1/samples/stage.json'
  content = json.loads(manifest.read_text())
  content['config']['SEED'] = 1
  manifest.write_text(json.dumps(content))
  refused(program(run, base.data), 4, re.escape(str(manifest)), 'altered')
  manifest.write_text('{')
  refused(program(run, base.data), 4, re.escape(str(manifest)), 'JSON')


# --- Checkpoints and models -------------------------------------------------


@pytest.mark.parametrize(
  'binding, message',
  [
    ('t5.T5Config.emb_dim=16', r'has shape \(8,\), not \(16,\)'),
    ('t5.T5Config.vocab_size=512', r'has shape \(384, 8\), not \(512, 8\)'),
    ('t5.T5Config.num_decoder_layers=2', r'decoder/layers_1/\S+ is missing'),
  ],
)
def test_a_checkpoint_of_another_model(
  program, base, tmp_path, binding, message
):
  checkpoint = base.run / 'supervised/params'
  before = committed(base.run)
  ended = program(
    *(tmp_path / 'run', base.data, '--run_mode=supervised'),
    *(f'--gin.INITIAL_CHECKPOINT_PATH={checkpoint}', f'--gin.{binding}'),
  )
  refused(ended, 2, 'ConfigurationError', str(checkpoint), message)
  assert committed(base.run) == before


def test_a_checkpoint_that_is_not_there(program, base, tmp_path):
  ended = program(
    *(tmp_path / 'run', base.data, '--run_mode=supervised'),
    f'--gin.INITIAL_CHECKPOINT_PATH={tmp_path}/nosuch',
  )
  refused(ended, 2, 'INITIAL_CHECKPOINT_PATH', 'nosuch')


def test_a_checkpoint_that_was_altered(program, base, run, tmp_path):
  checkpoint = run / 'supervised/params'
  largest = max(
    (path for path in checkpoint.rglob('*') if path.is_file()),
    key=lambda path: path.stat().st_size,
  )
  flip(largest)
  ended = program(
    *(tmp_path / 'new', base.data, '--run_mode=supervised'),
    f'--gin.INITIAL_CHECKPOINT_PATH={checkpoint}',
  )
  refused(ended, 4, re.escape(str(largest)))


def test_a_tokenizer_that_is_larger_than_the_models_vocabulary(
  program, base, tmp_path
):
  ended = program(
    *(tmp_path / 'run', base.data, '--run_mode=supervised'),
    '--gin.t5.T5Config.vocab_size=128',
  )
  refused(ended, 2, r'T5Config\.vocab_size = 128 .* 259 ids; raise it')


def test_a_tokenizer_that_ends_texts_as_the_model_does_not(
  program, base, tmp_path
):
  ended = program(
    *(tmp_path / 'run', base.data, '--run_mode=supervised'),
    '--gin.t5.T5Config.eos_id=2',
  )
  refused(ended, 2, r'T5Config\.eos_id = 2 is not the .* 1: bind')


# --- Training and rewards ---------------------------------------------------


def test_training_that_diverges(program, base, tmp_path):
  run = tmp_path / 'run'
  ended = program(
    *(run, base.data, '--run_mode=supervised', '--gin.LEARNING_RATE=1e38'),
    '--gin.bc/optimizer.Optimizer.clip_norm=0.0',
  )
  refused(ended, 6, 'NonFiniteError: supervised, update 1', 'LEARNING_RATE')
  # The mend that it names works.
  ended = program(run, base.data, '--run_mode=supervised')
  refused(ended, 2, 'learning_rate', f'delete {run}/supervised')
  shutil.rmtree(run / 'supervised')
  ended = program(run, base.data, '--run_mode=supervised')
  assert (ended.code, ended.errors) == (0, [])


@pytest.mark.parametrize(
  'fault, message',
  [
    (
      'nan',
      r"'faulty' gave nan for row \d+ \(source .*: scores must lie in \[0",
    ),
    ('range', r"'faulty' gave 1\.5 for row \d+ \(source .*: .* mend"),
    ('count', r"'faulty' gave scores of shape .* for \d+ rows"),
    ('raise', r"'faulty' raised ConnectionError: the server is away.*mend"),
  ],
)
def test_a_reward_that_fails(program, base, run, fault, message):
  back_to(run, 'grow_1/scores', 'grow_1/reward')
  before = committed(run)
  ended = program(run, base.data, fault=fault)
  refused(ended, 5, 'RewardError', message)
  assert before.items() <= committed(run).items()
  back_to(run, 'grow_1/improve_1')
  ended = program(run, base.data)  # The reward works again.
  assert (ended.code, ended.errors) == (0, []), ended.stderr


def test_a_reward_that_fails_in_the_midst_of_training(program, base, run):
  back_to(run, 'grow_1/improve_1')
  before = committed(run)
  refused(program(run, base.data, fault='nan'), 5, "'faulty' gave nan")
  assert before.items() <= committed(run).items()


def test_a_filter_that_no_row_passes(program, base, run):
  before = committed(run)
  shutil.rmtree(run / 'grow_1/improve_1')
  ended = program(run, base.data, '--gin.THRESHOLDS=(0.9,)')
  refused(ended, 3, 'DataError', 'R > 0.9', 'THRESHOLDS')
  kept = committed(run)
  assert kept.items() <= before.items()
  # Nothing is left that another threshold would have to be deleted for.
  ended = program(run, base.data, '--gin.THRESHOLDS=(0.05,)')
  assert (ended.code, ended.errors) == (0, []), ended.stderr


def test_thresholds_that_do_not_rise_above_the_mean(program, base, run):
  shutil.rmtree(run / 'grow_1/improve_1')
  flags = ('--gin.improve.Improve.allow_tau_below_mean=False',)
  ended = program(
    *(run, base.data, '--stage=grow_1/improve_1', '--gin.THRESHOLDS=(0.1,)'),
    *flags,
  )
  refused(ended, 2, r'tau_1 = 0\.1 is not above V')


# --- Translate --------------------------------------------------------------


def test_text_that_cannot_be_translated(program, base, tmp_path):
  translate = (base.run, base.data, '--run_mode=translate')
  (tmp_path / 'bad.txt').write_bytes(b'gut\nschlecht \xff\n')
  ended = program(*translate, f'--input={tmp_path}/bad.txt')
  refused(ended, 3, r'bad\.txt:2: .* no UTF-8')
  ended = program(*translate, f'--input={tmp_path}/nosuch.txt')
  refused(ended, 3, r'nosuch\.txt: no such file')
  (tmp_path / 'good.txt').write_text('gut\n')
  ended = program(
    *(*translate, f'--input={tmp_path}/good.txt'),
    f'--output={tmp_path}/good.txt/out',
  )
  refused(ended, 8, r'cannot write .*good\.txt/out')
