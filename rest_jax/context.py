"""What every stage of a run shares: folders, tokenizer, policy, parameters."""

import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
from etils import epath

from rest_jax import hosts, storage
from rest_jax.checkpoint import native
from rest_jax.data import prepare, store
from rest_jax.data import tokenizer as tokenizer_lib
from rest_jax.errors import ConfigurationError
from rest_jax.models.config import T5Config
from rest_jax.policy import Policy
from rest_jax.progress import Progress
from rest_jax.rewards import cache
from rest_jax.run_directory import RunDirectory, Stage
from rest_jax.sharding import Layout
from rest_jax.types import Params

BC = 'supervised'  # Stage of the supervised policy.
PARAMS = 'params'  # Folder of a policy's final parameters in its stage.
REWARD_DATA = 'reward_data'  # Store of samples that the reward learns from.
IMPORTED = 'imported'  # Store of others' outputs, as grow_1 is of samples.


@dataclasses.dataclass
class Context:
  """An open run, as its stages see it.

  Attributes:
    directory: the run directory.
    elsewhere: stages that are read from another run (SUPERVISED_FROM, …).
    model: shape of the policy.
    layout: how the policy lies on the devices while it is trained.
    seed: of the run.
    progress: where to say what happens.
    scores: what rewards have scored before; None remembers nothing.
    score_batch_size: rows that a metric scores at a time, at most.
    decoding_layout: how the policy lies on the devices while it is sampled
      from; None: as `layout`.
  """

  directory: RunDirectory
  elsewhere: Mapping[str, Stage]
  model: T5Config
  layout: Layout
  seed: int
  progress: Progress
  scores: cache.ScoreCache | None = None
  score_batch_size: int = 1024
  decoding_layout: Layout | None = None
  _params: tuple[str, Params, Params] | None = None

  def prepare_data(self, stage: Stage, data: prepare.Data) -> None:
    """Reads, numbers and tokenises the run's data into `stage`."""
    began, rows = time.monotonic(), 0

    def advance(more: int) -> None:
      nonlocal rows
      rows += more
      self.progress.update(rows, 0)

    # What a killed process left; the data stage is made in one go.
    for child in stage.folder.iterdir():
      if child.is_dir():
        storage.remove_folder(child)
    report = data.prepare(stage.folder, store.write_sources, advance)
    counts = {
      name: split.get('rows', 0) for name, split in report['splits'].items()
    }
    self.progress.note(
      ', '.join(f'{name} {rows:,}' for name, rows in counts.items())
    )
    for name, split in report['splits'].items():
      for problem in ('over_long', 'empty', 'in_dev', 'near_duplicates'):
        if split.get(problem):
          self.progress.note(f'{name}: {split[problem]:,} rows {problem}')
      if split.get('rewritten'):
        self.progress.note(
          f'{name}: {split["rewritten"]:,} rows rewritten: the tokenizer gives'
          ' their targets back otherwise'
        )
    stage.commit(counts, time.monotonic() - began, extra=report)

  def stage(self, name: str) -> Stage:
    """The stage of that name, here or in the run it is taken from."""
    return self.elsewhere.get(name) or self.directory.stage(name)

  def read(self, name: str) -> Stage:
    """The committed stage of that name, its checksums verified."""
    stage = self.stage(name)
    if not stage.committed:
      raise ConfigurationError(
        f'stage {name} is needed and not there yet; run it first, with'
        f' --stage={name} or --run_mode=rest.'
      )
    stage.verify()
    return stage

  @functools.cached_property
  def tokenizer(self) -> tokenizer_lib.Tokenizer:
    """The run's tokenizer."""
    return tokenizer_lib.load_tokenizer(self.read('data').folder)

  @functools.cached_property
  def policy(self) -> Policy:
    """The policy's functions; its parameters come from `params`."""
    if self.model.vocab_size < self.tokenizer.size:
      raise ConfigurationError(
        f'T5Config.vocab_size = {self.model.vocab_size} is smaller than the'
        f" tokenizer's {self.tokenizer.size} ids; raise it to at least that"
        ' (a multiple of 128 is fastest).'
      )
    if self.model.eos_id != self.tokenizer.eos_id:
      raise ConfigurationError(
        f'T5Config.eos_id = {self.model.eos_id} is not the'
        f" tokenizer's {self.tokenizer.eos_id}: bind T5Config.eos_id ="
        f' {self.tokenizer.eos_id}, or give the tokenizer that belongs to the'
        ' checkpoint (TOKENIZER).'
      )
    return Policy(config=self.model, layout=self.layout)

  @functools.cached_property
  def decoder(self) -> Policy:
    """The policy, as it lies on the devices while it is sampled from."""
    return dataclasses.replace(
      self.policy,
      layout=self.decoding_layout or self.layout,
      local=hosts.count() > 1,
    )

  def params(self, policy_name: str) -> Params:
    """The parameters of a committed policy stage, to train from."""
    return self._restored(policy_name, self.policy.placed_params())

  def decoding_params(self, policy_name: str) -> Params:
    """The parameters of a committed policy stage, as `decoder` reads them."""
    return self._restored(policy_name, self.decoder.placed_inference_params())

  def _restored(self, policy_name: str, abstract: Params) -> Params:
    """Parameters from disk; the last are kept."""
    if self._params is None or self._params[:2] != (policy_name, abstract):
      self._params = None  # Let go of the old before the new are read.
      params = self.read_params(policy_name, abstract)
      self._params = (policy_name, abstract, params)
    return self._params[2]

  def forget_params(self) -> None:
    """Lets go of the parameters that are kept, so that devices have room."""
    self._params = None

  def read_params(
    self, policy_name: str, abstract: Params | None = None
  ) -> Params:
    """The parameters of a committed policy stage, which are not kept.

    Args:
      policy_name: the stage.
      abstract: their shapes and places; as those to train from by default.
    """
    if abstract is None:
      abstract = self.policy.placed_params()
    return native.restore_params(
      self.read(policy_name).folder / PARAMS, abstract
    )

  def split_folder(self, split: str) -> epath.Path:
    """Folder of a data split; `grow` is `train` where they are the same."""
    folder = self.read('data').folder / split
    if split == 'grow' and not folder.exists():
      folder = self.read('data').folder / 'train'
    return folder

  def sources(
    self, split: str, columns: Sequence[str] | None = None
  ) -> Iterator[pa.Table]:
    """Streams the rows of a data split, a row group at a time."""
    return store.read_row_groups(self.split_folder(split), columns)
