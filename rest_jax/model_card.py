"""The model card of an export: what the model is, and how it came to be."""

from collections.abc import Mapping, Sequence
from typing import Any

import rest_jax
from rest_jax.checkpoint.huggingface import SCORE_ID
from rest_jax.run_policy import RunPolicy, stage_of

_JUDGED = ('accuracy', 'tau_within', 'tau', 'disagreement')
_FIGURES = (
  'reward_mean', 'reward_low', 'reward_high', 'reward_greedy',
  'reward_best_t', 'bleu', 'chrf', 'bleu_signature', 'chrf_signature',
)  # fmt: skip


def text(
  source: str,
  *,
  run: RunPolicy | None,
  proof: Sequence[str],
  score_id: int | None,
  source_prefix: str = '',
  reward: Mapping[str, Any] | None = None,
) -> str:
  """Markdown, with the front matter that the Hugging Face hub reads.

  Args:
    source: what was converted.
    run: the policy, where it is one of a run.
    proof: sentences on what the conversion compared.
    score_id: for a reward model, the id whose logit is its value.
    source_prefix: what every source of a policy begins with.
    reward: for a learned reward, how it reads a pair; see `rewards.exported`.
  """
  name = run.stage.name if run is not None else source
  parts = [_front_matter(run), f'# {name}']
  if reward is not None:
    parts.append(_reading(source, run, score_id, reward))
  else:
    parts.append(_what(source, run))
  if source_prefix and reward is None:
    parts.append(
      f'Every source must begin with `{source_prefix}`: no tokenizer adds it.'
    )
  if run is not None and reward is not None:
    parts += [_how(run), _read(run), _judged(run)]
  elif run is not None:
    parts += [_how(run), _rewards(run), _data(run), _results(run)]
  comparisons = '\n'.join(f'- {line}' for line in proof)
  parts.append(
    f'## Conversion\n\nBy rest_jax {rest_jax.__version__}.\n\n{comparisons}'
  )
  return '\n\n'.join(part for part in parts if part) + '\n'


def _front_matter(run: RunPolicy | None) -> str:
  lines = ['library_name: transformers']
  lines += ['pipeline_tag: translation'] * (run is None or run.member is None)
  pair = run.data.manifest['extra'].get('language_pair') if run else None
  if pair and pair.count('-') == 1:  # Else no code says where one ends.
    # YAML reads a bare `no` as false.
    lines += ['language:', *(f"- '{code}'" for code in pair.split('-'))]
  lines += ['tags:', '- rest_jax', '- t5']
  return '\n'.join(['---', *lines, '---'])


def _what(source: str, run: RunPolicy | None) -> str:
  if run is None:
    return f'Converted from `{source}`.'
  return (
    f'A translation policy (stage `{run.stage.name}` of the run'
    f' `{run.root.name}`), trained by Reinforced Self-Training (Gulcehre et al.'
    ' 2023, arXiv:2308.08998). Configuration: `config.gin` (as given) and'
    ' `operative_config.gin` (as used).'
  )


def _reading(
  source: str,
  run: RunPolicy | None,
  score_id: int | None,
  reward: Mapping[str, Any],
) -> str:
  """What a learned reward is, and how to ask it."""
  origin = f'converted from `{source}`'
  if run is not None:
    origin = f'stage `{run.stage.name}` of the run `{run.root.name}`'
  value = 'the output of `decoder/score_dense`'
  if score_id is not None:
    value = (
      f'the first logit of the id {score_id} (`{SCORE_ID}`; all other rows of'
      ' the output layer are 0)'
    )
  scale = 'clipped to [0, 1]' if reward['bounded'] else 'σ of it, in [0, 1]'
  return (
    f'A reward model for translations, not a policy: network'
    f' {reward["member"]} of {reward["members"]} ({origin}), whose mean is the'
    ' reward; higher is better. It reads the tokens of the source (at most'
    f' {reward["max_source_length"]}), the id {reward["separator_id"]}, those'
    f' of the candidate (at most {reward["max_candidate_length"]}; a longer one'
    ' gets 0), and the id 1. Its raw value is'
    f' {value}, after one decoder step from the start token; the reward is'
    f' {scale}. All of this stands in `reward.json`, and'
    ' `rest_jax.rewards.exported.Exported` goes by it.'
  )


def _how(run: RunPolicy) -> str:
  rows = [
    (
      f'`{stage.name}`',
      _counts(stage.manifest['counts']),
      f'{stage.manifest["seconds"]:,.0f}',
      f'`{stage.fingerprint[:16]}`',
    )
    for stage in reversed(run.lineage)
  ]
  head = ('stage', 'counts', 'seconds', 'fingerprint')
  first = run.lineage[-1].manifest  # A learned reward begins anew.
  start = first['config'].get('Supervised.initial_checkpoint_path')
  begun = 'From random parameters.' if start is None else f'From `{start}`.'
  return f'## How it was made\n\n{begun}\n\n' + _table(head, rows)


def _counts(counts: Mapping[str, Any]) -> str:
  return ', '.join(
    f'{name.replace("_", " ")} {_count(value)}'
    for name, value in counts.items()
  )


def _count(value: int | float) -> str:
  return f'{value:,}' if isinstance(value, int) else f'{value:,.4g}'


def _rewards(run: RunPolicy) -> str:
  """The reward of every Grow step that the policy was trained on."""
  rows = []
  for grown in run.grown:
    stage = stage_of(run.root, f'{grown}/reward')
    values = stage.manifest['config']
    mean = stage.manifest['counts'].get('reward_mean')
    rows.append(
      (
        f'`{grown}`',
        f'`{values.get("RewardInfo.name")}`',
        str(values.get('RewardInfo.version')),
        '' if mean is None else f'{mean:.4f}',
        f'`{stage.fingerprint[:16]}`',
      )
    )
  if not rows:
    return ''
  head = ('samples', 'reward', 'version', 'mean', 'fingerprint')
  return '## Reward\n\n' + _table(head, rows)


def _data(run: RunPolicy) -> str:
  grown = [stage_of(run.root, f'{name}/samples') for name in run.grown]
  rows = [
    (
      f'`{stage.name}`',
      _counts(stage.manifest['counts']),
      f'`{stage.fingerprint}`',
    )
    for stage in (run.data, *grown)
  ]
  return '## Data\n\n' + _table(('stage', 'rows', 'fingerprint'), rows)


def _read(run: RunPolicy) -> str:
  """What a learned reward was made from: stages, or a file."""
  inputs = run.stage.manifest['inputs'].items()
  path = run.stage.manifest['config'].get('TrainReward.rows.path')
  rows = [
    (f'`{path if name.endswith(".path") else name}`', f'`{fingerprint}`')
    for name, fingerprint in sorted(inputs)
  ]
  return '## Data\n\n' + _table(('stage or file', 'fingerprint'), rows)


def _judged(run: RunPolicy) -> str:
  """How right a learned reward is on held-out rows."""
  counts = run.stage.manifest['counts']
  rows = [(name, f'{counts[name]:.4f}') for name in _JUDGED if name in counts]
  head = ('all networks, on held-out rows', 'figure')
  return '## Results\n\n' + _table(head, rows)


def _results(run: RunPolicy) -> str:
  figures = run.figures
  if not figures:
    return '## Results\n\nThis policy was not evaluated in its run.'
  rows = [
    (name, *(_value(figures[split].get(name)) for split in figures))
    for name in _FIGURES
  ]
  return '## Results\n\n' + _table(('figure', *figures), rows)


def _value(value: Any) -> str:
  if isinstance(value, float):
    return f'{value:.2f}'
  return '' if value is None else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [head, ['---'] * len(head), *rows]
  return '\n'.join(
    '| ' + ' | '.join(str(cell).replace('|', r'\|') for cell in line) + ' |'
    for line in lines
  )
