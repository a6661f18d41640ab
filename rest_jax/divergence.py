"""How far a policy has gone from BC: KL(π‖π_BC), and the entropy of π.

Both are sums over the tokens of samples that π drew at T = 1; at each prefix
the expectation over the next token is taken over the whole vocabulary instead
of from the token drawn, which is unbiased, never negative, and varies less:

  KL(π‖π_BC) = E_{x, y~π} Σ_t Σ_v π(v | y_<t, x) log π(v | ·) / π_BC(v | ·)

(Amini, Vieira and Cotterell, Better Estimation of the KL Divergence Between
Language Models, 2025, arXiv:2504.10637, the Rao-Blackwellised estimator.)
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from rest_jax import generation, hosts, preemption
from rest_jax import policy as policy_lib
from rest_jax.context import BC, Context
from rest_jax.decoding.sampling import Sampling, drawable
from rest_jax.types import Params

_NEVER = -1e9  # The logit of a token that is never drawn.


@dataclasses.dataclass(frozen=True)
class Divergence:
  """Of each sample, in nats.

  Attributes:
    kl: float32 [k, n], Σ_t KL(π(· | y_<t, x) ‖ π_BC(· | y_<t, x)).
    entropy: float32 [k, n], Σ_t H(π(· | y_<t, x)).
  """

  kl: np.ndarray
  entropy: np.ndarray


def next_token(
  logits: Float[Array, '*shape v'],
  other_logits: Float[Array, '*shape v'],
  allowed: Bool[Array, 'v'],
) -> tuple[Float[Array, '*shape'], Float[Array, '*shape']]:
  """KL(p‖q) and the entropy of p, exactly, of the distributions of a token.

  Args:
    logits: float32, of p.
    other_logits: float32, of q.
    allowed: bool, tokens that may be drawn; both are renormalised over these.

  Returns:
    float32, float32, nats.
  """
  shape = (1,) * (logits.ndim - 1) + allowed.shape
  allowed = allowed.reshape(shape)
  log_p = jax.nn.log_softmax(jnp.where(allowed, logits, _NEVER))
  log_q = jax.nn.log_softmax(jnp.where(allowed, other_logits, _NEVER))
  p = jnp.exp(log_p)
  return jnp.sum(p * (log_p - log_q), -1), -jnp.sum(p * log_p, -1)


def figures(
  context: Context,
  policy_name: str,
  params: Params,
  sources: Sequence[Sequence[int]],
  source_ids: np.ndarray,
  *,
  num_samples: int,
  batching: generation.Batching,
) -> dict[str, float]:
  """`kl_bc` and `entropy` of results.csv, from samples of its own.

  Args:
    context: the run.
    policy_name: stage of the policy.
    params: its parameters, placed for `Context.decoder`.
    sources: k token sequences, EOS included.
    source_ids: int64 [k].
    num_samples: samples a source.
    batching: shapes.
  """
  share = hosts.share(len(sources))
  sources, size = sources[share], len(sources)
  generated = generation.generate(
    context.decoder,
    params,
    sources,
    source_ids[share],
    seed=context.seed,
    purpose='evaluate',
    step=0,
    num_samples=num_samples,
    sampling=Sampling(temperature=1.0),  # π itself, whatever Grow truncates.
    batching=batching,
    num_tokens=context.tokenizer.size,
    advance=lambda tokens: preemption.check(),
  )
  behaviour = params
  if policy_name != BC:
    behaviour = context.read_params(
      BC, context.decoder.placed_inference_params()
    )
  found = measure(
    context.decoder,
    params,
    behaviour,
    sources,
    generated,
    batching=batching,
    num_tokens=context.tokenizer.size,
  )
  kl, entropy = (
    hosts.gather_rows(values, size) for values in (found.kl, found.entropy)
  )
  return {
    'kl_bc': float(kl.mean(dtype=np.float64)),
    'entropy': float(entropy.mean(dtype=np.float64)),
  }


def measure(
  policy: policy_lib.Policy,
  params: Params,
  behaviour: Params,
  sources: Sequence[Sequence[int]],
  generated: generation.Generated,
  *,
  batching: generation.Batching,
  num_tokens: int,
) -> Divergence:
  """Measures it on samples of π at T = 1. Compiled once a source bucket.

  Args:
    policy: the network.
    params: of π.
    behaviour: of π_BC.
    sources: k token sequences, EOS included.
    generated: their samples, drawn from π without any truncation.
    batching: shapes.
    num_tokens: size of the tokenizer; higher ids, and 0, are never drawn.
  """
  k, n, length = generated.tokens.shape
  kl, entropy = np.zeros((2, k * n), np.float32)
  rows = generation.scored_at_once(policy, batching)
  repeated = [source for source in sources for _ in range(n)]
  tokens = generated.tokens.reshape(k * n, length)
  lengths = generated.lengths.reshape(k * n)
  for indices, source_tokens in batching.batches(repeated, rows):
    targets = np.zeros((rows, length), np.int32)
    targets[: len(indices)] = tokens[indices]
    counts = np.zeros(rows, np.int32)
    counts[: len(indices)] = lengths[indices]
    batch = generation.teacher_forced(source_tokens, targets, counts)
    batch = jax.tree.map(policy.place, batch)
    sums = _sums(policy, params, behaviour, batch, num_tokens)
    preemption.check()
    for out, values in zip((kl, entropy), sums, strict=True):
      out[indices] = np.asarray(values)[: len(indices)]
  return Divergence(kl.reshape(k, n), entropy.reshape(k, n))


@functools.partial(jax.jit, static_argnums=(0, 4))
def _sums(policy, params, behaviour, batch, num_tokens):
  """Sums over the tokens of each row, float32 [b] both."""
  allowed = drawable(policy.config.vocab_size, num_tokens)
  figures = next_token(
    policy.logits(params, batch), policy.logits(behaviour, batch), allowed
  )
  counted = batch.decoder_loss_weights
  return tuple(jnp.sum(values * counted, axis=-1) for values in figures)
