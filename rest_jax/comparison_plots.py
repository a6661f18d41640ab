"""The pictures of a comparison, as SVG that is the same every time."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
from matplotlib import figure as figures
from matplotlib import lines

from rest_jax import significance
from rest_jax.compared_systems import System
from rest_jax.comparison import COSTS, FIGURES, Contrast

_SETTINGS = {
  'svg.hashsalt': 'rest_jax',
  'svg.fonttype': 'none',  # Text stays text, in the page's fonts.
  'text.parse_math': False,  # A name may have dollars.
  'axes.spines.top': False,
  'axes.spines.right': False,
  'font.size': 9,
}
_ROW = 0.28  # Inches a policy or contrast takes.
_MARKERS = 'DosP^vX*<>phd'  # One a policy, whatever its group.
_SEED = {'marker': 'o', 'linestyle': 'none', 'alpha': 0.45, 'markersize': 4}
_MEAN = {'markersize': 5, 'capsize': 2, 'elinewidth': 1}


@contextlib.contextmanager
def _drawn(width: float, height: float) -> Iterator[figures.Figure]:
  """A figure of so many inches, drawn with our settings."""
  with matplotlib.rc_context(_SETTINGS):
    yield figures.Figure(figsize=(width, height), layout='constrained')


def svg(figure: figures.Figure) -> str:
  """The figure as an SVG element, without what changes with the day."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format='svg', metadata={'Date': None, 'Creator': None})
  text = buffer.getvalue().decode()
  return text[text.index('<svg') :]


def pictures(
  systems: Sequence[System], contrasts: Sequence[Contrast]
) -> list[tuple[str, str]]:
  """Title and SVG of each picture.

  Args:
    systems: the policies.
    contrasts: what they are held against each other by.
  """
  out = [
    ('Seeds (dots), means (diamonds), Student’s 95 % intervals', seeds(systems))
  ]
  if costs := by_cost(systems):
    title = 'Reward and BLEU by cost and by distance from BC; the line is the'
    out.append((f'{title} best at no more than that', costs))
  named = [c for c in contrasts if c.interval is not None and c.planned]
  if named:
    out.append(
      ('Contrasts named beforehand: reward, 95 % over sources', forest(named))
    )
  return out


def seeds(systems: Sequence[System]) -> str:
  """A row a policy: each seed's figures, their mean and its interval."""
  names = [n for n in FIGURES if any(s.values(n) for s in systems)]
  styles = _styles(systems)
  with _drawn(3.2 * len(names) + 1, _ROW * len(systems) + 1) as figure:
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for name, axes in zip(names, panels, strict=True):
      for row, system in enumerate(systems):
        values = system.values(name)
        if values:
          color, _ = styles[system.name]
          axes.plot(values, [row] * len(values), color=color, **_SEED)
          place = (system.mean(name), float(row))
          _mean(axes, place, x=values, color=color, marker='D')
      axes.set_xlabel(FIGURES[name])
      axes.grid(axis='x', alpha=0.3)
    panels[0].set_yticks(range(len(systems)), [s.name for s in systems])
    panels[0].set_ylim(len(systems) - 0.5, -0.5)
    return svg(figure)


def by_cost(systems: Sequence[System]) -> str | None:
  """Reward and BLEU against each cost and against KL; None without any."""
  across = [n for n in (*COSTS, 'kl_bc') if any(s.values(n) for s in systems)]
  up = [n for n in ('reward_mean', 'bleu') if any(s.values(n) for s in systems)]
  if not across:
    return None
  styles = _styles(systems)
  with _drawn(4.2 * len(across), 3.2 * len(up) + 0.4) as figure:
    grid = figure.subplots(len(up), len(across), squeeze=False)
    for y, row in zip(up, grid, strict=True):
      for x, axes in zip(across, row, strict=True):
        _scatter(axes, systems, x, y, styles)
        axes.set_xlabel((COSTS | FIGURES)[x])
        axes.set_ylabel(FIGURES[y])
        axes.grid(alpha=0.3)
    handles = _legend(systems)
    # About 0.09 inches a letter, and 0.6 for the mark.
    widest = max((len(handle.get_label()) for handle in handles), default=0)
    columns = max(1, int(4.2 * len(across) / (0.09 * widest + 0.6)))
    figure.legend(handles=handles, loc='outside upper left', ncols=columns)
    return svg(figure)


def forest(contrasts: Sequence[Contrast]) -> str:
  """A row a contrast: its difference in reward with the interval."""
  with _drawn(8.0, _ROW * len(contrasts) + 1) as figure:
    axes = figure.subplots()
    for row, contrast in enumerate(contrasts):
      axes.plot(contrast.interval, [row, row], color='C0', marker='|', lw=1)
      axes.plot([contrast.difference], [row], color='C0', marker='D', ms=5)
    axes.axvline(0, color='0.4', linewidth=1)
    axes.set_yticks(
      range(len(contrasts)), [f'{c.second} − {c.first}' for c in contrasts]
    )
    axes.set_ylim(len(contrasts) - 0.5, -0.5)
    axes.set_xlabel('difference in reward × 100')
    axes.grid(axis='x', alpha=0.3)
    return svg(figure)


def _scatter(
  axes: Any,
  systems: Sequence[System],
  x: str,
  y: str,
  styles: dict[str, tuple[str, str]],
) -> None:
  """Each policy's seeds and means, and the best so far from left to right."""
  known = [s for s in systems if s.values(x) and s.values(y)]
  for system in known:
    (color, marker), ys = styles[system.name], system.values(y)
    axes.plot(system.values(x), ys, color=color, **_SEED)
    place = (system.mean(x), system.mean(y))
    _mean(axes, place, y=ys, color=color, marker=marker)
  best: list[System] = []
  for system in sorted(known, key=lambda s: (s.mean(x), -s.mean(y))):
    if not best or system.mean(y) > best[-1].mean(y):
      best.append(system)
      axes.annotate(
        system.policy,
        (system.mean(x), system.mean(y)),
        xytext=(5, 4),
        textcoords='offset points',
        fontsize=7,
      )
  if best:
    line = [(s.mean(x), s.mean(y)) for s in best]
    # As far as the dearest, which may be no better.
    line.append((max(s.mean(x) for s in known), line[-1][1]))
    axes.step(
      *zip(*line, strict=True), where='post', color='0.5', lw=1, zorder=0
    )


def _mean(
  axes: Any,
  place: tuple[float, float],
  *,
  color: str,
  marker: str,
  x: Sequence[float] = (),
  y: Sequence[float] = (),
) -> None:
  """A mean, with Student's interval along the axis whose values are given."""
  errors = {}
  for name, values, middle in (('xerr', x, place[0]), ('yerr', y, place[1])):
    if interval := significance.t_interval(values):
      errors[name] = [[middle - interval[0]], [interval[1] - middle]]
  axes.errorbar(
    [place[0]], [place[1]], color=color, marker=marker, **errors, **_MEAN
  )


def _styles(systems: Sequence[System]) -> dict[str, tuple[str, str]]:
  """Name → color and marker: of its group, or policy if all are of one."""
  groups = list(dict.fromkeys(system.group for system in systems))
  policies = list(dict.fromkeys(system.policy for system in systems))
  out = {}
  for system in systems:
    place = policies.index(system.policy)
    number = groups.index(system.group) if len(groups) > 1 else place
    marker = _MARKERS[place % len(_MARKERS)]
    out[system.name] = (f'C{number % 10}', marker)
  return out


def _legend(systems: Sequence[System]) -> list[lines.Line2D]:
  """What colors and markers stand for."""
  styles = _styles(systems)
  groups = {s.group: styles[s.name][0] for s in systems}
  out = []
  if len(groups) > 1:
    out = [
      lines.Line2D([], [], color=color, lw=4, label=name)
      for name, color in groups.items()
    ]
  for policy, (color, marker) in {
    system.policy: styles[system.name] for system in systems
  }.items():
    color = '0.3' if len(groups) > 1 else color
    out.append(
      lines.Line2D([], [], color=color, marker=marker, ls='none', label=policy)
    )
  return out
