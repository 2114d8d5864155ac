"""Convolutions that are trained in parallel branches and run as one.

With running statistics a BatchNorm is affine, so that a sum of convolutions
with norms, and of a norm alone, is one convolution with a bias (Ding et al.
2021, arXiv 2101.03697, section 3.3; Vasu et al. 2023, 2206.04040, section
3.2). A module here is built in either form; `weights.folding.fuse` takes the
arrays from the one to the other.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
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
    rngs: layers.Rngs,
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
    if self._gains(mode):
      y = self._learned(x, mode) if mode.norm_train else self._as_one(x)
    else:
      y = functools.reduce(jnp.add, [conv(x, mode) for conv in self.convs])
    if self.identity is None:
      return y
    return layers.drop_path(y, self.rate, mode) + self.identity(x, mode)

  def _gains(self, mode: Mode) -> bool:
    """Whether branches are computed together, as only a gradient gains by it.

    Not those of subclasses: int8 networks round between the layers.
    """
    assert self.convs is not None
    first = self.convs[0].conv
    return (
      mode.train
      and mode.batch_chance == 1
      and len(self.convs) > 1
      and (first.groups == 1 or first.kernel.shape[2] == 1)
      and all(
        type(c.conv) is layers.Conv and type(c.norm) is layers.BatchNorm
        for c in self.convs
      )
    )

  def _as_one(self, x: Array) -> Array:
    """The sum as one convolution, as `fuse` has it: the norms are frozen."""
    assert self.convs is not None
    first = self.convs[0].conv
    shape = first.kernel.shape
    kernels, shifts = [], []
    for conv in self.convs:
      scale, shift = conv.norm.frozen()
      kernel = centred(conv.conv.kernel[...], shape, jnp.pad)
      kernels.append(kernel * layers.expand(scale, kernel))
      shifts.append(shift)
    return first.convolve(x, sum(kernels), sum(shifts))

  def _learned(self, x: Array, mode: Mode) -> Array:
    """The sum where each norm takes the statistics of the batch."""
    assert self.convs is not None
    parts = itertools.groupby(self.convs, lambda conv: conv.conv.kernel.shape)
    return functools.reduce(
      jnp.add, [side_by_side(list(convs), x, mode) for _, convs in parts]
    )

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


def side_by_side(convs: list[ConvNorm], x: Array, mode: Mode) -> Array:
  """Sum of convolutions of one size with norms, as one of more channels.

  Else XLA's CPU compiler fuses the taps of all of them into kernels of hundreds
  of operations: MobileOne's step took three times as long, its compilation more
  than twice.
  """
  if len(convs) == 1:
    return convs[0](x, mode)
  count, first = len(convs), convs[0]
  wide = x if first.conv.groups == 1 else jnp.concatenate([x] * count, -1)
  kernel = jnp.concatenate([conv.conv.kernel[...] for conv in convs], -1)
  y = first.conv.several(wide, kernel, count)
  scale = jnp.concatenate([conv.norm.scale[...] for conv in convs])
  bias = jnp.concatenate([conv.norm.bias[...] for conv in convs])
  y, mean, var = layers.batch_norm_train(y, scale, bias, first.norm.epsilon)
  for conv, own_mean, own_var in zip(
    convs, jnp.split(mean, count), jnp.split(var, count), strict=True
  ):
    conv.norm.update(own_mean, own_var, y.size // y.shape[-1])
  return y.reshape(*y.shape[:-1], count, -1).sum(-2)


def affine(arrays: Arrays, norm: str) -> tuple[np.ndarray, np.ndarray]:
  """(scale, shift) [C] that a BatchNorm at a path is in evaluation mode."""
  inverse = 1.0 / np.sqrt(arrays[f'{norm}.var'] + EPSILON)
  scale = arrays[f'{norm}.scale'] * inverse
  return scale, arrays[f'{norm}.bias'] - arrays[f'{norm}.mean'] * scale


def centred(kernel, shape: tuple[int, ...], pad=np.pad):
  """An HWIO kernel of odd sides in the middle of zeros of a larger shape.

  `pad` is that of NumPy or of JAX, for arrays of either.
  """
  over = [
    (big - small) // 2 for big, small in zip(shape, kernel.shape, strict=True)
  ]
  return pad(kernel, [(n, n) for n in over])


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
