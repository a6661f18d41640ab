"""Codes of languages: which part of them chooses how a text is cut up."""

import re


def primary(code: str) -> str:
  """The language of a code without its script and region.

  sacrebleu knows 'zh' and takes 'zh-CN' for a language of no tokeniser.

  >>> primary('zh-CN'), primary('pt_BR'), primary('DE')
  ('zh', 'pt', 'de')
  """
  return re.split('[-_]', code, maxsplit=1)[0].lower()
