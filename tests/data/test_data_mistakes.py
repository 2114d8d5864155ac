"""What bad folders, names and options get."""

import pytest
from pictures import make_classes


def _case(make, message, error=ValueError, **options):
  return make, message, error, options


BAD_FOLDERS = {
  'missing': _case(lambda root: root / 'nowhere', 'no such', FileNotFoundError),
  'file': _case(lambda root: _write(root / 'x.txt'), 'neither a folder nor'),
  'no classes': _case(lambda root: root, 'no class folders'),
  'empty class': _case(
    lambda root: _classes(root, {'a': 5, 'b': 5, 'void': 0}),
    "class 'void' holds no images.*png",
  ),
  'empty train class': _case(
    lambda root: _splits(root, {'a': 5, 'void': 0}, {'a': 2}),
    "class 'void' in train holds no images",
  ),
  'unknown test class': _case(
    lambda root: _splits(root, {'a': 5, 'b': 5}, {'a': 2, 'zebra': 2}),
    "class 'zebra' is in test but not in train, which has 'a', 'b'",
  ),
  'no train': _case(
    lambda root: _splits(root, {}, {'a': 2, 'b': 2}), 'no train/ folder'
  ),
  'one class': _case(lambda root: _splits(root, {'a': 5}, {}), 'one class'),
  'two names of one split': _case(
    lambda root: _twice(root), "'val', 'validation'.*one split twice"
  ),
  'too few to cut': _case(
    lambda root: _classes(root, {'a': 5, 'b': 2}), "'b' has 2 images"
  ),
  'too many per class': _case(
    lambda root: _splits(root, {'a': 9, 'b': 5}, {'a': 2, 'b': 2}),
    "num_train_per_class=6 .*'b' has 4; at most 4",
    num_train_per_class=6,
  ),
}


def _write(path):
  path.write_text('text')
  return path


def _classes(root, counts):
  make_classes(root, counts)
  return root


def _splits(root, train, test):
  make_classes(root / 'train', train)
  make_classes(root / 'test', test)
  return root


def _twice(root):
  for split in ('train', 'val', 'validation'):
    make_classes(root / split, {'a': 4, 'b': 4})
  return root


@pytest.mark.parametrize('case', BAD_FOLDERS)
def test_bad_folders(load, tmp_path, case):
  make, message, error, options = BAD_FOLDERS[case]
  with pytest.raises(error, match=message):
    load(f'folder:{make(tmp_path)}', **options)


@pytest.mark.parametrize(
  'name, message',
  [
    ('digit', "'digits'"),
    ('cifar1O', "Did you mean 'cifar10'"),
    ('folders:/tmp', "'folder'"),
    ('folder', 'folder:PATH'),
    ('folder:', 'folder:PATH'),
    ('digits:x', 'no path'),
    ('qqqqqqqq', 'Accepted: digits, folder:PATH'),
  ],
)
def test_unknown_names(load, tmp_path, name, message):
  with pytest.raises(ValueError, match=message):
    load(name, data_dir=tmp_path)


def test_unprepared_tfds_set_says_how(load, tmp_path):
  message = 'tlkd_jax.data.prepare --dataset cifar10 --data_dir'
  with pytest.raises(FileNotFoundError, match=message):
    load('cifar10', data_dir=tmp_path)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'image_size': 0}, 'image_size is 0'),
    ({'crop_fraction': 0.0}, 'crop_fraction'),
    ({'crop_fraction': 1.1}, 'crop_fraction'),
    ({'interpolation': 'cubic'}, "'cubic'; accepted: .*bicubic"),
    ({'train_size': 8}, 'train_size is 8'),
    ({'on_bad_image': 'ignore'}, "'error', 'skip'"),
    ({'train_fraction': 0.5, 'num_train_per_class': 3}, 'both set'),
  ],
)
def test_bad_options(load, options, message):
  with pytest.raises(ValueError, match=message):
    load('digits', **options)
