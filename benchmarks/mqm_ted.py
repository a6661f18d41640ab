"""How far metrics agree with people on the TED talks: leaves one out in turn.

  python benchmarks/mqm_ted.py --data ../shared/data/mqm_ted \
      --work runs/mqm_ted --output runs/mqm_ted/tables.md

For each of the five talks a small reward model is trained from scratch on the
others by `--run_mode=train_reward` and scores this one, which it has not seen
in either direction. The same command goes on from where it was stopped.
Writes the tables of docs/results/mqm_ted.md.
"""

import argparse
import math
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rest_jax import storage
from rest_jax.data import mqm, mqm_prepare, scored, store
from rest_jax.rewards import base, lexical, muse
from rest_jax.rewards.agreement import Agreement, agreement

GIN = pathlib.Path(__file__).with_suffix('.gin')
# The one that mt-metrics-eval has for the standard: ref-A of zh-en is free.
REFERENCES = {'en-de': 'ref-A', 'zh-en': 'ref-B'}
Rows = list[dict]
Scores = np.ndarray


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--data', required=True)
  parser.add_argument('--work', required=True, type=pathlib.Path)
  parser.add_argument('--output', required=True, type=pathlib.Path)
  parser.add_argument('--baselines_only', action='store_true')
  parser.add_argument('--gin', action='append', default=[], metavar='A=B')
  args = parser.parse_args(argv)
  counts = mqm_prepare.prepare(args.data, str(args.work / 'rows.parquet'))
  print(counts)
  rows = pq.read_table(args.work / 'rows.parquet').to_pylist()
  judged = [row for row in rows if not mqm.is_reference(row['system'])]
  metrics = {
    'constant': np.zeros(len(judged)),
    'length ratio': length_ratio(judged),
    'chrF to the reference': metric_scores(
      lexical.SentenceChrf(), rows, judged
    ),
    'muse to the reference': metric_scores(
      muse.SentenceSimilarity(), rows, judged
    ),
    'muse to the source': metric_scores(
      muse.SentenceSimilarity('source'), rows, judged
    ),
  }
  if not args.baselines_only:
    metrics['learned'] = learned(rows, judged, args.work, args.gin)
  text = '\n'.join(report(judged, metrics))
  storage.write_atomic(args.output, (text + '\n').encode())
  print(text)


def length_ratio(judged: Rows) -> Scores:
  """−|log(characters of candidate / source) − its mean on the other talks|."""
  ratios = np.array(
    [math.log(len(r['candidate']) / len(r['source'])) for r in judged]
  )
  pairs = np.array([row['language_pair'] for row in judged])
  documents = np.array([row['document'] for row in judged])
  out = np.zeros(len(judged))
  for pair in set(pairs):
    for document in set(documents):
      here = (pairs == pair) & (documents == document)
      others = (pairs == pair) & (documents != document)
      out[here] = -np.abs(ratios[here] - ratios[others].mean())
  return out


def metric_scores(metric: base.RewardModel, rows: Rows, judged: Rows) -> Scores:
  """Scores of a metric that may compare with the standard reference."""
  references = {
    (row['language_pair'], row['segment']): row['candidate']
    for row in rows
    if row['system'] == REFERENCES[row['language_pair']]
  }
  found = metric.score(
    [row['source'] for row in judged],
    [row['candidate'] for row in judged],
    [references[row['language_pair'], row['segment']] for row in judged],
  )
  return found.astype(np.float64)


def learned(
  rows: Rows, judged: Rows, work: pathlib.Path, bindings: list[str]
) -> Scores:
  """Scores of each talk by the model that was trained on the others."""
  out = np.full(len(judged), np.nan)
  for document in sorted({row['document'] for row in rows}):
    folder = work / document.replace('/', '_')
    write_fold(folder, rows, document)
    command = [
      *(sys.executable, '-m', 'rest_jax.main', f'--gin_file={GIN}'),
      *(f'--gin.MODEL_DIR={folder}/run', f'--gin.FOLD={folder}'),
      f'--gin.REWARD_FILE={folder}/train.parquet',
      f'--gin.IMPORTED_SAMPLES={folder}/judged.parquet',
      *(f'--gin.{binding}' for binding in bindings),
    ]
    began = time.monotonic()
    for mode in ('train_reward', 'import_samples', 'annotate'):
      subprocess.run([*command, f'--run_mode={mode}'], check=True)
    print(f'{document}: {time.monotonic() - began:.0f} s', flush=True)
    imported = folder / 'run/imported'
    found = {
      (row['source'], row['target']): row['score']
      for table in scored.iter_scored(
        imported / 'samples',
        {'score': imported / 'scores/learned'},
        ('source', 'target'),
      )
      for row in table.to_pylist()
    }
    unread = 0
    for i, row in enumerate(judged):
      if row['document'] == document:
        pair = row['source'], row['candidate']
        unread += pair not in found
        # What is too long to be read gets the worst, as in a run.
        out[i] = found.get(pair, 0.0)
    stage = storage.read_json(imported / 'samples/stage.json')
    if unread != stage['counts']['too_long']:
      raise ValueError(f'{imported} has no score for {unread} of {document}')
  return out


def write_fold(folder: pathlib.Path, rows: Rows, document: str) -> None:
  """The files of one fold: rows to learn from, rows to judge, pairs of text.

  Without `document`, so that sources and not whole talks are held out to tell
  when to stop: there are only four.
  """
  others = [row for row in rows if row['document'] != document]
  held = [row for row in rows if row['document'] == document]
  train = [
    {name: row[name] for name in ('source', 'candidate', 'score')}
    for row in others
  ]
  test = [
    {'source': row['source'], 'target': row['candidate']}
    for row in held
    if not mqm.is_reference(row['system'])
  ]
  # The tokenizer's text; no policy is trained.
  pairs = {
    f'{row["source"]}\t{row["candidate"]}\n': None
    for row in others
    if row['system'] in REFERENCES.values()
  }
  for name, part in (('train', train), ('judged', test)):
    table = store.table_bytes(pa.Table.from_pylist(part))
    _write_new(folder / f'{name}.parquet', table)
  _write_new(folder / 'pairs.tsv', ''.join(pairs).encode())


def _write_new(path: pathlib.Path, data: bytes) -> None:
  if not path.exists() or path.read_bytes() != data:
    storage.write_atomic(path, data)


def report(judged: Rows, metrics: dict[str, Scores]):
  """Lines of Markdown."""
  for pair in REFERENCES:
    chosen = np.array([row['language_pair'] == pair for row in judged])
    yield from pair_table(pair, judged, chosen, metrics)
  yield '## By talk'
  yield ''
  yield 'acc*_eq of each talk, ε of its own.'
  yield ''
  yield from _header(['talk', 'translations', *metrics])
  for pair in REFERENCES:
    for document in sorted({row['document'] for row in judged}):
      chosen = np.array(
        [
          (row['language_pair'], row['document']) == (pair, document)
          for row in judged
        ]
      )
      cells = [
        f'{measure(judged, chosen, scores).calibrated_accuracy:.3f}'
        for scores in metrics.values()
      ]
      name = f'{pair}, {document.partition("/")[2]}'
      yield _line([name, f'{int(chosen.sum()):,}', *cells])


def pair_table(pair, judged: Rows, chosen, metrics: dict[str, Scores]):
  human = np.array([row['score'] for row in judged])
  yield f'## {pair}'
  yield ''
  yield (
    f'{int(chosen.sum()):,} translations of'
    f' {len({judged[i]["segment"] for i in np.flatnonzero(chosen)}):,} segments'
    f' by {len({judged[i]["system"] for i in np.flatnonzero(chosen)})} systems;'
    f' {(human[chosen] == 0).mean():.1%} are without a marked error.'
    f' {same_text(judged, chosen)}'
  )
  yield ''
  columns = ('τ', 'τ within source', 'acc_eq', 'acc*_eq', 'ε')
  yield from _header(['metric', *columns])
  for name, scores in metrics.items():
    found = measure(judged, chosen, scores)
    numbers = (
      found.tau,
      found.tau_within,
      found.accuracy,
      found.calibrated_accuracy,
      found.epsilon,
    )
    yield _line(
      [name, *('–' if math.isnan(x) else f'{x:.3f}' for x in numbers)]
    )
  yield ''


def same_text(judged: Rows, chosen) -> str:
  """How often people gave the same translation of a source another score."""
  texts: dict[tuple, list[float]] = {}
  for i in np.flatnonzero(chosen):
    row = judged[i]
    texts.setdefault((row['segment'], row['candidate']), []).append(
      row['score']
    )
  pairs = differ = 0
  for given in texts.values():
    a, b = np.triu_indices(len(given), k=1)
    pairs += len(a)
    differ += int((np.array(given)[a] != np.array(given)[b]).sum())
  return (
    f'Of {pairs:,} pairs of systems with the same text for a segment, people'
    f' scored {differ / pairs:.1%} differently.'
  )


def measure(judged: Rows, chosen, scores: Scores) -> Agreement:
  human = np.array([row['score'] for row in judged])
  segments = np.array([row['segment'] for row in judged])
  return agreement(human[chosen], scores[chosen], segments[chosen])


def _header(cells: Sequence[str]):
  yield _line(cells)
  yield '|' + '---|' * len(cells)


def _line(cells: Sequence[str]) -> str:
  return f'| {" | ".join(cells)} |'


if __name__ == '__main__':
  main()
