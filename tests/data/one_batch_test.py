"""Few rows in one batch."""

import numpy as np
import pytest

from rest_jax import errors
from rest_jax.data.one_batch import OneBatch
from rest_jax.data.packing import Packing
from rest_jax.data.training_rows import TrainingRows

SHAPE = Packing(8, 6, 1)


def rows():
  targets = [[10 * i + j for j in range(1, 2 + i % 3)] for i in range(1, 8)]
  return TrainingRows.of_samples([[5, 1]] * 7, targets)


@pytest.mark.parametrize('multiple', [1, 2, 5])
def test_all_rows_are_in_it_and_few_empty_ones(multiple):
  made = OneBatch(rows(), SHAPE, multiple)
  batch = made.batch()
  count = len(batch.decoder_target_tokens)
  assert count % multiple == 0
  used = batch.decoder_segment_ids.max(axis=1)
  assert (used == 0).sum() < multiple
  assert used.sum() == 7
  assert sorted(
    batch.decoder_target_tokens[batch.decoder_loss_weights == 1].tolist()
  ) == sorted(made.rows.target_tokens.tolist())


def test_figures_go_in_and_come_out_in_the_order_of_the_rows():
  made = OneBatch(rows(), SHAPE, 2)
  tokens = made.each_token(made.batch().decoder_target_tokens)
  np.testing.assert_array_equal(tokens, made.rows.target_tokens)
  assert tokens.dtype == np.float32
  made.rows.add_figure('halves', tokens / 2)
  batch = made.batch()
  np.testing.assert_array_equal(
    batch.decoder_figures['halves'], batch.decoder_target_tokens / 2
  )


def test_parts_of_processes_are_the_batch_one_after_the_other():
  whole = OneBatch(rows(), SHAPE, 4)
  parts = [OneBatch(rows(), SHAPE, 4, part, 2).batch() for part in range(2)]
  for name in ('encoder_input_tokens', 'decoder_target_tokens'):
    np.testing.assert_array_equal(
      np.concatenate([getattr(part, name) for part in parts]),
      getattr(whole.batch(), name),
    )
  # Figures come back from the whole.
  tokens = OneBatch(rows(), SHAPE, 4, 1, 2).each_token(
    whole.batch().decoder_target_tokens
  )
  np.testing.assert_array_equal(tokens, whole.rows.target_tokens)


def test_a_sample_that_does_not_fit_is_an_error():
  with pytest.raises(errors.DataError, match=r'Packing\.target_length = 2'):
    OneBatch(rows(), Packing(8, 2, 1), 1)
