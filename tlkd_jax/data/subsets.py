"""Which examples go where: stable, stratified, nested choices.

All choices order the examples of a class by a hash of (salt, name) and take
the first ones. So they do not depend on the order of files on disk, on the
number of classes or on the platform, and a smaller choice is always contained
in a larger one.
"""

import collections
import hashlib

import numpy as np

from tlkd_jax.data.index import NO_DIGEST


def stable_order(names: list[str], salt: str) -> np.ndarray:
  """Returns int64[N]: positions of `names` in a salted pseudo-random order."""
  keys = [(_digest(f'{salt}\0{name}'), name) for name in names]
  return np.asarray(sorted(range(len(keys)), key=keys.__getitem__), np.int64)


def _digest(text: str) -> bytes:
  data = text.encode('utf-8', 'surrogateescape')
  return hashlib.blake2b(data, digest_size=16).digest()


def class_orders(
  names: list[str], labels: np.ndarray, num_classes: int, salt: str
) -> list[np.ndarray]:
  """Per class, the rows of its examples in `stable_order`."""
  order = stable_order(names, salt)
  ordered_labels = np.asarray(labels)[order]
  return [order[ordered_labels == c] for c in range(num_classes)]


def cut(
  names: list[str],
  labels: np.ndarray,
  class_names: list[str],
  fractions: dict[str, float],
  salt: str = 'split',
  digests: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
  """Cuts parts off a set, stratified, the same on every machine and run.

  Args:
    names: stable name of each example.
    labels: int[N].
    class_names: K names; each class must be able to give every part one
      example and keep one.
    fractions: the share of each class that each part takes (rounded, at least
      one example).
    salt: another salt makes another cut.
    digests: uint64[N], of the files; those of a class that are alike go to one
      part, which may be larger by some copies then.

  Returns:
    part -> sorted rows, and 'train' -> the rest. Disjoint, together all rows.

  Raises:
    ValueError: for a class with too few examples that differ.
  """
  labels = np.asarray(labels)
  part_of = np.zeros(labels.size, np.int8)
  orders = class_orders(names, labels, len(class_names), salt)
  for class_name, order in zip(class_names, orders, strict=True):
    alike = collections.deque(_with_copies(names, order, digests))
    if len(alike) <= len(fractions):
      once = ', exact copies counted once' * int(len(alike) < order.size)
      raise ValueError(
        f'class {class_name!r} has {len(alike)} images{once}; to cut '
        f'{" and ".join(fractions)} from train it needs at least '
        f'{len(fractions) + 1}'
      )
    for number, fraction in enumerate(fractions.values(), 1):
      later, taken = 1 + len(fractions) - number, 0
      while taken < max(1, round(fraction * order.size)) and len(alike) > later:
        part_of[alike[0]] = number
        taken += alike.popleft().size
  parts = dict(enumerate(['train', *fractions]))
  return {part: np.flatnonzero(part_of == n) for n, part in parts.items()}


def cut_folds(
  names: list[str],
  labels: np.ndarray,
  class_names: list[str],
  count: int,
  digests: np.ndarray | None = None,
) -> np.ndarray:
  """The fold of each example, stratified, the same on every machine and run.

  Args:
    names: stable name of each example.
    labels: int[N].
    class_names: K names.
    count: of folds, whose sizes differ by one within a class and over all, but
      for copies.
    digests: as of `cut`; those of a class that are alike are in one fold.

  Returns:
    int32[N], from 0 to count - 1.

  Raises:
    ValueError: for classes with fewer examples that differ than folds.
  """
  fold_of = np.zeros(np.asarray(labels).size, np.int32)
  orders = class_orders(names, labels, len(class_names), 'folds')
  first, short = 0, []
  for class_name, order in zip(class_names, orders, strict=True):
    alike = _with_copies(names, order, digests)
    if len(alike) < count:
      once = f' ({order.size} with exact copies)' * (len(alike) < order.size)
      short.append(f'{class_name!r} has {len(alike)}{once}')
    for number, rows in enumerate(alike):
      fold_of[rows] = (first + number) % count
    # The next class goes on, so that folds are of one size.
    first += len(alike)
  if short:
    raise ValueError(
      f'{count} folds need as many images of each class, one to test in each: '
      f'class {", ".join(short)}; accepted: fewer folds, at least 2, or more '
      'images'
    )
  return fold_of


def _with_copies(
  names: list[str], order: np.ndarray, digests: np.ndarray | None
) -> list[np.ndarray]:
  """The rows of a class in their order; copies at the place of one of them."""
  copies: dict[int, list[int]] = {}
  rows = order.tolist()
  if digests is not None:
    for row, digest in zip(rows, digests[order].tolist(), strict=True):
      if digest != NO_DIGEST:
        copies.setdefault(digest, []).append(row)
  # By name: in the order of cutting, the first would be in test more often.
  found = {
    min(alike, key=names.__getitem__): alike for alike in copies.values()
  }
  others = {row for alike in found.values() for row in alike} - found.keys()
  return [np.asarray(found.get(r, [r])) for r in rows if r not in others]


def subset_counts(
  class_sizes: np.ndarray,
  class_names: list[str],
  num_per_class: int | None = None,
  fraction: float = 1.0,
) -> np.ndarray:
  """How many examples of each class a train subset takes.

  Args:
    class_sizes: int[K], the examples each class has.
    class_names: K names, for the message.
    num_per_class: so many of each class, or None.
    fraction: this share of each class (rounded, at least one), in (0, 1].

  Returns:
    int64[K].

  Raises:
    ValueError: if both are given, one is out of range, or a class holds fewer
      than `num_per_class`.
  """
  sizes = np.asarray(class_sizes, np.int64)
  if not 0 < fraction <= 1:
    raise ValueError(f'train_fraction is {fraction}; it must be in (0, 1]')
  if num_per_class is None:
    rounded = np.rint(fraction * sizes).astype(np.int64)
    return np.maximum(rounded, np.minimum(sizes, 1))
  if fraction != 1:
    raise ValueError(
      f'num_train_per_class={num_per_class} and train_fraction={fraction} '
      'are both set; give one of them'
    )
  if num_per_class < 1:
    raise ValueError(
      f'num_train_per_class is {num_per_class}; it must be at least 1'
    )
  short = np.flatnonzero(sizes < num_per_class)
  if short.size:
    held = ', '.join(f'{class_names[c]!r} has {sizes[c]}' for c in short[:10])
    raise ValueError(
      f'num_train_per_class={num_per_class} is more than a class holds in '
      f'train: {held}; at most {sizes.min()} is possible'
    )
  return np.full_like(sizes, num_per_class)
