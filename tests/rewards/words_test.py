import pytest

from rest_jax.rewards import words


@pytest.mark.parametrize(
  ('text', 'wanted'),
  [
    ('', []),
    ('  a  b-c ', ['a', 'b-c']),
    ('他来了。', ['他', '来', '了', '。']),
    ('用 JAX 写的', ['用', 'JAX', '写', '的']),
    ('私はパン', ['私', 'は', 'パ', 'ン']),
    ('ดี', ['ด', 'ี']),
  ],
)
def test_words_of_any_script(text, wanted):
  assert words.split(text) == wanted


def test_joining_gives_the_text_back_but_for_spaces():
  for text in ('a b c', '他来了。', 'ab c他来ok', ''):
    assert words.join(words.split(text)) == text
