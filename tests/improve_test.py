import numpy as np
import pytest

from rest_jax import random_control, selection
from rest_jax.rows import POLICY, REFERENCE, Rows


def one_source(origins, rewards):
  """Rows of one source, all finished."""
  count = len(origins)
  return Rows(
    source_ids=np.array([7], np.int64),
    offsets=np.array([0, count], np.int64),
    sample_index=np.arange(-1, count - 1, dtype=np.int32),
    origin=np.array(origins, np.int8),
    reward=np.array(rewards, np.float32),
    finished=np.ones(count, bool),
    lengths=np.full(count, 3, np.int32),
  )


@pytest.mark.parametrize('with_references', [False, True])
def test_the_random_control_draws_from_what_the_filter_chose_among(
  with_references,
):
  rows = one_source([REFERENCE] + [POLICY] * 3, [1.0, 0.9, 0.1, 0.2])
  chosen = (selection.Threshold(0.5),)
  if not with_references:
    chosen = (selection.SamplesOnly(), *chosen)
  kept = [
    selection.select(random_control.like(chosen, 0, seed), rows)
    for seed in range(50)
  ]
  assert {int(k.sum()) for k in kept} == {1 + with_references}
  drawn = set(np.flatnonzero(np.any(kept, axis=0)))
  assert drawn == ({0, 1, 2, 3} if with_references else {1, 2, 3})


def test_the_random_control_respects_what_stands_before_the_filter():
  rows = one_source([POLICY] * 4, [0.9, 0.8, 0.1, 0.2])
  chosen = (
    selection.Cap(2, by='reward'),
    selection.Threshold(0.85),
    selection.Unfiltered(),
  )
  for seed in range(20):
    control = random_control.like(chosen, 1, seed)
    kept = selection.select(control, rows)
    assert kept.sum() == 1
    assert not kept[2:].any()
