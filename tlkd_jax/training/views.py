"""What a frozen network says of views of a split, outside of a run's step.

The augmentation and the model code are those of the step, so that what is said
of a view is what the step would have heard.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from tlkd_jax.data import Split, pipeline
from tlkd_jax.models.functional import Tree
from tlkd_jax.models.network import Network
from tlkd_jax.runtime import sharding
from tlkd_jax.training import drawing, guides


def make_compute(
  network: Network,
  augmentation: functools.partial,
  names: Sequence[str],
  mesh: Mesh,
) -> Callable:
  """Builds compute(constants, seed, batch) -> the outputs, replicated, once.

  Args:
    network: what is run.
    augmentation: (uint8 images, index, view, seed=) -> float images in 0..255,
      from drawing.make_augmentation; its own seed is not read.
    names: of the outputs.
    mesh: devices.
  """
  return program(network, drawing.unseeded(augmentation), tuple(names), mesh)


@functools.lru_cache(maxsize=16)
def program(
  network: Network,
  augmentation: functools.partial,
  names: tuple[str, ...],
  mesh: Mesh,
) -> Callable:
  """The compute of `make_compute`, of an augmentation from drawing.unseeded."""

  def compute(constants, seed, batch):
    constants = sharding.gather(constants, mesh)
    given = batch['image'], batch['index'], batch['view']
    images = augmentation(*given, seed=seed)
    said = guides.speak(network, constants, images, batch['index'])
    return {name: said[name] for name in names}

  copied, split = sharding.replicated(mesh), sharding.batch_sharded(mesh)
  return jax.jit(
    compute, in_shardings=(None, copied, split), out_shardings=copied
  )


def of_view(
  compute: Callable,
  given: Tree,
  split: Split,
  view: int,
  batch_size: int,
  mesh: Mesh,
) -> Iterator[dict[str, jax.Array]]:
  """One view of every example, in order, batch by batch, the last padded.

  Args:
    compute: from `make_compute`.
    given: its (constants, seed), on the devices.
    split: the examples.
    view: which of their views.
    batch_size: global.
    mesh: devices.
  """
  for batch in pipeline.eval_batches(
    split, batch_size, **sharding.this_process()
  ):
    batch['view'] = np.full_like(batch['view'], view)
    yield compute(*given, sharding.shard_batch(batch, mesh))
