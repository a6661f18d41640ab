"""The reward of a policy on D_select, which decides what training keeps."""

import numpy as np

from rest_jax import hosts, preemption, rewarded
from rest_jax.context import Context
from rest_jax.errors import PreemptionError
from rest_jax.evaluate import Evaluate
from rest_jax.rewards import base
from rest_jax.types import Params


class SelectReward:
  """From parameters to their mean reward on D_select; counts what it costs.

  Attributes:
    num_samples: samples that each call draws.
    decoded_tokens: tokens of all calls so far.
  """

  def __init__(
    self, context: Context, settings: Evaluate, reward: base.RewardModel
  ):
    """Reads the sources; draws nothing yet."""
    split = rewarded.Split(context, 'select', settings.select_sources)
    self._rewarded = rewarded.Rewarded(
      context, settings.batching, reward, split
    )
    self._context, self._settings = context, settings
    self._num_sources = len(split.sources)
    self.num_samples = self._num_sources * settings.select_samples
    self.decoded_tokens = 0

  def __call__(self, params: Params) -> float:
    """The mean reward, in [0, 1].

    Raises:
      PreemptionError: in all processes, SIGTERM came to one.
    """
    decoder, settings = self._context.decoder, self._settings
    params = decoder.adopt(decoder.inference_params(params))
    stopped, mine = None, None
    try:
      mine = self._rewarded(params, settings.sampling, settings.select_samples)
    except PreemptionError as error:
      stopped = error
    # To save what was trained, all have to stop where one does.
    if any(hosts.gather('whether to stop', stopped is not None)):
      raise stopped or preemption.preempted()
    tokens = int(mine.generated.lengths.sum())
    self.decoded_tokens += sum(hosts.gather('decoded tokens', tokens))
    rewards = hosts.gather_rows(mine.rewards, self._num_sources)
    return float(rewards.mean(dtype=np.float64))
