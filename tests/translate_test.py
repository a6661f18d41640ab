import pytest
import small_run

from rest_jax import translate
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


def test_a_folder_is_no_output(tmp_path):
  context = small_run.make(tmp_path / 'run')
  with pytest.raises(ConfigurationError, match='is a folder'):
    translate.run(
      context,
      Translate(),
      small_run.evaluation(),
      policy_name='supervised',
      source=str(tmp_path / 'nosuch'),
      target=str(tmp_path),
    )


def test_mbr_gives_the_sample_that_agrees_best_with_all(monkeypatch, tmp_path):
  context = small_run.make(tmp_path)
  texts = ['a cat sat', 'the cat sat', 'the cat sits', 'x', 'one', 'one']
  drawn = translate.generation.Generated
  monkeypatch.setattr(drawn, 'texts', lambda self, tokenizer: texts)
  found = translate._by_agreement(
    context,
    Translate(mbr_samples=3),
    small_run.evaluation(),
    context.decoding_params('supervised'),
    [[5, 1], [6, 1]],
  )
  assert found == ['the cat sat', 'one']
