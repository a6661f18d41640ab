"""Reading Hugging Face folders: what is taken, and what is refused."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from foreign import (
  flat,
  hugging_face_config,
  hugging_face_tensors,
  random_params,
  safetensors,
)

from rest_jax import errors, fingerprints
from rest_jax.checkpoint import formats, huggingface, names
from rest_jax.models.config import T5Config
from rest_jax.policy import Policy
from rest_jax.sharding import AxisRules, Layout

TINY = T5Config(
  vocab_size=24,
  emb_dim=8,
  num_heads=2,
  num_encoder_layers=2,
  num_decoder_layers=1,
  head_dim=4,
  mlp_dim=12,
  relpos_num_buckets=32,
)
T5_1_0 = T5Config(
  vocab_size=24,
  emb_dim=8,
  num_heads=2,
  num_encoder_layers=1,
  num_decoder_layers=2,
  head_dim=4,
  mlp_dim=12,
  mlp_activations=('relu',),
  logits_via_embedding=True,
)


@pytest.fixture(scope='module')
def policy():
  return Policy(TINY, Layout(data=1))


@pytest.fixture(scope='module')
def params(policy):
  return random_params(policy)


@pytest.fixture
def folder(tmp_path, params):
  """A folder of one file, as save_pretrained leaves it."""
  write(tmp_path, hugging_face_tensors(params))
  return tmp_path


def write(folder, tensors, config=TINY, **others):
  (folder / 'config.json').write_text(
    json.dumps(hugging_face_config(config, **others))
  )
  safetensors(folder / 'model.safetensors', tensors)


def write_in_two(folder, tensors):
  """The same in two files and their index."""
  (folder / 'model.safetensors').unlink(missing_ok=True)
  files = {}
  for number in (0, 1):
    part = {k: tensors[k] for k in sorted(tensors)[number::2]}
    name = f'model-0000{number + 1}-of-00002.safetensors'
    safetensors(folder / name, part)
    files |= dict.fromkeys(part, name)
  (folder / 'model.safetensors.index.json').write_text(
    json.dumps({'metadata': {}, 'weight_map': files})
  )


def assert_same(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_every_name_of_ours_has_one_of_theirs_and_back():
  for config in (TINY, T5_1_0, T5Config(24, relpos_per_layer=True)):
    for ours in flat(random_names(config)):
      theirs, _ = names.to_huggingface(ours)
      back = names.from_huggingface(theirs, config.relpos_per_layer)
      assert back == ours


def random_names(config):
  return jax.tree.map(
    lambda leaf: np.zeros(()), Policy(config, Layout(data=1)).abstract_params()
  )


def test_a_folder_comes_back_bit_for_bit(folder, policy, params):
  assert huggingface.read_config(folder) == TINY
  assert_same(
    huggingface.restore_params(folder, policy.placed_params()), params
  )


def test_hidden_files_are_no_part_of_a_checkpoint(folder):
  found = formats.find(str(folder), 'INITIAL_CHECKPOINT_PATH')
  before = formats.fingerprint(found)
  (folder / '.git').mkdir()
  (folder / '.git/index').write_text('read')
  assert formats.fingerprint(found) == before
  # A stage of before that counted them is still of this checkpoint.
  path, binding = str(folder), 'INITIAL_CHECKPOINT_PATH'
  older = formats.fingerprint(found, hidden=True)
  assert older != before
  assert fingerprints._of_checkpoint(path, binding, older) == older
  assert fingerprints._of_checkpoint(path, binding, 'another') == before
  (folder / 'config.json').write_text('{}')
  assert formats.fingerprint(found) != before


def test_so_do_several_files(folder, policy, params):
  write_in_two(folder, hugging_face_tensors(params))
  assert huggingface.read_config(folder) == TINY
  assert_same(
    huggingface.restore_params(folder, policy.placed_params()), params
  )


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_half_precision_becomes_float32(folder, policy, params, dtype):
  tensors = hugging_face_tensors(params)
  write(folder, {k: v.astype(dtype) for k, v in tensors.items()})
  restored = huggingface.restore_params(folder, policy.placed_params())
  expected = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), params)
  assert_same(restored, expected)


def test_shards_are_read_where_they_lie(folder, params):
  rules = AxisRules(embed='data')
  sharded = Policy(TINY, Layout(data=2, model=2, rules=rules))
  restored = huggingface.restore_params(folder, sharded.placed_params())
  assert_same(restored, params)
  shardings = jax.tree.map(lambda x: x.sharding, restored)
  assert shardings == sharded.param_shardings()


def test_a_tied_model_of_old_has_copies_of_its_embedding(tmp_path):
  policy = Policy(T5_1_0, Layout(data=1))
  params = random_params(policy)
  tensors = hugging_face_tensors(params)
  shared = tensors['shared.weight']
  copies = dict.fromkeys(
    (*names.EMBEDDING_COPIES, 'lm_head.weight'), shared
  ) | dict.fromkeys(names.IGNORED, np.zeros((32, 2), np.float32))
  write(tmp_path, tensors | copies, T5_1_0)
  assert huggingface.read_config(tmp_path) == T5_1_0
  assert_same(
    huggingface.restore_params(tmp_path, policy.placed_params()), params
  )
  # Without `shared.weight` the copy is the embedding.
  del tensors['shared.weight']
  write(tmp_path, tensors | {names.EMBEDDING_COPIES[0]: shared}, T5_1_0)
  assert_same(
    huggingface.restore_params(tmp_path, policy.placed_params()), params
  )


def test_a_copy_that_differs_is_refused(folder, params):
  tensors = hugging_face_tensors(params)
  other = tensors['shared.weight'] + 1
  write(folder, tensors | {'encoder.embed_tokens.weight': other})
  with pytest.raises(errors.DataError, match=r'encoder\.embed_tokens\.weight'):
    huggingface.read_config(folder)


def test_the_file_tells_untied_whatever_the_config_says(folder, params):
  write(folder, hugging_face_tensors(params), tie_word_embeddings=True)
  assert not huggingface.read_config(folder).logits_via_embedding
  tensors = hugging_face_tensors(params)
  del tensors['lm_head.weight']
  write(folder, tensors, tie_word_embeddings=True)
  assert huggingface.read_config(folder).logits_via_embedding
  write(folder, tensors, tie_word_embeddings=False)
  with pytest.raises(errors.DataError, match='no file holds lm_head'):
    huggingface.read_config(folder)


@pytest.mark.parametrize(
  'said',
  [
    {'model_type': 't5', 'scale_decoder_outputs': False},
    {'model_type': 'mt5', 'transformers_version': '5.9.0'},
  ],
  ids=['t5', 'mt5'],
)
def test_what_transformers_5_has_tied_is_not_scaled(
  folder, policy, params, said
):
  tensors = hugging_face_tensors(params)
  del tensors['lm_head.weight']
  write(folder, tensors, **said, tie_word_embeddings=True)
  assert huggingface.read_config(folder) == TINY
  restored = huggingface.restore_params(folder, policy.placed_params())
  embedding = params['token_embedder']['embedding']
  expected = params | {
    'decoder': params['decoder'] | {'logits_dense': {'kernel': embedding.T}}
  }
  assert_same(restored, expected)


def test_what_transformers_5_scales_is_tied(tmp_path):
  policy = Policy(T5_1_0, Layout(data=1))
  tensors = hugging_face_tensors(random_params(policy))
  said = {'scale_decoder_outputs': True, 'transformers_version': '5.9.0'}
  write(tmp_path, tensors, T5_1_0, **said)
  assert huggingface.read_config(tmp_path) == T5_1_0


def test_a_rewards_read_out_is_a_row_of_the_output(folder, policy, params):
  score, abstract = jax.tree.map(lambda x: x, (params, policy.placed_params()))
  logits = score['decoder'].pop('logits_dense')['kernel']
  score['decoder']['score_dense'] = {'kernel': logits[:, 7:8]}
  kernel = abstract['decoder'].pop('logits_dense')['kernel']
  abstract['decoder']['score_dense'] = {
    'kernel': jax.ShapeDtypeStruct((8, 1), np.float32, sharding=kernel.sharding)
  }
  restored = huggingface.restore_params(folder, abstract, score_id=7)
  assert_same(restored, score)
  with pytest.raises(errors.ConfigurationError, match='output 24 of 24'):
    huggingface.restore_params(folder, abstract, score_id=24)
  # The config may tell the id instead.
  write(folder, hugging_face_tensors(params), score_token_id=7)
  assert_same(huggingface.restore_params(folder, abstract), score)


def test_all_that_does_not_fit_is_listed(folder, policy, params):
  tensors = hugging_face_tensors(params)
  del tensors['encoder.final_layer_norm.weight']
  tensors['encoder.block.7.layer.9.odd'] = np.zeros(3, np.float32)
  tensors['shared.weight'] = tensors['shared.weight'][:20]
  write(folder, tensors)
  with pytest.raises(errors.ConfigurationError) as caught:
    huggingface.restore_params(
      folder, policy.placed_params(), tokenizer_size=22
    )
  for phrase in (
    str(folder),
    'encoder/encoder_norm/scale is missing',
    'encoder.block.7.layer.9.odd is unknown',
    'token_embedder/embedding has shape (20, 8), not (24, 8)',
    '20 rows for the 22 ids of the tokenizer',
  ):
    assert phrase in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'changed, message',
  [
    ({'model_type': 'bart'}, "model_type = 'bart'"),
    ({'feed_forward_proj': 'gelu'}, "feed_forward_proj = 'gelu'"),
    ({'layer_norm_epsilon': 1e-5}, 'layer_norm_epsilon'),
    ({'decoder_start_token_id': 3}, 'decoder_start_token_id'),
  ],
)
def test_what_rest_jax_has_not_is_refused(folder, params, changed, message):
  write(folder, hugging_face_tensors(params), **changed)
  with pytest.raises(errors.ConfigurationError, match=message):
    huggingface.read_config(folder)


def test_pickled_weights_are_refused_with_the_mend(folder):
  (folder / 'model.safetensors').rename(folder / 'pytorch_model.bin')
  assert huggingface.is_checkpoint(folder)
  with pytest.raises(errors.ConfigurationError, match='to_safetensors'):
    huggingface.read_config(folder)


@pytest.mark.parametrize(
  'name', ['../a.safetensors', '/tmp/a.safetensors', 'x/../../a', '..', 'a\\b']
)
def test_an_index_that_leaves_its_folder_is_refused(folder, params, name):
  write_in_two(folder, hugging_face_tensors(params))
  index = folder / 'model.safetensors.index.json'
  content = json.loads(index.read_text())
  content['weight_map']['shared.weight'] = name
  index.write_text(json.dumps(content))
  with pytest.raises(errors.DataError, match='not a file of its folder'):
    huggingface.read_config(folder)


@pytest.mark.parametrize('kept', [4, 60, -1])
def test_a_truncated_file_is_named(folder, kept):
  path = folder / 'model.safetensors'
  path.write_bytes(path.read_bytes()[:kept])
  with pytest.raises(errors.DataError, match=r'model\.safetensors'):
    huggingface.read_config(folder)


def test_a_lost_file_is_named(folder, params):
  write_in_two(folder, hugging_face_tensors(params))
  (folder / 'model-00002-of-00002.safetensors').unlink()
  with pytest.raises(errors.DataError, match='00002-of-00002'):
    huggingface.read_config(folder)


def test_a_header_that_lies_about_its_sizes_is_refused(folder):
  path = folder / 'model.safetensors'
  data = path.read_bytes()
  assert b'"shape": [24, 8]' in data
  path.write_bytes(data.replace(b'"shape": [24, 8]', b'"shape": [24, 9]'))
  with pytest.raises(errors.DataError, match=r'model\.safetensors'):
    huggingface.read_config(folder)
