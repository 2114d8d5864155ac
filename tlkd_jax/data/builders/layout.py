"""The images of a folder or archive, sorted into splits and classes."""

import dataclasses
import hashlib
from collections.abc import Callable

from tlkd_jax.data import transforms
from tlkd_jax.data.builders import labels, reading, walk
from tlkd_jax.data.builders.reading import Plan, names_of
from tlkd_jax.data.builders.walk import File, LeftOut, Parts, Tree

_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Listing:
  """Images with their splits and classes, unread.

  Attributes:
    location: what the user gave, for messages.
    files: split -> class -> [(name of the example, its file)] in order; the
      one split 'unsplit' if we are to split.
    left_out: what is there and is not used.
    notes: what a reader should know, one sentence each.
    read: file -> its bytes, or a reason in their place; see walk.read_image.
  """

  location: str
  files: dict[str, dict[str, list[tuple[str, File]]]]
  left_out: list[LeftOut]
  notes: list[str]
  read: Callable[[File], bytes]

  @property
  def fingerprint(self) -> str:
    """Changes with every file that is added, removed, altered or moved."""
    digest = hashlib.sha256()
    for split, classes in sorted(self.files.items()):
      for class_name, files in sorted(classes.items()):
        digest.update(repr((split, class_name)).encode())
        for name, file in files:
          digest.update(repr((name, file.size, file.stamp)).encode())
    return digest.hexdigest()[:16]

  @property
  def class_names(self) -> list[str]:
    """Those of all splits, sorted."""
    return sorted({name for found in self.files.values() for name in found})

  @property
  def num_bytes(self) -> int:
    """Size of all files that can be read."""
    return sum(
      file.size * (file.size <= walk.MAX_FILE_BYTES)
      for classes in self.files.values()
      for files in classes.values()
      for _, file in files
    )


def arrange(tree: Tree) -> Listing:
  """Sorts a tree's images into splits and classes, without reading them.

  Raises:
    ValueError: there are no class folders, or the folders can be read in two
      ways; the message names both.
  """
  files, left_out = walk.images(tree)
  try:
    plan = reading.read(tree, files)
  except ValueError as error:
    # What a link leads to is counted elsewhere, and may be what is missing.
    links = [_said(*link) for link in sorted(tree.links.items())[:_SHOWN]]
    raise ValueError('. '.join([str(error), *links])) from error
  _check_hidden(tree, plan)
  _check_links(tree, plan)
  found: dict[str, dict[str, list]] = {}
  for split, class_name in plan.homes.values():
    found.setdefault(split, {}).setdefault(class_name, [])
  depths = sorted({len(home) for home in plan.homes})
  for file in files:
    parts = file.parts
    inside = (plan.homes.get(parts[:depth]) for depth in depths)
    home = next((home for home in inside if home), None)
    if home is None:
      left_out.append(LeftOut(file.name, _outside(parts, plan)))
    else:
      name = '/'.join(parts[len(plan.top) :])
      found[home[0]][home[1]].append((name, file))
  class_names = sorted({class_name for _, class_name in plan.homes.values()})
  notes = [*tree.notes, *plan.notes, *labels.alike(class_names)]
  return Listing(
    tree.location,
    found,
    left_out,
    notes,
    lambda file: walk.read_image(tree, file),
  )


def check_classes(listing: Listing, *, for_test: bool = False) -> None:
  """Checks that classes hold images, and every split against train.

  Args:
    listing: from `arrange`.
    for_test: nothing is trained on it, so that train does not matter.

  Raises:
    ValueError: if train is missing or has fewer than two classes, a class
      holds nothing, or another split has a class that train lacks.
  """
  if not for_test:
    _check_train(listing)
  for split, classes in listing.files.items():
    empty = sorted(c for c, files in classes.items() if not files)
    if empty:
      place = '' if split == 'unsplit' else f' in {split}'
      raise ValueError(
        f'folder:{listing.location}: class {names_of(empty)}{place} holds no '
        f'images (files ending in {transforms.ENDINGS})'
      )


def _check_train(listing: Listing) -> None:
  where = f'folder:{listing.location}'
  main = 'unsplit' if 'unsplit' in listing.files else 'train'
  if main not in listing.files:
    raise ValueError(
      f'{where}: has {sorted(listing.files)} but no train/ folder'
    )
  class_names = sorted(listing.files[main])
  for split, classes in listing.files.items():
    unknown = sorted(set(classes) - set(class_names))
    if unknown:
      raise ValueError(
        f'{where}: class {names_of(unknown)} is in {split} but not in train, '
        f'which has {names_of(class_names, 40)}'
      )
  if len(class_names) < 2:
    raise ValueError(f'{where}: one class only ({class_names[0]!r})')


def _outside(parts: Parts, plan: Plan) -> str:
  depth = len(plan.top)
  if len(parts) <= depth + 1 or parts[:depth] != plan.top:
    return 'image beside the class folders'
  first = parts[depth]
  if any(home[: depth + 1] == parts[: depth + 1] for home in plan.homes):
    return f'image in {first}/ beside its class folders'
  return f'image in {first}/, which is no split'


def _check_hidden(tree: Tree, plan: Plan) -> None:
  """A hidden folder of images among the classes: one of them, or a tool's?"""
  places = {home[:-1] for home in plan.homes}
  for parts, count in sorted(tree.hidden.items()):
    if count and parts[:-1] in places:
      name = '/'.join(parts)
      raise ValueError(
        f'folder:{tree.location}: {name}/ holds {count} images beside the '
        'class folders. Hidden folders are not read: if it is a class, rename '
        'it without the dot; if it is not, take it away'
      )


def _check_links(tree: Tree, plan: Plan) -> None:
  """A class or split that is a link to another one would count twice."""
  places = {home[:-1] for home in plan.homes} | {plan.top}
  for parts, target in sorted(tree.links.items()):
    if parts[:-1] in places:
      raise ValueError(
        f'folder:{tree.location}: {_said(parts, target)}. Take the link away, '
        'or put copies in its place'
      )


def _said(parts: Parts, target: str) -> str:
  link = '/'.join(parts)
  return f'{link}/ is a link to {target}/, whose images are counted there'
