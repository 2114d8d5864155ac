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
  targets: where teachers' outputs are stored, for each of them by name a dict
    of arrays [B, ...]; see training/targets.py
B is the global batch size divided by the number of processes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import grain
import numpy as np

from tlkd_jax.data import Split

Batch = dict[str, Any]
# (rows of the split, views) -> what is stored of them.
Lookup = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]


def train_iterator(
  split: Split,
  batch_size: int,
  seed: int,
  *,
  num_batches: int | None = None,
  num_views: int = 0,
  targets: Mapping[str, Lookup] | None = None,
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

  Args:
    split: N examples.
    batch_size: global, over all processes.
    seed: of the order.
    num_batches: length of the run; None is endless.
    num_views: an example cycles through so many views; 0 is a new one each
      epoch.
    targets: by name, for each teacher whose outputs are stored, read in the
      prefetching threads; those of the views of `num_batches` batches.
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
  size = len(split)

  def gather(step: int, rows: np.ndarray) -> Batch:
    first = step * batch_size
    views = np.arange(first + local.start, first + local.stop) // size
    if num_views:
      views %= num_views
    batch = _gather(split, rows[local], views)
    if targets:
      batch['targets'] = {
        name: stored(rows[local], views) for name, stored in targets.items()
      }
    return batch

  order = grain.MapDataset.range(size).seed(seed).shuffle().repeat()
  # Cut, as otherwise the threads read ahead beyond the end.
  batches = order.batch(batch_size)[:num_batches].map_with_index(gather)
  return iter(_prefetched(batches, num_threads, prefetch))


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
