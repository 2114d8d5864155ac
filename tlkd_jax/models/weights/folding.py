"""BatchNorm folded into the convolution before it, branches into one.

With running statistics a BatchNorm is an affine map of channels, so that
norm(conv(x, k) + b) = conv(x, k s) + (b - mean) s + bias with
s = scale / sqrt(var + epsilon). What is trained in branches becomes the variant
NAME_fused first, whose weights have the names that timm gives them.
"""

import dataclasses
import functools

import jax
import numpy as np
from flax import nnx

from tlkd_jax.models import create_model, folded, fused_name, quantized
from tlkd_jax.models.functional import Model, Tree, structure, to_functional
from tlkd_jax.models.layers import branches
from tlkd_jax.models.layers.branches import Branched
from tlkd_jax.models.weights.loading import like
from tlkd_jax.runtime.trees import flatten, nest


def fuse(
  model: Model, params: Tree, model_state: Tree
) -> tuple[Model, Tree, Tree]:
  """Makes one layer of what is trained in branches.

  Args:
    model: a variant that has a fused one.
    params: its parameters.
    model_state: its BatchNorm statistics.

  Returns:
    (the fused variant, params, model_state), the same function in evaluation
    mode, to rounding: sums are taken in float64.

  Raises:
    ValueError: it has no fused variant.
  """
  name = fused_name(model.name)
  if name is None:
    raise ValueError(f'{model.name} is not trained in branches')
  module = _module(model)
  flat = {**flatten(params), **flatten(model_state)}
  branched = {
    path: child
    for path, child in folded.modules(module)
    if isinstance(child, Branched)
  }
  for path, child in branched.items():
    parents = (path.rsplit('.', n)[0] for n in range(1, path.count('.') + 1))
    if branched.keys().isdisjoint(parents):
      _fuse(flat, path, child)
  fused = create_model(name, num_classes=model.num_classes, **model.options)
  fused = like(fused, model)
  shapes = fused.params_shape, fused.model_state_shape
  trees = [nest({key: flat[key] for key in flatten(tree)}) for tree in shapes]
  return fused, trees[0], trees[1]


def _fuse(flat: Tree, path: str, module: Branched):
  """Fuses what is below a path, in place and in float64."""
  arrays = {k: np.asarray(v) for k, v in branches.below(flat, path).items()}
  for name in arrays:
    del flat[f'{path}.{name}']
  dtype = np.result_type(*arrays.values())
  wide = {name: value.astype(np.float64) for name, value in arrays.items()}
  for name, value in module.fuse(wide).items():
    flat[f'{path}.{name}'] = value.astype(dtype)


def fold_norms(
  model: Model, params: Tree, model_state: Tree
) -> tuple[Model, Tree, Tree]:
  """Removes branches, and every BatchNorm that directly follows a convolution.

  Args:
    model: any variant.
    params: its parameters.
    model_state: its BatchNorm statistics.

  Returns:
    (model, params, model_state) of the same function in evaluation mode, to
    rounding. The model is for inference: it matches no torch keys.

  Raises:
    ValueError: there are neither.
  """
  branched = fused_name(model.name) is not None
  if branched:
    model, params, model_state = fuse(model, params, model_state)
  module = _module(model)
  pairs = folded.pairs(module)
  if branched and not pairs:
    return model, params, model_state
  if not pairs:
    raise ValueError(f'{model.name} has no BatchNorm after a convolution')
  spec = dataclasses.replace(
    model.spec, build=functools.partial(folded.build, model.spec.build)
  )
  flat = flatten(params)
  state = flatten(model_state)
  for conv, norm, epsilon in pairs:
    _fold(flat, state, conv, norm, epsilon)
  plain = to_functional(model.name, spec, model.num_classes, **model.options)
  return plain, nest(flat), nest(state)


def to_int8(
  model: Model, params: Tree, model_state: Tree
) -> tuple[Model, Tree, Tree]:
  """The form of a network that int8 arithmetic computes; see quantized.py.

  Args:
    model: a variant that has one.
    params: its parameters.
    model_state: its BatchNorm statistics.

  Returns:
    (model, params, model_state): folded weights in float, and bounds of its
    tensors that are still to be found.
  """
  whole = create_model(
    quantized.name_of(model.name),
    num_classes=model.num_classes,
    **model.options,
  )
  whole = like(whole, model)
  if folds(model):
    _, params, _ = fold_norms(model, params, model_state)
  bounds = jax.tree.map(
    lambda x: np.zeros(x.shape, x.dtype), whole.model_state_shape
  )
  return whole, params, bounds


def folds(model: Model) -> bool:
  """Whether `fold_norms` finds branches or a norm to fold."""
  if fused_name(model.name) is not None:
    return True
  return bool(folded.pairs(_module(model)))


def _module(model: Model) -> nnx.Module:
  return structure(model.spec, model.num_classes, model.options)


def _fold(flat: Tree, state: Tree, conv: str, norm: str, epsilon: float):
  """Folds one pair, in place and in float64."""

  def take(tree, name):
    return np.asarray(tree.pop(f'{norm}.{name}'), np.float64)

  dtype = flat[f'{conv}.kernel'].dtype
  scale = take(flat, 'scale') / np.sqrt(take(state, 'var') + epsilon)
  shift = take(flat, 'bias') - take(state, 'mean') * scale
  kernel = np.asarray(flat[f'{conv}.kernel'], np.float64)
  bias = np.asarray(flat.get(f'{conv}.bias', 0.0), np.float64)
  flat[f'{conv}.kernel'] = (kernel * scale).astype(dtype)
  flat[f'{conv}.bias'] = (bias * scale + shift).astype(dtype)
