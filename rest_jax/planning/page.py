"""The page of a plan, as Markdown."""

import dataclasses
from collections.abc import Iterable, Sequence

from rest_jax.models.config import T5Config
from rest_jax.planning import counts, estimate, measure, programs
from rest_jax.planning.chips import Slice
from rest_jax.planning.costs import Costs
from rest_jax.planning.estimate import Floor
from rest_jax.sharding import Layout

_LITTLE = 0.25  # Of a chip's memory: so much more could be decoded at once.
_TIMES = ('compute ms', 'memory ms', 'links ms', 'floor ms')


@dataclasses.dataclass(frozen=True)
class Content:
  """What a page tells.

  Attributes:
    where: the slice.
    command: that asks for this page.
    model: the policy's shape.
    update: the Improve step's program.
    supervised_updates_like: BC's update, in updates of Improve.
    sample: Grow's program.
    layout: of training.
    grow_layout: of decoding, over one host's chips.
    num_hosts: of the slice.
    improved: what an update costs.
    grown: what a batch of Grow costs.
    work: what there is to do.
  """

  where: Slice
  command: str
  model: T5Config
  update: programs.Update
  supervised_updates_like: float
  sample: programs.Sample
  layout: Layout
  grow_layout: Layout
  num_hosts: int
  improved: measure.UpdatePlan
  grown: measure.SamplePlan
  work: estimate.Work

  @property
  def update_floor(self) -> Floor:
    """Of an update."""
    return Floor.of(self.improved.costs, self.where.chip)

  @property
  def start_floor(self) -> Floor:
    """Of encoding a batch of Grow."""
    return Floor.of(self.grown.start, self.where.chip)

  @property
  def step_floor(self) -> Floor:
    """Of one step of decoding, by the compiler's count."""
    return Floor.of(self.grown.step, self.where.chip)

  @property
  def hand_step(self) -> counts.DecodeStep:
    """What one step of decoding must do."""
    mesh = self.grow_layout.mesh()
    sample = self.sample
    return counts.decode_step(
      self.model,
      sample.sources / mesh.shape['data'],
      sample.lanes,
      sample.source_length,
      sample.max_decode_len,
      mesh.shape['model'],
    )


def text(content: Content) -> str:
  """The whole page."""
  parts = (
    _head(content),
    _answer(content),
    _memory(content),
    _times(content),
    _collectives(content),
    _schedule(content),
    _method(content),
  )
  return '\n\n'.join('\n'.join(part) for part in parts)


def _head(content: Content) -> list[str]:
  chip, model, where = content.where.chip, content.model, content.where
  params = counts.num_params(model)
  size = (
    f'{params / 1e9:.1f} billion'
    if params >= 1e9
    else f'{params / 1e6:.0f} million'
  )
  return [
    f'# Plan for {where.name}',
    '',
    f'    {content.command}',
    '',
    f'A policy of {size} parameters'
    f' ({model.num_encoder_layers} + {model.num_decoder_layers} layers,'
    f' {model.emb_dim} features, {model.num_heads} heads,'
    f' {model.vocab_size:,} ids, {model.dtype} activations, remat'
    f" '{model.remat}'{', layers as one loop' * model.scan_layers}) on"
    f' {where.num_chips} chips of {chip.name}:'
    f' {chip.memory / 1e9:.1f} GB, {chip.flops / 1e12:.0f} Tflop/s in bfloat16,'
    f' {chip.bandwidth / 1e9:,.0f} GB/s to memory and {chip.links / 1e9:.0f}'
    ' GB/s to other chips, as published.',
    '',
    f'- Training: {_layout(content.layout)}; {content.update.rows} packed rows'
    f' of {content.update.training.packing.source_length} +'
    f' {content.update.training.packing.target_length} tokens in'
    f' {_count(content.update.num_microbatches, "microbatch", "es")},'
    f' {content.update.training.optimizer.name}.',
    f'- Grow, each of {content.num_hosts} hosts by itself:'
    f' {_layout(content.grow_layout)}; {content.sample.sources} sources'
    f' at a time, {content.sample.lanes} of the {content.sample.num_samples}'
    f' samples of each; sources of {content.sample.source_length} tokens,'
    f' samples of {content.sample.max_decode_len}.',
  ]


def _count(number: int, what: str, plural: str) -> str:
  return f'{number:,} {what}{plural if number > 1 else ""}'


def _layout(layout: Layout) -> str:
  shape = layout.mesh().shape
  split = 'data' in layout.axis_rules.mesh_axes('embed')
  how = 'parameters split over data too (FSDP)' if split else 'not split over'
  return (
    f'data {shape["data"]} × model {shape["model"]},'
    f' {how if split else "parameters " + how + " data"}'
  )


def _answer(content: Content) -> list[str]:
  memory = content.where.chip.memory
  update, sample = content.improved.whole, content.grown.whole
  verdicts = []
  for name, whole, more in (
    ('Improve', update, 0.0),
    ('Grow', sample, 0.0),
    ('Evaluation, worked out from Grow,', sample, content.grown.evaluation),
  ):
    needed = whole.needed + more
    fits = whole.memory is not None and needed <= memory
    verdicts.append(
      f'{name} {"fits" if fits else "**does not fit**"}: {_gb(needed)} of'
      f' {_gb(memory)} GB, {needed / memory:.0%}.'
    )
  changes = [*_improve_changes(content), *_grow_changes(content)]
  if sample.needed < _LITTLE * memory:
    changes.append(
      'Grow: more samples at once would read the weights less often a sample:'
      ' raise generation.Batching.rows.'
    )
  return ['## Does it fit?', '', *verdicts, *_bullets(changes)]


def _bullets(lines: Sequence[str]) -> list[str]:
  return ['', *(f'- {line}' for line in lines)] if lines else []


def _improve_changes(content: Content) -> Iterable[str]:
  if content.improved.whole.needed <= content.where.chip.memory:
    return
  data = content.layout.mesh().shape['data']
  rows, count = content.update.rows, content.update.num_microbatches
  state = content.improved.params + content.improved.optimizer
  split = 'data' in content.layout.axis_rules.mesh_axes('embed')
  if not split and data > 1:
    yield (
      f'Improve: parameters, their gradients and the optimizer are whole on'
      f' each of {data} data devices ({_gb(2 * content.improved.params)} GB of'
      ' the first two); split them: FSDP = True.'
    )
  if content.model.remat == 'none':
    yield "Improve: compute activations again: t5.T5Config.remat = 'full'."
  if rows // count > data:
    yield (
      f'Improve: more microbatches: NUM_MICROBATCHES = {2 * count} to'
      f' {rows // data}.'
    )
  if state > content.where.chip.memory / 2:
    yield 'Improve: split each layer over more chips: MODEL_PARALLEL.'


def _grow_changes(content: Content) -> Iterable[str]:
  grown, memory = content.grown, content.where.chip.memory
  if grown.whole.needed <= memory:
    if grown.whole.needed + grown.evaluation > memory:
      yield (
        'Evaluation: with one sample of each, more sources are decoded at once'
        f' than in Grow, whose keys and values take {_gb(grown.evaluation)} GB'
        ' more: lower generation.Batching.rows, or bind Evaluate.batching to'
        ' one of its own.'
      )
    return
  if grown.params > memory / 2:
    yield (
      f'Grow: parameters take {_gb(grown.params)} GB; split each layer over'
      ' more chips: GROW_MODEL_PARALLEL.'
    )
  data = content.grow_layout.mesh().shape['data']
  if content.sample.sources > data:
    yield (
      f'Grow: keys and values take {_gb(grown.cache)} GB; decode fewer samples'
      f' at once: generation.Batching.rows <'
      f' {content.sample.rows * content.num_hosts}.'
    )


def _memory(content: Content) -> list[str]:
  improved, grown = content.improved, content.grown
  chip = _gb(content.where.chip.memory)
  rows = [
    ('parameters', _gb(improved.params), _gb(grown.params)),
    ('optimizer', _gb(improved.optimizer), ''),
    ('keys and values', '', _gb(grown.cache)),
  ]
  for name, field in (
    ('arguments', 'arguments'),
    ('results beside them', 'outputs'),
    ('temporaries (all else)', 'temporaries'),
    ('program', 'code'),
  ):
    figures = [
      _gb(getattr(plan.whole.memory, field)) if plan.whole.memory else '?'
      for plan in (improved, grown)
    ]
    rows.append((f'compiler: {name}', *figures))
  rows += [
    ('**compiler: all**', _gb(improved.whole.needed), _gb(grown.whole.needed)),
    ('a chip has', chip, chip),
  ]
  return [
    '## Memory of a chip, GB',
    '',
    *table(('', 'Improve', 'Grow'), rows),
    '',
    'The first rows are worked out from shapes, without padding; the compiler'
    ' counts them again among arguments and temporaries.',
  ]


def _times(content: Content) -> list[str]:
  improved, grown, sample = content.improved, content.grown, content.sample
  rows = [
    _time_row('an update', improved.costs, content.update_floor),
    _time_row('Grow: encoding', grown.start, content.start_floor),
    _time_row('Grow: one step', grown.step, content.step_floor),
  ]
  head = ('', 'Gflop', 'GB', 'GB sent', *_TIMES, 'bound')
  hand = content.hand_step
  flops = counts.train_flops(
    content.model,
    content.update.rows,
    content.update.training.packing.source_length,
    content.update.training.packing.target_length,
  )
  return [
    '## Operations, bytes and the floor of time',
    '',
    *table(head, rows),
    '',
    f'Of a chip. By hand an update has'
    f' {flops / content.where.num_chips / 1e9:,.1f} Gflop, and a step of'
    f' decoding {hand.flops / 1e9:,.2f} Gflop for'
    f' {sample.rows:,} samples; it must move'
    f' {hand.bytes / 1e9:,.3f} GB (weights {hand.weight_bytes / 1e9:,.3f}, keys'
    f' and values of samples {hand.self_bytes / 1e9:,.3f}, of sources'
    f' {hand.cross_bytes / 1e9:,.3f}), which is'
    f' {1e3 * hand.bytes / content.where.chip.bandwidth:,.2f} ms. The compiler'
    ' counts more bytes: an update in place as the whole array twice, and what'
    ' is fetched ahead once more.',
  ]


def _time_row(name: str, costs: Costs, floor: Floor) -> tuple[str, ...]:
  times = (floor.compute, floor.memory, floor.collectives, floor.seconds)
  return (
    name,
    f'{costs.flops / 1e9:,.1f}',
    f'{costs.bytes / 1e9:,.2f}',
    f'{costs.moved / 1e9:,.3f}',
    *(f'{1e3 * seconds:,.2f}' for seconds in times),
    floor.bound,
  )


def _collectives(content: Content) -> list[str]:
  rows = []
  for name, costs in (
    ('an update', content.improved.costs),
    ('Grow: encoding', content.grown.start),
    ('Grow: one step', content.grown.step),
  ):
    for kind, (count, size, sent) in costs.collectives.items():
      if round(count):
        rows.append(
          (
            name,
            kind,
            f'{count:,.0f}',
            f'{size / 1e6:,.1f}',
            f'{sent / 1e6:,.1f}',
          )
        )
  if not rows:
    return ['## Collectives', '', 'None: every chip works alone.']
  return [
    '## Collectives',
    '',
    *table(('', 'kind', 'how many', 'MB', 'MB sent by a chip'), rows),
  ]


def _schedule(content: Content) -> list[str]:
  sample = content.sample
  rate = estimate.samples_per_second(
    content.start_floor,
    content.step_floor,
    sample.steps,
    sample.sources * sample.num_samples * content.num_hosts,
  )
  update = content.update_floor.seconds
  work = content.work
  hours = estimate.hours(
    work, update * content.supervised_updates_like, update, rate
  )
  if hours.grow is None:
    per_million = 1e6 * work.num_samples / rate / 3600
    grow = f'{per_million:,.1f} a million sources'
  else:
    grow = f'{hours.grow:,.1f}'
  sources = 'all' if work.sources is None else f'{work.sources:,}'
  rows = [
    ('BC', f'{work.supervised_updates:,} updates', f'{hours.supervised:,.1f}'),
    (
      'Grow',
      f'{work.num_grow} × {sources} sources × {work.num_samples}',
      grow,
    ),
    ('Improve', f'{work.improve_updates:,} updates', f'{hours.improve:,.1f}'),
    (
      'evaluation in training',
      f'{work.evaluated_samples:,} samples',
      f'{hours.evaluate:,.1f}',
    ),
    ('**all of these**', '', f'{hours.total:,.1f}'),
  ]
  return [
    '## How long (an estimate)',
    '',
    f'Grow: {rate:,.0f} samples a second; an update {update:,.3f} s. At these'
    ' floors, with every batch of Grow decoded to its end and every training at'
    ' its greatest number of updates:',
    '',
    *table(('', 'work', 'hours'), rows),
    '',
    'Nothing of this was measured on a chip. Scoring, reading and writing, the'
    ' last evaluations and compiling come on top; training that stops early'
    ' takes less.',
  ]


def _method(content: Content) -> list[str]:
  return [
    '## How it was found',
    '',
    f'Compiled ahead of time with libtpu: the whole update in'
    f' {content.improved.whole.seconds:,.0f} s and the whole batch of Grow in'
    f' {content.grown.whole.seconds:,.0f} s, for memory; both with one and with'
    ' two layers and one microbatch, extrapolated, for operations, bytes and'
    ' collectives, since the compiler counts the body of a loop once.',
  ]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
  """A Markdown table, numbers to the right."""
  lines = [head, ['---'] + ['---:'] * (len(head) - 1), *rows]
  return ['| ' + ' | '.join(line) + ' |' for line in lines]


def _gb(size: float) -> str:
  return f'{size / 1e9:,.2f}'
