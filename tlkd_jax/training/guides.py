"""What the networks of a run say to those that learn from them.

A guide is a dict, cut off from every gradient: the outputs of the model for
the batch (or what a target store kept of them), and beside them 'head' (its
last linear layer), 'params', and of a start what start.py adds. By name:

  teacher, teacher2, ...  frozen, in evaluation mode; online, or stored targets
  start                   the learner as it was before the first update, frozen
  any learner's name      that network at this step, in training mode
  itself                  the learner at this step on the plain views, where it
                          is judged on strong ones (FixMatch)
"""

from collections.abc import Mapping
from typing import Any

import jax

from tlkd_jax.models.functional import Tree
from tlkd_jax.models.network import Network, last_layer
from tlkd_jax.training import folds

Array = jax.Array
Guide = dict[str, Any]

ITSELF = 'itself'


def frozen(
  networks: Mapping[str, Network],
  constants: Mapping[str, Tree],
  images: Mapping[str, Array],
  stored: Mapping[str, Tree],
  index: Array,
  first: Mapping[str, int] | None = None,
) -> dict[str, Guide]:
  """The guides that do not learn.

  Args:
    networks: name -> network.
    constants: name -> {'params', 'model_state', ...}; of one whose outputs are
      stored the last layer alone is read.
    images: name -> float [B, S, S, 3] in 0..255, the views that the learners
      see, cut as the network looks at them.
    stored: name -> outputs of these views, where they were computed before.
    index: int [B], of the images in their split.
    first: name -> the image from which on it is a guide; 0 where not given. All
      are computed, so that they are what is stored.
  """
  found = {}
  for name, network in networks.items():
    given = constants[name]
    start = (first or {}).get(name, 0)
    if name in stored:
      kept = rows_from(stored[name], start)
      found[name] = from_outputs(network, given, kept)
    else:
      found[name] = speak(network, given, images[name], index, start)
  return found


def rows_from(outputs: Tree, first: int) -> Tree:
  """The outputs for the images of a batch from this one on."""
  return jax.tree.map(lambda x: x[first:], outputs) if first else outputs


def speak(
  network: Network,
  constants: Tree,
  images: Array,
  index: Array | None = None,
  first: int = 0,
) -> Guide:
  """What a frozen network says of a batch.

  Args:
    network: the network.
    constants: {'params', 'model_state', ...}.
    images: float [B, S, S, 3] in 0..255.
    index: int [B], of the images in their split; a cross-fitted one needs it.
    first: the image from which on it is a guide.
  """
  outputs, _ = network.model.apply(
    constants['params'], constants['model_state'], network.prepare(images)
  )
  if 'folds' in constants:
    assert index is not None
    pre_logits = outputs['pre_logits']
    said = folds.logits(constants['folds'], pre_logits, index)
    outputs = outputs | {'logits': said}
  return from_outputs(network, constants, rows_from(outputs, first))


def from_outputs(network: Network, constants: Tree, outputs: Tree) -> Guide:
  """A guide with these outputs."""
  head = last_layer(network.model, constants['params'])
  return jax.lax.stop_gradient({**outputs, **constants, 'head': head})
