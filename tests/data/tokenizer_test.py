import sys

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_jax import errors
from rest_jax.data import numerals, tokenizer

TEXTS = [
  side
  for row in numerals.generate('train', 200, seed=0)
  for side in (row['source'], row['target'])
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('tokenizer')


@pytest.fixture(scope='module')
def trained(folder):
  path = folder / tokenizer.MODEL_FILE
  return tokenizer.train_sentencepiece(TEXTS, path, 120)


def test_training_text_survives_the_way_there_and_back(trained):
  assert trained.size == 120
  encoded = trained.encode_batch(TEXTS)
  for text, ids in zip(TEXTS, encoded, strict=True):
    assert ids == trained.encode(text)
    assert trained.decode(ids) == text
    assert min(ids) > tokenizer.UNK_ID
    assert max(ids) < trained.size


def test_decoding_stops_at_eos_and_ignores_what_is_no_id(trained):
  ids = trained.encode('forty-two')
  assert trained.decode([*ids, 1, *ids]) == 'forty-two'
  assert trained.decode([0, *ids, 120, 10_000, -1]) == 'forty-two'
  assert trained.decode([1, *ids]) == ''
  assert trained.decode([]) == ''


def test_the_same_texts_give_the_same_model(trained, tmp_path):
  again = tokenizer.train_sentencepiece(TEXTS, tmp_path / 'other.model', 120)
  assert again.fingerprint == trained.fingerprint
  other = tokenizer.train_sentencepiece(TEXTS[:200], tmp_path / 'm', 120)
  assert other.fingerprint != trained.fingerprint


def test_a_long_corpus_is_sampled_the_same_every_time(tmp_path):
  models = [
    tokenizer.train_sentencepiece(
      iter(TEXTS), tmp_path / f'{i}.model', 100, max_sentences=150
    )
    for i in range(2)
  ]
  assert models[0].fingerprint == models[1].fingerprint
  first = tokenizer.train_sentencepiece(TEXTS[:150], tmp_path / 'f', 100)
  assert models[0].fingerprint != first.fingerprint


def test_byte_fallback_knows_every_character(tmp_path):
  plain = tokenizer.train_sentencepiece(TEXTS, tmp_path / 'a', 200)
  fallback = tokenizer.train_sentencepiece(
    TEXTS, tmp_path / 'b', 400, byte_fallback=True
  )
  assert tokenizer.UNK_ID in plain.encode('北')
  assert fallback.decode(fallback.encode('北')) == '北'


def test_a_folder_gives_back_its_tokenizer(trained, folder, tmp_path):
  loaded = tokenizer.load_tokenizer(folder)
  assert loaded.fingerprint == trained.fingerprint
  trained.save(tmp_path / 'copy')
  copied = tokenizer.load_tokenizer(tmp_path / 'copy')
  assert copied.encode('drei') == trained.encode('drei')
  tokenizer.ByteTokenizer().save(tmp_path / 'bytes')
  loaded = tokenizer.load_tokenizer(tmp_path / 'bytes')
  assert isinstance(loaded, tokenizer.ByteTokenizer)
  with pytest.raises(errors.DataError, match='run the data stage'):
    tokenizer.load_tokenizer(tmp_path)


@settings(deadline=None)
@given(st.text())
def test_bytes_survive_the_way_there_and_back(text):
  made = tokenizer.ByteTokenizer()
  text = text.encode(errors='ignore').decode()
  ids = made.encode(text)
  assert all(3 <= i < made.size for i in ids)
  assert made.decode([*ids, 1, 5]) == text
  assert made.encode_batch([text, 'a']) == [ids, [100]]


def test_bytes_drop_what_is_no_utf8():
  assert tokenizer.ByteTokenizer().decode([100, 0x80 + 3, 300, 2, 101]) == 'ab'


def test_a_vocabulary_that_does_not_fit_the_text(tmp_path):
  path = tmp_path / 'a.model'
  with pytest.raises(errors.ConfigurationError, match='5000 does not fit'):
    tokenizer.train_sentencepiece(TEXTS, path, 5000)
  with pytest.raises(errors.ConfigurationError, match='10 does not fit'):
    tokenizer.train_sentencepiece(TEXTS, path, 10)
  with pytest.raises(errors.DataError, match='no text to train'):
    tokenizer.train_sentencepiece([], path, 100)
  assert not path.exists()


def test_models_of_other_makes_are_refused(tmp_path):
  with pytest.raises(errors.DataError, match='SentencePiece model'):
    tokenizer.SentencePieceTokenizer(tmp_path / 'none.model')
  (tmp_path / 'junk.model').write_bytes(b'junk')
  with pytest.raises(errors.DataError, match='SentencePiece model'):
    tokenizer.SentencePieceTokenizer(tmp_path / 'junk.model')
  with (tmp_path / 'other.model').open('wb') as file:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(TEXTS),
      model_writer=file,
      vocab_size=100,
      bos_id=0,
      eos_id=1,
      unk_id=2,
    )
  with pytest.raises(errors.ConfigurationError, match=r'\(-1, 1, 2\)'):
    tokenizer.SentencePieceTokenizer(tmp_path / 'other.model')


def test_encoding_needs_neither_tensorflow_nor_jax():
  import subprocess

  code = (
    'import sys; import rest_jax.data.tokenizer, rest_jax.data.numerals;'
    ' import rest_jax.rewards.numerals, rest_jax.rewards.lexical;'
    " print(sorted({'jax', 'tensorflow', 'seqio'} & set(sys.modules)))"
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == '[]'


def test_what_t5_normalises_survives_where_nothing_does(tmp_path):
  texts = ['他来了，好吗？（是）！'] * 30 + ['5½ km² …', 'abc'] * 30
  settings = {'vocab_size': 25, 'character_coverage': 1.0}
  found = {}
  for rule in ('nmt_nfkc', 'identity'):
    made = tokenizer.train_sentencepiece(
      texts, tmp_path / rule, **settings, normalization=rule
    )
    found[rule] = [made.decode(made.encode(text)) for text in texts[:1]]
  assert found == {
    'nmt_nfkc': ['他来了,好吗?(是)!'],
    'identity': ['他来了，好吗？（是）！'],
  }
