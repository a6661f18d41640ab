"""Plans a run for a pod: will it fit, what bounds it, and how long it takes.

Compiles the real programs of the run ahead of time, for chips that need not be
there, and prints a page.
"""

from rest_jax import policy_plan, rest
from rest_jax.data import splits
from rest_jax.planning import (
  chips,
  compare,
  comparison,
  counts,
  estimate,
  measure,
  page,
  programs,
  topology,
)
from rest_jax.policy import Policy
from rest_jax.training import early_stopping


def run(run: rest.ReST, topology_name: str | None, command: str) -> None:
  """Prints the page of a run on a slice.

  Args:
    run: the run.
    topology_name: the slice, such as 'v5e:4x4'; 'all' compares the usual
      slices, by hand counts.
    command: that asks for this page, to be printed with it.

  Raises:
    ConfigurationError: no such slice, libtpu is missing, or the network, the
      batches or the mesh do not divide over its chips.
  """
  if topology_name == 'all':
    print(comparison.text(_compare(run), command))
    return
  wanted = chips.parse(topology_name or '')
  layout = topology.OnSlice.of(run.layout, topology.devices(wanted))
  # Each host decodes by itself.
  num_hosts = wanted.num_chips // wanted.host.num_chips
  grow_layout = topology.OnSlice.of(
    run.decoding_layout, topology.devices(wanted.host)
  )
  update = _update(run)
  policy = Policy(run.model, grow_layout)
  sample = programs.Sample.of(
    policy,
    run.grow.batching,
    run.grow.num_samples,
    run.grow.sampling,
    num_hosts,
  )
  evaluate = run.evaluate
  evaluations = [
    programs.Sample.of(
      policy, evaluate.batching, number, evaluate.sampling, num_hosts
    )
    for number in (1, evaluate.num_samples, evaluate.select_samples)
  ]
  print(
    page.text(
      page.Content(
        where=wanted,
        command=command,
        model=run.model,
        update=update,
        supervised_updates_like=_relative(run),
        sample=sample,
        layout=layout,
        grow_layout=grow_layout,
        num_hosts=num_hosts,
        improved=measure.update(update, run.model, layout),
        grown=measure.sample(sample, run.model, grow_layout, evaluations),
        work=work_of(run),
      )
    )
  )


def _update(run: rest.ReST) -> programs.Update:
  training = run.improve.training
  return programs.Update(
    training, training.packing.rows_per_batch, training.num_microbatches
  )


def _compare(run: rest.ReST) -> list[comparison.Row]:
  """The best layouts of each usual slice, and the hours with them."""
  batching, update = run.grow.batching, _update(run)
  lanes = batching.lanes(run.grow.num_samples)
  sample = programs.Sample(
    sources=batching.rows // lanes,
    lanes=lanes,
    num_samples=run.grow.num_samples,
    source_length=batching.source_buckets[-1],
    max_decode_len=batching.max_decode_len,
    sampling=run.grow.sampling,
  )
  rows = []
  for where in chips.common_slices():
    choice = compare.best(where, run.model, update, sample)
    hours = choice and estimate.hours(
      work_of(run),
      choice.update_seconds * _relative(run),
      choice.update_seconds,
      choice.samples_per_second,
    )
    rows.append(comparison.Row(where, choice, hours))
  return rows


def _relative(run: rest.ReST) -> float:
  """An update of BC, in updates of an Improve step, by its operations."""
  flops = [
    counts.train_flops(
      run.model,
      part.training.packing.rows_per_batch,
      part.training.packing.source_length,
      part.training.packing.target_length,
    )
    for part in (run.supervised, run.improve)
  ]
  return flops[0] / flops[1]


def work_of(run: rest.ReST) -> estimate.Work:
  """What there is to do, as far as the configuration tells."""
  trained = [
    policy for policy in policy_plan.policies(run) if policy.start is not None
  ]
  stopping, evaluate = run.improve.stopping, run.evaluate
  evaluations = len(trained) * _evaluations(stopping)
  return estimate.Work(
    supervised_updates=(
      0
      if run.supervised_from or run.grow_from
      else run.supervised.stopping.max_steps
    ),
    improve_updates=len(trained) * stopping.max_steps,
    sources=rows_of(run.data.grow or run.data.train),
    num_samples=run.grow.num_samples,
    num_grow=max(0, run.num_grow - bool(run.grow_from)),
    evaluated_samples=(
      evaluations * evaluate.select_sources * evaluate.select_samples
    ),
  )


def _evaluations(stopping: early_stopping.Stopping) -> int:
  return 1 + -(-stopping.max_steps // stopping.eval_every)


def rows_of(expression: str) -> int | None:
  """The rows that a split's expression names, where it gives numbers."""
  if '%' in expression:
    return None
  part = splits.parse(expression, lambda split: 0)
  return None if part.high is None else part.high - part.low
