"""Arrays of a program as a data set: what is kept, and what is refused."""

import numpy as np
import pytest

from tlkd_jax.answer.labels import dataset_name
from tlkd_jax.data import Dataset, load_splits
from tlkd_jax.data.builders import arrays
from tlkd_jax.runtime.errors import UserError

NAMES = ['cat', 'dog', 'eel']


def draw(count: int, height: int = 16, width: int = 16, seed: int = 0):
  """(images, labels) of three classes in turn."""
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (count, height, width, 3), np.uint8)
  return images, np.arange(count) % 3


@pytest.fixture
def make(data_cache):
  def call(*pairs, **options):
    return Dataset.from_arrays(*pairs, cache_dir=data_cache, **options)

  return call


def test_pixels_labels_and_order_are_kept(make, load):
  pairs = [draw(count, seed=count) for count in (12, 6, 9)]
  made = make(*pairs, class_names=NAMES)
  assert made.class_names == NAMES and made.image_size == 16
  assert made.name.startswith('arrays:mine-') and not made.notes
  whole = load(made.name, crop_fraction=1.0)
  for split, (images, labels) in zip(whole.splits.values(), pairs, strict=True):
    np.testing.assert_array_equal(split.images, images)
    np.testing.assert_array_equal(split.labels, labels)
    np.testing.assert_array_equal(split.indices, np.arange(len(labels)))
  assert list(whole.splits) == ['train', 'validation', 'test']


def test_images_are_cut_as_those_of_a_folder(make, load):
  """Train has the margin that augmentation crops, the others have not."""
  made = make(draw(60, 24, 32), class_names=NAMES, image_size=16)
  shapes = {name: s.images.shape[1:] for name, s in made.splits.items()}
  assert shapes == {
    'train': (18, 18, 3),
    'validation': (16, 16, 3),
    'test': (16, 16, 3),
  }
  again = load(made.name, num_train_per_class=3)
  assert np.bincount(again.splits['train'].labels).tolist() == [3, 3, 3]


def test_missing_splits_are_cut_from_train(make):
  both = make(draw(60), class_names=NAMES)
  assert [len(s) for s in both.splits.values()] == [42, 6, 12]
  assert 'cut from its 60' in both.notes[0]
  one = make(draw(60), test=draw(9), class_names=NAMES)
  assert [len(s) for s in one.splits.values()] == [54, 6, 9]


def test_the_name_changes_with_everything_that_is_stored(make):
  images, labels = draw(60)
  first = make((images, labels))
  assert first.class_names == ['0', '1', '2']
  assert make((images.copy(), labels.astype(np.uint8))).name == first.name
  other = images.copy()
  other[-1, -1, -1, -1] ^= 1
  swapped = labels.copy()
  swapped[:2] = labels[1::-1]
  names = {
    first.name,
    make((other, labels)).name,
    make((images, swapped)).name,
    make((images, labels), class_names=NAMES).name,
    make((images, labels), test=draw(9)).name,
    make((images, labels), name='yours').name,
  }
  assert len(names) == 6
  assert dataset_name(first.name) == first.name.removeprefix('arrays:')


def test_a_view_of_a_larger_array(make, load):
  images, labels = draw(60, 20, 20)
  made = make((images[:, 2:18, 2:18], labels), test=draw(9))
  train = load(made.name, crop_fraction=1.0).splits['train']
  np.testing.assert_array_equal(train.images, images[train.indices, 2:18, 2:18])


def test_a_split_is_stored_in_parts_of_bounded_size(make, load, monkeypatch):
  monkeypatch.setattr(arrays, 'MAX_PART_BYTES', 10 * 16 * 16 * 3)
  pairs = [draw(count, seed=count) for count in (105, 3, 3)]
  made = make(*pairs, name='parts')
  train = load(made.name, crop_fraction=1.0).splits['train']
  np.testing.assert_array_equal(train.images, pairs[0][0])
  np.testing.assert_array_equal(train.indices, np.arange(105))


IMAGES, LABELS = draw(60)


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'train': IMAGES}, 'train is a ndarray; accepted: a pair'),
    ({'test': (IMAGES,)}, 'test is a tuple; accepted: a pair'),
    (
      {'train': (IMAGES / 255.0, LABELS)},
      r'images of train are float64\[60, 16, 16, 3\]; accepted: uint8\[N',
    ),
    ({'train': (IMAGES[..., 0], LABELS)}, r'uint8\[60, 16, 16\]; accepted'),
    (
      {'test': (IMAGES[..., :2], LABELS)},
      r'images of test are uint8\[60, 16, 16, 2\]',
    ),
    ({'validation': (IMAGES[:0], LABELS[:0])}, 'validation are .*: no pixel'),
    ({'train': (IMAGES, LABELS / 2)}, 'labels of train are float64'),
    (
      {'train': (IMAGES, LABELS[:-1])},
      r'labels of train are \[59\] beside 60 images',
    ),
    (
      {'test': (IMAGES, LABELS - 1)},
      'labels of test go from -1 to 1; accepted: 0 to 2',
    ),
    (
      {'train': (IMAGES, LABELS + 1), 'class_names': NAMES},
      'labels of train go from 1 to 3; accepted: 0 to 2',
    ),
    (
      {'class_names': ['cat', 'dog', 'cat']},
      'class_names is .*; accepted: two',
    ),
    ({'class_names': 'abc'}, "class_names is 'abc'"),
    ({'class_names': {*NAMES}}, 'class_names is a set, .*; accepted: a list'),
    ({'class_names': frozenset(NAMES)}, 'class_names is a frozenset'),
    (
      {'class_names': dict(zip(NAMES, (2, 0, 1), strict=True))},
      'class_names is a dict',
    ),
    ({'class_names': ['cat', 'dog ', 'eel']}, 'without spaces'),
    ({'class_names': [*NAMES, 'fox']}, "class 'fox' has 0 images"),
    (
      {'train': (IMAGES[:5], LABELS[:5])},
      "class 'cat' has 2 images; to cut test and validation",
    ),
    ({'test': (IMAGES, LABELS), 'name': '../x'}, "name is '../x'; accepted"),
    ({'image_size': 0}, 'image_size is 0; it must be positive'),
  ],
)
def test_one_clear_message(make, given, message):
  given = {'train': (IMAGES, LABELS), 'class_names': NAMES} | given
  train = given.pop('train')
  with pytest.raises(UserError, match=message):
    make(train, **given)


@pytest.mark.parametrize('key', ['', 'mine-000000000000'])
def test_arrays_that_are_not_there(key, tmp_path):
  with pytest.raises(FileNotFoundError, match=f'arrays:{key} is not in'):
    load_splits(f'arrays:{key}', image_size=16, cache_dir=tmp_path)
