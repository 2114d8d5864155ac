"""RegNet X and Y (Radosavovic et al. 2020, arXiv 2003.13678)."""

import dataclasses
import functools

import jax
from flax import nnx

from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers.core import ConvNorm, Mode
from tlkd_jax.models.spec import ModelSpec

Array = jax.Array

_conv = functools.partial(ConvNorm, epsilon=1e-5, momentum=0.1)


@dataclasses.dataclass(frozen=True)
class Design:
  """A variant's numbers.

  Attributes:
    widths: output channels of each stage.
    repeats: blocks of each stage.
    group_width: channels of one group of the 3x3 convolution.
    squeeze: squeeze-excite channels / the block's input channels; 0 for X.
  """

  widths: tuple[int, int, int, int]
  repeats: tuple[int, int, int, int]
  group_width: int
  squeeze: float = 0.0


class Block(nnx.Module):
  """1x1, grouped 3x3, squeeze-excite, 1x1, ReLU after adding the shortcut."""

  def __init__(self, in_channels, channels, design, *, stride, rate, rngs):
    conv = functools.partial(_conv, rngs=rngs)
    self.reduce = conv(in_channels, channels, 1, activation='relu')
    self.grouped = conv(
      channels,
      channels,
      3,
      stride=stride,
      groups=channels // design.group_width,
      activation='relu',
    )
    self.squeeze = (
      layers.SqueezeExcite(
        channels,
        round(in_channels * design.squeeze),
        activation='relu',
        rngs=rngs,
      )
      if design.squeeze
      else None
    )
    self.project = conv(channels, channels, 1)
    self.shortcut = (
      conv(in_channels, channels, 1, stride=stride)
      if stride > 1 or in_channels != channels
      else None
    )
    self.rate = rate

  def __call__(self, x: Array, mode: Mode) -> Array:
    y = self.grouped(self.reduce(x, mode), mode)
    y = y if self.squeeze is None else self.squeeze(y)
    y = layers.drop_path(self.project(y, mode), self.rate, mode)
    x = x if self.shortcut is None else self.shortcut(x, mode)
    return jax.nn.relu(x + y)


class RegNet(nnx.Module):
  """Stem, four stages whose first blocks stride, pooling, linear head."""

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
    self.stem = _conv(
      in_channels, 32, 3, stride=2, activation='relu', rngs=rngs
    )
    channels, index, last = 32, 0, sum(design.repeats) - 1
    stages = []
    for width, repeats in zip(design.widths, design.repeats, strict=True):
      blocks = []
      for b in range(repeats):
        block = Block(
          channels,
          width,
          design,
          stride=2 if b == 0 else 1,
          rate=drop_path * index / last,
          rngs=rngs,
        )
        blocks.append(block)
        channels, index = width, index + 1
      stages.append(nnx.List(blocks))
    self.stages = nnx.List(stages)
    self.head = layers.Linear(channels, num_classes, rngs=rngs)
    self.dropout = dropout or 0.0

  def __call__(self, x: Array, mode: Mode) -> dict:
    x = self.stem(x, mode)
    x, features = layers.run_stages(self.stages, x, mode)
    pooled = x.mean((1, 2))
    logits = self.head(layers.dropout(pooled, self.dropout, mode))
    return {'logits': logits, 'pre_logits': pooled, 'features': features}


def _torchvision_modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in torchvision."""
  table = {'stem.conv': 'stem.0', 'stem.norm': 'stem.1', 'head': 'fc'}
  parts = {
    'reduce': 'f.a',
    'grouped': 'f.b',
    'project': 'f.c',
    'shortcut': 'proj',
  }
  for s, repeats in enumerate(design.repeats, 1):
    for b in range(repeats):
      ours = f'stages.{s - 1}.{b}'
      theirs = f'trunk_output.block{s}.block{s}-{b}'
      for part, name in parts.items():
        table[f'{ours}.{part}.conv'] = f'{theirs}.{name}.0'
        table[f'{ours}.{part}.norm'] = f'{theirs}.{name}.1'
      table[f'{ours}.squeeze.reduce'] = f'{theirs}.f.se.fc1'
      table[f'{ours}.squeeze.expand'] = f'{theirs}.f.se.fc2'
  return table


def _timm_modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in timm."""
  table = {'stem.conv': 'stem.conv', 'stem.norm': 'stem.bn', 'head': 'head.fc'}
  parts = {
    'reduce': 'conv1',
    'grouped': 'conv2',
    'project': 'conv3',
    'shortcut': 'downsample',
  }
  for s, repeats in enumerate(design.repeats, 1):
    for b in range(repeats):
      ours, theirs = f'stages.{s - 1}.{b}', f's{s}.b{b + 1}'
      for part, name in parts.items():
        table[f'{ours}.{part}.conv'] = f'{theirs}.{name}.conv'
        table[f'{ours}.{part}.norm'] = f'{theirs}.{name}.bn'
      table[f'{ours}.squeeze.reduce'] = f'{theirs}.se.fc1'
      table[f'{ours}.squeeze.expand'] = f'{theirs}.se.fc2'
  return table


def _x(widths, repeats, group_width) -> Design:
  return Design(widths, repeats, group_width)


def _y(widths, repeats, group_width) -> Design:
  return Design(widths, repeats, group_width, squeeze=0.25)


_X_400 = _x((32, 64, 160, 400), (1, 2, 7, 12), 16)
_X_800 = _x((64, 128, 288, 672), (1, 3, 7, 5), 16)
_X_1600 = _x((72, 168, 408, 912), (2, 4, 10, 2), 24)
_X_3200 = _x((96, 192, 432, 1008), (2, 6, 15, 2), 48)
_Y_400 = _y((48, 104, 208, 440), (1, 3, 6, 6), 8)
_Y_800 = _y((64, 144, 320, 784), (1, 3, 8, 2), 16)
_Y_1600 = _y((48, 120, 336, 888), (2, 6, 17, 2), 24)
_Y_3200 = _y((72, 216, 576, 1512), (2, 5, 13, 1), 24)

_TORCHVISION = {
  'regnet_x_400mf': _X_400,
  'regnet_x_800mf': _X_800,
  'regnet_x_1_6gf': _X_1600,
  'regnet_x_3_2gf': _X_3200,
  'regnet_y_400mf': _Y_400,
  'regnet_y_800mf': _Y_800,
  'regnet_y_1_6gf': _Y_1600,
  'regnet_y_3_2gf': _Y_3200,
}

# Design, default weights, crop (timm 1.0). Some of its networks differ from
# torchvision's of the same size, which it names `_tv`.
_TIMM = {
  'regnetx_002': (
    (_x((24, 56, 152, 368), (1, 1, 4, 7), 8), 'pycls_in1k', 0.875)
  ),
  'regnetx_004': (
    (_x((32, 64, 160, 384), (1, 2, 7, 12), 16), 'pycls_in1k', 0.875)
  ),
  'regnetx_004_tv': (_X_400, 'tv2_in1k', 0.965),
  'regnetx_006': (
    (_x((48, 96, 240, 528), (1, 3, 5, 7), 24), 'pycls_in1k', 0.875)
  ),
  'regnetx_008': (_X_800, 'tv2_in1k', 0.965),
  'regnetx_016': (_X_1600, 'tv2_in1k', 0.965),
  'regnetx_032': (_X_3200, 'tv2_in1k', 0.965),
  'regnety_002': (
    (_y((24, 56, 152, 368), (1, 1, 4, 7), 8), 'pycls_in1k', 0.875)
  ),
  'regnety_004': (_Y_400, 'tv2_in1k', 0.965),
  'regnety_006': (
    (_y((48, 112, 256, 608), (1, 3, 7, 4), 16), 'pycls_in1k', 0.875)
  ),
  'regnety_008': (
    (_y((64, 128, 320, 768), (1, 3, 8, 2), 16), 'pycls_in1k', 0.875)
  ),
  'regnety_008_tv': (_Y_800, 'tv2_in1k', 0.965),
  'regnety_016': (_Y_1600, 'tv2_in1k', 0.965),
  'regnety_032': (_Y_3200, 'ra_in1k', 0.95),
}


def _spec(design: Design, modules, **fields) -> ModelSpec:
  return ModelSpec(
    build=functools.partial(RegNet, design),
    torch_modules=functools.partial(modules, design),
    image_size=224,
    **fields,
  )


# torchvision's default weights are IMAGENET1K_V2.
VARIANTS: dict[str, ModelSpec] = {
  f'torchvision/{name}': _spec(
    design, _torchvision_modules, crop=224 / 232, interpolation='bilinear'
  )
  for name, design in _TORCHVISION.items()
} | {
  f'timm/{name}': _spec(
    design, _timm_modules, crop=crop, weights=f'timm:{name}.{tag}'
  )
  for name, (design, tag, crop) in _TIMM.items()
}
