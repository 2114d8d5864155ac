"""Data of which nothing is trained: no train and one class are enough."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trees
from pictures import encode, make_classes, picture

from tlkd_jax.data import Labelling, Look, other

LOOK = Look(16, 0.875, 'bicubic')
TABLE = 'path,label,split\n0.png,cat,test\n1.png,dog,test\n2.png,dog,val\n'
PATTERN = Labelling(pattern='{class}_*.png')


@pytest.fixture
def evaluated(data_cache):
  """Names and classes of the test images of data, for a cat, a dog, an owl."""

  def call(name, labelling=None):
    found = other.load(
      *(name, ['cat', 'dog', 'owl'], LOOK),
      cache_dir=data_cache,
      labelling=labelling,
    ).splits['test']
    classes = [('cat', 'dog', 'owl')[label] for label in found.labels]
    return dict(zip(found.names, classes, strict=True))

  return call


@pytest.mark.parametrize('kind', ['folder', 'zip', 'tar'])
@pytest.mark.parametrize(
  ('splits', 'classes', 'expected'),
  [
    ([''], ['dog'], ['dog']),
    (['test'], ['cat', 'owl'], ['cat', 'owl']),
    (['test'], ['owl'], ['owl']),
    (['test', 'val'], ['cat', 'dog'], ['cat', 'dog']),
  ],
)
def test_folders(kind, splits, classes, expected, evaluated, load, tmp_path):
  root = tmp_path / 'other'
  for split in splits:
    make_classes(root / split, dict.fromkeys(classes, 3))
  path = root
  if kind != 'folder':
    path = shutil.make_archive(str(root), kind, root)
  found = evaluated(f'folder:{path}')
  assert sorted(found.values()) == sorted(expected * 3)
  assert all(name.startswith(splits[0]) for name in found)
  # What can be tested cannot be trained on for all that.
  with pytest.raises(ValueError, match=r'one class only|no train/ folder'):
    load(f'folder:{path}')


def test_classes_that_its_train_lacks(evaluated, tmp_path):
  make_classes(tmp_path / 'train', {'cat': 3})
  make_classes(tmp_path / 'test', {'cat': 1, 'owl': 2})
  found = evaluated(f'folder:{tmp_path}')
  assert sorted(found.values()) == ['cat', 'owl', 'owl']


@pytest.mark.parametrize('kind', ['csv:{}/metadata.csv', 'imagefolder:{}'])
@pytest.mark.parametrize(
  ('text', 'expected', 'refused'),
  [
    (TABLE, {'0.png': 'cat', '1.png': 'dog'}, 'none of them train'),
    (
      'path,label\n0.png,owl\n2.png,owl\n',
      {'0.png': 'owl', '2.png': 'owl'},
      'one class only',
    ),
    (
      TABLE + '3.png,cat,train\n',
      {'0.png': 'cat', '1.png': 'dog'},
      "class 'dog' is in test but not in train",
    ),
  ],
)
def test_tables(kind, text, expected, refused, evaluated, load, tmp_path):
  for k in range(4):
    (tmp_path / f'{k}.png').write_bytes(encode(picture(str(k)), 'PNG'))
  (tmp_path / 'metadata.csv').write_text(text)
  assert evaluated(kind.format(tmp_path)) == expected
  with pytest.raises(ValueError, match=refused):
    load(kind.format(tmp_path))


def test_names(evaluated, load, tmp_path):
  for k in range(3):
    (tmp_path / f'dog_{k}.png').write_bytes(encode(picture(str(k)), 'PNG'))
  found = evaluated(f'folder:{tmp_path}', PATTERN)
  assert found == {f'dog_{k}.png': 'dog' for k in range(3)}
  with pytest.raises(ValueError, match='one class only'):
    load(f'folder:{tmp_path}', labelling=PATTERN)


def test_parquet(evaluated, load, tmp_path):
  images = [encode(picture(str(k)), 'PNG') for k in range(3)]
  table = pa.table({'image': images, 'label': ['cat', 'owl', 'owl']})
  pq.write_table(table, tmp_path / 'test.parquet')
  found = evaluated(f'parquet:{tmp_path}')
  assert [*found.values()] == ['cat', 'owl', 'owl']
  with pytest.raises(ValueError, match='none of them train'):
    load(f'parquet:{tmp_path}')


def test_what_is_refused_all_the_same(evaluated, tmp_path):
  trees.write(tmp_path, 'test/cat/ test/dog/0.png')
  with pytest.raises(ValueError, match="class 'cat' in test holds no images"):
    evaluated(f'folder:{tmp_path}')
