"""ResNet, ResNeXt, Wide ResNet and their SE forms, stride on the 3x3 ("v1.5").

He et al. 2016, arXiv 1512.03385; Xie et al. 2017, 1611.05431; Zagoruyko &
Komodakis 2016, 1605.07146; the "d" variants are He et al. 2019, 1812.01187, the
SE ones Hu et al. 2018, 1709.01507.
"""

import dataclasses
import functools

import jax
from flax import nnx

from tlkd_jax.models.families.inverted import round_channels
from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers import pooling
from tlkd_jax.models.layers.core import ConvNorm, Mode
from tlkd_jax.models.spec import ModelSpec

Array = jax.Array

_conv = functools.partial(ConvNorm, epsilon=1e-5, momentum=0.1)


@dataclasses.dataclass(frozen=True)
class Design:
  """A variant's numbers.

  Attributes:
    repeats: blocks of each of the four stages.
    bottleneck: 1x1, 3x3, 1x1 instead of two 3x3.
    groups: of the 3x3 convolution of a bottleneck.
    base_width: channels a group has in the first stage.
    deep: three 3x3 convolutions for a stem, and an average pool before the 1x1
      convolution of a strided shortcut.
    first: channels of the first of them.
    squeeze: a channel gate after the last convolution of a block.
  """

  repeats: tuple[int, int, int, int]
  bottleneck: bool = True
  groups: int = 1
  base_width: int = 64
  deep: bool = False
  first: int = 32
  squeeze: bool = False

  @property
  def expansion(self) -> int:
    """Output channels of a block / channels of its stage."""
    return 4 if self.bottleneck else 1


class Shortcut(nnx.Module):
  """Projects the input of a block to the shape of its output."""

  def __init__(self, in_channels, channels, *, stride, pooled, rngs):
    self.pool_stride = stride if pooled else 1
    stride = 1 if pooled else stride
    self.project = _conv(in_channels, channels, 1, stride=stride, rngs=rngs)

  def __call__(self, x: Array, mode: Mode) -> Array:
    if self.pool_stride > 1:
      x = pooling.avg_pool(x, 2, self.pool_stride, ceil=True)
    return self.project(x, mode)


class Block(nnx.Module):
  """Two or three convolutions beside a shortcut, ReLU after the sum."""

  def __init__(self, in_channels, channels, design, *, stride, rate, rngs):
    out = channels * design.expansion
    conv = functools.partial(_conv, rngs=rngs)
    if design.bottleneck:
      width = channels * design.base_width // 64 * design.groups
      convs = [
        conv(in_channels, width, 1, activation='relu'),
        conv(
          width,
          width,
          3,
          stride=stride,
          groups=design.groups,
          activation='relu',
        ),
        conv(width, out, 1),
      ]
    else:
      convs = [
        conv(in_channels, channels, 3, stride=stride, activation='relu'),
        conv(channels, out, 3),
      ]
    self.convs = nnx.List(convs)
    self.squeeze = (
      layers.SqueezeExcite(
        out, round_channels(out / 16, limit=0.0), activation='relu', rngs=rngs
      )
      if design.squeeze
      else None
    )
    self.shortcut = (
      Shortcut(in_channels, out, stride=stride, pooled=design.deep, rngs=rngs)
      if stride > 1 or in_channels != out
      else None
    )
    self.rate = rate

  def __call__(self, x: Array, mode: Mode) -> Array:
    y = x
    for conv in self.convs:
      y = conv(y, mode)
    y = y if self.squeeze is None else self.squeeze(y)
    y = layers.drop_path(y, self.rate, mode)
    x = x if self.shortcut is None else self.shortcut(x, mode)
    return jax.nn.relu(x + y)


class ResNet(nnx.Module):
  """Stem, max-pool, four stages, pooling, linear head."""

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
    conv = functools.partial(_conv, activation='relu', rngs=rngs)
    if design.deep:
      stem = [
        conv(in_channels, design.first, 3, stride=2),
        conv(design.first, 32, 3),
        conv(32, 64, 3),
      ]
    else:
      stem = [conv(in_channels, 64, 7, stride=2)]
    self.stem = nnx.List(stem)
    channels, index, last = 64, 0, sum(design.repeats) - 1
    stages = []
    for s, repeats in enumerate(design.repeats):
      blocks = []
      for b in range(repeats):
        block = Block(
          channels,
          64 * 2**s,
          design,
          stride=2 if s > 0 and b == 0 else 1,
          rate=drop_path * index / last,
          rngs=rngs,
        )
        blocks.append(block)
        channels, index = 64 * 2**s * design.expansion, index + 1
      stages.append(nnx.List(blocks))
    self.stages = nnx.List(stages)
    self.head = layers.Linear(channels, num_classes, rngs=rngs)
    self.dropout = dropout or 0.0

  def __call__(self, x: Array, mode: Mode) -> dict:
    for conv in self.stem:
      x = conv(x, mode)
    x = pooling.max_pool(x, 3, 2, 1)
    x, features = layers.run_stages(self.stages, x, mode)
    pooled = x.mean((1, 2))
    logits = self.head(layers.dropout(pooled, self.dropout, mode))
    return {'logits': logits, 'pre_logits': pooled, 'features': features}


def _modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix; torchvision and timm use the same names."""
  table = {'head': 'fc'}
  if design.deep:
    for i, (conv, norm) in enumerate(
      (('conv1.0', 'conv1.1'), ('conv1.3', 'conv1.4'), ('conv1.6', 'bn1'))
    ):
      table[f'stem.{i}.conv'], table[f'stem.{i}.norm'] = conv, norm
  else:
    table['stem.0.conv'], table['stem.0.norm'] = 'conv1', 'bn1'
  # timm's "d" shortcut holds its pool, or an identity, at index 0.
  first = 1 if design.deep else 0
  for s, repeats in enumerate(design.repeats):
    for b in range(repeats):
      ours, theirs = f'stages.{s}.{b}', f'layer{s + 1}.{b}'
      for i in range(3 if design.bottleneck else 2):
        table[f'{ours}.convs.{i}.conv'] = f'{theirs}.conv{i + 1}'
        table[f'{ours}.convs.{i}.norm'] = f'{theirs}.bn{i + 1}'
      if design.squeeze:
        table[f'{ours}.squeeze.reduce'] = f'{theirs}.se.fc1'
        table[f'{ours}.squeeze.expand'] = f'{theirs}.se.fc2'
      project, shortcut = f'{ours}.shortcut.project', f'{theirs}.downsample'
      table[f'{project}.conv'] = f'{shortcut}.{first}'
      table[f'{project}.norm'] = f'{shortcut}.{first + 1}'
  return table


def _spec(design: Design, **fields) -> ModelSpec:
  return ModelSpec(
    build=functools.partial(ResNet, design),
    torch_modules=functools.partial(_modules, design),
    stem='stem.0.conv',
    **fields,
  )


_50, _101, _152 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)
_DESIGNS = {
  'resnet18': Design((2, 2, 2, 2), bottleneck=False),
  'resnet34': Design((3, 4, 6, 3), bottleneck=False),
  'resnet50': Design(_50),
  'resnet101': Design(_101),
  'resnet152': Design(_152),
  'wide_resnet50_2': Design(_50, base_width=128),
  'wide_resnet101_2': Design(_101, base_width=128),
  'resnext50_32x4d': Design(_50, groups=32, base_width=4),
  'resnext101_32x8d': Design(_101, groups=32, base_width=8),
  'resnext101_64x4d': Design(_101, groups=64, base_width=4),
  'resnet26': Design((2, 2, 2, 2)),
  'resnet18d': Design((2, 2, 2, 2), bottleneck=False, deep=True),
  'resnet26d': Design((2, 2, 2, 2), deep=True),
  'resnet34d': Design((3, 4, 6, 3), bottleneck=False, deep=True),
  'resnet50d': Design(_50, deep=True),
  'resnet101d': Design(_101, deep=True),
  'resnet152d': Design(_152, deep=True),
  'seresnet18': Design((2, 2, 2, 2), bottleneck=False, squeeze=True),
  'seresnet34': Design((3, 4, 6, 3), bottleneck=False, squeeze=True),
  'seresnet50': Design(_50, squeeze=True),
  'seresnet50t': Design(_50, deep=True, first=24, squeeze=True),
  'seresnet101': Design(_101, squeeze=True),
  'seresnet152': Design(_152, squeeze=True),
  'seresnet152d': Design(_152, deep=True, squeeze=True),
  'seresnext26d_32x4d': Design(
    (2, 2, 2, 2), groups=32, base_width=4, deep=True, squeeze=True
  ),
  'seresnext26t_32x4d': Design(
    (2, 2, 2, 2), groups=32, base_width=4, deep=True, first=24, squeeze=True
  ),
  'seresnext50_32x4d': Design(_50, groups=32, base_width=4, squeeze=True),
  'seresnext101_32x4d': Design(_101, groups=32, base_width=4, squeeze=True),
  'seresnext101_64x4d': Design(_101, groups=64, base_width=4, squeeze=True),
  'seresnext101_32x8d': Design(_101, groups=32, base_width=8, squeeze=True),
  'seresnext101d_32x8d': Design(
    _101, groups=32, base_width=8, deep=True, squeeze=True
  ),
}

# Short side before the 224 crop; 256 in the first published weights
# (IMAGENET1K_V1), 232 in those that torchvision now takes by default (V2).
_TORCHVISION = {
  'resnet18': 256,
  'resnet34': 256,
  'resnet50': 232,
  'resnet101': 232,
  'resnet152': 232,
  'wide_resnet50_2': 232,
  'wide_resnet101_2': 232,
  'resnext50_32x4d': 232,
  'resnext101_32x8d': 232,
  'resnext101_64x4d': 232,
}

# Default weights (None: timm has none), native side, crop, interpolation (timm
# 1.0).
_TIMM = {
  'resnet18': ('a1_in1k', 224, 0.95, 'bicubic'),
  'resnet34': ('a1_in1k', 224, 0.95, 'bicubic'),
  'resnet50': ('a1_in1k', 224, 0.95, 'bicubic'),
  'resnet101': ('a1h_in1k', 224, 0.95, 'bicubic'),
  'resnet152': ('a1h_in1k', 224, 0.95, 'bicubic'),
  'wide_resnet50_2': ('racm_in1k', 224, 0.875, 'bicubic'),
  'wide_resnet101_2': ('tv_in1k', 224, 0.875, 'bilinear'),
  'resnext50_32x4d': ('a1h_in1k', 224, 0.95, 'bicubic'),
  'resnext101_32x8d': ('tv_in1k', 224, 0.875, 'bilinear'),
  'resnext101_64x4d': ('c1_in1k', 224, 0.95, 'bicubic'),
  'resnet26': ('bt_in1k', 224, 0.875, 'bicubic'),
  'resnet18d': ('ra2_in1k', 224, 0.875, 'bicubic'),
  'resnet26d': ('bt_in1k', 224, 0.875, 'bicubic'),
  'resnet34d': ('ra2_in1k', 224, 0.875, 'bicubic'),
  'resnet50d': ('ra2_in1k', 224, 0.875, 'bicubic'),
  'resnet101d': ('ra2_in1k', 256, 0.95, 'bicubic'),
  'resnet152d': ('ra2_in1k', 256, 0.95, 'bicubic'),
  'seresnet18': (None, 224, 0.875, 'bicubic'),
  'seresnet34': (None, 224, 0.875, 'bicubic'),
  'seresnet50': ('a1_in1k', 224, 0.95, 'bicubic'),
  'seresnet50t': (None, 224, 0.875, 'bicubic'),
  'seresnet101': (None, 224, 0.875, 'bicubic'),
  'seresnet152': (None, 224, 0.875, 'bicubic'),
  'seresnet152d': ('ra2_in1k', 256, 0.95, 'bicubic'),
  'seresnext26d_32x4d': ('bt_in1k', 224, 0.875, 'bicubic'),
  'seresnext26t_32x4d': ('bt_in1k', 224, 0.875, 'bicubic'),
  'seresnext50_32x4d': ('racm_in1k', 224, 0.875, 'bicubic'),
  'seresnext101_32x4d': ('gluon_in1k', 224, 0.875, 'bicubic'),
  'seresnext101_64x4d': ('gluon_in1k', 224, 0.875, 'bicubic'),
  'seresnext101_32x8d': ('ah_in1k', 224, 0.95, 'bicubic'),
  'seresnext101d_32x8d': ('ah_in1k', 224, 0.95, 'bicubic'),
}

VARIANTS: dict[str, ModelSpec] = {
  f'torchvision/{name}': _spec(
    _DESIGNS[name], image_size=224, crop=224 / side, interpolation='bilinear'
  )
  for name, side in _TORCHVISION.items()
} | {
  f'timm/{name}': _spec(
    _DESIGNS[name],
    image_size=size,
    crop=crop,
    interpolation=interpolation,
    weights=f'timm:{name}.{tag}' if tag else None,
  )
  for name, (tag, size, crop, interpolation) in _TIMM.items()
}
