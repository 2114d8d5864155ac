"""What an arm does against a reference: at each place, and over all of them."""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from tlkd_jax.answer import rows as runs
from tlkd_jax.answer.rows import Place, Row
from tlkd_jax.answer.verdicts import Verdict, decide
from tlkd_jax.evaluation import bootstrap, comparison, statistics

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
    test: statistics.compare_paired of them.
    p: that gives the verdict: exact sign-flip, of one place corrected (Holm).
    verdict: of verdicts.decide.
    images: the same over test images, where answers are at hand.
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


def per_place(
  rows: Sequence[Row], arm: str, reference: str, metric: str
) -> list[Effect]:
  """The effect at each place where both arms have a seed in common.

  The p of each is corrected by Holm over them.
  """
  found = []
  for place in runs.places(rows):
    both = runs.pairs(rows, place, arm, reference)
    sides = {
      seed: (runs.value(x, metric), runs.value(y, metric))
      for seed, (x, y) in both.items()
    }
    effect = _effect(arm, reference, metric, (place,), (), sides)
    if effect.seeds:
      if metric == 'top1':
        effect = _with_images(effect, list(both.values()))
      found.append(effect)
  corrected = statistics.holm([e.test['p_sign_flip'] for e in found])
  return [
    dataclasses.replace(e, p=float(p), verdict=decide(e.test, p, metric))
    for e, p in zip(found, corrected, strict=True)
  ]


def overall(
  rows: Sequence[Row], arm: str, reference: str, metric: str
) -> Effect:
  """One effect over all places: the mean difference of each seed.

  Each data set weighs the same. Places with fewer pairs than the most are left
  out, and a seed counts if all others have it.

  Returns:
    The effect; without seeds if no place has a pair, or no seed is common.
  """
  at_places = {
    place: runs.pairs(rows, place, arm, reference)
    for place in runs.places(rows)
  }
  most = max(map(len, at_places.values()), default=0)
  used = tuple(p for p, both in at_places.items() if most and len(both) == most)
  by_dataset = collections.defaultdict(list)
  for place in used:
    by_dataset[place.dataset].append(at_places[place])
  seeds = set.intersection(*(set(at_places[p]) for p in used)) if used else ()

  def mean(side: int, seed: int) -> float:
    return float(
      np.mean(
        [
          np.mean([runs.value(both[seed][side], metric) for both in found])
          for found in by_dataset.values()
        ]
      )
    )

  sides = {seed: (mean(0, seed), mean(1, seed)) for seed in sorted(seeds)}
  left_out = tuple(
    place for place, both in at_places.items() if place not in used
  )
  return _effect(arm, reference, metric, used, left_out, sides)


def _effect(
  arm: str,
  reference: str,
  metric: str,
  places: tuple[Place, ...],
  left_out: tuple[Place, ...],
  sides: dict[int, tuple[float, float]],
) -> Effect:
  """Tests (arm, reference) by seed; pairs with a NaN do not count."""
  sides = {s: xy for s, xy in sides.items() if not np.isnan(xy).any()}
  x, y = np.array(list(sides.values()), np.float64).reshape(-1, 2).T
  test = statistics.compare_paired(x, y)
  p = test['p_sign_flip']
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
  low, high = _interval(np.mean(differences, axis=0))
  images = OverImages(len(first.right), low, high, p)
  return dataclasses.replace(effect, images=images)


def _interval(differences: np.ndarray) -> tuple[float, float]:
  """Percentile bootstrap interval of a mean over images, [N] -> (low, high)."""
  counts = bootstrap.resample_counts(len(differences), _REPLICATES, 0)
  draws = counts @ differences / len(differences)
  low, high = np.percentile(draws, [2.5, 97.5])
  # Without what rounding makes of an exact zero.
  return round(float(low), 12), round(float(high), 12)
