"""A reward that reads the value out of both texts; it needs no reference.

For the embedded task of `data/numerals.py`: the German source and the English
candidate are both parsed to numbers, so a candidate can be better than a faulty
reference, and the policy can outgrow the references it was trained on.
"""

import difflib
import functools
import itertools
import operator
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from rest_jax import errors
from rest_jax.data import numerals
from rest_jax.data.numerals import Expression
from rest_jax.rewards import base


class NumeralValue:
  """Graded reward in [0, 1]: 1 = the right value, well formed.

  With v the numbers in the source, v̂ those read out of the candidate:

    1                      the candidate is the right translation;
    0.6 + 0.3 · sim        v̂ = v, but another form (a missing 'and', a cardinal
                           for an ordinal); sim in [0, 1) compares the words
                           with the right translation's;
    0.5 · agreement²       v̂ ≠ v; agreement in [0, 1): share of equal digits;
    0                      no number expression.

  So no wrong value reaches a reward of 0.5.
  """

  info = base.RewardInfo(name='numeral_value', version='1', low=0.0, high=1.0)

  def score(
    self,
    sources: Sequence[str],
    candidates: Sequence[str],
    references: Sequence[str] | None = None,
  ) -> Float32[np.ndarray, ' n']:
    """Scores n candidates; references are ignored.

    Returns:
      float32 [n], in [0, 1].

    Raises:
      RewardError: a source is no German number expression, or there are not as
        many candidates as sources.
    """
    del references
    if len(sources) != len(candidates):
      raise errors.RewardError(
        f'numeral_value was given {len(sources)} sources and'
        f' {len(candidates)} candidates: give one candidate a source'
      )
    return np.fromiter(
      map(_reward, sources, candidates), np.float32, count=len(sources)
    )


def _reward(source: str, candidate: str) -> float:
  """R(x, y) of one pair, as `NumeralValue` says."""
  expression, right = _read_source(source)
  if candidate == right:
    return 1.0
  read = parse_english(candidate)
  if read is None:
    return 0.0
  if read.parts == expression.parts:
    similarity = difflib.SequenceMatcher(
      None, candidate.split(), right.split(), autojunk=False
    ).ratio()
    return 0.6 + 0.3 * similarity
  return 0.5 * _agreement(read.parts, expression.parts) ** 2


def _agreement(a: tuple[int, ...], b: tuple[int, ...]) -> float:
  """Share of digits that are equal, each number aligned at its last digit."""
  equal, total = 0, 0
  for x, y in itertools.zip_longest(map(str, a), map(str, b), fillvalue=''):
    width = max(len(x), len(y))
    total += width
    if x and y:  # A number that is missing agrees in no digit.
      equal += sum(map(operator.eq, x.zfill(width), y.zfill(width)))
  return equal / total


@functools.lru_cache(maxsize=1 << 16)
def _read_source(source: str) -> tuple[Expression, str]:
  expression = parse_german(source)
  if expression is None:
    raise errors.RewardError(
      f'numeral_value cannot read a number in the source {source!r}: it is'
      ' made for NumeralsTask, set another reward'
    )
  return expression, numerals.render_english(expression)


# --- English ----------------------------------------------------------------

_EN_SMALL = {numerals.words(n, 'en'): n for n in range(20)}
_EN_TENS = {numerals.words(n, 'en'): n for n in range(20, 100, 10)}
_EN_ORDINALS = {
  numerals.words(n, 'en', 'ordinal'): numerals.words(n, 'en')
  for n in (*range(20), *range(20, 100, 10))
} | {'hundredth': 'hundred', 'thousandth': 'thousand'}
_EN_MONTHS = {name.lower(): i for i, (_, name) in enumerate(numerals.MONTHS, 1)}
_EN_NAMED_MINUTES = {('a', 'quarter'): 15, ('quarter',): 15, ('half',): 30}


def parse_english(text: str) -> Expression | None:
  """Reads an English number expression, forgiving in form, strict in value.

  Commas, hyphens, 'and' and case are ignored; what is left must be one whole
  expression.

  Args:
    text: of any kind.

  Returns:
    The expression, or None where the text is none.
  """
  tokens = text.lower().replace(',', ' ').replace('-', ' ').split()
  tokens = [token for token in tokens if token != 'and']
  if tokens[:3] == ['in', 'the', 'year']:
    return _made('year', _year(tokens[3:]))
  if tokens[:1] == ['at']:
    return _english_hour(tokens[1:])
  if any(token in ('euro', 'euros') for token in tokens):
    return _english_price(tokens)
  if 'point' in tokens:
    return _english_decimal(tokens)
  if 'of' in tokens:
    return _english_date(tokens)
  if tokens[:1] == ['the']:
    return _made('ordinal', _ordinal(tokens[1:]))
  return _made('cardinal', _cardinal(tokens))


def _made(kind: str, *parts: int | None) -> Expression | None:
  """An expression, unless one of its parts could not be read."""
  return None if None in parts else Expression(kind, parts)


def _below_hundred(tokens: list[str]) -> int | None:
  if len(tokens) == 1:
    small = _EN_SMALL.get(tokens[0])
    return _EN_TENS.get(tokens[0]) if small is None else small
  if len(tokens) == 2 and tokens[0] in _EN_TENS:
    unit = _EN_SMALL.get(tokens[1], 0)
    return _EN_TENS[tokens[0]] + unit if 1 <= unit <= 9 else None
  return None


def _scaled(tokens: list[str], word: str, scale: int, below) -> int | None:
  """A number with at most one `word` ('hundred'), `below` reading the rest."""
  if word not in tokens:
    return below(tokens)
  at = tokens.index(word)
  high = below(tokens[:at])
  low = below(tokens[at + 1 :]) if tokens[at + 1 :] else 0
  # 'one hundred zero' is no number; a bare 'hundred' has no `high`.
  if not high or low is None or (low == 0 and tokens[at + 1 :]):
    return None
  return high * scale + low if low < scale else None


def _below_thousand(tokens: list[str]) -> int | None:
  return _scaled(tokens, 'hundred', 100, _below_hundred)


def _cardinal(tokens: list[str]) -> int | None:
  return _scaled(tokens, 'thousand', 1000, _below_thousand)


def _ordinal(tokens: list[str]) -> int | None:
  if not tokens or tokens[-1] not in _EN_ORDINALS:
    return None
  return _cardinal([*tokens[:-1], _EN_ORDINALS[tokens[-1]]])


def _pair(tokens: list[str]) -> tuple[int, int] | None:
  """Two numbers below 100, the second of two digits: 'nineteen oh five'."""
  for at in range(1, len(tokens)):
    high, tail = _below_hundred(tokens[:at]), tokens[at:]
    two_digits = tail[0] != 'oh'
    low = _below_hundred(tail if two_digits else tail[1:])
    if high is None or low is None or two_digits != (low >= 10):
      continue
    return high, low
  return None


def _year(tokens: list[str]) -> int | None:
  plain = _cardinal(tokens)
  pair = _pair(tokens)
  if plain is not None or pair is None:
    return plain
  return pair[0] * 100 + pair[1]


def _english_hour(tokens: list[str]) -> Expression | None:
  """A time of day: '… past …', '… to …', "… o'clock", or two numbers."""
  for side in ('past', 'to'):
    if side in tokens:
      at = tokens.index(side)
      named = _EN_NAMED_MINUTES.get(tuple(tokens[:at]))
      minute = named or _below_hundred(tokens[:at])
      return _clock(_below_hundred(tokens[at + 1 :]), minute, side == 'to')
  if tokens[-1:] == ["o'clock"]:
    return _clock(_below_hundred(tokens[:-1]), 0, False)
  if tokens[-2:] == ['hundred', 'hours']:
    hour, minute = _below_hundred(tokens[:-2]), 0
  else:
    hour, minute = _pair(tokens) or (None, None)
  if hour is None or hour > 23 or minute > 59:
    return None
  return Expression('time', (hour, minute))


def _clock(
  hour: int | None, minute: int | None, before: bool
) -> Expression | None:
  """A time on a dial of twelve hours, `minute` before or past `hour`."""
  if hour is None or minute is None or not 1 <= hour <= 12 or minute > 59:
    return None
  minutes = (hour * 60 + (-minute if before else minute)) % 720
  return Expression('clock', divmod(minutes, 60))


def _english_price(tokens: list[str]) -> Expression | None:
  at = next(i for i, t in enumerate(tokens) if t in ('euro', 'euros'))
  if at + 1 == len(tokens):
    return _made('price', _cardinal(tokens[:at]))
  if tokens[-1] not in ('cent', 'cents'):
    return None
  return _made(
    'price', _cardinal(tokens[:at]), _below_hundred(tokens[at + 1 : -1])
  )


def _english_decimal(tokens: list[str]) -> Expression | None:
  at = tokens.index('point')
  digits = [_digit(token) for token in tokens[at + 1 :]]
  return _made('decimal', _cardinal(tokens[:at]), *(digits or [None]))


def _digit(token: str) -> int | None:
  value = _EN_SMALL.get(token)
  return value if value is not None and value <= 9 else None


def _english_date(tokens: list[str]) -> Expression | None:
  at = tokens.index('of')
  if tokens[0] != 'the' or at + 1 == len(tokens):
    return None
  day = _ordinal(tokens[1:at])
  if day is not None and not 1 <= day <= 31:
    return None
  month = _EN_MONTHS.get(tokens[at + 1])
  return _made('date', day, month, _year(tokens[at + 2 :]))


# --- German -----------------------------------------------------------------

_DE_CARDINALS = {numerals.words(n, 'de'): n for n in range(100)} | {'ein': 1}
_DE_ORDINALS = {
  numerals.words(n, 'de', 'ordinal'): n for n in range(1, 100)
} | {'ste': 0}
_DE_MONTHS = {name: i for i, (name, _) in enumerate(numerals.MONTHS, 1)}


def parse_german(text: str) -> Expression | None:
  """Reads a German number expression as `data/numerals.py` writes them.

  Args:
    text: of any kind.

  Returns:
    The expression, or None where the text is none.
  """
  match text.split(' '):
    case ['im', 'Jahr', year]:
      return _made('year', _german_number(year))
    case ['um', *rest]:
      return _german_hour(rest)
    case [euros, 'Euro', 'und', cents, 'Cent']:
      return _made('price', _german_number(euros), _german_number(cents))
    case [integer, 'Komma', *digits] if digits:
      read = [_german_number(d) for d in digits]
      if any(d is not None and d > 9 for d in read):
        return None
      return _made('decimal', _german_number(integer), *read)
    case ['der', day, month, year]:
      return _made(
        'date',
        _german_number(day, _DE_ORDINALS),
        _DE_MONTHS.get(month),
        _german_number(year),
      )
    case ['der', number]:
      return _made('ordinal', _german_number(number, _DE_ORDINALS))
    case [number]:
      return _made('cardinal', _german_number(number))
  return None


def _german_number(
  text: str, last: dict[str, int] = _DE_CARDINALS
) -> int | None:
  """Reads a German number word; `last` reads what follows the hundreds."""
  value = 0
  for word, scale, most in (('tausend', 1000, 999), ('hundert', 100, 99)):
    head, found, tail = text.partition(word)
    if not found:
      continue
    high = _german_number(head) if head else 1
    if not high or high > most:
      return None
    value += high * scale
    text = tail
  if value and not text:
    return None if last is _DE_ORDINALS else value
  low = last.get(text)
  return None if low is None else value + low


def _german_hour(tokens: list[str]) -> Expression | None:
  """A time of day: digital from 13 o'clock on, else as people say it."""
  match tokens:
    case [hour, 'Uhr']:
      value = _german_number(hour)
      if value is not None and value > 12:
        return Expression('time', (value, 0)) if value < 24 else None
      return _clock(value, 0, False)
    case [hour, 'Uhr', minute]:
      value, minutes = _german_number(hour), _german_number(minute)
      if value is None or minutes is None or value > 23 or minutes > 59:
        return None
      return Expression('time', (value, minutes))
    case ['halb', hour]:
      return _clock(_german_number(hour), 30, True)
    case ['Viertel', ('nach' | 'vor') as side, hour]:
      return _clock(_german_number(hour), 15, side == 'vor')
    case [minute, ('nach' | 'vor') as side, hour]:
      return _clock(_german_number(hour), _german_number(minute), side == 'vor')
    case [minute, ('nach' | 'vor') as side, 'halb', hour]:
      minutes = _german_number(minute)
      if minutes is None or minutes > 29:
        return None
      distance = 30 + minutes if side == 'vor' else 30 - minutes
      return _clock(_german_number(hour), distance, True)
  return None
