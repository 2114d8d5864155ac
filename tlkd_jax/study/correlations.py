"""What goes with the gain over places, free of the noise that both share.

The teacher's edge over the reference and the student's gain over it are both
measured against the same runs, and agreement with the teacher on the images on
which the gain is: on the same data they correlate where nothing is behind it.
So each is taken from other seeds than the gain, and from other test images
where the answers to single images are at hand (cross-fitting), once each way.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np

from tlkd_jax.answer import rows as runs
from tlkd_jax.answer.rows import Place, unpack
from tlkd_jax.study.analysis import CellRow, Rows

# With fewer places no order of them is rare enough to tell anything.
LEAST_PLACES = 4
_MOST_EXACT = 7
_DRAWN = 10_000
_SEED = 0
EDGE, AGREEMENT = "the teacher's edge", 'agreement with the teacher'


@dataclasses.dataclass(frozen=True)
class Correlation:
  """Of one quantity with the gain, one point a place.

  Attributes:
    what: EDGE or AGREEMENT.
    r: mean of both ways, of Pearson's coefficient.
    p: two-sided, of permutations of the places.
    places: their number.
    images: whether the halves are of other test images too.
  """

  what: str
  r: float
  p: float
  places: int
  images: bool


def with_gain(
  rows: Rows, treatment: str, reference: str
) -> tuple[list[Correlation], int]:
  """Correlations of the treatment's gain, and the places that could be used.

  A place counts where treatment, reference and teachers have two seeds in
  common. None with fewer places than LEAST_PLACES, or where all are alike.
  """
  groups = {
    place: group
    for place in runs.places(rows)
    if (group := _group(rows, place, treatment, reference))
  }
  found = []
  for what in (EDGE, AGREEMENT):
    images = all(_has_images(group, what) for group in groups.values())
    x, y = (
      np.array(
        [
          [_measure(group, name, side ^ other, images) for side in (0, 1)]
          for group in groups.values()
        ]
      ).reshape(-1, 2)
      for name, other in ((what, 0), ('gain', 1))
    )
    if len(groups) < LEAST_PLACES or not (_varies(x) and _varies(y)):
      continue
    r, p = float(_mean_r(x, y)), _p(x, y)
    found.append(Correlation(what, r, p, len(groups), images))
  return found, len(groups)


@dataclasses.dataclass(frozen=True)
class _Group:
  """Rows of one place, one a seed in each list, in the same order."""

  own: list[CellRow]
  base: list[CellRow]
  teachers: list[list[CellRow]]


def _group(
  rows: Rows, place: Place, treatment: str, reference: str
) -> _Group | None:
  both = runs.pairs(rows, place, treatment, reference)
  names = next(iter(both.values()))[0]['teachers'] if both else []
  theirs = [runs.at(rows, place, name) for name in names]
  seeds = [s for s in both if all(s in teacher for teacher in theirs)]
  if not names or len(seeds) < 2:
    return None
  return _Group(
    [both[s][0] for s in seeds],
    [both[s][1] for s in seeds],
    [[teacher[s] for s in seeds] for teacher in theirs],
  )


def _has_images(group: _Group, what: str) -> bool:
  used = [group.own, group.base, *(group.teachers if what == EDGE else [])]
  hits = all('hits' in row for found in used for row in found)
  return hits and (what == EDGE or all('agreed' in row for row in group.own))


def _measure(group: _Group, what: str, half: int, images: bool) -> float:
  def mean(
    found: Sequence[CellRow], packed: Literal['hits', 'agreed'], metric: str
  ) -> float:
    values = [
      unpack(row[packed]).right[half::2].mean()
      if images
      else runs.value(row, metric)
      for row in found[half::2]
    ]
    return float(np.mean(values))

  if what == AGREEMENT:
    return mean(group.own, 'agreed', 'teacher_agreement')
  base = mean(group.base, 'hits', 'top1')
  if what == EDGE:
    best = max(mean(teacher, 'hits', 'top1') for teacher in group.teachers)
    return best - base
  return mean(group.own, 'hits', 'top1') - base


def _varies(values: np.ndarray) -> bool:
  return bool(np.isfinite(values).all() and (np.ptp(values, axis=0) > 0).all())


def _mean_r(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Correlation over places, mean over both ways; [..., k, 2] -> [...]."""
  x = x - x.mean(axis=-2, keepdims=True)
  y = y - y.mean(axis=-2, keepdims=True)
  below = np.sqrt((x**2).sum(axis=-2) * (y**2).sum(axis=-2))
  return ((x * y).sum(axis=-2) / below).mean(axis=-1)


def _p(x: np.ndarray, y: np.ndarray) -> float:
  """Share of orders of the places with an r as far from 0 or farther."""
  count = len(x)
  if exact := count <= _MOST_EXACT:
    orders = np.array(list(itertools.permutations(range(count))))
  else:
    rng = np.random.default_rng(_SEED)
    orders = np.array([rng.permutation(count) for _ in range(_DRAWN)])
  seen = abs(_mean_r(x, y)) * (1 - 1e-12)
  far = int((np.abs(_mean_r(x, y[orders])) >= seen).sum())
  return far / len(orders) if exact else (far + 1) / (_DRAWN + 1)


def words(
  found: Sequence[Correlation], places: int, arm: str, reference: str
) -> str:
  """The correlations as a paragraph."""
  if not found:
    return (
      f'What goes with the gain of {arm} is not told from {places} places: '
      f'that takes {LEAST_PLACES}.'
      if places < LEAST_PLACES
      else f'At all {places} places the gain of {arm} is alike.'
    )
  said = '; '.join(
    f'{one.what}: r = {one.r:+.2f}, p = {one.p:.2g}' for one in found
  )
  halves = 'seeds and test images' if found[0].images else 'seeds'
  return (
    f'Correlation with the gain of {arm} over {reference}, one point a place '
    f'({found[0].places}): {said} (permutations of the places). Both sides are '
    f'of other {halves}, so that they share no noise'
    + ('' if found[0].images else ' but that of the test images')
    + '; noise within each makes r smaller.'
  )
