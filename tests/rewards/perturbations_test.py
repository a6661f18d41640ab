import pytest

from rest_jax.errors import ConfigurationError
from rest_jax.rewards import perturbations as p


def spoil(perturbation, candidate, target='en', source='das Haus', number=0):
  pair = p.Pair(source, candidate, 'another one', 'de', target, number=number)
  return perturbation.apply(pair)


@pytest.mark.parametrize(
  ('perturbation', 'target', 'candidate', 'wanted'),
  [
    (p.Repeat(), 'en', 'a small house', 'a small house a small house'),
    (p.Repeat(), 'zh', '他来了。', '他来了。他来了。'),
    (p.Repeat(), 'en', '', None),
    (p.Truncate(), 'en', 'a very small house', 'a very'),
    (p.Truncate(), 'zh', '他来了。', '他来'),
    (p.Truncate(), 'en', 'house', None),
    (p.DropNegation(), 'en', 'It is not here.', 'It is here.'),
    (p.DropNegation(), 'en', "It won't rain", 'It will rain'),
    (p.DropNegation(), 'en', "I can't, and don't", "I can, and don't"),
    (p.DropNegation(), 'en', 'There is no house', 'There is a house'),
    (p.DropNegation(), 'en', 'A note on knots', None),
    (p.DropNegation(), 'de', 'Er kommt nicht.', 'Er kommt .'),
    (p.DropNegation(), 'de', 'Er hat keine Zeit', 'Er hat eine Zeit'),
    (p.DropNegation(), 'fr', 'Je ne sais pas', 'Je ne sais'),
    (p.DropNegation(), 'zh', '他不来', '他来'),
    (p.DropNegation(), 'zh', '不过特别好', None),
    (p.DropNegation(), 'ja', '行きません', '行きます'),
    (p.DropNegation(), 'ja', '少ない危ない', None),
    (p.DropNegation(), 'ja', '知らない', '知ら'),
    (p.DropNegation(), 'cs', 'Nevím', 'vím'),
    (p.DropNegation(), 'cs', 'nejsem', 'jsem'),
    (p.DropNegation(), 'cs', 'v neděli nedělá', 'v neděli dělá'),
    (p.DropNegation(), 'cs', 'nejlepší neděle nebo nemoc', None),
    (p.DropNegation(), 'xx', 'not', None),
    (p.DropNegation(), 'en-GB', 'not me', 'me'),
    (p.DropNumber(), 'en', '1,200.50 euros in 2020', 'euros in 2020'),
    (p.DropNumber(), 'zh', '他有三百本书', '他有本书'),
    (p.DropNumber(), 'zh', '他有一本书', None),
    (p.DropNumber(), 'en', 'three', None),
    (p.CopySource(), 'en', 'the house', 'das Haus'),
    (p.CopySource(), 'en', 'das Haus', None),
    (p.Shuffle(), 'en', 'two words', None),
    (p.Shuffle(), 'en', 'a a a', None),
    (p.Empty(), 'en', 'x', ''),
    (p.Empty(), 'en', '', None),
    (p.AddPunctuation(), 'en', 'So it is.', 'So it is. ?!,;'),
    (p.Swap(), 'en', 'this one', 'another one'),
    (p.Swap(), 'en', 'another one', None),
  ],
)  # fmt: skip
def test_spoiled_by_hand(perturbation, target, candidate, wanted):
  assert spoil(perturbation, candidate, target) == wanted


@pytest.mark.parametrize(
  ('candidate', 'sep'),
  [('one two three four five', ' '), ('我们今天去学校', '')],
)
def test_shuffling_keeps_the_words_and_is_the_same_each_time(candidate, sep):
  for number in range(20):
    spoiled = spoil(p.Shuffle(), candidate, number=number)
    if spoiled is not None:
      assert spoiled != candidate
      split = (lambda t: sorted(t.split())) if sep else sorted
      assert split(spoiled) == split(candidate)
      assert spoiled == spoil(p.Shuffle(), candidate, number=number)


def test_a_wrong_language_is_neither_of_the_two():
  for number in range(10):
    pair = p.Pair('x', 'y', 'z', 'fi', 'hu-HU', number)
    spoiled = p.WrongLanguage().apply(pair)
    assert spoiled not in (p._OTHERS['fi'], p._OTHERS['hu'])


def test_names_differ_and_rates_are_checked():
  assert len({one.name for one in p.DEFAULT}) == len(p.DEFAULT) == 10
  for one in p.DEFAULT:
    assert isinstance(one, p.Perturbation)
    with pytest.raises(ConfigurationError, match=r'min_fall_rate = 1\.5'):
      type(one)(min_fall_rate=1.5)
