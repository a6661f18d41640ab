"""Contrasts and frontiers of policies that are made up."""

import dataclasses
import itertools

import numpy as np
import pytest
from etils import epath

from rest_jax import (
  compared_runs,
  compared_systems,
  comparison,
  comparison_plots,
  comparison_tables,
  errors,
  significance,
)

TESTS = comparison.Tests(num_resamples=50, num_trials=50)
TEXTS = tuple((f'quelle {i}', f'the source {i}') for i in range(6))


def evaluated(policy, rewards, fingerprint=None, **row):
  rewards = np.asarray(rewards, np.float64)
  row = {'policy': policy, 'reward_mean': 100 * rewards.mean()} | row
  return compared_runs.Evaluated(
    policy=policy,
    fingerprint=fingerprint or f'{policy} {rewards.tolist()}',
    rewards=rewards,
    beams=tuple(f'the source {i % 5}' for i in range(6)),
    row={name: str(value) for name, value in row.items()},
  )


def run(path, seed, *policies, config='a', texts=TEXTS):
  return compared_runs.Run(
    path=epath.Path(path),
    seed=seed,
    config={'LOSS': config},
    settings={'Evaluate.target_language': 'en'},
    texts=texts,
    policies=policies,
  )


def system(name, *, policy=None, group='', also=(), **figures):
  """A policy whose figures are those of one seed each."""
  count = len(next(iter(figures.values())))
  runs = {
    seed: evaluated(name, [0.5] * 6, **{k: v[seed] for k, v in figures.items()})
    for seed in range(count)
  }
  paths = {seed: epath.Path(f'/r/{seed}') for seed in runs}
  return compared_systems.System(
    name, group, policy or name, runs, paths, tuple(also)
  )


def test_nobody_who_is_as_good_in_all_is_beaten():
  points = np.array([[1, 3], [2, 2], [1, 2], [2, 2], [0, 4.0]])
  found = comparison.non_dominated(points)
  assert found.tolist() == [True, True, False, True, True]


def test_frontier_of_points_by_hand():
  systems = [
    system('far', reward_mean=[60.0], bleu=[20], kl_bc=[9], samples_drawn=[50]),
    system('BC', reward_mean=[50.0], bleu=[20], kl_bc=[0], samples_drawn=[0]),
    # Beaten by `near`, which costs as much.
    system('bad', reward_mean=[55.0], bleu=[19], kl_bc=[2], samples_drawn=[10]),
    system('near', reward_mean=[56.0], bleu=[21], kl_bc=[1],
           samples_drawn=[10]),
    # Costs more and is no better in anything: the frontier stays.
    system('late', reward_mean=[54.0], bleu=[18], kl_bc=[3],
           samples_drawn=[20]),
    system('lost', reward_mean=[99.0], bleu=[99], kl_bc=[''],
           samples_drawn=[1]),
  ]  # fmt: skip
  found = comparison.frontier(systems, 'samples_drawn')
  assert [(budget.most, budget.best) for budget in found] == [
    (0, ('BC',)),
    (10, ('BC', 'near')),
    (50, ('BC', 'near', 'far')),
  ]
  shown = comparison_tables.tables(systems, [], {'samples_drawn': found}, 'x')
  assert 'Without a figure or cost: lost.' in shown[-1].note
  text = comparison_tables.frontiers_csv({'samples_drawn': found})
  assert text.splitlines()[:3] == [
    'cost,most,name',
    'samples_drawn,0.0000,BC',
    'samples_drawn,10.0000,BC',
  ]


def test_without_references_a_frontier_is_of_reward_and_kl():
  systems = [
    system('a', reward_mean=[50.0], kl_bc=[0], device_seconds=[1]),
    system('b', reward_mean=[40.0], kl_bc=[1], device_seconds=[2]),
    system('c', reward_mean=[60.0], kl_bc=[1], device_seconds=[3]),
  ]
  assert comparison.criteria(systems) == ['reward_mean', 'kl_bc']
  found = comparison.frontier(systems, 'device_seconds')
  assert [budget.best for budget in found] == [('a',), ('a', 'c')]


def test_seeds_of_one_configuration_are_one_policy():
  shared = evaluated('BC', [0.5] * 6, 'same')
  found = compared_systems.systems(
    [
      run('/r/seed_1/base', 1, evaluated('BC', [0.1] * 6)),
      run('/r/seed_0/base', 0, shared, evaluated('G1 I1', [0.6] * 6)),
      run(
        '/r/seed_0/dpo', 0, shared, evaluated('G1 I1', [0.7] * 6), config='b'
      ),
    ]
  )
  assert [s.name for s in found] == ['base BC', 'base G1 I1', 'dpo G1 I1']
  assert [list(s.runs) for s in found] == [[0, 1], [0], [0]]
  # The other run's BC is the same policy.
  assert found[0].also == ('dpo BC',)
  assert comparison.find('dpo BC', found) is found[0]
  assert comparison.find('BC', found) is found[0]
  with pytest.raises(errors.ConfigurationError, match="'base G1 I1' or 'dpo"):
    comparison.find('G1 I1', found)
  with pytest.raises(errors.ConfigurationError, match=r"mean 'dpo G1 I1'\?"):
    comparison.find('dpo G1 I', found)


def test_what_runs_share_is_once_whatever_their_order():
  shared = evaluated('BC', [0.5] * 6, 'same')
  runs = [
    run('/r/seed_0/dpo', 0, shared, config='b'),
    run('/r/seed_0/base', 0, shared),
    run('/r/seed_1/base', 1, evaluated('BC', [0.1] * 6)),
  ]
  for order in itertools.permutations(runs):
    (found,) = compared_systems.systems(order)
    assert (found.name, found.also) == ('base BC', ('dpo BC',))
    assert sorted(found.runs) == [0, 1]


def test_groups_are_named_by_what_their_folders_share():
  def names(*groups):
    paths = [[epath.Path(path) for path in group] for group in groups]
    return compared_systems.group_names(paths)

  assert names(['/r/bc_0', '/r/bc_1'], ['/r/dpo_0']) == ['bc', 'dpo_0']
  assert names(['/a/q'], ['/b/q']) == ['a/q', 'b/q']
  assert names(['/r/x', '/r/y']) == ['x']
  assert names(['/r/s_0', '/r/s_1'], ['/r/s_2', '/r/s_3']) == ['s 1', 's 2']


def _two(first, second):
  return compared_systems.systems(
    [
      run(f'/r/{seed}', seed, evaluated('BC', a), evaluated('G1 I1', b))
      for seed, (a, b) in enumerate(zip(first, second, strict=True))
    ]
  )


def test_a_contrast_is_paired_by_seed_and_source():
  # Sources differ much, seeds too; the difference is 0.1 and 0.2 everywhere.
  base = np.array([0.0, 0.3, 0.1, 0.7, 0.2, 0.4])
  systems = _two([base, base / 2], [base + 0.1, base / 2 + 0.2])
  (found,) = comparison.contrasts(
    systems,
    run('/r/0', 0, texts=(('quelle', None),) * 6),
    [('BC', 'G1 I1')],
    every_two=True,
    tests=TESTS,
  )
  assert (found.first, found.second) == ('BC', 'G1 I1')
  assert (found.measure, found.seeds, found.paired) == ('reward_mean', 2, True)
  assert found.difference == pytest.approx(15.0)
  assert found.interval == pytest.approx((15.0, 15.0))
  # t of one degree of freedom at 97.5 % is 12.7062; s / √2 = 5.
  assert found.over_seeds == pytest.approx(
    (15 - 12.7062 * 5, 15 + 12.7062 * 5), abs=1e-3
  )
  assert found.p_bootstrap == 1 / 51
  assert found.planned
  assert found.holm_bootstrap is None


def test_runs_of_other_seeds_are_held_against_each_other_in_order():
  one = run('/r/a', 0, evaluated('BC', [0.1] * 6))
  other = run('/r/b', 5, evaluated('BC', [0.4] * 6), config='b')
  (found, *_) = comparison.contrasts(
    compared_systems.systems([one, other]), one, [], every_two=True, tests=TESTS
  )
  assert (found.seeds, found.paired) == (1, False)
  assert found.difference == pytest.approx(30.0)
  (row, *_) = comparison_tables.tables([], [found], {}, 'x')[1].rows
  assert row[2] == '(1)'


def test_what_was_not_named_is_corrected_for_its_number():
  rng = np.random.default_rng(0)
  one = run('/r/0', 0, *(evaluated(n, rng.random(6)) for n in 'abc'))
  steps = []
  found = comparison.contrasts(
    compared_systems.systems([one]),
    one,
    [('c', 'a')],
    every_two=True,
    tests=TESTS,
    advance=lambda done, total: steps.append((done, total)),
  )
  assert steps == [(0, 3), (1, 3), (2, 3)]
  names = {(c.first, c.second) for c in found if c.planned}
  assert names == {('c', 'a')}
  rest = [c for c in found if not c.planned]
  assert {(c.first, c.second) for c in rest} == {('a', 'b'), ('b', 'c')}
  for measure in ('reward_mean', *significance.METRICS):
    two = [c for c in rest if c.measure == measure]
    assert [c.holm_bootstrap for c in two] == significance.holm(
      [c.p_bootstrap for c in two]
    )
    assert [c.holm_randomisation for c in two] == significance.holm(
      [c.p_randomisation for c in two]
    )
  # All translate alike.
  assert {c.p_bootstrap for c in found if c.measure == 'bleu'} == {1.0}
  named = comparison.contrasts(
    compared_systems.systems([one]), one, [('c', 'a')],
    every_two=False, tests=TESTS,
  )  # fmt: skip
  assert named == [c for c in found if c.planned]
  # A table is one however many rows it has.
  lines = comparison_tables.contrasts_csv(named).splitlines()
  assert len(lines) == 1 + len(named)
  assert comparison_tables.contrasts_csv([]).splitlines() == lines[:1]
  assert {line.count(',') for line in lines} == {lines[0].count(',')}


def test_a_policy_is_not_held_against_itself():
  one = run('/r/0', 0, evaluated('BC', [0.1] * 6))
  with pytest.raises(errors.ConfigurationError, match='are the same policy'):
    comparison.contrasts(
      compared_systems.systems([one]), one, [('BC', 'BC')],
      every_two=False, tests=TESTS,
    )  # fmt: skip


def test_tables_tell_what_policies_share_and_what_the_reward_knows():
  one = system('base BC', also=('dpo BC',), reward_mean=[50.0, 54.0],
               reward_trained_on=['', 'wmt19'])  # fmt: skip
  (table,) = comparison_tables.tables([one], [], {}, 'report')
  assert table.rows[0][:3] == ('base BC', '2', '52.00')
  assert 'base BC is dpo BC too' in table.note
  assert 'trained on this split (wmt19)' in table.note
  assert table.rows[0][-1] == '–'
  assert 'tuning trials' not in table.note


def test_unequal_tuning_trials_are_told():
  tuned = system('tuned', reward_mean=[50.0, 51.0], tuning_trials=['8', '8'])
  plain = system('plain', reward_mean=[50.0], tuning_trials=['1'])
  (table,) = comparison_tables.tables([tuned, plain], [], {}, 'report')
  assert [row[-1] for row in table.rows] == ['8', '1']
  assert 'Not all had as many tuning trials' in table.note


def test_different_machines_are_told():
  one, other = (system(name, reward_mean=[50.0]) for name in ('one', 'other'))
  for found in (one, other):
    found.runs[0] = dataclasses.replace(
      found.runs[0], machine='X, 2 of its cores'
    )
  (table,) = comparison_tables.tables([one, other], [], {}, 'report')
  assert 'machines' not in table.note
  other.runs[0] = dataclasses.replace(other.runs[0], machine='4 × TPU v4')
  (table,) = comparison_tables.tables([one, other], [], {}, 'report')
  assert 'machines (4 × TPU v4; X, 2 of its cores) and do not' in table.note


def test_names_are_text_in_pages_and_pictures():
  one = system('a <b> $x_1$ & c', reward_mean=[50.0], samples_drawn=[1])
  page = comparison_tables.page(
    comparison_tables.tables([one], [], {}, 'report'),
    comparison_plots.pictures([one], []),
  )
  assert page.count('<svg') == 2
  assert '<td class=text>a &lt;b&gt; $x_1$ &amp; c</td>' in page
  assert '<b>' not in page
  assert page == comparison_tables.page(
    comparison_tables.tables([one], [], {}, 'report'),
    comparison_plots.pictures([one], []),
  )


def test_without_costs_no_picture_is_of_them():
  pictures = comparison_plots.pictures([system('a', reward_mean=[50.0])], [])
  assert len(pictures) == 1
