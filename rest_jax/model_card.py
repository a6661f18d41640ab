"""The model card of an export: what the model is, and how it came to be."""

from collections.abc import Mapping, Sequence
from typing import Any

import rest_jax
from rest_jax.run_policy import RunPolicy, stage_of

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
) -> str:
  """Markdown, with the front matter that the Hugging Face hub reads.

  Args:
    source: what was converted.
    run: the policy, where it is one of a run.
    proof: sentences on what the conversion compared.
    score_id: for a reward model, the id whose logit is its value.
    source_prefix: what every source of a policy begins with.
  """
  name = run.stage.name if run is not None else source
  parts = [_front_matter(run), f'# {name}', _what(source, run, score_id)]
  if source_prefix and score_id is None:
    parts.append(
      f'Every source must begin with `{source_prefix}`: no tokenizer adds it.'
    )
  if run is not None:
    parts += [_how(run), _rewards(run), _data(run), _results(run)]
  comparisons = '\n'.join(f'- {line}' for line in proof)
  parts.append(
    f'## Conversion\n\nBy rest_jax {rest_jax.__version__}.\n\n{comparisons}'
  )
  return '\n\n'.join(part for part in parts if part) + '\n'


def _front_matter(run: RunPolicy | None) -> str:
  lines = ['library_name: transformers', 'pipeline_tag: translation']
  pair = run.data.manifest['extra'].get('language_pair') if run else None
  if pair:
    source, _, target = pair.partition('-')
    lines += ['language:', f'- {source}', f'- {target}']
  lines += ['tags:', '- rest_jax', '- t5']
  return '\n'.join(['---', *lines, '---'])


def _what(source: str, run: RunPolicy | None, score_id: int | None) -> str:
  if run is None:
    return f'Converted from `{source}`.'
  if score_id is not None:
    return (
      f'A reward model (stage `{run.stage.name}` of the run'
      f' `{run.root.name}`). Its raw value is the first logit of the id'
      f' {score_id} (`score_token_id` in `config.json`), after one decoder step'
      ' from the start token; all other rows of `lm_head` are 0.'
    )
  return (
    f'A translation policy (stage `{run.stage.name}` of the run'
    f' `{run.root.name}`), trained by Reinforced Self-Training (Gulcehre et al.'
    ' 2023, arXiv:2308.08998). Configuration: `config.gin` (as given) and'
    ' `operative_config.gin` (as used).'
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
  first = run.lineage[-1].manifest
  start = first['config'].get('Supervised.initial_checkpoint_path')
  begun = 'From random parameters.' if start is None else f'From `{start}`.'
  return f'## How it was made\n\n{begun}\n\n' + _table(head, rows)


def _counts(counts: Mapping[str, Any]) -> str:
  return ', '.join(
    f'{name.replace("_", " ")} {value:,}' for name, value in counts.items()
  )


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
