"""MobileNetV4 (Qin et al. 2024, arXiv 2404.10518).

Blocks of four kinds: convolutions, fused inverted bottlenecks, universal
inverted bottlenecks (section 3; a depthwise convolution before the expansion,
in it, both or none) and, in the hybrid ones, attention whose heads share one
key and value (section 4).
"""

import dataclasses
import functools

import jax
from flax import nnx

from tlkd_jax.models.families.inverted import round_channels
from tlkd_jax.models.families.vit import LayerScale
from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers.attention import attention
from tlkd_jax.models.layers.core import BatchNorm, Conv, ConvNorm, Mode
from tlkd_jax.models.spec import ModelSpec

Array = jax.Array

_NORM = {'epsilon': 1e-5, 'momentum': 0.1}
_conv = functools.partial(ConvNorm, **_NORM)


@dataclasses.dataclass(frozen=True)
class Plain:
  """A convolution, before scaling."""

  kernel_size: int
  stride: int
  channels: int


@dataclasses.dataclass(frozen=True)
class Fused:
  """A 3x3 convolution to `expand` times the channels, and a 1x1 one."""

  stride: int
  expand: int
  channels: int


@dataclasses.dataclass(frozen=True)
class Universal:
  """An inverted bottleneck, before scaling.

  Attributes:
    first: side of the depthwise convolution before the expansion, 0 for none.
    middle: of the one on the expanded channels, 0 for none.
    stride: of the middle one.
    expand: hidden channels / input channels.
    channels: output channels.
  """

  first: int
  middle: int
  stride: int
  expand: int
  channels: int


@dataclasses.dataclass(frozen=True)
class Shared:
  """Attention with `heads` queries of `width` and one key and value.

  Attributes:
    shrink: stride of the depthwise convolution before key and value, 1 for
      none.
  """

  heads: int
  width: int
  shrink: int
  channels: int


Row = Plain | Fused | Universal | Shared


@dataclasses.dataclass(frozen=True)
class Design:
  """A variant's numbers.

  Attributes:
    stages: rows of each of the four stages, before scaling.
    stem: channels of the first convolution.
    width: factor of all channels but the stem's and the head's.
    activation: after all but linear convolutions.
    layer_scale: whether residual branches are scaled by channel.
  """

  stages: tuple[tuple[Row, ...], ...]
  stem: int = 32
  width: float = 1.0
  activation: str = 'relu'
  layer_scale: bool = False

  def channels(self, count: int) -> int:
    """A channel count, scaled."""
    return round_channels(count * self.width)


class PlainBlock(nnx.Module):
  """Convolution, BatchNorm and activation."""

  def __init__(self, row, in_channels, design, *, rate, rngs):
    self.conv = _conv(
      in_channels,
      design.channels(row.channels),
      row.kernel_size,
      stride=row.stride,
      activation=design.activation,
      rngs=rngs,
    )

  def __call__(self, x: Array, mode: Mode) -> Array:
    return self.conv(x, mode)


class FusedBlock(nnx.Module):
  """Strided 3x3 expansion and projection."""

  def __init__(self, row, in_channels, design, *, rate, rngs):
    hidden = round_channels(in_channels * row.expand)
    self.expand = _conv(
      in_channels,
      hidden,
      3,
      stride=row.stride,
      activation=design.activation,
      rngs=rngs,
    )
    self.project = _conv(hidden, design.channels(row.channels), 1, rngs=rngs)

  def __call__(self, x: Array, mode: Mode) -> Array:
    return self.project(self.expand(x, mode), mode)


class UniversalBlock(nnx.Module):
  """[Depthwise,] expand, [depthwise,] project, residual."""

  def __init__(self, row, in_channels, design, *, rate, rngs):
    act = design.activation
    out = design.channels(row.channels)
    hidden = round_channels(in_channels * row.expand)
    conv = functools.partial(_conv, rngs=rngs)
    self.first = (
      conv(in_channels, in_channels, row.first, groups=in_channels)
      if row.first
      else None
    )
    self.expand = conv(in_channels, hidden, 1, activation=act)
    self.middle = (
      conv(
        hidden,
        hidden,
        row.middle,
        stride=row.stride,
        groups=hidden,
        activation=act,
      )
      if row.middle
      else None
    )
    self.project = conv(hidden, out, 1)
    self.scale = LayerScale(out) if design.layer_scale else None
    self.residual = row.stride == 1 and in_channels == out
    self.rate = rate

  def __call__(self, x: Array, mode: Mode) -> Array:
    y = x if self.first is None else self.first(x, mode)
    y = self.expand(y, mode)
    y = y if self.middle is None else self.middle(y, mode)
    y = self.project(y, mode)
    y = y if self.scale is None else self.scale(y)
    return x + layers.drop_path(y, self.rate, mode) if self.residual else y


class Projection(nnx.Module):
  """Keys or values of a map, from a smaller copy of it."""

  def __init__(self, channels, width, shrink, *, rngs):
    self.shrink = (
      _conv(channels, channels, 3, stride=shrink, groups=channels, rngs=rngs)
      if shrink > 1
      else None
    )
    self.project = Conv(channels, width, 1, rngs=rngs)

  def __call__(self, x: Array, mode: Mode) -> Array:
    x = x if self.shrink is None else self.shrink(x, mode)
    x = self.project(x)
    return x.reshape(x.shape[0], -1, 1, x.shape[-1])


class AttentionBlock(nnx.Module):
  """BatchNorm, attention over the pixels of a map, residual."""

  def __init__(self, row, in_channels, design, *, rate, rngs):
    out = row.heads * row.width
    self.norm = BatchNorm(in_channels, **_NORM)
    self.query = Conv(in_channels, out, 1, rngs=rngs)
    self.key = Projection(in_channels, row.width, row.shrink, rngs=rngs)
    self.value = Projection(in_channels, row.width, row.shrink, rngs=rngs)
    self.project = Conv(out, in_channels, 1, rngs=rngs)
    self.scale = LayerScale(in_channels) if design.layer_scale else None
    self.heads = row.heads
    self.rate = rate

  def __call__(self, x: Array, mode: Mode) -> Array:
    y = self.norm(x, mode)
    b, h, w, _ = y.shape
    query = self.query(y).reshape(b, h * w, self.heads, -1)
    y = attention(query, self.key(y, mode), self.value(y, mode))
    y = self.project(y.reshape(b, h, w, -1))
    y = y if self.scale is None else self.scale(y)
    return x + layers.drop_path(y, self.rate, mode)


_BLOCKS = {
  Plain: PlainBlock,
  Fused: FusedBlock,
  Universal: UniversalBlock,
  Shared: AttentionBlock,
}


class MobileNetV4(nnx.Module):
  """Stem, stages, 1x1 convolution, pooling, 1x1 convolution, linear head."""

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
    conv = functools.partial(_conv, activation=design.activation, rngs=rngs)
    self.stem = conv(in_channels, design.stem, 3, stride=2)
    channels, index = design.stem, 0
    total = sum(len(rows) for rows in design.stages)
    stages = []
    for rows in design.stages:
      blocks = []
      for row in rows:
        rate = drop_path * index / total
        make = _BLOCKS[type(row)]
        blocks.append(make(row, channels, design, rate=rate, rngs=rngs))
        channels, index = design.channels(row.channels), index + 1
      stages.append(nnx.List(blocks))
    self.blocks = nnx.List(stages)
    self.neck = conv(channels, design.channels(960), 1)
    self.hidden = conv(design.channels(960), 1280, 1)
    self.head = layers.Linear(1280, num_classes, rngs=rngs)
    self.dropout = 0.2 if dropout is None else dropout

  def __call__(self, x: Array, mode: Mode) -> dict:
    x = self.stem(x, mode)
    x, features = layers.run_stages(self.blocks, x, mode)
    pooled = self.neck(x, mode).mean((1, 2), keepdims=True)
    pooled = self.hidden(pooled, mode)[:, 0, 0]
    logits = self.head(layers.dropout(pooled, self.dropout, mode))
    return {'logits': logits, 'pre_logits': pooled, 'features': features}


# Submodule -> prefix in a block of timm's.
_PARTS = {
  Plain: {'conv.conv': 'conv', 'conv.norm': 'bn1'},
  Fused: {
    'expand.conv': 'conv_exp',
    'expand.norm': 'bn1',
    'project.conv': 'conv_pwl',
    'project.norm': 'bn2',
  },
  Universal: {
    'first.conv': 'dw_start.conv',
    'first.norm': 'dw_start.bn',
    'expand.conv': 'pw_exp.conv',
    'expand.norm': 'pw_exp.bn',
    'middle.conv': 'dw_mid.conv',
    'middle.norm': 'dw_mid.bn',
    'project.conv': 'pw_proj.conv',
    'project.norm': 'pw_proj.bn',
    'scale': 'layer_scale',
  },
  Shared: {
    'norm': 'norm',
    'query': 'attn.query.proj',
    'key.shrink.conv': 'attn.key.down_conv',
    'key.shrink.norm': 'attn.key.norm',
    'key.project': 'attn.key.proj',
    'value.shrink.conv': 'attn.value.down_conv',
    'value.shrink.norm': 'attn.value.norm',
    'value.project': 'attn.value.proj',
    'project': 'attn.output.proj',
    'scale': 'layer_scale',
  },
}


def _modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in timm, where the last stage is our neck."""
  table = {
    'stem.conv': 'conv_stem',
    'stem.norm': 'bn1',
    'neck.conv': f'blocks.{len(design.stages)}.0.conv',
    'neck.norm': f'blocks.{len(design.stages)}.0.bn1',
    'hidden.conv': 'conv_head',
    'hidden.norm': 'norm_head',
    'head': 'classifier',
  }
  for s, rows in enumerate(design.stages):
    for b, row in enumerate(rows):
      for ours, theirs in _PARTS[type(row)].items():
        table[f'blocks.{s}.{b}.{ours}'] = f'blocks.{s}.{b}.{theirs}'
  return table


def spec(design: Design, **fields) -> ModelSpec:
  """A variant of a design; `fields` are those of ModelSpec."""
  return ModelSpec(
    build=functools.partial(MobileNetV4, design),
    torch_modules=functools.partial(_modules, design),
    **fields,
  )
