"""Convolutions that are trained in parallel branches and run as one.

With running statistics a BatchNorm is affine, so that a sum of convolutions
with norms, and of a norm alone, is one convolution with a bias (Ding et al.
2021, arXiv 2101.03697, section 3.3; Vasu et al. 2023, 2206.04040, section
3.2). A module here is built in either form; `weights.folding.fuse` takes the
arrays from the one to the other.
"""

import functools

import jax
import numpy as np
from flax import nnx

from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers.core import ConvNorm, Mode

Array = jax.Array
Arrays = dict[str, np.ndarray]

# Behind the name of a variant: the same in the form for inference.
FUSED = '_fused'
# The same in all networks that are trained so.
EPSILON = 1e-5
_MOMENTUM = 0.1

conv_norm = functools.partial(ConvNorm, epsilon=EPSILON, momentum=_MOMENTUM)
batch_norm = functools.partial(
  layers.BatchNorm, epsilon=EPSILON, momentum=_MOMENTUM
)


class Branched(nnx.Module):
  """A module that has an equal form of fewer layers for inference."""

  def fuse(self, arrays: Arrays) -> Arrays:
    """The arrays of the fused form.

    Args:
      arrays: float64, parameters and statistics of the form in branches, by
        their paths below this module.

    Returns:
      The parameters of the fused form, likewise.
    """
    raise NotImplementedError


class Branches(Branched):
  """Sum of convolutions with norms, of other sizes, and of a norm alone.

  MobileOne's block: arXiv 2206.04040, figure 3.
  """

  def __init__(
    self,
    in_channels: int,
    out_channels: int,
    sizes: tuple[int, ...],
    *,
    stride: int = 1,
    groups: int = 1,
    identity: bool = False,
    squeeze: int = 0,
    activation: str = 'identity',
    rate: float = 0.0,
    fused: bool,
    rngs: nnx.Rngs,
  ):
    """Builds one form.

    Args:
      in_channels: of the input.
      out_channels: of the output.
      sizes: side of each branch's kernel, odd, the largest first.
      stride: of all of them.
      groups: of all of them.
      identity: a norm of the input itself is one more branch, where the output
        has its shape.
      squeeze: hidden channels of squeeze-excite behind the sum, 0 for none.
      activation: at the end.
      rate: of stochastic depth of all branches but the identity.
      fused: one convolution with a bias instead of the branches.
      rngs: of the initialisation.
    """
    same = in_channels == out_channels and stride == 1
    options = {'stride': stride, 'groups': groups, 'rngs': rngs}
    self.convs = (
      None
      if fused
      else nnx.List(
        [conv_norm(in_channels, out_channels, k, **options) for k in sizes]
      )
    )
    self.identity = (
      batch_norm(out_channels) if identity and same and not fused else None
    )
    self.conv = (
      layers.Conv(in_channels, out_channels, sizes[0], use_bias=True, **options)
      if fused
      else None
    )
    self.squeeze = (
      layers.SqueezeExcite(out_channels, squeeze, activation='relu', rngs=rngs)
      if squeeze
      else None
    )
    self.activation = activation
    self.rate = rate

  def __call__(self, x: Array, mode: Mode) -> Array:
    y = self._sum(x, mode) if self.conv is None else self.conv(x)
    y = y if self.squeeze is None else self.squeeze(y)
    return layers.ACTIVATIONS[self.activation](y)

  def _sum(self, x: Array, mode: Mode) -> Array:
    assert self.convs is not None
    first, *others = self.convs
    y = first(x, mode)
    for conv in others:
      y = y + conv(x, mode)
    if self.identity is None:
      return y
    return layers.drop_path(y, self.rate, mode) + self.identity(x, mode)

  def fuse(self, arrays: Arrays) -> Arrays:
    assert self.convs is not None
    shape = arrays['convs.0.conv.kernel'].shape
    kernel, bias = np.zeros(shape), np.zeros(shape[-1])
    for i in range(len(self.convs)):
      scale, shift = affine(arrays, f'convs.{i}.norm')
      kernel += centred(arrays[f'convs.{i}.conv.kernel'], shape) * scale
      bias += shift
    if self.identity is not None:
      scale, shift = affine(arrays, 'identity')
      kernel += unit(shape) * scale
      bias += shift
    kept = {k: v for k, v in arrays.items() if k.startswith('squeeze.')}
    return {'conv.kernel': kernel, 'conv.bias': bias, **kept}


def affine(arrays: Arrays, norm: str) -> tuple[np.ndarray, np.ndarray]:
  """(scale, shift) [C] that a BatchNorm at a path is in evaluation mode."""
  inverse = 1.0 / np.sqrt(arrays[f'{norm}.var'] + EPSILON)
  scale = arrays[f'{norm}.scale'] * inverse
  return scale, arrays[f'{norm}.bias'] - arrays[f'{norm}.mean'] * scale


def centred(kernel: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """An HWIO kernel of odd sides in the middle of zeros of a larger shape."""
  over = [
    (big - small) // 2 for big, small in zip(shape, kernel.shape, strict=True)
  ]
  return np.pad(kernel, [(n, n) for n in over])


def unit(shape: tuple[int, ...]) -> np.ndarray:
  """The HWIO kernel, of any number of groups, that gives its input back."""
  height, width, inputs, outputs = shape
  kernel = np.zeros(shape)
  channels = np.arange(outputs)
  kernel[height // 2, width // 2, channels % inputs, channels] = 1.0
  return kernel


def below(arrays: Arrays, path: str) -> Arrays:
  """The arrays of a submodule, by their paths below it."""
  return {
    name.removeprefix(f'{path}.'): value
    for name, value in arrays.items()
    if name.startswith(f'{path}.')
  }


def timm_modules(
  ours: str, theirs: str, count: int, squeeze: str = 'se'
) -> dict[str, str]:
  """Submodule -> prefix of `Branches`, in both forms, in timm.

  Args:
    ours: path of the module.
    theirs: its prefix in timm.
    count: convolutions of the largest size; one of side 1 may follow.
    squeeze: timm's name of squeeze-excite.
  """
  table = {
    f'{ours}.conv': f'{theirs}.reparam_conv',
    f'{ours}.identity': f'{theirs}.identity',
    f'{ours}.squeeze.reduce': f'{theirs}.{squeeze}.fc1',
    f'{ours}.squeeze.expand': f'{theirs}.{squeeze}.fc2',
  }
  for i in range(count + 1):
    branch = f'conv_kxk.{i}' if i < count else 'conv_scale'
    table[f'{ours}.convs.{i}.conv'] = f'{theirs}.{branch}.conv'
    table[f'{ours}.convs.{i}.norm'] = f'{theirs}.{branch}.bn'
  return table


def convolutions(path: str, count: int, fused: bool) -> tuple[str, ...]:
  """Paths of the convolutions of `Branches` with so many in branches."""
  if fused:
    return (f'{path}.conv',)
  return tuple(f'{path}.convs.{i}.conv' for i in range(count))
