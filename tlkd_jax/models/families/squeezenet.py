"""SqueezeNet (Iandola et al. 2016, arXiv 1602.07360)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers import pooling
from tlkd_jax.models.layers.core import Conv, Mode
from tlkd_jax.models.spec import ModelSpec, TorchLeaf, pointwise_leaf

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Design:
  """A variant's numbers.

  Attributes:
    stem: side and channels of the first convolution.
    stages: channels that the modules of each stage squeeze to; each gives
      eight times as many. Between stages is a max-pool.
  """

  stem: tuple[int, int]
  stages: tuple[tuple[int, ...], ...]


class Fire(nnx.Module):
  """1x1 convolution to few channels, then 1x1 and 3x3 ones side by side."""

  def __init__(self, in_channels, channels, *, rngs):
    conv = functools.partial(Conv, use_bias=True, rngs=rngs)
    self.squeeze = conv(in_channels, channels, 1)
    self.expand1 = conv(channels, 4 * channels, 1)
    self.expand3 = conv(channels, 4 * channels, 3)

  def __call__(self, x: Array, mode: Mode) -> Array:
    x = jax.nn.relu(self.squeeze(x))
    x = jnp.concatenate([self.expand1(x), self.expand3(x)], axis=-1)
    return jax.nn.relu(x)


class SqueezeNet(nnx.Module):
  """Stem, stages each after a max-pool, head on each pixel, ReLU, mean."""

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
        'SqueezeNet has no residual branch for drop_path to drop'
      )
    side, channels = design.stem
    self.stem = Conv(
      in_channels,
      channels,
      side,
      stride=2,
      padding=0,
      use_bias=True,
      rngs=rngs,
    )
    stages = []
    for widths in design.stages:
      blocks = []
      for width in widths:
        blocks.append(Fire(channels, width, rngs=rngs))
        channels = 8 * width
      stages.append(nnx.List(blocks))
    self.stages = nnx.List(stages)
    self.head = layers.Linear(channels, num_classes, rngs=rngs)
    self.dropout = 0.5 if dropout is None else dropout

  def __call__(self, x: Array, mode: Mode) -> dict:
    x = jax.nn.relu(self.stem(x))
    features = {}
    for i, stage in enumerate(self.stages):
      x = _pool(x)
      for block in stage:
        x = layers.run_block(block, x, mode)
      features[f'stage{i + 1}'] = x
    pooled = x.mean((1, 2))
    logits = jax.nn.relu(self.head(layers.dropout(x, self.dropout, mode)))
    return {
      'logits': logits.mean((1, 2)),
      'pre_logits': pooled,
      'features': features,
    }


def _pool(x: Array) -> Array:
  """Max-pool whose last window may hang over the edge, torch's ceil_mode."""
  over = [(size - 3) % 2 for size in x.shape[1:3]]
  pads = ((0, 0), (0, over[0]), (0, over[1]), (0, 0))
  return pooling.max_pool(jnp.pad(x, pads, constant_values=-jnp.inf), 3, 2)


def _modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in torchvision, which numbers layers throughout."""
  table = {'stem': 'features.0', 'head': 'classifier.1'}
  parts = {
    'squeeze': 'squeeze',
    'expand1': 'expand1x1',
    'expand3': 'expand3x3',
  }
  index = 2
  for s, widths in enumerate(design.stages):
    for b in range(len(widths)):
      index += 1
      for ours, theirs in parts.items():
        table[f'stages.{s}.{b}.{ours}'] = f'features.{index}.{theirs}'
    index += 1
  return table


def _leaves() -> dict[str, TorchLeaf]:
  return {'head.kernel': pointwise_leaf('classifier.1.weight')}


_DESIGNS = {
  'squeezenet1_0': Design((7, 96), ((16, 16, 32), (32, 48, 48, 64), (64,))),
  'squeezenet1_1': Design((3, 64), ((16, 16), (32, 32), (48, 48, 64, 64))),
}

# torchvision's default weights are IMAGENET1K_V1.
VARIANTS: dict[str, ModelSpec] = {
  f'torchvision/{name}': ModelSpec(
    build=functools.partial(SqueezeNet, design),
    torch_modules=functools.partial(_modules, design),
    torch_leaves=_leaves,
    stem='stem',
    image_size=224,
    interpolation='bilinear',
    stages=('stage1', 'stage2', 'stage3'),
    rectified=True,
  )
  for name, design in _DESIGNS.items()
}
