"""A run of ReST: its settings, and whether they go together.

Nothing is run here: `policy_plan` says which policies come of it, `stages` what
is run for them.
"""

import dataclasses
from typing import Literal

from rest_jax import alarm as alarm_lib
from rest_jax import (
  annotate,
  evaluate,
  grow,
  improve,
  losses,
  supervised,
)
from rest_jax import check_reward as check_reward_lib
from rest_jax import online as online_lib
from rest_jax import train_reward as train_reward_lib
from rest_jax import translate as translate_lib
from rest_jax.data import prepare, splits
from rest_jax.errors import ConfigurationError
from rest_jax.models.config import T5Config
from rest_jax.rewards import learned
from rest_jax.sharding import Layout


@dataclasses.dataclass(frozen=True)
class ReST:
  """A whole run, as gin describes it.

  Attributes:
    model_dir: the run directory.
    data: where text comes from.
    model: shape of the policy.
    supervised: how BC is trained.
    grow: how datasets are grown.
    annotate: the reward model and further metrics.
    improve: how policies are improved.
    evaluate: how policies are evaluated.
    translate: how a policy translates text that it is given.
    train_reward: how the learned reward is trained; None where there is none.
    check_reward: how the reward is checked before Grow.
    layout: how the policy lies on the devices while it is trained.
    grow_layout: how it lies there while it is sampled from and evaluated; None:
      as `layout`, each row of devices with all parameters. Over several
      processes, each samples with its own devices.
    num_grow: G, Grow steps.
    num_improve: I, filtered Improve steps of each Grow step.
    controls: control rows: 'continued' (BC+: BC trained on, on D), 'random'
      (random rows, as many a source as the filter keeps) and 'permuted' (ReST
      on rewards that changed places within each source), each for as many
      updates at the same learning rates as ReST.
    online: online baselines, each trained from BC: RLOO, PPO.
    alarm: what the reward is held against after each evaluation; None for no
      alarm.
    seed: of everything that is drawn.
    supervised_from: a run directory whose BC this run takes; None trains one.
    reward_from: a run directory whose learned reward, and all that it was made
      from, this run takes.
    grow_from: a run directory whose BC and first grown dataset, scores
      included, this run takes.
    imported_samples: a file of others' outputs that join D_g of every Grow
      step, see `data.imported`; None for none.
    compilation_cache: of compiled programs, see `compiled`; None: a default.
    tuning_trials: how many settings of its algorithm were tried on D_select,
      these included; a mark in the results, so that algorithms are compared
      that had equal chances. None: not told.
    reference_free: whether the algorithm is one of rewards that read no
      references, as QE finetuning is, so that others are refused.
  """

  model_dir: str
  data: prepare.Data
  model: T5Config
  supervised: supervised.Supervised
  grow: grow.Grow
  annotate: annotate.Annotate
  improve: improve.Improve
  evaluate: evaluate.Evaluate
  translate: translate_lib.Translate = translate_lib.Translate()
  train_reward: train_reward_lib.TrainReward | None = None
  check_reward: check_reward_lib.CheckReward = check_reward_lib.CheckReward()
  layout: Layout = Layout()
  grow_layout: Layout | None = None
  num_grow: int = 1
  num_improve: int = 4
  controls: tuple[Literal['continued', 'random', 'permuted'], ...] = ()
  online: tuple[online_lib.Online, ...] = ()
  alarm: alarm_lib.Alarm | None = None
  seed: int = 0
  supervised_from: str | None = None
  reward_from: str | None = None
  grow_from: str | None = None
  imported_samples: str | None = None
  compilation_cache: str | None = None
  tuning_trials: int | None = None
  reference_free: bool = False

  def __post_init__(self):
    steps = self.improve.schedule.num_steps
    if not 0 <= self.num_improve <= steps:
      raise ConfigurationError(
        f'NUM_IMPROVE = {self.num_improve}, but the schedule'
        f' {self.improve.schedule} has {steps} steps; give as many'
        ' thresholds as Improve steps.'
      )
    if not self.model_dir:
      raise ConfigurationError(
        "MODEL_DIR = '' would be the current folder; name one for the run."
      )
    if self.num_grow < 0:
      raise ConfigurationError(
        f'NUM_GROW = {self.num_grow} must be at least 0.'
      )
    if self.num_grow and not self.improve_steps:
      raise ConfigurationError(
        'NUM_IMPROVE = 0 without Improve.include_unfiltered leaves nothing to'
        ' do after Grow; set NUM_GROW = 0, or either of the two.'
      )
    if not 0 <= self.seed < 2**31:
      raise ConfigurationError(
        f'SEED = {self.seed} must be a whole number from 0 to 2^31 − 1.'
      )
    if self.tuning_trials is not None and self.tuning_trials < 1:
      raise ConfigurationError(
        f'TUNING_TRIALS = {self.tuning_trials} must be at least 1: these'
        ' settings count too.'
      )
    self._check_learned()
    self._check_lengths()
    self._check_trained_on()
    self._check_loss()
    self._check_several_samples()
    self._check_permuted()
    self._check_online()
    self._check_references()
    if self.alarm is not None:
      self.alarm.check_columns(self.held_out)

  def _check_references(self):
    reward = self.annotate.reward.info
    if not reward.needs_reference:
      return
    if self.improve.original_data == 'filtered':
      raise ConfigurationError(
        f"Improve.original_data = 'filtered' with the reward {reward.name!r}: a"
        ' reference scores highest against itself, so the filter would keep'
        " all of them; use 'unfiltered' or 'none'."
      )
    if self.reference_free:
      raise ConfigurationError(
        f'the reward {reward.name!r} reads references, but'
        ' rest.ReST.reference_free = True asks for one that does not (quality'
        ' estimation); set another REWARD, or presets/raft.gin for this one.'
      )

  def _check_learned(self):
    needed = bool(learned.within(self.annotate))
    if needed and self.train_reward is None:
      raise ConfigurationError(
        'the reward is a learned one, but nothing trains it; set TRAIN_REWARD ='
        ' @train_reward.TrainReward().'
      )
    if needed:
      pair = self.train_reward.pair
      longest = max(
        self.data.max_target_length, self.grow.batching.max_decode_len
      )
      for name, room, wanted in (
        ('source', pair.max_source_length, self.data.max_source_length),
        ('candidate', pair.max_candidate_length, longest),
      ):
        if room + 1 < wanted:  # EOS is not counted here.
          raise ConfigurationError(
            f'REWARD_{name.upper()}_LENGTH = {room}, but a {name} may have'
            f' {wanted} tokens: the reward would not read all of it; raise it.'
          )
    if self.reward_from and self.train_reward is None:
      raise ConfigurationError(
        f'REWARD_FROM = {self.reward_from!r} without TRAIN_REWARD: bind it as'
        ' it was bound there.'
      )
    samples = self.train_reward and isinstance(
      self.train_reward.rows, train_reward_lib.OwnSamples
    )
    if bool(self.data.reward) != bool(samples):
      raise ConfigurationError(
        f'REWARD_SPLIT = {self.data.reward!r}, but the reward'
        f' {"learns" if samples else "does not learn"} from own samples:'
        ' train_reward.OwnSamples and REWARD_SPLIT need each other.'
      )

  def _check_lengths(self):
    """Finds now what a long row would find after hours of Grow."""
    source, target = self.data.max_source_length, self.data.max_target_length
    grown, evaluated = self.grow.batching, self.evaluate.batching
    target = max(target, grown.max_decode_len)
    packing = self.improve.training.packing
    rooms = (
      ('Grow.batching.source_buckets', grown.source_buckets[-1]),
      ('Evaluate.batching.source_buckets', evaluated.source_buckets[-1]),
      ('Improve.training.packing.source_length', packing.source_length),
      ('Improve.training.packing.target_length', packing.target_length),
    )
    if self.data.reward:
      drawn = self.train_reward.rows.grow.batching
      rooms += (('OwnSamples.grow.batching', drawn.source_buckets[-1]),)
    for name, room in rooms:
      longest = target if name.endswith('target_length') else source
      if room < longest:
        raise ConfigurationError(
          f'{name} has room for {room} tokens, but MAX_SOURCE_LENGTH,'
          f' MAX_TARGET_LENGTH or max_decode_len allow {longest}; raise the one'
          ' or lower the other.'
        )

  def trained_on_overlap(self, purpose: Literal['dev', 'test']) -> list[str]:
    """Data sets of D_eval or the test data that the reward was trained on."""
    expression = getattr(self.data, purpose)
    if not expression:
      return []
    split = splits.name_of(expression)
    named = getattr(self.data.task, 'datasets', {}).get(split, ())
    reward = self.annotate.reward
    known = set(map(_plain, reward.info.trained_on))
    if self.train_reward is not None and learned.within(reward):
      known |= set(map(_plain, self.train_reward.rows.trained_on))
    return [name for name in named if _plain(name) in known]

  def _check_trained_on(self):
    if self.annotate.allow_trained_on_overlap:
      return
    for purpose in ('dev', 'test'):
      if overlap := self.trained_on_overlap(purpose):
        split = getattr(self.data, purpose)
        raise ConfigurationError(
          f'the reward {self.annotate.reward.info.name!r} was trained on'
          f' {", ".join(overlap)}, which {purpose.upper()}_SPLIT = {split!r}'
          ' holds, so its figures there would flatter: set another'
          f' {purpose.upper()}_SPLIT or reward, or have the results say so with'
          ' annotate.Annotate.allow_trained_on_overlap = True.'
        )

  def _check_loss(self):
    """Finds now what a loss would miss after hours of Grow."""
    loss = self.improve.training.loss
    what = f'Improve.training.loss = {type(loss).__name__}'
    stored = set(loss.needs) & set(losses.STORED)
    if stored or loss.paired:
      needed = 'pairs of samples' if loss.paired else 'log-probabilities'
      if self.improve.original_data != 'none':
        raise ConfigurationError(
          f'{what} needs {needed} of Grow, which references do not have, but'
          f' ORIGINAL_DATA = {self.improve.original_data!r}; set it to'
          " 'none'."
        )
      if self.imported_samples is not None and stored:
        raise ConfigurationError(
          f'{what} needs log-probabilities of Grow, which IMPORTED_SAMPLES ='
          f' {self.imported_samples!r} do not have; take one of the two away.'
        )
    if not loss.paired:
      return
    if 'random' in self.controls:
      raise ConfigurationError(
        f"{what} trains on pairs, of which CONTROLS = 'random' has none; give"
        " 'permuted' instead."
      )
    packing = self.improve.training.packing
    longest = max(
      self.data.max_target_length, self.grow.batching.max_decode_len
    )
    for name, room, row in (
      ('SOURCE', packing.source_length, self.data.max_source_length),
      ('TARGET', packing.target_length, longest),
    ):
      if room < 2 * row:
        raise ConfigurationError(
          f'PACKED_{name}_LENGTH = {room}, but {what} packs two rows of up to'
          f' {row} tokens together; set it to at least {2 * row}.'
        )

  def _check_several_samples(self):
    """Finds what compares the samples of a source where there is but one."""
    if self.grow.num_samples > 1 or not self.num_grow or self.imported_samples:
      return
    loss = self.improve.training.loss
    compares = {
      f'Improve.training.loss = {type(loss).__name__}': loss.paired,
      "CONTROLS = 'permuted'": 'permuted' in self.controls,
      "PerSource.rule = 'mbr'": (
        getattr(self.improve.schedule, 'rule', None) == 'mbr'
      ),
    }
    for what, does in compares.items():
      if does:
        raise ConfigurationError(
          f'{what} compares the samples of a source with each other, but'
          ' NUM_SAMPLES = 1; set it to at least 2.'
        )

  def _check_permuted(self):
    """Rewards that nothing reads may change places without any change."""
    improve = self.improve
    by_mbr = getattr(improve.schedule, 'rule', None) == 'mbr'
    if 'permuted' in self.controls and by_mbr and not improve.uses_rewards:
      raise ConfigurationError(
        "CONTROLS = 'permuted' with PerSource.rule = 'mbr': neither that filter"
        ' nor the loss reads rewards, so the control would be the policy that'
        " it controls; give 'random' instead."
      )

  def _check_online(self):
    names = [settings.algorithm for settings in self.online]
    if len(set(names)) < len(names):
      raise ConfigurationError(
        f'ReST.online has {", ".join(names)}: give each algorithm once; others'
        ' of the same kind belong into runs that branch (SUPERVISED_FROM).'
      )
    for settings in self.online:
      rooms = settings.batching
      if (
        rooms.source_buckets[-1] < self.data.max_source_length
        or rooms.max_decode_len > self.evaluate.batching.max_decode_len
      ):
        raise ConfigurationError(
          'Online.batching has to hold MAX_SOURCE_LENGTH ='
          f' {self.data.max_source_length} tokens, and its samples may not be'
          ' longer than those of evaluations.'
        )

  @property
  def held_out(self) -> dict[str, bool]:
    """Columns of results.csv beside the reward: whether higher is better."""
    out = {'bleu': True, 'chrf': True}
    for metric in self.annotate.further_metrics:
      for kind in ('mean', 'greedy'):
        out[f'{metric.info.name}_{kind}'] = metric.info.higher_is_better
    return out

  @property
  def decoding_layout(self) -> Layout:
    """How the policy lies on the devices while it is sampled from."""
    if self.grow_layout is not None:
      return self.grow_layout
    return dataclasses.replace(self.layout, fsdp=False)

  @property
  def improve_steps(self) -> range:
    """The Improve steps of each Grow step."""
    first = 0 if self.improve.include_unfiltered else 1
    return range(first, self.num_improve + 1)


def _plain(name: str) -> str:
  """A data set's name as it is compared: 'WMT-19' is 'wmt19'."""
  return ''.join(c for c in name.casefold() if c.isalnum())
