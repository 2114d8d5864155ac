"""Step 1: what the data are, and whether one test split of them will do."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from tlkd_jax.data import Fold, facts, near_copies, sources, transforms
from tlkd_jax.data.index import Source
from tlkd_jax.settings import Settings
from tlkd_jax.training import decoding

# Where we cut the test split, and it has fewer images of some class, the set is
# cut into folds instead, so that all images are tested.
LEAST_TEST = 30
FOLDS = 5
# Looking for near copies compares every pair.
_MOST_COMPARED = 5000
_LOOKED_AT = 64
_UNEQUAL = 3


def open_data(settings: Settings, folds: int = 0) -> sources.Sources:
  """The data undecoded, with the splits of the first fold if there are folds.

  Raises:
    ValueError, FileNotFoundError: see sources.open_sources.
  """
  section = settings.data
  return sources.open_sources(
    settings.dataset,
    data_dir=section.data_dir,
    cache_dir=section.cache_dir,
    labelling=decoding.labelling(settings),
    fold=Fold(0, folds) if folds else None,
  )


def num_folds(found: sources.Sources) -> int:
  """Folds that a set should be cut into; 0 where its test split will do.

  Raises:
    ValueError: a class with too few images for either.
  """
  if {'test', 'validation'} & {*found.given}:
    return 0
  kinds = len(found.class_names)
  tested = np.bincount(found.splits['test'].labels, minlength=kinds)
  if tested.min() >= LEAST_TEST:
    return 0
  labels = np.concatenate([split.labels for split in found.splits.values()])
  digests = np.concatenate([split.digests for split in found.splits.values()])
  differing = [np.unique(digests[labels == k]).size for k in range(kinds)]
  fewest = int(np.argmin(differing))
  if differing[fewest] < FOLDS:
    raise ValueError(
      f'class {found.class_names[fewest]!r} has {differing[fewest]} images '
      f'that differ, too few for advice; accepted: at least {FOLDS} of each '
      'class, or a test split of its own'
    )
  return FOLDS


def look(settings: Settings) -> dict[str, Any]:
  """What a set holds, as JSON takes it.

  Args:
    settings: of a run of it.

  Returns:
    'lines' in words; 'folds', see num_folds; 'classes'; 'counts' and
    'smallest', split -> images and those of the smallest class; 'images' of all
    splits; 'side', the median short side of some files in pixels, 0 if unknown.

  Raises:
    ValueError, FileNotFoundError: see open_data, num_folds.
  """
  found = open_data(settings)
  folds = settings.data.folds or num_folds(found)
  if folds:
    found = open_data(settings, folds)
  labels = {name: split.labels for name, split in found.splits.items()}
  held = facts.collect(found, labels)
  counts = {name: len(split.names) for name, split in found.splits.items()}
  sides = _sides(found.splits['train'])
  lines = facts.lines(settings.dataset, held, found.notes)[1:]
  if folds:
    lines = [lines[0], *_about_folds(found, folds), *facts.copies_lines(held)]
  lines += _about_sides(sides) + _about_balance(labels['train'])
  lines += _near(_parts(settings, found, folds), sum(counts.values()))
  kinds = len(found.class_names)
  return {
    'lines': lines,
    'folds': folds,
    'classes': kinds,
    'counts': counts,
    'smallest': {
      name: int(np.bincount(own, minlength=kinds).min())
      for name, own in labels.items()
    },
    'images': sum(counts.values()),
    'side': int(np.median(sides)) if sides else 0,
  }


def seconds(settings: Settings) -> float:
  """About how long `look` takes, by some files that are decoded."""
  found = open_data(settings).splits
  count = sum(len(split.names) for split in found.values())
  rows = np.linspace(0, len(found['train'].names) - 1, 8).astype(int)
  begun = time.monotonic()
  for row in rows.tolist():
    transforms.decode_image(found['train'].read(row))
  each = (time.monotonic() - begun) / len(rows)
  return 1 + each * (count if count <= _MOST_COMPARED else 0)


def _sides(source: Source) -> list[int]:
  """Short sides of some files, in pixels."""
  rows = np.linspace(0, len(source.names) - 1, _LOOKED_AT).astype(int)
  found = [
    transforms.short_side_of(source.read(row))
    for row in np.unique(rows).tolist()
  ]
  return [side for side in found if side is not None]


def _about_sides(sides: list[int]) -> list[str]:
  if not sides:
    return []
  low, high = min(sides), max(sides)
  if low == high:
    return [f'short side {low} px']
  return [f'short side {low} to {high} px, median {int(np.median(sides))}']


def _about_balance(labels: np.ndarray) -> list[str]:
  counts = np.bincount(labels)
  if counts.max() < _UNEQUAL * counts.min():
    return []
  return [
    f'the largest class has {counts.max() / counts.min():.1f} times the '
    'images of the smallest: accuracy is mostly that of large classes, macro '
    'F1 stands beside it'
  ]


def _about_folds(found: sources.Sources, folds: int) -> list[str]:
  labels = np.concatenate([split.labels for split in found.splits.values()])
  counts = np.bincount(labels)
  low, high = int(counts.argmin()), int(counts.argmax())
  names = found.class_names
  each = f'{counts[low]} of each class'
  if counts[low] < counts[high]:
    each = f'{counts[low]} ({names[low]}) to {counts[high]} ({names[high]})'
  return [
    f'{labels.size} images, {each}',
    f'one split would have fewer than {LEAST_TEST} test images of a class: the '
    f'images are cut into {folds} folds, so that every one is tested '
    '(data.folds)',
    *facts.left_out_lines(found.left_out),
  ]


def _parts(
  settings: Settings, found: sources.Sources, folds: int
) -> Mapping[str, Source]:
  """What must not hold the same picture: splits, or the test sets of folds."""
  if not folds:
    return found.splits
  section = settings.data
  return {
    f'fold {number}': sources.open_sources(
      settings.dataset,
      data_dir=section.data_dir,
      cache_dir=section.cache_dir,
      labelling=decoding.labelling(settings),
      fold=Fold(number, folds),
    ).splits['test']
    for number in range(folds)
  }


def _near(parts: Mapping[str, Source], count: int) -> list[str]:
  if count > _MOST_COMPARED:
    return [
      f'near copies were not looked for among more than {_MOST_COMPARED:,} '
      'images (data.near_duplicates of a run does)'
    ]
  try:
    rows = {name: np.arange(len(part.names)) for name, part in parts.items()}
    found = near_copies.find(parts, rows)
  except (OSError, ValueError) as error:
    return [f'near copies were not looked for: {error}']
  if not found:
    return ['beside exact copies no image looks like one of an earlier part']
  return [
    f'{one["count"]} images of {one["split"]} look like images of an earlier '
    f'one (beside exact copies), such as {" ~ ".join(one["example"])}'
    for one in found
  ]
