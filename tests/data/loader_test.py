import collections
import itertools

import numpy as np
import pytest

from rest_jax import errors
from rest_jax.data import loader
from rest_jax.data.loader import Packing, TrainingBatches


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
  """60 grown rows and 20 original ones; target token 2 + i names row i."""
  rng = np.random.default_rng(0)
  return loader.write_rows(
    tmp_path_factory.mktemp('rows'),
    (
      (
        [*rng.integers(2, 60, rng.integers(1, 9)), 1],
        [2 + i] * rng.integers(1, 9) + [1],
        0.5 + i,
        i >= 60,
      )
      for i in range(80)
    ),
  )


def pairs_in(batch):
  """The number of the row behind every packed pair, padding left out."""
  starts = (batch.decoder_input_tokens == 0) & (batch.decoder_loss_weights != 0)
  return [int(t) - 2 for t in batch.decoder_target_tokens[starts]]


def assert_same(a, b):
  for name, value in vars(a).items():
    np.testing.assert_array_equal(value, getattr(b, name), err_msg=name)


def test_the_worked_example_of_batch(tmp_path):
  rows = loader.write_rows(
    tmp_path, [([5, 6, 1], [7, 1], 0.5, True), ([8, 1], [9, 9, 1], 2.0, False)]
  )
  batch = loader.assemble(
    rows, Packing(6, 6, 2), [np.array([0, 1]), np.array([], np.int64)]
  )
  expected = {
    'encoder_input_tokens': [5, 6, 1, 8, 1, 0],
    'encoder_segment_ids': [1, 1, 1, 2, 2, 0],
    'decoder_target_tokens': [7, 1, 9, 9, 1, 0],
    'decoder_input_tokens': [0, 7, 0, 9, 9, 0],
    'decoder_segment_ids': [1, 1, 2, 2, 2, 0],
    'decoder_loss_weights': [0.5, 0.5, 2.0, 2.0, 2.0, 0.0],
  }
  for name, values in expected.items():
    array = getattr(batch, name)
    np.testing.assert_array_equal(array, [values, [0] * 6], err_msg=name)
    weights = name == 'decoder_loss_weights'
    assert array.dtype == (np.float32 if weights else np.int32)


def test_batches_hold_the_rows_whole(rows):
  """Every pair of a batch has its tokens, weight and segment, in order."""
  batch = TrainingBatches(rows, Packing(24, 24, 4), seed=1)[3]
  seen = 0
  for r in range(4):
    for segment in range(1, batch.decoder_segment_ids[r].max() + 1):
      of_target = batch.decoder_segment_ids[r] == segment
      of_source = batch.encoder_segment_ids[r] == segment
      target = batch.decoder_target_tokens[r][of_target]
      expected = rows.row(int(target[0]) - 2)
      np.testing.assert_array_equal(target, expected[1])
      np.testing.assert_array_equal(
        batch.encoder_input_tokens[r][of_source], expected[0]
      )
      np.testing.assert_array_equal(
        batch.decoder_input_tokens[r][of_target], [0, *expected[1][:-1]]
      )
      assert (batch.decoder_loss_weights[r][of_target] == expected[2]).all()
      seen += 1
  assert seen == len(pairs_in(batch)) > 4


@pytest.mark.parametrize('rows_per_batch', [1, 3, 64])
def test_union_takes_every_row_once_an_epoch(rows, rows_per_batch):
  """Whole epochs, also where a batch straddles two of them."""
  data = TrainingBatches(rows, Packing(24, 24, rows_per_batch), seed=5)
  one = TrainingBatches(rows, Packing(24, 24, 1), seed=5)
  epoch = one.steps_per_epoch
  stream = [
    pair
    for step in range(-(-3 * epoch // rows_per_batch))
    for pair in pairs_in(data[step])
  ]
  for k in range(3):
    part = stream[k * len(rows) : (k + 1) * len(rows)]
    assert sorted(part) == list(range(len(rows)))
  assert stream[: len(rows)] != stream[len(rows) : 2 * len(rows)]


def test_a_batch_is_a_function_of_seed_and_step(rows):
  packing = Packing(24, 24, 4)
  batches = TrainingBatches(rows, packing, 7)
  stream = list(itertools.islice(batches.starting_at(0), 30))
  resumed = batches.starting_at(17)
  for step in range(17, 30):
    assert_same(stream[step], next(resumed))
  other = TrainingBatches(rows, packing, 8)
  assert any(pairs_in(other[i]) != pairs_in(stream[i]) for i in range(3))


def test_neighbouring_seeds_share_no_epoch(rows):
  """Epoch 1 of seed 0 is not epoch 0 of seed 1, given the same packing."""
  (plan,) = TrainingBatches(rows, Packing(9, 9, 1), 0)._plans
  orders = [
    [
      number.tolist()
      for number in map(shuffled.__getitem__, range(start, stop))
    ]
    for seed in (0, 1)
    for shuffled in [loader._ShuffledRows(plan, (seed, 0))]
    for start, stop in [(0, len(plan)), (len(plan), 2 * len(plan))]
  ]
  assert all(sorted(order) == sorted(orders[0]) for order in orders)
  assert len({str(order) for order in orders}) == 4


@pytest.mark.parametrize('hosts', [2, 4])
@pytest.mark.parametrize('mixture', ['union', 0.5])
def test_hosts_share_each_batch(rows, hosts, mixture):
  packing = Packing(24, 24, 4)
  whole = TrainingBatches(rows, packing, 2, mixture)
  for step in (0, 5, 23):
    parts = [
      TrainingBatches(rows, packing, 2, mixture, host, hosts)[step]
      for host in range(hosts)
    ]
    assert all(len(p.encoder_input_tokens) == 4 // hosts for p in parts)
    together = [pair for part in parts for pair in pairs_in(part)]
    assert together == pairs_in(whole[step])


@pytest.mark.parametrize('share', [0.25, 0.5, 0.9])
def test_mixture_is_the_probability_of_a_grown_row(rows, share):
  data = TrainingBatches(rows, Packing(24, 24, 4), 0, mixture=share)
  pairs = [p for step in range(400) for p in pairs_in(data[step])]
  grown = np.mean([pair < 60 for pair in pairs])
  assert grown == pytest.approx(share, abs=0.02)
  assert data.grown_share == share
  counts = collections.Counter(pairs)
  for pool in (range(60), range(60, 80)):
    visits = [counts[i] for i in pool]
    assert max(visits) - min(visits) <= 1


def test_epoch_of_a_mixture_takes_every_grown_row(rows):
  data = TrainingBatches(rows, Packing(24, 24, 4), 0, mixture=0.5)
  steps = data.steps_per_epoch
  seen = {p for step in range(steps) for p in pairs_in(data[step])}
  assert seen >= set(range(60))
  fewer = {p for step in range(steps - 2) for p in pairs_in(data[step])}
  assert not fewer >= set(range(60))


@pytest.mark.parametrize(
  ('share', 'pool'), [(1, range(60)), (0, range(60, 80))]
)
def test_extreme_mixtures_leave_the_other_rows_out(rows, share, pool):
  data = TrainingBatches(rows, Packing(24, 24, 4), 0, mixture=share)
  pairs = [p for i in range(data.steps_per_epoch) for p in pairs_in(data[i])]
  assert set(pairs) == set(pool)
  assert data.grown_share == share


def test_shares_are_those_of_the_batches(rows):
  data = TrainingBatches(rows, Packing(24, 24, 1), 0)
  epoch = [data[i] for i in range(data.steps_per_epoch)]
  filled = sum(
    (b.encoder_input_tokens != 0).sum() + (b.decoder_target_tokens != 0).sum()
    for b in epoch
  )
  assert data.padding_share == pytest.approx(1 - filled / (len(epoch) * 48))
  assert data.grown_share == 0.75


@pytest.mark.parametrize('hosts', [1, 2])
def test_once_gives_every_row_once(rows, hosts):
  parts = [
    list(
      TrainingBatches(
        rows, Packing(24, 24, 8), 0, process_index=i, process_count=hosts
      ).once()
    )
    for i in range(hosts)
  ]
  batches = [batch for part in parts for batch in part]
  assert all(len(b.encoder_input_tokens) == 8 // hosts for b in batches)
  assert len({len(part) for part in parts}) == 1
  pairs = [pair for batch in batches for pair in pairs_in(batch)]
  assert sorted(pairs) == list(range(80))


def test_errors_come_before_the_first_batch(rows, tmp_path):
  with pytest.raises(errors.DataError, match=r'Packing.target_length'):
    TrainingBatches(rows, Packing(24, 3, 4), 0)
  with pytest.raises(errors.ConfigurationError, match='3 processes'):
    TrainingBatches(rows, Packing(24, 24, 4), 0, process_count=3)
  with pytest.raises(errors.ConfigurationError, match=r'mixture = 1\.5'):
    TrainingBatches(rows, Packing(24, 24, 4), 0, mixture=1.5)
  grown = loader.write_rows(tmp_path, [([5, 1], [6, 1], 1.0, False)])
  with pytest.raises(errors.ConfigurationError, match='original rows'):
    TrainingBatches(grown, Packing(24, 24, 4), 0, mixture=0.5)


@pytest.fixture(scope='module')
def paired(tmp_path_factory):
  """40 pairs; a target's first token tells its row, its figures its tokens."""
  rng = np.random.default_rng(3)

  def row(number):
    target = [2 + number, *rng.integers(2, 60, rng.integers(0, 6)), 1]
    source = [*rng.integers(2, 60, rng.integers(1, 6)), 1]
    figures = [-0.5 * token for token in target], [number / 2] * len(target)
    return (source, target, 1.0, False, *figures)

  return loader.write_rows(
    tmp_path_factory.mktemp('paired'),
    map(row, range(80)),
    figures=('log_probs', 'numbers'),
    group=2,
  )


def test_rows_of_a_group_stand_together_in_a_packed_row(paired):
  batches = TrainingBatches(paired, Packing(16, 24, 4), seed=0)
  seen = collections.Counter()
  for batch in batches.once():
    for tokens, segments in zip(
      batch.decoder_target_tokens, batch.decoder_segment_ids, strict=True
    ):
      numbers = [
        int(tokens[segments == s][0]) - 2
        for s in range(1, segments.max(initial=0) + 1)
      ]
      seen.update(numbers)
      # Odd segments are the first of their pair, even ones the second.
      assert all(
        number % 2 == place % 2 for place, number in enumerate(numbers)
      )
      assert [n + 1 for n in numbers[::2]] == numbers[1::2]
  assert seen == dict.fromkeys(range(80), 1)
  assert batches.grown_share == 1.0


def test_figures_lie_where_their_tokens_do(paired):
  batch = TrainingBatches(paired, Packing(16, 24, 4), seed=0)[5]
  tokens = batch.decoder_target_tokens
  np.testing.assert_array_equal(
    batch.decoder_figures['log_probs'], np.float32(-0.5) * tokens
  )
  starts = (batch.decoder_input_tokens == 0) & (tokens != 0)
  np.testing.assert_array_equal(
    batch.decoder_figures['numbers'][starts], (tokens[starts] - 2) / 2
  )
  assert (batch.decoder_figures['numbers'][tokens == 0] == 0).all()


def test_a_figure_of_each_token_comes_back_in_the_order_of_the_rows(paired):
  batches = TrainingBatches(paired, Packing(16, 24, 4), seed=9)
  values = batches.each_token(lambda batch: 3.0 * batch.decoder_target_tokens)
  np.testing.assert_array_equal(values, 3.0 * paired.target_tokens)
  assert values.dtype == np.float32


@pytest.mark.parametrize('index', [0, 1])
def test_each_process_takes_the_figures_of_all(paired, index):
  packing = Packing(16, 24, 4)
  batches = TrainingBatches(
    paired, packing, seed=9, process_index=index, process_count=2
  )
  everything = TrainingBatches(paired, packing, seed=9).once()

  def measure(
    batch,
  ):  # As a program of all processes, of which each has a part.
    whole = next(everything).decoder_target_tokens
    mine = whole[2 * index : 2 * index + 2]
    np.testing.assert_array_equal(batch.decoder_target_tokens, mine)
    return 3.0 * whole

  np.testing.assert_array_equal(
    batches.each_token(measure), 3.0 * paired.target_tokens
  )


def test_a_figure_that_is_added_is_laid_out_too(tmp_path):
  rows = loader.write_rows(tmp_path, [([5, 1], [7, 1], 1.0, True)])
  assert (
    loader.assemble(rows, Packing(2, 2, 1), [np.array([0])]).decoder_figures
    is None
  )
  rows.add_figure('x', np.array([0.5, 0.25], np.float32))
  batch = loader.assemble(rows, Packing(2, 3, 1), [np.array([0])])
  np.testing.assert_array_equal(batch.decoder_figures['x'], [[0.5, 0.25, 0.0]])
  with pytest.raises(ValueError, match='1 of 2 tokens'):
    rows.add_figure('x', np.array([0.5], np.float32))


def test_a_pair_longer_than_a_packed_row_is_an_error(paired):
  with pytest.raises(errors.DataError, match=r'Packing\.target_length = 8'):
    TrainingBatches(paired, Packing(16, 8, 4), seed=0)
