"""What a model costs, from shapes alone: no weights are allocated.

Multiply-adds are counted in the jaxpr of the forward pass, as it is computed
here. `macs` counts convolutions and linear layers, which is what the tables of
timm and torchvision give for convolutional networks and timm's for
transformers; `attention_macs` counts products of activations with each other.
DenseNet's figures are below the published ones: its transitions pool before
their 1x1 convolution, which gives the same result for a quarter of the work.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from tlkd_jax.models import create_model
from tlkd_jax.models.functional import Model
from tlkd_jax.models.layers.convolutions import lax_convolutions
from tlkd_jax.models.weights import licences, pretrained, twins


@dataclasses.dataclass(frozen=True)
class Description:
  """Figures of one model variant.

  Attributes:
    name: its key in MODELS.
    image_size: (height, width) that the figures hold for, in pixels.
    native_size: side of the published preprocessing, in pixels.
    parameters: scalars that are trained.
    macs: multiply-adds per image of convolutions and linear layers.
    attention_macs: multiply-adds per image between activations.
    stages: name of a stage -> [h, w, c] of its output.
    pre_logits: length of the pooled features.
    licence: of its weights where they are published, with who says so; ''
      where nothing is known.
  """

  name: str
  image_size: tuple[int, int]
  native_size: int
  parameters: int
  macs: int
  attention_macs: int
  stages: dict[str, tuple[int, ...]]
  pre_logits: int
  licence: str


def describe(
  name: str,
  image_size: int | tuple[int, int] | None = None,
  *,
  num_classes: int = 1000,
) -> Description:
  """Counts a variant's parameters and multiply-adds and lists its stages.

  Args:
    name: a key of MODELS.
    image_size: side, or (height, width), in pixels; None is the native one.
    num_classes: length of the logits.

  Raises:
    ValueError: the name is unknown or the model refuses the size.
  """
  model = create_model(name, num_classes=num_classes)
  return of_model(model, image_size)


def of_model(
  model: Model, image_size: int | tuple[int, int] | None = None
) -> Description:
  """The same of a model that is at hand.

  Raises:
    ValueError: the model refuses the size.
  """
  height, width = _sides(model, image_size)
  images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
  # A new function each time: a cached trace would ignore the context.
  forward = functools.partial(model.apply)
  with lax_convolutions():
    jaxpr, shapes = jax.make_jaxpr(forward, return_shape=True)(
      model.params_shape, model.model_state_shape, images
    )
  outputs, _ = shapes
  macs = attention_macs = 0
  for equation, times in _equations(jaxpr.jaxpr):
    if equation.primitive.name == 'conv_general_dilated':
      macs += times * _conv_macs(equation)
    elif equation.primitive.name == 'dot_general':
      if _is_between_activations(equation):
        attention_macs += times * _dot_macs(equation)
      else:
        macs += times * _dot_macs(equation)
  return Description(
    name=model.name,
    image_size=(height, width),
    native_size=model.spec.image_size,
    parameters=pretrained.count_params(model.params_shape),
    macs=macs,
    attention_macs=attention_macs,
    stages={k: v.shape[1:] for k, v in outputs['features'].items()},
    pre_logits=outputs['pre_logits'].shape[-1],
    licence=licences.of_name(_published(model)),
  )


def _published(model: Model) -> str:
  """Weights of the variant; torchvision's have several, of one licence."""
  if model.spec.weights:
    return model.spec.weights
  library, _, bare = twins.full_name(model.name).rpartition('/')
  return f'torchvision:{bare}' if library == 'torchvision' else ''


def _sides(
  model: Model, image_size: int | tuple[int, int] | None
) -> tuple[int, int]:
  size = model.spec.image_size if image_size is None else image_size
  return (size, size) if isinstance(size, int) else size


def _equations(jaxpr, times: int = 1) -> Iterator:
  """(equation, how often), also of jaxprs inside (jit, custom_vjp, scan)."""
  for equation in jaxpr.eqns:
    inner = list(jaxprs_in_params(equation.params))
    often = times * equation.params.get('length', 1) if inner else times
    if not inner:
      yield equation, times
    for sub in inner:
      yield from _equations(sub, often)


def _conv_macs(equation) -> int:
  """Outputs times the kernel's values for each of them."""
  kernel = equation.invars[1].aval.shape
  numbers = equation.params['dimension_numbers']
  outputs = math.prod(equation.outvars[0].aval.shape)
  return outputs * math.prod(kernel) // kernel[numbers.rhs_spec[0]]


def _dot_macs(equation) -> int:
  (contracted, _), _ = equation.params['dimension_numbers']
  shape = equation.invars[0].aval.shape
  inner = math.prod(shape[i] for i in contracted)
  return math.prod(equation.outvars[0].aval.shape) * inner


def _is_between_activations(equation) -> bool:
  """A product with batch dimensions has no weights in this package."""
  _, (batch, _) = equation.params['dimension_numbers']
  return bool(batch)
