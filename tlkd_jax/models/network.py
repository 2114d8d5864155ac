"""A model with the images it wants, and what is asked of it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tlkd_jax.data import Look, augment
from tlkd_jax.models.functional import Model, Tree
from tlkd_jax.runtime import sharding

Array = jax.Array

DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Network:
  """A model and the images it wants.

  Attributes:
    model: the model.
    image_size: side of its images in pixels.
    dtype: of the compute.
    look: how its images are cut from the files; None where it takes those of
      another network, resized.
  """

  model: Model
  image_size: int
  dtype: Any
  look: Look | None = None

  def prepare(self, images: Array) -> Array:
    """Float images [B, S, S, 3] in 0..255 -> normalised, this model's size."""
    images = augment.resize_for(images, self.image_size)
    spec = self.model.spec
    images = augment.normalize(images, spec.mean, spec.std)
    return images.astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A network with its weights on the host.

  Attributes:
    network: the network.
    params: its parameters.
    model_state: its BatchNorm statistics.
    look_alikes: variants that the weights may be of as well; see
      weights.look_alikes.
    licences: of all weights that went into it, a line each.
  """

  network: Network
  params: Tree
  model_state: Tree
  folds: Tree | None = None
  look_alikes: tuple[str, ...] = ()
  licences: tuple[str, ...] = ()


@functools.lru_cache(maxsize=16)
def make_eval_step(network: Network, mesh: Mesh) -> Callable:
  """Builds eval(variables, images) -> outputs, without features, once.

  Args:
    network: what is run.
    mesh: devices.

  Returns:
    A jitted function of ((params, model_state), uint8 [B, S, S, 3]) that gives
    {'logits': [B, K], 'pre_logits': [B, D]}, replicated.
  """

  def step(variables, images):
    params, model_state = sharding.gather(variables, mesh)
    outputs, _ = network.model.apply(
      params, model_state, network.prepare(images)
    )
    return {name: outputs[name] for name in ('logits', 'pre_logits')}

  copied, split = sharding.replicated(mesh), sharding.batch_sharded(mesh)
  return jax.jit(step, in_shardings=(None, split), out_shardings=copied)


def last_layer(model: Model, params: Tree) -> Tree:
  """{'kernel': [D, K], 'bias': [K]} of a model's head."""
  for name in model.spec.head[0].split('.'):
    params = params[name]
  return params


def head_alone(model: Model, params: Tree) -> Tree:
  """The parameters cut down to the last layer: all that stored targets need."""
  cut: Tree = last_layer(model, params)
  for name in reversed(model.spec.head[0].split('.')):
    cut = {name: cut}
  return cut


def with_last_layer(model: Model, params: Tree, layer: Tree) -> Tree:
  """The parameters with another {'kernel', 'bias'} in their head."""

  def replaced(tree, path):
    if not path:
      return layer
    return tree | {path[0]: replaced(tree[path[0]], path[1:])}

  return replaced(params, model.spec.head[0].split('.'))


def output_shapes(network: Network, image_size: int) -> dict[str, Any]:
  """Shapes of a model's outputs for one image, for losses with projectors."""
  images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)

  def outputs(params, model_state, images):
    prepared = network.prepare(images)
    return network.model.apply(params, model_state, prepared)[0]

  model = network.model
  return jax.eval_shape(
    outputs, model.params_shape, model.model_state_shape, images
  )
