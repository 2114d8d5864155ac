"""Modules without the BatchNorms that directly follow a convolution.

What becomes of the arrays is in `weights.folding`.
"""

import jax.numpy as jnp
from flax import nnx

from tlkd_jax.models.families import densenet, resnetv2, vgg
from tlkd_jax.models.functional import Array
from tlkd_jax.models.layers import core as layers


class Nothing(nnx.Module):
  """In the place of a norm that was folded."""

  def __call__(self, x: Array, mode: layers.Mode) -> Array:
    return x


def build(original, num_classes: int, **options) -> nnx.Module:
  """What `original`, a spec's `build`, builds, without norms behind `pairs`."""
  module = original(num_classes, **options)
  found = dict(modules(module))
  for conv, norm, _ in pairs(module):
    layer = found[conv]
    assert isinstance(layer, layers.Conv)
    if layer.bias is None:
      # None made the attribute static; `data` makes it hold a parameter.
      layer.bias = nnx.data(nnx.Param(jnp.zeros(layer.kernel.shape[-1])))
    parent, _, name = norm.rpartition('.')
    setattr(found[parent], name, Nothing())
  return module


def modules(module: nnx.Module) -> list[tuple[str, nnx.Module]]:
  """(path, module) of all that are in one, itself at '' among them."""
  return [
    ('.'.join(map(str, path)), child)
    for path, child in nnx.iter_modules(module)
  ]


def pairs(module: nnx.Module) -> list[tuple[str, str, float]]:
  """(path of a convolution, path of the norm after it, its epsilon)."""
  return [
    (f'{path}.{conv}', f'{path}.{norm}', layer.epsilon)
    for path, child in modules(module)
    for conv, norm, layer in _neighbours(child)
    if isinstance(layer, layers.BatchNorm)
  ]


def _neighbours(module: nnx.Module) -> list[tuple[str, str, nnx.Module | None]]:
  """(path of a convolution in it, path of the norm behind it, the norm)."""
  if isinstance(module, layers.ConvNorm | vgg.ConvBlock):
    return [('conv', 'norm', module.norm)]
  if isinstance(module, densenet.DenseLayer):
    return [('squeeze.conv', 'grow.norm', module.grow.norm)]
  if isinstance(module, resnetv2.Block):
    return [
      ('conv1', 'norm2', module.norm2),
      ('conv2', 'norm3', module.norm3),
    ]
  return []
