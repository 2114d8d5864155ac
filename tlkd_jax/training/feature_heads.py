"""What a network says, from stored features: its last layer alone is applied.

The head's weights have no part in the fingerprint of features.py, so that one
file of features serves every head that is fit on it.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from tlkd_jax.data import Split
from tlkd_jax.models.functional import Tree
from tlkd_jax.models.network import Network, head_alone, last_layer
from tlkd_jax.runtime import sharding
from tlkd_jax.training import folds
from tlkd_jax.training.features import Features


def of_head(network: Network, variables: Tree) -> Tree:
  """The constants of `make_head`: of the parameters the last layer alone."""
  found = {'params': head_alone(network.model, variables['params'])}
  return found | {k: variables[k] for k in ('folds',) if k in variables}


@functools.lru_cache(maxsize=16)
def make_head(network: Network, mesh: Mesh) -> Callable:
  """Builds head(constants, pre_logits, index) -> logits, replicated, once.

  Args:
    network: of which constants {'params', 'folds' where it is cross-fitted}
      are; of its parameters the last layer alone is read.
    mesh: devices.

  Returns:
    A jitted function of [B, D] and int [B], as guides.speak takes them; [B, K]
    in the parameters' dtype.
  """

  def head(constants, pre_logits, index):
    layer = last_layer(network.model, constants['params'])
    pre_logits = pre_logits.astype(network.dtype)
    if 'folds' in constants:
      return folds.logits(constants['folds'], pre_logits, index)
    kernel, bias = (
      layer[name].astype(network.dtype) for name in ('kernel', 'bias')
    )
    return (pre_logits @ kernel + bias[None]).astype(layer['kernel'].dtype)

  copied, split = sharding.replicated(mesh), sharding.batch_sharded(mesh)
  return jax.jit(
    head, in_shardings=(copied, split, split), out_shardings=copied
  )


def batches(
  features: Features,
  head: Callable,
  constants: Tree,
  split: Split,
  view: int,
  start: int,
  batch_size: int,
  mesh: Mesh,
) -> Iterator[dict]:
  """What the network says of a view, batch by batch, the last one padded.

  Args:
    features: of the split.
    head: from `make_head`.
    constants: its first argument, on the devices.
    split: the images.
    view: which of their views.
    start: the first image.
    batch_size: global.
    mesh: devices.

  Yields:
    The features' outputs, float32 [batch_size, D], and 'logits' beside them.
  """
  share = batch_size // jax.process_count()
  own = slice(share * jax.process_index(), share * (jax.process_index() + 1))
  for first in range(start, len(split), batch_size):
    rows = np.arange(first, first + batch_size)
    there = np.minimum(rows, len(split) - 1)
    outputs = features(there, view)
    index = np.where(rows < len(split), split.indices[there], -1)
    given = outputs['pre_logits'], index
    given = sharding.shard_batch(tuple(x[own] for x in given), mesh)
    yield outputs | {'logits': head(constants, *given)}
