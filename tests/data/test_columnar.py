"""Parquet and arrow files with images in them."""

import builtins
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import encode, picture

from tlkd_jax.data import Labelling, facts, sources
from tlkd_jax.data.builders import columnar, labels, tables

NAMES = ['fox', 'cat', 'dog', 'unused']
STRUCT = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
IMAGE = {'_type': 'Image'}
LABEL = {'_type': 'ClassLabel', 'names': NAMES}


def image(number: int, path: str | None = None) -> dict:
  return {'bytes': encode(picture(str(number)), 'PNG'), 'path': path}


def table_of(numbers, features=None, **columns) -> pa.Table:
  """Images numbered so; labels are the numbers modulo 3, if not given."""
  columns = {
    'image': pa.array([image(n, f'{n}.png') for n in numbers], STRUCT),
    'label': pa.array([n % 3 for n in numbers], pa.int64()),
  } | columns
  table = pa.table({name: c for name, c in columns.items() if c is not None})
  features = {'image': IMAGE, 'label': LABEL} if features is None else features
  if features:
    text = json.dumps({'info': {'features': features}})
    table = table.replace_schema_metadata({'huggingface': text})
  return table


def write(root, files) -> None:
  """name -> table or bytes."""
  for name, table in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(table, bytes):
      path.write_bytes(table)
    elif name.endswith('.parquet'):
      pq.write_table(table, path, row_group_size=2)
    elif name.endswith('.file.arrow'):
      with pa.OSFile(str(path), 'wb') as sink:
        with pa.ipc.new_file(sink, table.schema) as writer:
          writer.write_table(table, 2)
    else:
      with pa.OSFile(str(path), 'wb') as sink:
        with pa.ipc.new_stream(sink, table.schema) as writer:
          writer.write_table(table, 2)


def numbers_of(found: labels.Labelled) -> dict:
  """Split -> {number: class}, by the bytes that are read."""
  number_of = {image(n)['bytes']: n for n in range(30)}
  result = {}
  for split, examples in found.splits.items():
    data = list(found.read(one.file for one in examples))
    result[split] = {
      number_of[bytes_]: found.class_names[one.label]
      for bytes_, one in zip(data, examples, strict=True)
    }
  return result


def classes(numbers, names=NAMES) -> dict:
  return {n: names[n % 3] for n in numbers}


TRAIN, TEST = table_of(range(9)), table_of(range(9, 15))
FIRST, SECOND = table_of(range(5)), table_of(range(5, 9))
BOTH = {'train': classes(range(9)), 'test': classes(range(9, 15))}
LAYOUTS = {
  'of the hub': {
    'data/train-00000-of-00001.parquet': TRAIN,
    'data/test-00000-of-00001.parquet': TEST,
  },
  'in shards with hashes': {
    'data/train-00000-of-00002-0a1b2c3d.parquet': FIRST,
    'data/train-00001-of-00002-4e5f6a7b.parquet': SECOND,
    'data/test-00000-of-00001-0a.parquet': TEST,
  },
  'as the hub converts': {
    'default/train/0000.parquet': FIRST,
    'default/train/0001.parquet': SECOND,
    'default/test/0000.parquet': TEST,
  },
  'plain': {'train.parquet': TRAIN, 'test.parquet': TEST},
  'in capitals': {'Training.parquet': TRAIN, 'TEST.parquet': TEST},
  'with its name': {'pets-train.parquet': TRAIN, 'pets-test.parquet': TEST},
  'as save_to_disk': {
    'dataset_dict.json': b'{}',
    'train/state.json': b'{}',
    'train/data-00000-of-00002.arrow': FIRST,
    'train/data-00001-of-00002.arrow': SECOND,
    'train/cache-0123.arrow': b'of map',
    'test/data-00000-of-00001.arrow': TEST,
  },
  'files of arrow': {'train/x.file.arrow': TRAIN, 'test/x.file.arrow': TEST},
  'beside other splits': {
    'train-00000-of-00001.parquet': TRAIN,
    'test-00000-of-00001.parquet': TEST,
    'extra-00000-of-00001.parquet': FIRST,
    'train_small-00000-of-00001.parquet': FIRST,
  },
}


@pytest.mark.parametrize('case', LAYOUTS)
def test_splits_and_names_of_classes(case, tmp_path):
  write(tmp_path, LAYOUTS[case])
  found = columnar.read_columnar(str(tmp_path), Labelling())
  # In the order of their numbers; one that no image has is none.
  assert found.class_names == ['fox', 'cat', 'dog']
  assert numbers_of(found) == BOTH
  names = [one.name for split in found.splits.values() for one in split]
  assert len(set(names)) == 15
  assert any(name.endswith('/0000000-0.png') for name in names)
  left_out = {one.name for one in found.left_out}
  assert left_out == {n for n in LAYOUTS[case] if 'extra' in n or 'small' in n}
  assert all('no known split' in one.why for one in found.left_out)


def plain(kind=STRUCT, make=image, features=False, **columns) -> pa.Table:
  """Without metadata; the images of any type."""
  images = pa.array([make(n) for n in range(6)], kind)
  return table_of(range(6), features, image=images, **columns)


def as_bytes(number):
  return image(number)['bytes']


STRINGS = pa.array([NAMES[n % 3] for n in range(6)])
# Tables of six images -> names of their classes.
COLUMNS = {
  'names that others are parts of': (
    table_of(
      range(6),
      {
        'image': IMAGE,
        'label': LABEL | {'names': ['fire', 'truck', 'fire truck']},
      },
    ),
    ['fire', 'truck', 'fire truck'],
  ),
  'no metadata': (plain(), ['0', '1', '2']),
  'metadata of another': (
    plain().replace_schema_metadata({'huggingface': 'x', 'pandas': '{}'}),
    ['0', '1', '2'],
  ),
  'bytes': (plain(pa.binary(), as_bytes), ['0', '1', '2']),
  'large bytes': (plain(pa.large_binary(), as_bytes), ['0', '1', '2']),
  'bytes alone in structs': (
    plain(pa.struct([('bytes', pa.binary())])),
    ['0', '1', '2'],
  ),
  'texts': (plain(label=STRINGS), ['cat', 'dog', 'fox']),
  'a dictionary': (
    plain(label=STRINGS.dictionary_encode()),
    ['cat', 'dog', 'fox'],
  ),
  'numbers of one byte': (
    plain(label=pa.array([n % 3 for n in range(6)], pa.int8())),
    ['0', '1', '2'],
  ),
  'another name': (
    plain(label=None, species=STRINGS, width=pa.array(range(6))),
    ['cat', 'dog', 'fox'],
  ),
  'names in a dict': (
    table_of(
      range(6),
      {
        'image': IMAGE,
        'label': LABEL | {'names': {'0': 'a', '2': 'c', '1': 'b'}},
      },
    ),
    ['a', 'b', 'c'],
  ),
  'numbers beyond ten': (
    plain(label=pa.array([n % 3 + 8 for n in range(6)])),
    ['8', '9', '10'],
  ),
}


@pytest.mark.parametrize('ending', ['parquet', 'arrow'])
@pytest.mark.parametrize('case', COLUMNS)
def test_columns(case, ending, tmp_path):
  table, names = COLUMNS[case]
  write(tmp_path, {f'pets.{ending}': table})
  for place in (tmp_path, tmp_path / f'pets.{ending}'):
    found = columnar.read_columnar(str(place), Labelling())
    assert found.class_names == names
    assert list(found.splits) == ['unsplit']
    numbers = numbers_of(found)['unsplit']
    assert sorted(numbers) == list(range(6))
    assert all(numbers[n] == numbers[n + 3] for n in range(3))


def test_stated_columns(tmp_path):
  features = {'image': IMAGE, 'fine': LABEL, 'coarse': LABEL}
  labels_of = pa.array([n % 2 for n in range(6)])
  table = table_of(
    range(6), features, label=None, fine=labels_of, coarse=labels_of
  )
  write(tmp_path, {'train.parquet': table})
  message = "columns 'fine', 'coarse' may each be the label; say which"
  with pytest.raises(ValueError, match=message):
    columnar.read_columnar(str(tmp_path), Labelling())
  labelling = Labelling(label_column='coarse')
  found = columnar.read_columnar(str(tmp_path), labelling)
  assert numbers_of(found)['train'] == {n: NAMES[n % 2] for n in range(6)}
  with pytest.raises(ValueError, match="'corse'; .*did you mean coarse"):
    columnar.read_columnar(str(tmp_path), Labelling(label_column='corse'))


def test_splits_of_a_column(tmp_path):
  words = pa.array(['train', 'train', 'train', 'val', 'val', 'train'])
  write(tmp_path, {'pets.parquet': plain(split=words)})
  found = columnar.read_columnar(str(tmp_path), Labelling())
  assert {s: sorted(n) for s, n in numbers_of(found).items()} == {
    'train': [0, 1, 2, 5],
    'validation': [3, 4],
  }


def test_a_split_whose_labels_are_withheld(tmp_path):
  hidden = table_of(range(9, 15), label=pa.array([-1] * 6, pa.int64()))
  write(tmp_path, {'train.parquet': TRAIN, 'test.parquet': hidden})
  found = columnar.read_columnar(str(tmp_path), Labelling())
  assert list(found.splits) == ['train']
  assert found.notes == [
    'test holds no labels and is not used',
    'classes without images, left out: unused',
  ]


def beside(root, kind: str, count: int = 6):
  """Writes images and a table of their paths; returns that of the images."""
  (root / 'images').mkdir()
  for n in range(count):
    (root / 'images' / f'{n}.png').write_bytes(as_bytes(n))
  paths = [f'images/{n}.png' for n in range(count)]
  images = {
    'texts': pa.array(paths),
    'a dictionary': pa.array(paths).dictionary_encode(),
    'structs without bytes': pa.array(
      [{'path': path} for path in paths], pa.struct([('path', pa.string())])
    ),
    'structs': pa.array([{'bytes': None, 'path': p} for p in paths], STRUCT),
  }[kind]
  ending = 'arrow' if kind == 'structs without bytes' else 'parquet'
  table = table_of(range(count), {}, image=images)
  write(root, {f'train.{ending}': table})
  return root / 'images'


BESIDE = ['texts', 'a dictionary', 'structs without bytes', 'structs']


@pytest.mark.parametrize('kind', BESIDE)
def test_images_beside_the_table(kind, tmp_path):
  """A row has a path and no bytes."""
  images = beside(tmp_path, kind)
  found = columnar.read_columnar(str(tmp_path), Labelling())
  files = [one.file for one in found.splits['train']]
  assert [*found.read(files)] == [as_bytes(n) for n in range(6)]
  # Another image of that name is another set.
  (images / '3.png').write_bytes(as_bytes(9))
  again = columnar.read_columnar(str(tmp_path), Labelling())
  assert again.fingerprint != found.fingerprint
  # It may be there again later, so that its absence is no image's fault.
  (images / '3.png').unlink()
  with pytest.raises(FileNotFoundError, match='images/3.png cannot be read'):
    list(columnar.read_columnar(str(tmp_path), Labelling()).read(files))


def test_rows_without_an_image(tmp_path):
  rows = [{'bytes': None, 'path': None}, None, image(2)]
  write(
    tmp_path, {'x.parquet': table_of(range(3), image=pa.array(rows, STRUCT))}
  )
  found = columnar.read_columnar(str(tmp_path), Labelling())
  *none, there = found.read(one.file for one in found.splits['unsplit'])
  assert all(b'no image in this row' in one for one in none)
  assert there == as_bytes(2)


def test_images_that_were_away_for_a_while(load, tmp_path):
  """No copy is made without them."""
  images = beside(tmp_path, 'texts', 30)
  images.rename(tmp_path / 'unmounted')
  with pytest.raises(FileNotFoundError, match='images/0.png cannot be read'):
    load(f'parquet:{tmp_path}')
  (tmp_path / 'unmounted').rename(images)
  assert sum(map(len, load(f'parquet:{tmp_path}').splits.values())) == 30


LISTS = pa.array([[n % 3] for n in range(6)])
POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n'
REFUSED = {
  'nothing': ({'x.txt': b''}, 'no file that ends in .parquet or .arrow'),
  'a shard is missing': (
    {
      'train-00000-of-00003.parquet': FIRST,
      'train-00002-of-00003.parquet': SECOND,
    },
    'train-00001-of-00003.parquet is missing',
  ),
  'shards of arrow are missing': (
    {'train/data-00001-of-00003.arrow': FIRST},
    'data-00000-of-00003.arrow, data-00002-of-00003.arrow are missing in tr',
  ),
  'two data sets': (
    {'a/train.parquet': TRAIN, 'b/train.parquet': TRAIN},
    'several data sets, a, b; give the folder of one',
  ),
  'two in one folder': (
    {'a-train.parquet': TRAIN, 'b-train.parquet': TRAIN},
    'several data sets, a, b',
  ),
  'other columns': (
    {'train.parquet': TRAIN, 'test.parquet': plain(label=None, tag=STRINGS)},
    'test.parquet and train.parquet differ in their columns or classes',
  ),
  'other classes': (
    {
      'train.parquet': TRAIN,
      'test.parquet': table_of(
        range(6), {'image': IMAGE, 'label': LABEL | {'names': NAMES[::-1]}}
      ),
    },
    'differ in their columns or classes',
  ),
  'a pointer': (
    {'train.parquet': POINTER}, 'train.parquet is a pointer of Git LFS; run git'
  ),
  'damage': ({'train.parquet': b'PAR1' + b'x' * 40}, 'train.parquet cannot be'),
  'another file': ({'train.parquet': b'<html>404</html>'}, 'cannot be read'),
  'no label': (
    {'train.parquet': plain(label=None, caption=STRINGS)},
    'no column for the label .* it has image, caption. Name it with data.label',
  ),
  'two images': (
    {'train.parquet': plain(mask=pa.array([b'x'] * 6))},
    "columns 'image', 'mask' may each be the image",
  ),
  'lists of labels': (
    {'train.parquet': plain(label=LISTS)},
    "column 'label' holds lists .*Multi-label data sets are not for this",
  ),
  'lists of named labels': (
    {
      'train.parquet': table_of(
        range(6),
        {'image': IMAGE, 'labels': {'_type': 'Sequence', 'feature': LABEL}},
        label=None,
        labels=LISTS,
      )
    },
    "column 'labels' holds lists .*Multi-label",
  ),
  'labels that are joined': (
    {'train.parquet': plain(label=pa.array(['a', 'b', 'a|b', 'a', 'b', 'a']))},
    'Multi-label',
  ),
  'a number without a name': (
    {'train.parquet': table_of(range(6), label=pa.array([0, 1, 2, 3, 4, 0]))},
    'row 5: label is 4; the classes are 0 to 3',
  ),
  'labels that are missing': (
    {'train.parquet': table_of(range(5), label=pa.array([0, 1, -1, 3, None]))},
    'no label in train.parquet row 3, train.parquet row 5',
  ),
  'no train': ({'test.parquet': TEST, 'val.parquet': TRAIN}, 'none of them tr'),
  'one name for two classes': (
    {
      'train.parquet': table_of(
        range(6), {'image': IMAGE, 'label': LABEL | {'names': ['a', 'b', 'a']}}
      )
    },
    'a is the name of several classes',
  ),
}  # fmt: skip


@pytest.mark.parametrize('case', REFUSED)
def test_what_is_refused(case, tmp_path):
  files, message = REFUSED[case]
  write(tmp_path, files)
  with pytest.raises(ValueError, match=message) as error:
    labels.check_classes(columnar.read_columnar(str(tmp_path), Labelling()))
  assert str(error.value).startswith(f'parquet:{tmp_path}')


def test_nothing_there(tmp_path):
  with pytest.raises(FileNotFoundError, match='no such file or folder'):
    columnar.read_columnar(str(tmp_path / 'x'), Labelling())


def test_how_to_get_pyarrow(tmp_path, monkeypatch):
  write(tmp_path, {'train.parquet': TRAIN})
  own = builtins.__import__

  def without(name, *args, **kwargs):
    if name.startswith('pyarrow'):
      raise ModuleNotFoundError(name)
    return own(name, *args, **kwargs)

  monkeypatch.setattr(builtins, '__import__', without)
  message = 'need pyarrow: pip install pyarrow, or .*tlkd_jax.parquet'
  with pytest.raises(ValueError, match=message):
    columnar.read_columnar(str(tmp_path), Labelling())
  with pytest.raises(ValueError, match=message):
    tables.read('csv:x', 'x.parquet', b'PAR1')


def test_a_table_of_paths_in_parquet():
  table = pa.table({'file_name': ['a.png', 'b.png'], 'label': [1, 2]})
  sink = pa.BufferOutputStream()
  pq.write_table(table, sink)
  read = tables.read('x', 'metadata.parquet', sink.getvalue().to_pybytes())
  assert read.columns == {'file_name': ['a.png', 'b.png'], 'label': [1, 2]}
  with pytest.raises(ValueError, match='x is no parquet file'):
    tables.read('x', 'metadata.parquet', b'nothing')


@pytest.mark.parametrize('most', [1 << 30, 400])
def test_pixels_and_labels_through_records(most, load, tmp_path, monkeypatch):
  """Also in parts of bounded size."""
  monkeypatch.setattr('tlkd_jax.data.builders.folder.MAX_PART_BYTES', most)
  write(
    tmp_path,
    {
      'data/train-00000-of-00002.parquet': table_of(range(8)),
      'data/train-00001-of-00002.parquet': table_of(range(8, 15)),
      'data/test-00000-of-00001.parquet': table_of(range(15, 21)),
    },
  )
  found = load(f'parquet:{tmp_path}')
  assert found.class_names == ['fox', 'cat', 'dog']
  assert {s: len(split) for s, split in found.splits.items()} == {
    'train': 12, 'validation': 3, 'test': 6
  }  # fmt: skip
  for split in found.splits.values():
    for name, label, pixels in zip(
      split.names, split.labels, split.images, strict=True
    ):
      number = int(name.rpartition('-')[2].removesuffix('.png'))
      assert label == number % 3
      expected = np.asarray(picture(str(number)), float).mean()
      assert abs(pixels.mean() - expected) < 20
  opened = sources.open_sources(f'parquet:{tmp_path}', cache_dir=tmp_path / 'c')
  lines = facts.lines(
    'x',
    facts.collect(opened, {s: x.labels for s, x in opened.splits.items()}),
    [],
  )
  assert '3 classes: fox, cat, dog' in lines
