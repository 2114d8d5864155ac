"""One mesh axis, "data": batches are split over it, everything else copied.

But for a frozen network's weights and what an optimizer keeps, which may be
spread over it in parts.
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
    counts = [n for n in range(1, mesh.size) if batch_size % n == 0]
    raise ValueError(
      f'batch_size {batch_size} does not divide over {mesh.size} devices; '
      f'accepted: a multiple of {mesh.size}, or {", ".join(map(str, counts))} '
      'devices, on which a run that was begun goes on too'
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

  def put(x, sharding):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return jax.tree.map(put, tree, parts_of(tree, mesh))


def parts_of(tree: Any, mesh: Mesh) -> Any:
  """The shardings of `in_parts`, of arrays or of their shapes."""
  return jax.tree.map(
    lambda x: NamedSharding(mesh, part_of(np.shape(x), mesh.size)), tree
  )


def spread(tree: Any, mesh: Mesh) -> Any:
  """`in_parts`, inside a program."""
  return jax.lax.with_sharding_constraint(tree, parts_of(tree, mesh))


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


def whole(tree: Any, mesh: Mesh) -> Any:
  """The same arrays where each device has a whole copy, else `gather`."""
  if all(leaf.is_fully_replicated for leaf in jax.tree.leaves(tree)):
    return tree
  return gather(tree, mesh)


def on_host(leaf: Any) -> np.ndarray:
  """The values of an array; a copy on each device is read once.

  Of one that is in parts over several processes all of them must ask.
  """
  if not isinstance(leaf, jax.Array):
    return np.asarray(leaf)
  if not leaf.is_fully_replicated:
    if leaf.is_fully_addressable:
      return np.asarray(leaf)
    assert isinstance(leaf.sharding, NamedSharding)
    leaf = gather(leaf, leaf.sharding.mesh)
  return np.asarray(leaf.addressable_data(0))


def gather(tree: Any, mesh: Mesh) -> Any:
  """Copies sharded arrays whole to every device; also inside a program."""
  return _copy(tree, replicated(mesh))


@functools.partial(jax.jit, static_argnames='sharding')
def _copy(tree, sharding: NamedSharding):
  return jax.lax.with_sharding_constraint(tree, sharding)
