"""What outputs look like, whatever their reward says of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import sacrebleu

from rest_jax import language
from rest_jax.data import scored
from rest_jax.rewards import words

REPEATED = 3  # A phrase so often in a row counts as repeated.


def distinct(texts: Sequence[str], n: int) -> float:
  """Distinct n-grams over all words of some texts: distinct-n.

  Li et al., A Diversity-Promoting Objective Function for Neural Conversation
  Models, 2016, arXiv:1510.03055, section 5: scaled by the number of words, so
  that long texts do not win. It falls as texts get more; compare equal counts.

  >>> distinct(['a b a b', 'a c'], 1), distinct(['a b a b', 'a c'], 2)
  (0.5, 0.5)

  Args:
    texts: outputs.
    n: words of an n-gram.

  Returns:
    In [0, 1]; 0 where there is no word.
  """
  found: set[tuple[str, ...]] = set()
  total = 0
  for text in texts:
    split = words.split(text)
    total += len(split)
    found.update(zip(*(split[i:] for i in range(n)), strict=False))
  return len(found) / total if total else 0.0


def describe(samples: pa.Table) -> dict[str, float]:
  """Figures of results.csv about outputs; see `results.Row`.

  Args:
    samples: rows of the samples' schema.

  Returns:
    `distinct_1`, `distinct_2`, `length_ratio`, `repeated_share`,
    `untranslated_share`.
  """
  texts = samples['target'].to_pylist()
  fields = scored.text_fields(
    samples, ('length_ratios', 'repetitions', 'copies')
  )
  return {
    'distinct_1': distinct(texts, 1),
    'distinct_2': distinct(texts, 2),
    'length_ratio': float(fields['length_ratios'].mean(dtype=np.float64)),
    'repeated_share': float((fields['repetitions'] >= REPEATED).mean()),
    'untranslated_share': float(fields['copies'].mean()),
  }


def corpus_scores(
  outputs: Sequence[str],
  references: Sequence[str] | None,
  target_language: str,
) -> dict[str, Any]:
  """Corpus BLEU and chrF with their sacrebleu signatures.

  Args:
    outputs: n translations.
    references: n references; None gives None for both figures.
    target_language: chooses BLEU's tokeniser.

  Returns:
    `bleu`, `chrf` (0–100 or None), `bleu_signature`, `chrf_signature`.
  """
  if references is None:
    return {
        'bleu': None, 'chrf': None, 'bleu_signature': '', 'chrf_signature': ''
    }  # fmt: skip
  bleu = sacrebleu.BLEU(trg_lang=language.primary(target_language))
  chrf = sacrebleu.CHRF()
  return {
    'bleu': bleu.corpus_score(outputs, [references]).score,
    'chrf': chrf.corpus_score(outputs, [references]).score,
    'bleu_signature': str(bleu.get_signature()),
    'chrf_signature': str(chrf.get_signature()),
  }
