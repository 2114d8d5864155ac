"""Charts as SVG texts that take the page's own text colour.

Matplotlib draws; texts stay texts. Ink is drawn in a colour that is replaced by
`currentColor`, so that one figure is legible on a light and on a dark page, and
every id is made unique so that many figures can stand in one document. Letters
that no font here has are escaped, or names are numbered: see `tick_names`.
"""

import html
import io
import itertools
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

from tlkd_jax.report import fonts
from tlkd_jax.runtime.texts import escaped, visible

matplotlib.use('svg')

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib import ticker  # noqa: E402

# Legible on white and on near-black, told apart by the colour-blind.
COLOURS = {'teacher': '#9a78d0', 'tl': '#3f8fd8', 'kd': '#e0812a'}
DASHES = {'teacher': (1, 1.5), 'tl': (4, 1.5), 'kd': ()}
MARKERS = {'teacher': '^', 'tl': 's', 'kd': 'o'}
_INK, _GRID = '#010203', '#010204'
_SIZE = (3.7, 2.75)
_SMALL = (2.15, 1.75)
_numbers = itertools.count()
# Of a matrix with more classes the axes have no names.
MOST_TICKS = 20

_STYLE = {
  'figure.constrained_layout.use': True,
  'svg.fonttype': 'none',
  'font.family': 'sans-serif',
  # A dollar in a name begins no formula.
  'text.parse_math': False,
  'font.size': 9,
  'axes.titlesize': 9.5,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.edgecolor': _INK,
  'axes.labelcolor': _INK,
  'axes.titlecolor': _INK,
  'text.color': _INK,
  'xtick.color': _INK,
  'ytick.color': _INK,
  'axes.grid': True,
  'grid.color': _GRID,
  'grid.alpha': 0.16,
  'axes.axisbelow': True,
  'lines.linewidth': 1.8,
  'figure.facecolor': 'none',
  'axes.facecolor': 'none',
}


def legend(arms: Sequence[str], labels: dict[str, str]):
  """Entries of a figure's legend for the arms' lines."""
  return [
    (labels[a], COLOURS[a], ' '.join(f'{3 * d:g}' for d in DASHES[a]))
    for a in arms
  ]


def _draw(draw, title: str, *, size=_SIZE, names=(), **labels) -> str:
  """Runs draw(axes) and returns the panel's SVG with `title` as its name.

  Args:
    draw: draws.
    title: of the panel.
    size: in inches.
    names: texts of strangers that it draws, as `drawable` gave them.
    **labels: of the axes.
  """
  number = next(_numbers)
  title = drawable(title)
  style = _STYLE | {
    'svg.hashsalt': str(number),
    'font.sans-serif': fonts.families(''.join([title, *names])),
  }
  with matplotlib.rc_context(style), warnings.catch_warnings():
    # What joins letters has no picture of its own.
    warnings.filterwarnings('ignore', 'Glyph .* missing', UserWarning)
    figure, axes = plt.subplots(figsize=size)
    try:
      draw(axes)
      axes.set(title=title, **labels)
      file = io.StringIO()
      figure.savefig(
        file, format='svg', transparent=True, metadata={'Date': None}
      )
    finally:
      plt.close(figure)
  return _inline(file.getvalue(), f'f{number}', title)


def drawable(text: str) -> str:
  r"""A text with \uNNNN for what no font has, or what cannot be seen."""
  text = visible(text)
  lacking = fonts.undrawable(text)
  return ''.join(escaped(c) if c in lacking else c for c in text)


def tick_names(names: Sequence[str]) -> tuple[list[str], str]:
  """What stands at the axes for some names, and what explains it.

  Returns:
    (the names, cut where they are long; '') or, where no font here has their
    letters or two would look alike, (their numbers; 'Numbers: 0 cat, 1 dog').
  """
  shown = [visible(name) for name in names]
  short = [n if len(n) <= 11 else n[:10] + '…' for n in shown]
  if not fonts.undrawable(''.join(shown)) and len(set(short)) == len(short):
    return short, ''
  pairs = ', '.join(f'{number} {name}' for number, name in enumerate(names))
  return [str(number) for number in range(len(names))], f'Numbers: {pairs}.'


def _inline(svg: str, name: str, title: str) -> str:
  """An SVG file as an element of a page."""
  svg = svg[svg.index('<svg') :]
  svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.S)
  # Texts, in which < and > are escaped, stay what they are.
  svg = re.sub(r'<[^>]*>', lambda found: _tag(found[0], name), svg)
  svg = re.sub(r' (width|height)="[\d.]+pt"', '', svg, count=2)
  label = html.escape(title)
  return svg.replace('<svg', f'<svg role="img" aria-label="{label}"', 1)


def _tag(tag: str, name: str) -> str:
  tag = tag.replace(_INK, 'currentColor').replace(_GRID, 'currentColor')
  tag = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', tag)
  tag = re.sub(r'url\(#([^)]+)\)', rf'url(#{name}-\1)', tag)
  tag = re.sub(r'xlink:href="#([^"]+)"', rf'xlink:href="#{name}-\1"', tag)
  return re.sub(r' (?:d|x|y|transform)="[^"]*"', _rounded, tag)


def _rounded(attribute: re.Match) -> str:
  """Coordinates to hundredths of a point, which is more than can be seen."""
  return re.sub(r'(\d\.\d{2})\d+', r'\1', attribute.group())


def _line(axes, arm: str, x, y, *, band=None, marker=True, **options):
  colour = COLOURS[arm]
  style: Any = (0, DASHES[arm]) if DASHES[arm] else '-'
  axes.plot(
    x,
    y,
    color=colour,
    linestyle=style,
    marker=MARKERS[arm] if marker else None,
    markersize=4,
    **options,
  )
  if band is not None:
    axes.fill_between(x, *band, color=colour, alpha=0.18, linewidth=0)


def lines(
  title: str,
  curves: dict[str, tuple[Sequence[float], Sequence[float]]],
  *,
  x_label: str,
  y_label: str,
  bands: dict[str, tuple] | None = None,
  markers: bool = True,
  small: bool = False,
  y_range: tuple[float, float] | None = None,
  log_x: bool = False,
  whole_x: bool = False,
) -> str:
  """One line per arm: {arm: (x, y)}; bands: {arm: (low, high)}."""

  def draw(axes):
    for arm, (x, y) in curves.items():
      band = (bands or {}).get(arm)
      _line(axes, arm, x, y, band=band, marker=markers)
    if y_range:
      axes.set_ylim(*y_range)
    if log_x:
      axes.set_xscale('log')
      ticks = sorted({v for x, _ in curves.values() for v in x})
      axes.set_xticks(ticks, [f'{v:g}' for v in ticks])
      axes.minorticks_off()
    elif whole_x:
      axes.xaxis.set_major_locator(ticker.MaxNLocator(8, integer=True))
    else:
      axes.xaxis.set_major_locator(ticker.MaxNLocator(5))

  size = _SMALL if small else _SIZE
  return _draw(draw, title, size=size, xlabel=x_label, ylabel=y_label)


def reliability(
  title: str, arms: Mapping[str, Mapping[str, np.ndarray]]
) -> str:
  """Accuracy of each confidence bin, with how full it is; bins arm by arm."""

  def draw(axes):
    axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=':')
    for arm, bins in arms.items():
      _bins(axes, arm, {k: np.asarray(v, float) for k, v in bins.items()})
    axes.set(xlim=(0, 1), ylim=(0, 1))

  return _draw(draw, title, xlabel='confidence', ylabel='accuracy')


def _bins(axes, arm: str, bins: Mapping[str, np.ndarray]) -> None:
  full, width = bins['count'] > 0, bins['upper'] - bins['lower']
  confidence, accuracy = bins['confidence'][full], bins['accuracy'][full]
  axes.bar(
    bins['lower'][full],
    (bins['count'] / bins['count'].sum())[full],
    width=width[full],
    align='edge',
    color=_INK,
    alpha=0.12,
    linewidth=0,
  )
  axes.vlines(confidence, confidence, accuracy, color=COLOURS[arm], alpha=0.45)
  axes.plot(
    confidence,
    accuracy,
    color=COLOURS[arm],
    marker=MARKERS[arm],
    markersize=4,
    linewidth=1,
  )


def confusion(title: str, counts: np.ndarray, names: Sequence[str]) -> str:
  """Share of each true class (rows) that went to each predicted class.

  Args:
    title: of the panel.
    counts: int[K, K].
    names: K, as `tick_names` gave them.
  """
  counts = np.asarray(counts, np.float64)
  shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  number = len(shares)

  def draw(axes):
    axes.imshow(shares, cmap='Blues', vmin=0, vmax=1, aspect='equal')
    axes.grid(False)
    if number <= 12:
      for i, j in np.ndindex(number, number):
        if counts[i, j]:
          axes.text(
            j,
            i,
            f'{int(counts[i, j])}',
            ha='center',
            va='center',
            fontsize=8 if number <= 8 else 6.5,
            color='#ffffff' if shares[i, j] > 0.5 else '#17324d',
          )
    if number <= MOST_TICKS:
      axes.set_xticks(range(number), names, rotation=50, ha='right')
      axes.set_yticks(range(number), names)

  return _draw(
    draw,
    title,
    size=(3.7, 3.5),
    names=names,
    xlabel='predicted',
    ylabel='true class',
  )


def scatter(title: str, places: np.ndarray, labels: np.ndarray) -> str:
  """Points in the plane, coloured by class."""
  number = int(labels.max()) + 1
  table = matplotlib.colormaps['tab10' if number <= 10 else 'turbo']

  def draw(axes):
    for k in np.unique(labels):
      own = labels == k
      colour = table(int(k)) if number <= 10 else table(k / (number - 1))
      axes.scatter(
        places[own, 0],
        places[own, 1],
        s=9,
        color=colour,
        alpha=0.8,
        linewidths=0,
      )
    axes.set(xticks=[], yticks=[])

  return _draw(draw, title)


def class_colours(number: int) -> list[str]:
  """The colours that `scatter` gives to classes 0 .. number - 1."""
  table = matplotlib.colormaps['tab10' if number <= 10 else 'turbo']
  picked = [
    table(k) if number <= 10 else table(k / (number - 1)) for k in range(number)
  ]
  return [matplotlib.colors.to_hex(colour) for colour in picked]


def gaps(
  title: str, severities, values, line: tuple[float, float], y_label: str
) -> str:
  """A gap by severity with its straight line (intercept, slope)."""
  severities = np.asarray(severities, np.float64)

  def draw(axes):
    axes.axhline(0, color=_INK, linewidth=0.8)
    axes.bar(severities, values, width=0.6, color=COLOURS['kd'], alpha=0.55)
    axes.plot(severities, line[0] + line[1] * severities, color=_INK, lw=1.2)

  return _draw(draw, title, xlabel='severity', ylabel=y_label)


def intervals(
  title: str, names: Sequence[str], rows: Sequence[tuple], x_label: str
) -> str:
  """Points with intervals, one line each: rows of (value, low, high)."""
  values = np.array(rows, np.float64).reshape(-1, 3)
  places = np.arange(len(values))[::-1]
  # Both ends tell one row from another: the arm and the place.
  short = [
    n if len(n) <= 38 else f'{n[:20]}…{n[-17:]}' for n in map(drawable, names)
  ]

  def draw(axes):
    axes.axvline(0, color=_INK, linewidth=0.8)
    known = ~np.isnan(values[:, 1])
    axes.hlines(
      places[known],
      values[known, 1],
      values[known, 2],
      color=COLOURS['kd'],
      lw=2,
    )
    axes.plot(values[:, 0], places, 'o', color=COLOURS['kd'], markersize=5)
    axes.set_yticks(places, short)
    axes.set_ylim(-0.7, len(values) - 0.3)

  height = 1.0 + 0.27 * len(values)
  size = (5.2, height)
  return _draw(draw, title, size=size, names=short, xlabel=x_label)


def trade_off(
  title: str,
  points: Sequence[tuple[float, float, str, str, bool]],
  x_label: str,
  y_label: str,
) -> str:
  """Cost against accuracy, with the line of what nothing else is better than.

  Args:
    title: of the panel.
    points: (cost, accuracy, style, name, whether on the front), style a key of
      COLOURS.
    x_label: of the costs, whose axis is logarithmic.
    y_label: of the accuracies.
  """
  names = [drawable(name) for *_, name, _ in points]
  best = sorted((x, y) for x, y, *_, on_front in points if on_front)
  values = [y for _, y, *_ in points]
  # Names of points that lie close together stand one above the other.
  apart = 0.09 * max(max(values) - min(values), 1e-3)
  costs = np.log([x for x, *_ in points])
  near = 0.15 * max(np.ptp(costs), 1e-3)
  heights: dict[int, float] = {}
  for place in sorted(range(len(points)), key=lambda i: values[i]):
    below = [
      height + apart
      for other, height in heights.items()
      if abs(costs[other] - costs[place]) < near
    ]
    heights[place] = max(values[place], *below, -np.inf)

  def draw(axes):
    axes.set_xscale('log')
    if len(best) > 1:
      axes.step(*zip(*best, strict=True), where='post', color=_INK, lw=0.9)
    for place, (x, y, style, _, on_front) in enumerate(points):
      axes.plot(
        x,
        y,
        MARKERS[style],
        color=COLOURS[style],
        markersize=7,
        fillstyle='full' if on_front else 'none',
      )
      axes.annotate(
        names[place],
        (x, heights[place]),
        # Above the line of the front, which goes right from its points.
        xytext=(5, 4),
        textcoords='offset points',
      )
    axes.margins(x=0.35, y=0.12)
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())

  return _draw(draw, title, names=names, xlabel=x_label, ylabel=y_label)


def heat_overlay(
  image: np.ndarray, heat: np.ndarray, weight: float = 0.5
) -> np.ndarray:
  """An image uint8 [H, W, 3] under a map in 0..1 [H, W]; uint8."""
  colours = matplotlib.colormaps['turbo'](np.clip(heat, 0, 1))[..., :3] * 255
  mixed = (1 - weight) * image + weight * colours
  return np.clip(mixed, 0, 255).astype(np.uint8)
