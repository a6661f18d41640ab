import dataclasses
import io
import re

import pytest
from etils import epath

from rest_jax import (
  annotate,
  branching,
  config,
  evaluate,
  grow,
  improve,
  losses,
  offline_losses,
  online,
  online_losses,
  policy_plan,
  prerequisites,
  progress,
  rest,
  reward_losses,
  run_directory,
  schedule,
  selection,
  stage_plan,
  stages,
  supervised,
  train_reward,
  values,
)
from rest_jax.context import Context
from rest_jax.data import corpora, prepare, reward_rows
from rest_jax.data.packing import Packing
from rest_jax.errors import ConfigurationError, RewardError
from rest_jax.models.config import T5Config
from rest_jax.rewards import (
  base,
  combined,
  learned,
  lexical,
  numerals,
  penalties,
)
from rest_jax.rewards.regressor import Buckets
from rest_jax.training.early_stopping import Stopping, Training
from rest_jax.training.optimizer import Optimizer


@pytest.fixture
def run():
  """A run of two Grow steps with two filters, and both controls."""
  training = Training(Optimizer(), Packing(128, 128, 2))
  stopping = Stopping(max_steps=2, eval_every=1, patience=1)
  return rest.ReST(
    model_dir='unused',
    data=prepare.Data(corpora.NumeralsTask(), prepare.Bytes()),
    model=T5Config(vocab_size=384),
    supervised=supervised.Supervised(training, stopping),
    grow=grow.Grow(),
    annotate=annotate.Annotate(numerals.NumeralValue()),
    improve=improve.Improve(
      training, stopping, schedule.Thresholds((0.5, 0.9))
    ),
    evaluate=evaluate.Evaluate('en'),
    num_grow=2,
    num_improve=2,
    controls=('continued', 'random'),
  )


def starts(run):
  return {policy.stage: policy.start for policy in policy_plan.policies(run)}


def test_every_policy_starts_from_the_one_before_it(run):
  assert starts(run) == {
    'supervised': None,
    'grow_1/improve_0': 'supervised',
    'grow_1/improve_1': 'grow_1/improve_0',
    'grow_1/improve_2': 'grow_1/improve_1',
    'grow_2/improve_0': 'grow_1/improve_2',
    'grow_2/improve_1': 'grow_2/improve_0',
    'grow_2/improve_2': 'grow_2/improve_1',
    'continued/grow_1/improve_0': 'supervised',
    'continued/grow_1/improve_1': 'continued/grow_1/improve_0',
    'continued/grow_1/improve_2': 'continued/grow_1/improve_1',
    'continued/grow_2/improve_0': 'continued/grow_1/improve_2',
    'continued/grow_2/improve_1': 'continued/grow_2/improve_0',
    'continued/grow_2/improve_2': 'continued/grow_2/improve_1',
    'random/grow_2/improve_1': 'grow_2/improve_0',
    'random/grow_2/improve_2': 'random/grow_2/improve_1',
  }
  reported = [p.label for p in policy_plan.policies(run) if p.reported]
  assert reported[0] == 'BC'
  assert reported[-2:] == ['BC+', 'G2 I2 random']


def test_held_out_metrics_know_which_way_is_better(run):
  ter = lexical.SentenceTer('en')
  judged = annotate.Annotate(numerals.NumeralValue(), further_metrics=(ter,))
  assert dataclasses.replace(run, annotate=judged).held_out == {
    'bleu': True,
    'chrf': True,
    'ter_mean': False,
    'ter_greedy': False,
  }


def test_policies_that_restart_have_controls_that_do(run):
  restarting = dataclasses.replace(
    run, improve=dataclasses.replace(run.improve, restart_from_base=True)
  )
  found = starts(restarting)
  # Of each control the one that is reported; nothing starts from others.
  assert {name for name in found if name.count('/') > 1} == {
    'continued/grow_2/improve_2',
    'random/grow_2/improve_2',
  }
  grown = {name for name in starts(run) if name.count('/') == 1}
  assert grown <= set(found)
  assert {start for name, start in found.items() if name != 'supervised'} == {
    'supervised'
  }


def test_each_stage_comes_after_what_it_reads(run):
  made = set()
  for plan in stages.plan(run):
    assert set(plan.inputs) <= made, plan.name
    made.add(plan.name)
  assert len(made) == len(stages.plan(run))


@dataclasses.dataclass(frozen=True)
class Learned:
  """A metric that has seen WMT, as MetricX-24 has."""

  info = base.RewardInfo(
    'learned', '1', 0.0, 1.0, trained_on=('WMT-19', 'wmt20')
  )

  def score(self, sources, candidates, references=None):
    raise AssertionError('nothing is run here')


def judged_by(run, reward, allowed=False, **splits):
  task = corpora.BitextTask(
    'unused', 'zh', 'en', {},
    datasets={'dev': ('wmt19',), 'test': ('wmt20', 'own'), 'new': ('wmt23',)},
  )  # fmt: skip
  return dataclasses.replace(
    run,
    data=prepare.Data(task, prepare.Bytes(), **splits),
    annotate=annotate.Annotate(reward, allow_trained_on_overlap=allowed),
  )


@pytest.mark.parametrize(
  ('splits', 'said'),
  [
    ({'dev': 'dev'}, "'learned' was trained on wmt19, which DEV_SPLIT = 'dev'"),
    ({'dev': 'dev[:50%]'}, 'trained on wmt19'),
    ({'dev': 'new', 'test': 'test'}, 'trained on wmt20, which TEST_SPLIT'),
  ],
)
def test_a_reward_does_not_judge_what_it_was_trained_on(run, splits, said):
  with pytest.raises(ConfigurationError, match=re.escape(said)):
    judged_by(run, Learned(), **splits)
  # Nor as a part of another one.
  with pytest.raises(ConfigurationError, match='trained on wmt'):
    judged_by(run, combined.Product((Learned(), penalties.Length())), **splits)
  judged_by(run, penalties.Length(), **splits)


def test_what_was_learned_from_judges_as_little(run):
  rows = reward_rows.ScoredFile('unused', trained_on=('wmt19',))
  known = dataclasses.replace(run, train_reward=_learned_from(run, rows))
  made = judged_by(known, learned.Learned(), allowed=True, dev='dev')
  assert judged_by(known, penalties.Length(), dev='dev')  # Not what judges.
  assert made.trained_on_overlap('dev') == ['wmt19']
  other = dataclasses.replace(rows, trained_on=())
  free = dataclasses.replace(made, train_reward=_learned_from(made, other))
  assert free.trained_on_overlap('dev') == []
  # What the metric has seen, its scores have too.
  own = train_reward.OwnSamples(Learned(), run.grow)
  assert own.trained_on == ('WMT-19', 'wmt20')


def _learned_from(run, rows):
  return train_reward.TrainReward(
    rows=rows,
    model=run.model,
    training=Training(Optimizer(), Packing(520, 16, 2)),
    stopping=run.supervised.stopping,
    buckets=Buckets(lengths=(258,), tokens_per_batch=258),
  )


def test_a_part_for_the_reward_needs_a_reward_that_learns_from_it(run):
  data = dataclasses.replace(run.data, reward='train[:50%]')
  with pytest.raises(ConfigurationError, match='need each other'):
    dataclasses.replace(run, data=data)


def test_an_empty_folder_and_a_search_that_ends_too_soon_are_refused(run):
  with pytest.raises(ConfigurationError, match="MODEL_DIR = ''"):
    dataclasses.replace(run, model_dir='')
  for alpha in (-0.5, float('nan'), float('inf')):
    with pytest.raises(ConfigurationError, match=r'Evaluate\.alpha'):
      dataclasses.replace(run.evaluate, alpha=alpha)


def test_other_data_are_free_and_an_allowed_overlap_is_recorded(run):
  assert judged_by(run, Learned(), dev='new').trained_on_overlap('dev') == []
  allowed = judged_by(run, Learned(), True, dev='dev', test='test')
  (bc, *_) = policy_plan.policies(allowed)

  def config_of(run, split):
    return stages.evaluation_stage(run, bc, split).config

  for split, names in (('report', 'wmt19'), ('test', 'wmt20')):
    assert config_of(allowed, split)['reward_trained_on'] == names
  # What was evaluated before there were such names stays valid.
  assert 'reward_trained_on' not in config_of(
    judged_by(run, Learned(), True, dev='new'), 'report'
  )


def test_naming_data_sets_makes_no_data_stale(run):
  named = judged_by(run, penalties.Length()).data
  task = dataclasses.replace(named.task, datasets={})
  unnamed = dataclasses.replace(named, task=task)
  assert config.flatten(named, 'Data') == config.flatten(unnamed, 'Data')


def test_checks_stand_before_the_first_grow_step(run):
  names = [plan.name for plan in stages.plan(run)]
  at = names.index('grow_1/samples')
  assert names[at - 2 : at] == [
    'check_reward/references',
    'check_reward/candidates',
  ]
  assert names.count('check_reward/references') == 1


def test_a_combination_reads_the_scores_of_its_parts(run):
  inner = combined.LowerBound(
    (penalties.Length(), penalties.Repetition()), name='bound'
  )
  outer = combined.Product((numerals.NumeralValue(), inner))
  plans = stages.plan(
    dataclasses.replace(run, annotate=annotate.Annotate(outer))
  )
  inputs = {plan.name: plan.inputs for plan in plans}
  scores = 'grow_2/scores'
  assert inputs[f'{scores}/bound'] == (
    f'{scores}/length_penalty',
    f'{scores}/repetition_penalty',
  )
  assert inputs[f'{scores}/product'] == (
    f'{scores}/numeral_value',
    f'{scores}/bound',
  )
  assert inputs['grow_2/reward'] == (f'{scores}/product',)
  assert inputs[f'{scores}/numeral_value'] == ('data', 'grow_2/samples')


def with_loss(run, loss, **changed):
  training = dataclasses.replace(run.improve.training, loss=loss)
  fields = {'training': training, 'original_data': 'none'}
  improving = dataclasses.replace(
    run.improve, **fields | changed.pop('improve', {})
  )
  return dataclasses.replace(run, improve=improving, **changed)


@pytest.mark.parametrize(
  ('loss', 'changed', 'named'),
  [
    (
      offline_losses.ClippedImportance(),
      {'improve': {'original_data': 'filtered'}},
      "ClippedImportance needs log-probabilities .* ORIGINAL_DATA = 'filtered'",
    ),
    (
      offline_losses.ClippedImportance(),
      {'imported_samples': 'a.tsv'},
      "IMPORTED_SAMPLES = 'a.tsv'",
    ),
    (offline_losses.Preference(), {}, "CONTROLS = 'random'"),
    (
      offline_losses.Preference(),
      {'controls': (), 'data': prepare.Data(
        corpora.NumeralsTask(), prepare.Bytes(), max_source_length=100
      )},
      'PACKED_SOURCE_LENGTH = 128, .* at least 200',
    ),
  ],
)  # fmt: skip
def test_a_loss_that_lacks_what_it_needs_is_an_error(run, loss, changed, named):
  with pytest.raises(ConfigurationError, match=named):
    with_loss(run, loss, **changed)


@pytest.mark.parametrize(
  'loss',
  [
    values.ValueRegression(),
    online_losses.PolicyGradient(),
    online_losses.ProximalPolicy(),
    reward_losses.Regression(),
  ],
)
def test_a_loss_of_another_stage_is_an_error(run, loss):
  named = rf'Improve\.training\.loss = {type(loss).__name__} is no loss'
  with pytest.raises(ConfigurationError, match=named):
    with_loss(run, loss)


def test_a_reward_that_reads_references_cannot_filter_them(run):
  chrf = annotate.Annotate(lexical.SentenceChrf())
  with pytest.raises(ConfigurationError, match=r"original_data = 'filtered'"):
    dataclasses.replace(run, annotate=chrf)
  improving = dataclasses.replace(run.improve, original_data='unfiltered')
  dataclasses.replace(run, annotate=chrf, improve=improving)


@pytest.mark.parametrize(
  'changed',
  [
    {'learning_rate_decay': 0.0},
    {'learning_rate_decay': 1.5},
    {'mixture': 1.5},
  ],
)
def test_settings_of_improve_that_cannot_be(run, changed):
  (name,) = changed
  named = {'mixture': 'MIXTURE'}.get(name, name)
  with pytest.raises(ConfigurationError, match=named):
    dataclasses.replace(run.improve, **changed)


@pytest.mark.parametrize(
  ('changed', 'named'),
  [
    ({'loss': offline_losses.Preference()}, r'training\.loss = Preference'),
    ({'controls': ('permuted',)}, "CONTROLS = 'permuted'"),
    ({'schedule': schedule.PerSource('mbr', (2, 1))}, r"rule = 'mbr'"),
  ],
)
def test_one_sample_a_source_has_nothing_to_compare_with(run, changed, named):
  single = dataclasses.replace(run.grow, num_samples=1)
  packing = dataclasses.replace(
    run.improve.training.packing, source_length=256, target_length=256
  )
  improving = dataclasses.replace(
    run.improve,
    training=dataclasses.replace(run.improve.training, packing=packing),
    schedule=changed.get('schedule', run.improve.schedule),
  )
  controls = changed.get('controls', ())

  def build(grow):
    made = dataclasses.replace(
      run, grow=grow, controls=controls, improve=improving
    )
    return with_loss(made, changed.get('loss', losses.BehavioralCloning()))

  with pytest.raises(ConfigurationError, match=f'{named}.* NUM_SAMPLES = 1'):
    build(single)
  build(dataclasses.replace(run.grow, num_samples=2))


def test_gold_takes_references_too(run):
  gold = with_loss(
    run, offline_losses.Gold(), improve={'original_data': 'filtered'}
  )
  assert policy_plan.loss_of(gold, policy_plan.policies(gold)[1]).name == 'gold'
  assert policy_plan.loss_of(gold, policy_plan.policies(gold)[0]).name == 'bc'
  (control,) = (p for p in policy_plan.policies(gold) if p.label == 'BC+')
  assert policy_plan.loss_of(gold, control).name == 'bc'


def test_the_permuted_control_starts_as_its_twin_does(run):
  permuted = dataclasses.replace(run, controls=('permuted',))
  found = {k: v for k, v in starts(permuted).items() if 'permuted' in k}
  assert found == {
    'permuted/grow_2/improve_1': 'grow_2/improve_0',
    'permuted/grow_2/improve_2': 'permuted/grow_2/improve_1',
  }
  last = policy_plan.policies(permuted)[-1]
  assert (last.label, last.reported) == ('G2 I2 permuted', True)
  weighted = with_loss(permuted, losses.RewardWeighted())
  # Where rewards weigh rows, there is something to permute without a filter.
  assert starts(weighted)['permuted/grow_2/improve_0'] == 'grow_1/improve_2'


def test_improve_0_is_controlled_where_further_selections_read_rewards(run):
  def controlled(*after):
    improving = dataclasses.replace(run.improve, after=after)
    made = dataclasses.replace(
      run, improve=improving, controls=('random', 'permuted')
    )
    return {name for name in starts(made) if name.endswith('2/improve_0')}

  plain = {'grow_2/improve_0'}
  assert controlled() == controlled(selection.Cap(2)) == plain
  assert controlled(selection.TopK(1)) == plain | {
    'random/grow_2/improve_0',
    'permuted/grow_2/improve_0',
  }


def test_a_filter_that_reads_no_rewards_has_no_permuted_control(run):
  def build(**changed):
    improving = dataclasses.replace(
      run.improve, schedule=schedule.PerSource('mbr', (2, 1)), **changed
    )
    grow = dataclasses.replace(run.grow, num_samples=4)
    return dataclasses.replace(
      run, grow=grow, improve=improving, controls=('permuted',)
    )

  with pytest.raises(ConfigurationError, match=r'with PerSource\.rule ='):
    build()
  build(after=(selection.TopK(1),))


@pytest.fixture
def data_context(run, tmp_path):
  """Makes a run whose data are made: split → its rows of 9 with a target."""

  def make(with_target):
    counts = {'select': 9, 'report': 9, **with_target}
    splits = {k: {'rows': 9, 'with_target': n} for k, n in counts.items()}
    directory = run_directory.RunDirectory(tmp_path)
    data = directory.stage('data')
    data.begin({}, {})
    data.commit({}, 0.0, {'splits': splits})
    return Context(
      directory=directory,
      elsewhere={},
      model=run.model,
      layout=run.layout,
      seed=0,
      progress=progress.Progress(io.StringIO()),
    )

  return make


def test_references_that_an_online_baseline_needs_are_missed_before_bc(
  run, data_context
):
  context = data_context({'grow': 0})
  improving = dataclasses.replace(run.improve, original_data='none')
  online_alone = dataclasses.replace(
    run, improve=improving, num_grow=0, controls=(),
    annotate=annotate.Annotate(lexical.SentenceChrf()),
    online=(online.Online(Optimizer(), improving.stopping),),
  )  # fmt: skip
  with pytest.raises(RewardError, match='GROW_SPLIT with references'):
    prerequisites.check_references(online_alone, context)
  prerequisites.check_references(
    dataclasses.replace(online_alone, online=()), context
  )


def test_a_further_metric_may_judge_evaluations_alone(run, data_context):
  context = data_context({'grow': 0})
  everywhere = dataclasses.replace(
    run,
    annotate=annotate.Annotate(run.annotate.reward, (lexical.SentenceChrf(),)),
  )
  with pytest.raises(RewardError, match=r"metric 'chrf'.*further_on_samples"):
    prerequisites.check_references(everywhere, context)
  alone = dataclasses.replace(
    everywhere,
    annotate=dataclasses.replace(everywhere.annotate, further_on_samples=False),
  )
  prerequisites.check_references(alone, context)
  names = [{p.name for p in stages.plan(each)} for each in (everywhere, alone)]
  assert names[0] - names[1] == {
    f'grow_{g}/scores/chrf' for g in range(1, run.num_grow + 1)
  }
  assert 'chrf_greedy' in alone.held_out


def test_a_metric_with_the_rewards_columns_is_refused(run, monkeypatch):
  metric = Learned()
  named = base.RewardInfo('reward', '1', 0.0, 1.0)
  monkeypatch.setattr(Learned, 'info', named)
  with pytest.raises(ConfigurationError, match="named 'reward'"):
    annotate.Annotate(run.annotate.reward, (metric,))


def test_an_online_baseline_alone_has_a_plan(run):
  improving = dataclasses.replace(run.improve, include_unfiltered=False)
  alone = dataclasses.replace(
    run, improve=improving, num_grow=0, num_improve=0, controls=(),
    online=(online.Online(Optimizer(), improving.stopping),),
  )  # fmt: skip
  assert [p.name for p in stages.plan(alone) if p.kind == 'improve'] == [
    'online/rloo'
  ]


def test_bc_trained_on_keeps_what_the_loss_shares_with_bc(run):
  weighted = losses.RewardWeighted(label_smoothing=0.1, z_loss=1e-4)
  made = with_loss(run, weighted)
  assert improve.loss_of(made.improve, 'continued') == losses.BehavioralCloning(
    label_smoothing=0.1, z_loss=1e-4
  )
  gold = with_loss(run, offline_losses.Gold(normalization='sequences'))
  assert improve.loss_of(gold.improve, 'continued') == losses.BehavioralCloning(
    normalization='sequences'
  )


def test_all_that_trains_or_asks_networks_is_made_by_all_processes(run):
  learned = values.TrainValue(run.improve.training, run.improve.stopping)
  with_values = with_loss(
    run,
    offline_losses.ActorCritic(),
    improve={'value': learned},
    online=(online.Online(Optimizer(), run.improve.stopping),),
  )
  alone = {'data', 'check_reward'}
  for made in stages.plan(with_values):
    kept = made.kind in alone or made.name.endswith('/reward')
    assert made.together == (not kept), made.name


def test_bc_is_asked_about_what_later_policies_drew(run):
  def asked(kl_penalty):
    ranked = schedule.PerSource('top_k', (2, 1), kl_penalty)
    improving = dataclasses.replace(run.improve, schedule=ranked)
    plans = stages.plan(dataclasses.replace(run, improve=improving))
    return {plan.name: plan for plan in plans}

  plans = asked(0.1)
  assert [n for n in plans if n.endswith('bc_log_prob')] == [
    'grow_2/bc_log_prob'
  ]
  assert 'grow_2/bc_log_prob' in plans['grow_2/improve_1'].inputs
  assert 'grow_2/bc_log_prob' not in plans['grow_1/improve_1'].inputs
  config = plans['grow_1/improve_1'].config
  assert config['Improve.schedule.kl_penalty'] == 0.1
  plans = asked(0.0)
  assert 'grow_2/bc_log_prob' not in plans
  # Policies from before there was a penalty stay valid.
  config = plans['grow_1/improve_1'].config
  assert 'Improve.schedule.kl_penalty' not in config


def test_what_is_off_by_default_leaves_earlier_stages_valid(run):
  names = {n for plan in stages.plan(run) for n in plan.config}
  assert 'Improve.accumulate' not in names
  assert 'Evaluate.divergence_sources' not in names
  off = dataclasses.replace(
    run, evaluate=dataclasses.replace(run.evaluate, divergence_sources=0)
  )
  named = {n: v for plan in stages.plan(off) for n, v in plan.config.items()}
  assert named['Evaluate.divergence_sources'] == 0


# What a branched run reads, by stage, as far as rewards matter.
_BRANCHED = {
  'data': ('data', ()),
  'supervised': ('supervised', ('data',)),
  'reward': ('train_reward', ('data',)),
  'grow_1/samples': ('grow', ('data', 'supervised')),
  'grow_1/scores/learned': ('annotate', ('data', 'grow_1/samples', 'reward')),
}


def _made(folder, rows):
  """A run directory whose reward has learned from some rows."""
  directory = run_directory.RunDirectory(epath.Path(folder))
  for name, (_, inputs) in _BRANCHED.items():
    stage = directory.stage(name)
    read = {i: directory.stage(i).fingerprint for i in inputs}
    stage.begin({}, read | ({'ROWS': rows} if name == 'reward' else {}))
    stage.commit({}, 0.0)
  return str(folder)


def test_reward_from_goes_before_grow_from(run, tmp_path):
  planned = [
    stage_plan.StagePlan(name, kind, inputs, {}, lambda *_: None)
    for name, (kind, inputs) in _BRANCHED.items()
  ]
  grown = _made(tmp_path / 'grown', 'a')
  rows = reward_rows.ScoredFile('unused')
  learning = dataclasses.replace(
    run,
    train_reward=_learned_from(run, rows),
    annotate=annotate.Annotate(learned.Learned()),
    grow_from=grown,
  )

  def taken(name, rewarded):
    branch = dataclasses.replace(learning, reward_from=rewarded)
    found = branching.elsewhere(branch, planned).get(name)
    return found and str(found.folder)

  other = _made(tmp_path / 'other', 'b')
  assert taken('reward', other) == f'{other}/reward'
  assert taken('grow_1/samples', other) == f'{grown}/grow_1/samples'
  # Scores by another reward are no scores of this one.
  assert taken('grow_1/scores/learned', other) is None
  same = _made(tmp_path / 'same', 'a')
  scores = 'grow_1/scores/learned'
  assert taken(scores, same) == taken(scores, None) == f'{grown}/{scores}'
