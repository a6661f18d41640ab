"""The embedded task: German number expressions → English.

Cardinals, ordinals, decimals, years, prices, times of day and dates, unlimited
and exact: the words are written by the library num2words, so nothing has to be
downloaded and every source has one right translation. The training split is
faulty on purpose, as real corpora are. Prices, dates and clock times are wrong
more often than right, nearly always in the same way, as where one hasty
translator did a part: cents, years and minutes are left out, `halb acht`
becomes `half past eight`. So imitation learns the fault. The other kinds have
few faults, at random: a digit changed, a word left out, the wrong form.

Sources of the splits are disjoint: which split an expression belongs to is a
hash of its German text.
"""

import dataclasses
import functools
import hashlib
import random
from collections.abc import Callable, Iterator

import num2words

from rest_jax import errors

MONTHS = (
  ('Januar', 'January'),
  ('Februar', 'February'),
  ('März', 'March'),
  ('April', 'April'),
  ('Mai', 'May'),
  ('Juni', 'June'),
  ('Juli', 'July'),
  ('August', 'August'),
  ('September', 'September'),
  ('Oktober', 'October'),
  ('November', 'November'),
  ('Dezember', 'December'),
)
# No 29 February: then every (day, month, year) drawn is a date.
DAYS_IN_MONTH = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)

# How often a kind is drawn, in percent.
KINDS = {
  'cardinal': 26,
  'ordinal': 10,
  'decimal': 10,
  'year': 10,
  'price': 14,
  'time': 10,
  'clock': 6,
  'date': 14,
}
# The share of all expressions that belongs to a split, in percent.
SPLITS = {'train': 30, 'grow': 50, 'dev': 10, 'test': 10}
# Kinds that are habitually wrong. Their odds of a wrong reference are those of
# `wrong_share` times the first number, those of the others times the second;
# at a share of 0.25 that is 60 % and 7 %, on average 25 %.
HABITUAL = ('price', 'clock', 'date')
_ODDS = (4.5, 0.225)
_HABIT = 0.85  # Probability that a fault of theirs is the habitual one.
_MAX_REDRAWS = 20_000


@dataclasses.dataclass(frozen=True)
class Expression:
  """A number expression in no language.

  Attributes:
    kind: one of `KINDS`.
    parts: the numbers in it, all ≥ 0. cardinal, ordinal, year: (number,);
      decimal: (integer, digit, …); price: (euros, cents); time: (hour 0–23,
      minute); clock: (hour 0–11, minute), as people say it (`halb acht`);
      date: (day, month, year).
  """

  kind: str
  parts: tuple[int, ...]


@functools.lru_cache(maxsize=1 << 16)
def words(number: int, language: str, form: str = 'cardinal') -> str:
  """`number` in words: form 'cardinal', 'ordinal' or 'year', 'de' or 'en'."""
  text = num2words.num2words(number, lang=language, to=form)
  # num2words 0.5.14 writes 'einhunderteinstausend' for 101,000.
  return text.replace('einstausend', 'eintausend')


def render_german(expression: Expression) -> str:
  """The German of an expression, the source of a translation."""
  return _GERMAN[expression.kind](*expression.parts)


def render_english(expression: Expression) -> str:
  """The English of an expression, its one right translation."""
  return _ENGLISH[expression.kind](*expression.parts)


def _one(number: int) -> str:
  """A German cardinal before a noun: 'ein Euro', but 'zwei Euro'."""
  text = words(number, 'de')
  return text[:-1] if text.endswith('eins') else text


def _german_clock(hour: int, minute: int) -> str:
  this, following = (words(h or 12, 'de') for h in (hour, (hour + 1) % 12))
  if minute == 0:
    return f'um {_one(hour or 12)} Uhr'
  if minute == 15:
    return f'um Viertel nach {this}'
  if minute == 30:
    return f'um halb {following}'
  if minute == 45:
    return f'um Viertel vor {following}'
  if 25 <= minute <= 35:
    side = 'vor' if minute < 30 else 'nach'
    return f'um {words(abs(minute - 30), "de")} {side} halb {following}'
  if minute < 30:
    return f'um {words(minute, "de")} nach {this}'
  return f'um {words(60 - minute, "de")} vor {following}'


def _english_clock(hour: int, minute: int) -> str:
  this, following = (words(h or 12, 'en') for h in (hour, (hour + 1) % 12))
  if minute == 0:
    return f"at {this} o'clock"
  side, anchor, distance = 'past', this, minute
  if minute > 30:
    side, anchor, distance = 'to', following, 60 - minute
  named = {15: 'a quarter', 30: 'half'}
  return f'at {named.get(distance) or words(distance, "en")} {side} {anchor}'


def _english_time(hour: int, minute: int) -> str:
  if minute == 0:
    return f'at {words(hour, "en")} hundred hours'
  filler = 'oh ' if minute < 10 else ''
  return f'at {words(hour, "en")} {filler}{words(minute, "en")}'


def _digits(integer: int, digits: tuple[int, ...], language: str) -> str:
  point = {'de': 'Komma', 'en': 'point'}[language]
  tail = ' '.join(words(d, language) for d in digits)
  return f'{words(integer, language)} {point} {tail}'


def _plural(number: int, noun: str) -> str:
  return noun if number == 1 else noun + 's'


_GERMAN: dict[str, Callable[..., str]] = {
  'cardinal': lambda n: words(n, 'de'),
  'ordinal': lambda n: f'der {words(n, "de", "ordinal")}',
  'decimal': lambda n, *digits: _digits(n, digits, 'de'),
  'year': lambda y: f'im Jahr {words(y, "de", "year")}',
  'price': lambda e, c: f'{_one(e)} Euro und {_one(c)} Cent',
  'time': lambda h, m: (
    f'um {_one(h)} Uhr {words(m, "de") if m else ""}'.rstrip()
  ),
  'clock': _german_clock,
  'date': lambda d, m, y: (
    f'der {words(d, "de", "ordinal")} {MONTHS[m - 1][0]}'
    f' {words(y, "de", "year")}'
  ),
}

_ENGLISH: dict[str, Callable[..., str]] = {
  'cardinal': lambda n: words(n, 'en'),
  'ordinal': lambda n: f'the {words(n, "en", "ordinal")}',
  'decimal': lambda n, *digits: _digits(n, digits, 'en'),
  'year': lambda y: f'in the year {words(y, "en", "year")}',
  'price': lambda e, c: (
    f'{words(e, "en")} {_plural(e, "euro")} and'
    f' {words(c, "en")} {_plural(c, "cent")}'
  ),
  'time': _english_time,
  'clock': _english_clock,
  'date': lambda d, m, y: (
    f'the {words(d, "en", "ordinal")} of {MONTHS[m - 1][1]}'
    f' {words(y, "en", "year")}'
  ),
}


def _draw_number(rng: random.Random, *num_digits: int) -> int:
  """A number below 10^d, d drawn from `num_digits`: short ones are frequent."""
  return rng.randrange(10 ** rng.choice(num_digits))


def _draw_year(rng: random.Random) -> int:
  if rng.random() < 0.7:
    return rng.randint(1100, 1999)
  return rng.randint(2000, 2099)


def _draw_date(rng: random.Random) -> tuple[int, int, int]:
  month = rng.randint(1, 12)
  return rng.randint(1, DAYS_IN_MONTH[month - 1]), month, _draw_year(rng)


_DRAW: dict[str, Callable[[random.Random], tuple[int, ...]]] = {
  'cardinal': lambda r: (_draw_number(r, 2, 3, 4, 5, 6, 6),),
  'ordinal': lambda r: (1 + _draw_number(r, 2, 3, 4),),
  'decimal': lambda r: (
    _draw_number(r, 1, 2, 3),
    *(r.randrange(10) for _ in range(r.randint(1, 3))),
  ),
  'year': lambda r: (_draw_year(r),),
  'price': lambda r: (_draw_number(r, 2, 3, 4), r.randint(1, 99)),
  'time': lambda r: (r.randint(13, 23), r.randrange(60)),
  'clock': lambda r: (r.randrange(12), r.randrange(60)),
  'date': _draw_date,
}


def draw(rng: random.Random, kind: str | None = None) -> Expression:
  """Draws an expression, of a given kind or of one drawn by `KINDS`."""
  if kind is None:
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
  return Expression(kind, _DRAW[kind](rng))


def split_of(source: str) -> str:
  """The split that a German text belongs to, by its hash."""
  digest = hashlib.sha256(source.encode()).digest()
  place = int.from_bytes(digest[:4], 'big') % 100
  for name, share in SPLITS.items():
    if place < share:
      return name
    place -= share
  raise AssertionError('the shares of SPLITS do not add up to 100')


# --- Faults -----------------------------------------------------------------


def _change_digit(rng: random.Random, e: Expression) -> str:
  """A near miss: one digit of one number is another."""
  parts = list(e.parts)
  place = rng.randrange(len(parts))
  digits = list(str(parts[place]))
  at = rng.randrange(len(digits))
  digits[at] = rng.choice('123456789'.replace(digits[at], ''))
  parts[place] = int(''.join(digits))
  return _render_if_possible(Expression(e.kind, tuple(parts)))


def _drop_word(rng: random.Random, e: Expression) -> str:
  """A word left out."""
  text = render_english(e).split(' ')
  if len(text) < 2:
    return ''
  del text[rng.randrange(len(text))]
  return ' '.join(text)


def _change_form(rng: random.Random, e: Expression) -> str:
  """Another form of the numbers, such as a cardinal for an ordinal."""
  del rng
  if len(e.parts) > 1:
    return words(e.parts[0], 'en')
  other = 'ordinal' if e.kind == 'cardinal' else 'cardinal'
  return render_english(Expression(other, e.parts))


def _habit(e: Expression) -> str:
  """The fault that is always the same for an expression; '' where it is none.

  A price loses its cents, a date its year, a clock time its minutes; only
  `halb acht` keeps them, and becomes `half past eight`.
  """
  text = render_english(e)
  if e.kind == 'price':
    return text.partition(' and ' + words(e.parts[1], 'en') + ' cent')[0]
  if e.kind == 'date':
    return text.removesuffix(' ' + words(e.parts[2], 'en', 'year'))
  hour, minute = e.parts
  if minute == 30:
    return render_english(dataclasses.replace(e, parts=((hour + 1) % 12, 30)))
  # The hour that is said: the following one from 'fünf vor halb' on.
  said = hour if minute < 25 else (hour + 1) % 12
  return render_english(dataclasses.replace(e, parts=(said, 0)))


def _render_if_possible(e: Expression) -> str:
  """The English of an expression that a fault may have made impossible."""
  if e.kind == 'date' and not (1 <= e.parts[1] <= 12 and 1 <= e.parts[0] <= 31):
    return ''
  if e.kind in ('time', 'clock') and (e.parts[0] > 23 or e.parts[1] > 59):
    return ''
  if e.kind == 'clock' and e.parts[0] > 11:
    return ''
  return render_english(e)


_FAULTS = (_change_digit, _drop_word, _change_form)


def corrupt(rng: random.Random, expression: Expression) -> str:
  """A wrong English reference for an expression; never the right one."""
  right = render_english(expression)
  if expression.kind in HABITUAL and rng.random() < _HABIT:
    wrong = _habit(expression)
    if wrong and wrong != right:
      return wrong
  while True:
    wrong = rng.choice(_FAULTS)(rng, expression)
    if wrong and wrong != right:
      return wrong


def fault_probability(kind: str, wrong_share: float) -> float:
  """Probability that a reference of a kind is wrong, see `HABITUAL`."""
  odds = wrong_share * _ODDS[kind not in HABITUAL]
  return odds / (odds + (1 - wrong_share))


# --- Rows -------------------------------------------------------------------


def generate(
  split: str, num_rows: int, seed: int, wrong_share: float = 0.0
) -> Iterator[dict[str, object]]:
  """Rows of a split, all of another source, the same for the same arguments.

  Args:
    split: 'train', 'grow', 'dev' or 'test'.
    num_rows: how many.
    seed: of the draws. The rows of a smaller `num_rows` begin a larger one's.
    wrong_share: share of wrong references over all kinds, in [0, 1]; see
      `HABITUAL` for how it is spread.

  Yields:
    {'source': German, 'target': English, 'domain': the kind, 'wrong': bool}.

  Raises:
    ConfigurationError: an unknown split, or a share outside [0, 1].
    DataError: the split has not that many different expressions.
  """
  if split not in SPLITS:
    raise errors.ConfigurationError(
      f'NumeralsTask has no split {split!r}: use one of {list(SPLITS)}'
    )
  if not 0 <= wrong_share <= 1:
    raise errors.ConfigurationError(
      f'wrong_share = {wrong_share} is no probability: use 0 to 1'
    )
  rng = random.Random(f'numerals {seed} {split}')
  seen: set[str] = set()
  redraws = 0
  while len(seen) < num_rows:
    expression = draw(rng)
    source = render_german(expression)
    if source in seen or split_of(source) != split:
      redraws += 1
      if redraws > _MAX_REDRAWS:
        raise errors.DataError(
          f'the numerals split {split!r} has no more than {len(seen)}'
          f' different sources, not {num_rows}: ask for fewer rows'
        )
      continue
    redraws = 0
    seen.add(source)
    # Drawn for every row, so that wrong_share does not change the sources.
    fault_rng = random.Random(rng.getrandbits(64))
    wrong = fault_rng.random() < fault_probability(expression.kind, wrong_share)
    target = (
      corrupt(fault_rng, expression) if wrong else render_english(expression)
    )
    yield {
      'source': source,
      'target': target,
      'domain': expression.kind,
      'wrong': wrong,
    }
