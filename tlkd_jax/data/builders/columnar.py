"""Parquet and arrow files that hold the images themselves.

As Hugging Face's hub and `save_to_disk` write them: a column of {'bytes',
'path'}, a column of class numbers whose names are in the schema's metadata.
Files of other programs are read too. Which files there are, and of which split,
says columnar_files.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Generator, Iterable, Iterator
from typing import Any

from tlkd_jax.data import transforms
from tlkd_jax.data.builders import (
  columnar_files,
  headers,
  labels,
  tables,
  walk,
)
from tlkd_jax.data.builders.headers import Labelling
from tlkd_jax.data.builders.labels import Labelled, Row
from tlkd_jax.data.builders.tables import Table
from tlkd_jax.data.builders.walk import File

_ROWS_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class _Columns:
  """Columns of images and labels; names of classes where labels are numbers."""

  image: str
  label: str
  names: tuple[str, ...] | None


def read_columnar(path: str, labelling: Labelling) -> Labelled:
  """The images of a parquet or arrow file, or of a folder of them.

  Args:
    path: of a file, or of a folder in which they are searched for.
    labelling: names of columns.

  Raises:
    FileNotFoundError: if there is nothing at `path`.
    ValueError: no such files, files of several data sets, some that are
      missing, columns that are not found; as labels.arrange.
  """
  where = f'parquet:{path}'
  root = pathlib.Path(path).expanduser()
  if not root.exists():
    raise FileNotFoundError(f'{where}: no such file or folder')
  arrow = tables.pyarrow(where)
  files, left_out = columnar_files.listed(where, root)
  rows: list[Row] = []
  schemas: dict[_Columns, str] = {}
  for file, split in files:
    with _opened(arrow, where, file) as part:
      columns = _choose(where, part.schema, labelling)
      schemas.setdefault(columns, file.name)
      rows += _rows(where, part, file, columns, split, labelling)
  if len(schemas) > 1:
    first, second = list(schemas.values())[:2]
    raise ValueError(
      f'{where}: {first} and {second} differ in their columns or classes, so '
      'they are of two data sets; give the folder of one'
    )
  rows, more = _without_unlabelled(where, rows)

  def read(some: Iterable[File]) -> Iterator[bytes]:
    return _images(arrow, where, some, next(iter(schemas)).image)

  return labels.arrange(
    where,
    rows,
    read,
    class_names=next(iter(schemas)).names,
    left_out=left_out,
    notes=more,
  )


@dataclasses.dataclass(frozen=True)
class _Part:
  """An open file.

  Attributes:
    schema: of arrow.
    count: number of rows.
    batches: names of columns -> record batches in order.
  """

  schema: Any
  count: int
  batches: Any


@contextlib.contextmanager
def _opened(arrow, where: str, file: File) -> Generator[_Part]:
  head = walk.read_file(file, 32)
  if head.startswith(b'version https://git-lfs'):
    raise ValueError(
      f'{where}: {file.name} is a pointer of Git LFS; run git lfs pull'
    )
  try:
    if head.startswith(b'PAR1'):
      with arrow.parquet.ParquetFile(file.origin) as whole:
        yield _Part(
          whole.schema_arrow,
          whole.metadata.num_rows,
          lambda columns: whole.iter_batches(_ROWS_AT_ONCE, columns=columns),
        )
    else:
      with arrow.memory_map(file.origin) as source:
        schema, batches = _arrow_batches(arrow, source, head)
        yield _Part(
          schema,
          sum(batch.num_rows for batch in batches),
          lambda columns: (_selected(batch, columns) for batch in batches),
        )
  except (arrow.ArrowException, arrow.ArrowInvalid) as error:
    raise ValueError(f'{where}: {file.name} cannot be read: {error}') from error


def _arrow_batches(arrow, source, head: bytes) -> tuple[Any, list[Any]]:
  """(schema, batches) of a file or of a stream; mapped, not read."""
  if head.startswith(b'ARROW1'):
    reader = arrow.ipc.open_file(source)
    count = reader.num_record_batches
    return reader.schema, [reader.get_batch(k) for k in range(count)]
  reader = arrow.ipc.open_stream(source)
  return reader.schema, list(reader)


def _selected(batch, columns: list[str]):
  """Columns of a batch; 'a.b' is the field b of the structs in a."""
  flat = {}
  for name in columns:
    column, _, field = name.partition('.')
    found = batch.column(column)
    flat[name] = found.field(field) if field else found
  return type(batch).from_pydict(flat)


def _choose(where: str, schema, labelling: Labelling) -> _Columns:
  """The columns of a file, by its metadata or by usual names."""
  features = _features(schema)
  table = Table(where, {name: [] for name in schema.names}, [])
  image = labelling.image_column or _only(
    where, 'image', _image_columns(schema, features)
  )
  image = headers.need(table, 'image', image)
  named = [n for n, f in features.items() if f.get('_type') == 'ClassLabel']
  label = labelling.label_column or _only(where, 'label', named)
  label = headers.need(table, 'label', label)
  kind = str(schema.field(label).type)
  feature = features.get(label)
  if 'list' in kind or not isinstance(feature, dict | None):
    raise ValueError(
      f'{where}: column {label!r} holds lists ({kind}). Multi-label data sets '
      'are not for this: an image must have one class'
    )
  names = (feature or {}).get('names')
  if isinstance(names, dict):
    names = [names[key] for key in sorted(names, key=int)]
  return _Columns(image, label, None if names is None else tuple(names))


def _features(schema) -> dict[str, Any]:
  """What Hugging Face says of the columns, {} in files of others."""
  stored = (schema.metadata or {}).get(b'huggingface')
  if stored is None:
    return {}
  try:
    return json.loads(stored)['info']['features']
  except (ValueError, KeyError, TypeError):
    return {}


def _image_columns(schema, features: dict[str, Any]) -> list[str]:
  told = [
    name
    for name, feature in features.items()
    if isinstance(feature, dict) and feature.get('_type') == 'Image'
  ]
  if told:
    return told
  return [
    field.name
    for field in schema
    if 'binary' in str(field.type) and 'list' not in str(field.type)
  ]


def _only(where: str, role: str, found: list[str]) -> str | None:
  if len(found) > 1:
    raise ValueError(
      f'{where}: columns {", ".join(map(repr, found))} may each be the {role}; '
      f'say which with data.{role}_column'
    )
  return found[0] if found else None


def _rows(
  where: str,
  part: _Part,
  file: File,
  columns: _Columns,
  split: str | None,
  labelling: Labelling,
) -> list[Row]:
  """One for each image of a file; labels are read, images are not."""
  table = Table(where, {name: [] for name in part.schema.names}, [])
  own = headers.of_splits(table, labelling.split_column) if not split else None
  wanted = [columns.label, *([own] if own else [])]
  kind = str(part.schema.field(columns.image).type)
  inner = f'{columns.image}.path'
  if kind.startswith('struct') and 'path:' in kind:
    wanted.append(inner)
  elif 'string' in kind and not kind.startswith('struct'):
    wanted.append(columns.image)
  stem = os.path.splitext(file.name)[0]
  size = file.size // max(part.count, 1)
  rows, paths = [], []
  for batch in part.batches(wanted):
    values = batch.to_pydict()
    if inner in wanted and inner not in values:
      values[inner] = [one and one['path'] for one in values[columns.image]]
    told = inner if inner in wanted else columns.image
    paths += values.get(told) or [None] * batch.num_rows
    for k in range(batch.num_rows):
      number = len(rows)
      label = values[columns.label][k]
      if columns.names is not None:
        place = f'{where}: {file.name} row {number + 1}'
        label = _name(place, columns.label, columns.names, label)
      path = paths[number] if inner in wanted else None
      name = f'{stem}/{number:07d}'
      rows.append(
        Row(
          place=f'{file.name} row {number + 1}',
          name=f'{name}-{pathlib.PurePath(path).name}' if path else name,
          label=label,
          split=str(values[own][k] or '') if own else split,
          file=File(name, size, file.stamp, (file, number)),
        )
      )
  return _with_stamps(rows, paths, file)


def _with_stamps(rows: list[Row], paths: list[Any], table: File) -> list[Row]:
  """Rows of images beside the table, with size and time of these too.

  One that is not there ends it: the images are in the table itself, or reading
  them will fail.
  """
  found = []
  for row, path in zip(rows, paths, strict=True):
    if isinstance(path, str) and path:
      try:
        about = os.stat(_beside(table, path))
      except (OSError, ValueError):
        return rows
      size = row.file.size + about.st_size
      stamp = row.file.stamp + about.st_mtime_ns
      file = dataclasses.replace(row.file, size=size, stamp=stamp)
      row = row._replace(file=file)
    found.append(row)
  return found


def _beside(table: File, path: str) -> str:
  return os.path.join(os.path.dirname(table.origin), path)


def _name(
  place: str, column: str, names: tuple[str, ...], label: Any
) -> str | None:
  """The class that a number stands for; None for -1, Hugging Face's unknown."""
  if label is None or label == -1:
    return None
  if not isinstance(label, int) or not 0 <= label < len(names):
    raise ValueError(
      f'{place}: {column} is {label!r}; the classes are 0 to {len(names) - 1}'
    )
  return names[label]


def _without_unlabelled(
  where: str, rows: list[Row]
) -> tuple[list[Row], list[str]]:
  """Leaves out a split whose labels are all withheld."""
  splits = dict.fromkeys(row.split for row in rows)
  known = {row.split for row in rows if row.label is not None}
  hidden = [split for split in splits if split not in known]
  if not hidden or not known:
    return rows, []
  notes = [f'{split} holds no labels and is not used' for split in hidden]
  return [row for row in rows if row.split in known], notes


def _images(
  arrow, where: str, files: Iterable[File], column: str
) -> Iterator[bytes]:
  """The bytes of rows, each file read once as they are in its order."""
  source, rows = None, iter(())
  at = -1
  for row in files:
    file, number = row.origin
    if file is not source or number <= at:
      source, at = file, -1
      rows = _values(arrow, where, file, column)
    value = None
    while at < number:
      value = next(rows)
      at += 1
    yield _bytes(value, file)


def _values(arrow, where: str, file: File, column: str) -> Iterator[Any]:
  with _opened(arrow, where, file) as part:
    for batch in part.batches([column]):
      yield from batch.column(0).to_pylist()


def _bytes(value: Any, file: File) -> bytes:
  """An image's bytes, or why there are none.

  Raises:
    OSError: it is a file of its own that cannot be read now.
  """
  path = value if isinstance(value, str) else None
  if isinstance(value, dict):
    value, path = value.get('bytes'), value.get('path')
  if isinstance(value, bytes) and value:
    return value
  if not path:
    return transforms.unreadable('no image in this row')
  return walk.read_file(File(path, 0, 0, _beside(file, path)))
