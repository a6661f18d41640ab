import pyarrow as pa

from rest_jax.data import lookup


def tables(read):
  for start in range(0, 12, 4):
    read.append(start)
    ids = range(start, start + 4)
    yield pa.table({'source_id': ids, 'x': [f's{i}' for i in ids]})


def test_streams_in_order_and_reads_no_more_than_needed():
  read = []
  look = lookup.Lookup(tables(read), 'x')
  assert look([0, 2]) == ['s0', 's2']
  assert read == [0]
  assert look([3, 5]) == ['s3', 's5']
  assert read == [0, 4]
  # What one question read ahead is there for the next.
  assert look([6, 7]) == ['s6', 's7']
  assert read == [0, 4]


def test_no_question_forgets_nothing():
  look = lookup.Lookup(tables([]), 'x')
  look([1])
  assert look([]) == []
  assert look([1, 2]) == ['s1', 's2']


def test_repeated_and_unknown_sources():
  look = lookup.Lookup(tables([]), 'x')
  assert look([4, 4, 4]) == ['s4', 's4', 's4']
  assert look([11, 99]) == ['s11', None]


def test_memory_holds_no_source_before_the_last_question():
  look = lookup.Lookup(tables([]), 'x')
  look([0])
  look([9])
  assert sorted(look._known) == [8, 9, 10, 11]
