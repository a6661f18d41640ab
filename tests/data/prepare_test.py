"""The data stage, through the real seqio; TensorFlow is imported once."""

import dataclasses
import pathlib

import pytest

from rest_jax import errors
from rest_jax.data import (
  near_duplicates,
  numerals,
  prepare,
  seqio_library,
  splits,
  tasks,
  tokenizer,
)

SMALL = tasks.NumeralsTask(num_train=60, num_grow=40, num_dev=20, num_test=10)
DATA = prepare.Data(
  task=SMALL,
  tokenizer=prepare.TrainedTokenizer(vocab_size=100),
  grow='grow',
  test='test',
)


class Written(dict):
  """A writer that keeps the rows of each purpose."""

  def __call__(self, folder, rows):
    self[pathlib.Path(folder).name] = list(rows)


def run(data, folder):
  written = Written()
  return written, data.prepare(folder, written)


@pytest.fixture(scope='module')
def seqio():
  return seqio_library.import_seqio()


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  return (folder, *run(DATA, folder))


def write_bitext(folder, **files):
  for name, lines in files.items():
    path = folder / name.replace('_', '.')
    path.write_text(''.join(f'{line}\n' for line in lines))


def bitext(folder, **changes):
  return tasks.BitextTask(
    data_dir=str(folder),
    source_language='de',
    target_language='en',
    files={name: f'{name}.{{lang}}' for name in ('train', 'dev', 'mono')},
    **changes,
  )


def test_every_purpose_gets_its_rows(prepared):
  _, written, report = prepared
  assert {name: len(rows) for name, rows in written.items()} == {
    'train': 60,
    'grow': 40,
    'select': 10,
    'report': 10,
    'test': 10,
  }
  for name, rows in written.items():
    assert report['splits'][name]['rows'] == len(rows)
    ids = [row['source_id'] for row in rows]
    assert ids == sorted(set(ids))
    assert {row['language_pair'] for row in rows} == {'de-en'}
    assert {row['domain'] for row in rows} <= set(numerals.KINDS)
  assert all(row['target'] is None for row in written['grow'])
  assert all(row['target_tokens'] is None for row in written['grow'])
  assert report['splits']['train']['with_target'] == 60
  assert report['splits']['grow']['with_target'] == 0


def test_select_and_report_part_the_dev_split(prepared):
  _, written, _ = prepared
  together = written['select'] + written['report']
  first = DATA.first_id('dev')
  numbers = sorted(row['source_id'] for row in together)
  assert numbers == list(range(first, first + 20))
  select, report = (
    {row['source'] for row in written[name]} for name in ('select', 'report')
  )
  assert not select & report


def test_tokens_are_seqios_and_ours(prepared, seqio):
  folder, written, report = prepared
  ours = tokenizer.load_tokenizer(folder)
  theirs = seqio.SentencePieceVocabulary(str(folder / tokenizer.MODEL_FILE))
  assert report['tokenizer'] == {
    'size': theirs.vocab_size,
    'fingerprint': ours.fingerprint,
  }
  for row in written['train'] + written['test']:
    # A character that training lacked is a '⁇' in both.
    for side in ('source', 'target'):
      tokens = row[f'{side}_tokens']
      assert tokens == [*ours.encode(row[side]), 1]
      assert tokens == [*theirs.encode(row[side]), 1]
      assert ours.decode(tokens) == theirs.decode(tokens[:-1])


def test_bytes_are_seqios_and_ours(tmp_path, seqio):
  data = dataclasses.replace(DATA, tokenizer=prepare.Bytes(), test='')
  written, report = run(data, tmp_path)
  made = tokenizer.load_tokenizer(tmp_path)
  assert report['tokenizer']['size'] == seqio.ByteVocabulary().vocab_size
  for row in written['train']:
    assert row['source_tokens'] == [*made.encode(row['source']), 1]
    assert row['source_tokens'][:-1] == list(
      seqio.ByteVocabulary().encode(row['source'])
    )


def test_the_tokenizer_has_seen_the_training_split_alone(prepared, tmp_path):
  texts = [
    side
    for row in SMALL.rows('train')
    for side in (row['source'], row['target'])
  ]
  again = tokenizer.train_sentencepiece(texts, tmp_path / 'again.model', 100)
  assert prepared[2]['tokenizer']['fingerprint'] == again.fingerprint


def test_a_given_tokenizer_is_copied(prepared, tmp_path):
  folder, written, report = prepared
  model = str(folder / tokenizer.MODEL_FILE)
  data = dataclasses.replace(DATA, tokenizer=prepare.GivenTokenizer(model))
  again, copied = run(data, tmp_path)
  assert copied == report
  assert again == written


def test_a_checkpoints_tokenizer_has_sentinels_and_a_prefix(tmp_path):
  goldens = pathlib.Path(__file__).parents[1] / 'goldens'
  write_bitext(
    tmp_path,
    train_de=['das Haus', '<extra_id_0> am Fluss', '北 Haus'],
    train_en=['the house', 'by the river', 'the 京'],
    dev_de=['drei Flüsse', 'zwei Häuser'],
    dev_en=['a', 'b'],
  )
  for name, prefix in (('t5', 'zu: '), ('madlad', '<2de> '), ('byt5', 'x ')):
    given = prepare.CheckpointTokenizer(
      str(goldens / f'tokenizer_{name}'), source_prefix=prefix
    )
    data = prepare.Data(task=bitext(tmp_path), tokenizer=given)
    written, report = run(data, tmp_path / name)
    made = tokenizer.load_tokenizer(tmp_path / name)
    assert report['tokenizer']['size'] == made.size
    for row in written['train']:
      assert not row['source'].startswith(prefix)
      # MADLAD-400's unknown is 0, padding, and so is left out.
      for side, text in (
        ('source', prefix + row['source']),
        ('target', row['target']),
      ):
        ids = [i for i in made.encode(text) if i != 0]
        assert row[f'{side}_tokens'] == [*ids, made.eos_id]
      encoded = made.encode_sources([row['source']])
      assert row['source_tokens'] == [*encoded[0], made.eos_id]
    unknown = report['splits']['train'].get('unknown_tokens', 0)
    assert (unknown > 0) == (name != 'byt5')


def test_grow_as_train_is_written_once(tmp_path):
  for same in ('', 'train'):
    written, _ = run(dataclasses.replace(DATA, grow=same, test=''), tmp_path)
    assert set(written) == {'train', 'select', 'report'}


def test_slices_keep_the_numbers_of_their_rows(tmp_path):
  data = dataclasses.replace(
    DATA, train='train[:50%]', grow='train[50%:]', test='train[3:5]'
  )
  written, _ = run(data, tmp_path)
  ids = {n: [row['source_id'] for row in rows] for n, rows in written.items()}
  assert ids['train'] == list(range(30))
  assert ids['grow'] == list(range(30, 60))
  assert ids['test'] == [3, 4]


def test_over_long_rows_are_skipped_or_truncated_and_counted(
  prepared, tmp_path
):
  whole = {row['source_id']: row for row in prepared[1]['train']}
  limits = {'max_source_length': 20, 'max_target_length': 20}
  fits = [
    id_
    for id_, row in whole.items()
    if len(row['source_tokens']) <= 20 and len(row['target_tokens']) <= 20
  ]
  assert 0 < len(fits) < 60
  assert any(len(row['target_tokens']) > 20 for row in whole.values())
  skipped, report = run(
    dataclasses.replace(DATA, **limits), tmp_path / 'skipped'
  )
  assert [row['source_id'] for row in skipped['train']] == fits
  assert report['splits']['train']['over_long'] == 60 - len(fits)
  truncated, report = run(
    dataclasses.replace(DATA, **limits, over_long='truncate'), tmp_path / 'cut'
  )
  assert report['splits']['train']['over_long'] == 60 - len(fits)
  pieces = tokenizer.load_tokenizer(tmp_path / 'cut')
  for row in truncated['train']:
    for key, limit in (('source_tokens', 20), ('target_tokens', 20)):
      before = whole[row['source_id']][key]
      if len(before) <= limit:
        assert row[key] == before
      else:
        assert row[key] == [*before[: limit - 1], 1]
    # What is trained on is what a reward would judge.
    text = whole[row['source_id']]['target']
    cut = len(whole[row['source_id']]['target_tokens']) > 20
    assert (row['target'] != text) == cut
    assert not cut or row['target'] == pieces.decode(row['target_tokens'])
  for row in truncated['report']:  # To judge by, it is as it was.
    assert row['target'] in {r['target'] for r in prepared[1]['report']}


def test_text_with_documents_empty_lines_and_a_monolingual_split(tmp_path):
  write_bitext(
    tmp_path,
    train_de=['ein Haus', 'zwei Häuser', '', 'ein Baum'],
    train_en=['a house', 'two houses', 'nothing', 'a tree'],
    dev_de=[f'Baum {i}' for i in range(5)] + ['ein Haus'],
    dev_en=[f'tree {i}' for i in range(5)] + ['a house'],
    dev_doc=['one', 'one', 'one', 'two', 'two', 'two'],
    mono_de=['ein Baum', 'drei Bäume'],
  )
  data = prepare.Data(
    task=bitext(
      tmp_path,
      documents={'dev': 'dev.doc'},
      monolingual=('mono',),
      empty='skip',
    ),
    tokenizer=prepare.Bytes(),
    grow='mono',
  )
  written, report = run(data, tmp_path / 'out')
  assert [row['source_id'] for row in written['train']] == [0, 1, 3]
  assert written['train'][1]['source'] == 'zwei Häuser'
  assert report['splits']['train']['empty'] == 1
  # Documents are never cut.
  for name in ('select', 'report'):
    assert len({row['doc_id'] for row in written[name]}) == 1
    assert len(written[name]) == 3
  assert report['splits']['train']['in_dev'] == 1
  assert [row['target'] for row in written['grow']] == [None, None]


def test_tsv_is_read_as_bitext_is(tmp_path):
  (tmp_path / 'train.tsv').write_text('a house\tein Haus\na tree\tein Baum\n')
  task = tasks.TsvTask(
    data_dir=str(tmp_path),
    source_language='de',
    target_language='en',
    files={'train': 'train.tsv'},
    columns=('target', 'source'),
  )
  data = prepare.Data(task=task, tokenizer=prepare.Bytes(), dev='train')
  written, _ = run(data, tmp_path / 'out')
  assert [row['source'] for row in written['train']] == ['ein Haus', 'ein Baum']
  assert written['train'][0]['target'] == 'a house'


@pytest.fixture(scope='module')
def registered(tmp_path_factory, prepared):
  """A user's module that registers a task and a mixture."""
  folder = tmp_path_factory.mktemp('module')
  model = prepared[0] / tokenizer.MODEL_FILE
  (folder / 'my_tasks.py').write_text(f"""
import seqio
import tensorflow as tf

VOCABULARY = seqio.SentencePieceVocabulary({str(model)!r})

def dataset(split, shuffle_files):
  pairs = [('drei', 'three'), ('vier', 'four'), ('elf', ''), ('acht', 'eight')]
  sources, targets = zip(*pairs)
  return tf.data.Dataset.from_tensor_slices(
      {{'inputs': list(sources), 'targets': list(targets),
       'domain': ['small'] * 4}})

def add(name, vocabulary, **features):
  seqio.TaskRegistry.add(
      name,
      source=seqio.FunctionDataSource(dataset, splits=['train', 'dev']),
      preprocessors=[seqio.preprocessors.tokenize,
                     seqio.preprocessors.append_eos],
      output_features={{
          'inputs': seqio.Feature(features.get('inputs', vocabulary)),
          'targets': seqio.Feature(vocabulary)}})

add('my_task', VOCABULARY)
add('my_bytes', seqio.ByteVocabulary(extra_ids=125))
add('my_sentinels', seqio.SentencePieceVocabulary({str(model)!r}, 7))
add('my_two', VOCABULARY, inputs=seqio.ByteVocabulary())
add('my_odd', seqio.PassThroughVocabulary(10))
seqio.MixtureRegistry.add('my_mixture', [('my_task', 1)])
""")
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(folder))
    yield


def own_task(name, module='my_tasks'):
  return prepare.Data(
    task=tasks.SeqioTask(
      mixture_or_task_name=name,
      mixture_or_task_module=module,
      source_language='de',
      target_language='en',
    ),
    train='train[:2]',
    grow='train[50%:]',
  )


def test_a_task_of_the_users(registered, prepared, tmp_path):
  written, report = run(own_task('my_task'), tmp_path)
  ours = tokenizer.load_tokenizer(tmp_path)
  assert report['tokenizer'] == prepared[2]['tokenizer']
  assert [row['source'] for row in written['train']] == ['drei', 'vier']
  assert written['train'][0]['target_tokens'] == [*ours.encode('three'), 1]
  assert written['train'][0]['domain'] == 'small'
  # 'elf' has no target and so is monolingual.
  assert [(r['source_id'], r['target']) for r in written['grow']] == [
    (2, None),
    (3, 'eight'),
  ]
  written, report = run(own_task('my_bytes'), tmp_path / 'bytes')
  assert report['tokenizer']['size'] == 384  # As ByT5's.
  assert written['train'][0]['source_tokens'] == [
    *tokenizer.ByteTokenizer().encode('drei'),
    1,
  ]


def test_a_task_of_the_users_keeps_its_sentinels(registered, prepared, seqio):
  made = tasks.seqio_tokenizer(own_task('my_sentinels').task)
  theirs = seqio.SentencePieceVocabulary(
    str(prepared[0] / 'tokenizer.model'), 7
  )
  assert made.size == theirs.vocab_size
  text = '<extra_id_0> ein Haus <extra_id_6>'
  assert made.encode(text) == list(theirs.encode(text))
  assert made.encode(text)[0] == made.size - 1


def test_a_mixture_of_the_users(registered, tmp_path):
  written, _ = run(own_task('my_mixture'), tmp_path)
  assert [row['source'] for row in written['train']] == ['drei', 'vier']
  assert [row['target'] for row in written['train']] == ['three', 'four']
  # What its tasks say of a row, and texts as they were, are kept.
  assert {row['domain'] for row in written['train']} == {'small'}
  assert {row['doc_id'] for row in written['train']} == {''}


@pytest.mark.parametrize(
  ('name', 'module', 'message'),
  [
    ('my_task', 'no_such_module', 'cannot be imported'),
    ('no_such_task', 'my_tasks', 'is not registered'),
    ('my_two', 'my_tasks', 'two vocabularies'),
    ('my_odd', 'my_tasks', 'PassThroughVocabulary'),
  ],
)
def test_tasks_that_cannot_be_used(registered, tmp_path, name, module, message):
  with pytest.raises(errors.ConfigurationError, match=message):
    run(own_task(name, module), tmp_path)


def test_a_split_that_the_users_task_lacks(registered, tmp_path):
  data = dataclasses.replace(own_task('my_task'), dev='validation')
  with pytest.raises(errors.ConfigurationError, match="'dev', 'train'"):
    run(data, tmp_path)


def test_faults_in_the_text_keep_their_message_through_tensorflow(tmp_path):
  write_bitext(
    tmp_path,
    train_de=['ein Haus', 'zwei'],
    train_en=['a house', ' '],
    dev_de=['a', 'b'],
    dev_en=['a', 'b'],
  )
  data = prepare.Data(task=bitext(tmp_path), tokenizer=prepare.Bytes())
  with pytest.raises(errors.DataError, match=r'train\.en:2: an empty line'):
    run(data, tmp_path / 'out')
  # The next run is not hindered by the one that failed.
  good = dataclasses.replace(data, train='dev')
  assert len(run(good, tmp_path / 'out')[0]['train']) == 2


@pytest.mark.parametrize(
  ('changes', 'error', 'message'),
  [
    ({'over_long': 'cut'}, errors.ConfigurationError, "over_long = 'cut'"),
    ({'max_target_length': 1}, errors.ConfigurationError, 'length = 1'),
    ({'tokenizer': None}, errors.ConfigurationError, 'NumeralsTask'),
    ({'train': 'train[60:]'}, errors.DataError, 'no rows left|no text'),
    ({'train': 'train]'}, errors.ConfigurationError, 'cannot be read'),
    ({'train': 'grow'}, errors.DataError, 'no target'),
    ({'dev': 'dev[:1]'}, errors.DataError, 'at least two'),
    ({'dev': 'valid'}, errors.ConfigurationError, "no split 'valid'"),
    ({'max_source_length': 2}, errors.DataError, 'over long'),
  ],
)
def test_settings_that_do_not_fit(tmp_path, changes, error, message):
  with pytest.raises(error, match=message):
    run(dataclasses.replace(DATA, **changes), tmp_path)


def test_files_that_are_not_declared(tmp_path):
  write_bitext(tmp_path, train_de=['a'], train_en=['a'])
  task = bitext(tmp_path)
  with pytest.raises(errors.ConfigurationError, match=r"no split 'valid'.*dev"):
    task.count('valid')
  one = dataclasses.replace(task, files={'train': 'train.de'})
  with pytest.raises(errors.ConfigurationError, match='one file for two'):
    list(one.rows('train'))
  with pytest.raises(errors.DataError, match=r'dev\.de: no such file'):
    list(task.rows('dev'))


def test_tensorflow_is_kept_off_the_accelerators(seqio):
  import tensorflow as tf

  assert tf.config.get_visible_devices('GPU') == []
  assert tf.config.get_visible_devices('TPU') == []
  part = splits.Slice('dev', 2, 4)
  rows = list(tasks.tokenized(SMALL, part))
  assert [row['source_id'] for row in rows] == [2, 3]
  assert 'rest_jax_numerals' not in seqio.TaskRegistry.names()


def test_five_parts_without_near_repetitions_across_them(tmp_path, seqio):
  del seqio
  words = ['eins', 'zwei', 'drei', 'vier', 'fünf', 'sechs', 'sieben', 'acht']
  words += ['neun', 'zehn', 'elf', 'zwölf']
  lines = [f'{w} {w}a {w}b {w}c' for w in words]
  write_bitext(
    tmp_path,
    train_de=[*lines[:6], f'{lines[8]} x', lines[2]],
    train_en=[f't{i} t{i}u' for i in range(8)],
    dev_de=lines[8:],
    dev_en=[f'd{i}' for i in range(4)],
    mono_de=lines[:1],
  )
  data = prepare.Data(
    task=bitext(tmp_path, monolingual=('mono',)),
    tokenizer=prepare.Bytes(),
    train='train[:3]',
    reward='train[3:5]',
    grow='train[5:]',
    near_duplicates=near_duplicates.NearDuplicates(0.7),
  )
  written, report = run(data, tmp_path / 'out')
  assert {name: len(rows) for name, rows in written.items()} == {
    'select': 2, 'report': 2, 'train': 3, 'reward': 2, 'grow': 1
  }  # fmt: skip
  # One of Grow's nearly repeats a dev row, another one of the training rows.
  assert [row['source_id'] for row in written['grow']] == [5]
  assert [row['source_id'] for row in written['reward']] == [3, 4]
  assert report['splits']['grow']['near_duplicates'] == 2
  assert report['splits']['train']['near_duplicates'] == 0


def test_a_fifth_split_is_numbered_after_imported_sources():
  data = prepare.Data(
    task=SMALL, train='a', grow='b', dev='c', test='d', reward='e'
  )
  ids = [data.first_id(name) for name in 'abcde']
  stride = prepare.SPLIT_STRIDE
  assert ids == [0, stride, 2 * stride, 3 * stride, 5 * stride]
  assert 4 * stride == prepare.FIRST_IMPORTED_ID


def test_targets_that_no_policy_could_write_are_counted(tmp_path):
  write_bitext(
    tmp_path,
    train_de=['ein Haus', 'zwei Häuser', 'leer', 'ein Baum', 'ein Hund'],
    train_en=['a  house', 'two houses…', '\u200b', 'a tree', 'a dog ½'],
    dev_de=[f'Baum {i}' for i in range(4)],
    dev_en=[f'tree {i}' for i in range(4)],
    mono_de=['ein Baum'],
  )
  for rule, rewritten in (('nmt_nfkc', 2), ('identity', 0)):
    data = prepare.Data(
      task=bitext(tmp_path, monolingual=('mono',)),
      tokenizer=prepare.TrainedTokenizer(30, normalization=rule),
      grow='mono',
    )
    written, report = run(data, tmp_path / rule)
    counts = report['splits']['train']
    assert counts['rewritten'] == rewritten
    if rule == 'nmt_nfkc':  # A target of no width has no token but EOS.
      assert [row['source_id'] for row in written['train']] == [0, 1, 3, 4]
      assert counts['empty'] == 1
  with pytest.raises(errors.ConfigurationError, match=r'normalization.*nfd'):
    prepare.TrainedTokenizer(normalization='nfd')
