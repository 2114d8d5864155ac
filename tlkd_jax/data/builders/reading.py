"""The rules: which of a tree's folders are splits, and which are classes.

    ROOT/train/cat/1.png    ROOT/train/images/cat/1.png   split, then class
    ROOT/images/train/cat/1.png
    ROOT/cat/train/1.png    ROOT/images/cat/train/1.png   class, then split
    ROOT/cat/1.png                                        classes; we split

What can be read in two ways is refused, and nothing is dropped without a word.
"""

import collections
import dataclasses
import unicodedata
from collections.abc import Iterable, Sequence

from tlkd_jax.data import transforms
from tlkd_jax.data.builders import split_words
from tlkd_jax.data.builders.walk import File, Parts, Tree

_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Plan:
  """A reading of a tree.

  Attributes:
    top: the folders in which everything lies.
    homes: folder -> (split, class) of all images in it, at any depth.
    notes: as in a Listing.
  """

  top: Parts
  homes: dict[Parts, tuple[str, str]]
  notes: list[str]


def read(tree: Tree, files: list[File]) -> Plan:
  """The one way in which a tree's folders can be read.

  Args:
    tree: the folders.
    files: its images.

  Raises:
    ValueError: there is none, or there are two.
  """
  return _Reading(tree, files).plan()


def names_of(names: Sequence[str], most: int = 10) -> str:
  """Names in quotes; of a longer list the rest is counted."""
  more = f', ... ({len(names) - most} more)' if len(names) > most else ''
  return ', '.join(map(repr, names[:most])) + more


def _slashed(names: Iterable[str]) -> str:
  names = list(names)
  more = f', ... ({len(names) - _SHOWN} more)' if len(names) > _SHOWN else ''
  return ', '.join(f'{name}/' for name in names[:_SHOWN]) + more


class _Reading:
  """Looks at the folders of one tree."""

  def __init__(self, tree: Tree, files: list[File]):
    self._where = f'folder:{tree.location}'
    self._direct = collections.Counter(file.parts[:-1] for file in files)
    self._below: collections.Counter[Parts] = collections.Counter()
    for folder, count in self._direct.items():
      for depth in range(len(folder) + 1):
        self._below[folder[:depth]] += count
    self._children = collections.defaultdict(list)
    for folder in sorted(tree.folders | set(self._below)):
      if folder:
        self._children[folder[:-1]].append(folder[-1])

  def plan(self) -> Plan:
    """The one way in which the folders can be read.

    Raises:
      ValueError: there is none, or there are two.
    """
    if not self._below:
      raise self._no_classes()
    top = self._descend(())
    plan = self._splits(top) or self._splits_inside(top) or self._classes(top)
    if not plan.homes:
      raise self._no_classes()
    return plan

  def _no_classes(self) -> ValueError:
    return ValueError(
      f'{self._where}: no class folders; expected train/<class>/<image> or '
      f'<class>/<image>, images ending in {transforms.ENDINGS}'
    )

  def _filled(self, folder: Parts) -> list[str]:
    """Sub-folders with images at any depth."""
    children = self._children[folder]
    return [c for c in children if self._below[(*folder, c)]]

  def _descend(self, top: Parts) -> Parts:
    """Steps into folders that only wrap: a zip's own name, 'images'."""
    while len(found := self._filled(top)) == 1:
      inner = (*top, found[0])
      alone = len(self._children[top]) == 1
      if not self._filled(inner):
        break
      means = split_words.read(found[0])
      if means and not means.rest and not self._has_splits(inner):
        break
      wraps = split_words.is_container(found[0]) or self._has_splits(inner)
      if not (alone or wraps):
        break
      top = inner
    return top

  def _has_splits(self, folder: Parts) -> bool:
    """Whether sub-folders are named as splits and hold class folders."""
    for name in self._filled(folder):
      means = split_words.read(name)
      if means and not means.rest and self._filled((*folder, name)):
        return True
    return False

  def _unwrapped(self, folder: Parts, own: str) -> Parts:
    """Where the classes of a split lie: split/images/class, split/split/."""
    while len(found := self._filled(folder)) == 1:
      inner = (*folder, found[0])
      means = split_words.read(found[0])
      container = split_words.is_container(found[0])
      wraps = container or (means is not None and means.split == own)
      # A class may be called as its split, which then has no class folders.
      only_class = not container and not self._filled(inner)
      if not wraps or self._direct[folder] or only_class:
        break
      folder = inner
    return folder

  def _splits(self, top: Parts) -> Plan | None:
    """Splits that hold classes; None if there are none at this level."""
    meant = self._meant(top)
    if not meant:
      return None
    bases = {n: self._unwrapped((*top, n), s) for n, s in meant.items()}
    classes = {name: self._children[base] for name, base in bases.items()}
    deep = [name for name in meant if self._filled(bases[name])]
    flat = [n for n in meant if n not in deep and self._below[(*top, n)]]
    others = [name for name in self._filled(top) if name not in meant]
    if not deep:
      self._check_flat(meant, flat, others)
      return None
    if flat:
      raise ValueError(
        f'{self._where}: {_slashed(flat)} holds images without class folders, '
        f'{_slashed(deep)} has class folders. Images without labels are no '
        'split: move them elsewhere (distillation.unlabelled can use them) or '
        'give them labels'
      )
    if not others and len(meant) == 1:
      # train/train/1.png and train/test/1.png: splits in a wrapper.
      inside = self._meant(bases[deep[0]])
      self._check_flat(inside, list(inside), others=classes[deep[0]])
    self._check_twice(meant)
    self._check_others(top, meant, classes, others)
    homes = {
      (*base, name): (meant[split_folder], _class_name(name))
      for split_folder, base in bases.items()
      for name in self._children[base]
    }
    empty = [n for n in meant if not self._children[bases[n]]]
    if empty:
      raise ValueError(
        f'{self._where}: {_slashed(empty)} beside {_slashed(deep)} holds no '
        'image. Fill it, or take it away to have one cut from train'
      )
    notes = [
      f'{name}/ is read as {split}'
      for name, split in sorted(meant.items(), key=lambda pair: pair[1])
      if name != split
    ]
    return Plan(top, homes, notes)

  def _meant(self, top: Parts) -> dict[str, str]:
    """Folder -> split, of those whose name or company says so."""
    read = {name: split_words.read(name) for name in self._children[top]}
    certain = {n: m.split for n, m in read.items() if m and not m.rest}
    below = {
      name: set(self._filled(self._unwrapped((*top, name), means.split)))
      for name, means in read.items()
      if means
    }
    company = {}
    for name, means in read.items():
      if not means or not means.rest:
        continue
      for other, theirs in read.items():
        if (
          theirs
          and theirs.split != means.split
          and theirs.rest in ((), means.rest)
          and below[name] & below[other]
        ):
          company[name] = means.split
    return certain | company

  def _check_flat(self, meant, flat, others) -> None:
    """Folders named as splits without class folders: splits or classes?"""
    splits = {meant[name] for name in flat}
    if len(splits) > 1 or (flat and not others and len(flat) == 1):
      raise ValueError(
        f'{self._where}: no class folders in {_slashed(flat)}. As splits they '
        'lack class folders, train/<class>/<image>; if they are classes, '
        'rename them so that they are not taken for splits'
      )

  def _check_twice(self, meant: dict[str, str]) -> None:
    by_split = collections.defaultdict(list)
    for name, split in meant.items():
      by_split[split].append(name)
    for names in by_split.values():
      if len(names) > 1:
        raise ValueError(f'{self._where}: {names} name one split twice')

  def _check_others(self, top, meant, classes, others) -> None:
    """Refuses what stands beside splits and may be one, or a class."""
    shared = {c for found in classes.values() for c in found}
    alike = [n for n in others if shared & set(self._filled((*top, n)))]
    plain = [n for n in others if not split_words.is_unlabelled(n)]
    if len(set(meant.values())) > 1 and not alike:
      return
    doubtful = alike or plain
    if alike and len(set(meant.values())) > 1:
      raise ValueError(
        f'{self._where}: {_slashed(alike)} has class folders as '
        f'{_slashed(meant)} has, and its name is no split that is known. '
        'Rename it to train, validation or test, or move it elsewhere'
      )
    if doubtful:
      raise ValueError(
        f'{self._where}: {_slashed(meant)} can be read as a split with the '
        f'classes {names_of(sorted(shared), _SHOWN)}, or as a class beside '
        f'{_slashed(doubtful)}. If it is a split, rename {_slashed(doubtful)} '
        'to train, validation or test, or move it elsewhere; if it is a class, '
        'rename it'
      )

  def _splits_inside(self, top: Parts) -> Plan | None:
    """Classes that hold splits; None if they do not."""
    classes = self._filled(top)
    inside = {}
    for name in classes:
      found = self._filled((*top, name))
      pairs = {n: s for group in _families(found).values() for n, s in group}
      plain = {n: split_words.read(n) for n in found}
      inside[name] = pairs | {
        n: m.split for n, m in plain.items() if m and not m.rest
      }
    whole = [
      name
      for name in classes
      if inside[name]
      and len(inside[name]) == len(self._filled((*top, name)))
      and not self._direct[(*top, name)]
    ]
    if len(whole) < len(classes) or not classes:
      self._check_partly(top, classes, inside)
      return None
    homes: dict[Parts, tuple[str, str]] = {}
    for name in classes:
      self._check_twice(inside[name])
      for folder, split in inside[name].items():
        base = (*top, name, folder)
        held = self._filled(base)
        if (
          held
          and not self._direct[base]
          and not (len(held) == 1 and split_words.is_container(held[0]))
        ):
          raise ValueError(
            f'{self._where}: {name}/{folder}/ holds folders ({_slashed(held)}) '
            f'and no images: {_slashed(classes)} can be read as classes with '
            'splits inside, or as data sets beside each other. Give the folder '
            'of one data set'
          )
        homes[base] = (split, _class_name(name))
      for folder in self._children[(*top, name)]:
        means = split_words.read(folder)
        if means and not means.rest:
          home = (means.split, _class_name(name))
          homes.setdefault((*top, name, folder), home)
    empty = [n for n in self._children[top] if n not in classes]
    homes |= {(*top, n): ('train', _class_name(n)) for n in empty}
    return Plan(top, homes, ['splits are read inside of the class folders'])

  def _check_partly(self, top, classes, inside) -> None:
    for name in classes:
      if len(set(inside[name].values())) > 1 or (
        inside[name]
        and self._direct[(*top, name)]
        and len(classes) > 1
        and all(inside.values())
      ):
        raise ValueError(
          f'{self._where}: {name}/ holds {_slashed(inside[name])}, which look '
          'like splits, but there are images beside them or class folders '
          'without them. Put all images into splits, or rename those folders'
        )

  def _classes(self, top: Parts) -> Plan:
    """Class folders; what is missing is cut."""
    names = self._children[top]
    for group in _families(names).values():
      raise ValueError(
        f'{self._where}: {_slashed(n for n, _ in group)} look like splits of '
        'one class. Put their images into train/<class>/ and test/<class>/, or '
        'rename them'
      )
    below = [frozenset(self._filled((*top, name))) for name in names]
    notes = []
    direct = any(self._direct[(*top, name)] for name in names)
    if len(names) > 1 and len(below[0]) > 1 and len(set(below)) == 1:
      if not direct:
        text = (
          f'{_slashed(names)} all hold the folders '
          f'{names_of(sorted(below[0]), _SHOWN)}'
        )
        if all(map(split_words.is_numbered_part, names)):
          raise ValueError(
            f'{self._where}: {text}: they look like parts of one data set with '
            'these classes. Name them train, validation and test'
          )
        notes.append(f'{text}; the outer folders are read as the classes')
    homes = {(*top, n): ('unsplit', _class_name(n)) for n in names}
    return Plan(top, homes, notes)


def _families(names) -> dict[tuple[str, ...], list[tuple[str, str]]]:
  """Words -> [(name, split)] of names that differ in the split alone."""
  found = collections.defaultdict(list)
  for name in names:
    means = split_words.read(name)
    if means and means.rest:
      found[means.rest].append((name, means.split))
  return {
    rest: group
    for rest, group in found.items()
    if len({split for _, split in group}) > 1
  }


def _class_name(name: str) -> str:
  # A Mac's spelling of accents is another sequence of characters, and TFDS
  # stores names without the spaces around them.
  return unicodedata.normalize('NFC', name.strip())
