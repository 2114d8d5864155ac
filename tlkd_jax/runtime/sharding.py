"""One mesh axis, "data": batches are split over it, everything else copied.

But for a frozen network's weights, which may be spread over it in parts.
"""

import functools
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tlkd_jax.runtime.devices import available

Batch = dict[str, np.ndarray]

# Arrays of fewer values are copied: a gather would take longer than to read.
_LEAST = 1024


def make_mesh(num_devices: int | None = None) -> Mesh:
  """A ("data",) mesh over the first `num_devices` of all processes' devices.

  Raises:
    UserError: see devices.available.
  """
  devices = available()[:num_devices]
  return jax.make_mesh(
    (len(devices),), ('data',), axis_types=(AxisType.Auto,), devices=devices
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of parameters and metrics: a whole copy per device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
  """The sharding of a batch: split along the first axis."""
  return NamedSharding(mesh, PartitionSpec('data'))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
  """Raises ValueError unless the global batch divides over the devices."""
  if batch_size % mesh.size:
    raise ValueError(
      f'batch_size {batch_size} does not divide over {mesh.size} devices; '
      f'a multiple of {mesh.size} does'
    )


def shard_batch(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
  """Puts this process's share of the global batch on its devices.

  Every process passes [B / process_count, ...] arrays, in process order.
  """
  sharding = batch_sharded(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), batch
  )


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Copies host arrays, equal in every process, to every device."""
  sharding = replicated(mesh)

  def put(x):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return jax.tree.map(put, tree)


def in_parts(tree: Any, mesh: Mesh) -> Any:
  """Spreads host arrays, equal in every process, over the devices.

  Each along its largest axis that divides; small ones, and those without such
  an axis, are copied. `gather` inside a program makes them whole again.
  """

  def put(x):
    x = np.asarray(x)
    sharding = NamedSharding(mesh, part_of(x.shape, mesh.size))
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return jax.tree.map(put, tree)


def part_of(shape: tuple[int, ...], count: int) -> PartitionSpec:
  """How an array is spread over so many devices."""
  axes = [a for a, size in enumerate(shape) if size and size % count == 0]
  if count == 1 or math.prod(shape) < _LEAST or not axes:
    return PartitionSpec()
  largest = max(axes, key=lambda axis: shape[axis])
  return PartitionSpec(*[None] * largest, 'data')


def place(tree: Any, mesh: Mesh, *, parts: bool) -> Any:
  """`in_parts`, or `replicate`."""
  return in_parts(tree, mesh) if parts else replicate(tree, mesh)


def this_process() -> dict[str, int]:
  """Which share of each global batch is this process's, for data.pipeline."""
  return {
    'process_index': jax.process_index(),
    'process_count': jax.process_count(),
  }


def is_lead() -> bool:
  """True in the one process that writes files and prints."""
  return jax.process_index() == 0


def gather(tree: Any, mesh: Mesh) -> Any:
  """Copies sharded arrays whole to every device; also inside a program."""
  return _copy(tree, replicated(mesh))


@functools.partial(jax.jit, static_argnames='sharding')
def _copy(tree, sharding: NamedSharding):
  return jax.lax.with_sharding_constraint(tree, sharding)
