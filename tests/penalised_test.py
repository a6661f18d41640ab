"""Ranking by the reward less what it cost to leave BC."""

import dataclasses
import math

import numpy as np
import pytest
import small_run
from small_run import BATCHING, PACKING, begun

from rest_jax import behaviour, errors, grown_data, improve, losses, rows
from rest_jax import schedule as schedule_lib
from rest_jax.data import scored, store
from rest_jax.penalised import Penalised
from rest_jax.selection import Interpolated, TopK, needs_of, select
from rest_jax.training import early_stopping, optimizer


@pytest.fixture(scope='module')
def context(tmp_path_factory):
  return small_run.make(tmp_path_factory.mktemp('run'))


def scored_rows(rewards, log_ratios):
  """A source with a reference and a sample of each reward but the first."""
  count = len(rewards)
  return rows.Rows(
    source_ids=np.zeros(1, np.int64),
    offsets=np.array([0, count]),
    sample_index=np.arange(-1, count - 1, dtype=np.int32),
    origin=np.array([1] + [0] * (count - 1), np.int8),
    reward=np.asarray(rewards, np.float32),
    finished=np.ones(count, bool),
    lengths=np.ones(count, np.int32),
    text_ids=np.arange(count, dtype=np.int32),
    log_ratios=np.asarray(log_ratios, np.float32),
  )


def test_ranks_by_hand():
  # Less 0.1 a nat: 0.45, and of the samples 0.3, 0.4 and 0.55.
  found = scored_rows([0.45, 0.9, 0.6, 0.5], [0.0, 6.0, 2.0, -0.5])
  best = Penalised(TopK(1), 0.1)
  assert select((best,), found).tolist() == [False, False, False, True]
  assert select((TopK(1),), found).tolist() == [False, True, False, False]
  two = select((Penalised(TopK(2), 0.1),), found)
  assert two.tolist() == [True, False, True, True]
  # Their mean is 0.41667.
  over = select((Penalised(Interpolated(0.0), 0.1),), found)
  assert over.tolist() == [True, False, False, True]
  assert needs_of((best,)) == {'text_ids', 'log_ratios'}


@pytest.mark.parametrize('beta', [0.0, -1.0, math.inf, math.nan])
def test_a_penalty_out_of_range(beta):
  with pytest.raises(errors.ConfigurationError, match=r'Penalised\.beta'):
    Penalised(TopK(1), beta)


def test_a_schedule_that_penalises():
  made = schedule_lib.PerSource('top_k', (4, 1), 0.2)
  assert made.filters(lambda: ()) == [
    Penalised(TopK(4), 0.2),
    Penalised(TopK(1), 0.2),
  ]
  assert made.first(1) == schedule_lib.PerSource('top_k', (4,), 0.2)
  assert made.label(2) == 'top_k 1 a source, R − 0.2 log π/π_BC'
  for rule, penalty in (('mbr', 0.2), ('top_k', -0.2)):
    with pytest.raises(errors.ConfigurationError, match='kl_penalty'):
      schedule_lib.PerSource(rule, (1,), penalty)


def test_bc_scores_what_it_drew_as_it_did(context):
  """Samples of BC, made up to be those of a later policy, have no penalty."""
  small_run.grow(context, 'grow_2')
  samples = context.stage('grow_2/samples')
  stage = begun(context, behaviour.stage_name('grow_2'))
  behaviour.run(context, stage, samples, BATCHING)
  table = store.read_part(samples.folder / store.part_name(0))
  found = store.read_part(stage.folder / store.part_name(0))
  wanted = table['log_prob'].to_numpy()
  np.testing.assert_allclose(found['score'].to_numpy(), wanted, atol=1e-4)
  assert np.ptp(wanted) > 1.0
  assert stage.manifest['counts'] == {'rows': len(wanted)}


def test_improve_ranks_by_what_bc_says(context):
  """The other policy stands for BC: the first Grow step has no penalty."""
  small_run.grow(context, 'grow_3')
  samples = context.stage('grow_3/samples')
  stage = begun(context, behaviour.stage_name('grow_3'))
  path = samples.folder / store.part_name(0)
  table = store.read_part(path)
  # BC likes each source's first sample best, by far.
  of_bc = np.where(
    table['sample_index'].to_numpy() == 0, 0.0, table['log_prob'].to_numpy()
  )
  stage.write_part(path.name, store.scores_part(path, of_bc))
  stage.commit({'rows': len(of_bc)}, 0.0)
  settings = improve.Improve(
    training=early_stopping.Training(
      optimizer.Optimizer(learning_rate=0.01), PACKING
    ),
    stopping=early_stopping.Stopping(2, 2, 1),
    schedule=schedule_lib.PerSource('top_k', (1,), 100.0),
    original_data='none',
    allow_tau_below_mean=True,
  )
  assert settings.asks_bc
  plain = dataclasses.replace(
    settings, schedule=schedule_lib.PerSource('top_k', (1,))
  )
  assert not plain.asks_bc

  def kept(choice, name):
    grown = grown_data.GrownData(context, choice, (name,))
    chosen = grown.selections(1)[1]
    loss = losses.RewardWeighted(weighting='linear')
    return [
      (np.asarray(row[1]).tolist(), row[2])
      for row in grown.training_rows(chosen, loss)
    ]

  ratios = scored.rows_from_table(
    table.append_column('reward', [np.zeros(len(table), np.float32)])
    .append_column('bc_log_prob', [of_bc.astype(np.float32)]),
    {'log_ratios'},
  ).log_ratios  # fmt: skip
  assert ratios.min() < -1.0 and ratios.max() == 0.0
  firsts = [
    tokens
    for tokens, index in zip(
      table['target_tokens'].to_pylist(),
      table['sample_index'].to_pylist(),
      strict=True,
    )
    if index == 0
  ]
  found = kept(settings, 'grow_3')
  assert [tokens for tokens, _ in found] == firsts
  assert [t for t, _ in kept(plain, 'grow_3')] != firsts
  # Weights are of the reward itself; and what BC drew is ranked by it alone.
  assert all(0.0 < weight < 1.0 for _, weight in found)
  assert kept(settings, 'grow_1') == kept(plain, 'grow_1')
