"""The ids of checkpoints' tokenizers are those of their origin.

`goldens/tokenizer_*` hold what transformers 4.57.6 gives for tiny models
(goldens/make_tokenizers.py); where transformers is installed, it is asked anew.
"""

import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys

import pytest
import running
from etils import epath

from rest_jax import errors
from rest_jax.checkpoint import tokenizer_export
from rest_jax.data import origin_tokenizer, prepare, tokenizer

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'
NAMES = ('t5', 'mt5', 'madlad', 'byt5')


@pytest.fixture(scope='module', params=NAMES)
def golden(request):
  folder = GOLDENS / f'tokenizer_{request.param}'
  expected = json.loads((folder / 'expected.json').read_text())
  return origin_tokenizer.read(folder), expected


@pytest.fixture
def t5(tmp_path):
  """A folder with a T5's model, and what its tokenizer_config.json says."""
  shutil.copy(GOLDENS / 'tokenizer_t5/spiece.model', tmp_path)

  def write(name=origin_tokenizer.CONFIG, **settings):
    (tmp_path / name).write_text(json.dumps(settings))
    return tmp_path

  return write


def test_every_id_is_the_origins(golden):
  made, expected = golden
  assert made.size == expected['size']
  assert made.eos_id == expected['eos_id']
  assert made.unk_id == expected['unk_id']
  for text, ids in expected['ids'].items():
    assert [*made.encode(text), made.eos_id] == ids, text


def test_special_tokens_in_a_text_are_text(golden):
  """Here transformers differs from SentencePiece, seqio and ours."""
  made, expected = golden
  assert expected['differs']
  for text, ids in expected['differs'].items():
    assert [*made.encode(text), made.eos_id] != ids, text
    assert made.eos_id not in made.encode(text)


def test_texts_come_back_and_stop_at_eos(golden):
  made, expected = golden
  text = 'Das Haus steht am Fluss.'
  ids = expected['ids'][text]
  assert made.decode([*ids, *ids]) == text


def test_a_run_keeps_them_whole(golden, tmp_path):
  made, _ = golden
  text = 'a <extra_id_0> b'
  made.save(tmp_path)
  loaded = tokenizer.load_tokenizer(tmp_path)
  assert loaded.fingerprint == made.fingerprint
  assert loaded.size == made.size
  assert loaded.encode(text) == made.encode(text)


def test_an_export_brings_them_back(golden, tmp_path):
  made, expected = golden
  made.save(tmp_path)
  tokenizer_export.write_huggingface(tmp_path, made)
  # transformers would take ours for a fast tokenizer.
  assert not (tmp_path / tokenizer.SETTINGS_FILE).exists()
  for read in (origin_tokenizer.read, tokenizer_export.load):
    found = read(tmp_path)
    assert found.fingerprint == made.fingerprint
    assert found.size == expected['size']


@pytest.mark.skipif(
  importlib.util.find_spec('transformers') is None,
  reason='transformers is not installed',
)
def test_transformers_agrees_live(tmp_path):
  """With the goldens as they are, and with what we export of them."""
  asked, ours = [], []
  for name in NAMES:
    folder = GOLDENS / f'tokenizer_{name}'
    made = origin_tokenizer.read(folder)
    export = tmp_path / name
    export.mkdir()
    tokenizer_export.write_huggingface(export, made)
    expected = json.loads((folder / 'expected.json').read_text())
    texts = [*expected['ids'], *TEXTS]
    for at in (folder, export):
      asked.append({'folder': str(at), 'texts': texts})
      ours.append(
        {
          'size': made.size,
          'eos_id': made.eos_id,
          'unk_id': made.unk_id,
          'ids': [[*made.encode(text), made.eos_id] for text in texts],
        }
      )
  script = GOLDENS / 'make_tokenizers.py'
  peer = subprocess.run(
    [sys.executable, str(script), '--ask'],
    env=running.environment(),
    input=json.dumps(asked),
    capture_output=True,
    text=True,
    check=True,
    timeout=running.SECONDS,
  )
  assert json.loads(peer.stdout.splitlines()[-1]) == ours


TEXTS = (
  'die Flüsse, drei Häuser',
  'river-house!',
  'z' * 40,
  'naïve café, ﬁne',
  '中文 and 日本語',
  '1,234.50 €',
  'tabs\tand\nlines',
  '🙂 ends',
)


def test_the_first_sentinel_is_the_last_id():
  made = origin_tokenizer.read(GOLDENS / 'tokenizer_t5')
  assert made.encode('<extra_id_0>') == [made.size - 1]
  assert made.encode('<extra_id_99>') == [made.size - 100]
  assert made.decode([made.size - 1, *made.encode('the river')]) == 'the river'


def test_sources_have_their_language_tag(tmp_path):
  folder = str(GOLDENS / 'tokenizer_madlad')
  given = prepare.CheckpointTokenizer(folder, source_prefix='<2de> ')
  made = given.make(epath.Path(tmp_path), ())
  expected = json.loads(
    (GOLDENS / 'tokenizer_madlad/expected.json').read_text()
  )
  ids = [made.encode_sources(['the house'])[0], made.encode('the house')]
  assert [*ids[0], 2] == expected['ids']['<2de> the house']
  assert ids[1] != ids[0]
  loaded = tokenizer.load_tokenizer(tmp_path)
  assert loaded.encode_sources(['the house']) == ids[:1]
  assert loaded.fingerprint != origin_tokenizer.read(folder).fingerprint


@pytest.mark.parametrize(
  ('settings', 'sentinels'),
  [
    ({}, 100),
    ({'extra_ids': 0}, 0),
    ({'extra_ids': 7}, 7),
    ({'additional_special_tokens': None}, 100),
    # What is listed counts, whatever else is said.
    (
      {
        'extra_ids': 0,
        'additional_special_tokens': ['<extra_id_0>', '<extra_id_1>'],
      },
      2,
    ),
    ({'additional_special_tokens': [{'content': '<extra_id_0>'}]}, 1),
  ],
)
def test_sentinels_are_counted_as_transformers_does(t5, settings, sentinels):
  plain = tokenizer.SentencePieceTokenizer(t5() / 'spiece.model').size
  assert origin_tokenizer.read(t5(**settings)).size == plain + sentinels


def test_a_silent_folder_has_sentinels_where_there_is_room(t5):
  plain = tokenizer.SentencePieceTokenizer(t5() / 'spiece.model').size
  for rows, sentinels in ((plain + 100, 100), (plain + 99, 0)):
    t5('config.json', vocab_size=rows)
    assert origin_tokenizer.read(t5()).size == plain + sentinels


def test_bytes_are_known_by_the_models_class(tmp_path):
  settings = {'tokenizer_class': 'ByT5Tokenizer', 'vocab_size': 384}
  (tmp_path / 'config.json').write_text(json.dumps(settings))
  assert origin_tokenizer.read(tmp_path).size == 384


@pytest.mark.parametrize(
  ('name', 'settings', 'token'),
  [
    ('added_tokens.json', {'<2xx>': 150}, '<2xx>'),
    (
      'tokenizer_config.json',
      {'additional_special_tokens': ['<2xx>']},
      '<2xx>',
    ),
    (
      'tokenizer_config.json',
      {'added_tokens_decoder': {'150': {'content': '<s>'}}},
      '<s>',
    ),
    # A sentinel, but the first of them is not the last id.
    ('added_tokens.json', {'<extra_id_0>': 50}, '<extra_id_0>'),
  ],
)
def test_ids_of_a_users_own_are_refused(t5, name, settings, token):
  folder = t5(name, **settings)
  with pytest.raises(errors.ConfigurationError) as caught:
    origin_tokenizer.read(folder)
  assert token in str(caught.value)
  assert 'GivenTokenizer' in str(caught.value)
  # They do not hinder a conversion, which copies them as they are.
  assert tokenizer_export.load(folder) is not None


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path):
  (tmp_path / 'tokenizer.json').write_text('{}')
  with pytest.raises(errors.DataError, match=r'spiece\.model'):
    origin_tokenizer.read(tmp_path)
  assert tokenizer_export.load(tmp_path) is None


@pytest.mark.parametrize('content', ['{"extra_ids"', '[1]'])
def test_a_damaged_file_is_named(t5, content):
  (t5() / 'tokenizer_config.json').write_text(content)
  with pytest.raises(errors.DataError, match='tokenizer_config'):
    origin_tokenizer.read(t5('other.json'))


def test_an_export_of_our_own_form_says_what_it_has(tmp_path):
  model = GOLDENS / 'tokenizer_t5/spiece.model'
  plain = tokenizer.SentencePieceTokenizer(model)
  plain.save(tmp_path)
  # There is room for sentinels, and there are none.
  (tmp_path / 'config.json').write_text('{"vocab_size": 32128}')
  assert origin_tokenizer.read(tmp_path).size == plain.size
  made = tokenizer.SentencePieceTokenizer(
    model, extra_ids=3, source_prefix='<2de> '
  )
  made.save(tmp_path)
  found = origin_tokenizer.read(tmp_path)
  assert (found.extra_ids, found.source_prefix) == (3, '<2de> ')
  assert found.size == made.size
  other = origin_tokenizer.read(tmp_path, '<2fr> ')
  assert (other.extra_ids, other.source_prefix) == (3, '<2fr> ')
