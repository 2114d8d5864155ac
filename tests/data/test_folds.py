"""Folds: every image is tested in exactly one of them."""

import numpy as np
import pytest
from pictures import encode, make_classes, picture

from tlkd_jax.data import Fold, sources, subsets, unlabelled
from tlkd_jax.data.index import NO_DIGEST

CLASSES = ['a', 'b', 'c']
NAMES = [f'class{i % 3}/{i:04d}.jpg' for i in range(91)]
LABELS = np.arange(91) % 3


@pytest.mark.parametrize('count', [2, 3, 5, 30])
def test_folds_are_stratified_and_of_one_size(count):
  folds = subsets.cut_folds(NAMES, LABELS, CLASSES, count)
  assert folds.dtype == np.int32
  sizes = np.bincount(folds, minlength=count)
  assert sizes.sum() == 91 and np.ptp(sizes) <= 1
  for label in range(3):
    of_class = np.bincount(folds[LABELS == label], minlength=count)
    assert np.ptp(of_class) <= 1 and of_class.min() >= 1


def test_folds_follow_the_names_alone():
  folds = subsets.cut_folds(NAMES, LABELS, CLASSES, 5)
  backwards = subsets.cut_folds(NAMES[::-1], LABELS[::-1], CLASSES, 5)
  np.testing.assert_array_equal(folds, backwards[::-1])
  # By hashlib.blake2b(b'folds\0' + name, digest_size=16), in turn.
  few = subsets.cut_folds(['x', 'y', 'z', 'w'], np.zeros(4, int), ['only'], 2)
  order = subsets.stable_order(['x', 'y', 'z', 'w'], 'folds')
  np.testing.assert_array_equal(few[order], [0, 1, 0, 1])


def test_copies_are_in_one_fold():
  digests = np.arange(91, dtype=np.uint64) // 9 + 1
  digests[40:60] = NO_DIGEST
  folds = subsets.cut_folds(NAMES, LABELS, CLASSES, 3, digests)
  for label in range(3):
    for digest in np.unique(digests[digests != NO_DIGEST]):
      alike = folds[(digests == digest) & (LABELS == label)]
      assert np.unique(alike).size <= 1
  assert np.unique(folds[digests == 1]).size > 1


@pytest.mark.parametrize(
  ('labels', 'digests', 'message'),
  [
    ([0, 0, 0, 1, 1], None, "class 'b' has 2; accepted: fewer folds"),
    ([0, 0, 1, 1, 1], None, "class 'a' has 2;"),
    ([0, 1, 1, 1, 1], None, "class 'a' has 1;"),
    ([0, 0, 1, 1, 0], None, "class 'b' has 2;"),
    ([0, 0, 0, 1, 1, 1], [1, 1, 2, 3, 4, 5], "class 'a' has 2 (3 with exact"),
    ([0, 1], None, "class 'a' has 1, 'b' has 1;"),
  ],
)
def test_a_class_with_fewer_images_than_folds_is_refused(
  labels, digests, message
):
  names = [f'{i}.png' for i in range(len(labels))]
  digests = None if digests is None else np.asarray(digests, np.uint64)
  with pytest.raises(ValueError) as error:
    subsets.cut_folds(names, np.asarray(labels), ['a', 'b'], 3, digests)
  assert str(error.value).startswith('3 folds need as many images of each')
  assert message in str(error.value)


@pytest.fixture
def opened(tmp_path):
  """Opens the splits of a fold of a folder of images."""

  def call(number, count=4, **options):
    return sources.open_sources(
      f'folder:{tmp_path / "images"}',
      cache_dir=tmp_path / 'cache',
      fold=Fold(number, count),
      **options,
    )

  return call


def test_every_image_is_tested_in_one_fold(tmp_path, opened):
  make_classes(tmp_path / 'images', {'cat': 9, 'dog': 13})
  tested, indices = [], []
  for number in range(4):
    found = opened(number)
    parts = {name: split.names for name, split in found.splits.items()}
    assert [*parts] == ['train', 'validation', 'test']
    together = [*parts['train'], *parts['validation'], *parts['test']]
    assert len(together) == len(set(together)) == 22
    for split in found.splits.values():
      assert np.bincount(split.labels, minlength=2).min() >= 1
    assert f'fold {number} of 4 of its 22 images is test' in found.notes[0]
    tested += parts['test']
    indices += found.splits['test'].indices.tolist()
  assert len(tested) == len(set(tested)) == 22
  assert sorted(indices) == [*range(22)]


@pytest.mark.parametrize('split', ['test', 'validation', 'val', 'holdout'])
def test_a_split_that_was_given_stays_what_it_is(tmp_path, opened, split):
  make_classes(tmp_path / 'images' / 'train', {'cat': 9, 'dog': 13})
  make_classes(tmp_path / 'images' / split, {'cat': 5, 'dog': 5})
  with pytest.raises(ValueError, match='of its own, which folds would mix'):
    opened(0)
  (tmp_path / 'images' / 'train').rename(tmp_path / 'alone')
  alone = sources.open_sources(
    f'folder:{tmp_path / "alone"}', cache_dir=tmp_path, fold=Fold(0, 4)
  )
  assert len(alone.splits['test'].names) in (5, 6)


def test_a_split_in_a_folder_named_train_alone_is_data(tmp_path, opened):
  make_classes(tmp_path / 'images' / 'train', {'cat': 9, 'dog': 13})
  assert len(opened(0).splits['test'].names) in (5, 6)


def test_the_rest_is_of_the_same_fold(tmp_path, load, data_cache):
  for i in range(24):
    place = tmp_path / 'pets' / 'ab'[i % 2] / f'{i}.png'
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(encode(picture(f'fold {i}'), 'PNG'))
  fold, whole = Fold(1, 3), f'folder:{tmp_path / "pets"}'
  dataset = load(whole, num_train_per_class=2, fold=fold)
  where = unlabelled.Where(cache_dir=data_cache, fold=fold)
  longer = unlabelled.extend(dataset, 'rest', where=where).splits['train']
  test = {*dataset.splits['test'].names, *dataset.splits['validation'].names}
  assert len(longer) == 24 - len(test)
  assert not test & {*longer.names}
