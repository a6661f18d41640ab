"""What would stop a later stage of a run, found out before a costly one."""

from collections.abc import Collection

import jax

from rest_jax import grow, hosts
from rest_jax.context import Context
from rest_jax.data import store
from rest_jax.errors import RewardError
from rest_jax.policy import Policy
from rest_jax.rest import ReST
from rest_jax.training import optimizer, step


def check_layouts(run: ReST) -> None:
  """Makes sure that the policy can be trained and sampled from here.

  Raises:
    ConfigurationError: a layout does not fit the devices or the network.
  """
  several = hosts.count() > 1
  assert Policy(run.model, run.layout).placement.batch_share
  assert Policy(run.model, run.decoding_layout, local=several).mesh


def check_updates(run: ReST, pending: Collection[str]) -> None:
  """Makes sure that the updates of BC and of Improve can be made here.

  The first update of an Improve step would find it out after BC and Grow.

  Args:
    run: the run.
    pending: stages that are to be made.

  Raises:
    ConfigurationError: they cannot; the binding is named.
  """
  trained = []
  if 'supervised' in pending and run.supervised.stopping.max_steps:
    trained.append(run.supervised.training)
  if any('/improve_' in name for name in pending):
    trained.append(run.improve.training)
  if not trained:
    return
  policy = Policy(run.model, run.layout)
  leaves, _ = jax.tree_util.tree_flatten_with_path(policy.abstract_params())
  names = [
    jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in leaves
  ]
  for training in trained:
    optimizer.check_frozen(training.optimizer.frozen, names)
    update = step.make_train_step(
      policy,
      training.optimizer,
      training.loss,
      num_microbatches=training.num_microbatches,
    )
    update.check_rows(training.packing.rows_per_batch)


def check_size(run: ReST, context: Context) -> None:
  """Makes sure that there are sources to grow from for every process.

  Raises:
    ConfigurationError: there are not.
  """
  if run.num_grow:
    sources = store.count_rows(context.split_folder('grow'))
    grow.check_size(run.grow, sources, 'grow_1/samples')
  if run.data.reward:
    rows = run.train_reward.rows
    sources = store.count_rows(context.split_folder('reward'))
    grow.check_size(rows.grow, sources, rows.sample_stage)


def check_references(run: ReST, context: Context) -> None:
  """Makes sure that metrics find their references, before a costly stage.

  Raises:
    RewardError: a metric needs references that sources lack.
  """
  splits = context.read('data').manifest['extra']['splits']
  sampled = 'grow' if 'grow' in splits else 'train'
  wanted = [(run.annotate.reward, 'select'), (run.annotate.reward, 'report')]
  if run.data.reward:
    wanted.append((run.train_reward.rows.metric, 'reward'))
  if run.online:
    wanted.append((run.annotate.reward, sampled))
  if run.num_grow:
    wanted += [(model, sampled) for model in run.annotate.metrics]
  for model, split in wanted:
    rows = splits[split]['rows']
    lacking = rows - splits[split]['with_target']
    if model.info.needs_reference and lacking:
      binding = {sampled: 'GROW_SPLIT', 'reward': 'REWARD_SPLIT'}.get(
        split, 'DEV_SPLIT'
      )
      raise RewardError(
        f'reward {model.info.name!r} needs references, and {lacking:,} of'
        f' {rows:,} sources of the {split} data have none: use a'
        f' reference-free reward, or a {binding} with references.'
      )
