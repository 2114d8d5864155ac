"""Single test images: what they add to the uncertainty over seeds."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tlkd_jax.answer.rows import Answers, Place, Row
from tlkd_jax.evaluation import crossed, overlapping
from tlkd_jax.evaluation.crossed import Parts

# Of a normal distribution whose one-sided 95 % bound is 3, its variance.
_UNSEEN = (3 / 1.645) ** 2
# Place -> seed -> rows of (arm, reference).
Pairs = Mapping[Place, Mapping[int, tuple[Row, Row]]]


@dataclasses.dataclass(frozen=True)
class Block:
  """Differences in hits on one set of test images.

  Attributes:
    weight: of its mean in the mean over all places.
    values: [S, N], arm minus reference, a mean over `places` places of the
      data set with these images; [S, N] of images that each seed drew anew
      where `nested`.
    places: how many.
    nested: each seed has images of its own, so that the spread over seeds
      holds that of the images.
    count: of images, those of all folds together.
    folds: of which each seed is tested on one, see evaluation.overlapping; 0
      where seeds drew their images anew, or all have the same ones.
  """

  weight: float
  values: np.ndarray
  places: int
  nested: bool
  count: int
  folds: int = 0

  @property
  def step(self) -> float:
    """By how much one image of one cell changes the mean of its seed."""
    return self.weight / self.places / self.values.shape[1]


@dataclasses.dataclass(frozen=True)
class OverImages:
  """What the test images add.

  Attributes:
    count: images, of all data sets together.
    now: their parts of the variance of the mean over all.
    least: where two images of one cell are flipped, at least.
    most: likewise, at most.
    steps: by how much one image of one cell changes the mean of its seed,
      each size once.
    folds: they are of folds, and what they add is that these overlap.
  """

  count: int
  now: Parts
  least: Parts
  most: Parts
  steps: tuple[float, ...]
  folds: bool


def over_images(pairs: Pairs, seeds: Sequence[int]) -> OverImages | None:
  """The images' parts; None where the answers of a run are not at hand.

  Args:
    pairs: of the places that count, each with all seeds.
    seeds: that count.
  """
  blocks = make_blocks(pairs, seeds)
  if blocks is None or not seeds:
    return None
  found = [_parts(block) for block in blocks]
  now, least, most = zip(*found, strict=True)
  steps = {block.step for block in blocks}
  return OverImages(
    count=sum(block.count for block in blocks),
    now=_sum(blocks, now),
    least=_sum(blocks, least),
    most=_sum(blocks, most),
    steps=tuple(sorted(steps)),
    folds=any(block.folds for block in blocks),
  )


def make_blocks(pairs: Pairs, seeds: Sequence[int]) -> list[Block] | None:
  """The blocks of places; None where the answers of a run are not at hand."""
  by_dataset: dict[str, list[Place]] = collections.defaultdict(list)
  for place in pairs:
    by_dataset[place.dataset].append(place)
  blocks = []
  for places in by_dataset.values():
    groups: dict[tuple[str, ...], list[np.ndarray]] = {}
    counts: dict[tuple[str, ...], int] = {}
    folds = folds_of(pairs[place] for place in places)
    for place in places:
      found = [_difference(*pairs[place][seed]) for seed in seeds]
      found = [one for one in found if one is not None]
      if len(found) < len(seeds):
        return None
      sizes = {name: len(values) for name, values in found}
      images = tuple(sizes)
      if len({len(values) for _, values in found}) > 1:
        # Each seed has as many images as it has: as many as the fewest count.
        fewest = min(len(values) for _, values in found)
        found = [(name, _thinned(values, fewest)) for name, values in found]
      values = np.array([values for _, values in found])
      groups.setdefault(images, []).append(values)
      fewest = min(sizes.values(), default=0)
      counts[images] = sum(sizes.values()) if folds else fewest
    share = 1 / len(by_dataset) / len(places)
    for images, members in groups.items():
      blocks.append(
        Block(
          weight=share * len(members),
          values=np.mean(members, axis=0),
          places=len(members),
          nested=len(images) > 1,
          count=counts[images],
          folds=folds if len(images) > 1 else 0,
        )
      )
  return blocks


def folds_of(pairs: Iterable[Mapping[int, tuple[Row, Row]]]) -> int:
  """Of the runs of pairs by seed; 0 where all have one test split."""
  rows = [row for both in pairs for pair in both.values() for row in pair]
  return max((row.get('folds', 0) for row in rows), default=0)


def _difference(arm: Row, reference: Row) -> tuple[str, np.ndarray] | None:
  ours: Answers | None = arm.get('answers')
  theirs: Answers | None = reference.get('answers')
  if ours is None or theirs is None:
    return None
  return ours.images, ours.right.astype(float) - theirs.right


def _thinned(values: np.ndarray, count: int) -> np.ndarray:
  return values[np.arange(count) * len(values) // count]


def _parts(block: Block) -> tuple[Parts, Parts, Parts]:
  """The parts as they are, and at least and at most.

  Where a seed answers hardly an image otherwise, no variance is seen; all the
  same up to 3 in N of the images that were not drawn may be answered
  otherwise by every seed (95 %; Hanley and Lippman-Hand 1983).
  """
  seeds, count = block.values.shape
  if block.folds:
    found = overlapping.parts(block.values, block.folds, 1 / block.places)
    images = block.count
  elif block.nested:
    rest = float(block.values.var(axis=1, ddof=1).mean()) / (seeds * count)
    none = Parts(0.0, rest, count - 1)
    found, images = (none, none, none), seeds * count
  else:
    least, most = crossed.changed(block.values, 1 / block.places)
    found, images = (crossed.parts(block.values), least, most), count
  # What the spread within a cell shows of them; that of a mean over places is
  # so much less. Two flips change it by up to two answers in all of a place.
  answers = seeds * count
  shown = found[0].rest * answers * block.places / images
  flips = 2 / answers / images
  now, low, high = (
    dataclasses.replace(
      one,
      unseen=max(_UNSEEN / images**2 - one.images - shown - change, 0.0),
    )
    for one, change in zip(found, (0.0, -flips, flips), strict=True)
  )
  return now, low, high


def _sum(blocks: Sequence[Block], found: Sequence[Parts]) -> Parts:
  """Parts of a weighted sum over sets of images that were drawn apart."""
  both = list(zip(blocks, found, strict=True))
  images = [block.weight**2 * one.images for block, one in both]
  rest, unseen = (
    sum(block.weight**2 * getattr(one, name) for block, one in both)
    for name in ('rest', 'unseen')
  )
  below = sum(
    value**2 / one.freedom for value, one in zip(images, found, strict=True)
  )
  # Of the sum, as crossed.freedom.
  freedom = sum(images) ** 2 / below if below > 0 else found[0].freedom
  return Parts(sum(images), rest, freedom, unseen)
