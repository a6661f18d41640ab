"""Losses of Improve on a real store: what a policy grew, and what follows."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from small_run import PACKING, Bytes, begun, evaluation

from rest_jax import (
  anchored,
  constrained_losses,
  errors,
  grown_data,
  improve,
  losses,
  offline_losses,
  reward_losses,
  supervised,
  value_model,
  values,
)
from rest_jax.data import loader, store, tokenizer
from rest_jax.schedule import PerSource, Thresholds
from rest_jax.training import early_stopping, optimizer, step
from rest_jax.training import state as state_lib
from rest_jax.types import Batch


@pytest.fixture(scope='module')
def context(tmp_path_factory):
  return small_run.make(tmp_path_factory.mktemp('run'))


def settings(loss, **changed):
  return improve.Improve(
    training=early_stopping.Training(
      optimizer.Optimizer(learning_rate=0.01), PACKING, loss
    ),
    stopping=early_stopping.Stopping(2, 2, 1),
    schedule=PerSource('top_k', (2.0,)),
    original_data='none',
    allow_tau_below_mean=True,
    **changed,
  )


def written(context, folder, loss, start='supervised', **step):
  """The rows of Improve step 0 or, for pairs, 1, with all their figures."""
  improving = settings(losses.BehavioralCloning())
  training = dataclasses.replace(improving.training, loss=loss)
  grown = grown_data.GrownData(context, improving, ('grow_1',))
  chosen = grown.selections(1)[1 if loss.paired else 0]
  rows = loader.write_rows(
    folder,
    grown.training_rows(chosen, loss),
    figures=grown_data.written_figures(loss),
    group=2 if loss.paired else 1,
  )
  improve._score_rows(
    context, rows, training, improve.Step(start, 1, 0, (), **step)
  )
  return rows


def loss_at(context, rows, loss, policy='supervised'):
  batches = loader.TrainingBatches(rows, PACKING, seed=0)
  return step.evaluate_loss(
    step.make_eval_step(context.policy, loss),
    context.params(policy),
    batches.once(),
  )


def test_at_the_policy_that_grew_them_every_ratio_is_one(context, tmp_path):
  loss = offline_losses.ClippedImportance()
  rows = written(context, tmp_path, loss)
  # What is left is π/μ: all tokens, rare ones too, count as they were drawn.
  correction = math.exp(small_run.OFFSET)
  found = loss_at(context, rows, loss)
  assert found['loss'] == pytest.approx(-correction, abs=1e-5)
  bounded = dataclasses.replace(loss, max_correction=1.1)
  found = loss_at(context, rows, bounded)
  assert found['loss'] == pytest.approx(-1.1, abs=1e-5)
  # At another policy they differ.
  found = loss_at(context, rows, loss, 'other')
  assert abs(found['loss'] + correction) > 1e-3


@pytest.mark.parametrize('form', ['dpo', 'ipo'])
def test_at_the_policy_that_grew_them_no_margin_is_there(
  context, tmp_path, form
):
  loss = offline_losses.Preference(form, beta=0.5)
  rows = written(context, tmp_path, loss)
  at_reference = {'dpo': math.log(2), 'ipo': 1.0}[form]
  found = loss_at(context, rows, loss)['loss']
  assert found == pytest.approx(at_reference, abs=1e-4)
  # The margins at another policy, from its own scores of whole sequences.
  batches = loader.TrainingBatches(rows, PACKING, seed=0)
  params = context.params('other')
  scores = batches.each_token(
    lambda batch: step.target_log_probs(context.policy, params, batch)
  )
  ratios = scores - rows.figures['grown_log_probs']
  sums = np.add.reduceat(ratios, rows.target_offsets[:-1])
  margins = sums[::2] - sums[1::2]
  pair = {'dpo': offline_losses.dpo, 'ipo': offline_losses.ipo}[form]
  expected = float(pair(jnp.asarray(margins), 0.5).mean())
  found = loss_at(context, rows, loss, 'other')['loss']
  assert found == pytest.approx(expected, rel=1e-4)
  assert abs(found - at_reference) > 1e-4


@pytest.mark.parametrize(
  ('loss', 'dropped'),
  [
    (losses.BehavioralCloning(), True),
    (losses.RewardWeighted(), True),
    (offline_losses.Gold(), True),
    (offline_losses.ActorCritic(), True),
    (values.ValueRegression(), True),
    (offline_losses.ClippedImportance(), False),
    (offline_losses.Preference(), False),
    (constrained_losses.VMPO(), False),
    (constrained_losses.BVMPO(), False),
  ],
  ids=lambda value: getattr(value, 'name', None),
)
def test_what_compares_policies_trains_without_dropout(context, loss, dropped):
  config = dataclasses.replace(context.model, dropout_rate=0.1)
  network = dataclasses.replace(context.policy, config=config)
  key = early_stopping.dropout_key(network, loss, seed=0)
  assert (key is not None) == dropped


def test_the_better_of_a_pair_comes_first(context, tmp_path):
  rows = written(context, tmp_path, offline_losses.Preference())
  decode = tokenizer.ByteTokenizer().decode
  sizes = [
    len(decode(rows.row(i)[1].tolist()).encode()) for i in range(len(rows))
  ]
  assert len(sizes) % 2 == 0
  assert all(a > b for a, b in zip(sizes[::2], sizes[1::2], strict=True))
  for first in range(0, len(rows), 2):
    np.testing.assert_array_equal(rows.row(first)[0], rows.row(first + 1)[0])


def test_policies_score_rows_as_they_did_when_they_grew_them(context, tmp_path):
  class Both(offline_losses.Gold):
    needs = ('bc_log_probs', 'start_log_probs', 'grown_log_probs')

  rows = written(context, tmp_path, Both(), start='other')
  np.testing.assert_allclose(
    rows.figures['bc_log_probs'], rows.figures['grown_log_probs'], atol=1e-4
  )
  difference = rows.figures['start_log_probs'] - rows.figures['bc_log_probs']
  assert np.abs(difference).max() > 1e-2


def test_rows_of_higher_reward_weigh_more(context, tmp_path):
  rows = written(context, tmp_path, losses.RewardWeighted(beta=0.5))
  decode = tokenizer.ByteTokenizer().decode
  rewards = np.array(
    [
      len(decode(rows.row(i)[1].tolist()).encode()) / 40
      for i in range(len(rows))
    ]
  )
  np.testing.assert_allclose(
    rows.weights, np.exp((rewards - 1) / 0.5), rtol=1e-5
  )


@pytest.mark.parametrize(
  'loss', [offline_losses.Preference('dpo', 0.5), offline_losses.Gold()]
)
def test_an_improve_step_trains_with_the_loss(context, loss):
  stage = begun(context, f'grow_1/improve_{loss.name}')
  improve.run(
    context, stage, settings(loss), evaluation(), Bytes(),
    improve.Step('supervised', 1, 1, ('grow_1',)),
  )  # fmt: skip
  counts = stage.manifest['counts']
  assert counts['updates'] == 2
  assert counts['select_samples'] == 2 * 8
  assert counts['select_tokens'] >= 2 * 8
  assert ('pairs' in counts) == loss.paired
  if loss.paired:
    assert counts['kept_samples'] == counts['distinct_samples']
    assert counts['kept_samples'] == 2 * counts['kept_sources'] > 0
    assert counts['kept_sources'] == counts['pairs']
    sources = counts['kept_sources'] + counts['starved_sources']
    assert sources == small_run.SOURCES
  assert counts['references'] == 0


TRAIN_VALUE = values.TrainValue(
  early_stopping.Training(optimizer.Optimizer(learning_rate=0.05), PACKING),
  early_stopping.Stopping(6, 3, 2),
  held_out=0.4,
)


@pytest.fixture(scope='module')
def value_stage(context):
  grown = grown_data.GrownData(
    context, settings(losses.BehavioralCloning()), ('grow_1',)
  )
  stage = begun(context, 'grow_1/value')
  values.run(context, stage, TRAIN_VALUE, grown)
  return stage


def test_a_value_model_starts_as_bc_and_promises_little(context):
  model = value_model.ValueModel(context.model, context.layout)
  bc = context.params('supervised')
  params = value_model.from_policy(model, bc, seed=1)
  np.testing.assert_array_equal(
    params['encoder']['encoder_norm']['scale'],
    bc['encoder']['encoder_norm']['scale'],
  )
  np.testing.assert_array_equal(
    params['token_embedder']['embedding'], bc['token_embedder']['embedding']
  )
  kernel = np.asarray(params['decoder']['score_dense']['kernel'])
  assert 0 < np.abs(kernel).max() < 0.2
  assert 'logits_dense' not in params['decoder']


@pytest.mark.slow
def test_a_value_model_reaches_its_level_in_the_updates_of_quickstart(
  context,
):
  config = dataclasses.replace(context.model, emb_dim=64, mlp_dim=32)
  policy = dataclasses.replace(context.policy, config=config)
  model = value_model.ValueModel(config, context.layout)
  adafactor = optimizer.Optimizer(learning_rate=0.005)
  update = step.make_train_step(model, adafactor, values.ValueRegression())
  params = value_model.from_policy(model, policy.init(0), seed=1)
  state = state_lib.init_state(model, adafactor, params)
  tokens = np.random.default_rng(0).integers(3, 300, (150, 4, 8), np.int32)
  batches = Batch(
    encoder_input_tokens=tokens,
    decoder_input_tokens=np.pad(tokens[..., :-1], ((0, 0), (0, 0), (1, 0))),
    decoder_target_tokens=tokens,
    decoder_loss_weights=np.ones(tokens.shape, np.float32),
    decoder_figures={'returns': np.full(tokens.shape, 0.8, np.float32)},
  )

  @jax.jit  # As one program, not as 150 that each are started.
  def trained(state, batches):
    def each(state, batch):
      return update.jitted(state, batch, None, 0.005)[0], None

    return jax.lax.scan(each, state, batches)[0]

  state = trained(state, batches)
  last = jax.tree.map(lambda leaf: leaf[-1], batches)
  found = np.asarray(model.score(state.params, last))
  np.testing.assert_allclose(found.mean(), 0.8, atol=0.05)


def test_the_value_model_learns_from_finished_samples(context, value_stage):
  counts = value_stage.manifest['counts']
  finished = sum(
    row['finished'] and row['origin'] == 'policy'
    for part in store.part_paths(context.stage('grow_1/samples').folder)
    for row in store.read_part(part).to_pylist()
  )
  assert counts['rows'] > 0 < counts['held_out']
  assert counts['rows'] + counts['held_out'] == finished
  history = value_stage.manifest['extra']['history']
  assert history[-1]['value'] > history[0]['value']  # −squared error.


def test_a_sample_is_judged_by_the_value_before_its_last_token(
  context, tmp_path, monkeypatch
):
  model = value_model.ValueModel(context.model, context.layout)
  rewards, lengths = [0.1, 0.9, 0.4, 0.6], [2, 5, 3, 4]
  written = loader.write_rows(
    tmp_path / 'rows',
    [
      ([7, 1], [3] * (length - 1) + [1], 1.0, False, [reward] * length)
      for reward, length in zip(rewards, lengths, strict=True)
    ],
    figures=('returns',),
  )
  batches = loader.TrainingBatches(written, PACKING, seed=0)
  found = np.random.default_rng(0).uniform(-9, 9, sum(lengths))
  monkeypatch.setattr(batches.__class__, 'each_token', lambda *_, **__: found)
  for sign in (1, -1):
    found[np.cumsum(lengths) - 1] = sign * np.array(rewards)
    assert values.judge(model, {}, batches) == {
      'kendall': pytest.approx(sign),
      'kendall_untied': pytest.approx(sign),
      'spearman': pytest.approx(sign),
    }


def test_a_value_knows_the_prefix_alone_packed_or_not(context, value_stage):
  model, params = values.read(context, value_stage.name)
  rows = [([7, 8, 1], [9, 5, 6, 1]), ([4, 1], [3, 2, 1])]

  def value_of(*pairs, folder):
    written = loader.write_rows(folder, [(*pair, 1.0, False) for pair in pairs])
    batches = loader.TrainingBatches(written, PACKING, seed=0)
    assert len(list(batches.once())) == 1
    return batches.each_token(lambda batch: step.scores(model, params, batch))

  folder = value_stage.work
  together = value_of(*rows, folder=folder / 'a')
  alone = [value_of(row, folder=folder / f'{i}') for i, row in enumerate(rows)]
  np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)
  # Another third token changes what stands after it, not before.
  other = value_of(([7, 8, 1], [9, 5, 200, 1]), folder=folder / 'b')
  np.testing.assert_allclose(other[:3], alone[0][:3], atol=1e-6)
  assert abs(other[3] - alone[0][3]) > 1e-6


@pytest.mark.parametrize(
  'loss', [offline_losses.ActorCritic(), constrained_losses.BVMPO()]
)
def test_losses_of_advantages_train_on_all_samples(context, value_stage, loss):
  stage = begun(context, f'grow_1/improve_{loss.name}')
  improve.run(
    context, stage, settings(loss, value=TRAIN_VALUE), evaluation(),
    Bytes(),
    improve.Step('other', 1, 0, ('grow_1',), value=value_stage.name),
  )  # fmt: skip
  assert stage.manifest['counts']['updates'] == 2
  # What is kept is a policy, whatever was trained beside it.
  kept = context.read_params(stage.name)
  assert jax.tree.structure(kept) == jax.tree.structure(context.params('other'))


def test_advantages_are_of_each_rows_own_reward_and_value(
  context, value_stage, tmp_path
):
  rows = written(
    *(context, tmp_path / 'rows', offline_losses.ActorCritic()),
    value=value_stage.name,
  )
  assert len(rows) == small_run.SOURCES * small_run.SAMPLES - 1  # Not ended.
  decode = tokenizer.ByteTokenizer().decode
  model, params = values.read(context, value_stage.name)
  for i in range(len(rows)):
    own = slice(*rows.target_offsets[i : i + 2])
    source, target = rows.row(i)[:2]
    reward = len(decode(target.tolist()).encode()) / 40
    np.testing.assert_allclose(rows.figures['returns'][own], reward, rtol=1e-6)
    alone = loader.write_rows(
      tmp_path / str(i), [(source.tolist(), target.tolist(), 1.0, False)]
    )
    batches = loader.TrainingBatches(alone, PACKING, seed=0)
    found = batches.each_token(lambda batch: step.scores(model, params, batch))
    np.testing.assert_allclose(rows.figures['values'][own], found, atol=1e-5)


def test_anchors_stay_and_duals_move(context, tmp_path):
  loss = constrained_losses.BVMPO()
  rows = written(context, tmp_path, losses.BehavioralCloning())
  tokens = len(rows.target_tokens)
  rows.add_figure('returns', np.linspace(0, 1, tokens, dtype=np.float32))
  rows.add_figure('values', np.full(tokens, 0.5, np.float32))
  training = settings(loss, value=TRAIN_VALUE).training
  network = anchored.network_for(context.policy, loss)
  assert network is anchored.network_for(context.policy, loss)
  start, bc = context.params('other'), context.read_params('supervised')
  wrapped = network.wrap(start, {'start': start, 'bc': bc})
  assert jax.tree.structure(wrapped) == jax.tree.structure(
    network.abstract_params()
  )
  optimizer_ = anchored.frozen_in(training).optimizer
  train_step = step.make_train_step(network, optimizer_, loss)
  state = state_lib.init_state(network, optimizer_, wrapped)
  batch = next(loader.TrainingBatches(rows, PACKING, seed=0).once())
  moved, metrics = train_step(state, batch)
  assert np.isfinite(metrics['loss'])
  for name, kept in (('start', start), ('bc', bc)):
    jax.tree.map(
      np.testing.assert_array_equal, moved.params['anchors'][name], kept
    )
  # At the policy itself no divergence is there, so the multiplier falls.
  assert moved.params['duals']['alpha'] < 1.0
  # ψ is nearer to uniform than ε_η allows, so the temperature falls.
  assert moved.params['duals']['eta'] < 1.0
  changed = jax.tree.map(
    lambda a, b: bool((a != b).any()), moved.params['policy'], start
  )
  assert any(jax.tree.leaves(changed))
  # The penalty's λ falls with the update that the state is at.
  wrapped = network.wrap(start, {'start': start, 'bc': bc})
  late = state_lib.init_state(network, optimizer_, wrapped)
  late = late.replace(step=late.step + loss.lambda_steps)
  divergences = step.scores(network, wrapped, batch).divergences['bc']
  weights = batch.decoder_loss_weights
  penalty = float((weights * divergences).sum() / (weights != 0).sum())
  assert penalty > 1e-3
  _, later = train_step(late, batch)
  assert float(metrics['loss'] - later['loss']) == pytest.approx(
    (1.0 - 1e-5) * penalty, rel=1e-3
  )


@pytest.mark.parametrize(
  ('held_out', 'named'),
  [(0.99999, 'is left to train on .* 0.99999'), (1e-9, 'is held out .* 1e-09')],
)
def test_a_value_model_without_rows_names_its_share(context, held_out, named):
  grown = grown_data.GrownData(
    context, settings(losses.BehavioralCloning()), ('grow_1',)
  )
  stage = begun(context, f'value_{held_out}')
  with pytest.raises(errors.DataError, match=named):
    values.run(
      context,
      stage,
      dataclasses.replace(TRAIN_VALUE, held_out=held_out),
      grown,
    )


def test_figures_of_the_first_rows_alone(context, tmp_path):
  rows = written(context, tmp_path, losses.BehavioralCloning())
  batches = loader.TrainingBatches(rows, PACKING, seed=0)
  some = batches.each_token(lambda batch: np.ones((8, 32), np.float32), first=2)
  assert some[: rows.target_offsets[2]].all()
  assert not some[rows.target_offsets[2] :].any()


def test_a_loss_that_lacks_its_value_model_is_an_error():
  with pytest.raises(errors.ConfigurationError, match=r'binds Improve\.value'):
    settings(offline_losses.ActorCritic())


def test_what_compares_the_tokens_of_a_batch_has_it_whole():
  whole = settings(constrained_losses.VMPO(), value=TRAIN_VALUE)
  cut = dataclasses.replace(whole.training, num_microbatches=2)
  with pytest.raises(
    errors.ConfigurationError, match=r'VMPO takes .* NUM_MICROBATCHES = 2'
  ):
    dataclasses.replace(whole, training=cut)


def test_a_store_without_pairs_is_an_error(context, tmp_path):
  loss = offline_losses.Preference()
  grown = grown_data.GrownData(context, settings(loss), ('grow_1',))
  none = improve.selection.Threshold(0.999)
  with pytest.raises(errors.DataError, match=r"no pair for the loss 'dpo'"):
    list(grown.training_rows((none,), loss))


def test_the_control_that_sees_no_sample_trains_by_bc():
  chosen = settings(offline_losses.Gold())
  bc = improve.loss_of(chosen, 'continued')
  assert bc == losses.BehavioralCloning()
  for control in ('none', 'random', 'permuted'):
    assert improve.loss_of(chosen, control).name == 'gold'
  smooth = settings(losses.BehavioralCloning(label_smoothing=0.1))
  assert improve.loss_of(smooth, 'continued').label_smoothing == 0.1


def test_bc_itself_cannot_be_trained_by_what_only_samples_have():
  training = settings(offline_losses.Gold()).training
  with pytest.raises(
    errors.ConfigurationError, match=r'Supervised\.training\.loss = Gold'
  ):
    supervised.Supervised(training, early_stopping.Stopping(1, 1, 1))
  with pytest.raises(
    errors.ConfigurationError, match=r'Improve\.training\.loss = Regression'
  ):
    settings(reward_losses.Regression())


def test_a_filter_that_keeps_no_sample_is_an_error_beside_references(context):
  none = dataclasses.replace(
    settings(losses.BehavioralCloning()),
    original_data='unfiltered',
    schedule=Thresholds((0.9999,)),
  )
  step = improve.Step('supervised', 1, 1, ('grow_1',))
  stage = begun(context, 'grow_1/improve_of_nothing')
  with pytest.raises(errors.DataError, match='passes the filter'):
    improve.run(context, stage, none, evaluation(), Bytes(), step)


def test_a_text_of_two_grow_steps_is_deduplicated(context, tmp_path):
  small_run.grow(context, 'grow_2')  # The same samples again.
  base = settings(losses.BehavioralCloning(), accumulate=True)
  once = dataclasses.replace(base, after=(improve.selection.Deduplicate(),))

  def kept(chosen, *stores):
    grown = grown_data.GrownData(context, chosen, stores)
    (shown,) = grown.previews([grown.selections(0)[0]])
    folder = tmp_path / f'{chosen is once}_{len(stores)}'
    rows = loader.write_rows(
      folder, grown.training_rows(grown.selections(0)[0])
    )
    assert len(rows) == shown.kept_samples
    return len(rows)

  alone = kept(once, 'grow_1')
  assert kept(once, 'grow_1', 'grow_2') == alone > 0
  assert kept(base, 'grow_1', 'grow_2') == 2 * kept(base, 'grow_1')


def test_a_text_that_was_given_is_compared_and_not_chosen_again(context):
  small_run.grow(context, 'grow_of_old')
  rule = dataclasses.replace(
    settings(losses.BehavioralCloning(), accumulate=True),
    after=(improve.selection.Deduplicate(),),
  )
  stores = ('grow_1', 'grow_of_old')

  def of(chosen, *stores):
    grown = grown_data.GrownData(context, chosen, stores)
    (shown,) = grown.previews([grown.selections(1)[1]])
    return grown.mean_reward(), shown.kept_samples

  mean, kept = of(rule, 'grow_1')
  # Of leftovers alone the second best two would be taken of each source too.
  both, again = of(rule, *stores)
  assert both == pytest.approx(mean)
  assert again == kept > 0


@pytest.mark.parametrize(
  'rule', [PerSource('top_k', (2.0,)), Thresholds((0.1,))]
)
def test_permuted_rewards_keep_as_many_rows(context, rule, tmp_path):
  chosen = dataclasses.replace(
    settings(losses.BehavioralCloning()), schedule=rule
  )
  among = grown_data.permutation(chosen)
  assert among == ('texts' if isinstance(rule, PerSource) else 'samples')
  deduplicated = dataclasses.replace(
    chosen, after=(improve.selection.Deduplicate(),)
  )
  assert grown_data.permutation(deduplicated) == 'texts'
  # The worse sample of a pair is one of another text.
  assert grown_data.permutation(chosen, offline_losses.Preference()) == 'texts'
  counts, weights, taken = [], [], []
  for permuted in (None, among):
    grown = grown_data.GrownData(
      context, chosen, ('grow_1',), permuted=permuted
    )
    selected = grown.selections(1)[1]
    (shown,) = grown.previews([selected])
    rows = loader.write_rows(
      tmp_path / str(permuted), grown.training_rows(selected)
    )
    assert len(rows) == shown.kept_samples
    counts.append((shown.kept_samples, shown.kept_sources))
    # V and quantiles are those of the true rewards.
    weights.append(np.concatenate(list(grown.rewards())))
    taken.append(rows.target_tokens.tolist())
  assert counts[0] == counts[1]
  np.testing.assert_array_equal(*weights)
  assert taken[0] != taken[1]


def test_samples_of_all_grow_steps_need_samples_alone():
  with pytest.raises(errors.ConfigurationError, match=r'Improve\.accumulate'):
    dataclasses.replace(
      settings(losses.BehavioralCloning(), accumulate=True),
      original_data='filtered',
    )
