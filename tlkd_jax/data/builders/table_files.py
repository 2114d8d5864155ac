"""Images named by tables: a file with labels, or metadata beside the images.

PATH.csv               path,label[,split], of images anywhere
PATH/train.csv ...     likewise, a file for each split
PATH/[train/]metadata.csv|jsonl|parquet, as in Hugging Face's imagefolder
"""

import os
import pathlib
import posixpath
import stat
from collections.abc import Iterable, Iterator

from tlkd_jax.data import transforms
from tlkd_jax.data.builders import headers, labels, tables, walk
from tlkd_jax.data.builders.headers import Labelling
from tlkd_jax.data.builders.labels import Labelled, Row
from tlkd_jax.data.builders.walk import File, LeftOut, Tree

# Names of metadata files, in lower case.
METADATA = ('metadata.csv', 'metadata.jsonl', 'metadata.parquet')


def read_table_files(path: str, labelling: Labelling) -> Labelled:
  """The images that a table names, or several, each of a split.

  Paths are relative to the table's folder; one without an ending may be that of
  an image with one.

  Args:
    path: of a table; or of a folder with tables named 'train.csv' and so on.
    labelling: names of columns.

  Raises:
    FileNotFoundError: if there is nothing at `path`.
    ValueError: as tables.read and labels.arrange; or images are not there.
  """
  where = f'csv:{path}'
  root = pathlib.Path(path).expanduser()
  if not root.exists():
    raise FileNotFoundError(f'{where}: no such file')
  files = {root: None}
  left_out: list[LeftOut] = []
  if root.is_dir():
    files, left_out = _of_splits(where, root)
  rows: list[Row] = []
  missing: list[str] = []
  notes: list[str] = []
  total = 0
  for file, split in files.items():
    about = where if file == root else f'{where}/{file.name}'
    table = tables.read(about, file.name, file.read_bytes())
    columns = headers.choose(table, labelling)
    notes += _notes(table, columns)
    total += len(table)
    for row in _rows(table, columns, split):
      found = _on_disk(file.parent, row.name)
      if found is None:
        missing.append(f'{row.place} {row.name}')
      else:
        above = pathlib.PurePath(found.name).parts[:-1]
        folders = () if os.path.isabs(found.name) else above
        rows.append(row._replace(name=found.name, file=found, folders=folders))
  _check_there(where, missing, total, f'the folder of {root.name}')
  spelt = walk.composed(row.name for row in rows)
  rows = [row._replace(name=spelt[row.name]) for row in rows]
  return labels.arrange(where, rows, _read, left_out=left_out, notes=notes)


def has_metadata(tree: Tree) -> bool:
  """Whether a tree holds metadata files of an imagefolder."""
  return any(file.parts[-1].lower() in METADATA for file in tree.files)


def arrange_image_folder(
  where: str, tree: Tree, labelling: Labelling
) -> Labelled:
  """The images of a tree that its metadata files name.

  Args:
    where: the data set's name, for messages.
    tree: a folder or archive.
    labelling: names of columns.

  Raises:
    ValueError: as read_table_files.
  """
  by_name = {file.name: file for file in tree.files}
  rows: list[Row] = []
  missing: list[str] = []
  notes = list(tree.notes)
  total = 0
  for file in tree.files:
    if file.parts[-1].lower() not in METADATA:
      continue
    table = tables.read(
      f'{where}/{file.name}', file.parts[-1], tree.read(file, -1)
    )
    columns = headers.choose(table, labelling)
    notes += _notes(table, columns)
    total += len(table)
    for row in _rows(table, columns, None):
      name = posixpath.normpath(posixpath.join(*file.parts[:-1], row.name))
      name = next((n for n in walk.spellings(name) if n in by_name), None)
      if name is None:
        missing.append(f'{file.name} {row.place} {row.name}')
        continue
      found = by_name[name]
      above = found.parts[:-1]
      rows.append(row._replace(name=name, file=found, folders=above))
  _check_there(where, missing, total, 'the metadata file')
  images, left_out = walk.images(tree)
  left_out += [LeftOut(one.name, 'not in the metadata') for one in images]
  used = {row.name for row in rows}
  left_out = [
    one
    for one in left_out
    if one.name not in used
    and one.name.rpartition('/')[2].lower() not in METADATA
  ]
  return labels.arrange(
    where,
    rows,
    lambda some: (walk.read_image(tree, file) for file in some),
    left_out=left_out,
    notes=notes,
  )


def _of_splits(
  where: str, folder: pathlib.Path
) -> tuple[dict[pathlib.Path, str | None], list[LeftOut]]:
  """Tables named as splits, and what else lies beside them."""
  files: dict[pathlib.Path, str | None] = {}
  left_out = []
  for file in sorted(folder.iterdir()):
    if file.suffix.lower() not in tables.SUFFIXES or not file.is_file():
      continue
    if headers.read_split(file.stem):
      files[file] = file.stem
    else:
      left_out.append(LeftOut(file.name, 'a table that is named as no split'))
  if not files:
    raise ValueError(
      f'{where} is a folder without tables such as train.csv and test.csv; '
      'give the table itself, or imagefolder:PATH for metadata beside images'
    )
  return files, left_out


def _rows(
  table: tables.Table, columns: headers.Columns, split: str | None
) -> Iterator[Row]:
  """The lines of a table; names as they stand there, files unknown."""
  of_split = table.columns[columns.split] if columns.split else None
  nothing = File('', 0, 0, None)
  for k, line in enumerate(table.lines):
    name = table.columns[columns.image][k]
    if not isinstance(name, str) or not name.strip():
      raise ValueError(
        f'{table.where}, line {line}: {columns.image} is {str(name)[:60]!r}; '
        'expected the path of an image'
      )
    if of_split is not None:
      # '' rather than None: the others speak of splits.
      split = str(of_split[k] or '').strip()
    label = table.columns[columns.label][k]
    yield Row(f'line {line}', name.strip(), label, split, nothing)


def _notes(table: tables.Table, columns: headers.Columns) -> list[str]:
  used = [c for c in (columns.image, columns.label, columns.split) if c]
  others = [name or "''" for name in table.columns if name not in used]
  note = f'{table.where}: images from {used[0]!r}, labels from {used[1]!r}'
  note += f', splits from {used[2]!r}' if columns.split else ''
  return [note + (f'; not used: {tables.shown(others)}' if others else '')]


def _on_disk(base: pathlib.Path, name: str) -> File | None:
  """The image that a table in `base` calls `name`, None if it is not there."""
  spellings = [name]
  if '\\' in name:
    spellings.append(name.replace('\\', '/'))
  if not walk.looks_like_image(name):
    start = spellings[-1]
    for case in (str.lower, str.upper, str.title):
      spellings += [start + case(ending) for ending in transforms.SUFFIXES]
  for spelling in (s for one in spellings for s in walk.spellings(one)):
    path = os.path.normpath(base / spelling)
    try:
      about = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
      continue
    if not stat.S_ISREG(about.st_mode):
      continue
    whole = pathlib.PurePath(os.path.abspath(path))
    # Not as the command spells the table's folder: names decide over splits.
    if os.path.isabs(spelling) and not whole.is_relative_to(
      os.path.abspath(base)
    ):
      shown = whole.as_posix()
    else:
      shown = pathlib.PurePath(os.path.relpath(path, base)).as_posix()
    return File(shown, about.st_size, about.st_mtime_ns, path)
  return None


def _check_there(where: str, missing: list[str], total: int, of: str) -> None:
  if missing:
    raise ValueError(
      f'{where}: {len(missing)} of {total} images are not there: '
      f'{tables.shown(missing)}. Paths are relative to {of}'
    )


def _read(files: Iterable[File]) -> Iterator[bytes]:
  tree = Tree('', 'folder', walk.read_file)
  for file in files:
    yield walk.read_image(tree, file)
