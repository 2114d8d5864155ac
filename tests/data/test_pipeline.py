import itertools
import json

import jax
import numpy as np
import pytest

from tlkd_jax.data import Split, pipeline

DTYPES = {
  'image': np.uint8,
  'label': np.int32,
  'mask': np.float32,
  'index': np.int64,
  'view': np.int32,
}


def _split(size, sizes=None):
  """Examples whose pixels, label, index and name all tell which they are.

  With `sizes`, {label: count}, the labels are in a random order.
  """
  numbers = np.arange(size)
  images = np.zeros((size, 4, 4, 3), np.uint8)
  images[:, 0, 0, 0], images[:, 0, 0, 1] = numbers % 256, numbers // 256
  labels = numbers % 7
  if sizes:
    labels = np.repeat([*sizes], [*sizes.values()])
    labels = np.random.default_rng(0).permutation(labels)
  return Split(
    images,
    labels.astype(np.int32),
    numbers + 1000,
    [str(n) for n in numbers],
  )


def _take(iterator, count):
  batches = list(itertools.islice(iterator, count))
  iterator.close()
  return batches


def _assert_equal(first, second):
  jax.tree.map(np.testing.assert_array_equal, first, second)


def _check_rows(batch):
  """The parts of each real row belong to the same example."""
  real = batch['mask'] > 0
  numbers = batch['index'][real] - 1000
  pixels = batch['image'][real, 0, 0].astype(int)
  np.testing.assert_array_equal(pixels[:, 0] + 256 * pixels[:, 1], numbers)
  np.testing.assert_array_equal(batch['label'][real], numbers % 7)


def test_batches_have_the_stated_types():
  batch = _take(pipeline.train_iterator(_split(50), 8, 0), 1)[0]
  assert {k: v.dtype for k, v in batch.items()} == DTYPES
  assert batch['image'].shape == (8, 4, 4, 3)
  batch = next(iter(pipeline.eval_batches(_split(50), 8)))
  assert {k: v.dtype for k, v in batch.items()} == DTYPES


@pytest.mark.parametrize('size, batch_size', [(300, 32), (64, 32), (10, 32)])
def test_every_epoch_draws_every_example_once(size, batch_size):
  epochs = 4
  steps = -(-size * epochs // batch_size)
  batches = _take(pipeline.train_iterator(_split(size), batch_size, 1), steps)
  for batch in batches:
    assert batch['index'].shape == (batch_size,)
    np.testing.assert_array_equal(batch['mask'], 1)
    _check_rows(batch)
  index = np.concatenate([b['index'] for b in batches])
  view = np.concatenate([b['view'] for b in batches])
  orders = [index[view == epoch] for epoch in range(epochs)]
  for order in orders:
    np.testing.assert_array_equal(np.sort(order), np.arange(size) + 1000)
  for first, second in itertools.combinations(orders, 2):
    assert (first != second).any()
  # `view` is the number of earlier draws of the same example.
  drawn = {}
  for i, v in zip(index.tolist(), view.tolist(), strict=True):
    assert v == drawn.get(i, 0)
    drawn[i] = v + 1


def test_order_is_determined_by_the_seed():
  first, again, other = (
    _take(pipeline.train_iterator(_split(100), 16, seed), 10)
    for seed in (3, 3, 4)
  )
  _assert_equal(first, again)
  shared = [
    (a['index'] == b['index']).mean() for a, b in zip(first, other, strict=True)
  ]
  assert np.mean(shared) < 0.2


def test_seeds_are_not_shifted_epochs():
  """The second epoch of seed 0 is not the first of seed 1."""
  first = _take(pipeline.train_iterator(_split(64), 64, 0), 2)[1]
  second = _take(pipeline.train_iterator(_split(64), 64, 1), 1)[0]
  assert (first['index'] == second['index']).mean() < 0.2


def test_order_does_not_depend_on_threads_and_prefetch():
  one = pipeline.train_iterator(_split(100), 16, 0, num_threads=1, prefetch=1)
  many = pipeline.train_iterator(_split(100), 16, 0, num_threads=4, prefetch=16)
  _assert_equal(_take(one, 20), _take(many, 20))


def test_resumed_order_is_the_uninterrupted_one():
  whole = _take(pipeline.train_iterator(_split(70), 16, 5), 12)
  iterator = pipeline.train_iterator(_split(70), 16, 5)
  for _ in range(7):
    next(iterator)
  state = json.loads(json.dumps(iterator.get_state()))
  iterator.close()
  resumed = pipeline.train_iterator(_split(70), 16, 5)
  next(resumed)
  resumed.set_state(state)
  _assert_equal(_take(resumed, 5), whole[7:])


UNEQUAL = {0: 30, 1: 7, 2: 2, 3: 1}
# Sizes, batch size, number of batches.
BALANCED = [
  (UNEQUAL, 16, 40),
  (UNEQUAL, 3, 50),
  ({0: 5, 1: 5}, 16, 9),
  # More classes than a batch has places, and a label that is missing.
  (dict.fromkeys([*range(10), *range(11, 31)], 3) | {0: 60}, 8, 60),
]


def _balanced(sizes, batch_size, steps, seed=4, **options):
  split = _split(sum(sizes.values()), sizes)
  made = pipeline.train_iterator(
    split, batch_size, seed, balanced=True, num_batches=steps, **options
  )
  return split, list(made)


@pytest.mark.parametrize('sizes, batch_size, steps', BALANCED)
def test_balanced_draws_are_of_every_class_alike(sizes, batch_size, steps):
  split, batches = _balanced(sizes, batch_size, steps)
  numbers = np.concatenate([b['index'] for b in batches]) - 1000
  labels = np.concatenate([b['label'] for b in batches])
  views = np.concatenate([b['view'] for b in batches])
  np.testing.assert_array_equal(labels, split.labels[numbers])
  # A round of all classes after another.
  rounds = [
    labels[start : start + len(sizes)].tolist()
    for start in range(0, labels.size, len(sizes))
  ]
  assert all(sorted(drawn) == sorted(sizes) for drawn in rounds[:-1])
  assert len(set(map(tuple, rounds[:-1]))) > 1
  # And of a class an epoch of its examples after another; `view` is the
  # number of earlier draws of the same example.
  drawn = {}
  for number, view in zip(numbers.tolist(), views.tolist(), strict=True):
    assert view == drawn.get(number, 0)
    drawn[number] = view + 1
  for label in sizes:
    own = [drawn.get(n, 0) for n in np.flatnonzero(split.labels == label)]
    assert max(own) - min(own) <= 1
  most = pipeline.most_views(split, batch_size, steps, balanced=True)
  assert most == views.max() + 1


def test_classes_of_one_size_have_orders_of_their_own():
  _, batches = _balanced({0: 12, 1: 12}, 24, 1)
  places = [
    np.argsort(batches[0]['index'][batches[0]['label'] == c]) for c in (0, 1)
  ]
  assert (places[0] != places[1]).any()


def test_balanced_order_is_of_seed_and_step_alone():
  first, again, other, threads = (
    _balanced(UNEQUAL, 16, 12, seed=seed, **options)[1]
    for seed, options in [
      (3, {}),
      (3, {}),
      (4, {}),
      (3, {'num_threads': 4, 'prefetch': 16}),
    ]
  )
  _assert_equal(first, again)
  _assert_equal(first, threads)
  assert (first[0]['index'] != other[0]['index']).any()
  # A longer run begins as a shorter one.
  _assert_equal(_balanced(UNEQUAL, 16, 20, seed=3)[1][:12], first)
  split = _split(40, UNEQUAL)
  iterator = pipeline.train_iterator(split, 16, 3, balanced=True)
  for _ in range(7):
    next(iterator)
  state = json.loads(json.dumps(iterator.get_state()))
  iterator.close()
  resumed = pipeline.train_iterator(split, 16, 3, balanced=True)
  resumed.set_state(state)
  _assert_equal(_take(resumed, 5), first[7:])
  parts = [
    _balanced(UNEQUAL, 16, 12, seed=3, process_index=i, process_count=4)[1]
    for i in range(4)
  ]
  joined = [
    {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
    for batches in zip(*parts, strict=True)
  ]
  _assert_equal(joined, first)


def test_balanced_draws_cycle_through_views():
  _, endless = _balanced(UNEQUAL, 16, 12)
  _, cycled = _balanced(UNEQUAL, 16, 12, num_views=3)
  for one, other in zip(endless, cycled, strict=True):
    np.testing.assert_array_equal(one['view'] % 3, other['view'])
    np.testing.assert_array_equal(one['index'], other['index'])


@pytest.mark.parametrize(
  'size, batch_size, steps', [(50, 16, 3), (50, 16, 4), (5, 16, 3), (64, 16, 4)]
)
def test_views_that_a_run_draws(size, batch_size, steps):
  made = pipeline.train_iterator(_split(size), batch_size, 0, num_batches=steps)
  drawn = max(batch['view'].max() for batch in made) + 1
  assert pipeline.most_views(_split(size), batch_size, steps) == drawn


def test_images_without_a_class_cannot_be_balanced():
  with pytest.raises(ValueError, match='an example has no class'):
    _balanced({-1: 3, 0: 5, 1: 5}, 4, 2)


@pytest.mark.parametrize('batch_size', [1, 3, 16, 100])
def test_the_order_is_that_of_the_draws_whatever_the_batch(batch_size):
  """Also in batches of one; and a run's end changes nothing before it."""
  draws = _take(pipeline.train_iterator(_split(7), 1, 5), 3 * batch_size)
  endless = _take(pipeline.train_iterator(_split(7), batch_size, 5), 3)
  ended = list(pipeline.train_iterator(_split(7), batch_size, 5, num_batches=3))
  _assert_equal(endless, ended)
  joined = np.concatenate([batch['index'] for batch in ended])
  assert joined.tolist() == [int(draw['index'][0]) for draw in draws]


@pytest.mark.parametrize('count', [2, 4])
def test_processes_share_each_global_batch(count):
  def joined(make, steps):
    parts = [
      list(itertools.islice(make(process_index=i, process_count=count), steps))
      for i in range(count)
    ]
    return [
      {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
      for batches in zip(*parts, strict=True)
    ]

  def train(**options):
    return pipeline.train_iterator(_split(50), 16, 2, **options)

  def evaluate(**options):
    return iter(pipeline.eval_batches(_split(50), 16, **options))

  _assert_equal(joined(train, 9), _take(train(), 9))
  _assert_equal(joined(evaluate, 9), _take(evaluate(), 9))


@pytest.mark.parametrize('size, batch_size', [(50, 16), (48, 16), (5, 16)])
def test_evaluation_sees_every_example_once_in_order(size, batch_size):
  batches = pipeline.eval_batches(_split(size), batch_size)
  for _ in range(2):
    passed = list(batches)
    assert len(passed) == -(-size // batch_size)
    for batch in passed:
      assert batch['image'].shape == (batch_size, 4, 4, 3)
      _check_rows(batch)
    mask = np.concatenate([b['mask'] for b in passed])
    index = np.concatenate([b['index'] for b in passed])
    np.testing.assert_array_equal(mask, np.arange(mask.size) < size)
    np.testing.assert_array_equal(index[:size], np.arange(size) + 1000)
    assert (index[size:] == -1).all()
    padding = passed[-1]['mask'] == 0
    assert not passed[-1]['image'][padding].any()
    assert not passed[-1]['label'][padding].any()


@pytest.mark.parametrize(
  'size, batch_size, options, message',
  [
    (0, 4, {}, 'no examples'),
    (5, 0, {}, 'batch_size is 0'),
    (5, 4, {'process_count': 3}, 'multiple of the 3 processes'),
    (5, 4, {'process_count': 2, 'process_index': 2}, '2 of 2'),
  ],
)
def test_mistakes(size, batch_size, options, message):
  with pytest.raises(ValueError, match=message):
    pipeline.train_iterator(_split(size), batch_size, 0, **options)
  with pytest.raises(ValueError, match=message):
    pipeline.eval_batches(_split(size), batch_size, **options)
