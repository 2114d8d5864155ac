"""Batches of numpy arrays in an order that can be resumed exactly.

Grain decides the order and prefetches in threads; a batch is gathered from
the split's array by one indexing operation.

A batch is a dict of
  image: uint8[B, S, S, 3]
  label: int32[B]
  mask: float32[B], 0 where a last batch was padded
  index: int64[B], the example's number in its split; -1 where padded
  view: int32[B], which of the example's views; with the index it keys the
    augmentation
  others: where some networks look otherwise than the run's own, by the name of
    their look the same examples as they see them, uint8[B, S', S', 3]
  targets: where teachers' outputs are stored, for each of them by name a dict
    of arrays [B, ...]; see training/targets.py
B is the global batch size divided by the number of processes.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import grain
import numpy as np

from tlkd_jax.data import Split

Batch = dict[str, Any]
# Number of a draw of the run -> (row of the split, view).
Draw = Callable[[int], tuple[int, int]]
# (rows of the split, views) -> what is stored of them.
Lookup = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Shares:
  """What a batch consists of where images without labels are learned from.

  Attributes:
    labelled: so many images of a global batch have labels, the first ones; the
      rest have none.
    finish_step: from this step on all of them have labels.
  """

  labelled: int
  finish_step: int


def train_iterator(
  split: Split,
  batch_size: int,
  seed: int,
  *,
  num_batches: int | None = None,
  num_views: int = 0,
  balanced: bool = False,
  shares: Shares | None = None,
  targets: Mapping[str, Lookup] | None = None,
  others: Mapping[str, Split] | None = None,
  process_index: int = 0,
  process_count: int = 1,
  num_threads: int = 2,
  prefetch: int = 4,
) -> grain.DatasetIterator[Batch]:
  """Shuffled batches of one epoch after another.

  The epochs, each a permutation of its own, follow each other without a gap:
  draw number n of the run belongs to epoch n // N, and a batch may span two
  epochs. So all batches are full, also where the split is smaller than a
  batch, and every example is drawn equally often. `view` is the epoch, or with
  `num_views` the epoch modulo that.

  With `balanced` every class is drawn equally often instead, see
  `_balanced_draw`, and `view` is the epoch of the example's class. With
  `shares` images with and without labels have epochs of their own, see
  `_shared_draw`. Always draw number n is a function of the seed and n alone.

  Args:
    split: N examples.
    batch_size: global, over all processes.
    seed: of the order.
    num_batches: length of the run; None is endless.
    num_views: an example cycles through so many views; 0 is a new one each
      epoch.
    balanced: whether classes are drawn equally often, rather than examples.
    shares: how many images of a batch have labels; None draws from all alike.
    targets: by name, for each teacher whose outputs are stored, read in the
      prefetching threads; those of the views of `num_batches` batches.
    others: by the name of a look, the same examples in the same order.
    process_index: this process; it yields its slice of each global batch.
    process_count: number of processes.
    num_threads: prefetching threads.
    prefetch: batches kept ready.

  Returns:
    An iterator. `get_state()` gives a small JSON-able dict, after
    `set_state()` of which the same batches follow; `close()` ends its threads.

  Raises:
    ValueError: empty split, or a batch size that the processes cannot share.
  """
  local = _local_slice(split, batch_size, process_index, process_count)
  if shares is not None:
    draw = _shared_draw(split, batch_size, seed, shares)
  elif balanced:
    draw = _balanced_draw(split, seed)
  else:
    draw = _draw(np.arange(len(split)), seed)

  def gather(step: int) -> Batch:
    first = step * batch_size
    drawn = [draw(first + place) for place in range(local.start, local.stop)]
    rows, views = np.asarray(drawn, np.int64).T
    if num_views:
      views = views % num_views
    batch = _gather(split, rows, views)
    if others:
      batch['others'] = {
        name: np.asarray(other.images[rows]) for name, other in others.items()
      }
    if targets:
      batch['targets'] = {
        name: stored(rows, views) for name, stored in targets.items()
      }
    return batch

  # Cut, as otherwise the threads read ahead beyond the end.
  length = sys.maxsize if num_batches is None else num_batches
  steps = grain.MapDataset.range(length)
  return iter(_prefetched(steps.map(gather), num_threads, prefetch))


def most_views(
  split: Split,
  batch_size: int,
  num_batches: int,
  *,
  balanced: bool = False,
  shares: Shares | None = None,
) -> int:
  """How many views `train_iterator` draws of its most frequent example."""
  draws, smallest = num_batches * batch_size, len(split)
  if shares is not None:
    labelled = int(np.count_nonzero(split.labels >= 0))
    shared = min(shares.finish_step, num_batches)
    others = shared * (batch_size - shares.labelled)
    of_labelled = -(-(draws - others) // labelled)
    return max(of_labelled, -(-others // (len(split) - labelled)))
  if balanced:
    sizes = np.unique(split.labels, return_counts=True)[1]
    draws, smallest = -(-draws // sizes.size), int(sizes.min())
  return -(-draws // smallest)


def _draw(rows: np.ndarray, seed: int) -> Draw:
  """One epoch after another of these rows, each a permutation of its own."""
  size = rows.size
  order: Any = grain.MapDataset.range(size).seed(seed).shuffle().repeat()
  return lambda number: (int(rows[order[number]]), number // size)


def _shared_draw(
  split: Split, batch_size: int, seed: int, shares: Shares
) -> Draw:
  """So many labelled images in each batch, then others; at the end the former.

  Both have epochs of their own, which go on from batch to batch.

  Raises:
    ValueError: one of the two kinds is missing.
  """
  has_label = split.labels >= 0
  if has_label.all() or not has_label.any():
    raise ValueError('images with labels and images without are needed')
  labelled = _draw(np.flatnonzero(has_label), seed)
  unlabelled = _draw(np.flatnonzero(~has_label), seed)
  count = shares.labelled
  others = batch_size - count

  def draw(number: int) -> tuple[int, int]:
    step, place = divmod(number, batch_size)
    if step >= shares.finish_step:
      return labelled(number - shares.finish_step * others)
    if place < count:
      return labelled(step * count + place)
    return unlabelled(step * others + place - count)

  return draw


def _balanced_draw(split: Split, seed: int) -> Draw:
  """Rounds of the classes, each in an order of its own.

  A class draws its examples in epochs, each a permutation of its own.

  Raises:
    ValueError: an example has no class.
  """
  if split.labels.min() < 0:
    raise ValueError('an example has no class, and draws are to be balanced')
  classes = np.unique(split.labels)
  rows = [np.flatnonzero(split.labels == label) for label in classes]
  count = classes.size

  # Grain's shuffle of a handful takes milliseconds. The threads look at few
  # epochs at a time.
  @functools.lru_cache(maxsize=4 * (count + 1))
  def permutation(which: int, epoch: int) -> np.ndarray:
    size = count if which == count else rows[which].size
    return np.random.default_rng((seed, which, epoch)).permutation(size)

  def draw(number: int) -> tuple[int, int]:
    turn, place = divmod(number, count)
    which = int(permutation(count, turn)[place])
    epoch, place = divmod(turn, rows[which].size)
    return int(rows[which][permutation(which, epoch)[place]]), epoch

  return draw


def eval_batches(
  split: Split,
  batch_size: int,
  *,
  process_index: int = 0,
  process_count: int = 1,
  num_threads: int = 2,
  prefetch: int = 4,
) -> grain.IterDataset[Batch]:
  """One ordered pass; the last batch is padded and masked.

  Args:
    split: N examples.
    batch_size: global, over all processes.
    process_index: this process; it yields its slice of each global batch.
    process_count: number of processes.
    num_threads: prefetching threads.
    prefetch: batches kept ready.

  Returns:
    An iterable of ceil(N / batch_size) batches; each pass starts anew.

  Raises:
    ValueError: as `train_iterator`.
  """
  local = _local_slice(split, batch_size, process_index, process_count)
  size = len(split)

  def gather(step: int) -> Batch:
    first = step * batch_size
    rows = np.arange(first + local.start, first + local.stop)
    real = rows < size
    batch = _gather(split, np.where(real, rows, 0), np.zeros_like(rows))
    batch['image'][~real] = 0
    batch['label'][~real] = 0
    batch['index'][~real] = -1
    batch['mask'] = real.astype(np.float32)
    return batch

  steps = grain.MapDataset.range(-(-size // batch_size))
  return _prefetched(steps.map(gather), num_threads, prefetch)


def _local_slice(
  split: Split, batch_size: int, process_index: int, process_count: int
) -> slice:
  if not len(split):
    raise ValueError('the split has no examples')
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(
      f'batch_size is {batch_size}; it must be a positive multiple of the '
      f'{process_count} processes'
    )
  if not 0 <= process_index < process_count:
    raise ValueError(f'process_index {process_index} of {process_count}')
  size = batch_size // process_count
  return slice(process_index * size, (process_index + 1) * size)


def _gather(split: Split, rows: np.ndarray, views: np.ndarray) -> Batch:
  return {
    'image': np.asarray(split.images[rows]),
    'label': split.labels[rows],
    'mask': np.ones(rows.size, np.float32),
    'index': split.indices[rows],
    'view': views.astype(np.int32),
  }


def _prefetched(
  batches: grain.MapDataset[Batch], num_threads: int, prefetch: int
) -> grain.IterDataset[Batch]:
  options = grain.ReadOptions(
    num_threads=num_threads, prefetch_buffer_size=prefetch
  )
  return batches.to_iter_dataset(options)
