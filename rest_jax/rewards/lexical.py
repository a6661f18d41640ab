"""Lexical rewards of single sentences, by sacrebleu: chrF, BLEU and TER.

All need references, score 0–100, and run in worker processes where there are
enough rows to be worth it.
"""

import atexit
import concurrent.futures
import dataclasses
import functools
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence

import numpy as np
import sacrebleu
from jaxtyping import Float32

from rest_jax import errors, language
from rest_jax.rewards import base

_CHUNK = 128  # Rows that a worker is given at a time.
_GRACE_SECONDS = 60.0  # That a worker goes on after SIGTERM.
_VERSION = sacrebleu.__version__


def _workers():
  # Not compared: scores are the same, so no stage is stale for it.
  return dataclasses.field(default=0, compare=False)


class _Lexical:
  """A sacrebleu metric as a reward model; see the classes below."""

  info: base.RewardInfo
  num_workers: int

  def metric(self):
    """The sacrebleu metric; its constructor may refuse."""
    raise AssertionError('every metric below has its own')

  def score(
    self,
    sources: Sequence[str],
    candidates: Sequence[str],
    references: Sequence[str] | None = None,
  ) -> Float32[np.ndarray, ' n']:
    """Scores n candidates against a reference each; sources are ignored.

    Returns:
      float32 [n], 0–100.

    Raises:
      RewardError: no references, not one a candidate, or sacrebleu lacks what
        the target language needs.
    """
    del sources
    references = base.check_references(self.info, references)
    if len(candidates) != len(references):
      raise errors.RewardError(
        f'reward {self.info.name!r} was given {len(candidates)} candidates'
        f' and {len(references)} references: give one reference a candidate'
      )
    workers = self.num_workers or os.cpu_count() or 1
    parts = [slice(i, i + _CHUNK) for i in range(0, len(candidates), _CHUNK)]
    # Lists, because views of other containers may not travel to a worker.
    chunks = (
      itertools.repeat(self, len(parts)),
      [list(candidates[part]) for part in parts],
      [list(references[part]) for part in parts],
    )
    parallel = workers > 1 and len(parts) > 1
    run = _pool(workers).map if parallel else map
    scores = list(run(_score_chunk, *chunks))
    return np.concatenate([np.zeros(0, np.float32), *scores])


@dataclasses.dataclass(frozen=True)
class SentenceChrf(_Lexical):
  """Sentence chrF (Popović 2015), or chrF++ with `word_order` = 2.

  Attributes:
    word_order: longest word n-grams counted; 0 for chrF.
    num_workers: processes; 0 for one a core, 1 for none besides this one.
  """

  word_order: int = 0
  num_workers: int = _workers()

  @property
  def info(self) -> base.RewardInfo:
    return _info('chrf' + '+' * self.word_order, f'w{self.word_order}')

  def metric(self):
    return sacrebleu.CHRF(word_order=self.word_order)


@dataclasses.dataclass(frozen=True)
class SentenceBleu(_Lexical):
  """Sentence BLEU with effective order and exponential smoothing.

  Attributes:
    trg_lang: the target language's code, which chooses the tokenizer (with the
      default one a right Chinese sentence scores 0).
    num_workers: as in `SentenceChrf`.
  """

  trg_lang: str
  num_workers: int = _workers()

  @property
  def info(self) -> base.RewardInfo:
    return _info('sentence_bleu', language.primary(self.trg_lang))

  def metric(self):
    return sacrebleu.BLEU(
      effective_order=True, trg_lang=language.primary(self.trg_lang)
    )


@dataclasses.dataclass(frozen=True)
class SentenceTer(_Lexical):
  """Sentence TER (Snover et al. 2006); lower is better, above 100 is cut.

  Attributes:
    trg_lang: the target language's code; Chinese and Japanese are split into
      characters.
    num_workers: as in `SentenceChrf`.
  """

  trg_lang: str
  num_workers: int = _workers()

  @property
  def info(self) -> base.RewardInfo:
    return _info('ter', language.primary(self.trg_lang), higher_is_better=False)

  def metric(self):
    asian = language.primary(self.trg_lang) in ('zh', 'ja')
    return sacrebleu.TER(normalized=asian, asian_support=asian)


def _info(
  name: str, settings: str, higher_is_better: bool = True
) -> base.RewardInfo:
  return base.RewardInfo(
    name=name,
    version=f'sacrebleu-{_VERSION}-{settings}',
    low=0.0,
    high=100.0,
    higher_is_better=higher_is_better,
    needs_reference=True,
  )


@functools.lru_cache(maxsize=8)
def _metric(model: _Lexical):
  """The metric of a reward model, made once a process."""
  try:
    return model.metric()
  # sacrebleu raises what its tokenizers' packages raise.
  except (ImportError, RuntimeError, ValueError, AssertionError) as error:
    raise errors.RewardError(
      f'reward {model.info.name!r}: sacrebleu cannot be set up'
      f' ({" ".join(str(error).split())}): install what it asks for'
    ) from error


def _score_chunk(
  model: _Lexical, candidates: list[str], references: list[str]
) -> np.ndarray:
  """Scores of a chunk, in whichever process this is."""
  metric = _metric(model)
  # The samples of a source stand together, so its n-grams are counted once.
  scores = np.zeros(len(candidates), np.float32)
  for i, (candidate, reference) in enumerate(
    zip(candidates, references, strict=True)
  ):
    scores[i] = metric.sentence_score(candidate, [reference]).score
  # A TER can exceed 100, and a perfect score can exceed it by rounding.
  return np.clip(scores, 0.0, 100.0)


@functools.lru_cache(maxsize=1)
def _pool(workers: int) -> concurrent.futures.ProcessPoolExecutor:
  """The workers, kept alive; jax has threads, so they are never forked."""
  pool = concurrent.futures.ProcessPoolExecutor(
    workers,
    mp_context=multiprocessing.get_context('forkserver'),
    initializer=_end_with_the_run,
  )
  atexit.register(pool.shutdown, cancel_futures=True)
  return pool


def _end_with_the_run() -> None:
  """Lets a worker end where a run is killed and cannot tell it to.

  SIGTERM, which is sent to all processes of a machine that is taken away, it
  outlives by a while: the run, which ends by itself, must not find its workers
  dead. A pool that broke ends its workers by SIGTERM, and then it does so too.
  """

  def terminated(number, frame):
    del number, frame
    timer = threading.Timer(_GRACE_SECONDS, os._exit, (1,))
    timer.daemon = True
    timer.start()

  signal.signal(signal.SIGTERM, terminated)

  def watch():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
