"""In which respects two arms differ, beside accuracy: from rows to numbers.

Under corruption: errors relative to the reference's, how the gap moves with
severity, calibration. In training: steps to a level. Image by image: who is
right where, and what is taken for what. All pooled over seeds.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tlkd_jax.answer import rows as runs
from tlkd_jax.answer.rows import Place, unpack
from tlkd_jax.evaluation import curves, degradation, robustness, statistics
from tlkd_jax.evaluation.corruptions import SEVERITIES
from tlkd_jax.evaluation.records import number
from tlkd_jax.study.analysis import CellRow, Rows

# Of the best validation accuracy.
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Measure:
  """One quantity at one place, over seeds.

  Attributes:
    place: where.
    name: of the quantity, for people.
    seeds: that have it.
    reference: mean of the reference, NaN where it is undefined, or `alone`.
    treatment: likewise.
    difference: or what it is by itself, with its interval.
    low: of the 95 % t interval.
    high: likewise.
    p: two-sided, of none.
    alone: it has no reference of its own: a ratio to it, or a slope.
  """

  place: Place
  name: str
  seeds: int
  reference: float
  treatment: float
  difference: float
  low: float
  high: float
  p: float
  alone: bool = False


@dataclasses.dataclass(frozen=True)
class Overlap:
  """Who is right where at one place, answers of all seeds together.

  Attributes:
    place: where.
    seeds: that are counted.
    both_right: answers, one an image and seed.
    only_treatment: right by the treatment alone: corrections.
    only_reference: damage.
    both_wrong: by both.
    correction: share of the reference's errors that are corrected, with the
      95 % t interval over seeds: (mean, low, high).
    damage: share of its right answers that are lost, likewise.
  """

  place: Place
  seeds: int
  both_right: int
  only_treatment: int
  only_reference: int
  both_wrong: int
  correction: tuple[float, float, float]
  damage: tuple[float, float, float]


def _compared(place: Place, name: str, x, y) -> Measure:
  test = statistics.compare_paired(x, y)
  kept = np.isfinite(x) & np.isfinite(y)
  return Measure(
    place=place,
    name=name,
    seeds=test['pairs'],
    reference=statistics.mean_interval(np.asarray(y)[kept])['mean'],
    treatment=statistics.mean_interval(np.asarray(x)[kept])['mean'],
    difference=test['mean_difference'],
    low=test['ci_low'],
    high=test['ci_high'],
    p=test['p_sign_flip'],
  )


def under_corruption(
  rows: Rows, treatment: str, reference: str
) -> list[Measure]:
  """Of places where both arms were tested on the same corrupted images."""
  found: list[Measure] = []
  for place in runs.places(rows):
    both = [
      (x['degraded'], y['degraded'])
      for x, y in runs.pairs(rows, place, treatment, reference).values()
      if 'degraded' in x and 'degraded' in y
    ]
    both = [
      xy
      for xy in both
      if xy[0]['count'] == xy[1]['count']
      and all('nll_by_severity' in side for side in xy)
    ]
    if both:
      found += _calibrated(place, both)
      found += _relative(place, both)
      found.append(_sloped(place, both))
  return found


def _calibrated(place: Place, both) -> list[Measure]:
  found = []
  for metric, name in (('ece', 'ECE'), ('nll', 'NLL')):
    for where in ('clean', 'by_severity'):
      x, y = (
        [_numbers(xy[side][f'{metric}_{where}']).mean() for xy in both]
        for side in (0, 1)
      )
      title = 'as they are' if where == 'clean' else "ImageNet-C's fifteen"
      found.append(_compared(place, f'{name}, {title}', x, y))
  return found


def _numbers(values: Any) -> np.ndarray:
  """One number or a list of them, None as NaN."""
  return np.array([number(value) for value in np.atleast_1d(values)])


def _relative(place: Place, both) -> list[Measure]:
  errors = [
    robustness.corruption_errors(
      {name: _numbers(error) for name, error in x['errors'].items()},
      1 - number(x['top1']['clean']),
      {name: _numbers(error) for name, error in y['errors'].items()},
      1 - number(y['top1']['clean']),
      degradation.STANDARD,
    )
    for x, y in both
  ]
  found = []
  for key, name in (
    ('mce', 'mCE, the reference is 1'),
    ('relative_mce', 'relative mCE, the reference is 1'),
  ):
    values = np.array([one[key] for one in errors])
    spread = statistics.mean_interval(values)
    p = statistics.sign_flip_test(values, np.ones_like(values))
    found.append(_alone(place, name, len(values), spread, p))
  return found


def _sloped(place: Place, both) -> Measure:
  gaps = np.array(
    [
      _numbers(x['top1_by_severity']) - _numbers(y['top1_by_severity'])
      for x, y in both
    ]
  )
  slope = curves.severity_slope(SEVERITIES, gaps)
  spread = {k: slope[k] for k in ('low', 'high')} | {'mean': slope['slope']}
  name = 'gap in accuracy, a severity'
  return _alone(place, name, len(gaps), spread, slope['p'])


def _alone(place: Place, name: str, seeds: int, spread, p: float) -> Measure:
  nan = float('nan')
  ends = spread['mean'], spread['low'], spread['high']
  return Measure(place, name, seeds, nan, nan, *ends, p, alone=True)


def steps_to_level(rows: Rows, treatment: str, reference: str) -> list[Measure]:
  """Steps to LEVEL of the best validation accuracy of the lesser arm.

  The level is of each seed's pair, so that both reach it. Straight between two
  evaluations; a level that is reached at the first one counts as reached there.
  """
  found = []
  for place in runs.places(rows):
    both = runs.pairs(rows, place, treatment, reference).values()
    curves_ = [
      [_curve(side) for side in xy]
      for xy in both
      if all(_curve(side) for side in xy)
    ]
    steps = np.array([_steps(own, base) for own, base in curves_])
    if len(steps):
      found.append(_compared(place, 'steps', steps[:, 0], steps[:, 1]))
  return found


def _steps(own: list[list[float]], base: list[list[float]]) -> list[float]:
  best = min(max(value for _, _, value in one) for one in (own, base))
  return [_reached(one, LEVEL * best) for one in (own, base)]


def _curve(row: CellRow) -> list[list[float]]:
  """(step, seconds, accuracy), in order, without what is undefined."""
  found = [[number(value) for value in one] for one in row.get('curve', [])]
  return sorted(one for one in found if not np.isnan([one[0], one[2]]).any())


def _reached(curve: Sequence[Sequence[float]], level: float) -> float:
  before = None
  for step, _, value in curve:
    if value >= level:
      if before is None or value == before[1]:
        return float(step)
      share = (level - before[1]) / (value - before[1])
      return float(before[0] + share * (step - before[0]))
    before = step, value
  return float('nan')


def overlaps(rows: Rows, treatment: str, reference: str) -> list[Overlap]:
  """Who corrects whom, at places where rows have their hits."""
  found = []
  for place in runs.places(rows):
    both = runs.pairs(rows, place, treatment, reference).values()
    sides = [
      tuple(unpack(row['hits']) for row in xy)
      for xy in both
      if all('hits' in row for row in xy)
    ]
    right = [
      (x.right, y.right) for x, y in sides if x.same_images(y) and x.right.size
    ]
    if not right:
      continue
    counts = np.array(
      [
        [(x & y).sum(), (x & ~y).sum(), (~x & y).sum(), (~x & ~y).sum()]
        for x, y in right
      ]
    )
    shares = [
      _share(counts[:, part], counts[:, part] + counts[:, rest])
      for part, rest in ((1, 3), (2, 0))
    ]
    found.append(Overlap(place, len(right), *map(int, counts.sum(0)), *shares))
  return found


def _share(part: np.ndarray, whole: np.ndarray) -> tuple[float, float, float]:
  spread = statistics.mean_interval(part[whole > 0] / whole[whole > 0])
  return spread['mean'], spread['low'], spread['high']


def confusions(
  rows: Rows, place: Place, arm: str
) -> tuple[np.ndarray, list[str]] | None:
  """Counts of all seeds by true and predicted class, and the classes' names."""
  own = list(runs.at(rows, place, arm).values())
  kept = [row['confusion'] for row in own if 'confusion' in row]
  if not kept or len({np.shape(counts) for counts in kept}) > 1:
    return None
  counts = np.sum(kept, axis=0)
  names = next((row['classes'] for row in own if 'classes' in row), None)
  return counts, names or [str(i) for i in range(len(counts))]
