"""ShuffleNetV2 (Ma et al. 2018, arXiv 1807.11164)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers import pooling
from tlkd_jax.models.layers.core import ConvNorm, Mode
from tlkd_jax.models.spec import ModelSpec

Array = jax.Array

_conv = functools.partial(ConvNorm, epsilon=1e-5, momentum=0.1)
_REPEATS = (4, 8, 4)


@dataclasses.dataclass(frozen=True)
class Design:
  """Channels of the three stages and of the 1x1 convolution after them."""

  channels: tuple[int, int, int]
  neck: int = 1024


class Separable(nnx.Module):
  """3x3 depthwise and 1x1 convolution."""

  def __init__(self, in_channels, channels, *, stride, rngs):
    conv = functools.partial(_conv, rngs=rngs)
    self.depthwise = conv(
      in_channels, in_channels, 3, stride=stride, groups=in_channels
    )
    self.project = conv(in_channels, channels, 1, activation='relu')

  def __call__(self, x: Array, mode: Mode) -> Array:
    return self.project(self.depthwise(x, mode), mode)


class Block(nnx.Module):
  """Half of the channels passed on or shrunk, the other half convolved.

  Then the halves alternate.
  """

  def __init__(self, in_channels, channels, *, stride, rngs):
    half = channels // 2
    self.shrink = (
      Separable(in_channels, half, stride=stride, rngs=rngs)
      if stride > 1
      else None
    )
    enters = in_channels if stride > 1 else half
    self.reduce = _conv(enters, half, 1, activation='relu', rngs=rngs)
    self.separable = Separable(half, half, stride=stride, rngs=rngs)

  def __call__(self, x: Array, mode: Mode) -> Array:
    if self.shrink is None:
      kept, x = jnp.split(x, 2, axis=-1)
    else:
      kept = self.shrink(x, mode)
    x = self.separable(self.reduce(x, mode), mode)
    return jnp.stack([kept, x], axis=-1).reshape(*x.shape[:3], -1)


class ShuffleNetV2(nnx.Module):
  """Stem, max-pool, three stages, 1x1 convolution, pooling, linear head."""

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
    if drop_path:
      raise ValueError(
        'ShuffleNetV2 has no residual branch for drop_path to drop'
      )
    conv = functools.partial(_conv, activation='relu', rngs=rngs)
    channels = 24
    self.stem = conv(in_channels, channels, 3, stride=2)
    stages = []
    for out, repeats in zip(design.channels, _REPEATS, strict=True):
      blocks = []
      for b in range(repeats):
        stride = 2 if b == 0 else 1
        blocks.append(Block(channels, out, stride=stride, rngs=rngs))
        channels = out
      stages.append(nnx.List(blocks))
    self.stages = nnx.List(stages)
    self.neck = conv(channels, design.neck, 1)
    self.head = layers.Linear(design.neck, num_classes, rngs=rngs)
    self.dropout = dropout or 0.0

  def __call__(self, x: Array, mode: Mode) -> dict:
    x = pooling.max_pool(self.stem(x, mode), 3, 2, 1)
    x, features = layers.run_stages(self.stages, x, mode)
    pooled = self.neck(x, mode).mean((1, 2))
    logits = self.head(layers.dropout(pooled, self.dropout, mode))
    return {'logits': logits, 'pre_logits': pooled, 'features': features}


def _modules() -> dict[str, str]:
  """Submodule -> prefix in torchvision, which counts stages from 2."""
  table = {'head': 'fc'}
  parts = {
    'shrink.depthwise': ('branch1', 0),
    'shrink.project': ('branch1', 2),
    'reduce': ('branch2', 0),
    'separable.depthwise': ('branch2', 3),
    'separable.project': ('branch2', 5),
  }
  sequences = {'stem': ('conv1', 0), 'neck': ('conv5', 0)}
  for s, repeats in enumerate(_REPEATS):
    for b in range(repeats):
      for ours, (theirs, first) in parts.items():
        place = f'stage{s + 2}.{b}.{theirs}', first
        sequences[f'stages.{s}.{b}.{ours}'] = place
  for ours, (theirs, first) in sequences.items():
    table[f'{ours}.conv'] = f'{theirs}.{first}'
    table[f'{ours}.norm'] = f'{theirs}.{first + 1}'
  return table


# Design, short side before the crop of the default weights, IMAGENET1K_V1.
_TORCHVISION = {
  'shufflenet_v2_x0_5': (Design((48, 96, 192)), 256),
  'shufflenet_v2_x1_0': (Design((116, 232, 464)), 256),
  'shufflenet_v2_x1_5': (Design((176, 352, 704)), 232),
  'shufflenet_v2_x2_0': (Design((244, 488, 976), neck=2048), 232),
}

VARIANTS: dict[str, ModelSpec] = {
  f'torchvision/{name}': ModelSpec(
    build=functools.partial(ShuffleNetV2, design),
    torch_modules=_modules,
    image_size=224,
    crop=224 / side,
    interpolation='bilinear',
    stages=('stage1', 'stage2', 'stage3'),
  )
  for name, (design, side) in _TORCHVISION.items()
}
