"""What a prediction costs beside how often it is right: words and pictures.

The same on the page of runs and on that of a study. Costs are milliseconds
where all networks were timed, else multiply-adds, which is said.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tlkd_jax.models.serving import BATCHES, JAX, Serving
from tlkd_jax.report import plots
from tlkd_jax.report.blocks import Block, Figure, Section, Text, named_table
from tlkd_jax.report.savings import Point, front, is_timed, sentence

TITLE = 'What a prediction costs'
# More panels are no picture.
_MOST_PANELS = 6
# Marks have numbers where there are more names, or longer ones.
_MOST_NAMES, _LONGEST = 5, 16
_NOT_TIMED = (
  'Milliseconds were not measured for all networks, so that costs are '
  'multiply-adds here. `python -m tlkd_jax.main --mode=evaluate --checkpoint '
  'FOLDER --suite=cost` measures them, for a run or a folder of runs.'
)
_COST_NOTE = (
  'MB are of float32 weights, BatchNorm statistics included; MACs are '
  'multiply-adds of an image. Filled marks and "yes" are the Pareto front: '
  'nothing here is both cheaper and at least as accurate.'
)
_TIMED_NOTE = (
  'Medians of passes from normalised images to logits, one after the other, '
  'after one that warms up; of ten passes one is faster than "from" and one '
  'slower than "to". Memory is by the compiled program itself: weights, '
  'images, results and temporaries. "Beside" are cores that other processes '
  'kept busy meanwhile: near 0, the machine was idle.'
)


def section(
  groups: Mapping[str, Sequence[Point]],
  pairs: Sequence[tuple[str, Point, Point]],
  source: str,
) -> Section | None:
  """Students against their teachers in words, then all arms place by place.

  Args:
    groups: place in words -> its arms.
    pairs: (where, student, its teacher), for a sentence each; where is said of
      several.
    source: files that the numbers come from.

  Returns:
    None where no cost is known.
  """
  known = {
    place: [one for one in points if one.cost and not math.isnan(one.accuracy)]
    for place, points in groups.items()
  }
  known = {place: points for place, points in known.items() if points}
  if not known:
    return None
  every = [point for points in known.values() for point in points]
  timed = is_timed(every)
  several = len({where for where, *_ in pairs}) > 1
  blocks: list[Block] = [
    Text(f'{where}: {text}' if several else text)
    for where, *both in pairs
    if (text := sentence(*both))
  ]
  if not timed:
    blocks.append(Text(_NOT_TIMED, 'missing'))
  blocks += _figure(known, timed, source)
  costs = {one.cost.figures: one.cost for one in every if one.cost}
  blocks += _networks([*costs.values()], source)
  return Section('serving', TITLE, blocks)


def _figure(
  known: Mapping[str, Sequence[Point]], timed: bool, source: str
) -> list[Block]:
  rows, panels, drawn = [], [], []
  names, note = _names(known)
  axis = 'milliseconds of one image' if timed else 'million multiply-adds'
  for place, points in known.items():
    costs = [_cost(point, timed) for point in points]
    accuracies = [point.accuracy for point in points]
    best = front(list(zip(costs, accuracies, strict=True)))
    marks = [
      (cost, point.accuracy, point.style, names[point.label], on_front)
      for point, cost, on_front in zip(points, costs, best, strict=True)
    ]
    if len(panels) < _MOST_PANELS:
      panels.append(plots.trade_off(place, marks, axis, 'test accuracy'))
      drawn += [
        {
          'place': place,
          'mark': name,
          'arm': point.label,
          axis: cost,
          'test accuracy': accuracy,
        }
        for point, (cost, accuracy, _, name, _) in zip(
          points, marks, strict=True
        )
      ]
    rows += [
      {'place': place} | _row(point, on_front, timed)
      for point, on_front in zip(points, best, strict=True)
    ]
  alt = (
    f'Test accuracy against {axis}, arm by arm; the line joins those of which '
    'none is both cheaper and at least as accurate.'
  )
  if len(known) > _MOST_PANELS:
    alt += f' The first {_MOST_PANELS} of {len(known)} places are drawn.'
  table = named_table('Accuracy and cost', rows, source, _COST_NOTE)
  title = 'Accuracy against the cost of a prediction'
  points = named_table('What is drawn', drawn, source)
  return [Figure(title, panels, alt, points, note=note), table]


def _names(known: Mapping[str, Sequence[Point]]) -> tuple[dict[str, str], str]:
  """Label -> what stands at its marks: itself, or a number; and a note on them.

  Of several students' arms the labels would cover each other.
  """
  labels = list(dict.fromkeys(p.label for own in known.values() for p in own))
  if len(labels) <= _MOST_NAMES and all(len(n) <= _LONGEST for n in labels):
    return {label: label for label in labels}, ''
  numbers = {label: str(n) for n, label in enumerate(labels, 1)}
  pairs = '; '.join(f'{number} {label}' for label, number in numbers.items())
  return numbers, f'{pairs}.'


def _cost(point: Point, timed: bool) -> float:
  assert point.cost is not None
  one = point.cost.find(JAX, 1) if timed else None
  return one.ms if one else point.cost.figures.all_macs / 1e6


def _row(point: Point, on_front: bool, timed: bool) -> dict[str, Any]:
  assert point.cost is not None
  own = point.cost.figures
  row: dict[str, Any] = {
    'arm': point.label,
    'network': f'{own.model} at {own.image_size}',
    'test accuracy': point.accuracy,
    'on the front': 'yes' if on_front else 'no',
  }
  if timed:
    for batch in BATCHES:
      one = point.cost.find(JAX, batch)
      row[f'ms a batch of {batch}'] = one.ms if one else None
  return row | {
    'million MACs': own.all_macs / 1e6,
    'million parameters': own.parameters / 1e6,
    'MB': own.bytes / 1e6,
  }


def _networks(costs: Sequence[Serving], source: str) -> list[Block]:
  """What was measured of each network, in every runtime."""
  rows = [
    {
      'network': f'{one.figures.model} at {one.figures.image_size}',
      'runtime': timing.runtime,
      'batch': timing.batch,
      'ms': timing.ms,
      'from': timing.low,
      'to': timing.high,
      'passes': timing.passes,
      'memory, MB': timing.memory and timing.memory / 1e6,
      'file, MB': timing.file and timing.file / 1e6,
      'on': timing.device,
      'cores': timing.cores,
      'beside': timing.beside,
    }
    for one in costs
    for timing in one.timings
  ]
  missing = dict.fromkeys(text for one in costs for text in one.missing)
  blocks: list[Block] = [Text(f'{text}.') for text in missing]
  if rows:
    table = named_table('Networks, timed', rows, source, _TIMED_NOTE)
    blocks.insert(0, table)
  return blocks
