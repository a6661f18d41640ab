"""MetricX against the official code's scores; see goldens/make_metricx.py."""

import dataclasses
import json
import logging
import pathlib
import shutil

import numpy as np
import pytest

from rest_jax import config, errors
from rest_jax.rewards import base, scoring
from rest_jax.rewards.metricx import MetricX23, MetricX24
from rest_jax.rewards.regressor import Buckets

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / 'tests/goldens/metricx'
EXPECTED = json.loads((GOLDEN / 'expected.json').read_text())
SOURCES, CANDIDATES, REFERENCES = map(list, zip(*EXPECTED['rows'], strict=True))
BUCKETS = Buckets(lengths=(48, 128), tokens_per_batch=1024)
CLASSES = {23: MetricX23, 24: MetricX24}


def metric(generation, path=GOLDEN, **settings):
  return CLASSES[generation](
    **{
      'path': str(path),
      'score_token_id': EXPECTED['score_token_id'],
      'max_input_length': EXPECTED['max_input_length'][str(generation)],
      'truncation': 'cut',
      'buckets': BUCKETS,
    }
    | settings
  )


@pytest.fixture(scope='module')
def metricx_24():
  return metric(24)


@pytest.mark.parametrize('generation', [23, 24])
@pytest.mark.parametrize('use_reference', [False, True])
def test_scores_are_the_official_ones(generation, use_reference):
  model = metric(generation, use_reference=use_reference)
  scores = model.score(SOURCES, CANDIDATES, REFERENCES)
  name = f'{generation}{"" if use_reference else "_qe"}'
  assert scores.dtype == np.float32
  np.testing.assert_allclose(
    scores, EXPECTED['scores'][name], rtol=0, atol=1e-3
  )


def test_a_score_depends_on_no_other_row_nor_on_padding(metricx_24):
  everything = metricx_24.score(SOURCES, CANDIDATES)
  for chosen in ([3], [7, 1, 4], list(reversed(range(len(SOURCES))))):
    some = metricx_24.score(
      [SOURCES[i] for i in chosen], [CANDIDATES[i] for i in chosen]
    )
    np.testing.assert_array_equal(some, everything[chosen])
  wider = metric(24, buckets=Buckets((128,), tokens_per_batch=2048))
  np.testing.assert_allclose(
    wider.score(SOURCES, CANDIDATES), everything, rtol=0, atol=1e-3
  )
  assert metricx_24.score([], []).shape == (0,)


def test_bfloat16_is_near(metricx_24):
  exact = metricx_24.score(SOURCES, CANDIDATES)
  half = metric(24, dtype='bfloat16')
  near = half.score(SOURCES, CANDIDATES)
  assert 0 < np.abs(near - exact).max() < 1.5
  assert half._params['token_embedder']['embedding'].dtype == 'bfloat16'


def test_texts_too_long_are_counted_and_get_the_worst_score(caplog):
  model = metric(24, truncation='worst')
  with caplog.at_level(logging.WARNING):
    scores = model.score(SOURCES, CANDIDATES)
  official = np.array(EXPECTED['scores']['24_qe'])
  # The last row alone has more than 89 tokens, by its candidate.
  long = [len(c) > 100 for c in CANDIDATES]
  assert sum(long) == 1
  long = np.array(long)
  np.testing.assert_array_equal(scores[long], 25.0)
  np.testing.assert_allclose(scores[~long], official[~long], atol=1e-3)
  assert model.counts == {'scored': 10, 'too_long': 1}
  assert '1 of 10 inputs are longer than 89 tokens (worst)' in caplog.text
  reward = base.to_unit_interval(scores, model.info)
  np.testing.assert_array_equal(reward[long], 0.0)


def test_the_longest_text_that_fits_is_scored_whole():
  # EOS is counted though the model never sees it.
  row = ['kurz'], ['It is short']
  tokens = len(metric(24)._tokenizer.encode(metric(24).texts(*row, None)[0]))
  fits = metric(24, truncation='worst', max_input_length=tokens + 1)
  misses = metric(24, truncation='worst', max_input_length=tokens)
  assert fits.score(*row)[0] == metric(24).score(*row)[0] < 25
  assert misses.score(*row)[0] == 25


def test_info_tells_what_a_reader_must_know():
  info = MetricX24(str(GOLDEN), score_token_id=7).info
  assert (info.name, info.low, info.high) == ('metricx_24_qe', 0, 25)
  assert not info.higher_is_better and not info.needs_reference
  assert info.trained_on[0] == 'wmt15' and info.trained_on[-1] == 'wmt22'
  info = metric(23, use_reference=True).info
  assert (info.name, info.needs_reference) == ('metricx_23', True)
  assert info.trained_on[-1] == 'wmt21'


def test_the_version_follows_what_a_score_depends_on(tmp_path):
  version = metric(24).info.version
  elsewhere = tmp_path / 'moved'
  shutil.copytree(GOLDEN, elsewhere)
  assert metric(24, elsewhere).info.version == version
  assert config.flatten(metric(24, elsewhere), 'r') == config.flatten(
    metric(24), 'r'
  )
  others = [
    metric(24, score_token_id=8),
    metric(24, dtype='bfloat16'),
    metric(24, truncation='worst'),
    metric(24, max_input_length=100),
    metric(24, use_reference=True),
    metric(24, buckets=Buckets((64, 128), 1024)),
  ]
  versions = {model.info.version for model in others} | {version}
  assert len(versions) == len(others) + 1


def test_only_one_column_of_the_output_layer_is_kept(metricx_24):
  decoder = metricx_24._params['decoder']
  assert decoder['score_dense']['kernel'].shape == (16, 1)
  assert 'logits_dense' not in decoder


def test_it_is_a_reward_model_whose_types_gin_can_check(metricx_24):
  assert isinstance(metricx_24, base.RewardModel)
  config.check_types(metricx_24)
  hash(metricx_24)
  rewards = scoring.rewards(metricx_24, SOURCES, CANDIDATES, None)
  raw = np.array(EXPECTED['scores']['24_qe'])
  np.testing.assert_allclose(rewards, 1 - raw / 25, atol=1e-4)


def copied(tmp_path, *left_out, **changed):
  """The golden's folder without some files and with other settings."""
  folder = tmp_path / 'checkpoint'
  shutil.copytree(GOLDEN, folder)
  for name in left_out:
    for path in folder.glob(name):
      path.unlink()
  settings = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps(settings | changed))
  return folder


def test_pickled_weights_are_refused_with_the_recipe(tmp_path):
  folder = copied(tmp_path, '*.safetensors', '*.index.json')
  (folder / 'pytorch_model.bin').write_bytes(b'\x80\x04never loaded')
  with pytest.raises(
    errors.ConfigurationError, match=r'pickled.*docs/guide/metricx\.md shows'
  ):
    metric(24, folder).score(SOURCES, CANDIDATES)
  assert (ROOT / 'docs/guide/metricx.md').exists()


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({'d_model': 32}, r'not of this model.*\(16, 1\), not \(32, 1\)'),
    ({'num_layers': 3}, 'not of this model.*encoder/layers_2'),
    ({'num_layers': 1}, 'not of this model.*encoder/layers_1'),
    ({'feed_forward_proj': 'relu'}, 'not of this model.*mlp/wi'),
    ({'model_type': 'bert'}, "model_type = 'bert' is none of"),
    ({'architectures': ['MT5Model']}, 'is a MT5Model, and MetricX is an MT5F'),
    ({'tie_word_embeddings': True}, 'is tied, and MetricX is an'),
  ],
)
def test_a_checkpoint_of_another_shape_is_refused(tmp_path, changed, message):
  model = metric(24, copied(tmp_path, **changed))
  with pytest.raises(errors.ConfigurationError, match=message):
    model.score(SOURCES, CANDIDATES)


@pytest.mark.parametrize(
  ('left_out', 'message'),
  [
    ('spiece.model', r'spiece\.model is missing: MetricX is released without'),
    ('model-00002*', r'00002-of-00002\.safetensors is missing'),
    ('*.safetensors*', 'has neither model.safetensors nor model.safetens'),
  ],
)
def test_missing_files_are_named(tmp_path, left_out, message):
  model = metric(24, copied(tmp_path, left_out))
  with pytest.raises(errors.DataError, match=message):
    model.score(SOURCES, CANDIDATES)


def test_a_tokenizer_elsewhere_can_be_named(tmp_path, metricx_24):
  folder = copied(tmp_path, 'spiece.model')
  model = metric(24, folder, tokenizer_path=str(GOLDEN / 'spiece.model'))
  np.testing.assert_array_equal(
    model.score(SOURCES, CANDIDATES), metricx_24.score(SOURCES, CANDIDATES)
  )


@pytest.mark.parametrize('token_id', [-1, 200, 250089])
def test_a_score_token_outside_the_vocabulary_is_refused(token_id):
  with pytest.raises(
    errors.ConfigurationError,
    match=f'score_token_id = {token_id} is outside of the vocabulary .* 200',
  ):
    metric(24, score_token_id=token_id).score(SOURCES, CANDIDATES)


def test_settings_that_cannot_be_are_refused():
  with pytest.raises(errors.ConfigurationError, match='MetricX24'):
    metric(24, truncation='none')
  for length in (1, 130):
    with pytest.raises(errors.ConfigurationError, match='max_input_length = '):
      metric(24, max_input_length=length)
  with pytest.raises(errors.DataError, match='is no folder'):
    metric(23, '/no/such/folder').score(SOURCES, CANDIDATES)


def test_rows_that_do_not_fit_each_other_are_refused(metricx_24):
  with pytest.raises(errors.RewardError, match='2 sources or references for 1'):
    metricx_24.score(['a', 'b'], ['c'])
  with pytest.raises(errors.RewardError, match='needs references'):
    metric(24, use_reference=True).score(['a'], ['b'])


def test_a_nan_is_an_error(tmp_path, metricx_24):
  broken = dataclasses.replace(metricx_24)
  params = dict(metricx_24._params)
  params['decoder'] = dict(params['decoder'])
  kernel = params['decoder']['score_dense']['kernel']
  params['decoder']['score_dense'] = {'kernel': kernel * np.nan}
  broken.__dict__['_params'] = params
  with pytest.raises(errors.RewardError, match='the network gave nan'):
    broken.score(SOURCES, CANDIDATES)
