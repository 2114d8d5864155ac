"""ResNet V2, whose blocks normalise first, and Big Transfer (BiT).

He et al. 2016, arXiv 1603.05027; Kolesnikov et al. 2020, 1912.11370 (BiT: group
normalisation, Wu & He 2018, 1803.08494, and standardised weights, Qiao et al.
2019, 1903.10520, instead of BatchNorm).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers import pooling
from tlkd_jax.models.layers.core import BatchNorm, Conv, Mode
from tlkd_jax.models.spec import ModelSpec, TorchLeaf, pointwise_leaf

Array = jax.Array

_GROUPS = 32
_HALF = {'mean': (127.5,) * 3, 'std': (127.5,) * 3}


@dataclasses.dataclass(frozen=True)
class Design:
  """A variant's numbers.

  Attributes:
    repeats: blocks of each of the four stages.
    width: factor of all channels.
    big_transfer: group normalisation and standardised weights.
  """

  repeats: tuple[int, int, int, int]
  width: int = 1
  big_transfer: bool = False


class StandardConv(Conv):
  """Convolution whose kernel has mean 0 and variance 1 for each output."""

  def __call__(self, x: Array) -> Array:
    dtype = jnp.promote_types(self.kernel[...].dtype, jnp.float32)
    kernel = self.kernel[...].astype(dtype)
    kernel = kernel - kernel.mean((0, 1, 2), keepdims=True)
    variance = jnp.square(kernel).mean((0, 1, 2), keepdims=True)
    kernel = kernel * jax.lax.rsqrt(variance + 1e-8)
    bias = None if self.bias is None else self.bias[...]
    return self.convolve(x, kernel, bias)


class GroupNorm(nnx.Module):
  """Normalises 32 groups of channels over a whole image."""

  def __init__(self, features: int):
    self.scale = nnx.Param(jnp.ones(features))
    self.bias = nnx.Param(jnp.zeros(features))

  def __call__(self, x: Array, mode: Mode) -> Array:
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # Each channel is summed first, then the few of a group: maps of five axes,
    # of which the last has two channels, take a fifth of a step more on CPU.
    y = y - _group_mean(y)
    variance = _group_mean(jnp.square(y))
    y = y * (jax.lax.rsqrt(variance + 1e-5) * layers.expand(self.scale[...], y))
    return (y + layers.expand(self.bias[...], y)).astype(x.dtype)


def _group_mean(x: Array) -> Array:
  """The mean of each channel's group in x [B, H, W, C], as [B, 1, 1, C]."""
  batch, _, _, channels = x.shape
  of_groups = x.mean((1, 2)).reshape(batch, _GROUPS, -1).mean(-1)
  return jnp.repeat(of_groups, channels // _GROUPS, axis=1)[:, None, None]


def _make_conv(design: Design, *sizes, **options) -> Conv:
  return (StandardConv if design.big_transfer else Conv)(*sizes, **options)


def _make_norm(design: Design, features: int) -> GroupNorm | BatchNorm:
  if design.big_transfer:
    return GroupNorm(features)
  return BatchNorm(features, epsilon=1e-5, momentum=0.1)


class Block(nnx.Module):
  """Normalised, rectified 1x1, 3x3 and 1x1 convolutions beside a shortcut.

  A shortcut that changes the shape starts from the normalised input.
  """

  def __init__(self, in_channels, out, design, *, stride, rate, rngs):
    hidden = out // 4
    conv = functools.partial(_make_conv, design, rngs=rngs)
    self.norm1 = _make_norm(design, in_channels)
    self.conv1 = conv(in_channels, hidden, 1)
    self.norm2 = _make_norm(design, hidden)
    self.conv2 = conv(hidden, hidden, 3, stride=stride)
    self.norm3 = _make_norm(design, hidden)
    self.conv3 = conv(hidden, out, 1)
    self.shortcut = (
      conv(in_channels, out, 1, stride=stride)
      if stride > 1 or in_channels != out
      else None
    )
    self.rate = rate

  def __call__(self, x: Array, mode: Mode) -> Array:
    y = jax.nn.relu(self.norm1(x, mode))
    x = x if self.shortcut is None else self.shortcut(y)
    y = jax.nn.relu(self.norm2(self.conv1(y), mode))
    y = self.conv3(jax.nn.relu(self.norm3(self.conv2(y), mode)))
    return x + layers.drop_path(y, self.rate, mode)


class ResNetV2(nnx.Module):
  """Stem, max-pool, four stages, norm, pooling, linear head.

  `features` are not normalised: each is what the next stage starts from.
  """

  def __init__(
    self,
    design: Design,
    num_classes: int,
    *,
    in_channels: int = 3,
    dropout: float | None = None,
    drop_path: float = 0.0,
    rngs: layers.Rngs,
  ):
    channels = 64 * design.width
    self.stem = _make_conv(
      design, in_channels, channels, 7, stride=2, rngs=rngs
    )
    rates = iter(layers.drop_path_rates(drop_path, sum(design.repeats)))
    stages = []
    for s, repeats in enumerate(design.repeats):
      out = 256 * 2**s * design.width
      blocks = []
      for b in range(repeats):
        block = Block(
          channels,
          out,
          design,
          stride=2 if s > 0 and b == 0 else 1,
          rate=next(rates),
          rngs=rngs,
        )
        blocks.append(block)
        channels = out
      stages.append(nnx.List(blocks))
    self.stages = nnx.List(stages)
    self.norm = _make_norm(design, channels)
    self.head = layers.Linear(channels, num_classes, rngs=rngs)
    self.big_transfer = design.big_transfer
    self.dropout = dropout or 0.0

  def __call__(self, x: Array, mode: Mode) -> dict:
    x = self.stem(x)
    if self.big_transfer:
      # Zeros take part there, and win where all values are negative.
      x = pooling.max_pool(
        jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, 2, 0
      )
    else:
      x = pooling.max_pool(x, 3, 2, 1)
    x, features = layers.run_stages(self.stages, x, mode)
    pooled = jax.nn.relu(self.norm(x, mode)).mean((1, 2))
    logits = self.head(layers.dropout(pooled, self.dropout, mode))
    return {'logits': logits, 'pre_logits': pooled, 'features': features}


def _modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in timm."""
  table = {'stem': 'stem.conv', 'norm': 'norm', 'head': 'head.fc'}
  for s, repeats in enumerate(design.repeats):
    for b in range(repeats):
      ours, theirs = f'stages.{s}.{b}', f'stages.{s}.blocks.{b}'
      for i in (1, 2, 3):
        table[f'{ours}.conv{i}'] = f'{theirs}.conv{i}'
        table[f'{ours}.norm{i}'] = f'{theirs}.norm{i}'
      table[f'{ours}.shortcut'] = f'{theirs}.downsample.conv'
  return table


def _leaves() -> dict[str, TorchLeaf]:
  """timm's head is a 1x1 convolution."""
  return {'head.kernel': pointwise_leaf('head.fc.weight')}


_50, _101, _152 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)


def _big(repeats, width) -> Design:
  return Design(repeats, width, big_transfer=True)


# Design, default weights, native side, crop, interpolation (timm 1.0).
_TIMM = {
  'resnetv2_50': (Design(_50), 'a1h_in1k', 224, 0.95, 'bicubic'),
  'resnetv2_101': (Design(_101), 'a1h_in1k', 224, 0.95, 'bicubic'),
  'resnetv2_50x1_bit': (
    (_big(_50, 1), 'goog_distilled_in1k', 224, 0.875, 'bicubic')
  ),
  'resnetv2_50x3_bit': (
    (_big(_50, 3), 'goog_in21k_ft_in1k', 448, 1.0, 'bilinear')
  ),
  'resnetv2_101x1_bit': (
    (_big(_101, 1), 'goog_in21k_ft_in1k', 448, 1.0, 'bilinear')
  ),
  'resnetv2_101x3_bit': (
    (_big(_101, 3), 'goog_in21k_ft_in1k', 448, 1.0, 'bilinear')
  ),
  'resnetv2_152x2_bit': (
    (_big(_152, 2), 'goog_teacher_in21k_ft_in1k', 224, 0.875, 'bicubic')
  ),
}

VARIANTS: dict[str, ModelSpec] = {
  f'timm/{name}': ModelSpec(
    build=functools.partial(ResNetV2, design),
    torch_modules=functools.partial(_modules, design),
    torch_leaves=_leaves,
    stem='stem',
    image_size=size,
    crop=crop,
    interpolation=interpolation,
    weights=f'timm:{name}.{tag}',
    **_HALF,
  )
  for name, (design, tag, size, crop, interpolation) in _TIMM.items()
}
