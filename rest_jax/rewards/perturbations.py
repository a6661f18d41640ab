"""Ways to spoil a translation, each of which must lower a sound reward.

A perturbation is any object with `name`, `min_fall_rate` and `apply`. Texts
that it does not apply to (no number to drop) get None and are left out.
"""

import dataclasses
import re
from typing import Protocol, runtime_checkable

import numpy as np

from rest_jax import errors, language
from rest_jax.rewards import words


@dataclasses.dataclass(frozen=True)
class Pair:
  """A translation to be spoiled.

  Attributes:
    source: what was translated.
    candidate: its translation.
    other: the translation of another source.
    source_language: code, e.g. 'de'.
    target_language: code, e.g. 'en'.
    number: of the row; whatever is drawn is a function of it.
  """

  source: str
  candidate: str
  other: str
  source_language: str = ''
  target_language: str = ''
  number: int = 0


@runtime_checkable
class Perturbation(Protocol):
  """What spoils a translation."""

  @property
  def name(self) -> str:
    """In tables and errors."""

  @property
  def min_fall_rate(self) -> float:
    """Share of the texts whose reward must fall."""

  def apply(self, pair: Pair) -> str | None:
    """The spoiled candidate; None where it does not apply."""


def _rate(default: float):
  # Not compared: what was measured stays valid.
  return dataclasses.field(default=default, compare=False)


class _Perturbation:
  """Checks the rate of the perturbations below."""

  name: str
  min_fall_rate: float

  def __post_init__(self):
    if not 0 <= self.min_fall_rate <= 1:
      raise errors.ConfigurationError(
        f'{type(self).__name__}.min_fall_rate = {self.min_fall_rate} must lie'
        ' in [0, 1]; 0 asks for nothing.'
      )


@dataclasses.dataclass(frozen=True)
class Repeat(_Perturbation):
  """The whole sentence twice: what the ReST paper's reward fell for."""

  min_fall_rate: float = _rate(0.9)
  name = 'repeat'

  def apply(self, pair: Pair) -> str | None:
    once = words.split(pair.candidate)
    return words.join([*once, *once]) if once else None


@dataclasses.dataclass(frozen=True)
class Truncate(_Perturbation):
  """The first half of the words."""

  min_fall_rate: float = _rate(0.9)
  name = 'truncate'

  def apply(self, pair: Pair) -> str | None:
    given = words.split(pair.candidate)
    return words.join(given[: len(given) // 2]) if len(given) > 1 else None


@dataclasses.dataclass(frozen=True)
class DropNegation(_Perturbation):
  """Without its first negation, in languages whose negations are known.

  Those of `_NEGATIONS`; in others it applies to nothing.
  """

  min_fall_rate: float = _rate(0.5)
  name = 'drop_negation'

  def apply(self, pair: Pair) -> str | None:
    target = language.primary(pair.target_language)
    for pattern, put in _NEGATIONS.get(target, ()):
      spoiled, count = re.subn(
        pattern, put, pair.candidate, count=1, flags=re.IGNORECASE
      )
      if count:
        return _tidy(spoiled)
    return None


@dataclasses.dataclass(frozen=True)
class DropNumber(_Perturbation):
  """Without its first number in digits (or of two Chinese numerals)."""

  min_fall_rate: float = _rate(0.5)
  name = 'drop_number'

  def apply(self, pair: Pair) -> str | None:
    spoiled, count = _NUMBER.subn('', pair.candidate, count=1)
    return _tidy(spoiled) if count else None


@dataclasses.dataclass(frozen=True)
class CopySource(_Perturbation):
  """The source instead of its translation."""

  min_fall_rate: float = _rate(0.9)
  name = 'copy_source'

  def apply(self, pair: Pair) -> str | None:
    return None if pair.source == pair.candidate else pair.source


@dataclasses.dataclass(frozen=True)
class Shuffle(_Perturbation):
  """Its words in a random order."""

  min_fall_rate: float = _rate(0.9)
  name = 'shuffle'

  def apply(self, pair: Pair) -> str | None:
    given = words.split(pair.candidate)
    order = np.random.default_rng(pair.number).permutation(len(given))
    spoiled = [given[place] for place in order]
    if len(given) < 3 or spoiled == given:
      return None
    return words.join(spoiled)


@dataclasses.dataclass(frozen=True)
class WrongLanguage(_Perturbation):
  """A sentence in a language that is neither the source's nor the target's."""

  min_fall_rate: float = _rate(0.9)
  name = 'wrong_language'

  def apply(self, pair: Pair) -> str | None:
    taken = tuple(
      map(language.primary, (pair.source_language, pair.target_language))
    )
    free = [text for code, text in _OTHERS.items() if code not in taken]
    return free[pair.number % len(free)]


@dataclasses.dataclass(frozen=True)
class Empty(_Perturbation):
  """Nothing at all."""

  min_fall_rate: float = _rate(0.95)
  name = 'empty'

  def apply(self, pair: Pair) -> str | None:
    return '' if pair.candidate else None


@dataclasses.dataclass(frozen=True)
class AddPunctuation(_Perturbation):
  """Followed by punctuation that belongs to nothing."""

  min_fall_rate: float = _rate(0.5)
  name = 'add_punctuation'

  def apply(self, pair: Pair) -> str | None:
    return f'{pair.candidate} ?!,;' if pair.candidate else None


@dataclasses.dataclass(frozen=True)
class Swap(_Perturbation):
  """The translation of another source."""

  min_fall_rate: float = _rate(0.9)
  name = 'swap'

  def apply(self, pair: Pair) -> str | None:
    return None if pair.other == pair.candidate else pair.other


DEFAULT = (
  Repeat(), Truncate(), DropNegation(), DropNumber(), CopySource(), Shuffle(),
  WrongLanguage(), Empty(), AddPunctuation(), Swap(),
)  # fmt: skip

_NUMBER = re.compile(
  r'\d+(?:[.,:]\d+)*|[〇零一二三四五六七八九十百千万亿两]{2,}'
)
# Language → what to look for, in this order, and what to put there.
_NEGATIONS = {
  # But nejlepší ('best'), neděle ('Sunday'), nemoc ('illness'), nebo ('or');
  # nejsem, nejde, nejel, nejí are negations.
  'cs': ((r'\bne(?!j(?!s|d|e[lm]|í)|děl[eií]\b|moc|bo\b)(?=\w{2})', ''),),
  'de': (
    (r'\bnicht\b|\bnie(mals)?\b', ''),
    (r'\bkein(?=(e[mnrs]?)?\b)', 'ein'),
  ),
  'en': (
    (r"\bwon't\b", 'will'),
    (r"\bcan't\b|\bcannot\b", 'can'),
    (r"n't\b|\bnot\b|\bnever\b", ''),
    (r'\bno\b', 'a'),
    (r'\bwithout\b', 'with'),
  ),
  'es': ((r'\bno\b|\bnunca\b|\bjamás\b', ''), (r'\bsin\b', 'con')),
  'fr': ((r'\bpas\b|\bjamais\b', ''), (r'\bsans\b', 'avec')),
  'it': ((r'\bnon\b|\bmai\b', ''), (r'\bsenza\b', 'con')),
  'ja': (
    ('ませんでした', 'ました'),
    ('ません', 'ます'),
    ('(?<![少危])ない', ''),
  ),
  'nl': ((r'\bniet\b|\bnooit\b', ''), (r'\bgeen\b', 'een')),
  'pl': ((r'\bnie\b|\bnigdy\b', ''),),
  'pt': ((r'\bnão\b|\bnunca\b', ''), (r'\bsem\b', 'com')),
  'ru': ((r'\bне\b|\bникогда\b', ''), (r'\bбез\b', 'с')),
  'uk': ((r'\bне\b|\bніколи\b', ''), (r'\bбез\b', 'з')),
  # Not where they are part of another word: 不过 is 'but', 特别 'special'.
  'zh': (('没有|没|不(?![过同仅断管久但])|未(?!来)', ''),),
}  # fmt: skip
_OTHERS = {
  'fi': 'Tänään sataa vettä, ja menemme yhdessä kirjastoon.',
  'tr': 'Bugün yağmur yağıyor ve birlikte kütüphaneye gidiyoruz.',
  'hu': 'Ma esik az eső, és együtt megyünk a könyvtárba.',
  'sw': 'Leo mvua inanyesha na tunakwenda maktaba pamoja.',
  'vi': 'Hôm nay trời mưa và chúng tôi cùng nhau đến thư viện.',
}


def _tidy(text: str) -> str:
  return ' '.join(text.split())
