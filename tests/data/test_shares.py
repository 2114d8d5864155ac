"""Batches of images with labels and without: shares, epochs, resuming."""

import itertools
import json

import jax
import numpy as np
import pytest

from tlkd_jax.data import Split, pipeline
from tlkd_jax.data.pipeline import Shares

# Among the others, so that no row number tells which have labels.
LABELLED = np.array([3, 4, 8, 13, 21])
SIZE, BATCH = 25, 8


def make_split(size=SIZE, labelled=LABELLED):
  labels = np.full(size, -1, np.int32)
  labels[labelled] = np.arange(len(labelled)) % 3
  images = np.zeros((size, 2, 2, 3), np.uint8)
  images[:, 0, 0, 0] = np.arange(size)
  names = [str(number) for number in range(size)]
  return Split(images, labels, np.arange(size) + 100, names)


def batches(shares, count, split=None, **options):
  iterator = pipeline.train_iterator(
    split or make_split(), BATCH, 3, shares=shares, **options
  )
  found = list(itertools.islice(iterator, count))
  iterator.close()
  return found


@pytest.mark.parametrize('labelled', [1, 3, 7])
def test_each_batch_has_so_many_labels_and_epochs_are_of_each_kind(labelled):
  steps = 40
  drawn = {True: [], False: []}
  for batch in batches(Shares(labelled, steps), steps):
    has_label = batch['label'] >= 0
    assert has_label.tolist() == [True] * labelled + [False] * (
      BATCH - labelled
    )
    np.testing.assert_array_equal(
      batch['image'][:, 0, 0, 0], batch['index'] - 100
    )
    for kind in drawn:
      rows = has_label == kind
      drawn[kind] += zip(
        batch['index'][rows].tolist(), batch['view'][rows].tolist(), strict=True
      )
  sizes = {True: len(LABELLED), False: SIZE - len(LABELLED)}
  for kind, size in sizes.items():
    assert len(drawn[kind]) >= size
    for epoch in range(len(drawn[kind]) // size):
      of_epoch = drawn[kind][epoch * size : (epoch + 1) * size]
      assert len({index for index, _ in of_epoch}) == size
      assert {view for _, view in of_epoch} == {epoch}


def test_at_the_end_all_have_labels_and_their_epochs_go_on():
  shares = Shares(3, 4)
  found = batches(shares, 7)
  assert [(batch['label'] >= 0).sum() for batch in found] == [3] * 4 + [8] * 3
  index = np.concatenate([b['index'][b['label'] >= 0] for b in found])
  view = np.concatenate([b['view'][b['label'] >= 0] for b in found])
  epochs = index[: 35 // 5 * 5].reshape(-1, 5)
  np.testing.assert_array_equal(
    np.sort(epochs, axis=1), np.broadcast_to(LABELLED + 100, epochs.shape)
  )
  np.testing.assert_array_equal(view, np.arange(36) // 5)


def test_shares_resume_and_are_cut_in_processes():
  shares = Shares(3, 6)
  whole = batches(shares, 9)
  for stop in (2, 6, 8):
    iterator = pipeline.train_iterator(make_split(), BATCH, 3, shares=shares)
    for _ in range(stop):
      next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    iterator.close()
    again = pipeline.train_iterator(make_split(), BATCH, 3, shares=shares)
    again.set_state(state)
    rest = list(itertools.islice(again, 9 - stop))
    again.close()
    jax.tree.map(np.testing.assert_array_equal, rest, whole[stop:])
  parts = [
    batches(shares, 9, process_index=p, process_count=4) for p in range(4)
  ]
  for number, batch in enumerate(whole):
    joined = jax.tree.map(
      lambda *x: np.concatenate(x), *(part[number] for part in parts)
    )
    jax.tree.map(np.testing.assert_array_equal, joined, batch)


@pytest.mark.parametrize(
  ('shares', 'steps'),
  [
    (Shares(3, 9), 9),
    (Shares(1, 30), 30),
    (Shares(7, 4), 9),
    (Shares(4, 0), 3),
  ],
)
def test_most_views_is_what_is_drawn(shares, steps):
  split = make_split()
  found = batches(shares, steps)
  most = max(int(batch['view'].max()) for batch in found) + 1
  assert most == pipeline.most_views(split, BATCH, steps, shares=shares)


def test_views_repeat_for_both_kinds():
  found = batches(Shares(4, 20), 20, num_views=2)
  assert {v for b in found for v in b['view'].tolist()} == {0, 1}


@pytest.mark.parametrize('labelled', [[], list(range(SIZE))])
def test_one_kind_alone_is_no_share(labelled):
  with pytest.raises(ValueError, match='with labels and images without'):
    pipeline.train_iterator(
      make_split(labelled=np.array(labelled, int)),
      BATCH,
      0,
      shares=Shares(4, 9),
    )
