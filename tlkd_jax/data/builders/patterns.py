"""Flat folders: the class of an image is a part of its file's name."""

import os
import re

from tlkd_jax.data.builders import labels, walk
from tlkd_jax.data.builders.labels import Labelled, Row
from tlkd_jax.data.builders.tables import shown
from tlkd_jax.data.builders.walk import LeftOut, Tree

_ACCEPTED = (
  "a name with {class} and *, such as '{class}.*.jpg', or a regular expression "
  "with a group (?P<class>...), such as '(?P<class>.+)_[0-9]+'"
)
_FIELDS = {'{class}': '(?P<class>[^/]+)', '{split}': '(?P<split>[^/]+)'}
_GLOB = {'*': '[^/]*', '?': '[^/]'}


def compile_pattern(pattern: str) -> re.Pattern:
  """A pattern as a regular expression with a group `class`.

  With {class} in it, it is a whole name in which * stands for any characters
  and ? for one, whatever the case, or a whole name without its ending. {class}
  takes as many as it can, so that '{class}_*' is 'great_pyrenees' of
  'great_pyrenees_7.jpg'. {split} may stand in it too. Otherwise it is a regular
  expression, searched for, whose group `class`, or whose only group, is the
  class.

  Raises:
    ValueError: it is neither.
  """
  if '{class}' in pattern:
    pieces = re.split(r'(\{class\}|\{split\}|\*|\?)', pattern)
    known = _FIELDS | _GLOB
    expression = ''.join(known.get(p) or re.escape(p) for p in pieces)
    try:
      return re.compile(f'\\A{expression}\\Z', re.IGNORECASE)
    except re.error as error:
      raise ValueError(
        f'{pattern!r} names {{class}} or {{split}} twice'
      ) from error
  try:
    found = re.compile(pattern)
  except re.error as error:
    raise ValueError(
      f'{pattern!r} is no regular expression: {error}; accepted: {_ACCEPTED}'
    ) from error
  if 'class' not in found.groupindex and (
    found.groups != 1 or 'split' in found.groupindex
  ):
    raise ValueError(f'{pattern!r} has no class; accepted: {_ACCEPTED}')
  return found


def arrange(where: str, tree: Tree, pattern: str) -> Labelled:
  """The images of a tree whose names the pattern matches.

  A pattern is matched with as many of a name's last parts as it has itself.
  Without {split} the folders above say the split, where they are named so.

  Args:
    where: the data set's name, for messages.
    tree: a folder or archive.
    pattern: see compile_pattern.

  Raises:
    ValueError: it matches no image; as labels.arrange.
  """
  found = compile_pattern(pattern)
  of_class = 'class' if 'class' in found.groupindex else 1
  depth = pattern.count('/') + 1
  files, left_out = walk.images(tree)
  rows = []
  for file in files:
    match = _match(found, '/'.join(file.parts[-depth:]), '{class}' in pattern)
    groups = match.groupdict() if match else {}
    label = match.group(of_class) if match else None
    if not label:
      left_out.append(LeftOut(file.name, 'its name is not as data.pattern'))
      continue
    rows.append(
      Row(
        place=file.name,
        name=file.name,
        label=label,
        split=groups.get('split'),
        file=file,
        folders=file.parts[:-depth],
      )
    )
  if not rows:
    names = [file.name for file in files]
    raise ValueError(
      f'{where}: data.pattern {pattern!r} matches none of {len(names)} images'
      + (f', such as {shown(names)}' if names else '')
    )
  return labels.arrange(
    where,
    rows,
    lambda some: (walk.read_image(tree, file) for file in some),
    left_out=left_out,
    notes=tree.notes,
  )


def _match(found: re.Pattern, name: str, whole: bool) -> re.Match | None:
  """Where a name is as the pattern says; a `whole` one also without ending.

  Of 'cat.0.jpg' '{class}.*' is 'cat' and not 'cat.0'.
  """
  match = found.search(os.path.splitext(name)[0]) if whole else None
  return match or found.search(name)
