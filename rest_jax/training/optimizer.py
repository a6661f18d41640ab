"""The optimiser and its learning rate, as gin settings over optax."""

import dataclasses
import fnmatch
import functools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from rest_jax import errors, types


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """Adafactor (as T5 uses it) or AdamW, with a schedule.

  The learning rate of update k (from 1) is `learning_rate` times a linear
  warm-up min(1, k / warmup_steps) and then, by `schedule`,
    constant: 1;
    rsqrt:    sqrt(warmup_steps / k), T5's;
    linear:   from 1 to 0 at update `decay_steps`;
    cosine:   from 1 to 0 at update `decay_steps`, half a cosine.
  None of these four is compiled into the train step, nor is the scale by which
  each Improve step lowers the rate.

  Attributes:
    name: 'adafactor' (Shazeer and Stern, 2018, arXiv:1804.04235) or 'adamw'
      (Loshchilov and Hutter, 2019, arXiv:1711.05101).
    learning_rate: its peak. Relative to a parameter's root mean square where
      `multiply_by_parameter_scale` holds.
    warmup_steps: updates of linear warm-up; 0 for none.
    schedule: 'constant', 'rsqrt', 'linear' or 'cosine'.
    decay_steps: update at which 'linear' and 'cosine' reach 0.
    clip_norm: greatest global norm of the gradient; 0 for no clipping.
    weight_decay: decoupled, times the learning rate, on matrices only.
    multiply_by_parameter_scale: Adafactor: updates are relative to the root
      mean square of the parameter (at least 1e-3). T5's embeddings, drawn from
      N(0, 1), learn slowly without it.
    factored: Adafactor: second moments of matrices by rows and columns.
    min_dim_size_to_factor: Adafactor: smaller matrices are not factored.
    decay_rate: Adafactor: second moments decay by 1 − k^−decay_rate.
    b1: AdamW: decay of the first moment.
    b2: AdamW: decay of the second moment.
    eps: AdamW: term that keeps the denominator from 0.
    frozen: patterns (`*` is anything) of parameters that keep their values to
      the bit, such as 'token_embedder/*' or '*/relpos_bias/*'.

  Raises:
    ConfigurationError: when a value is out of its range, or `decay_steps` is
      missing.
  """

  name: Literal['adafactor', 'adamw'] = 'adafactor'
  learning_rate: float = 1e-3
  warmup_steps: int = 0
  schedule: Literal['constant', 'rsqrt', 'linear', 'cosine'] = 'constant'
  decay_steps: int = 0
  clip_norm: float = 1.0
  weight_decay: float = 0.0
  multiply_by_parameter_scale: bool = True
  factored: bool = True
  min_dim_size_to_factor: int = 128
  decay_rate: float = 0.8
  b1: float = 0.9
  b2: float = 0.98
  eps: float = 1e-8
  frozen: Sequence[str] = ()

  def __post_init__(self):
    if isinstance(self.frozen, str):  # A lone pattern is a sequence too.
      object.__setattr__(self, 'frozen', (self.frozen,))
    object.__setattr__(self, 'frozen', tuple(self.frozen))
    self._check_choice('name', ('adafactor', 'adamw'))
    self._check_choice('schedule', ('constant', 'rsqrt', 'linear', 'cosine'))
    self._check('learning_rate', self.learning_rate > 0, 'greater than 0')
    for field in ('warmup_steps', 'decay_steps', 'clip_norm', 'weight_decay'):
      self._check(field, getattr(self, field) >= 0, 'at least 0')
    for field in ('b1', 'b2'):
      self._check(field, 0 <= getattr(self, field) < 1, 'in [0, 1)')
    self._check('decay_rate', 0 < self.decay_rate <= 1, 'in (0, 1]')
    self._check('eps', self.eps > 0, 'greater than 0')
    if self.schedule in ('linear', 'cosine'):
      self._check(
        'decay_steps',
        self.decay_steps > self.warmup_steps,
        f'set, and greater than warmup_steps, for schedule {self.schedule!r}',
      )
    if self.schedule == 'rsqrt':
      self._check(
        'warmup_steps', self.warmup_steps > 0, "greater than 0 for 'rsqrt'"
      )

  def _check(self, field: str, holds: bool, rule: str):
    value = getattr(self, field)
    if not holds or (isinstance(value, float) and not math.isfinite(value)):
      raise errors.ConfigurationError(
        f'Optimizer.{field} = {value!r}: must be {rule}.'
      )

  def _check_choice(self, field: str, choices: tuple[str, ...]):
    self._check(
      field, getattr(self, field) in choices, f'one of {", ".join(choices)}'
    )

  def learning_rate_at(self, step: int | jax.Array) -> jax.Array:
    """The learning rate of the update made after `step` updates, float32 []."""
    count = jnp.asarray(step, jnp.int32) + 1
    return jnp.asarray(self._schedule(count), jnp.float32)

  def without_schedule(self) -> 'Optimizer':
    """The same directions, at a constant learning rate of 1."""
    return dataclasses.replace(
      self,
      learning_rate=1.0,
      schedule='constant',
      warmup_steps=0,
      decay_steps=0,
    )

  @functools.cached_property
  def _schedule(self) -> optax.Schedule:
    peak, warmup = self.learning_rate, self.warmup_steps
    rest = self.decay_steps - warmup
    if self.schedule == 'linear':
      after = optax.linear_schedule(peak, 0.0, rest)
    elif self.schedule == 'cosine':
      after = optax.cosine_decay_schedule(peak, rest)
    elif self.schedule == 'rsqrt':

      def after(count):  # Which optax counts from the end of the warm-up.
        return peak * jnp.sqrt(warmup / (count + warmup))
    else:
      after = optax.constant_schedule(peak)
    if not warmup:
      return after
    return optax.join_schedules(
      [optax.linear_schedule(0.0, peak, warmup), after], [warmup]
    )

  @functools.cached_property
  def direction(self) -> optax.GradientTransformation:
    """The step to take, before the learning rate and the minus sign."""
    chain = []
    if self.clip_norm:
      chain.append(optax.clip_by_global_norm(self.clip_norm))
    if self.name == 'adamw':
      chain.append(optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps))
    else:
      chain.append(
        optax.scale_by_factored_rms(
          factored=self.factored,
          decay_rate=self.decay_rate,
          min_dim_size_to_factor=self.min_dim_size_to_factor,
        )
      )
      chain.append(optax.clip_by_block_rms(1.0))
      if self.multiply_by_parameter_scale:
        chain.append(optax.scale_by_param_block_rms())
    if self.weight_decay:
      chain.append(
        optax.add_decayed_weights(self.weight_decay, mask=_is_matrix)
      )
    chain = optax.chain(*chain)
    if not self.frozen:
      return chain
    # The norm is that of what is trained, and only that has a state.
    return optax.chain(
      optax.masked(chain, functools.partial(_marked, self.frozen, False)),
      optax.masked(
        optax.set_to_zero(), functools.partial(_marked, self.frozen, True)
      ),
    )


def check_frozen(patterns: Sequence[str], names: Sequence[str]) -> None:
  """Raises a ConfigurationError where a pattern is of no parameter's name."""
  for pattern in patterns:
    if not fnmatch.filter(names, pattern):
      raise errors.ConfigurationError(
        f'FROZEN (Optimizer.frozen) = {tuple(patterns)!r}: no parameter is'
        f' named {pattern!r}; names are such as {names[0]!r} and'
        f' {names[-1]!r}.'
      )


def _marked(patterns: tuple[str, ...], frozen: bool, tree: types.Params):
  """A tree of whether each parameter is frozen, or is not."""
  leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
  names = [
    jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in leaves
  ]
  check_frozen(patterns, names)
  return jax.tree.unflatten(
    structure,
    [
      frozen == any(fnmatch.fnmatchcase(name, each) for each in patterns)
      for name in names
    ],
  )


def _is_matrix(params):
  return jax.tree.map(lambda p: p.ndim > 1, params)
