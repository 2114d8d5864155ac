"""PP-LCNet (Cui et al. 2021, arXiv 2109.15099).

Depthwise separable convolutions in a row, without a residual; the last stage
has channel gates between its two convolutions.
"""

import dataclasses
import functools

import jax
from flax import nnx

from tlkd_jax.models.families.inverted import round_channels
from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers.core import ConvNorm, Mode
from tlkd_jax.models.spec import ModelSpec, TorchLeaf, pointwise_leaf

Array = jax.Array

_HIDDEN = 1280


@dataclasses.dataclass(frozen=True)
class Row:
  """A block: side of its convolution, stride, channels before scaling."""

  kernel_size: int
  stride: int
  channels: int
  squeeze: bool = False


_ROWS = (
  (Row(3, 1, 32),),
  (Row(3, 2, 64), Row(3, 1, 64)),
  (Row(3, 2, 128), Row(3, 1, 128)),
  (Row(3, 2, 256), Row(5, 1, 256)),
  (Row(5, 1, 256),) * 4,
  (Row(5, 2, 512, squeeze=True), Row(5, 1, 512, squeeze=True)),
)


class Block(nnx.Module):
  """Depthwise convolution, gate, 1x1 convolution."""

  def __init__(self, row, in_channels, channels, *, rngs):
    conv = functools.partial(
      ConvNorm,
      epsilon=1e-5,
      momentum=0.1,
      activation='hard_swish',
      rngs=rngs,
    )
    self.depthwise = conv(
      in_channels,
      in_channels,
      row.kernel_size,
      stride=row.stride,
      groups=in_channels,
    )
    self.squeeze = (
      layers.SqueezeExcite(
        in_channels,
        round(in_channels / 4),
        activation='relu',
        gate='hard_sigmoid',
        rngs=rngs,
      )
      if row.squeeze
      else None
    )
    self.project = conv(in_channels, channels, 1)

  def __call__(self, x: Array, mode: Mode) -> Array:
    x = self.depthwise(x, mode)
    x = x if self.squeeze is None else self.squeeze(x)
    return self.project(x, mode)


class LCNet(nnx.Module):
  """Stem, stages, pooling, hidden layer, linear head."""

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
    if drop_path:
      raise ValueError('LCNet has no residual branch for drop_path to drop')
    channels = round_channels(16 * width)
    self.stem = ConvNorm(
      in_channels,
      channels,
      3,
      stride=2,
      epsilon=1e-5,
      momentum=0.1,
      activation='hard_swish',
      rngs=rngs,
    )
    stages = []
    for rows in _ROWS:
      blocks = []
      for row in rows:
        out = round_channels(row.channels * width)
        blocks.append(Block(row, channels, out, rngs=rngs))
        channels = out
      stages.append(nnx.List(blocks))
    self.blocks = nnx.List(stages)
    self.hidden = layers.Linear(channels, _HIDDEN, rngs=rngs)
    self.head = layers.Linear(_HIDDEN, num_classes, rngs=rngs)
    self.dropout = 0.2 if dropout is None else dropout

  def __call__(self, x: Array, mode: Mode) -> dict:
    x = self.stem(x, mode)
    x, features = layers.run_stages(self.blocks, x, mode)
    pooled = self.hidden(x.mean((1, 2)))
    pooled = layers.ACTIVATIONS['hard_swish'](pooled)
    logits = self.head(layers.dropout(pooled, self.dropout, mode))
    return {'logits': logits, 'pre_logits': pooled, 'features': features}


def _modules() -> dict[str, str]:
  """Submodule -> prefix in timm."""
  table = {
    'stem.conv': 'conv_stem',
    'stem.norm': 'bn1',
    'hidden': 'conv_head',
    'head': 'classifier',
  }
  for s, rows in enumerate(_ROWS):
    for b, row in enumerate(rows):
      path = f'blocks.{s}.{b}'
      table[f'{path}.depthwise.conv'] = f'{path}.conv_dw'
      table[f'{path}.depthwise.norm'] = f'{path}.bn1'
      table[f'{path}.project.conv'] = f'{path}.conv_pw'
      table[f'{path}.project.norm'] = f'{path}.bn2'
      if row.squeeze:
        table[f'{path}.squeeze.reduce'] = f'{path}.se.conv_reduce'
        table[f'{path}.squeeze.expand'] = f'{path}.se.conv_expand'
  return table


def _leaves() -> dict[str, TorchLeaf]:
  return {'hidden.kernel': pointwise_leaf('conv_head.weight')}


# Width, default weights (None: timm has none), interpolation (timm 1.0).
_TIMM = {
  'lcnet_035': (0.35, None, 'bilinear'),
  'lcnet_050': (0.5, 'ra2_in1k', 'bicubic'),
  'lcnet_075': (0.75, 'ra2_in1k', 'bicubic'),
  'lcnet_100': (1.0, 'ra2_in1k', 'bicubic'),
  'lcnet_150': (1.5, None, 'bilinear'),
}

VARIANTS: dict[str, ModelSpec] = {
  f'timm/{name}': ModelSpec(
    build=functools.partial(LCNet, width),
    torch_modules=_modules,
    torch_leaves=_leaves,
    image_size=224,
    interpolation=interpolation,
    weights=f'timm:{name}.{tag}' if tag else None,
    stages=tuple(f'stage{i + 1}' for i in range(len(_ROWS))),
  )
  for name, (width, tag, interpolation) in _TIMM.items()
}
