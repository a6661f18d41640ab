import pytest

from rest_jax.errors import ConfigurationError
from rest_jax.models.config import T5Config


def test_lists_from_gin_become_tuples():
  config = T5Config(vocab_size=8, mlp_activations=['relu'])
  assert config.mlp_activations == ('relu',)
  assert hash(config) == hash(T5Config(8, mlp_activations=('relu',)))


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('vocab_size', 0),
    ('emb_dim', -1),
    ('num_heads', 0),
    ('num_encoder_layers', 0),
    ('num_decoder_layers', 0),
    ('head_dim', 0),
    ('mlp_dim', 0),
    ('mlp_activations', ()),
    ('mlp_activations', ('gleu', 'linear')),
    ('dropout_rate', 1.0),
    ('dropout_rate', -0.1),
    ('dtype', 'float16'),
    ('relpos_num_buckets', 30),
    ('relpos_num_buckets', 0),
    ('relpos_max_distance', 16),
    ('remat', 'some'),
  ],
)
def test_an_impossible_value_is_named(field, value):
  with pytest.raises(ConfigurationError, match=f'T5Config.{field}') as error:
    T5Config(**{'vocab_size': 8, field: value})
  assert '\n' not in str(error.value)
