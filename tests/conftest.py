"""Strict settings for every test; they must precede the first import of jax."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
  ]
).strip()
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'

import jaxtyping

# Shapes and dtypes in annotations are checked here and nowhere else.
jaxtyping.install_import_hook('rest_jax', 'beartype.beartype')

import jax  # noqa: E402

# Two arrays of different rank never meet without saying how they line up.
jax.config.update('jax_numpy_rank_promotion', 'raise')
