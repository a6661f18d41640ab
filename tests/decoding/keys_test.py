import jax
import numpy as np
import pytest

from rest_jax.decoding.keys import sample_keys


def test_keys_tell_everything_apart():
  ids = np.array([0, 1, 2**31, 2**32, 2**32 + 1, 2**40])
  variants = [
    sample_keys(seed, purpose, step, ids, 3)
    for seed, purpose, step in [
      (0, 'grow', 1),
      (1, 'grow', 1),
      (0, 'evaluate', 1),
      (0, 'online', 1),
      (0, 'grow', 2),
    ]
  ]
  data = np.concatenate(
    [np.asarray(jax.random.key_data(keys)).reshape(-1, 2) for keys in variants]
  )
  assert len(np.unique(data, axis=0)) == len(data) == 5 * 6 * 3
  np.testing.assert_array_equal(
    jax.random.key_data(sample_keys(0, 'grow', 1, ids[3:4], 2)),
    jax.random.key_data(variants[0][3:4, :2]),
  )
  with pytest.raises(ValueError, match='purpose'):
    sample_keys(0, 'growing', 1, ids, 1)
