import numpy as np
import pytest

from tlkd_jax.data import subsets

NAMES = [f'class{i % 3}/{i:04d}.jpg' for i in range(300)]
LABELS = np.arange(300) % 3
CLASSES = ['a', 'b', 'c']


def test_order_does_not_depend_on_position():
  order = subsets.stable_order(NAMES, 'salt')
  np.testing.assert_array_equal(np.sort(order), np.arange(300))
  backwards = subsets.stable_order(NAMES[::-1], 'salt')
  assert [NAMES[i] for i in order] == [NAMES[::-1][i] for i in backwards]


def test_order_is_fixed():
  # sorted by hashlib.blake2b(b'salt\0' + name, digest_size=16)
  order = subsets.stable_order(['x', 'y', 'z', 'ä', 'w'], 'salt')
  np.testing.assert_array_equal(order, [2, 4, 0, 1, 3])


def test_salts_give_other_orders():
  first = subsets.stable_order(NAMES, 'subset-0')
  second = subsets.stable_order(NAMES, 'subset-1')
  assert (first != second).mean() > 0.9


def test_cut_is_stratified_and_disjoint():
  parts = subsets.cut(NAMES, LABELS, CLASSES, {'test': 0.2, 'validation': 0.1})
  together = np.concatenate(list(parts.values()))
  np.testing.assert_array_equal(np.sort(together), np.arange(300))
  for part, count in [('test', 20), ('validation', 10), ('train', 70)]:
    np.testing.assert_array_equal(np.bincount(LABELS[parts[part]]), [count] * 3)


def test_a_new_file_moves_at_most_one_other():
  parts = subsets.cut(NAMES, LABELS, CLASSES, {'validation': 0.1})
  before = {NAMES[i] for i in parts['validation']}
  names, labels = [*NAMES, 'class0/new.jpg'], np.append(LABELS, 0)
  parts = subsets.cut(names, labels, CLASSES, {'validation': 0.1})
  after = {names[i] for i in parts['validation']}
  assert len(before ^ after) <= 2


@pytest.mark.parametrize('size', [3, 4, 7])
def test_small_classes_keep_one_of_each(size):
  names = [str(i) for i in range(size)]
  labels = np.zeros(size, int)
  parts = subsets.cut(names, labels, ['only'], {'test': 0.9, 'validation': 0.9})
  assert min(rows.size for rows in parts.values()) >= 1


def test_too_small_class_is_named():
  with pytest.raises(ValueError, match="'rare' has 2 images.*at least 3"):
    subsets.cut(['x', 'y'], np.zeros(2, int), ['rare'], {'a': 0.1, 'b': 0.1})


def test_counts():
  sizes = np.asarray([100, 10, 3])
  counts = subsets.subset_counts
  np.testing.assert_array_equal(counts(sizes, CLASSES), sizes)
  np.testing.assert_array_equal(
    counts(sizes, CLASSES, fraction=0.1), [10, 1, 1]
  )
  np.testing.assert_array_equal(counts(sizes, CLASSES, 3), [3, 3, 3])


@pytest.mark.parametrize(
  'options, message',
  [
    ({'num_per_class': 4}, "'c' has 3; at most 3"),
    ({'num_per_class': 0}, 'at least 1'),
    ({'num_per_class': -1}, 'at least 1'),
    ({'fraction': 0.0}, r'in \(0, 1\]'),
    ({'fraction': 1.5}, r'in \(0, 1\]'),
    ({'num_per_class': 2, 'fraction': 0.5}, 'both set'),
  ],
)
def test_impossible_counts(options, message):
  with pytest.raises(ValueError, match=message):
    subsets.subset_counts(np.asarray([100, 10, 3]), CLASSES, **options)
