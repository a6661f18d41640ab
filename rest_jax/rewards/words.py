"""Words of any script: what stands between spaces, or a character.

Chinese, Japanese, Thai and their like have no spaces between words, so there
each character counts as one.
"""

import re
from collections.abc import Iterable

# Thai to Burmese, Khmer, and Han with kana and full-width forms.
_UNSPACED = (
  '\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u4dbf'
  '\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff'
)
_WORD = re.compile(f'[{_UNSPACED}]|[^\\s{_UNSPACED}]+')
_IS_UNSPACED = re.compile(f'[{_UNSPACED}]')


def split(text: str) -> list[str]:
  """The words of a text.

  >>> split('ab c，他来了 ok')
  ['ab', 'c', '，', '他', '来', '了', 'ok']
  """
  return [word for word in _WORD.findall(text) if not word.isspace()]


def join(words: Iterable[str]) -> str:
  """A text of words, with spaces where their script has them.

  >>> join(['ab', 'c', '他', '来', 'ok'])
  'ab c他来ok'
  """
  text, spaced = '', False
  for word in words:
    unspaced = bool(_IS_UNSPACED.match(word))
    text += (' ' if spaced and not unspaced else '') + word
    spaced = not unspaced
  return text
