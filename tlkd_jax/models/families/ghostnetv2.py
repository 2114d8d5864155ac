"""GhostNetV2 (Tang et al. 2022, arXiv 2211.12905; Han et al. 2020, 1911.11907).

A ghost module computes half of its channels by a 1x1 convolution and the other
half from these by a depthwise one. From the third block on, the first of a
block's two modules is gated by attention along columns and rows of a map of
half the size.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers import pooling
from tlkd_jax.models.layers.core import ConvNorm, Mode
from tlkd_jax.models.spec import ModelSpec, TorchLeaf, pointwise_leaf

Array = jax.Array

_conv = functools.partial(ConvNorm, epsilon=1e-5, momentum=0.1)
_HIDDEN = 1280


@dataclasses.dataclass(frozen=True)
class Row:
  """A block before scaling.

  Attributes:
    kernel_size: of the strided convolution.
    hidden: channels between the ghost modules.
    channels: output channels.
    squeeze: whether a channel gate is between the ghost modules.
    stride: of the block.
    attention: whether the first ghost module is gated.
  """

  kernel_size: int
  hidden: int
  channels: int
  squeeze: bool = False
  stride: int = 1
  attention: bool = True


# Stages as timm has them: a block that strides is one of its own.
_ROWS = (
  (Row(3, 16, 16, attention=False),),
  (Row(3, 48, 24, stride=2, attention=False),),
  (Row(3, 72, 24),),
  (Row(5, 72, 40, squeeze=True, stride=2),),
  (Row(5, 120, 40, squeeze=True),),
  (Row(3, 240, 80, stride=2),),
  (
    Row(3, 200, 80),
    Row(3, 184, 80),
    Row(3, 184, 80),
    Row(3, 480, 112, squeeze=True),
    Row(3, 672, 112, squeeze=True),
  ),
  (Row(5, 672, 160, squeeze=True, stride=2),),
  (
    Row(5, 960, 160),
    Row(5, 960, 160, squeeze=True),
    Row(5, 960, 160),
    Row(5, 960, 160, squeeze=True),
  ),
)


def round_to_four(channels: float) -> int:
  """The nearest multiple of 4, but at least nine tenths of the count."""
  rounded = max(4, int(channels + 2) // 4 * 4)
  return rounded + 4 if rounded < 0.9 * channels else rounded


class Ghost(nnx.Module):
  """1x1 convolution, and a depthwise one for as many channels again."""

  def __init__(self, in_channels, channels, *, activation, rngs):
    # Channel counts are multiples of 4, so that half of them is whole.
    half = channels // 2
    conv = functools.partial(_conv, activation=activation, rngs=rngs)
    self.primary = conv(in_channels, half, 1)
    self.cheap = conv(half, half, 3, groups=half)

  def __call__(self, x: Array, mode: Mode) -> Array:
    x = self.primary(x, mode)
    return jnp.concatenate([x, self.cheap(x, mode)], axis=-1)


class Attention(nnx.Module):
  """Gates at half the size, from all pixels of a row and a column around."""

  def __init__(self, in_channels, channels, *, rngs):
    conv = functools.partial(_conv, rngs=rngs)
    self.project = conv(in_channels, channels, 1)
    self.rows = conv(channels, channels, (1, 5), groups=channels)
    self.columns = conv(channels, channels, (5, 1), groups=channels)

  def __call__(self, x: Array, mode: Mode) -> Array:
    size = x.shape[1:3]
    x = self.project(pooling.avg_pool(x, 2, 2), mode)
    x = jax.nn.sigmoid(self.columns(self.rows(x, mode), mode))
    return double(x, size)


def double(x: Array, size: tuple[int, int]) -> Array:
  """Enlarges a map as torch's interpolation 'nearest'.

  The pixel at i of H is that at floor(i h / H): for H = 2 h each twice, for
  H = 2 h + 1 the first thrice. Without a gather, whose gradient is slow on CPU.

  Args:
    x: [B, h, w, C].
    size: (H, W), each twice that of x or one more.

  Returns:
    [B, H, W, C].
  """
  for axis, count in enumerate(size, start=1):
    first = jax.lax.slice_in_dim(x, 0, count % 2, axis=axis)
    x = jnp.concatenate([first, jnp.repeat(x, 2, axis=axis)], axis=axis)
  return x


class Block(nnx.Module):
  """Ghost module, strided convolution, gate, ghost module, shortcut."""

  def __init__(self, row, in_channels, width, *, rate, rngs):
    hidden = round_to_four(row.hidden * width)
    out = round_to_four(row.channels * width)
    conv = functools.partial(_conv, rngs=rngs)
    side = {'kernel_size': row.kernel_size, 'stride': row.stride}
    self.ghost1 = Ghost(in_channels, hidden, activation='relu', rngs=rngs)
    self.attention = (
      Attention(in_channels, hidden, rngs=rngs) if row.attention else None
    )
    self.depthwise = (
      conv(hidden, hidden, groups=hidden, **side) if row.stride > 1 else None
    )
    self.squeeze = (
      layers.SqueezeExcite(
        hidden,
        round_to_four(hidden / 4),
        activation='relu',
        gate='hard_sigmoid',
        rngs=rngs,
      )
      if row.squeeze
      else None
    )
    self.ghost2 = Ghost(hidden, out, activation='identity', rngs=rngs)
    self.shortcut = (
      nnx.List(
        [
          conv(in_channels, in_channels, groups=in_channels, **side),
          conv(in_channels, out, 1),
        ]
      )
      if row.stride > 1 or in_channels != out
      else nnx.List([])
    )
    self.rate = rate

  def __call__(self, x: Array, mode: Mode) -> Array:
    y = self.ghost1(x, mode)
    y = y if self.attention is None else y * self.attention(x, mode)
    y = y if self.depthwise is None else self.depthwise(y, mode)
    y = y if self.squeeze is None else self.squeeze(y)
    y = layers.drop_path(self.ghost2(y, mode), self.rate, mode)
    for conv in self.shortcut:
      x = conv(x, mode)
    return x + y


class GhostNetV2(nnx.Module):
  """Stem, stages, 1x1 convolution, pooling, hidden layer, linear head."""

  def __init__(
    self,
    width: float,
    num_classes: int,
    *,
    in_channels: int = 3,
    dropout: float | None = None,
    drop_path: float = 0.0,
    rngs: layers.Rngs,
  ):
    conv = functools.partial(_conv, activation='relu', rngs=rngs)
    channels = round_to_four(16 * width)
    self.stem = conv(in_channels, channels, 3, stride=2)
    rates = iter(layers.drop_path_rates(drop_path, sum(map(len, _ROWS))))
    stages = []
    for rows in _ROWS:
      blocks = []
      for row in rows:
        block = Block(row, channels, width, rate=next(rates), rngs=rngs)
        blocks.append(block)
        channels = round_to_four(row.channels * width)
      stages.append(nnx.List(blocks))
    self.blocks = nnx.List(stages)
    neck = round_to_four(960 * width)
    self.neck = conv(channels, neck, 1)
    self.hidden = layers.Linear(neck, _HIDDEN, rngs=rngs)
    self.head = layers.Linear(_HIDDEN, num_classes, rngs=rngs)
    self.dropout = 0.2 if dropout is None else dropout

  def __call__(self, x: Array, mode: Mode) -> dict:
    x = self.stem(x, mode)
    x, features = layers.run_stages(self.blocks, x, mode)
    pooled = jax.nn.relu(self.hidden(self.neck(x, mode).mean((1, 2))))
    logits = self.head(layers.dropout(pooled, self.dropout, mode))
    return {'logits': logits, 'pre_logits': pooled, 'features': features}


def _modules() -> dict[str, str]:
  """Submodule -> prefix in timm, where the last stage is our neck."""
  table = {
    'stem.conv': 'conv_stem',
    'stem.norm': 'bn1',
    'neck.conv': f'blocks.{len(_ROWS)}.0.conv',
    'neck.norm': f'blocks.{len(_ROWS)}.0.bn1',
    'hidden': 'conv_head',
    'head': 'classifier',
  }
  sequences = {
    'ghost1.primary': ('ghost1.primary_conv', 0),
    'ghost1.cheap': ('ghost1.cheap_operation', 0),
    'ghost2.primary': ('ghost2.primary_conv', 0),
    'ghost2.cheap': ('ghost2.cheap_operation', 0),
    'attention.project': ('ghost1.short_conv', 0),
    'attention.rows': ('ghost1.short_conv', 2),
    'attention.columns': ('ghost1.short_conv', 4),
    'shortcut.0': ('shortcut', 0),
    'shortcut.1': ('shortcut', 2),
  }
  for s, rows in enumerate(_ROWS):
    for b in range(len(rows)):
      path = f'blocks.{s}.{b}'
      for ours, (theirs, first) in sequences.items():
        table[f'{path}.{ours}.conv'] = f'{path}.{theirs}.{first}'
        table[f'{path}.{ours}.norm'] = f'{path}.{theirs}.{first + 1}'
      table[f'{path}.depthwise.conv'] = f'{path}.conv_dw'
      table[f'{path}.depthwise.norm'] = f'{path}.bn_dw'
      table[f'{path}.squeeze.reduce'] = f'{path}.se.conv_reduce'
      table[f'{path}.squeeze.expand'] = f'{path}.se.conv_expand'
  return table


def _leaves() -> dict[str, TorchLeaf]:
  return {'hidden.kernel': pointwise_leaf('conv_head.weight')}


VARIANTS: dict[str, ModelSpec] = {
  f'timm/{name}': ModelSpec(
    build=functools.partial(GhostNetV2, width),
    torch_modules=_modules,
    torch_leaves=_leaves,
    image_size=224,
    weights=f'timm:{name}.in1k',
    stages=tuple(f'stage{i + 1}' for i in range(len(_ROWS))),
  )
  for name, width in (
    ('ghostnetv2_100', 1.0),
    ('ghostnetv2_130', 1.3),
    ('ghostnetv2_160', 1.6),
  )
}
