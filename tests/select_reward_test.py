import types

import numpy as np
import pytest
import small_run

from rest_jax import select_reward


def test_the_reward_that_chooses_is_the_mean_over_all_samples(
  monkeypatch, tmp_path
):
  rewards = np.float32([[0.1, 0.3], [0.5, 0.7], [0.2, 0.2], [0.0, 0.4]])
  lengths = np.array([[1, 2], [3, 4], [1, 1], [2, 2]])
  asked = []

  class Rewarded:
    def __init__(self, context, batching, reward, split):
      asked.append(split)

    def __call__(self, params, sampling, num_samples):
      asked.append((sampling, num_samples))
      generated = types.SimpleNamespace(lengths=lengths)
      return types.SimpleNamespace(rewards=rewards, generated=generated)

  def split(context, name, most):
    return types.SimpleNamespace(name=name, most=most, sources=['x'] * 4)

  fake = types.SimpleNamespace(Split=split, Rewarded=Rewarded)
  monkeypatch.setattr(select_reward, 'rewarded', fake)
  context = small_run.make(tmp_path)
  settings = small_run.evaluation()
  mean = select_reward.SelectReward(context, settings, small_run.Bytes())
  params = context.params('supervised')
  assert mean(params) == pytest.approx(2.4 / 8)
  assert (mean.num_samples, mean.decoded_tokens) == (8, 16)
  mean(params)
  assert mean.decoded_tokens == 32
  assert (asked[0].name, asked[0].most) == ('select', 4)
  assert asked[1:] == [(settings.sampling, 2)] * 2
