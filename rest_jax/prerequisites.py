"""What would stop a later stage of a run, found out before a costly one."""

from collections.abc import Collection, Iterator

import jax

from rest_jax import grow, hosts, train_reward
from rest_jax.checkpoint import formats
from rest_jax.context import Context
from rest_jax.data import prepare, store
from rest_jax.errors import ConfigurationError, RewardError
from rest_jax.network import Network
from rest_jax.policy import Policy
from rest_jax.rest import ReST
from rest_jax.rewards.regressor import Regressor
from rest_jax.training import early_stopping, optimizer, step
from rest_jax.value_model import ValueModel


def check_layouts(run: ReST) -> None:
  """Makes sure that the policy can be trained and sampled from here.

  Raises:
    ConfigurationError: a layout does not fit the devices or the network.
  """
  several = hosts.count() > 1
  _ = Policy(run.model, run.layout).placement.batch_share
  _ = Policy(run.model, run.decoding_layout, local=several).mesh


def check_updates(run: ReST, pending: Collection[str]) -> None:
  """Makes sure that updates of BC, rewards, values and Improve can be made.

  The first update of an Improve step would find it out after BC and Grow.

  Args:
    run: the run.
    pending: stages that are to be made.

  Raises:
    ConfigurationError: they cannot; the binding is named.
  """
  for network, training, binding in _trained(run, pending):
    leaves, _ = jax.tree_util.tree_flatten_with_path(network.abstract_params())
    names = [
      jax.tree_util.keystr(path, simple=True, separator='/')
      for path, _ in leaves
    ]
    optimizer.check_frozen(training.optimizer.frozen, names)
    update = step.make_train_step(
      network,
      training.optimizer,
      training.loss,
      num_microbatches=training.num_microbatches,
    )
    update.check_rows(training.packing.rows_per_batch, binding)


def _trained(
  run: ReST, pending: Collection[str]
) -> Iterator[tuple[Network | Policy, early_stopping.Training, str]]:
  """Each network that is to be trained, how, and what binds its batches."""
  policy = Policy(run.model, run.layout)
  if 'supervised' in pending and run.supervised.stopping.max_steps:
    yield policy, run.supervised.training, 'BATCH_ROWS'
  if train_reward.STAGE in pending:
    settings = run.train_reward
    network = Regressor(settings.model, run.layout)
    yield network, settings.training, 'REWARD_BATCH_ROWS'
  if any(name.endswith('/value') for name in pending):
    network = ValueModel(run.model, run.layout)
    yield network, run.improve.value.training, 'BATCH_ROWS'
  policies = (name for name in pending if '/evaluation/' not in name)
  if any('/improve_' in name for name in policies):
    yield policy, run.improve.training, 'BATCH_ROWS'


def check_checkpoint(run: ReST, pending: Collection[str]) -> None:
  """Holds model and tokenizer against what the initial checkpoint tells.

  What is in no array's shape would otherwise give another function of the same
  parameters, and other texts of the same ids, without a word.

  Raises:
    ConfigurationError: they differ.
  """
  path = run.supervised.initial_checkpoint_path
  if path is not None and 'supervised' in pending:
    found = formats.find(path)
    formats.check_model(found, run.model)
    if found.format != 'native' and isinstance(
      run.data.tokenizer, prepare.TrainedTokenizer
    ):
      raise ConfigurationError(
        f'INITIAL_CHECKPOINT_PATH = {path!r} has a tokenizer of its own, and'
        ' TOKENIZER = @prepare.TrainedTokenizer() makes another, whose'
        ' ids stand for other texts: take @prepare.CheckpointTokenizer() with'
        ' prepare.CheckpointTokenizer.folder (Hugging Face), or'
        ' @prepare.GivenTokenizer() with prepare.GivenTokenizer.path.'
      )


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
    wanted += [(model, sampled) for model in run.annotate.of_samples]
  for model, split in wanted:
    rows = splits[split]['rows']
    lacking = rows - splits[split]['with_target']
    if model.info.needs_reference and lacking:
      binding = {sampled: 'GROW_SPLIT', 'reward': 'REWARD_SPLIT'}.get(
        split, 'DEV_SPLIT'
      )
      further = split == sampled and model != run.annotate.reward
      way = (
        'bind annotate.Annotate.further_on_samples = False, which has it judge'
        ' evaluations alone'
        if further
        else 'use a reference-free reward'
      )
      raise RewardError(
        f'{"further metric" if further else "reward"} {model.info.name!r} needs'
        f' references, and {lacking:,} of {rows:,} sources of the {split} data'
        f' have none: {way}, or a {binding} with references.'
      )
