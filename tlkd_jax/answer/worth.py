"""What an arm is worth in labels: how many more its reference would need."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tlkd_jax.answer import rows as runs
from tlkd_jax.answer.rows import Row
from tlkd_jax.evaluation import curves
from tlkd_jax.evaluation.metrics import LOWER_IS_BETTER


@dataclasses.dataclass(frozen=True)
class Worth:
  """Per cent more labels that the reference needs for an arm's score.

  Attributes:
    series: of places: data set and recipe.
    percent: see curves.label_efficiency; NaN where the curves share no score.
    low: of the 95 % interval over seeds, NaN where it is not known.
    high: likewise.
    sizes: training images, one size a place.
    seeds: that all places have.
    equivalent_labels: that the reference needs for the arm's score at each
      size, NaN where the score lies outside of the reference's curve.
  """

  series: tuple[str, str]
  percent: float
  low: float
  high: float
  sizes: tuple[int, ...]
  seeds: tuple[int, ...]
  equivalent_labels: tuple[float, ...]

  @property
  def outside(self) -> list[int]:
    """Sizes at which the arm lies outside of the reference's curve."""
    pairs = zip(self.sizes, self.equivalent_labels, strict=True)
    return [size for size, labels in pairs if np.isnan(labels)]


def in_labels(
  rows: Sequence[Row], arm: str, reference: str, metric: str = 'top1'
) -> list[Worth]:
  """The worth on each data set; those with less than two sizes are left out."""
  places = runs.places(rows)
  series = dict.fromkeys((place.dataset, place.recipe) for place in places)
  found = [_of_series(rows, arm, reference, metric, one) for one in series]
  return [worth for worth in found if worth is not None]


def _of_series(
  rows: Sequence[Row],
  arm: str,
  reference: str,
  metric: str,
  series: tuple[str, str],
) -> Worth | None:
  at_sizes = [
    both
    for place in runs.places(rows)
    if (place.dataset, place.recipe) == series
    and (both := runs.pairs(rows, place, arm, reference))
  ]
  sizes = [next(iter(both.values()))[1]['num_train'] for both in at_sizes]
  if len(sizes) < 2 or len(set(sizes)) < len(sizes):
    return None
  seeds = sorted(set.intersection(*map(set, at_sizes)))
  if not seeds:
    return None
  sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
  scores = [
    [
      [sign * runs.value(both[seed][side], metric) for both in at_sizes]
      for seed in seeds
    ]
    for side in (0, 1)
  ]
  found = curves.label_efficiency(sizes, *scores)
  return Worth(
    series=series,
    percent=found['percent_more_labels'],
    low=found['low'],
    high=found['high'],
    sizes=tuple(sizes),
    seeds=tuple(seeds),
    equivalent_labels=tuple(found['equivalent_labels'].tolist()),
  )
