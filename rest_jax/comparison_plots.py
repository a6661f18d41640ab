"""The pictures of a comparison, as SVG that is the same every time."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
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
_LABELLED = 16  # Policies at most whose points have their names beside them.
_SEED = {'marker': 'o', 'linestyle': 'none', 'alpha': 0.45, 'markersize': 4}
_MEAN = {'marker': 'D', 'markersize': 5, 'capsize': 2, 'elinewidth': 1}


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
  colors = _colors(systems)
  with _drawn(3.2 * len(names) + 1, _ROW * len(systems) + 1) as figure:
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for name, axes in zip(names, panels, strict=True):
      for row, system in enumerate(systems):
        values, color = system.values(name), colors[system.group]
        if values:
          axes.plot(values, [row] * len(values), color=color, **_SEED)
          _mean(axes, (np.mean(values), row), x=values, color=color)
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
  colors = _colors(systems)
  with _drawn(4.2 * len(across), 3.2 * len(up) + 0.4) as figure:
    grid = figure.subplots(len(up), len(across), squeeze=False)
    for y, row in zip(up, grid, strict=True):
      for x, axes in zip(across, row, strict=True):
        _scatter(axes, systems, x, y, colors)
        axes.set_xlabel((COSTS | FIGURES)[x])
        axes.set_ylabel(FIGURES[y])
        axes.grid(alpha=0.3)
    if len(colors) > 1:
      handles = [
        lines.Line2D([], [], color=color, marker='D', ls='none')
        for color in colors.values()
      ]
      figure.legend(handles, list(colors), loc='outside upper left', ncols=6)
    return svg(figure)


def forest(contrasts: Sequence[Contrast]) -> str:
  """A row a contrast: its difference in reward with the interval."""
  with _drawn(8, _ROW * len(contrasts) + 1) as figure:
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
  axes: Any, systems: Sequence[System], x: str, y: str, colors: dict[str, str]
) -> None:
  """Each policy's seeds and means, and the best so far from left to right."""
  known = [s for s in systems if s.values(x) and s.values(y)]
  for system in known:
    color, ys = colors[system.group], system.values(y)
    axes.plot(system.values(x), ys, color=color, **_SEED)
    place = (system.mean(x), system.mean(y))
    _mean(axes, place, y=ys, color=color)
    if len(known) <= _LABELLED:
      axes.annotate(
        system.policy,
        place,
        xytext=(5, 4),
        textcoords='offset points',
        fontsize=7,
      )
  best: list[tuple[float, float]] = []
  for place in sorted(
    ((s.mean(x), s.mean(y)) for s in known), key=lambda p: (p[0], -p[1])
  ):
    if not best or place[1] > best[-1][1]:
      best.append(place)
  if best:
    # As far as the dearest, which may be no better.
    best.append((max(s.mean(x) for s in known), best[-1][1]))
    axes.step(
      *zip(*best, strict=True), where='post', color='0.5', lw=1, zorder=0
    )


def _mean(
  axes: Any,
  place: tuple[float, float],
  *,
  color: str,
  x: Sequence[float] = (),
  y: Sequence[float] = (),
) -> None:
  """A mean, with Student's interval along the axis whose values are given."""
  errors = {}
  for name, values, middle in (('xerr', x, place[0]), ('yerr', y, place[1])):
    if interval := significance.t_interval(values):
      errors[name] = [[middle - interval[0]], [interval[1] - middle]]
  axes.errorbar([place[0]], [place[1]], color=color, **errors, **_MEAN)


def _colors(systems: Sequence[System]) -> dict[str, str]:
  groups = dict.fromkeys(system.group for system in systems)
  return {group: f'C{number % 10}' for number, group in enumerate(groups)}
