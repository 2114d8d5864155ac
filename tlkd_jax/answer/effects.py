"""What an arm does against a reference: at each place, and over all of them."""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy

from tlkd_jax.answer import hits
from tlkd_jax.answer import rows as runs
from tlkd_jax.answer.rows import Place, Row
from tlkd_jax.answer.verdicts import Verdict, decide
from tlkd_jax.evaluation import (
  bootstrap,
  comparison,
  crossed,
  overlapping,
  statistics,
)
from tlkd_jax.evaluation.crossed import Parts
from tlkd_jax.evaluation.statistics import ALPHA

# As of comparison.paired_bootstrap: on a page with both they agree.
_REPLICATES = 1000


@dataclasses.dataclass(frozen=True)
class OverImages:
  """Two arms over the test images of one place, accuracy alone.

  Attributes:
    count: of test images.
    low: of the 95 % interval of the difference, a mean over the seeds.
    high: likewise.
    mcnemar_p: of McNemar's test; None with several seeds.
  """

  count: int
  low: float
  high: float
  mcnemar_p: float | None


@dataclasses.dataclass(frozen=True)
class OverBoth:
  """Two arms over seeds and test images together, accuracy alone.

  Attributes:
    low: of the 95 % interval of the mean difference, looked at once.
    high: likewise.
    from_seeds: standard error that seeds leave.
    from_images: that the test images leave, however many seeds there are.
  """

  low: float
  high: float
  from_seeds: float
  from_images: float


@dataclasses.dataclass(frozen=True)
class Effect:
  """An arm minus its reference in one metric, paired by seed.

  Attributes:
    arm: under test.
    reference: that it is compared with.
    metric: a test metric.
    places: that it is over, one or all.
    left_out: places with fewer pairs than these, of an effect over all.
    seeds: of the k pairs.
    x: values of the arm, float64 [k].
    y: values of the reference, [k].
    test: statistics.compare_paired of them; of folds its interval and p_t are
      those of overlapping.compare_paired.
    p: that gives the verdict: exact sign-flip, of folds the larger of it and
      p_t; of one place corrected (Holm).
    verdict: of verdicts.decide.
    images: the same over test images, where answers are at hand.
    both: the same over seeds and test images together, of several seeds.
  """

  arm: str
  reference: str
  metric: str
  places: tuple[Place, ...]
  left_out: tuple[Place, ...]
  seeds: tuple[int, ...]
  x: np.ndarray
  y: np.ndarray
  test: dict[str, float]
  p: float
  verdict: Verdict
  images: OverImages | None = None
  both: OverBoth | None = None


def per_place(
  rows: Sequence[Row], arm: str, reference: str, metric: str
) -> list[Effect]:
  """The effect at each place where both arms have a seed in common.

  The p of each is corrected by Holm over them. A verdict on accuracy other than
  'inconclusive' stands only where the interval over seeds and test images lies
  on one side of 0 too, and where both would be so with two test images of any
  one cell answered otherwise; without the answers to single images there is
  none.
  """
  found, worst = [], []
  for place in runs.places(rows):
    both = runs.pairs(rows, place, arm, reference)
    sides = {
      seed: (runs.value(x, metric), runs.value(y, metric))
      for seed, (x, y) in both.items()
    }
    effect = _effect(
      arm, reference, metric, (place,), (), sides, hits.folds_of([both])
    )
    if not effect.seeds:
      continue
    p_worst = effect.p
    if metric == 'top1':
      effect = _with_images(effect, list(both.values()))
      over = hits.over_images({place: both}, effect.seeds)
      effect = dataclasses.replace(effect, both=_over_both(effect, over))
      p_worst = max(p_worst, _worst_p(effect, over))
    found.append(effect)
    worst.append(p_worst)
  plain = [e.p for e in found]
  corrected = statistics.holm(plain)
  # Each may be the one of which two images change.
  judged = np.max(
    [
      statistics.holm([*plain[:i], p, *plain[i + 1 :]])
      for i, p in enumerate(worst)
    ]
    or [corrected],
    axis=0,
  )
  return [
    dataclasses.replace(e, p=float(p), verdict=decide(e.test, q, metric))
    for e, p, q in zip(found, corrected, judged, strict=True)
  ]


def common_pairs(
  rows: Sequence[Row], arm: str, reference: str, places: Sequence[str] = ()
) -> tuple[dict[Place, dict[int, tuple[Row, Row]]], tuple[Place, ...]]:
  """The pairs of an answer over all places: the same seeds at each.

  Args:
    rows: any arms, places and seeds.
    arm: under test.
    reference: that it is compared with.
    places: 'data set, size' of those that a seed must have, whether there are
      rows of them or not; () are those with as many pairs as any.

  Returns:
    (place -> seed -> rows of both arms; the places left out).
  """
  at_places = {
    place: runs.pairs(rows, place, arm, reference)
    for place in runs.places(rows)
  }
  if places:
    # Of runs of one place that differ in their recipe each is one.
    used = [p for p in at_places if runs.in_words(p) in places]
    if {*places} - {runs.in_words(p) for p in used}:
      return {}, ()
  else:
    most = max(map(len, at_places.values()), default=0)
    used = [p for p, both in at_places.items() if most and len(both) == most]
  seeds = set.intersection(*(set(at_places[p]) for p in used)) if used else {}
  found = {p: {s: at_places[p][s] for s in sorted(seeds)} for p in used}
  return found, tuple(p for p in at_places if p not in used)


def overall(
  rows: Sequence[Row],
  arm: str,
  reference: str,
  metric: str,
  places: Sequence[str] = (),
) -> Effect:
  """One effect over all places: the mean difference of each seed.

  Each data set weighs the same. Places with fewer pairs than the most are left
  out, and a seed counts if all others have it.

  Args:
    rows: any arms, places and seeds.
    arm: under test.
    reference: that it is compared with.
    metric: a test metric.
    places: as of common_pairs.

  Returns:
    The effect; without seeds if no place has a pair, or no seed is common.
  """
  at_places, left_out = common_pairs(rows, arm, reference, places)
  by_dataset = collections.defaultdict(list)
  for place, both in at_places.items():
    by_dataset[place.dataset].append(both)
  seeds = next(iter(at_places.values()), {})

  def mean(side: int, seed: int) -> float:
    return float(
      np.mean(
        [
          np.mean([runs.value(both[seed][side], metric) for both in found])
          for found in by_dataset.values()
        ]
      )
    )

  sides = {seed: (mean(0, seed), mean(1, seed)) for seed in seeds}
  folds = hits.folds_of(at_places.values())
  effect = _effect(
    arm, reference, metric, (*at_places,), left_out, sides, folds
  )
  if metric == 'top1':
    over = hits.over_images(at_places, effect.seeds)
    effect = dataclasses.replace(effect, both=_over_both(effect, over))
  return effect


def _effect(
  arm: str,
  reference: str,
  metric: str,
  places: tuple[Place, ...],
  left_out: tuple[Place, ...],
  sides: dict[int, tuple[float, float]],
  folds: int,
) -> Effect:
  """Tests (arm, reference) by seed; pairs with a NaN do not count."""
  sides = {s: xy for s, xy in sides.items() if not np.isnan(xy).any()}
  x, y = np.array(list(sides.values()), np.float64).reshape(-1, 2).T
  test = statistics.compare_paired(x, y)
  p = test['p_sign_flip']
  if folds and test['std_difference'] > 0:
    test |= overlapping.compare_paired(x - y, folds)
    # Signs that flip are those of runs that share nothing.
    p = max(p, test['p_t'])
  return Effect(
    arm=arm,
    reference=reference,
    metric=metric,
    places=places,
    left_out=left_out,
    seeds=tuple(sides),
    x=x,
    y=y,
    test=test,
    p=p,
    verdict=decide(test, p, metric),
  )


def _with_images(effect: Effect, both: list[tuple[Row, Row]]) -> Effect:
  """Adds the interval over images, if all runs answered to the same ones."""
  stored = [(x.get('answers'), y.get('answers')) for x, y in both]
  answers = [(x, y) for x, y in stored if x is not None and y is not None]
  first = answers[0][0] if answers else None
  if first is None or len(answers) < len(stored):
    return effect
  if not all(first.same_images(x) for x, _ in answers):
    return effect
  differences = [x.right.astype(float) - y.right for x, y in answers]
  p = None
  if len(answers) == 1:
    x, y = answers[0]
    p = comparison.mcnemar(x.right, y.right)['p']
  low, high = interval_over_images(np.mean(differences, axis=0))
  images = OverImages(len(first.right), low, high, p)
  return dataclasses.replace(effect, images=images)


def interval_over_images(differences: np.ndarray) -> tuple[float, float]:
  """Percentile bootstrap interval of a mean over images, [N] -> (low, high)."""
  counts = bootstrap.resample_counts(len(differences), _REPLICATES, 0)
  draws = counts @ differences / len(differences)
  low, high = np.percentile(draws, [2.5, 97.5])
  # Without what rounding makes of an exact zero.
  return round(float(low), 12), round(float(high), 12)


def _over_both(effect: Effect, over: hits.OverImages | None) -> OverBoth | None:
  """The interval over seeds and test images, see evaluation.crossed."""
  count = len(effect.seeds)
  if over is None or count < 2:
    return None
  variance = max(effect.test['std_difference'] ** 2 / count, over.now.rest)
  half = _half(variance, count, over.now)
  mean = effect.test['mean_difference']
  return OverBoth(
    low=mean - half,
    high=mean + half,
    from_seeds=variance**0.5,
    from_images=(over.now.images + over.now.unseen) ** 0.5,
  )


def _half(variance: float, count: int, parts: Parts) -> float:
  freedom = crossed.freedom(variance, count - 1, parts.images, parts.freedom)
  quantile = scipy.stats.t.isf(ALPHA / 2, freedom)
  return float(quantile * (variance + parts.images + parts.unseen) ** 0.5)


def _worst_p(effect: Effect, over: hits.OverImages | None) -> float:
  """Largest p where two test images of one cell are answered otherwise.

  1 where the interval over seeds and test images then holds 0, or where the
  answers to single images are not at hand.
  """
  p, count = effect.test['p_sign_flip'], len(effect.seeds)
  if over is None:
    return 1.0
  if not p < ALPHA or count < 2:
    return p
  difference = effect.x - effect.y
  step, least, most = max(over.steps), over.least, over.most
  # [seed and move, seed]: away from 0 an odd one makes the interval wider.
  moves = [flips * step * np.eye(count) for flips in (-2, -1, 1, 2)]
  moved = difference + np.concatenate(moves)
  mean = moved.mean(axis=1)
  variance = np.maximum(moved.var(axis=1, ddof=1) / count, most.rest)
  # The more of the variance is of images, the more degrees of freedom.
  freedom = crossed.freedom(variance, count - 1, least.images, least.freedom)
  half = scipy.stats.t.isf(ALPHA / 2, freedom)
  half *= np.sqrt(variance + most.images + most.unseen)
  if (np.abs(mean) <= half).any():
    return 1.0
  against = float(-2 * step * np.sign(difference.mean()))
  return max(p, statistics.largest_p_of_moved(difference, against))
