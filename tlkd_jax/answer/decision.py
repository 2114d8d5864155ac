"""The verdict on the primary question, decided here and nowhere else.

The question is the mean difference in accuracy over all places, data sets
weighted equally. Its variance is that over seeds and that over test images
together (evaluation.crossed); its intervals are wide enough for a look after
every seed (evaluation.sequential). Then

  helps, hurts   the 95 % interval lies on one side of 0;
  equal          the 90 % interval lies within the margin: two one-sided tests
                 of 5 % (Schuirmann 1987);
  not yet known  neither, or it is so and would not be if two test images of one
                 cell had been answered otherwise.

Of an effect that is both apart from 0 and within the margin it is said that it
helps, or hurts, and that it is less than the margin.
"""

import dataclasses
import math
from typing import Literal

import numpy as np
import scipy

from tlkd_jax.answer.hits import OverImages
from tlkd_jax.answer.plan import POWER, Plan
from tlkd_jax.evaluation import crossed
from tlkd_jax.evaluation.crossed import Parts
from tlkd_jax.evaluation.sequential import FIRST_LOOK, nominal_levels
from tlkd_jax.evaluation.statistics import ALPHA

Decided = Literal['helps', 'hurts', 'equal within the margin', 'not yet known']
HELPS, HURTS = 'helps', 'hurts'
EQUAL, UNKNOWN = 'equal within the margin', 'not yet known'
SURE: tuple[Decided, ...] = (HELPS, HURTS, EQUAL)
# Differences are not quite normal: a tenth of the level is kept back.
_SPENT = 0.9
# Beyond so many seeds nobody goes; so many are imagined one after the other.
_MOST_SEEDS, _MOST_IMAGINED = 5000, 100
_NAN = float('nan')


@dataclasses.dataclass(frozen=True)
class Decision:
  """The verdict and its grounds.

  Attributes:
    verdict: one of four.
    seeds: that count.
    images: test images that count, 0 where answers are not at hand.
    mean: difference, a share.
    low: of the 95 % interval of repeated looks; NaN before the first look.
    high: likewise.
    inner_low: of the 90 % interval, that of equality.
    inner_high: likewise.
    within: whether the 90 % interval lies within the margin.
    spread: standard deviation over seeds.
    from_images: standard error that the test images alone leave.
    alone: the verdict of seeds without images, where those are not at hand.
    fragile: it would be sure but for two test images of one cell.
    more: seeds that it would take besides, by POWER; 0 where it is sure, None
      where that cannot be told or no number would do.
    floor: half of the 95 % interval that no number of seeds makes smaller.
    folds: that is so since training sets of folds overlap.
  """

  verdict: Decided
  seeds: int
  images: int
  mean: float
  low: float
  high: float
  inner_low: float
  inner_high: float
  within: bool
  spread: float
  from_images: float
  alone: Decided
  fragile: bool
  more: int | None
  floor: float
  folds: bool


@dataclasses.dataclass(frozen=True)
class Halves:
  """Half widths of two intervals, arrays of one shape.

  Attributes:
    outer: of the 95 % one.
    inner: of the 90 % one.
  """

  outer: np.ndarray
  inner: np.ndarray


def decide_primary(
  differences: np.ndarray, images: OverImages | None, plan: Plan
) -> Decision:
  """The verdict on differences of seeds, each a mean over all places.

  Args:
    differences: float64 [S], arm minus reference, at most plan.max_seeds.
    images: what test images add; None where answers are not at hand.
    plan: how it is judged.
  """
  values = np.asarray(differences, np.float64)
  count, nothing = len(values), Parts(0.0, 0.0, 1.0)
  mean = float(values.mean()) if count else _NAN
  spread = float(values.std(ddof=1)) if count > 1 else _NAN
  now = images.now if images else nothing
  alone = _alone(values, plan)
  half = _halves(spread**2 / count, now, count, plan) if count > 1 else None
  outer, inner = (
    (float(half.outer), float(half.inner)) if half else (_NAN, _NAN)
  )
  found: Decided = UNKNOWN
  if half is not None and images is not None:
    found = _name(verdicts(np.array(mean), half, plan.margin))
  fragile = found != UNKNOWN and not _survives(values, images, plan, found)
  verdict: Decided = UNKNOWN if fragile else found
  more = 0 if images else None
  if verdict == UNKNOWN and images is not None:
    more = _more(mean, spread, now, count, plan)
    if fragile:
      more = _until_firm(values, images, plan, more)
  return Decision(
    verdict=verdict,
    seeds=count,
    images=images.count if images else 0,
    mean=mean,
    low=mean - outer,
    high=mean + outer,
    inner_low=mean - inner,
    inner_high=mean + inner,
    within=bool(abs(mean) + inner < plan.margin),
    spread=spread,
    from_images=math.sqrt(now.images + now.unseen),
    alone=alone,
    fragile=fragile,
    more=more,
    floor=_floor(now),
    folds=images is not None and images.folds,
  )


def _alone(values: np.ndarray, plan: Plan) -> Decided:
  count = len(values)
  if count < FIRST_LOOK:
    return UNKNOWN
  variance = float(values.var(ddof=1)) / count
  half = _halves(variance, Parts(0.0, 0.0, 1.0), count, plan)
  return _name(verdicts(values.mean(), half, plan.margin))


def _halves(variance, parts: Parts, count: int, plan: Plan) -> Halves | None:
  """Of the variance of the mean over seeds, float or array; see Parts."""
  if count < FIRST_LOOK:
    return None
  return _widths(variance, parts, parts, count, plan)[1]


def _widths(
  variance, least: Parts, most: Parts, count: int, plan: Plan
) -> tuple[Halves, Halves]:
  """Least and largest half widths, where parts lie between two bounds."""
  variance = np.asarray(variance, np.float64)
  low, high = np.maximum(variance, least.rest), np.maximum(variance, most.rest)
  # The share of images in the variance makes degrees of freedom many, so that
  # these grow with that share.
  few = crossed.freedom(high, count - 1, least.images, least.freedom)
  many = crossed.freedom(low, count - 1, most.images, most.freedom)
  small, large = (
    np.sqrt(own + parts.images + parts.unseen)
    for own, parts in ((low, least), (high, most))
  )
  outer, inner = levels(count, plan)
  return (
    Halves(
      scipy.stats.t.isf(outer, many) * small,
      scipy.stats.t.isf(inner, many) * small,
    ),
    Halves(
      scipy.stats.t.isf(outer, few) * large,
      scipy.stats.t.isf(inner, few) * large,
    ),
  )


def levels(count: int, plan: Plan) -> tuple[float, float]:
  """One-sided levels of the t test of 0 and of those of the margin."""
  # After the last look: of a study with that many seeds at most.
  seen = min(count, plan.max_seeds)
  return (
    nominal_levels(plan.max_seeds, _SPENT * ALPHA / 2)[seen],
    nominal_levels(plan.max_seeds, _SPENT * ALPHA)[seen],
  )


def verdicts(mean: np.ndarray, half: Halves, margin: float) -> np.ndarray:
  """Indices into SURE, or -1, of means and half widths of one shape."""
  return np.select(
    [
      mean - half.outer > 0,
      mean + half.outer < 0,
      np.abs(mean) + half.inner < margin,
    ],
    [0, 1, 2],
    -1,
  )


def _name(index: np.ndarray) -> Decided:
  return UNKNOWN if int(index) < 0 else SURE[int(index)]


def _survives(
  values: np.ndarray, images: OverImages | None, plan: Plan, found: Decided
) -> bool:
  """Whether two flipped test images of any one cell leave the verdict.

  One cell's two flips move the mean of its seed by up to two images, either
  way, and the parts of the images within their bounds.
  """
  if images is None:
    return False
  moves = [0.0]
  for step in images.steps:
    moves += [step * flips for flips in (-2, -1, 1, 2)]
  # [seed that is moved, move, seed]
  moved = np.tile(values, (len(values), len(moves), 1))
  for seed in range(len(values)):
    moved[seed, :, seed] += moves
  mean, variance = moved.mean(axis=-1), moved.var(axis=-1, ddof=1)
  halves = _widths(
    variance / len(values), images.least, images.most, len(values), plan
  )
  index = SURE.index(found)
  return all(
    bool((verdicts(mean, half, plan.margin) == index).all()) for half in halves
  )


def _floor(parts: Parts) -> float:
  """Half of the 95 % interval over images alone."""
  left = math.sqrt(parts.images + parts.unseen)
  return float(scipy.stats.norm.isf(ALPHA / 2) * left)


def _until_firm(
  values: np.ndarray, images: OverImages, plan: Plan, more: int | None
) -> int | None:
  """Likewise, until no two images of one cell change what is said then.

  Args:
    values: differences of seeds, of which more of the same are imagined.
    images: what test images add.
    plan: how it is judged.
    more: seeds that it takes without a look at them.
  """
  count = len(values)
  first = count + (more or 1)
  if first > _MOST_IMAGINED:
    # Of so many seeds one cell's two images change next to nothing.
    return more
  for total in range(first, _MOST_IMAGINED + 1):
    same = np.resize(values, total)
    then = _of_more_seeds(images, count / total)
    variance = same.var(ddof=1) / total
    half = _widths(variance, then.now, then.now, total, plan)[1]
    found = _name(verdicts(same.mean(), half, plan.margin))
    if found != UNKNOWN and _survives(same, then, plan, found):
      return total - count
  return None


def _of_more_seeds(images: OverImages, share: float) -> OverImages:
  """What the same images add where these seeds are such a share of all."""
  now = dataclasses.replace(images.now, rest=images.now.rest * share)

  def bound(one: Parts) -> Parts:
    moved = images.now.images + (one.images - images.now.images) * share
    return dataclasses.replace(one, images=moved, rest=one.rest * share)

  return dataclasses.replace(
    images, now=now, least=bound(images.least), most=bound(images.most)
  )


def _more(
  mean: float, spread: float, parts: Parts, count: int, plan: Plan
) -> int | None:
  """Further seeds for a sure verdict, by POWER, if what is seen is true."""
  if count < 2:
    return None
  least = max(count + 1, FIRST_LOOK)
  totals = np.arange(least, _MOST_SEEDS + 1)
  shape = np.minimum(totals, plan.max_seeds)
  outer, inner = (
    np.array(
      [levels(n, plan)[side] for n in range(FIRST_LOOK, plan.max_seeds + 1)]
    )
    for side in (0, 1)
  )
  seeds = np.maximum(spread**2, parts.rest * count) / totals
  total = seeds + parts.images
  freedom = total**2 / (
    seeds**2 / (totals - 1) + parts.images**2 / parts.freedom + 1e-300
  )
  error, size = np.sqrt(total + parts.unseen), abs(mean)
  with np.errstate(divide='ignore', invalid='ignore'):
    apart = scipy.stats.t.sf(
      scipy.stats.t.isf(outer[shape - FIRST_LOOK], freedom) - size / error,
      freedom,
    )
    cut = scipy.stats.t.isf(inner[shape - FIRST_LOOK], freedom)
    equal = scipy.stats.t.cdf((plan.margin - size) / error - cut, freedom)
    equal -= scipy.stats.t.cdf(cut - (plan.margin + size) / error, freedom)
  enough = np.flatnonzero(np.maximum(apart, equal) >= POWER)
  return int(totals[enough[0]]) - count if enough.size else None
