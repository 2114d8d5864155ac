"""Over all processes each image of an epoch is there once, however many."""

import itertools
import json

import jax
import numpy as np
import pytest

from tlkd_jax.data import Split, pipeline
from tlkd_jax.data.pipeline import Shares

COUNTS = (1, 2, 3, 4, 8)
BATCH = 24
# Less than the processes, one more than a batch holds, what divides.
SIZES = (5, 25, 72)
KINDS = {
  'plain': {},
  'balanced': {'balanced': True},
  'shares': {'shares': Shares(7, 9)},
}


def make_split(size: int, kind: str) -> Split:
  """Images that hold their own number."""
  numbers = np.arange(size)
  labels = (np.sqrt(numbers).astype(np.int32)) % 4
  if kind == 'shares':
    labels = np.where(numbers % 3, labels, -1)
  images = np.zeros((size, 1, 1, 3), np.uint8)
  images[:, 0, 0, 0] = numbers
  names = [str(number) for number in numbers]
  return Split(images, labels.astype(np.int32), numbers + 1000, names)


def of_processes(make, count: int, steps: int, states=None) -> list[list[dict]]:
  """The batches of each process; `states` get each one's position after."""
  found = []
  for index in range(count):
    batches = make(process_index=index, process_count=count)
    found.append(list(itertools.islice(batches, steps)))
    if states is not None:
      states.append(json.loads(json.dumps(batches.get_state())))
    close = getattr(batches, 'close', None)
    if close is not None:
      close()
  return found


def joined(parts: list[list[dict]]) -> list[dict]:
  """Global batches of what the processes have."""
  return [
    jax.tree.map(lambda *x: np.concatenate(x), *batches)
    for batches in zip(*parts, strict=True)
  ]


def assert_rows_belong_together(batch: dict, real) -> None:
  np.testing.assert_array_equal(
    batch['image'][real, 0, 0, 0], batch['index'][real] - 1000
  )


@pytest.mark.parametrize(
  ('size', 'kind'),
  [*((size, 'plain') for size in SIZES), (25, 'balanced'), (72, 'shares')],
)
def test_training_draws_each_image_once_an_epoch(size, kind):
  """And the same ones at the same places, for each number of processes."""
  split, steps = make_split(size, kind), -(-2 * size // BATCH) + 1

  def make(**process):
    return pipeline.train_iterator(
      split, BATCH, 3, num_threads=0, prefetch=0, **KINDS[kind], **process
    )

  whole = None
  for count in COUNTS:
    parts = of_processes(make, count, steps)
    assert {len(b['index']) for part in parts for b in part} == {BATCH // count}
    batches = joined(parts)
    whole = whole or batches
    jax.tree.map(np.testing.assert_array_equal, batches, whole)
  drawn = {key: np.concatenate([b[key] for b in whole]) for key in whole[0]}
  assert_rows_belong_together(drawn, slice(None))
  # Each time as the next view: none twice, none left out.
  views: dict[int, list[int]] = {}
  for index, view in zip(drawn['index'], drawn['view'], strict=True):
    views.setdefault(int(index), []).append(int(view))
  for index, seen in views.items():
    assert seen == list(range(len(seen))), (index, seen)
  if kind == 'plain':
    epochs = drawn['index'][: steps * BATCH // size * size].reshape(-1, size)
    assert len(epochs) >= 2
    for number, epoch in enumerate(epochs):
      np.testing.assert_array_equal(np.sort(epoch), np.arange(size) + 1000)
      first = number * size
      assert set(drawn['view'][first : first + size]) == {number}


@pytest.mark.parametrize('size', SIZES)
def test_evaluation_sees_each_image_once(size):
  """In order; what fills the last batch is marked, in whichever process."""
  split = make_split(size, 'plain')

  def make(**process):
    return iter(
      pipeline.eval_batches(split, BATCH, num_threads=0, prefetch=0, **process)
    )

  for count in COUNTS:
    parts = of_processes(make, count, size)
    # All of them take part in each step of all devices.
    assert {len(part) for part in parts} == {-(-size // BATCH)}
    for batch in (one := joined(parts)):
      real = batch['mask'] > 0
      assert_rows_belong_together(batch, real)
      assert (batch['index'][~real] == -1).all()
    seen = np.concatenate([b['index'][b['mask'] > 0] for b in one])
    np.testing.assert_array_equal(seen, np.arange(size) + 1000)


@pytest.mark.parametrize('kind', KINDS)
def test_a_position_is_that_of_any_number_of_processes(kind):
  """4 stop and 2 go on, then 1, 8 and 3: the images of one that did not."""
  split = make_split(50, kind)

  def make(state=None, **process):
    batches = pipeline.train_iterator(
      split, BATCH, 5, num_threads=0, prefetch=0, **KINDS[kind], **process
    )
    if state is not None:
      batches.set_state(state)
    return batches

  (alone,) = of_processes(make, 1, 10)
  found, state = [], None
  for count in (4, 2, 1, 8, 3):
    states: list = []
    parts = of_processes(lambda s=state, **p: make(s, **p), count, 2, states)
    found += joined(parts)
    assert all(one == states[0] for one in states)
    state = states[0]
  jax.tree.map(np.testing.assert_array_equal, found, alone)


@pytest.mark.parametrize('count', [5, 7, 16, 48])
def test_processes_that_cannot_share_a_batch(count):
  split = make_split(50, 'plain')
  for make in (
    lambda **p: pipeline.train_iterator(split, BATCH, 0, **p),
    lambda **p: pipeline.eval_batches(split, BATCH, **p),
  ):
    with pytest.raises(ValueError, match=f'multiple of the {count} processes'):
      make(process_index=0, process_count=count)
