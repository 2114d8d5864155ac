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


# Row -> the number of its bytes; all others are like no other.
COPIES = [
  {0: 1, 3: 1},
  {i: i // 6 * 3 + i % 3 for i in range(300)},
  {i: 1 for i in range(0, 90, 3)},
  {i: i // 3 % 7 for i in range(0, 300, 3)},
  # Of two classes: which one is wrong is not known.
  {298: 1, 0: 1, 100: 2, 3: 2, 9: 2},
  {i: i // 2 for i in range(20)},
]


@pytest.mark.parametrize('copies', COPIES)
def test_copies_stay_together(copies):
  digests = 10**6 + np.arange(300).astype(np.uint64)
  digests[list(copies)] = 2**64 - 1 - np.asarray([*copies.values()], np.uint64)
  fractions = {'test': 0.2, 'validation': 0.1}
  parts = subsets.cut(NAMES, LABELS, CLASSES, fractions, digests=digests)
  np.testing.assert_array_equal(
    np.sort(np.concatenate([*parts.values()])), np.arange(300)
  )
  homes = {row: part for part, rows in parts.items() for row in rows.tolist()}
  for digest in digests:
    same = np.flatnonzero(digests == digest)
    for label in range(3):
      alike = same[LABELS[same] == label].tolist()
      assert len({homes[row] for row in alike}) <= 1
  for rows in parts.values():
    assert set(LABELS[rows]) == {0, 1, 2}
  backwards = subsets.cut(
    NAMES[::-1], LABELS[::-1], CLASSES, fractions, digests=digests[::-1]
  )
  for part, rows in backwards.items():
    assert {299 - row for row in rows.tolist()} == set(parts[part].tolist())


def test_pairs_leave_the_shares_and_few_copies_the_rest_as_they_are():
  plain = subsets.cut(NAMES, LABELS, CLASSES, {'test': 0.2})
  digests = 1 + np.arange(300, dtype=np.uint64)
  same = subsets.cut(NAMES, LABELS, CLASSES, {'test': 0.2}, digests=digests)
  unread = np.zeros(300, np.uint64)
  none = subsets.cut(NAMES, LABELS, CLASSES, {'test': 0.2}, digests=unread)
  for part, rows in plain.items():
    np.testing.assert_array_equal(rows, same[part])
    np.testing.assert_array_equal(rows, none[part])
  digests[30] = digests[33]
  few = subsets.cut(NAMES, LABELS, CLASSES, {'test': 0.2}, digests=digests)
  assert len(set(few['test'].tolist()) ^ set(plain['test'].tolist())) <= 3
  for partner in (np.arange(300) // 6 * 3 + LABELS, np.arange(300) // 3):
    halves = subsets.cut(
      *(NAMES, LABELS, CLASSES, {'test': 0.2}),
      digests=1 + partner.astype(np.uint64),
    )
    assert abs(halves['test'].size - 60) <= 3


def test_a_class_of_copies_cannot_be_cut():
  digests = np.asarray([7, 7, 7, 1, 2, 3], np.uint64)
  labels = np.asarray([0, 0, 0, 1, 1, 1])
  with pytest.raises(
    ValueError, match="'x' has 1 images, exact copies counted once; to cut a "
  ):
    subsets.cut([*'abcdef'], labels, ['x', 'y'], {'a': 0.1}, digests=digests)


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
