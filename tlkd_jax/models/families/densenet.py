"""DenseNet (Huang et al. 2017, arXiv 1608.06993)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers import pooling
from tlkd_jax.models.layers.core import BatchNorm, Conv, ConvNorm, Mode
from tlkd_jax.models.spec import ModelSpec

Array = jax.Array

_NORM = {'epsilon': 1e-5, 'momentum': 0.1}


@dataclasses.dataclass(frozen=True)
class Design:
  """A variant's numbers: layers of each block, channels that each one adds."""

  repeats: tuple[int, int, int, int]
  growth: int = 32
  stem: int = 64


class NormConv(nnx.Module):
  """BatchNorm, ReLU, optional 2x2 mean, convolution.

  A mean before a 1x1 convolution equals one after it, on a quarter of the work.
  """

  def __init__(self, in_channels, channels, kernel_size, *, rngs, pool=False):
    self.norm = BatchNorm(in_channels, **_NORM)
    self.conv = Conv(in_channels, channels, kernel_size, rngs=rngs)
    self.pool = pool

  def __call__(self, x: Array, mode: Mode) -> Array:
    x = jax.nn.relu(self.norm(x, mode))
    return self.conv(pooling.avg_pool(x, 2, 2) if self.pool else x)


class DenseLayer(nnx.Module):
  """Appends `growth` channels computed from all channels before."""

  def __init__(self, in_channels, growth, *, rngs):
    self.squeeze = NormConv(in_channels, 4 * growth, 1, rngs=rngs)
    self.grow = NormConv(4 * growth, growth, 3, rngs=rngs)

  def __call__(self, x: Array, mode: Mode) -> Array:
    y = self.grow(self.squeeze(x, mode), mode)
    return jnp.concatenate([x, y], axis=-1)


class DenseNet(nnx.Module):
  """Stem, max-pool, dense blocks with transitions between, linear head.

  A stage ends before the transition, which halves height, width and channels.
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
    if drop_path:
      raise ValueError('DenseNet has no residual branch for drop_path to drop')
    channels = design.stem
    self.stem = ConvNorm(
      in_channels, channels, 7, stride=2, activation='relu', rngs=rngs, **_NORM
    )
    stages, transitions = [], []
    for s, repeats in enumerate(design.repeats):
      if s > 0:
        transitions.append(
          NormConv(channels, channels // 2, 1, pool=True, rngs=rngs)
        )
        channels //= 2
      blocks = []
      for _ in range(repeats):
        blocks.append(DenseLayer(channels, design.growth, rngs=rngs))
        channels += design.growth
      stages.append(nnx.List(blocks))
    self.stages = nnx.List(stages)
    self.transitions = nnx.List(transitions)
    self.norm = BatchNorm(channels, **_NORM)
    self.head = layers.Linear(channels, num_classes, rngs=rngs)
    self.dropout = dropout or 0.0

  def __call__(self, x: Array, mode: Mode) -> dict:
    x = pooling.max_pool(self.stem(x, mode), 3, 2, 1)
    features = {}
    for i, stage in enumerate(self.stages):
      if i > 0:
        x = self.transitions[i - 1](x, mode)
      for layer in stage:
        x = layers.run_block(layer, x, mode)
      features[f'stage{i + 1}'] = x
    pooled = jax.nn.relu(self.norm(x, mode)).mean((1, 2))
    logits = self.head(layers.dropout(pooled, self.dropout, mode))
    return {'logits': logits, 'pre_logits': pooled, 'features': features}


def _modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix; torchvision and timm use the same names."""
  table = {
    'stem.conv': 'features.conv0',
    'stem.norm': 'features.norm0',
    'norm': 'features.norm5',
    'head': 'classifier',
  }
  for s, repeats in enumerate(design.repeats):
    for b in range(repeats):
      ours = f'stages.{s}.{b}'
      theirs = f'features.denseblock{s + 1}.denselayer{b + 1}'
      for i, part in enumerate(('squeeze', 'grow'), 1):
        table[f'{ours}.{part}.conv'] = f'{theirs}.conv{i}'
        table[f'{ours}.{part}.norm'] = f'{theirs}.norm{i}'
    table[f'transitions.{s}.conv'] = f'features.transition{s + 1}.conv'
    table[f'transitions.{s}.norm'] = f'features.transition{s + 1}.norm'
  return table


_DESIGNS = {
  'densenet121': Design((6, 12, 24, 16)),
  'densenet161': Design((6, 12, 36, 24), growth=48, stem=96),
  'densenet169': Design((6, 12, 32, 32)),
  'densenet201': Design((6, 12, 48, 32)),
}
# Default weights (timm 1.0).
_TIMM = {
  'densenet121': 'ra_in1k',
  'densenet161': 'tv_in1k',
  'densenet169': 'tv_in1k',
  'densenet201': 'tv_in1k',
}


def _spec(design: Design, **fields) -> ModelSpec:
  return ModelSpec(
    build=functools.partial(DenseNet, design),
    torch_modules=functools.partial(_modules, design),
    # Files that torchvision still publishes: `denselayer1.norm.1.weight`.
    old_keys=((r'(\.denselayer\d+\.(?:norm|conv))\.([12]\.)', r'\1\2'),),
    image_size=224,
    **fields,
  )


VARIANTS: dict[str, ModelSpec] = {
  f'torchvision/{name}': _spec(design, interpolation='bilinear')
  for name, design in _DESIGNS.items()
} | {
  f'timm/{name}': _spec(design, weights=f'timm:{name}.{_TIMM[name]}')
  for name, design in _DESIGNS.items()
}
