"""Every gin file that comes with rest_jax parses, builds and means its name."""

import dataclasses
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import running
from absl import flags
from absl.testing import flagsaver

import gin
from rest_jax import (
  bindings,
  errors,
  improve,
  losses,
  main,
  policy,
  policy_plan,
  rest,
  schedule,
  selection,
  stages,
  types,
)
from rest_jax import rows as rows_lib
from rest_jax.data import packing
from rest_jax.decoding import sampling
from rest_jax.models import config as t5
from rest_jax.training import early_stopping, optimizer

_GIN = main.gin_folder()
_GUIDES = pathlib.Path(__file__).parents[1] / 'docs/guide'
_ALL = sorted(str(path.relative_to(_GIN)) for path in _GIN.rglob('*.gin'))
_RUNS = [name for name in _ALL if '/' not in name]
_PRESETS = [name for name in _ALL if name.startswith('presets/')]
_SIZES = [
  name.removeprefix('models/').removesuffix('.gin')
  for name in _ALL
  if name.startswith('models/') and not name.endswith('_settings.gin')
  if name not in ('models/t5_base.gin', 'models/from_checkpoint.gin')
]

# As published: Raffel et al. 2020 (arXiv:1910.10683), Shazeer 2020
# (arXiv:2002.05202) with the released checkpoints of T5 1.1, and Xue et al.
# 2021 (arXiv:2010.11934). The exact counts are those of the checkpoints.
_PARAMETERS = {
  't5_1_0_small': 60_506_624,
  't5_1_0_base': 222_903_552,
  't5_1_0_large': 737_668_096,
  't5_1_0_xl': 2_851_598_336,
  't5_1_0_xxl': 11_307_321_344,
  't5_1_1_small': 76_961_152,
  't5_1_1_base': 247_577_856,
  't5_1_1_large': 783_150_080,
  't5_1_1_xl': 2_849_757_184,
  't5_1_1_xxl': 11_135_332_352,
  'mt5_small': 300_176_768,
  'mt5_base': 582_401_280,
  'mt5_large': 1_229_581_312,
  'mt5_xl': 3_742_619_648,
  'mt5_xxl': 12_921_057_280,
}


def _required(name):
  """The macros that a file, or one that it includes, leaves to be set."""
  text = (_GIN / name).read_text()
  found = re.findall(r'^(\w+) = %gin.REQUIRED', text, re.MULTILINE)
  for included in re.findall(r"^include '(.*)'", text, re.MULTILINE):
    found += _required(included)
  return found


@pytest.fixture
def parse():
  """Parses gin files as main does, into an empty configuration."""

  def parse_files(*files, bindings=()):
    flags.FLAGS.gin_bindings = list(bindings)
    main._parse_gin(files, bindings, ())

  with flagsaver.flagsaver():
    flags.FLAGS(['rest_jax'])
    gin.clear_config(clear_constants=True)
    yield parse_files
    gin.clear_config(clear_constants=True)


def test_there_are_gin_files():
  assert {'quickstart.gin', 'multi30k.gin', 'runs/rest.gin'} <= set(_ALL)


@pytest.mark.parametrize('name', _ALL)
def test_every_file_parses_with_what_it_imports(parse, name):
  # Parts of a run may use the macros that every run shares.
  files = ['runs/rest.gin', name]
  required = [macro for file in files for macro in _required(file)]
  parse(*files, bindings=[f"{macro} = 'given'" for macro in required])
  assert gin.config_str()


@pytest.mark.parametrize('name', _RUNS)
def test_every_ready_run_builds_all_its_objects(parse, tmp_path, name):
  bindings = [f"MODEL_DIR = '{tmp_path}/run'"]
  if 'DATA_DIR' in (_GIN / name).read_text():
    bindings.append(f"DATA_DIR = '{tmp_path}/data'")
  parse(name, bindings=bindings)
  run = main._build()
  assert isinstance(run, rest.ReST)
  assert run.model_dir == f'{tmp_path}/run'
  names = [plan.name for plan in stages.plan(run)]
  assert names[0] == 'data'
  assert f'grow_{run.num_grow}/improve_{run.num_improve}' in names
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('name', _PRESETS)
def test_every_preset_builds_on_a_run(parse, tmp_path, name):
  parse('quickstart.gin', name, bindings=[f"MODEL_DIR = '{tmp_path}/run'"])
  run = main._build()
  # ReST alone trains on all samples first.
  assert run.improve.include_unfiltered == (name == 'presets/rest.gin')
  last = f'grow_{run.num_grow}/improve_1'
  assert last in [plan.name for plan in stages.plan(run)]
  header = re.match(r'(#.*\n)+', (_GIN / name).read_text())[0]
  assert f'--gin_file={name}' in header


@pytest.mark.parametrize(
  'name', [f'losses/{name}.gin' for name in ('oac', 'vmpo', 'bvmpo')]
)
def test_losses_that_need_values_have_them_trained(parse, tmp_path, name):
  parse('quickstart.gin', name, bindings=[f"MODEL_DIR = '{tmp_path}/run'"])
  run = main._build()
  plans = {plan.name: plan for plan in stages.plan(run)}
  order = list(plans)
  assert order.index('grow_1/value') < order.index('grow_1/improve_0')
  for made in policy_plan.policies(run):
    if made.stage.startswith(('grow_', 'random/')):
      assert 'grow_1/value' in plans[made.stage].inputs
    else:
      assert 'grow_1/value' not in plans[made.stage].inputs
  header = re.match(r'(#.*\n)+', (_GIN / name).read_text())[0]
  assert f'--gin_file={name}' in header


@pytest.mark.parametrize('name', ['rloo', 'ppo'])
def test_online_baselines_are_rows_beside_the_others(parse, tmp_path, name):
  bindings = [f"MODEL_DIR = '{tmp_path}/run'"]
  parse('quickstart.gin', f'online/{name}.gin', bindings=bindings)
  run = main._build()
  last = policy_plan.policies(run)[-1]
  assert (last.stage, last.label) == (f'online/{name}', name.upper())
  assert policy_plan.loss_of(run, last).name == name
  plans = {plan.name: plan for plan in stages.plan(run)}
  assert plans[last.stage].inputs == ('data', 'supervised')
  assert f'{last.stage}/evaluation/report' in plans


def test_presets_leave_evaluation_as_it_is(parse):
  evaluations = []
  for preset in [(), *((name,) for name in _PRESETS)]:
    gin.clear_config(clear_constants=True)
    parse('quickstart.gin', *preset)
    evaluations.append(main._build().evaluate)
  assert evaluations[0].sampling == sampling.Sampling(0.8)
  assert all(each == evaluations[0] for each in evaluations)


def test_a_module_with_the_name_of_another_is_refused(
  parse, tmp_path, monkeypatch
):
  file = tmp_path / 'own.gin'
  lines = 'from __gin__ import dynamic_registration\n{}\n'
  # Modules of the standard library serve as a user's.
  file.write_text(lines.format('from concurrent.futures import process'))
  parse('quickstart.gin', str(file))
  gin.clear_config(clear_constants=True)
  file.write_text(lines.format('from asyncio import tasks'))
  with pytest.raises(errors.ConfigurationError) as error:
    parse('quickstart.gin', str(file))
  assert f'{file}:2' in str(error.value)
  assert 'from asyncio import tasks as my_tasks' in str(error.value)
  # A module of one part, and one that has an alias already.
  (tmp_path / 'schedule.py').touch()
  monkeypatch.syspath_prepend(tmp_path)
  for line in ('import schedule', 'import asyncio.tasks as schedule'):
    gin.clear_config(clear_constants=True)
    file.write_text(lines.format(line))
    with pytest.raises(errors.ConfigurationError) as error:
      parse('quickstart.gin', str(file))
    advised = f'`{line.removesuffix(" as schedule")} as my_schedule`'
    assert advised in str(error.value)
  gin.clear_config(clear_constants=True)
  file.write_text(lines.format('from asyncio import tasks as my_tasks'))
  parse('quickstart.gin', str(file))


def test_users_may_layer_files_of_folders_named_as_ours(parse, tmp_path):
  (tmp_path / 'losses').mkdir()
  files = [tmp_path / 'losses' / f'{name}.gin' for name in 'ab']
  for number, file in enumerate(files, 1):
    file.write_text(f'NUM_GROW = {number}\n')
  parse('quickstart.gin', *map(str, files))
  gin.clear_config(clear_constants=True)
  # Two spellings of one file are that file.
  shared = _GIN / 'losses' / 'value.gin'
  parse('quickstart.gin', str(shared), 'losses/oac.gin')


def test_a_file_that_includes_itself_or_is_no_text_is_for_gin(tmp_path):
  mine = tmp_path / 'mine.gin'
  for content in (f"include '{mine}'\n".encode(), b'\xff\xfe'):
    mine.write_bytes(content)
    bindings.check_presets(['presets/raft.gin', str(mine)], [_GIN], _GIN)


def test_qe_finetuning_refuses_a_reward_that_reads_references(parse, tmp_path):
  paths = [f"{name} = '{tmp_path}'" for name in ('MODEL_DIR', 'DATA_DIR')]
  qe = 'presets/qe_finetuning.gin'
  parse('multi30k.gin', qe, bindings=paths)
  with pytest.raises(
    errors.ConfigurationError, match=r"'chrf' reads references"
  ):
    main._build()
  gin.clear_config(clear_constants=True)
  parse('multi30k_learned.gin', qe, bindings=paths)
  assert main._build().reference_free


def test_two_presets_at_once_are_an_error(parse):
  two = ('presets/raft.gin', 'presets/rest_em.gin')
  with pytest.raises(errors.ConfigurationError, match='both whole algorithms'):
    parse('quickstart.gin', *two)


@pytest.mark.parametrize(
  ('files', 'said'),
  [
    (
      ('presets/rest_em.gin', 'quickstart.gin'),
      r'quickstart\.gin after .*rest_em\.gin would undo its GROW_TEMPERATURE',
    ),
    (
      ('quickstart.gin', 'presets/iterative_dpo.gin', 'losses/vmpo.gin'),
      r'vmpo\.gin after .* would undo its improving/early_stopping\.Training',
    ),
    (
      ('quickstart.gin', 'losses/oac.gin', 'presets/raft_plus_plus.gin'),
      r'raft_plus_plus\.gin and .*oac\.gin both bind improving/',
    ),
  ],
)
def test_a_preset_comes_last_and_has_its_own_loss(parse, files, said):
  with pytest.raises(errors.ConfigurationError, match=said):
    parse(*files)


@pytest.mark.parametrize(
  ('files', 'said'),
  [
    (
      ('losses/oac.gin', 'losses/vmpo.gin'),
      r'vmpo\.gin would undo improving/.*loss of --gin_file=losses/oac\.gin',
    ),
    (
      ('online/rloo.gin', 'online/ppo.gin'),
      r'ppo\.gin would undo online\.Online.* of --gin_file=online/rloo\.gin',
    ),
  ],
)
def test_two_parts_that_bind_the_same_are_an_error(parse, files, said):
  with pytest.raises(errors.ConfigurationError, match=said):
    parse('quickstart.gin', *files)


@pytest.mark.parametrize('quote', ["'", '"'])
def test_presets_are_seen_in_files_that_include_them(parse, tmp_path, quote):
  mine = tmp_path / 'mine.gin'
  mine.write_text(f'include {quote}presets/raft.gin{quote}\nNUM_GROW = 2\n')
  parse('quickstart.gin', str(mine))
  with pytest.raises(
    errors.ConfigurationError,
    match=r'mine\.gin \(by its presets/raft\.gin\) and .*rest_em\.gin are both',
  ):
    parse('quickstart.gin', str(mine), 'presets/rest_em.gin')
  mine.write_text("include 'presets/raft.gin'\ninclude 'presets/rest_em.gin'\n")
  with pytest.raises(
    errors.ConfigurationError, match='are both whole algorithms'
  ):
    parse('quickstart.gin', str(mine))


def test_a_preset_without_a_loss_takes_one(parse, tmp_path):
  parse('quickstart.gin', 'presets/raft.gin', 'losses/oac.gin')
  assert main._build().improve.training.loss.name == 'oac'


def test_presets_differ_in_what_they_are_named_for(parse):
  def built(name):
    gin.clear_config(clear_constants=True)
    parse('quickstart.gin', f'presets/{name}.gin')
    return main._build()

  assert built('iterative_dpo').improve.training.loss.name == 'dpo'
  assert built('iterative_dpo').supervised.training.loss.name == 'bc'
  assert built('raft_plus_plus').improve.training.loss.name == 'raft++'
  for name in ('raft', 'qe_finetuning'):
    assert built(name).improve.schedule == schedule.PerSource('top_k', (1,))
  mbr = built('mbr_finetuning')
  assert mbr.improve.schedule == schedule.PerSource('mbr', (1,))
  assert mbr.grow.sampling == sampling.Sampling(1.0, epsilon=0.02)
  em = built('rest_em')
  assert em.improve.restart_from_base
  assert em.grow.sampling == sampling.Sampling(0.7, top_k=40)
  assert em.improve.after == (selection.Cap(10),)
  assert built('raft').grow.sampling == sampling.Sampling(0.8)
  assert built('rest').improve.schedule == schedule.Thresholds(
    (0.7, 0.8, 0.9, 0.95)
  )
  assert built('rest').num_grow == 2
  expert = built('expert_iteration')
  assert expert.grow.sampling == sampling.Sampling(1.0)
  assert policy_plan.stores(expert, 3) == ('grow_1', 'grow_2', 'grow_3')
  assert policy_plan.stores(built('rest_em'), 2) == ('grow_2',)


@pytest.mark.parametrize('name', _RUNS)
def test_the_header_of_a_run_tells_the_command(name):
  header = re.match(r'(#.*\n)+', (_GIN / name).read_text())[0]
  assert 'python -m rest_jax.main' in header
  assert f'--gin_file={name}' in header


@pytest.mark.parametrize('name', [n for n in _ALL if n.startswith('models/')])
def test_model_files_are_short(name):
  assert len((_GIN / name).read_text().splitlines()) <= 15


def _count(config: t5.T5Config) -> int:
  shapes = policy.Policy(config).abstract_params()
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def _parsed(parse, size: str) -> t5.T5Config:
  bindings = []
  if size.startswith('paper_'):
    bindings = ['t5.T5Config.vocab_size = 32000']
  parse(f'models/{size}.gin', bindings=bindings)
  return gin.get_configurable(t5.T5Config)()


@pytest.mark.parametrize('size', _PARAMETERS)
def test_a_size_file_gives_the_published_number_of_parameters(parse, size):
  assert _by_hand(_parsed(parse, size)) == _PARAMETERS[size]


@pytest.mark.parametrize(
  'size',
  [
    pytest.param(
      size,
      # Tracing many layers takes seconds.
      marks=[pytest.mark.slow] * size.endswith(('base', 'large', 'xl')),
    )
    for size in _SIZES
  ],
)
def test_the_network_has_the_parameters_of_its_description(parse, size):
  config = _parsed(parse, size)
  assert _count(config) == _by_hand(config)


def test_every_published_size_has_its_file():
  assert set(_PARAMETERS) <= set(_SIZES)
  others = set(_SIZES) - set(_PARAMETERS)
  assert all(s.startswith('paper_') or s.endswith('_tiny') for s in others)


def _by_hand(config: t5.T5Config) -> int:
  """Counts the parameters of a T5 network from its description."""
  d = config.emb_dim
  attention = 4 * d * config.num_heads * config.head_dim
  mlp = (len(config.mlp_activations) + 1) * d * config.mlp_dim
  encoder = config.num_encoder_layers * (attention + mlp + 2 * d)
  decoder = config.num_decoder_layers * (2 * attention + mlp + 3 * d)
  relative = 2 * config.relpos_num_buckets * config.num_heads
  outputs = 1 if config.logits_via_embedding else 2
  return encoder + decoder + relative + 2 * d + outputs * config.vocab_size * d


def test_of_bindings_in_several_scopes_the_innermost_is_used():
  bound = {'a/x.Y.z', 'x.Y.z', 'a/b/x.Y.w', 'x.Y.w', 'M'}
  in_scope = 'M = 3\na/b/x.Y.z = 1\na/b/x.Y.w = 2\n'
  assert bindings.used(in_scope, bound) == {'a/x.Y.z', 'a/b/x.Y.w', 'M'}
  assert bindings.used('c/x.Y.z = 1', bound) == {'x.Y.z'}
  assert bindings.used('x.Y.q = 1', bound) == set()


@pytest.mark.parametrize(
  'binding',
  [
    'early_stopping.Stopping.max_steps=10',
    "optimizer.Optimizer.frozen=('token_embedder/*',)",
  ],
)
def test_a_binding_that_others_hide_is_an_error(tmp_path, binding):
  ended = running.within(
    '--gin_file=quickstart.gin',
    f'--gin.MODEL_DIR={tmp_path}/run',
    f'--gin.{binding}',
    '--run_mode=status',
  )
  name = binding.partition('=')[0]
  assert ended.code == 2
  said = ' '.join(ended.stderr.split())
  assert f'binding {name} changes nothing' in said
  assert f'bc/{name}, improving/{name}' in said


def code_of(guide, word):
  """The only block of a guide that has a word."""
  fence = re.compile(r'^```\w*\n(.*?)^```$', re.MULTILINE | re.DOTALL)
  blocks = fence.findall((_GUIDES / guide).read_text())
  (found,) = [text for text in blocks if word in text]
  return found


def test_the_filter_of_the_guide_is_one(monkeypatch, tmp_path):
  (tmp_path / 'my_filter.py').write_text(code_of('algorithm.md', 'def keep'))
  monkeypatch.syspath_prepend(tmp_path)
  import my_filter

  rows = rows_lib.Rows(
    source_ids=np.arange(2),
    offsets=np.array([0, 3, 5]),
    sample_index=np.array([0, 1, 2, 0, 1], np.int32),
    origin=np.zeros(5, np.int8),
    reward=np.ones(5, np.float32),
    finished=np.array([True, True, True, True, False]),
    lengths=np.array([2, 3, 7, 5, 9], np.int32),
  )
  longer = my_filter.Longer()
  assert isinstance(longer, selection.Selection)
  kept = selection.select([longer], rows)
  assert kept.tolist() == [False, False, True, False, False]


def test_the_loss_of_the_guide_is_one(parse, tmp_path, monkeypatch):
  code = code_of('algorithm.md', 'class Focal')
  binding = code_of('algorithm.md', 'import my_loss')
  (tmp_path / 'my_loss.py').write_text(code)
  (tmp_path / 'my_loss.gin').write_text(binding)
  monkeypatch.syspath_prepend(tmp_path)
  parse(str(tmp_path / 'my_loss.gin'))
  run = main._build()
  loss = run.improve.training.loss
  assert (loss.name, loss.gamma) == ('focal', 1.0)
  assert run.supervised.training.loss == losses.BehavioralCloning()
  assert loss.fits_references
  scores = types.TokenScores(
    log_probs=jnp.log(jnp.array([[0.25, 0.5]])),
    log_normalizers=jnp.zeros((1, 2)),
    mean_log_probs=jnp.zeros((1, 2)),
  )
  found = loss(scores, None)
  wanted = [[-0.75 * math.log(0.25), -0.5 * math.log(0.5)]]
  np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_a_loss_that_cannot_be_compiled_says_what_to_write():
  @dataclasses.dataclass
  class Mine(losses.PolicyLoss):
    def __call__(self, scores, batch):
      return -scores.log_probs

  with pytest.raises(errors.ConfigurationError, match=r'Mine .*frozen=True'):
    improve.Improve(
      training=early_stopping.Training(
        optimizer.Optimizer(), packing.Packing(8, 8, 2), Mine()
      ),
      stopping=early_stopping.Stopping(1, 1, 1),
      schedule=schedule.Thresholds((0.5,)),
    )
