import pytest

from rest_jax.decoding.sampling import Sampling
from rest_jax.errors import ConfigurationError
from rest_jax.translate import Translate


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'mbr_samples': -1}, 'mbr_samples = -1'),
    ({'mbr_samples': 2, 'mbr_sampling': Sampling(0.0)}, 'mbr_sampling'),
  ],
)
def test_settings_that_cannot_be(settings, message):
  with pytest.raises(ConfigurationError, match=message):
    Translate(**settings)
