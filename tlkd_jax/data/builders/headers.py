"""Which columns of a table hold images, labels and splits.

They are found by their usual names, or stated. What may be two is refused.
"""

import dataclasses
import re

from tlkd_jax.data.builders import split_words
from tlkd_jax.data.builders.tables import Table, shown
from tlkd_jax.runtime.errors import nearest

# Usual names of columns, without separators; the second line of each counts if
# no name of the first is there.
_USUAL = {
  'image': (
    ('path', 'file', 'filename', 'filepath', 'image', 'imagepath', 'imagename')
    + ('imagefile', 'imagefilename', 'imagefilepath', 'img', 'imgpath')
    + ('imgname', 'imgfile', 'imgfilename', 'relpath', 'relativepath', 'photo')
    + ('picture', 'pathname', 'imagelocation'),
    ('id', 'imageid', 'imgid', 'idcode', 'name', 'fileid', 'uid'),
  ),
  'label': (
    ('label', 'labels', 'class', 'classes', 'classname', 'labelname')
    + ('category', 'categoryname', 'target', 'species', 'breed', 'diagnosis')
    + ('annotation', 'groundtruth', 'tag', 'tags', 'classification'),
    ('labelid', 'classid', 'categoryid', 'classindex', 'labelindex', 'y')
    + ('classidx', 'labelidx', 'targetid'),
  ),
  'split': (
    ('split', 'splits', 'partition'),
    ('set', 'subset', 'dataset', 'usage', 'phase', 'stage', 'fold', 'mode'),
  ),
}


@dataclasses.dataclass(frozen=True)
class Labelling:
  """What the settings say of how labels are found; None is by usual names.

  Attributes:
    image_column: holds paths, or images.
    label_column: holds one class.
    split_column: holds words such as 'train' and 'test'.
    pattern: see patterns.compile_pattern.
  """

  image_column: str | None = None
  label_column: str | None = None
  split_column: str | None = None
  pattern: str | None = None


@dataclasses.dataclass(frozen=True)
class Columns:
  """Names of the columns of a table; split is None without one."""

  image: str
  label: str
  split: str | None


def choose(table: Table, labelling: Labelling) -> Columns:
  """Which columns hold the paths, the labels and the splits.

  Raises:
    ValueError: none does, or two may.
  """
  return Columns(
    need(table, 'image', labelling.image_column),
    need(table, 'label', labelling.label_column),
    of_splits(table, labelling.split_column),
  )


def need(table: Table, role: str, stated: str | None) -> str:
  """The column of a role: the stated one, or that with a usual name.

  Args:
    table: to look at.
    role: 'image' or 'label'.
    stated: by the settings.
  """
  found = _find(table, role, stated)
  if found is None:
    usual = ', '.join(_USUAL[role][0][:6])
    raise ValueError(
      f'{table.where}: no column for the {role} (usual names: {usual}, ...); '
      f'it has {shown([*table.columns])}. Name it with data.{role}_column'
    )
  return found


def of_splits(table: Table, stated: str | None) -> str | None:
  """The column that names splits, None if there is none.

  Raises:
    ValueError: a column that looks like one says it in another way.
  """
  found = _find(table, 'split', stated)
  usual = found is not None and _plain(found) in _USUAL['split'][0]
  if found is not None and not (stated or usual):
    # Such as 'dataset', which may say where an image comes from.
    words = {str(value) for value in table.columns[found]}
    unsure = sorted(word for word in words if not read_split(word))
    if unsure and all(map(split_words.read, words)):
      raise ValueError(
        f'{table.where}: column {found!r} looks like a split and holds '
        f"{shown(unsure)}; put 'train', 'validation' or 'test' there"
      )
    if unsure:
      found = None
  if found is None:
    for name in table.columns:
      start, rest = _plain(name)[:2], _plain(name)[2:]
      if start == 'is' and split_words.read(rest):
        raise ValueError(
          f'{table.where}: column {name!r} looks like a split; put '
          "'train', 'validation' or 'test' into a column named split"
        )
  return found


def _find(table: Table, role: str, stated: str | None) -> str | None:
  names = list(table.columns)
  if stated is not None:
    if stated in names:
      return stated
    near = nearest(stated, names)
    raise ValueError(
      f'{table.where}: data.{role}_column is {stated!r}; it has the columns '
      f'{shown(names)}' + (f'; did you mean {", ".join(near)}?' if near else '')
    )
  for usual in _USUAL[role]:
    found = [name for name in names if _plain(name) in usual]
    if len(found) > 1:
      raise ValueError(
        f'{table.where}: columns {", ".join(map(repr, found))} may each be the '
        f'{role}; say which with data.{role}_column'
      )
    if found:
      return found[0]
  return None


def _plain(name: str) -> str:
  return re.sub(r'[\W_]+', '', name).casefold()


def read_split(word: str) -> str | None:
  """'train', 'validation' or 'test' if a word surely means it."""
  meaning = split_words.read(word)
  return meaning.split if meaning and not meaning.rest else None
