"""What a policy has cost, over all that it was made from."""

import types

from etils import epath

from rest_jax import ledger

# Name → counts and inputs, of a run whose Improve steps restart from BC.
_STAGES = {
  'supervised': ({'train_tokens': 100}, ['data']),
  'grow_1/samples': ({'samples': 8, 'tokens': 40}, ['data', 'supervised']),
  'grow_1/reward': ({'rows': 8}, ['grow_1/samples']),
  'grow_1/value': (
    {'train_tokens': 10},
    ['data', 'supervised', 'grow_1/samples', 'grow_1/reward'],
  ),
  'grow_1/improve_1': (
    {'train_tokens': 20, 'select_samples': 2, 'select_tokens': 9},
    ['data', 'supervised', 'grow_1/samples', 'grow_1/reward', 'grow_1/value'],
  ),
  'grow_2/samples': (
    {'samples': 4, 'tokens': 20},
    ['data', 'grow_1/improve_1'],
  ),
  'grow_2/reward': ({'rows': 4}, ['grow_2/samples']),
  'grow_2/improve_1': (
    {'train_tokens': 30, 'select_samples': 2, 'select_tokens': 7},
    ['data', 'supervised', 'grow_2/samples', 'grow_2/reward'],
  ),
  'continued/grow_1/improve_1': (
    {'train_tokens': 5, 'select_samples': 2, 'select_tokens': 8},
    ['data', 'supervised', 'grow_1/improve_1'],
  ),
}


def _spent(tmp_path, name):
  def stage(name):
    counts, inputs = _STAGES[name]
    return types.SimpleNamespace(
      name=name,
      folder=epath.Path(tmp_path) / name,
      manifest={'counts': counts, 'inputs': dict.fromkeys(inputs)},
    )

  return ledger.spent(types.SimpleNamespace(stage=stage), name)


def test_who_restarts_pays_for_what_drew_its_samples(tmp_path):
  spent = _spent(tmp_path, 'grow_2/improve_1')
  # BC, the value model and the policy of the first Grow step, and its own.
  assert spent.train_tokens == 100 + 10 + 20 + 30
  assert spent.samples_grown == 12
  assert spent.samples_drawn == 12 + 4
  assert spent.decoded_tokens == 60 + 16
  assert spent.reward_calls == 12 + 4


def test_a_control_does_not_pay_for_its_twin(tmp_path):
  spent = _spent(tmp_path, 'continued/grow_1/improve_1')
  assert (spent.train_tokens, spent.samples_grown) == (105, 0)
