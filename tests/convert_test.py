"""Conversions through the public command, and what they refuse."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import running
import sentencepiece
from etils import epath

from rest_jax import generation, run_policy
from rest_jax.checkpoint import (
  formats,
  huggingface,
  huggingface_export,
  native,
  t5x,
  tokenizer_export,
  transformers_peer,
)
from rest_jax.data.corpora import NumeralsTask
from rest_jax.data.tokenizer import ByteTokenizer
from rest_jax.models.config import T5Config
from rest_jax.policy import Policy
from rest_jax.sharding import Layout

GOLDENS = pathlib.Path(__file__).parent / 'goldens'
PREFIX = '<2en> '
FIXTURES = (pathlib.Path(__file__).parents[1] / '../shared/fixtures').resolve()
MODELS = [
  GOLDENS / 'hf_mt5',
  GOLDENS / 'hf_byt5',
  GOLDENS / 'hf_umt5',
  FIXTURES / 'hf_t5_v1_0_tiny',
  FIXTURES / 'hf_t5_v1_1_tiny',
]
LINES = ['one two three', '', 'forty two', 'seven thousand and nine']


def convert(source, target, to, *more):
  return running.within(
    '--run_mode=convert',
    f'--input={source}',
    f'--output={target}',
    f'--format={to}',
    *more,
  )


def converted(source, target, to, *more):
  ended = convert(source, target, to, *more)
  assert ended.code == 0, ended.stderr
  return ended.stdout


def refused(code, *arguments):
  ended = convert(*arguments)
  assert ended.code == code, ended.stdout
  assert len(ended.stderr.splitlines()) == 1
  return ended.stderr


def translated_by_reading(
  folder, lines, num_beams, alpha, length, room, prefix=''
):
  """Beam search with an exported folder alone: its weights, its tokenizer."""
  config = huggingface.read_config(folder)
  policy = Policy(config, Layout(data=1))
  params = huggingface.restore_params(folder, policy.abstract_params())
  tokenizer = tokenizer_export.load(folder)
  filled = tokenizer.encode_batch([prefix + line for line in lines if line])
  beams = generation.generate_beam(
    policy,
    params,
    [[*ids[: room - 1], tokenizer.eos_id] for ids in filled],
    num_beams=num_beams,
    alpha=alpha,
    batching=generation.Batching(
      source_buckets=(room,), rows=16, max_decode_len=length
    ),
    num_tokens=tokenizer.size,
  )
  found = iter(tokenizer.decode(beam.tolist()) for beam in beams)
  return [next(found) if line else '' for line in lines]


def write_like_madlad(folder):
  """The mT5 golden, with a tokenizer for the embedded task."""
  folder.mkdir()
  golden = GOLDENS / 'hf_mt5'
  shutil.copy(golden / 'model.safetensors', folder)
  config = json.loads((golden / 'config.json').read_text())
  config |= {'eos_token_id': 2, 'pad_token_id': 1}
  (folder / 'config.json').write_text(json.dumps(config))
  rows = list(NumeralsTask(num_train=400).rows('train'))
  with (folder / 'spiece.model').open('wb') as file:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(
        [row[side] for row in rows for side in ('source', 'target')]
      ),
      model_writer=file,
      vocab_size=100,
      user_defined_symbols=['\n', '<2de>', PREFIX.strip()],
      unk_id=0,
      bos_id=1,
      eos_id=2,
      pad_id=-1,
      num_threads=1,
      minloglevel=2,
    )
  (folder / 'tokenizer_config.json').write_text(
    (GOLDENS / 'tokenizer_madlad/tokenizer_config.json').read_text()
  )


@pytest.mark.parametrize('name', ['hf_mt5', 'hf_umt5'])
def test_all_formats_in_a_row_lose_nothing(tmp_path, name):
  golden, back = GOLDENS / name, tmp_path / 'back'
  only = '--verify=tensors'
  converted(golden, tmp_path / 'checkpoint_5', 't5x', only)
  converted(tmp_path / 'checkpoint_5', tmp_path / 'ours', 'native', only)
  said = converted(tmp_path / 'ours', back, 'huggingface')
  given = huggingface.Source(golden)
  found = huggingface.Source(back)
  assert found.shapes == given.shapes
  for parameter in given.shapes:
    np.testing.assert_array_equal(
      found.read(parameter).view(np.uint32),
      given.read(parameter).view(np.uint32),
      parameter,
    )
  assert found.config == given.config
  assert 'bit for bit' in said
  assert 'not compared with the origin' in said
  assert 'not compared with the origin' in (back / 'README.md').read_text()
  assert not list(tmp_path.glob('.*'))


def test_every_fixture_is_read_as_by_its_reader(tmp_path):
  """What tests/checkpoint shows of the readers holds of the command."""
  t5x_fixture = FIXTURES / 't5x_v1_1_tiny'
  for folder in (*MODELS, t5x_fixture):
    if not folder.exists():
      continue
    out = tmp_path / folder.name
    converted(folder, out, 'native', '--verify=tensors')
    if folder == t5x_fixture:
      given = t5x.Source(folder / 'checkpoint_0')
      config = T5Config(**json.loads((folder / 'config.json').read_text()))
    else:
      given = huggingface.Source(folder)
      config = given.config
    found = formats.find(out)
    assert formats.read_config(found) == config
    written = native.Source(found.path)
    assert written.shapes.keys() == given.shapes.keys()
    for name in given.shapes:
      np.testing.assert_array_equal(written.read(name), given.read(name), name)


def test_a_proof_that_fails_leaves_nothing(tmp_path, monkeypatch):
  write = huggingface_export._write_rows

  def altered(file, array):
    write(file, array + (array.shape == (16,)))

  monkeypatch.setattr(huggingface_export, '_write_rows', altered)
  said = refused(4, GOLDENS / 'hf_mt5', tmp_path / 'out', 'huggingface')
  assert 'decoder/decoder_norm/scale' in said
  assert 'nothing was committed' in said
  assert not list(tmp_path.iterdir())


def test_a_wrong_table_is_found_by_logits(tmp_path, monkeypatch):
  """Key and value are exchanged on reading back: shapes are the same."""
  read = huggingface.Source.read

  def swapped(self, name, index=()):
    if str(tmp_path) in self.where:
      name = name.replace('/key/', '/_/').replace('/value/', '/key/')
      name = name.replace('/_/', '/value/')
    return read(self, name, index)

  from rest_jax import proof

  monkeypatch.setattr(huggingface.Source, 'read', swapped)
  monkeypatch.setattr(
    proof, 'compare_tensors', lambda given, _: proof.Proof(len(given.shapes), 0)
  )
  said = refused(4, GOLDENS / 'hf_mt5', tmp_path / 'out', 'huggingface')
  assert 'logits of read back differ' in said
  assert not list(tmp_path.iterdir())


def test_fewer_embeddings_than_ids_are_refused(tmp_path, monkeypatch):
  class Large(ByteTokenizer):
    size = 400

  monkeypatch.setattr(tokenizer_export, 'load', lambda folder: Large())
  said = refused(2, GOLDENS / 'hf_mt5', tmp_path / 'out', 'native')
  assert '320 rows for the 400 ids' in said
  assert not list(tmp_path.iterdir())


def test_a_run_is_found_whose_path_is_longer_than_a_line(tmp_path):
  longer = tmp_path / ('long_' * 20)
  # As gin writes it.
  text = f"GROW_FROM = \\\n    '{longer}'\nSUPERVISED_FROM = None\n"
  (tmp_path / 'config.gin').write_text(text)
  assert run_policy._branched_from(epath.Path(tmp_path)) == [longer]


def test_bindings_without_a_file_are_refused(tmp_path):
  ended = running.within(
    '--run_mode=convert',
    f'--input={tmp_path}',
    f'--output={tmp_path}/out',
    '--format=t5x',
    '--gin.t5.T5Config.vocab_size=512',
  )
  assert ended.code == 2
  assert 't5.T5Config.vocab_size' in ended.stderr
  assert 'without --gin_file' in ended.stderr


def test_flags_are_checked_before_anything_is_read(tmp_path):
  golden = GOLDENS / 'hf_mt5'
  (tmp_path / 'there').mkdir()
  assert 'exists already' in refused(2, golden, tmp_path / 'there', 'native')
  assert '--output=PATH' in refused(2, golden, '-', 'native')
  assert '--input=PATH' in refused(2, '-', tmp_path / 'out', 'native')
  assert 'is not there' in refused(3, tmp_path / 'no', tmp_path / 'o', 'native')
  ended = running.within(
    '--run_mode=convert', f'--input={golden}', f'--output={tmp_path / "out"}'
  )
  assert ended.code == 2
  assert '--format' in ended.stderr
  assert 'no checkpoint' in refused(
    2, tmp_path / 'there', tmp_path / 'out', 'native'
  )


def test_a_size_comes_from_gin_where_the_checkpoint_tells_none(tmp_path):
  checkpoint = tmp_path / 'checkpoint_1'
  converted(GOLDENS / 'hf_mt5', checkpoint, 't5x', '--verify=tensors')
  (checkpoint / 'config.json').unlink()
  said = refused(2, checkpoint, tmp_path / 'out', 'native')
  assert '--gin_file=models/' in said
  size = tmp_path / 'size.gin'
  size.write_text(
    'from __gin__ import dynamic_registration\n'
    'from rest_jax.models import config as t5\n'
    't5.T5Config:\n'
    '  vocab_size = 320\n  emb_dim = 16\n  num_heads = 2\n'
    '  num_encoder_layers = 2\n  num_decoder_layers = 3\n'
    '  head_dim = 6\n  mlp_dim = 24\n'
    '  relpos_num_buckets = 8\n  relpos_max_distance = 12\n'
  )
  converted(
    checkpoint,
    tmp_path / 'out',
    'native',
    f'--gin_file={size}',
    '--verify=tensors',
  )
  assert json.loads((tmp_path / 'out/config.json').read_text())[
    'vocab_size'
  ] == 320  # fmt: skip


def test_what_cannot_be_trusted_is_refused(tmp_path):
  pickled, outside = tmp_path / 'pickled', tmp_path / 'outside'
  short = tmp_path / 'short'
  for folder in (pickled, outside, short):
    folder.mkdir()
    shutil.copy(GOLDENS / 'hf_mt5/config.json', folder)
  (pickled / 'pytorch_model.bin').write_bytes(b'\x80\x04.')
  assert '.bin' in refused(2, pickled, tmp_path / 'out', 'native')
  weights = GOLDENS / 'hf_mt5/model.safetensors'
  shutil.copy(weights, tmp_path)
  index = {'weight_map': {'shared.weight': '../model.safetensors'}}
  (outside / 'model.safetensors.index.json').write_text(json.dumps(index))
  assert 'do not trust' in refused(3, outside, tmp_path / 'out', 'native')
  (short / 'model.safetensors').write_bytes(weights.read_bytes()[:-1])
  assert 'truncated' in refused(3, short, tmp_path / 'out', 'native')
  assert not (tmp_path / 'out').exists()


def test_a_policy_of_a_run_is_exported_with_its_history(
  whole_run, tmp_path, compiled
):
  stage = whole_run.folder / 'grow_1/improve_1'
  out = tmp_path / 'out'
  converted(stage, out, 'huggingface')
  expected = running.parameters(stage)
  source = huggingface.Source(out)
  assert len(expected) == len(source.shapes)
  for name, values in expected.items():
    parameter = name.strip("[]'").replace("']['", '/')
    np.testing.assert_array_equal(source.read(parameter), values, name)
  for name in ('config.gin', 'operative_config.gin'):
    assert (out / name).read_bytes() == (whole_run.folder / name).read_bytes()
  card = (out / 'README.md').read_text()
  for name in ('data', 'grow_1/samples', 'grow_1/improve_0', 'supervised'):
    manifest = json.loads((whole_run.folder / name / 'stage.json').read_text())
    assert manifest['fingerprint'][:16] in card, name
  assert 'shared_letters' in card
  figures = json.loads((stage / 'evaluation/report/stage.json').read_text())
  assert (
    figures['extra']['figures']['bleu_signature'].replace('|', r'\|') in card
  )
  generation_config = json.loads((out / 'generation_config.json').read_text())
  assert generation_config['max_new_tokens'] == 16
  assert generation_config['suppress_tokens'] == [0]  # All 64 are tokens.
  # As a run translates, so does what was exported of it.
  command = running.command(
    whole_run.folder, '--run_mode=translate', '--policy=grow_1/improve_1'
  )
  done = running.start(command, cache=compiled, stdin='\n'.join(LINES) + '\n')
  ours = done.stdout.split('\n')[:-1]
  assert translated_by_reading(out, LINES, 2, 0.6, 16, 24) == ours


@pytest.mark.slow
def test_a_run_from_an_imported_checkpoint_ends_in_an_export(
  tmp_path, compiled
):
  """Whole ReST from a folder of Hugging Face, and back to such a folder.

  It is laid out as MADLAD-400's: EOS is 2, and a source begins with a tag.
  """
  model_dir, out, given = (tmp_path / name for name in ('run', 'out', 'given'))
  write_like_madlad(given)
  settings = tmp_path / 'settings.gin'
  settings.write_text(
    'from __gin__ import dynamic_registration\n'
    'from rest_jax.data import prepare\n'
    f'INITIAL_CHECKPOINT_PATH = {str(given)!r}\n'
    'TOKENIZER = @prepare.CheckpointTokenizer()\n'
    'prepare.CheckpointTokenizer:\n'
    '  folder = %INITIAL_CHECKPOINT_PATH\n'
    f'  source_prefix = {PREFIX!r}\n'
  )
  line = running.command(
    model_dir,
    '--gin_file=models/from_checkpoint.gin',
    f'--gin_file={settings}',
    # So that it has something to say.
    '--gin.SUPERVISED_STEPS=120',
    '--gin.SUPERVISED_EVAL_EVERY=40',
  )
  running.start(line, cache=compiled)
  converted(model_dir / 'grow_1/improve_1', out, 'huggingface')
  card = (out / 'README.md').read_text()
  assert str(given) in card
  assert f'must begin with `{PREFIX}`' in card
  written = json.loads((out / 'config.json').read_text())
  assert written['eos_token_id'] == 2
  greedy = [
    '--run_mode=translate',
    '--gin.evaluate.Evaluate.num_beams=1',
    '--gin.evaluate.Evaluate.alpha=0.0',
  ]
  done = running.start(
    [*line, *greedy], cache=compiled, stdin='\n'.join(LINES) + '\n'
  )
  ours = done.stdout.split('\n')[:-1]
  assert any(ours)
  assert translated_by_reading(out, LINES, 1, 0.0, 16, 24, PREFIX) == ours
  if transformers_peer.why_not():
    return  # The folder was read by our own reader alone.
  filled = [PREFIX + text for text in LINES if text]
  (theirs,) = running.in_transformers([{'folder': str(out), 'lines': filled}])
  assert theirs['warnings'] == []
  tokenizer = tokenizer_export.load(out)
  assert theirs['ids'] == [[*ids, 2] for ids in tokenizer.encode_batch(filled)]
  assert theirs['translations'] == [text for text in ours if text]


@pytest.mark.slow
@pytest.mark.release
def test_a_run_with_frozen_embeddings_in_bfloat16(tmp_path, compiled):
  """Whole ReST by Adafactor; what is frozen goes out as it came in."""
  model_dir, out = tmp_path / 'run', tmp_path / 'out'
  line = running.command(
    model_dir,
    '--gin_file=models/from_checkpoint.gin',
    f'--gin.INITIAL_CHECKPOINT_PATH={GOLDENS / "hf_mt5"}',
    '--gin.TOKENIZER=@prepare.Bytes()',
    "--gin.FROZEN=('token_embedder/*',)",
    '--gin.ACTIVATION_DTYPE=bfloat16',
    '--gin.OPTIMIZER=adafactor',
    '--gin.CONTROLS=()',
  )
  running.start(line, cache=compiled)
  converted(model_dir / 'grow_1/improve_1', out, 'huggingface')
  given, found = huggingface.Source(GOLDENS / 'hf_mt5'), huggingface.Source(out)
  assert found.shapes == given.shapes
  frozen = 'token_embedder/embedding'
  for name in given.shapes:
    same = np.array_equal(given.read(name), found.read(name))
    assert same == (name == frozen), name
    assert found.read(name).dtype == np.float32
  values = json.loads((model_dir / 'supervised/stage.json').read_text())[
    'config'
  ]
  assert values['T5Config.dtype'] == 'bfloat16'


@pytest.mark.slow
def test_transformers_opens_what_we_write(tmp_path):
  """Without a word, and with the logits of the folder that was given."""
  if transformers_peer.why_not():
    pytest.skip(transformers_peer.why_not())
  jobs, expected = [], []
  for model in MODELS:
    if not model.exists():
      continue
    answers = np.load(model / 'expected.npz')
    batch = {
      'sources': answers['encoder_input_tokens'].tolist(),
      'inputs': answers['decoder_input_tokens'].tolist(),
    }
    given = json.loads((model / 'config.json').read_text())['model_type']
    ours, straight = tmp_path / f'{model.name}.ours', tmp_path / model.name
    said = converted(model, straight, 'huggingface')
    assert said.count('in transformers 4') == 2  # The input and the output.
    assert 'not compared' not in said
    # Through our own format, config.json is of our making alone.
    converted(model, ours, 'native', '--verify=tensors')
    back = tmp_path / f'{model.name}.back'
    converted(ours, back, 'huggingface', '--verify=tensors')
    plain = 'umt5' if given == 'umt5' else 't5'
    for folder, kind in (
      (model, given),
      (straight, given),
      (back, plain),
    ):
      jobs.append({'folder': str(folder)} | batch)
      expected.append(huggingface_export.ARCHITECTURES[kind])
  found = running.in_transformers(jobs)
  assert [one['architecture'] for one in found] == expected
  for i, one in enumerate(found):
    assert one['warnings'] == [], jobs[i]['folder']
    # The same network from the same bits gives the same bits.
    assert one['logits'] == found[i - i % 3]['logits'], jobs[i]['folder']
