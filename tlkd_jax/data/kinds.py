"""Kinds of own data sets: what a name such as 'folder:PATH' is read by.

Each gives the TFDS builder of a copy in the cache folder, which is written if
it is not there. Data for a test alone need no train and no second class.
"""

import dataclasses
import hashlib
import os
import pathlib

from tlkd_jax.data import prepared, transforms
from tlkd_jax.data.builders import (
  archives,
  arrays,
  columnar,
  digits,
  folder,
  labelled,
  labels,
  layout,
  patterns,
  table_files,
  walk,
)
from tlkd_jax.data.builders.headers import Labelling
from tlkd_jax.data.builders.labels import Labelled
from tlkd_jax.runtime.paths import expanded

# Endings of tables -> the kind of data set that they are.
_TABLE_KINDS = {
  **dict.fromkeys(('.csv', '.tsv', '.jsonl', '.ndjson'), 'csv'),
  **dict.fromkeys(('.parquet', '.arrow'), 'parquet'),
}
_COLUMNS = ('image_column', 'label_column', 'split_column')


@dataclasses.dataclass(frozen=True)
class Asked:
  """An own data set that is asked for.

  Attributes:
    path: what follows the kind; '' for nothing.
    cache_dir: holds the prepared copies.
    labelling: how labels are found.
    for_test: nothing is trained on it.
  """

  path: str
  cache_dir: pathlib.Path
  labelling: Labelling = Labelling()
  for_test: bool = False


def digits_builder(asked: Asked):
  """The prepared TFDS builder of `digits`; the path must be empty."""
  if asked.path:
    raise ValueError(f'digits takes no path, got digits:{asked.path}')
  key = f'digits-{digits.Digits.VERSION}'
  return prepared.once(
    asked.cache_dir, key, lambda data_dir: digits.Digits(data_dir=data_dir)
  )


def folder_builder(asked: Asked):
  """The prepared TFDS builder of `folder:PATH`.

  Classes are folders, or with a pattern of its labelling a part of names.
  """
  path, cache_dir, labelling = asked.path, asked.cache_dir, asked.labelling
  if not path:
    raise ValueError('folder needs a path: folder:PATH')
  if labelling.pattern is not None:
    with archives.open_tree(path, cache_dir / 'spool') as tree:
      found = patterns.arrange(f'folder:{path}', tree, labelling.pattern)
      return _from_labelled(found, asked)
  root = pathlib.Path(path).expanduser()
  version, place = folder.FolderImages.VERSION, _place(root)
  key = f'folder-{prepared.plain_name(root)}-{version}-{place}'
  if archives.is_tar(root):
    # Its members are not listed and checked again as long as the file is the
    # same, and what of them can be read.
    key += '-tar' + '-heif' * transforms.has_heif() + '-test' * asked.for_test
    found = cache_dir / 'prepared' / key
    if prepared.is_whole(found):
      return prepared.open_copy(folder.FolderImages.name, found)
  kind = _TABLE_KINDS.get(root.suffix.lower())
  if kind and root.is_file():
    raise ValueError(f'folder:{path} is a file; is it a table, {kind}:{path}?')
  with archives.open_tree(path, cache_dir / 'spool') as tree:
    try:
      listing = layout.arrange(tree)
    except ValueError as error:
      raise ValueError(f'{error}{_other_kind(path, tree)}') from error
    layout.check_classes(listing, for_test=asked.for_test)
    if tree.kind != 'tar':
      key += f'-{listing.fingerprint}'
    return prepared.from_listing(listing, cache_dir, key)


def _other_kind(path: str, tree: walk.Tree) -> str:
  """What a folder may be that has no class folders."""
  if table_files.has_metadata(tree):
    return f'. It holds metadata of images: imagefolder:{path}'
  for file in tree.files:
    kind = _TABLE_KINDS.get(os.path.splitext(file.name.lower())[1])
    if kind == 'csv':
      return f'. It holds a table: csv:{path}/{file.name}'
    if kind == 'parquet':
      return f'. It holds {file.name}: parquet:{path}'
  if any(len(file.parts) == 1 for file in walk.images(tree)[0]):
    return (
      '. Where the class is in the name of a file, data.pattern says where: '
      '{class}.*.jpg'
    )
  return ''


def csv_builder(asked: Asked):
  """The prepared TFDS builder of `csv:PATH`, a table of paths and labels."""
  if not asked.path:
    raise ValueError('csv needs a path: csv:PATH')
  found = table_files.read_table_files(asked.path, asked.labelling)
  return _from_labelled(found, asked)


def imagefolder_builder(asked: Asked):
  """The prepared TFDS builder of `imagefolder:PATH`, images and metadata."""
  path, labelling = asked.path, asked.labelling
  if not path:
    raise ValueError('imagefolder needs a path: imagefolder:PATH')
  if not pathlib.Path(path).expanduser().exists():
    raise FileNotFoundError(f'imagefolder:{path}: no such folder or archive')
  with archives.open_tree(path, asked.cache_dir / 'spool') as tree:
    if table_files.has_metadata(tree):
      where = f'imagefolder:{path}'
      found = table_files.arrange_image_folder(where, tree, labelling)
      return _from_labelled(found, asked)
  stated = [key for key in _COLUMNS if vars(labelling)[key] is not None]
  if stated:
    raise ValueError(
      f'imagefolder:{path} holds none of {", ".join(table_files.METADATA)}, '
      f'and data.{stated[0]} names a column of one'
    )
  return folder_builder(asked)


def parquet_builder(asked: Asked):
  """The prepared TFDS builder of `parquet:PATH`, tables that hold images."""
  if not asked.path:
    raise ValueError('parquet needs a path: parquet:PATH')
  found = columnar.read_columnar(asked.path, asked.labelling)
  return _from_labelled(found, asked)


def arrays_builder(asked: Asked):
  """The TFDS builder of `arrays:KEY`, which sources.store_arrays prepared."""
  found = asked.cache_dir / 'prepared' / f'arrays-{asked.path}'
  if not asked.path or not found.is_dir():
    raise FileNotFoundError(
      f'data set arrays:{asked.path} is not in {asked.cache_dir}; '
      'tlkd_jax.data.Dataset.from_arrays stores arrays there and gives their '
      'name'
    )
  return prepared.open_copy(arrays.ArrayImages.name, found)


DATASETS = {
  'digits': digits_builder,
  'folder': folder_builder,
  'csv': csv_builder,
  'imagefolder': imagefolder_builder,
  'parquet': parquet_builder,
  'arrays': arrays_builder,
}
# Names of builders that write a split in parts: train, train_1, ...
IN_PARTS = frozenset(
  builder.name
  for builder in (
    folder.FolderImages,
    labelled.LabelledImages,
    arrays.ArrayImages,
  )
)
# What of a Labelling a kind uses.
_USED = {
  'folder': ('pattern',),
  'csv': _COLUMNS,
  'imagefolder': _COLUMNS,
  'parquet': _COLUMNS,
}


def located(name: str) -> str:
  """KIND:PATH with the path resolved, so that one place has one name."""
  kind, colon, path = name.partition(':')
  if not colon or kind not in DATASETS:
    return name
  return f'{kind}:{expanded(path).resolve()}'


def check_used(name: str, labelling: Labelling) -> None:
  """Raises ValueError for what is stated and would not be looked at.

  Args:
    name: of a data set of any kind.
    labelling: what is stated.
  """
  kind = name.partition(':')[0]
  for key, value in vars(labelling).items():
    if value is not None and key not in _USED.get(kind, ()):
      others = [f'{k}:PATH' for k, used in _USED.items() if key in used]
      raise ValueError(
        f'data.{key} is {value!r}, which {name} does not use; it is for '
        f'{" and ".join(others)}'
      )


def _from_labelled(found: Labelled, asked: Asked):
  if not asked.for_test:
    labels.check_classes(found)
  kind = found.where.partition(':')[0]
  root = pathlib.Path(asked.path).expanduser()
  version, place = labelled.LabelledImages.VERSION, _place(root)
  key = f'{kind}-{prepared.plain_name(root)}-labels-{version}-{place}'
  key = f'{key}-{found.fingerprint}'
  return prepared.from_labelled(found, asked.cache_dir, key)


def _place(root: pathlib.Path) -> str:
  """Tells data sets apart whose files are alike in name, size and time.

  In a tar they often are, so that its own size and time count too.
  """
  text = str(root.resolve())
  if archives.is_tar(root):
    about = root.stat()
    text += f' {about.st_size} {about.st_mtime_ns}'
  digest = hashlib.sha256(text.encode('utf-8', 'replace'))
  return digest.hexdigest()[:16]
