import csv
import dataclasses
import io
import re

import rich.console

from rest_jax import best_of_n, results, tables


def row(**changed):
  values = {
    'policy': 'G1 I2',
    'split': 'report',
    'seed': 3,
    'grow_step': 1,
    'improve_step': 2,
    'loss': 'bc',
    'threshold': 'R > 0.8',
    'kept_samples': 1200,
    'kept_sources': 300,
    'distinct_samples': 900,
    'reward_mean': 71.25,
    'reward_low': 70.0,
    'reward_high': 72.5,
    'reward_greedy': 75.0,
    'reward_best_t': 76.0,
    'best_t': 0.3,
    'bleu': None,
    'chrf': None,
    'bleu_signature': '',
    'chrf_signature': '',
    'train_tokens': 1000,
    'seconds': 12.0,
  }
  return results.Row(**(values | changed))


def test_csv_has_the_documented_columns_and_empty_missing_figures():
  (read,) = csv.DictReader(io.StringIO(results.to_csv([row()])))
  names = [field.name for field in dataclasses.fields(results.Row)]
  assert list(read) == [name for name in names if name != 'further']
  assert read['reward_mean'] == '71.2500'
  assert read['bleu'] == ''


def test_further_figures_have_a_column_each():
  rows = [row(further={'chrf_mean': 0.5}), row(further={'ter_mean': None})]
  first, second = csv.DictReader(io.StringIO(results.to_csv(rows)))
  assert list(first)[-2:] == ['chrf_mean', 'ter_mean']
  assert (first['chrf_mean'], first['ter_mean']) == ('0.5000', '')
  assert (second['chrf_mean'], second['ter_mean']) == ('', '')


def test_table_shows_every_row():
  table = tables.results_table([row(), row(policy='BC', kept_samples=None)])
  assert table.row_count == 2


def test_a_reward_that_knows_the_split_is_marked_in_every_table():
  def shown(*rows):
    console = rich.console.Console(width=160, file=io.StringIO())
    console.print(tables.results_table(rows))
    return console.file.getvalue()

  marked = row(reward_trained_on='wmt19')
  text = shown(row(policy='BC'), marked)
  assert '71.2†' in text or '71.3†' in text
  assert '† the reward was trained on this split: wmt19' in text
  assert '†' not in shown(row())
  (read,) = csv.DictReader(io.StringIO(results.to_csv([marked])))
  assert read['reward_trained_on'] == 'wmt19'


def test_best_of_n_shows_what_the_winner_scores_beside():
  rows = [
    best_of_n.Row('BC', 1, 'reward', 61.25, {'score_chrf': 40.5}),
    best_of_n.Row('G1 I4', 2, 'reward', 70.0, {}, 7),
  ]
  console = rich.console.Console(width=160, file=io.StringIO())
  console.print(tables.best_of_n_table(rows))
  shown = console.file.getvalue()
  assert re.search(r'BC +1 +reward +61\.2 +40\.5 +–', shown)
  assert re.search(r'G1 I4 +2 +reward +70\.0 +– +7', shown)
  first, second = csv.DictReader(
    io.StringIO(tables.best_of_n_csv(rows, 'test'))
  )
  assert first == {
    **{'policy': 'BC', 'split': 'test', 'n': '1', 'chosen_by': 'reward'},
    **{'reward': '61.2500', 'n_of_bc': '', 'chrf': '40.5000'},
  }
  assert (second['chrf'], second['n_of_bc']) == ('', '7')
