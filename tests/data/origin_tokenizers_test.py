"""The ids of checkpoints' tokenizers are those of their origin.

`goldens/tokenizer_*` hold what transformers 4.57.6 gives for tiny models
(goldens/make_tokenizers.py).
"""

import json
import pathlib

import pytest
from etils import epath

from rest_jax import errors
from rest_jax.data import prepare, tokenizer

GOLDENS = pathlib.Path(__file__).parents[1] / 'goldens'


@pytest.fixture(params=['t5', 'mt5', 'madlad', 'byt5'])
def golden(request):
  folder = GOLDENS / f'tokenizer_{request.param}'
  expected = json.loads((folder / 'expected.json').read_text())
  return tokenizer.read_hugging_face(folder), expected


def test_every_id_is_the_origins(golden):
  made, expected = golden
  assert made.size == expected['size']
  assert made.eos_id == expected['eos_id']
  for text, ids in expected['ids'].items():
    assert [*made.encode(text), made.eos_id] == ids, text


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


def test_the_first_sentinel_is_the_last_id():
  made = tokenizer.read_hugging_face(GOLDENS / 'tokenizer_t5')
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
  assert loaded.fingerprint != tokenizer.read_hugging_face(folder).fingerprint


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path):
  (tmp_path / 'tokenizer.json').write_text('{}')
  with pytest.raises(errors.DataError, match=r'spiece\.model'):
    tokenizer.read_hugging_face(tmp_path)
