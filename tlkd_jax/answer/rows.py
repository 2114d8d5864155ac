"""Rows, one a run, and which of them belong together."""

import base64
import collections
import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NotRequired, TypedDict, TypeVar

import numpy as np


@dataclasses.dataclass(frozen=True)
class Answers:
  """Which test images a run got right, by number of the image.

  Attributes:
    images: digest of the images' numbers and true classes, which tells
      whether two runs answered to the same ones.
    right: bool [N], in the order of the images' numbers.
  """

  images: str
  right: np.ndarray

  def same_images(self, other: 'Answers') -> bool:
    """Whether both are of the same images."""
    return self.images == other.images


def make_answers(
  logits: np.ndarray, labels: np.ndarray, indices: np.ndarray
) -> Answers:
  """Answers from predictions on test: [N, K], [N] and [N], in any order."""
  order = np.argsort(indices, kind='stable')
  right = logits.argmax(axis=-1) == labels
  digest = hashlib.sha256()
  for values in (indices, labels):
    digest.update(np.ascontiguousarray(values[order], '<i8').tobytes())
  return Answers(digest.hexdigest()[:16], right[order])


def pack(answers: Answers) -> dict[str, Any]:
  """Answers as JSON, an eighth of a byte an image: {images, count, right}."""
  bits = np.packbits(answers.right).tobytes()
  return {
    'images': answers.images,
    'count': len(answers.right),
    'right': base64.b64encode(bits).decode(),
  }


def unpack(packed: Mapping[str, Any]) -> Answers:
  """What `pack` packed.

  Raises:
    ValueError: it is damaged.
  """
  try:
    bits = base64.b64decode(packed['right'], validate=True)
    count = int(packed['count'])
    if len(bits) != -(-count // 8):
      raise ValueError(f'{len(bits)} bytes for {count} images')
    right = np.unpackbits(np.frombuffer(bits, np.uint8), count=count)
    return Answers(str(packed['images']), right.astype(bool))
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f'packed answers are damaged: {error}') from error


class Row(TypedDict):
  """One run. A page may keep more in its rows; here no more is read.

  Attributes:
    dataset: name of the data set.
    size: training images per class, or a fraction below 1; 0 is all.
    recipe: what tells runs of one data set from each other besides, in words.
    arm: name of what was run; the answer compares two arms.
    label: the arm's, for people.
    kind: 'teacher', 'tl' or 'kd'.
    seed: arms are paired by it.
    num_train: training images.
    chosen: False for a trial that was not chosen on validation; such a row
      counts nowhere and has no `test`.
    test: metric -> value on test, None or NaN where it is undefined.
    answers: to single test images, where they are at hand.
    made: by what it was made: commit, versions, device, cores and processor.
    folds: its test images are one of so many folds, that of its seed; absent
      where seeds have one test split.
  """

  dataset: str
  size: float
  recipe: NotRequired[str]
  arm: str
  label: str
  kind: str
  seed: int
  num_train: int
  chosen: bool
  test: NotRequired[dict[str, float | None]]
  answers: NotRequired[Answers]
  made: NotRequired[dict[str, Any]]
  folds: NotRequired[int]


# Of `made`: what changes a result without anyone's changing the run.
_ALIKE = ('device', 'cores', 'processor', 'versions')

# A page's own kind of row goes in and comes out.
R = TypeVar('R', bound=Row)


class Place(NamedTuple):
  """Where arms are compared: fields as of a row."""

  dataset: str
  size: float
  recipe: str = ''

  def __str__(self) -> str:
    parts = [self.dataset, size_in_words(self.size), self.recipe]
    return ', '.join(part for part in parts if part)


def size_in_words(size: float) -> str:
  """A train size for people."""
  if size == 0:
    return 'all images'
  return f'{size:g} of the images' if size < 1 else f'{size:g} per class'


def in_words(place: Place) -> str:
  """A place's data set and size, whatever its recipe."""
  return str(place._replace(recipe=''))


def place_of(row: Row) -> Place:
  """The place of a row."""
  return Place(row['dataset'], row['size'], row.get('recipe', ''))


class Indexed(tuple[R, ...]):
  """Rows of which one arm's at one place are found without a look at all."""

  @functools.cached_property
  def groups(self) -> dict[tuple[Place, str], list[R]]:
    """(place, arm) -> its rows, in their order."""
    found = collections.defaultdict(list)
    for row in self:
      found[place_of(row), row['arm']].append(row)
    return dict(found)

  @functools.cached_property
  def places(self) -> list[Place]:
    """As of `places`."""
    return _places(self)


def indexed(rows: Sequence[R]) -> Indexed[R]:
  """The same rows, for who asks for many places and arms; not to be changed."""
  return rows if isinstance(rows, Indexed) else Indexed(rows)


def chosen(rows: Sequence[R]) -> list[R]:
  """The rows that were chosen on validation."""
  return [row for row in rows if row['chosen']]


def places(rows: Sequence[Row]) -> list[Place]:
  """Every place, by data set and number of images."""
  return [*rows.places] if isinstance(rows, Indexed) else _places(rows)


def _places(rows: Sequence[Row]) -> list[Place]:
  first = {place_of(row): row['num_train'] for row in rows}
  return sorted(first, key=lambda p: (p.dataset, first[p], p.recipe))


def arms(rows: Sequence[Row], reference: str) -> list[str]:
  """Students' arms, the reference first; then the teachers."""
  kinds = {row['arm']: row['kind'] for row in rows}
  return sorted(kinds, key=lambda a: (kinds[a] == 'teacher', a != reference, a))


def labels(rows: Sequence[Row]) -> dict[str, str]:
  """Arm -> label; of arms that share a label, with the arm's name."""
  found = {row['arm']: row['label'] for row in rows}
  counts = collections.Counter(found.values())
  return {
    arm: label if counts[label] == 1 else f'{label} ({arm})'.strip()
    for arm, label in found.items()
  }


def all_at(rows: Sequence[R], place: Place, arm: str) -> list[R]:
  """Every row of one arm at one place, also of trials that were not chosen."""
  if isinstance(rows, Indexed):
    return rows.groups.get((place, arm), [])
  return [row for row in rows if row['arm'] == arm and place_of(row) == place]


def at(rows: Sequence[R], place: Place, arm: str) -> dict[int, R]:
  """Seed -> row of one arm at one place, by seed."""
  found = {row['seed']: row for row in chosen(all_at(rows, place, arm))}
  return dict(sorted(found.items()))


def pairs(
  rows: Sequence[R], place: Place, arm: str, reference: str
) -> dict[int, tuple[R, R]]:
  """Seed -> rows of (arm, reference), of the seeds that both have at a place.

  Two runs that answered to different test images, or were made by other
  versions, devices or numbers of cores, are no pair; nor are those of a seed
  that was tested on other images than most, where seeds have them in common.
  """
  common = _common(rows, place, arm, reference)
  refused = _refused(common)
  return {seed: both for seed, both in common.items() if seed not in refused}


def mismatched(
  rows: Sequence[Row], arm: str, reference: str
) -> dict[tuple[Place, int], str]:
  """Places and seeds at which two arms are no pair -> why, a predicate."""
  return {
    (place, seed): why
    for place in places(rows)
    for seed, why in _refused(_common(rows, place, arm, reference)).items()
  }


def _common(
  rows: Sequence[R], place: Place, arm: str, reference: str
) -> dict[int, tuple[R, R]]:
  x, y = at(rows, place, arm), at(rows, place, reference)
  return {seed: (x[seed], y[seed]) for seed in x if seed in y}


def _refused(common: Mapping[int, tuple[Row, Row]]) -> dict[int, str]:
  """Seeds whose runs are no pair -> why."""
  found = {s: why for s, both in common.items() if (why := _why_no_pair(*both))}
  if any(row.get('folds') for both in common.values() for row in both):
    return found
  images = {
    seed: answers.images
    for seed, (row, _) in common.items()
    if seed not in found and (answers := row.get('answers')) is not None
  }
  usual = collections.Counter(images.values()).most_common(1)
  # Images of its own for each seed, or for a few, are meant to be so.
  if usual and 2 * usual[0][1] > len(images):
    for seed, name in images.items():
      if name != usual[0][0]:
        found[seed] = 'were tested on other images than most seeds'
  return found


def _why_no_pair(x: Row, y: Row) -> str:
  ours, theirs = x.get('answers'), y.get('answers')
  if ours is not None and theirs is not None and not ours.same_images(theirs):
    return 'have no predictions of the same test images'
  made, other = x.get('made'), y.get('made')
  if made is None or other is None:
    return ''
  differing = not_alike(made, other, _ALIKE)
  if not differing:
    return ''
  return f'were not made alike ({", ".join(differing)})'


def not_alike(
  made: Mapping[str, Any], other: Mapping[str, Any], keys: Sequence[str]
) -> list[str]:
  """Keys in which two runs were made differently, of those that both say."""
  both = [key for key in keys if key in made and key in other]
  return [key for key in both if made[key] != other[key]]


def value(row: Row, metric: str) -> float:
  """A metric on test; NaN where it is undefined or infinite."""
  found = row['test'][metric]
  if found is None or not math.isfinite(found):
    return math.nan
  return float(found)


def values(
  rows: Sequence[Row], place: Place, arm: str, metric: str
) -> np.ndarray:
  """A metric on test over the seeds of an arm at a place, float64 [k]."""
  return np.array([value(r, metric) for r in at(rows, place, arm).values()])
