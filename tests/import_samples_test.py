"""Others' outputs as rows of D_g, from the file to the training rows."""

import dataclasses
import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

import rest_jax
from rest_jax import (
  annotate,
  errors,
  grown_data,
  import_samples,
  improve,
  run_directory,
)
from rest_jax.context import Context
from rest_jax.data import corpora, prepare, store, tokenizer
from rest_jax.data.packing import Packing
from rest_jax.models.config import T5Config
from rest_jax.progress import Progress
from rest_jax.rewards import base
from rest_jax.schedule import Quantiles
from rest_jax.sharding import Layout
from rest_jax.training import early_stopping, optimizer

DATA = prepare.Data(
  task=corpora.NumeralsTask(),
  tokenizer=prepare.Bytes(),
  max_source_length=8,
  max_target_length=8,
)


@dataclasses.dataclass(frozen=True)
class Length:
  """Scores a candidate by its characters, or by those of its reference."""

  needs_reference: bool = False

  @property
  def info(self):
    return base.RewardInfo(
      'length', '1', 0.0, 10.0, needs_reference=self.needs_reference
    )

  def score(self, sources, candidates, references=None):
    texts = references if self.needs_reference else candidates
    return np.array([len(text) for text in texts], np.float32)


def encode(text):
  return [*tokenizer.ByteTokenizer().encode(text), tokenizer.EOS_ID]


def source(source_id, text, target=None):
  return {
    'source_id': source_id,
    'source': text,
    'target': target,
    'source_tokens': encode(text),
    'target_tokens': None if target is None else encode(target),
  }


@pytest.fixture
def context(tmp_path):
  """A run with committed data: two pairs of D, and a source for Grow."""
  directory = run_directory.RunDirectory(epath.Path(tmp_path / 'run'))
  stage = directory.stage('data')
  stage.begin({}, {})
  train = [source(0, 'eins', 'one'), source(1, 'zwei', 'two')]
  store.write_sources(stage.folder / 'train', train)
  store.write_sources(stage.folder / 'grow', [source(10**10, 'drei')])
  for split in ('select', 'report'):
    store.write_sources(stage.folder / split, [source(7, split, 'x')])
  tokenizer.ByteTokenizer().save(stage.folder)
  stage.commit({}, 0.0)
  return Context(
    directory=directory,
    elsewhere={},
    model=T5Config(384, 8, 1, 1, 1, 8, 8),
    layout=Layout(),
    seed=0,
    progress=Progress(io.StringIO()),
  )


def begun(context, name):
  stage = context.directory.stage(name)
  stage.begin({}, {})
  return stage


def write(path, *records):
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  return str(path)


def score(context, name, model):
  """Runs Annotate on a store of samples."""
  samples = context.stage(f'{name}/samples')
  scores = begun(context, f'{name}/scores/{model.info.name}')
  annotate.run_scores(context, scores, model, samples)
  reward = begun(context, f'{name}/reward')
  annotate.run_reward(reward, model, scores)


def grow(context):
  """A store of D's references and two samples of the third source."""
  rows = [
    (0, -1, 'reference', 'eins', 'one'),
    (1, -1, 'reference', 'zwei', 'two'),
    (10**10, 0, 'policy', 'drei', 'three'),
    (10**10, 1, 'policy', 'drei', 'tree'),
  ]
  ids, indices, origins, sources, targets = (
    list(column) for column in zip(*rows, strict=True)
  )
  table = store.samples_table(
    {
      'source_id': ids,
      'sample_index': indices,
      'grow_step': 1,
      'origin': origins,
      'source': sources,
      'target': targets,
      'target_tokens': [encode(target) for target in targets],
      'finished': [True] * len(rows),
    }
  )
  stage = begun(context, 'grow_1/samples')
  stage.write_part(store.part_name(0), store.samples_part(table))
  stage.commit({}, 0.0)
  score(context, 'grow_1', Length())


def settings(**changed):
  return improve.Improve(
    training=early_stopping.Training(
      optimizer.Optimizer(), Packing(8, 8, rows_per_batch=2)
    ),
    stopping=early_stopping.Stopping(1, 1, 1),
    schedule=Quantiles((0.5,)),
    allow_tau_below_mean=True,
    **changed,
  )


def texts(rows):
  """Training rows as (source, target, whether it is of D)."""
  decode = tokenizer.ByteTokenizer().decode
  return [
    (decode(np.array(source).tolist()), decode(target.tolist()), original)
    for source, target, _, original in rows
  ]


def test_a_file_becomes_a_committed_store(context, tmp_path):
  path = write(
    tmp_path / 'teacher.jsonl',
    {'source': 'vier', 'targets': ['four', 'for'], 'reference': 'four'},
    {'source': 'too long!', 'target': 'lost'},
    {'source': 'select', 'target': 'also too long'},
    {'source': 'fünf', 'target': 'five', 'reference': 'a long reference'},
    {'source': 'report', 'target': 'five'},
  )
  stage = begun(context, 'imported/samples')
  import_samples.run(context, stage, path, DATA)
  assert context.read('imported/samples').manifest['counts'] == {
    'samples': 4,
    'sources': 3,
    'references': 2,
    'too_long': 2,
    'unfinished': 0,
    'in_dev': 1,
  }
  table = store.read_part(store.part_paths(stage.folder)[0])
  first = prepare.FIRST_IMPORTED_ID
  numbers = [first] * 3 + [first + 3] * 2 + [first + 4]
  assert table['source_id'].to_pylist() == numbers
  assert table['sample_index'].to_pylist() == [-1, 0, 1, -1, 0, 0]
  assert set(table['language_pair'].to_pylist()) == {'de-en'}
  assert table['target_tokens'].to_pylist()[1] == encode('four')


def test_parts_hold_whole_sources(context, tmp_path, monkeypatch):
  monkeypatch.setattr(import_samples, '_SOURCES_PER_PART', 2)
  records = [{'source': f's{i}', 'targets': ['a', 'b']} for i in range(5)]
  path = write(tmp_path / 'teacher.jsonl', *records)
  stage = begun(context, 'imported/samples')
  import_samples.run(context, stage, path, DATA)
  parts = store.part_paths(stage.folder)
  rows = [store.read_part(part).num_rows for part in parts]
  assert rows == [4, 4, 2]


def test_improve_trains_on_grown_imported_and_original_rows(context, tmp_path):
  grow(context)
  path = write(
    tmp_path / 'teacher.jsonl',
    {'source': 'vier', 'targets': ['four', 'fourfour'], 'reference': 'FOUR'},
    {'source': 'sechs', 'target': 'six'},
  )
  data = dataclasses.replace(DATA, max_target_length=16)
  import_samples.run(context, begun(context, 'imported/samples'), path, data)
  score(context, 'imported', Length())
  stores = ('grow_1', 'imported')

  grown = grown_data.GrownData(context, settings(), stores)
  # References of D count, those of imported sources do not.
  rewards = np.concatenate(list(grown.rewards())) * 10
  np.testing.assert_allclose(rewards, [3, 3, 5, 4, 4, 8, 3], rtol=1e-6)
  assert grown.mean_reward() == pytest.approx(3.0 / 7)
  everything, filtered = grown.selections(1)
  # The median of the seven is 4, and the filter is strict.
  assert texts(grown.training_rows(filtered)) == [
    ('drei', 'three', False),
    ('vier', 'fourfour', False),
  ]
  (preview,) = grown.previews([filtered])
  assert (preview.samples, preview.kept_samples) == (5, 2)
  assert (preview.sources, preview.starved_sources) == (3, 1)
  assert len(list(grown.training_rows(everything))) == 7

  unfiltered = grown_data.GrownData(
    context, settings(original_data='unfiltered'), stores
  )
  # Without D's references the median of the five is 4 as well.
  assert texts(unfiltered.training_rows(unfiltered.selections(1)[1])) == [
    ('eins', 'one', True),
    ('zwei', 'two', True),
    ('drei', 'three', False),
    ('vier', 'fourfour', False),
  ]


def test_rewards_are_given_the_references_of_the_file(context, tmp_path):
  path = write(
    tmp_path / 'a.jsonl',
    {'source': 'vier', 'targets': ['x', 'y'], 'reference': 'four'},
    {'source': 'fünf', 'target': 'z', 'reference': 'fives'},
  )
  stage = begun(context, 'imported/samples')
  import_samples.run(context, stage, path, DATA)
  score(context, 'imported', Length(needs_reference=True))
  part = store.part_paths(context.stage('imported/reward').folder)[0]
  scores = np.array(store.read_part(part)['score'].to_pylist()) * 10
  np.testing.assert_allclose(scores, [4, 4, 4, 5, 5], rtol=1e-6)


def test_rewards_that_need_references_say_which_source_has_none(
  context, tmp_path
):
  path = write(tmp_path / 'a.jsonl', {'source': 'vier', 'target': 'x'})
  stage = begun(context, 'imported/samples')
  import_samples.run(context, stage, path, DATA)
  with pytest.raises(errors.RewardError, match=r"'vier'.* has none"):
    score(context, 'imported', Length(needs_reference=True))


TESTING = pathlib.Path(__file__).parent / 'testing'


def main(folder, *arguments):
  """Runs the real program on the tests' text files."""
  environment = dict(os.environ, JAX_PLATFORMS='cpu')
  environment.pop('XLA_FLAGS', None)  # One device.
  root = pathlib.Path(rest_jax.__file__).parents[1]
  environment['PYTHONPATH'] = f'{root}{os.pathsep}{TESTING}'
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'rest_jax.main'),
      f'--gin_file={TESTING / "faulty.gin"}',
      f'--gin.MODEL_DIR={folder}/run',
      f'--gin.DATA_DIR={folder}',
      f'--gin.IMPORTED_SAMPLES={folder}/teacher.tsv',
      '--gin.GROW_SPLIT=mono',
      '--gin.ORIGINAL_DATA=filtered',
      *arguments,
    ],
    env=environment,
    capture_output=True,
    text=True,
    timeout=500,
  )
  assert done.returncode == 0, done.stderr
  return done


def counts(folder, stage):
  manifest = folder / 'run' / stage / 'stage.json'
  return json.loads(manifest.read_text())['counts']


@pytest.mark.slow
def test_a_run_with_a_teachers_outputs_and_sources_without_references(tmp_path):
  for name, rows in (('train', 24), ('dev', 8)):
    for language in ('de', 'en'):
      lines = ''.join(f'{language} {i}\n' for i in range(100, 100 + rows))
      (tmp_path / f'{name}.{language}').write_text(lines)
  (tmp_path / 'mono.de').write_text(''.join(f'm {i}\n' for i in range(20)))
  # The reward of the tests likes an even number of letters.
  (tmp_path / 'teacher.tsv').write_text('x\teven\nx\todd\ny\tsix678\n')

  main(tmp_path, '--run_mode=import_samples')
  made = {
    str(path.parent.relative_to(tmp_path / 'run'))
    for path in tmp_path.rglob('stage.json')
  }
  assert made == {'data', 'imported/samples'}

  main(tmp_path)
  grown = counts(tmp_path, 'grow_1/samples')
  assert (grown['samples'], grown['references']) == (40, 24)
  assert counts(tmp_path, 'imported/reward')['rows'] == 3
  everything, filtered = (
    counts(tmp_path, f'grow_1/improve_{i}') for i in range(2)
  )
  assert everything['references'] == filtered['references'] == 24
  assert everything['kept_samples'] == grown['finished'] + 3
  policys = store.read_row_groups(tmp_path / 'run/grow_1/samples')
  lengths = [
    len(row['target'])
    for table in policys
    for row in table.to_pylist()
    if row['origin'] == 'policy' and row['finished']
  ]
  assert filtered['kept_samples'] == 2 + sum(n % 2 == 0 for n in lengths)

  shown = main(tmp_path, '--run_mode=preview').stdout
  assert f' {everything["kept_samples"]} ' in shown
  assert f' {filtered["kept_samples"]} ' in shown
