"""What is shown of stages that are stored."""

import csv
import types

import numpy as np
import pyarrow as pa
import pytest
import small_run
from small_run import begun

from rest_jax import errors, evaluate, policy_plan, reports, rest
from rest_jax.data import store

REWARDS = np.float32([[0.1, 0.9, 0.5, 0.7], [0.4, 0.2, 0.2, 0.4]])


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
  """Stores evaluations of policies, each with its rewards of two sources."""
  context = small_run.make(tmp_path)
  plans = []
  monkeypatch.setattr(policy_plan, 'policies', lambda run: plans)

  def add(name, rewards):
    plans.append(
      types.SimpleNamespace(
        stage=name, label=name, start=None if name == 'bc' else 'bc'
      )
    )
    stage = begun(context, f'{name}/evaluation/report')
    table = pa.table(
      {
        'source_id': np.repeat([3, 7], 4),
        'target': ['a', 'the cat', 'the cats', 'x', *['one'] * 3, 'two'],
        'reward': rewards.reshape(-1),
        'score_x': 1 - rewards.reshape(-1),
      }
    )
    stage.write_part('samples.parquet', store.table_bytes(table))
    stage.commit({}, 0.0)
    return context

  return add


def run_of(num_samples):
  run = object.__new__(rest.ReST)  # Of which nothing else is read.
  settings = evaluate.Evaluate('en', num_samples=num_samples)
  object.__setattr__(run, 'evaluate', settings)
  return run


def test_the_best_of_n_of_stored_samples_by_hand(evaluated, capsys):
  evaluated('bc', REWARDS)
  evaluated('half', np.full_like(REWARDS, 0.5))
  evaluated('less', np.full_like(REWARDS, 0.4))
  context = evaluated('more', np.full_like(REWARDS, 0.6))
  reports.show_best_of_n(run_of(4), context, 'report')
  with open(context.directory.path / 'best_of_n.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  found = {(row['policy'], row['chosen_by'], row['n']): row for row in rows}
  one, two = found['bc', 'reward', '1'], found['bc', 'reward', '2']
  # Of the six pairs of a source the better: 0.9 three times, 0.7 twice, 0.5;
  # and 0.4 five times, 0.2.
  assert float(one['reward']) == pytest.approx(42.5)
  assert float(two['reward']) == pytest.approx(100 * (4.6 + 2.2) / 12, abs=1e-3)
  assert float(one['x']) == pytest.approx(0.575, abs=1e-4)
  assert float(two['x']) == pytest.approx(1 - 6.8 / 12, abs=1e-4)
  assert found['half', 'reward', '1']['n_of_bc'] == '2'
  assert found['less', 'reward', '1']['n_of_bc'] == '1'
  assert found['more', 'reward', '1']['n_of_bc'] == ''
  # The texts that agree best are the third, or second, and one of the first.
  mbr = found['bc', 'mbr', '4']
  assert float(mbr['reward']) in (
    pytest.approx(100 * (0.5 + 0.4) / 2),
    pytest.approx(100 * (0.9 + 0.4) / 2),
  )


def test_other_samples_than_were_asked_for_are_not_passed_over(evaluated):
  context = evaluated('bc', REWARDS)
  with pytest.raises(
    errors.ConfigurationError, match=r'4 samples .* = 64: del'
  ):
    reports.show_best_of_n(run_of(64), context, 'report')
