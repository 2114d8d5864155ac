"""What an arm is worth in labels: how many more its reference would need."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tlkd_jax.answer import rows as runs
from tlkd_jax.answer.rows import Row
from tlkd_jax.evaluation import label_curves
from tlkd_jax.evaluation.label_curves import MORE, Efficiency, Needed
from tlkd_jax.evaluation.metrics import LOWER_IS_BETTER


@dataclasses.dataclass(frozen=True)
class Worth:
  """Per cent more labels that the reference needs for an arm's score.

  Attributes:
    series: of places: data set and recipe.
    arm: its name.
    reference: likewise.
    over_curve: a mean over the scores that both reach.
    by_size: the same size by size.
    sizes: training images, one size a place.
    seeds: that all places have.
    images: test images that the intervals count with, 0 where the answers to
      the same ones are not at hand everywhere.
  """

  series: tuple[str, str]
  arm: str
  reference: str
  over_curve: Efficiency
  by_size: tuple[Needed, ...]
  sizes: tuple[int, ...]
  seeds: tuple[int, ...]
  images: int

  @property
  def outside(self) -> list[int]:
    """Sizes at which the arm lies outside of the reference's curve."""
    pairs = zip(self.sizes, self.by_size, strict=True)
    return [size for size, one in pairs if not 0 < one.labels < MORE]


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
  scores, images = _scores(at_sizes, seeds, metric)
  return Worth(
    series=series,
    arm=arm,
    reference=reference,
    over_curve=label_curves.efficiency(sizes, *scores),
    by_size=tuple(label_curves.needed(sizes, *scores)),
    sizes=tuple(sizes),
    seeds=tuple(seeds),
    images=images,
  )


def _scores(
  at_sizes: Sequence[Mapping[int, tuple[Row, Row]]],
  seeds: Sequence[int],
  metric: str,
) -> tuple[list[np.ndarray], int]:
  """Of both arms [S, F], or answers [S, F, N] and N where all are the same."""
  cells = [[both[seed] for both in at_sizes] for seed in seeds]
  if metric == 'top1':
    answers = [
      row.get('answers')
      for of_seed in cells
      for both in of_seed
      for row in both
    ]
    known = [one for one in answers if one is not None]
    if len(known) == len(answers) and all(map(known[0].same_images, known)):
      right = np.array([one.right for one in known], np.float64)
      right = right.reshape(len(seeds), len(at_sizes), 2, -1)
      return [right[:, :, side] for side in (0, 1)], right.shape[-1]
  sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
  found = [
    np.array(
      [
        [sign * runs.value(both[side], metric) for both in of_seed]
        for of_seed in cells
      ]
    )
    for side in (0, 1)
  ]
  return found, 0
