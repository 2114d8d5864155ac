"""From rows of a table to images with labels and splits, or a refusal.

What is doubtful is refused with the place: several labels for an image, a label
that is missing, two spellings of one number.
"""

import collections
import dataclasses
import hashlib
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from tlkd_jax.data.builders.headers import read_split
from tlkd_jax.data.builders.tables import shown
from tlkd_jax.data.builders.walk import File, LeftOut

# Separators of several labels in a cell: the first two are hardly anything
# else, the others are parts of names too.
_STRONG = (';', '|')
_WEAK = (',', '/', '+', '&', None)
_LIST = re.compile(r'\[.*\]|[({].*,.*[)}]', re.DOTALL)
# What programs write where there is nothing; in JSON it is null.
_NO_LABELS = frozenset(('nan', '<na>', '#n/a', '#na', 'nat'))
_NUMBER = re.compile(r'[+-]?\d+(\.\d*)?')


class Example(NamedTuple):
  """One image: its name, the number of its class, and where its bytes are."""

  name: str
  label: int
  file: File


@dataclasses.dataclass(frozen=True)
class Labelled:
  """Images with classes and splits, unread.

  Attributes:
    where: the data set's name, for messages.
    class_names: K names, numbers in their own order.
    splits: any of 'train', 'validation' and 'test', or 'unsplit' alone, to the
      examples.
    left_out: what is there and is not used.
    notes: what a reader should know, one sentence each.
    read: some of a split's files in order -> their bytes, one by one.
  """

  where: str
  class_names: list[str]
  splits: dict[str, list[Example]]
  left_out: list[LeftOut]
  notes: list[str]
  read: Callable[[Iterable[File]], Iterator[bytes]]

  @property
  def fingerprint(self) -> str:
    """Changes with every image, label or split that is another one."""
    digest = hashlib.sha256(repr(self.class_names).encode())
    for split, examples in sorted(self.splits.items()):
      digest.update(split.encode())
      for name, label, file in examples:
        digest.update(repr((name, label, file.size, file.stamp)).encode())
    return digest.hexdigest()[:16]

  @property
  def num_bytes(self) -> int:
    """Size of all images."""
    found = self.splits.values()
    return sum(one.file.size for examples in found for one in examples)


class Row(NamedTuple):
  """A line about an image.

  Attributes:
    place: 'line 7' or the like, for messages.
    name: of the image, the same for the same image.
    label: as it stands there.
    split: likewise, None where nothing speaks of splits.
    file: the image.
    folders: that it lies in, which may speak of splits where nothing else does.
  """

  place: str
  name: str
  label: Any
  split: str | None
  file: File
  folders: tuple[str, ...] = ()


def arrange(
  where: str,
  rows: list[Row],
  read: Callable[[Iterable[File]], Iterator[bytes]],
  *,
  class_names: Iterable[str] | None = None,
  left_out: Iterable[LeftOut] = (),
  notes: Iterable[str] = (),
) -> Labelled:
  """Sorts rows into splits and classes.

  Args:
    where: the data set's name, for messages.
    rows: at least one for each image.
    read: as in Labelled.
    class_names: in their order, where the data say it; those without images are
      none.
    left_out: likewise.
    notes: likewise, these come first.

  Raises:
    ValueError: a label or split that is missing or doubtful, or several labels
      for one image.
  """
  if not rows:
    raise ValueError(f'{where}: no images')
  texts = _label_texts(where, rows, whole=class_names is not None)
  notes = [*notes]
  if _from_folders(rows):
    rows = [row._replace(split=split_above(row.folders)) for row in rows]
    notes.append('splits are read from the folders of the images')
  splits = _splits(where, rows)
  kept, repeated = _once(where, rows, texts, splits)
  present = {texts[k] for k in kept}
  names = class_order(where, present)
  if class_names is not None:
    told = [_as_text(name) for name in class_names]
    _check_different(where, told)
    names = [name for name in told if name in present]
    unused = [name for name in told if name not in present]
    if unused:
      notes.append(f'classes without images, left out: {shown(unused)}')
  number = {name: k for k, name in enumerate(names)}
  found: dict[str, list[Example]] = {}
  for k in kept:
    example = Example(rows[k].name, number[texts[k]], rows[k].file)
    found.setdefault(splits[k], []).append(example)
  notes += alike(names)
  if repeated:
    notes.append(f'{repeated} rows repeat another one and count once')
  return Labelled(where, names, found, [*left_out], notes, read)


def check_classes(labelled: Labelled) -> None:
  """Checks what is to be trained on.

  Raises:
    ValueError: there is no train, one class only, or a class that train lacks.
  """
  where, found = labelled.where, labelled.splits
  names = labelled.class_names
  main = 'unsplit' if 'unsplit' in found else 'train'
  if main not in found:
    raise ValueError(
      f'{where}: the splits are {shown(sorted(found))}, none of them train'
    )
  if len(names) < 2:
    raise ValueError(f'{where}: one class only ({names[0]!r})')
  learned = {example.label for example in found[main]}
  for split, examples in found.items():
    unknown = sorted({example.label for example in examples} - learned)
    if unknown:
      listed = ', '.join(repr(names[k]) for k in unknown[:10])
      raise ValueError(
        f'{where}: class {listed} is in {split} but not in train'
      )


def _label_texts(where: str, rows: list[Row], *, whole: bool) -> list[str]:
  """One class for each row; `whole` labels are not looked into."""
  texts = [_as_text(row.label) for row in rows]
  if not whole:
    texts = [None if (t or '').lower() in _NO_LABELS else t for t in texts]
  several = [
    row
    for row, text in zip(rows, texts, strict=True)
    if isinstance(row.label, list | tuple | dict | set)
    or (text is not None and _LIST.fullmatch(text))
  ]
  if several:
    raise _multi_label(where, several[0], len(several), 'a list')
  missing = [
    row.place for row, text in zip(rows, texts, strict=True) if not text
  ]
  if missing:
    raise ValueError(
      f'{where}: no label in {shown(missing)}; images without one belong '
      'elsewhere (distillation.unlabelled can use them)'
    )
  found = [text for text in texts if text]
  joined = None if whole else _joined(set(found))
  if joined:
    cells, separator = joined
    first = next(r for r, t in zip(rows, found, strict=True) if t in cells)
    count = sum(text in cells for text in found)
    how = 'spaces' if separator is None else repr(separator)
    raise _multi_label(where, first, count, f'labels separated by {how}')
  return found


def _as_text(value: Any) -> str | None:
  """A cell as the name of a class; None if it is empty."""
  if value is None or (isinstance(value, float) and math.isnan(value)):
    return None
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, float) and value.is_integer():
    return str(int(value))
  # A Mac's spelling of accents is another sequence of characters.
  text = unicodedata.normalize('NFC', str(value).strip())
  return text or None


def _multi_label(where: str, row: Row, count: int, how: str) -> ValueError:
  return ValueError(
    f'{where}: {count} cells hold {how}, such as {str(row.label)!r} in '
    f'{row.place}. Multi-label data sets are not for this: an image must have '
    'one class'
  )


def _joined(cells: set[str]) -> tuple[set[str], str | None] | None:
  """Cells that join several labels, and by what; None if none does.

  A cell does if its parts are labels of other rows. ';' and '|' are no parts
  of names: one such part is enough, or one that stands in different places
  ('cat;dog', 'dog;owl'), which it does not in a taxonomy.
  """
  for separator in (*_STRONG, *_WEAK):
    parts = {cell: [p.strip() for p in cell.split(separator)] for cell in cells}
    several = {
      cell: [part for part in found if part]
      for cell, found in parts.items()
      if len(set(found)) > 1
    }
    enough = any if separator in _STRONG else all
    found = {c for c, own in several.items() if enough(p in cells for p in own)}
    if not found and separator in _STRONG:
      places = collections.defaultdict(set)
      for own in several.values():
        for part in set(own):
          places[part].add(own.index(part))
      moving = {part for part, at in places.items() if len(at) > 1}
      found = {c for c, own in several.items() if moving & set(own)}
    if found:
      return found, separator
  return None


def split_above(folders: tuple[str, ...]) -> str | None:
  """The folder that names a split, the outermost; None if there is none."""
  return next((name for name in folders if read_split(name)), None)


def _from_folders(rows: list[Row]) -> bool:
  """Whether folders part the images into splits, and nothing else does."""
  if any(row.split is not None for row in rows):
    return False
  return len({read_split(split_above(r.folders) or '') for r in rows}) > 1


def _splits(where: str, rows: list[Row]) -> list[str]:
  """The split of each row, 'unsplit' for all if nothing speaks of splits."""
  words = {row.split for row in rows}
  if words == {None}:
    return ['unsplit'] * len(rows)
  meant = {word: read_split(word) for word in words if word}
  empty = [row.place for row in rows if not row.split]
  if empty:
    raise ValueError(
      f'{where}: no split in {shown(empty)}, others have one '
      f'({shown(sorted(meant))})'
    )
  unknown = sorted(word for word, split in meant.items() if split is None)
  if unknown:
    raise ValueError(
      f'{where}: split {", ".join(map(repr, unknown[:5]))}; accepted: train, '
      'validation, test, or words like these (docs/data.md)'
    )
  return [str(meant[row.split or '']) for row in rows]


def _once(where, rows, texts, splits) -> tuple[list[int], int]:
  """Each image once: positions of the rows to keep, how many repeat them."""
  first: dict[str, int] = {}
  repeated = 0
  for k, row in enumerate(rows):
    other = first.setdefault(row.name, k)
    if other == k:
      continue
    repeated += 1
    for what, values in (('labels', texts), ('splits', splits)):
      if values[k] != values[other]:
        also = (
          ''
          if what == 'splits'
          else (
            '. Multi-label data sets are not for this: an image must have one '
            'class'
          )
        )
        raise ValueError(
          f'{where}: {row.name} has two {what}, {values[other]!r} in '
          f'{rows[other].place} and {values[k]!r} in {row.place}{also}'
        )
  return list(first.values()), repeated


def class_order(where: str, names: Iterable[str]) -> list[str]:
  """Class names in order; numbers in that of their values.

  Raises:
    ValueError: two spellings of one number.
  """
  names = sorted(names)
  if not all(map(_NUMBER.fullmatch, names)):
    return names
  by_value: dict[float, str] = {}
  for name in names:
    other = by_value.setdefault(float(name), name)
    if other != name:
      raise ValueError(
        f'{where}: labels {other!r} and {name!r} are one number; write it in '
        'one way'
      )
  return [by_value[value] for value in sorted(by_value)]


def _check_different(where: str, names: list[str | None]) -> None:
  counted = collections.Counter(names)
  twice = sorted(str(name) for name, count in counted.items() if count > 1)
  if twice:
    raise ValueError(
      f'{where}: {shown(twice)} is the name of several classes; rename them'
    )


def alike(names: Iterable[str]) -> list[str]:
  """Notes on names that are probably meant to be one."""
  groups = collections.defaultdict(list)
  for name in names:
    groups[' '.join(re.split(r'[\s_-]+', name.casefold()))].append(name)
  return [
    f'classes {", ".join(map(repr, group))} differ in case or separators alone'
    for group in groups.values()
    if len(group) > 1
  ]
