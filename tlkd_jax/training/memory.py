"""Does a step fit into memory? Known from the compiled program, before the run.

The estimate is the compiler's own: buffers of the step beside its arguments,
which are on the devices by then. It grows linearly with the batch, so that two
sizes give the largest batch that fits.
"""

import pathlib
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh

from tlkd_jax.runtime import allocator
from tlkd_jax.training import step as steps

# Bytes that fitting takes for a number: as it is stored, and three times in
# double precision (as rows, scaled, and the images of the folds that are kept).
_FITTED = 4 + 3 * 8
_CGROUP = pathlib.Path('/sys/fs/cgroup')


def check(
  step: Any,
  arguments: tuple,
  batch: dict[str, Any],
  mesh: Mesh,
  free: int | None = None,
) -> None:
  """Compiles a jitted step, which then is compiled, and compares.

  Args:
    step: jitted function of (*arguments, batch).
    arguments: arrays on the devices.
    batch: likewise; axis 0 of every leaf is the batch.
    mesh: devices.
    free: bytes of one device; None asks the first one of this process.

  Raises:
    ValueError: the step does not fit; names the largest batch that does.
  """
  needed = _needed(step, arguments, batch)
  allocator.give_back()
  if free is None:
    free = free_bytes(mesh.local_devices)
    if needed is not None and free is not None and needed > free:
      # What runs before have left is not what a refusal should be for.
      steps.forget()
      allocator.give_back()
      free = free_bytes(mesh.local_devices)
  if needed is None or free is None:
    return
  logging.info(
    'memory: a step takes %s beside the weights, %s are free',
    _as_text(needed),
    _as_text(free),
  )
  if needed <= free:
    return
  size = len(batch['label'])
  fits = _largest_batch(step, arguments, batch, mesh, needed, free)
  named = f'the largest that fits is about {fits}' if fits else 'none fits'
  raise ValueError(
    f'batch_size {size}: a step takes {_as_text(needed)} of memory beside the '
    f'weights, {_as_text(free)} are free; {named}. A smaller batch_size with '
    'optimizer.accumulate_steps, remat, compute_dtype="bfloat16" or a smaller '
    'image_size take less; memory_check=False tries it all the same'
  )


def check_images(
  batch_size: int, train_size: int, image_size: int, mesh: Mesh
) -> None:
  """Compares the images of one batch, of 8 bits and as floats, with memory.

  Before anything is made of them, which for a batch that is far too large
  takes hours.

  Args:
    batch_size: of a step, on all devices.
    train_size: side of the stored images, pixels.
    image_size: side of those that are seen, likewise.
    mesh: devices.

  Raises:
    ValueError: they do not fit; names the largest batch of which they do.
  """
  free = free_bytes(mesh.local_devices)
  each = 3 * (train_size**2 + 4 * image_size**2)
  if free is None or batch_size // mesh.size * each <= free:
    return
  fits = free // each * mesh.size
  raise ValueError(
    f'batch_size {batch_size}: its images alone take '
    f'{_as_text(batch_size * each)} of memory, {_as_text(free * mesh.size)} '
    f'are free, enough for those of {fits} before anything is computed; '
    'memory_check=False tries it all the same'
  )


def check_features(
  num_images: int, num_views: int, width: int, free: int | None = None
) -> None:
  """Compares a probe's features, and what fitting makes of them, with memory.

  Args:
    num_images: training images.
    num_views: of each.
    width: of the features.
    free: bytes of this machine; None asks it.

  Raises:
    ValueError: they do not fit; names the most views that do.
  """
  free = free_ram() if free is None else free
  each = num_images * width * _FITTED
  if free is None or num_views * each <= free:
    return
  fits = free // each - 1
  accepted = (
    f'probe_views at most {fits}' if fits >= 0 else 'fewer training images'
  )
  raise ValueError(
    f'a head on {num_views} views of {num_images} images with {width} features '
    f'takes {_as_text(num_views * each)} of memory to fit, {_as_text(free)} '
    f'are free; accepted: {accepted}; memory_check=False tries it all the same'
  )


def free_bytes(devices: list[jax.Device]) -> int | None:
  """Memory that one of these devices can still give; None where unknown.

  A CPU has the machine's, or its container's, shared by its devices.
  """
  stats = devices[0].memory_stats() or {}
  if 'bytes_limit' in stats:
    return stats['bytes_limit'] - stats.get('bytes_in_use', 0)
  if devices[0].platform != 'cpu':
    return None
  free = free_ram()
  return None if free is None else free // len(devices)


def free_ram() -> int | None:
  """Memory of this machine, or container, that is free; None where unknown."""
  free = [_available_ram(), _left_in_container()]
  return min((value for value in free if value is not None), default=None)


def _needed(step, arguments, batch) -> int | None:
  """Bytes on each device for temporaries and for results that are new."""
  stats = step.lower(*arguments, batch).compile().memory_analysis()
  if stats is None:
    return None
  new = stats.output_size_in_bytes - stats.alias_size_in_bytes
  return stats.temp_size_in_bytes + new


def _largest_batch(step, arguments, batch, mesh, needed, free) -> int:
  """By the line through the estimates of this batch and of half of it."""
  size = len(batch['label'])
  half = size // (2 * mesh.size) * mesh.size
  if not half:
    return 0
  smaller = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      (half, *x.shape[1:]), x.dtype, sharding=x.sharding
    ),
    batch,
  )
  less = _needed(step, arguments, smaller)
  if less is None or less >= needed:
    return 0
  slope = (needed - less) / (size - half)
  fits = int(size - (needed - free) / slope)
  return max(0, fits // mesh.size * mesh.size)


def _available_ram() -> int | None:
  try:
    lines = pathlib.Path('/proc/meminfo').read_text().splitlines()
  except OSError:
    return None
  found = [line.split()[1] for line in lines if line.startswith('MemAvailable')]
  return int(found[0]) * 1024 if found else None


def _left_in_container() -> int | None:
  try:
    limit = (_CGROUP / 'memory.max').read_text().strip()
    used = (_CGROUP / 'memory.current').read_text()
  except OSError:
    return None
  return None if limit == 'max' else int(limit) - int(used)


def _as_text(size: float) -> str:
  return f'{size / 2**30:.2f} GiB'
