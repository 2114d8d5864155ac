"""Whether frozen teachers are copied to each device, or spread over all."""

from collections.abc import Mapping

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from tlkd_jax.models.functional import Model, Tree
from tlkd_jax.models.network import Loaded, Network
from tlkd_jax.runtime import sharding
from tlkd_jax.settings import Settings
from tlkd_jax.training import memory
from tlkd_jax.training.features import KINDS

# Of a learner: weights and their gradient; the optimizer's two moments.
_WHOLE, _KEPT = 2, 2
# Share of a device's free memory that weights may take: a step needs as much.
_SHARE = 0.5


def in_parts(
  settings: Settings,
  learners: Mapping[str, Loaded],
  teachers: Mapping[str, Network],
  mesh: Mesh,
  free: int | None = None,
) -> bool:
  """Whether the frozen networks of a run are spread over its devices.

  Args:
    settings: of the run.
    learners: the networks that learn; of a probe the own one is frozen.
    teachers: the frozen ones.
    mesh: devices.
    free: bytes of one device; None asks the first one of this process.
  """
  kind = settings.teacher.sharding
  if mesh.size == 1 or kind == 'none':
    return False
  frozen = [network.model for network in teachers.values()]
  learned = [loaded.network.model for loaded in learners.values()]
  if settings.arm == 'teacher':
    if settings.fit not in KINDS:
      return False
    frozen, learned = learned, []
  if not frozen or kind == 'model':
    return bool(frozen)
  free = memory.free_bytes(mesh.local_devices) if free is None else free
  copied = sum(map(bytes_of, frozen))
  count = mesh.size if settings.optimizer.sharding == 'state' else 1
  needed = copied + sum(
    _WHOLE * bytes_of(model) + _KEPT * bytes_of(model, count)
    for model in learned
  )
  if free is None or needed <= _SHARE * free:
    return False
  left = sum(bytes_of(model, mesh.size) for model in frozen)
  logging.info(
    'memory: the weights of the networks take %.2f GiB of the %.2f GiB that '
    'are free on a device; the frozen ones are spread over %d devices, %.2f '
    'GiB on each in the place of %.2f',
    *(needed / 2**30, free / 2**30, mesh.size, left / 2**30, copied / 2**30),
  )
  return True


def bytes_of(model: Model, count: int = 1) -> int:
  """Of a model's weights and statistics on each of so many devices."""
  shapes: list[Tree] = [model.params_shape, model.model_state_shape]
  total = 0
  for leaf in jax.tree.leaves(shapes):
    spread = any(sharding.part_of(leaf.shape, count))
    size = int(np.prod(leaf.shape)) * leaf.dtype.itemsize
    total += size // count if spread else size
  return total
