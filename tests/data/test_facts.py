"""What a data set holds, as every run says it."""

import json
import shutil

import numpy as np
import pytest
from pictures import encode, make_classes, picture
from sklearn.datasets import load_digits

from tlkd_jax.data import facts, index, prepared, sources, transforms
from tlkd_jax.data.builders import walk
from tlkd_jax.data.builders.walk import LeftOut


def _source(*rows):
  """(name, label, digest) of each image."""
  names, labels, digests = zip(*rows, strict=True) if rows else ((), (), ())
  return index.Source(
    list(names),
    np.asarray(labels, np.int32),
    np.arange(len(names)),
    lambda position: b'',
    '',
    np.asarray(digests, np.uint64),
  )


def _copy(what, split, count, *example):
  return {
    'what': what,
    'split': split,
    'count': count,
    'example': list(example),
  }


@pytest.mark.parametrize(
  'train, validation, test, expected',
  [
    ([('a', 0, 1), ('b', 1, 2)], [('c', 0, 3)], [('d', 1, 4)], []),
    (
      [('a', 0, 1), ('b', 1, 2)],
      [('c', 0, 3)],
      [('d', 0, 1), ('e', 1, 2), ('f', 1, 5)],
      [_copy('across', 'test', 2, 'd', 'a')],
    ),
    (
      [('a', 0, 1)],
      [('b', 0, 2)],
      [('c', 0, 2), ('d', 0, 1)],
      [_copy('across', 'test', 2, 'c', 'b')],
    ),
    (
      [('a', 0, 7), ('b', 0, 7), ('c', 0, 7)],
      [('d', 0, 2)],
      [('e', 0, 3)],
      [_copy('within', 'train', 2, 'b', 'a')],
    ),
    (
      [('a', 0, 7), ('b', 1, 7)],
      [('c', 0, 2)],
      [('d', 0, 3)],
      [
        _copy('within', 'train', 1, 'b', 'a'),
        _copy('classes', 'train', 1, 'b', 'a'),
      ],
    ),
    (
      [('a', 0, 1)],
      [('b', 1, 1)],
      [('c', 0, 9), ('d', 0, 9)],
      [
        _copy('across', 'validation', 1, 'b', 'a'),
        _copy('classes', 'validation', 1, 'b', 'a'),
        _copy('within', 'test', 1, 'd', 'c'),
      ],
    ),
    # Files that cannot be read are like no other.
    ([('a', 0, 0), ('b', 1, 0)], [('c', 0, 0)], [('d', 0, 0)], []),
  ],
)
def test_copies(train, validation, test, expected):
  splits = {
    'train': _source(*train),
    'validation': _source(*validation),
    'test': _source(*test),
  }
  assert facts.find_copies(splits) == expected


def test_a_copy_of_train_as_test_is_said(load, tmp_path):
  make_classes(tmp_path / 'train', {'cat': 10, 'dog': 10})
  shutil.copytree(tmp_path / 'train', tmp_path / 'test')
  for _ in range(2):  # the second time from the cache
    dataset = load(f'folder:{tmp_path}')
    (found,) = dataset.facts['copies']
    assert (found['what'], found['split'], found['count']) == (
      'across',
      'test',
      20,
    )
    assert (
      '20 of 20 images of test are exact copies of images of train or '
      'validation, such as test/cat/' in dataset.describe()
    )


@pytest.mark.parametrize('splits', ['', 'train'])
def test_copies_are_cut_into_one_split(splits, load, tmp_path):
  """Of one folder, or of its training images."""
  root = tmp_path / splits
  make_classes(root, {'cat': 30, 'dog': 30})
  if splits:
    make_classes(tmp_path / 'test', {'cat': 2, 'dog': 2})
  for i in range(30):
    shutil.copy(root / 'cat' / f'{i:03d}.png', root / 'cat' / f'b{i}.png')
  dataset = load(f'folder:{tmp_path}')
  found = {(c['what'], c['split']) for c in dataset.facts['copies']}
  assert ('within', 'train') in found
  assert {what for what, _ in found} == {'within'}
  assert any(
    'copies of a class kept together' in note for note in dataset.notes
  )


def test_digits_and_arrays_have_facts_too(load):
  held = load('digits', num_train_per_class=3).facts
  counts = np.bincount(load_digits().target)
  assert held['classes'] == 10 and held['left_out'] == []
  assert held['splits']['train'] == {
    'images': 1169,
    'used': 30,
    'smallest': ['0', 3],
    'largest': ['0', 3],
  }
  assert sum(s['images'] for s in held['splits'].values()) == counts.sum()


def test_counts_are_of_what_is_used(load, tmp_path):
  make_classes(tmp_path / 'train', {'a': 12, 'b': 7, 'c': 9})
  make_classes(tmp_path / 'val', {'a': 2, 'b': 2, 'c': 1})
  make_classes(tmp_path / 'test', {'a': 2, 'b': 3, 'c': 1})
  (tmp_path / 'train' / 'b' / '003.png').write_bytes(b'no image')
  dataset = load(f'folder:{tmp_path}', on_bad_image='skip')
  assert dataset.facts['splits'] == {
    'train': {
      'images': 28,
      'used': 27,
      'smallest': ['b', 6],
      'largest': ['a', 12],
    },
    'validation': {
      'images': 5,
      'used': 5,
      'smallest': ['c', 1],
      'largest': ['a', 2],
    },
    'test': {'images': 6, 'used': 6, 'smallest': ['c', 1], 'largest': ['b', 3]},
  }
  text = dataset.describe()
  for line in (
    '3 classes: a, b, c',
    'train: 27 of 28 images, 6 (b) to 12 (a) of a class',
    'val/ is read as validation',
  ):
    assert line in text
  json.dumps(dataset.facts, allow_nan=False)


def test_what_was_left_out_is_fresh_though_the_copy_is_not(load, tmp_path):
  make_classes(tmp_path, {'a': 8, 'b': 8})
  assert load(f'folder:{tmp_path}').facts['left_out'] == []
  for i in range(3):
    (tmp_path / 'a' / f'{i}.raw').write_bytes(b'x')
  (tmp_path / 'notes.txt').write_text('x')
  dataset = load(f'folder:{tmp_path}')
  assert dataset.facts['left_out'] == [
    {'why': '.raw', 'count': 3, 'example': 'a/0.raw'},
    {'why': '.txt', 'count': 1, 'example': 'notes.txt'},
  ]
  assert 'left out: 3 (.raw), such as a/0.raw' in dataset.describe()


def test_many_kinds_of_files_are_summed_up():
  left_out = [LeftOut(f'{i}.{i}', f'.{i}') for i in range(30)]
  left_out += [LeftOut('a.txt', '.txt')] * 5
  kinds = walk.count_left_out(left_out)
  assert len(kinds) == 21 and kinds[0]['why'] == '.txt'
  assert kinds[-1]['count'] == 11
  assert sum(kind['count'] for kind in kinds) == 35


def test_digests_are_those_of_the_files(load, tmp_path):
  make_classes(tmp_path / 'train', {'a': 4, 'b': 4})
  make_classes(tmp_path / 'test', {'a': 4, 'b': 4})
  same = encode(picture('same'), 'PNG')
  for name in ('train/a/000.png', 'train/b/001.png', 'test/a/002.png'):
    (tmp_path / name).write_bytes(same)
  (tmp_path / 'train' / 'a' / '003.png').write_bytes(b'')
  opened = sources.open_sources(f'folder:{tmp_path}', cache_dir=tmp_path / 'c')
  rows = [
    (name, digest)
    for source in opened.splits.values()
    for name, digest in zip(source.names, source.digests, strict=True)
  ]
  digests = dict(rows)
  assert digests['train/a/003.png'] == index.NO_DIGEST
  assert len(set(digests.values())) == 16 - 2
  assert digests['train/a/000.png'] == digests['test/a/002.png']


def test_a_damaged_index_is_made_again(load, tmp_path):
  make_classes(tmp_path / 'images', {'a': 6, 'b': 6})
  options = {'cache_dir': tmp_path / 'cache'}
  first = load(f'folder:{tmp_path / "images"}', **options)
  (index,) = (tmp_path / 'cache' / 'index').iterdir()
  whole = index.read_bytes()
  step = len(whole) // 25
  for at in range(0, len(whole), step):
    for damaged in (
      whole[:at],
      whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :],
    ):
      index.write_bytes(damaged)
      again = sources.open_sources(f'folder:{tmp_path / "images"}', **options)
      assert again.splits['train'].names == first.splits['train'].names
      assert (
        again.splits['train'].labels == first.splits['train'].labels
      ).all()


def test_no_space_for_a_copy(load, tmp_path, monkeypatch):
  make_classes(tmp_path / 'images', {'a': 6, 'b': 6})
  full = shutil._ntuple_diskusage(10**9, 10**9, 5)
  monkeypatch.setattr(prepared.shutil, 'disk_usage', lambda path: full)
  with pytest.raises(OSError, match='are needed for a copy of folder:'):
    load(f'folder:{tmp_path / "images"}', cache_dir=tmp_path / 'cache')


def test_an_unreadable_file_is_said_where_bad_images_are():
  data = transforms.unreadable('cut short')
  with pytest.raises(transforms.BadImageError, match='^cut short$'):
    transforms.decode_image(data)
