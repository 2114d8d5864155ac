import errno
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import trees
from pictures import encode, make_classes, picture
from PIL import Image
from sklearn.datasets import load_digits

from tlkd_jax.data import Labelling, prepared, transforms
from tlkd_jax.data.builders import folder, layout, walk
from tlkd_jax.runtime import mapped


def _per_class(split, num_classes):
  return np.bincount(split.labels, minlength=num_classes).tolist()


def fingerprints(dataset):
  return [split.fingerprint() for split in dataset.splits.values()]


def test_digits_are_the_real_ones(digits):
  assert digits.class_names == [str(d) for d in range(10)]
  assert not digits.flip_ok
  images, labels = load_digits(return_X_y=True)
  seen = []
  for split in digits.splits.values():
    assert split.images.dtype == np.uint8
    assert split.images.shape == (len(split), 16, 16, 3)
    assert split.labels.dtype == np.int32
    assert split.indices.dtype == np.int64
    for position in range(0, len(split), 50):
      row = int(split.names[position].removeprefix('digit-'))
      assert split.labels[position] == labels[row]
      small = np.rint(images[row].reshape(8, 8) * (255 / 16)).astype(np.uint8)
      large = Image.fromarray(small).resize((16, 16), Image.Resampling.BICUBIC)
      expected = np.asarray(large)[..., None].repeat(3, -1)
      np.testing.assert_array_equal(split.images[position], expected)
    seen += split.names
  assert sorted(seen) == [f'digit-{i:04d}' for i in range(1797)]


def test_digits_split_is_fixed_and_stratified(digits):
  splits = digits.splits
  sizes = {name: len(split) for name, split in splits.items()}
  assert sizes == {'train': 1169, 'validation': 269, 'test': 359}
  totals = np.bincount(load_digits().target)
  for name, share in [('train', 0.65), ('validation', 0.15), ('test', 0.2)]:
    counts = np.asarray(_per_class(splits[name], 10))
    assert np.abs(counts - share * totals).max() <= 1
  assert splits['test'].names[:3] == ['digit-0000', 'digit-0003', 'digit-0009']


@pytest.mark.parametrize('unit', ['num_train_per_class', 'train_fraction'])
def test_subsets_are_nested_stratified_and_seeded(load, digits, unit):
  sizes = {'num_train_per_class': (5, 20), 'train_fraction': (0.05, 0.2)}[unit]
  small, large = (load('digits', **{unit: n}) for n in sizes)
  again = load('digits', **{unit: sizes[0]})
  other = load('digits', seed=1, **{unit: sizes[0]})
  names = {
    key: set(dataset.splits['train'].names)
    for key, dataset in
    [('small', small), ('large', large), ('again', again), ('other', other)]
  }  # fmt: skip
  assert names['small'] == names['again'] and names['small'] < names['large']
  assert len(names['small'] & names['other']) < len(names['small']) / 2
  counts = _per_class(small.splits['train'], 10)
  assert max(counts) - min(counts) <= (unit == 'train_fraction')
  if unit == 'num_train_per_class':
    assert counts == [5] * 10
  for split in ('validation', 'test'):
    fingerprints = {
      dataset.splits[split].fingerprint()
      for dataset in (small, large, other, digits)
    }
    assert len(fingerprints) == 1


def test_index_of_an_example_does_not_depend_on_the_subset(load, digits):
  whole = digits.splits['train']
  number_of = dict(zip(whole.names, whole.indices.tolist(), strict=True))
  part = load('digits', num_train_per_class=7, seed=3).splits['train']
  assert [number_of[name] for name in part.names] == part.indices.tolist()
  assert len(set(number_of.values())) == len(whole)


@pytest.mark.parametrize(
  ('validation', 'test'), [(4, 4), (4, 3), (None, 2), (5, None)]
)
def test_validation_and_test_are_cut_apart(load, digits, validation, test):
  dataset = load(
    'digits', num_validation_per_class=validation, num_test_per_class=test
  )
  for split, count in (('validation', validation), ('test', test)):
    found, all_of_it = dataset.splits[split], digits.splits[split]
    if count is None:
      assert found.names == all_of_it.names
    else:
      assert _per_class(found, 10) == [count] * 10
      assert set(found.names) < set(all_of_it.names)
  assert dataset.splits['train'].names == digits.splits['train'].names


def test_folder_with_three_splits(load, three_splits):
  dataset = load(f'folder:{three_splits}')
  assert dataset.class_names == ['cat', 'dog', 'owl']
  assert dataset.flip_ok and dataset.notes == []
  assert {n: _per_class(s, 3) for n, s in dataset.splits.items()} == {
    'train': [12, 9, 20],
    'validation': [3, 3, 3],
    'test': [4, 5, 6],
  }
  train = dataset.splits['train']
  # 16 / 0.875 pixels for train, so that a crop has room; 16 for the others.
  assert train.images.shape[1:] == (18, 18, 3)
  assert dataset.splits['test'].images.shape[1:] == (16, 16, 3)
  position = train.names.index('train/dog/004.png')
  expected = transforms.load_square(
    (three_splits / 'train/dog/004.png').read_bytes(), short_side=18, size=18
  )
  np.testing.assert_array_equal(train.images[position], expected)
  assert train.labels[position] == 1


def test_train_size_stores_more_pixels(load, three_splits):
  dataset = load(f'folder:{three_splits}', train_size=30)
  assert dataset.splits['train'].images.shape[1:] == (30, 30, 3)
  assert dataset.splits['test'].images.shape[1:] == (16, 16, 3)


def test_validation_is_cut_from_train(load, tmp_path):
  make_classes(tmp_path / 'train', {'a': 20, 'b': 30})
  make_classes(tmp_path / 'test', {'a': 4, 'b': 4})
  dataset = load(f'folder:{tmp_path}', validation_fraction=0.2)
  assert _per_class(dataset.splits['train'], 2) == [16, 24]
  assert _per_class(dataset.splits['validation'], 2) == [4, 6]
  assert _per_class(dataset.splits['test'], 2) == [4, 4]
  assert not set(dataset.splits['train'].names) & set(
    dataset.splits['validation'].names
  )
  assert dataset.notes == [
    'validation (10 images) cut from its 50 training images'
  ]


def test_validation_serves_as_test_if_there_is_none(load, tmp_path):
  make_classes(tmp_path / 'train', {'a': 20, 'b': 20})
  make_classes(tmp_path / 'val', {'a': 3, 'b': 3})
  dataset = load(f'folder:{tmp_path}')
  assert all(n.startswith('val/') for n in dataset.splits['test'].names)
  assert _per_class(dataset.splits['validation'], 2) == [2, 2]
  assert any('used as test' in note for note in dataset.notes)


def test_class_folders_are_split_by_name(load, tmp_path):
  make_classes(tmp_path / 'first', {'train': 20, 'bus': 20})
  dataset = load(f'folder:{tmp_path / "first"}')
  assert dataset.class_names == ['bus', 'train']
  assert {n: _per_class(s, 2) for n, s in dataset.splits.items()} == {
    'train': [14, 14],
    'validation': [2, 2],
    'test': [4, 4],
  }
  # Elsewhere, with other times of change, the split is the same.
  shutil.copytree(tmp_path / 'first', tmp_path / 'second')
  copy = load(f'folder:{tmp_path / "second"}')
  for split in dataset.splits:
    assert copy.splits[split].names == dataset.splits[split].names


def test_zip_is_read_like_its_folder(load, three_splits, tmp_path):
  path = tmp_path / 'pets.zip'
  with zipfile.ZipFile(path, 'w') as archive:
    for file in three_splits.rglob('*.png'):
      archive.write(file, f'pets/{file.relative_to(three_splits)}')
    archive.writestr('__MACOSX/pets/train/cat/._1.png', b'x')
    archive.writestr('pets/train/cat/.hidden.png', b'x')
  zipped, plain = load(f'folder:{path}'), load(f'folder:{three_splits}')
  for split in plain.splits:
    assert zipped.splits[split].names == plain.splits[split].names
    assert (
      zipped.splits[split].fingerprint() == plain.splits[split].fingerprint()
    )


def test_changed_folder_is_noticed(load, tmp_path):
  make_classes(tmp_path, {'a': 10, 'b': 10})
  before = load(f'folder:{tmp_path}')
  make_classes(tmp_path, {'b': 11})
  after = load(f'folder:{tmp_path}')
  assert sum(map(len, before.splits.values())) == 20
  assert sum(map(len, after.splits.values())) == 21


def test_large_splits_are_written_in_parts(monkeypatch, load, tmp_path):
  make_classes(tmp_path, {'a': 12, 'b': 12})
  monkeypatch.setattr(folder, 'MAX_PART_BYTES', 2000)
  with walk.open_folder(tmp_path) as tree:
    listing = layout.arrange(tree)
  whole = [
    file for files in listing.files['unsplit'].values() for file in files
  ]
  parts = folder.parts('unsplit', whole, lambda item: item[1].size)
  assert len(parts) > 3 and sum(map(len, parts.values())) == 24
  dataset = load(f'folder:{tmp_path}')
  names = [n for split in dataset.splits.values() for n in split.names]
  assert len(set(names)) == 24
  train = dataset.splits['train']
  for name, image in zip(train.names, train.images, strict=True):
    data = (tmp_path / name).read_bytes()
    expected = transforms.load_square(data, short_side=18, size=18)
    np.testing.assert_array_equal(image, expected)


@pytest.fixture
def with_bad(tmp_path):
  """Ten images per class; two of class b are not whole."""
  make_classes(tmp_path / 'train', {'a': 10, 'b': 10})
  make_classes(tmp_path / 'validation', {'a': 2, 'b': 2})
  make_classes(tmp_path / 'test', {'a': 2, 'b': 2})
  broken = tmp_path / 'train' / 'b'
  whole = (broken / '003.png').read_bytes()
  (broken / '003.png').write_bytes(whole[: len(whole) // 2])
  (broken / '007.png').write_text('not an image')
  return tmp_path


def test_bad_images_are_named(load, with_bad):
  with pytest.raises(ValueError, match='2 bad image') as caught:
    load(f'folder:{with_bad}')
  for part in ('train/b/003.png', 'train/b/007.png', 'on_bad_image', 'train'):
    assert part in str(caught.value)


@pytest.mark.parametrize('budget', [1 << 30, 0])
def test_bad_images_are_skipped_and_counted(load, with_bad, budget):
  dataset = load(
    f'folder:{with_bad}', on_bad_image='skip', memory_budget_bytes=budget
  )
  train = dataset.splits['train']
  assert _per_class(train, 2) == [10, 8]
  assert len(train.images) == len(train.names) == len(train.indices) == 18
  assert [n for n, _ in sorted(dataset.skipped['train'])] == [
    'train/b/003.png',
    'train/b/007.png',
  ]
  assert all(reason for _, reason in dataset.skipped['train'])
  assert dataset.skipped['test'] == []
  for name, image in zip(train.names, train.images, strict=True):
    data = (with_bad / name).read_bytes()
    expected = transforms.load_square(data, short_side=18, size=18)
    np.testing.assert_array_equal(image, expected)


def test_a_skipped_image_is_replaced_in_a_subset(load, with_bad):
  for seed in range(3):
    names = []
    for count in (4, 8):
      train = load(
        f'folder:{with_bad}',
        on_bad_image='skip',
        num_train_per_class=count,
        seed=seed,
      ).splits['train']
      assert _per_class(train, 2) == [count, count]
      names.append(set(train.names))
    assert names[0] < names[1]
  with pytest.raises(ValueError, match='b/.* has 8 images of the 9 needed'):
    load(f'folder:{with_bad}', on_bad_image='skip', num_train_per_class=9)


def test_over_the_budget_images_are_mapped(monkeypatch, load, three_splits):
  name = f'folder:{three_splits}'
  held = load(name)
  mapped = load(name, memory_budget_bytes=1000)
  for split in held.splits:
    assert not isinstance(held.splits[split].images, np.memmap)
    assert isinstance(mapped.splits[split].images, np.memmap)
    assert (
      held.splits[split].fingerprint() == mapped.splits[split].fingerprint()
    )

  def no_decoding(*args, **kwargs):
    raise AssertionError('decoded again')

  monkeypatch.setattr(transforms, 'load_square', no_decoding)
  again = load(name, memory_budget_bytes=1000)
  assert (
    again.splits['train'].fingerprint() == held.splits['train'].fingerprint()
  )
  with pytest.raises(AssertionError, match='decoded again'):
    load(name, memory_budget_bytes=1000, seed=5)
  monkeypatch.setattr(transforms, 'RULES', transforms.RULES - 1)
  with pytest.raises(AssertionError, match='decoded again'):
    load(name, memory_budget_bytes=1000)


def test_damaged_decoded_images_are_decoded_again(load, three_splits, tmp_path):
  name = f'folder:{three_splits}'
  options = {'memory_budget_bytes': 1000, 'cache_dir': str(tmp_path)}
  right = [
    split.fingerprint() for split in load(name, **options).splits.values()
  ]
  files = [p for p in tmp_path.glob('decoded/*') if p.is_file()]
  files += list(tmp_path.glob('decoded/.sums/*'))
  assert {p.suffix for p in files} == {'.npy', '.json', '.blake2b'}
  draw = np.random.default_rng(0)
  for path in files:
    for _ in range(6):
      content = bytearray(path.read_bytes())
      content[draw.integers(len(content))] ^= 1 << int(draw.integers(8))
      path.write_bytes(bytes(content))
      assert fingerprints(load(name, **options)) == right, path


@pytest.mark.parametrize('kind', ['folder', 'tar'])
def test_a_damaged_copy_is_made_again_or_named(
  kind, load, three_splits, tmp_path
):
  name, options = f'folder:{three_splits}', {'cache_dir': str(tmp_path)}
  if kind == 'tar':
    shutil.make_archive(str(tmp_path / 'x'), 'tar', three_splits)
    name = f'folder:{tmp_path}/x.tar'
  right = [
    split.fingerprint() for split in load(name, **options).splits.values()
  ]
  files = [p for p in tmp_path.rglob('prepared/*/**/*') if p.is_file()]
  names = {p.name for p in files}
  assert {'dataset_info.json', 'features.json', 'sums.json'} <= names
  draw = np.random.default_rng(1)
  for path in files:
    for _ in range(4):
      content = bytearray(path.read_bytes())
      content[draw.integers(len(content))] ^= 1 << int(draw.integers(8))
      whole = path.read_bytes()
      path.write_bytes(bytes(content))
      try:
        assert fingerprints(load(name, **options)) == right, path
      except ValueError as error:
        assert 'array_record' in path.name and 'is damaged' in str(error)
        path.write_bytes(whole)


ALIKE = ['folder:{}', 'folder:{}.tar', 'csv:{}/t.csv', 'imagefolder:{}']


@pytest.mark.parametrize('kind', [*ALIKE, 'imagefolder:{}.tar', 'pattern'])
def test_data_that_seem_alike_have_copies_of_their_own(kind, load, tmp_path):
  """Same last name, names, sizes and times; other pixels."""
  archive = kind == 'pattern' or kind.endswith('tar')
  labelling = Labelling(pattern=r'/([ab])/\d') if kind == 'pattern' else None
  found = []
  for where in ('before', 'after'):
    root = tmp_path / ('same' if archive else where) / 'pets'
    members = {
      f'{name}/{i}.bmp': encode(picture(f'{where}{name}{i}'), 'BMP')
      for name in 'ab'
      for i in range(10)
    }
    lines = [f'{name},{name[0]}\n' for name in members]
    table = 't.csv' if kind.startswith('csv') else 'metadata.csv'
    if kind.startswith(('csv', 'image')):
      members[table] = ('file_name,label\n' + ''.join(lines)).encode()
    for name, content in members.items():
      path = root / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(content)
      os.utime(path, (10**9, 10**9))
    packed = {f'pets/{name}': content for name, content in members.items()}
    trees.write_tar(root.with_name('pets.tar'), packed)
    name = 'folder:{}.tar' if kind == 'pattern' else kind
    found.append(load(name.format(root), labelling=labelling))
  before, after = (dataset.splits['train'] for dataset in found)
  assert before.names == after.names
  assert before.fingerprint() != after.fingerprint()


def test_no_space_for_mapped_images(monkeypatch, load, three_splits):
  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(mapped.os, 'posix_fallocate', full)
  with pytest.raises(OSError, match='are free'):
    load(f'folder:{three_splits}', memory_budget_bytes=0, seed=77)


def test_no_space_for_a_copy(tmp_path):
  """array_record's writers say it as a RuntimeError."""

  class Builder:
    def __init__(self, data_dir):
      del data_dir

    def download_and_prepare(self):
      raise RuntimeError(
        'Failed to finalize: No space left on device; writing a; at byte 1'
      )

  with pytest.raises(OSError, match='key could not be written.* space left on'):
    prepared.once(tmp_path, 'key', Builder)


def test_images_cannot_be_changed(digits):
  with pytest.raises(ValueError, match='read-only'):
    digits.splits['train'].images[0] = 0


def test_nothing_half_written_is_used(tmp_path):
  def failing(data_dir):
    raise OSError('disk full')

  with pytest.raises(OSError, match='disk full'):
    prepared.once(tmp_path, 'key', failing)
  assert list((tmp_path / 'prepared').glob('*')) == []


def test_runs_that_start_together_share_what_the_first_wrote(tmp_path):
  class Builder:
    def __init__(self, data_dir):
      self.data_dir = pathlib.Path(data_dir)

    def download_and_prepare(self):
      self.data_dir.mkdir(parents=True)
      (self.data_dir / 'mine').touch()
      # Meanwhile another run finishes.
      (tmp_path / 'prepared' / 'key').mkdir(exist_ok=True)
      (tmp_path / 'prepared' / 'key' / 'theirs').touch()

  for _ in range(2):
    builder = prepared.once(tmp_path, 'key', Builder)
    assert builder.data_dir == tmp_path / 'prepared' / 'key'
  left = [file.name for file in (tmp_path / 'prepared').rglob('*')]
  assert sorted(left) == ['key', 'theirs']


def test_empty_files_and_damaged_zip_members_are_bad_images(load, tmp_path):
  root = tmp_path / 'plain'
  make_classes(root / 'train', {'a': 6, 'b': 6})
  make_classes(root / 'test', {'a': 2, 'b': 2})
  (root / 'train' / 'a' / '001.png').write_bytes(b'')
  path = tmp_path / 'images.zip'
  with zipfile.ZipFile(path, 'w') as archive:
    for file in sorted(root.rglob('*.png')):
      archive.write(file, file.relative_to(root))
  damaged = (root / 'train' / 'b' / '002.png').read_bytes()
  data = path.read_bytes()
  assert data.count(damaged) == 1
  path.write_bytes(data.replace(damaged, damaged[:-9] + bytes(9)))
  for name, expected in [
    (root, {'train/a/001.png'}),
    (path, {'train/a/001.png', 'train/b/002.png'}),
  ]:
    skipped = load(f'folder:{name}', on_bad_image='skip').skipped
    names = {n for entries in skipped.values() for n, _ in entries}
    assert names == expected


def test_training_path_never_imports_tensorflow(data_cache):
  script = f"""
import sys
from tlkd_jax.data import load_splits, pipeline
dataset = load_splits('digits', image_size=16, cache_dir={str(data_cache)!r})
batches = pipeline.train_iterator(dataset.splits['train'], 8, 0)
next(batches)
next(iter(pipeline.eval_batches(dataset.splits['test'], 8)))
from tlkd_jax.data import augment, mixing
assert 'tensorflow' not in sys.modules
assert 'torch' not in sys.modules
print('fine')
"""
  done = subprocess.run(
    [sys.executable, '-c', script], capture_output=True, text=True, timeout=120
  )
  assert done.stdout.strip() == 'fine', done.stderr


def test_other_files_in_class_folders_are_ignored(load, tmp_path):
  make_classes(tmp_path / 'train', {'a': 6, 'b': 6})
  make_classes(tmp_path / 'test', {'a': 2, 'b': 2})
  (tmp_path / 'train' / 'a' / 'notes.txt').write_text('x')
  (tmp_path / 'train' / 'a' / '.DS_Store').write_text('x')
  (tmp_path / 'train' / 'a' / 'deep').mkdir()
  (tmp_path / 'train' / 'a' / 'deep' / 'UPPER.PNG').write_bytes(
    encode(picture('deep'), 'PNG')
  )
  (tmp_path / '.cache' / 'a').mkdir(parents=True)
  dataset = load(f'folder:{tmp_path}', validation_fraction=0.15)
  names = dataset.splits['train'].names + dataset.splits['validation'].names
  assert 'train/a/deep/UPPER.PNG' in names and len(names) == 13
