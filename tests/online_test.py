"""Online baselines on a small run: batches of sources in, updates out."""

import dataclasses

import jax
import numpy as np
import pytest
import small_run
from small_run import BATCHING, SOURCES, Bytes, begun, evaluation

from rest_jax import (
  errors,
  generation,
  ledger,
  online,
  online_losses,
  online_training,
  rewarded,
  value_model,
)
from rest_jax.checkpoint import native
from rest_jax.data import loader
from rest_jax.data.tokenizer import ByteTokenizer
from rest_jax.decoding.sampling import Sampling
from rest_jax.training import early_stopping, step
from rest_jax.training.optimizer import Optimizer
from rest_jax.training.state import init_state

SETTINGS = online.Online(
  Optimizer(learning_rate=0.01),
  early_stopping.Stopping(4, 2, 3),
  sources_per_update=4,
  num_samples=2,
  kl_coefficient=0.1,
  batching=BATCHING,
)
PPO = dataclasses.replace(SETTINGS, algorithm='ppo', updates_per_batch=2)


@pytest.fixture(scope='module')
def context(tmp_path_factory):
  return small_run.make(tmp_path_factory.mktemp('run'))


def trainer(context, settings):
  bc = context.params('supervised')
  network, params = (
    online_training.drawn_policy(context),
    context.read_params('other'),
  )
  if settings.algorithm == 'ppo':
    model = value_model.ValueModel(context.model, context.layout)
    network = value_model.PolicyAndValue(network, model)
    critic = value_model.from_policy(model, bc, 0)
    params = {'policy': params, 'value': critic}
  sources = rewarded.Split(context, 'grow')
  made = online_training.Trainer(
    context, settings, Bytes(), network, bc, sources
  )
  return made, params


def _rewards(context, rows):
  """R(x, y) of each row, scaled to [0, 1]."""
  texts = [
    context.tokenizer.decode(tokens.tolist()) for tokens in _targets(rows)
  ]
  return np.array([len(text.encode()) / 40 for text in texts])


def _targets(rows):
  return [rows.row(i)[1] for i in range(len(rows))]


def _alone(policy, params, rows):
  """log π of each row's tokens, each row in a batch of one."""
  found = []
  for i in range(len(rows)):
    source, target, _, _ = rows.row(i)
    lengths = np.array([len(target)])
    batch = generation.teacher_forced(source[None], target[None], lengths)
    found.append(np.asarray(step.target_log_probs(policy, params, batch))[0])
  return found


def test_batches_take_each_source_once_an_epoch():
  batches = online_training.SourceBatches(SOURCES, SETTINGS, seed=3)
  numbers, chosen = zip(*(batches[u] for u in range(3)), strict=True)
  assert numbers == (0, 1, 2)
  # An epoch of six sources is one batch of four; no batch has one twice.
  assert all(len(set(batch.tolist())) == 4 for batch in chosen)
  assert len(set(map(tuple, chosen))) == 3
  halves = online_training.SourceBatches(2 * SOURCES, SETTINGS, seed=3)
  epoch = np.concatenate([halves[u][1] for u in range(3)])
  assert sorted(epoch.tolist()) == list(range(2 * SOURCES))
  again = next(batches.starting_at(2))
  np.testing.assert_array_equal(again[1], chosen[2])
  twice = online_training.SourceBatches(SOURCES, PPO, seed=3)
  assert [twice[u][0] for u in range(4)] == [0, 0, 1, 1]
  with pytest.raises(errors.DataError, match='3 sources to sample'):
    online_training.SourceBatches(3, SETTINGS, seed=3)


def test_advantages_of_rloo_are_those_of_the_penalised_rewards(context):
  made, params = trainer(context, SETTINGS)
  rows = made.experience(params, 0, np.array([0, 2, 3, 5])).rows
  old, bc = (
    _alone(made._policy, p, rows)
    for p in (params, context.params('supervised'))
  )
  ratios = [sum(x) - sum(y) for x, y in zip(old, bc, strict=True)]
  penalised = (_rewards(context, rows) - 0.1 * np.array(ratios)).reshape(4, 2)
  expected = (penalised - penalised[:, ::-1]).reshape(-1)
  np.testing.assert_allclose(
    rows.figures['advantages'],
    np.repeat(expected, rows.target_lengths),
    atol=1e-4,
  )
  assert made.decoded_tokens == len(rows.target_tokens)
  # Other batches draw other samples, the same one draws the same.
  other = made.experience(params, 1, np.array([0, 2, 3, 5])).rows
  assert other.target_tokens.tolist() != rows.target_tokens.tolist()
  same = made.experience(params, 0, np.array([0, 2, 3, 5])).rows
  np.testing.assert_array_equal(same.target_tokens, rows.target_tokens)


def test_processes_draw_and_score_what_one_does(context, monkeypatch):
  made, params = trainer(context, SETTINGS)
  chosen = np.array([0, 2, 3, 5])
  whole = made._drawn(params, 0, chosen)
  # The last of three has no source.
  for share in (slice(0, 3), slice(3, 4), slice(4, 4)):
    monkeypatch.setattr(online_training.hosts, 'share', lambda _, s=share: s)
    mine = made._drawn(params, 0, chosen)
    np.testing.assert_array_equal(
      mine.generated.tokens, whole.generated.tokens[share]
    )
    np.testing.assert_array_equal(mine.rewards, whole.rewards[share])


def test_a_batch_is_decoded_in_no_more_rows_than_it_fills(context, monkeypatch):
  asked, generate = [], generation.generate

  def recording(*args, batching, **kwargs):
    asked.append(batching)
    return generate(*args, batching=batching, **kwargs)

  monkeypatch.setattr(online_training.generation, 'generate', recording)
  made, params = trainer(context, SETTINGS)
  made.experience(params, 0, np.array([0, 1, 2, 3]))
  # Four sources of two lanes each, where Grow has 16 rows.
  assert asked == [dataclasses.replace(BATCHING, rows=8)]


def _output(params, write=None):
  """The output layer's columns of padding, or parameters with others."""
  kernel = params['decoder']['logits_dense']['kernel']
  if write is None:
    return np.asarray(kernel)[:, ByteTokenizer().size :]
  kernel = kernel.at[:, ByteTokenizer().size :].set(write)
  dense = {'logits_dense': {'kernel': kernel}}
  return params | {'decoder': params['decoder'] | dense}


@pytest.mark.parametrize('settings', [SETTINGS, PPO])
def test_padding_of_the_vocabulary_earns_nothing(context, settings):
  # A policy that draws as BC does has no KL penalty, whatever it would give to
  # ids that are never drawn; and no update moves those.
  made, params = trainer(context, settings)
  bc = context.params('supervised')
  leaking = _output(bc, 5.0 * _output(bc) + 1.0)
  if settings.algorithm == 'ppo':
    params = params | {'policy': leaking}
  else:
    params = leaking
  chosen = np.array([1, 2, 3, 4])
  rows = made.experience(params, 0, chosen).rows
  rewards = _rewards(context, rows)
  if settings.algorithm == 'ppo':
    found = rows.figures['returns'][rows.target_offsets[1:] - 1]
    np.testing.assert_allclose(found, rewards, atol=1e-5)
  else:
    wanted = online_losses.leave_one_out(rewards.reshape(4, 2)).reshape(-1)
    wanted = np.repeat(wanted, rows.target_lengths)
    np.testing.assert_allclose(rows.figures['advantages'], wanted, atol=1e-5)
  state = init_state(made._network, settings.optimizer, params)
  before = _output(leaking).copy()
  state, _ = made(state, (0, chosen), None, 1.0)
  after = online_training.policy_of(made._network, state.params)
  np.testing.assert_array_equal(_output(after), before)


def test_samples_share_rows_and_keep_their_figures(context, monkeypatch):
  generate = generation.generate

  def cut_short(*args, **kwargs):
    generated = generate(*args, **kwargs)
    generated.lengths[:] = np.minimum(generated.lengths, [1, 2, 3, 2])
    return generated

  monkeypatch.setattr(online_training.generation, 'generate', cut_short)
  many = dataclasses.replace(
    SETTINGS, sources_per_update=6, num_samples=4, num_microbatches=2
  )
  made, params = trainer(context, many)
  packed = made.experience(params, 0, np.arange(6))
  batch = packed.batch()
  pairs = batch.decoder_segment_ids.max(axis=1)
  assert pairs.sum() == 24
  assert len(pairs) % made._multiple == 0
  assert len(pairs) < 24
  rows = packed.rows
  old, bc = (
    _alone(made._policy, p, rows)
    for p in (params, context.params('supervised'))
  )
  ratios = [sum(x) - sum(y) for x, y in zip(old, bc, strict=True)]
  penalised = (_rewards(context, rows) - 0.1 * np.array(ratios)).reshape(6, 4)
  np.testing.assert_allclose(
    rows.figures['advantages'],
    np.repeat(online_losses.leave_one_out(penalised), rows.target_lengths),
    atol=1e-4,
  )


@pytest.mark.parametrize('settings', [SETTINGS, PPO])
def test_an_update_is_the_same_however_samples_are_packed(
  context, settings, monkeypatch
):
  halves = dataclasses.replace(settings, num_microbatches=2)
  made, params = trainer(context, halves)
  monkeypatch.setattr(made, '_multiple', 12)
  packed = made.experience(params, 0, np.array([0, 1, 2, 3]))
  batch = packed.batch()
  assert len(batch.decoder_target_tokens) == 12
  assert (batch.decoder_segment_ids == 0).all(axis=1).any()
  alone = loader.assemble(
    packed.rows, made._row, [np.array([i]) for i in range(8)]
  )
  after = []
  for each in (batch, alone):
    # A copy, since a step gives its state's buffers up.
    start = jax.tree.map(np.array, params)
    state = init_state(made._network, halves.optimizer, start)
    state, metrics = made._step(state, each, None, 1.0)
    assert metrics['tokens'] == len(packed.rows.target_tokens)
    after.append(jax.tree.map(np.asarray, state.params))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), *after)
  moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), after[0], params)
  assert max(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.parametrize(
  ('samples', 'parts', 'multiple'),
  [(2, 1, 1), (16, 1, 4), (2, 3, 3), (16, 3, 6)],
)
def test_rows_divide_into_microbatches(context, samples, parts, multiple):
  settings = dataclasses.replace(
    SETTINGS, num_samples=samples, num_microbatches=parts
  )
  assert trainer(context, settings)[0]._multiple == multiple


def test_ppo_figures_add_up(context):
  made, params = trainer(context, PPO)
  packed = made.experience(params, 0, np.array([1, 2, 3, 4]))
  rows, figures = packed.rows, packed.rows.figures
  assert abs(figures['advantages'].mean()) < 1e-5
  assert figures['advantages'].std() == pytest.approx(1.0, abs=1e-3)
  scores = step.scores(made._network, params, packed.batch())
  np.testing.assert_allclose(
    figures['grown_log_probs'], packed.each_token(scores.log_probs), atol=1e-4
  )
  # Whatever is promised before it, the last token's return is its own reward.
  last = rows.target_offsets[1:] - 1
  bc = _alone(made._policy, context.params('supervised'), rows)
  ratios = figures['grown_log_probs'] - np.concatenate(bc)
  expected = _rewards(context, rows) - 0.1 * ratios[last]
  np.testing.assert_allclose(figures['returns'][last], expected, atol=1e-4)


@pytest.mark.parametrize(
  'settings', [SETTINGS, pytest.param(PPO, marks=pytest.mark.slow)]
)
def test_a_baseline_is_trained_and_resumes_where_it_was(context, settings):
  name = f'online/{settings.algorithm}'
  stage = begun(context, name)
  short = dataclasses.replace(
    settings, stopping=early_stopping.Stopping(2, 2, 3)
  )
  with pytest.raises(KeyboardInterrupt):
    _run_until_commit(context, stage, short)
  online_training.run(context, stage, settings, evaluation(), Bytes())
  counts = stage.manifest['counts']
  assert counts['updates'] == 4
  batches = 4 // settings.updates_per_batch
  assert counts['samples'] == batches * 8
  assert counts['select_samples'] == 3 * 8
  whole = begun(context, f'{name}_whole')
  online_training.run(context, whole, settings, evaluation(), Bytes())
  assert whole.manifest['counts'] == counts
  assert whole.manifest['extra'] == stage.manifest['extra']
  jax.tree.map(
    np.testing.assert_array_equal,
    context.read_params(name),
    context.read_params(whole.name),
  )
  spent = ledger.spent(context, name)
  assert spent.samples_grown == counts['samples']
  assert spent.samples_drawn == spent.reward_calls == counts['samples'] + 24
  assert spent.decoded_tokens == counts['decoded_tokens']


@pytest.mark.slow
def test_a_preempted_baseline_ends_between_batches(context, monkeypatch):
  # And what is frozen of the policy is found in what PPO trains.
  settings = dataclasses.replace(
    PPO,
    stopping=early_stopping.Stopping(4, 4, 3),
    optimizer=Optimizer(learning_rate=0.01, frozen=('token_embedder/*',)),
  )
  made = []
  for name in ('online/ended', 'online/unended'):
    stage = begun(context, name)
    if name == 'online/ended':
      monkeypatch.setattr(online_training.preemption, 'due', lambda: True)
      with pytest.raises(errors.PreemptionError):
        online_training.run(context, stage, settings, evaluation(), Bytes())
      monkeypatch.undo()
      assert native.Checkpoints(stage.work / 'checkpoints').latest() == 2
    online_training.run(context, stage, settings, evaluation(), Bytes())
    made.append(stage.manifest)
  assert made[0]['counts'] == made[1]['counts']
  assert made[0]['extra'] == made[1]['extra']
  jax.tree.map(
    np.testing.assert_array_equal,
    context.read_params('online/ended'),
    context.read_params('online/unended'),
  )
  embedding, bc = (
    context.read_params(name)['token_embedder']['embedding']
    for name in ('online/ended', 'supervised')
  )
  np.testing.assert_array_equal(embedding, bc)


def _run_until_commit(context, stage, settings):
  """Runs up to the commit, as a process that was killed there."""

  def killed(*args, **kwargs):
    raise KeyboardInterrupt

  stage.commit = killed
  try:
    online_training.run(context, stage, settings, evaluation(), Bytes())
  finally:
    del stage.commit


@pytest.mark.parametrize(
  ('changed', 'named'),
  [
    ({'num_samples': 1}, 'Online.num_samples = 1'),
    ({'trace': 1.5}, 'Online.trace'),
    (
      {'algorithm': 'ppo', 'updates_per_batch': 3},
      'a multiple of Online.updates_per_batch = 3',
    ),
    ({'updates_per_batch': 2}, "= 2 with Online.algorithm = 'rloo'"),
    ({'sampling': Sampling(0.8)}, r'Online\.sampling = .*temperature=0\.8'),
    ({'sampling': Sampling(1.0, top_k=40)}, r'Online\.sampling = .*top_k=40'),
    ({'kl_coefficient': -0.1}, 'Online.kl_coefficient'),
  ],
)
def test_settings_out_of_range_name_the_binding(changed, named):
  with pytest.raises(errors.ConfigurationError, match=named):
    dataclasses.replace(SETTINGS, **changed)


def test_samples_are_drawn_from_the_policy_itself():
  assert SETTINGS.sampling == Sampling(temperature=1.0)
