import gzip
import pathlib
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from rest_jax import errors
from rest_jax.data import mqm, mqm_prepare

TED = (pathlib.Path(__file__).parents[2] / '../shared/data/mqm_ted').resolve()
HEADER = '\t'.join((*mqm.COLUMNS, 'comment'))


def line(target, category='No-error', severity='No-error', **other):
  cells = {
    'system': 'A',
    'doc': 'talk.1',
    'doc_id': '1',
    'seg_id': '7',
    'rater': 'rater1',
    'source': 'a "b',
    'target': target,
    'category': category,
    'severity': severity,
    'comment': '',
  }
  return '\t'.join((cells | other).values())


def write(folder, *lines, name='mqm_x_ende.tsv', header=HEADER):
  path = folder / name
  text = '\n'.join((header, *lines)) + '\n'
  if name.endswith('.gz'):
    path.write_bytes(gzip.compress(text.encode()))
  else:
    path.write_bytes(text.encode())
  return path


def write_scores(folder, *rows, name='mqm_x_ende.avg_seg_scores.tsv'):
  rows = ('system mqm_avg_score seg_id', *rows)
  (folder / name).write_text('\n'.join(rows) + '\n')


@pytest.mark.parametrize(
  ('severity', 'category', 'weight'),
  [
    ('Major', 'Accuracy/Mistranslation', 5.0),
    ('major', 'Fluency/Punctuation', 5.0),
    ('Minor', 'Style/Awkward', 1.0),
    ('Minor', 'Fluency/Punctuation', 0.1),
    ('minor', 'fluency/punctuation/quotes', 0.1),
    ('Minor', 'Fluency', 1.0),
    ('Major', 'Non-translation!', 25.0),
    ('Major', 'Non-translation', 25.0),
    ('Minor', 'Non-translation!', 1.0),
    ('Major', 'Source error', 5.0),
    ('Neutral', 'Style/Awkward', 0.0),
    ('No-error', 'No-error', 0.0),
  ],
)
def test_weights_are_those_of_the_paper(severity, category, weight):
  assert mqm.weight(severity, category) == weight


def test_a_score_is_the_mean_over_raters_of_sums_over_errors(tmp_path):
  path = write(
    tmp_path,
    line('x <v>y</v> z', 'Accuracy/Mistranslation', 'Major'),
    line('<v>x</v> y z', 'Fluency/Punctuation', 'Minor'),
    line('x y <v>z</v>', 'Style/Awkward', 'Minor', rater='rater2'),
    line('x y z', rater='rater3'),
  )
  (row,) = mqm.read_translations(path)
  assert row.score == pytest.approx(-(5.1 + 1 + 0) / 3, abs=1e-12)
  assert (row.candidate, row.source) == ('x y z', 'a "b')
  assert (row.document, row.position, row.segment) == ('talk.1', 1, 7)


def test_the_order_of_errors_makes_no_other_score_and_zero_has_no_sign(
  tmp_path,
):
  marks = [('Fluency/Punctuation', 'Minor')] * 2 + [('Style', 'Minor')]
  lines = [line('x', *mark) for mark in marks]
  lines += [line('x', *mark, seg_id='8') for mark in reversed(marks)]
  first, second = mqm.read_translations(write(tmp_path, *lines))
  assert first.score == second.score == -1.2
  (right,) = mqm.read_translations(write(tmp_path, line('x')))
  assert str(right.score) == '0.0'


def test_marks_in_the_source_and_unclosed_marks_are_removed(tmp_path):
  path = write(
    tmp_path,
    line('x y', 'Accuracy/Omission', 'Major', source='<v>a</v> "b'),
    line('x <v>y', 'Other', 'Minor'),
  )
  (row,) = mqm.read_translations(path)
  assert (row.source, row.candidate, row.score) == ('a "b', 'x y', -6.0)


def test_lines_end_at_lf_and_quotes_are_text(tmp_path):
  target = '"an open\u2028quote\x85and\x0bmore'
  path = write(tmp_path, line(target), line('"', seg_id='8'))
  rows = mqm.read_translations(path)
  assert [row.candidate for row in rows] == [target, '"']


@pytest.mark.parametrize(
  ('lines', 'header', 'message'),
  [
    ([line('x')], 'system\tdoc', r'x_ende.tsv:1: no column doc_id, seg_id'),
    ([], HEADER, 'no annotations in it'),
    ([line('x') + '\tmore'], HEADER, ':2: 11 cells under 10 columns'),
    ([line('x', seg_id='one')], HEADER, ":2: doc_id '1' and seg_id 'one'"),
    ([line('x', 'Style', 'Grave')], HEADER, ":2: severity 'Grave' has no"),
    ([line('<v> </v>')], HEADER, ':2: the source or the target is empty'),
    ([line('x'), line('y')], HEADER, ':3: the text of segment 7 of A is not'),
    ([line('x'), line('x', system='B', source='c')], HEADER, ':3: the text'),
  ],
)
def test_bad_annotations_name_file_and_line(tmp_path, lines, header, message):
  path = write(tmp_path, *lines, header=header)
  with pytest.raises(errors.DataError, match=message):
    mqm.read_translations(path)


def test_scores_are_held_against_the_shipped_ones(tmp_path):
  path = write(
    tmp_path,
    line('x', 'Style', 'Major'),
    line('y', 'Style', 'Minor', system='ref'),
    line('z', system='refB'),
    line('w', system='C'),
  )
  write_scores(
    tmp_path,
    'A\t-1.000000 7',
    'ref-A\t-1.000000 7',
    'ref-B -0.000000 7',
    'A\tNone 8',
    'A\t-2.0 9',
  )
  scores = tmp_path / 'mqm_x_ende.avg_seg_scores.tsv'
  shipped = mqm_prepare.read_shipped_scores(scores)
  found = mqm_prepare.compare(mqm.read_translations(path), shipped)
  assert (found.systems, found.references, found.not_annotated) == (0, 2, 1)
  assert found.disagreements == (
    'A, segment 7: shipped -1.0, computed -5 of rater1: 5 (Major Style)',
  )
  assert found.missing == ('A, segment 9',)
  assert found.not_shipped == (
    'C, segment 7: shipped None, computed 0 of rater1: 0 (No-error No-error)',
  )


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    (['A\tbad 7'], r":2: 'A\\tbad 7' is not system, score, segment"),
    (['A -1 7', 'A -2 7'], ':3: a second score of A, segment 7'),
  ],
)
def test_bad_shipped_scores_name_file_and_line(tmp_path, rows, message):
  write_scores(tmp_path, *rows)
  with pytest.raises(errors.DataError, match=message):
    mqm_prepare.read_shipped_scores(tmp_path / 'mqm_x_ende.avg_seg_scores.tsv')


def talks(tmp_path):
  """Two talks, translated from English and into it, numbered differently."""
  english = [f'sentence {n}' for n in range(6)] + ['Thank you.']
  one, two = english[:4] + english[-1:], english[4:]
  for pair, order in (('ende', (one, two)), ('zhen', (two, one))):
    lines = []
    for d, talk in enumerate(order, 1):
      for i, text in enumerate(talk, 1):
        other = f'{pair} {text} {i}'
        source, target = (text, other) if pair == 'ende' else (other, text)
        lines.append(
          line(
            target,
            source=source,
            doc=f't{d}',
            doc_id=str(i),
            seg_id=str(10 * d + i),
          )
        )
    write(tmp_path, *lines, name=f'mqm_x_{pair}.tsv.gz')
  return tmp_path


def test_the_same_talk_has_one_name_in_both_directions(tmp_path):
  folder = talks(tmp_path)
  files = {
    pair: mqm.read_translations(folder / f'mqm_x_{name}.tsv.gz')
    for pair, name in (('en-de', 'ende'), ('zh-en', 'zhen'))
  }
  assert mqm.common_documents(files) == {
    ('en-de', 't1'): 'en-de/t1',
    ('en-de', 't2'): 'en-de/t2',
    ('zh-en', 't1'): 'en-de/t2',
    ('zh-en', 't2'): 'en-de/t1',
  }


@pytest.mark.parametrize('ending', ['tsv', 'parquet'])
def test_prepare_writes_rows_that_a_reward_can_be_trained_on(tmp_path, ending):
  out = tmp_path / f'rows.{ending}'
  counts = mqm_prepare.prepare(str(talks(tmp_path)), str(out))
  assert counts == {'rows': 16, 'documents': 2, 'unchecked_scores': 16}
  if ending == 'parquet':
    rows = pq.read_table(out).to_pylist()
  else:
    header, *lines = out.read_text().split('\n')[:-1]
    names = header.split('\t')
    rows = [dict(zip(names, l.split('\t'), strict=True)) for l in lines]
  assert list(rows[0]) == [
    'source',
    'candidate',
    'score',
    'document',
    'system',
    'segment',
    'language_pair',
  ]
  assert {row['document'] for row in rows} == {'en-de/t1', 'en-de/t2'}
  assert {float(row['score']) for row in rows} == {0.0}


def test_prepare_refuses_scores_that_disagree(tmp_path):
  path = write(tmp_path, line('x', 'Style', 'Major'))
  write_scores(tmp_path, 'A -1 7')
  with pytest.raises(errors.DataError, match='1 scores disagree, first A, seg'):
    mqm_prepare.prepare(str(path), str(tmp_path / 'out.tsv'))
  assert not (tmp_path / 'out.tsv').exists()


def test_prepare_refuses_what_it_cannot_name(tmp_path):
  out = str(tmp_path / 'out.tsv')
  with pytest.raises(errors.ConfigurationError, match='needs --input'):
    mqm_prepare.prepare('-', out)
  with pytest.raises(errors.ConfigurationError, match='must end in'):
    mqm_prepare.prepare(str(tmp_path), str(tmp_path / 'out.csv'))
  with pytest.raises(errors.DataError, match='no annotations whose name'):
    mqm_prepare.prepare(str(tmp_path), out)
  with pytest.raises(errors.DataError, match='no such file'):
    mqm_prepare.prepare(str(tmp_path / 'mqm_gone_ende.tsv'), out)
  for name in ('mqm_x_ende.tsv', 'mqm_y_ende.tsv'):
    write(tmp_path, line('x'), name=name)
  with pytest.raises(errors.DataError, match='a second file of en-de'):
    mqm_prepare.prepare(str(tmp_path), out)


def test_the_command_line_prepares_and_says_what_it_did(tmp_path):
  path = write(tmp_path, line('x', 'Style', 'Minor'))
  write_scores(tmp_path, 'A -1 7')
  command = [sys.executable, '-m', 'rest_jax.main', '--run_mode=prepare_mqm']
  command.append(f'--input={path}')
  out = tmp_path / 'out.tsv'
  done = subprocess.run(
    [*command, f'--output={out}'], capture_output=True, text=True, timeout=120
  )
  assert (done.returncode, done.stderr) == (0, '')
  assert 'rows 1, documents 1, equal_system_scores 1' in done.stdout
  assert out.read_text().split('\n')[1].startswith('a "b\tx\t-1.0\ten-de/talk')
  refused = subprocess.run(command, capture_output=True, text=True, timeout=120)
  assert refused.returncode == errors.ConfigurationError.exit_code
  assert 'needs --input' in refused.stderr


@pytest.mark.skipif(not TED.exists(), reason='the MQM files are not here')
def test_every_published_score_of_the_ted_talks_comes_out(tmp_path):
  out = tmp_path / 'ted.parquet'
  counts = mqm_prepare.prepare(str(TED), str(out))
  assert counts == {
    'rows': 15_341,
    'documents': 5,
    'equal_system_scores': 13_754,
    'equal_reference_scores': 1_587,
    'not_annotated': 5_788,
  }
  table = pq.read_table(out)
  assert sorted(set(table['document'].to_pylist())) == [
    f'en-de/talk.{n}' for n in (1, 3, 4, 5, 6)
  ]
  texts = table['candidate'].to_pylist() + table['source'].to_pylist()
  assert not any('<v>' in text or '</v>' in text for text in texts)
