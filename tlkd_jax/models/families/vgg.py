"""VGG with and without BatchNorm (Simonyan & Zisserman 2015, 1409.1556)."""

import dataclasses
import functools

import jax
from flax import nnx

from tlkd_jax.losses.stages import average_pool
from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers import pooling
from tlkd_jax.models.layers.core import BatchNorm, Conv, Mode
from tlkd_jax.models.spec import ModelSpec, TorchLeaf

Array = jax.Array

# Side of the map that the first linear layer takes.
_GRID = 7


@dataclasses.dataclass(frozen=True)
class Design:
  """A variant's numbers.

  Attributes:
    stages: output channels of the convolutions of each stage.
    norm: BatchNorm after each convolution.
    sliding: where a map is larger than 7x7, apply the classifier at every
      place and average (timm) instead of pooling the map to 7x7 (torchvision).
  """

  stages: tuple[tuple[int, ...], ...]
  norm: bool
  sliding: bool = False


class ConvBlock(nnx.Module):
  """3x3 convolution with bias, optional BatchNorm, ReLU."""

  def __init__(self, in_channels, channels, *, norm, rngs):
    self.conv = Conv(in_channels, channels, 3, use_bias=True, rngs=rngs)
    self.norm = (
      BatchNorm(channels, epsilon=1e-5, momentum=0.1) if norm else None
    )

  def __call__(self, x: Array, mode: Mode) -> Array:
    x = self.conv(x)
    return jax.nn.relu(x if self.norm is None else self.norm(x, mode))


class VGG(nnx.Module):
  """Stages of 3x3 convolutions and 2x2 max-pools, three linear layers.

  The first two linear layers are kept as 7x7 and 1x1 convolutions. Maps below
  7x7 are stretched to it by adaptive pooling, as both libraries do.
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
      raise ValueError('VGG has no residual branch for drop_path to drop')
    channels = in_channels
    stages = []
    for widths in design.stages:
      blocks = []
      for width in widths:
        blocks.append(ConvBlock(channels, width, norm=design.norm, rngs=rngs))
        channels = width
      stages.append(nnx.List(blocks))
    self.stages = nnx.List(stages)
    dense = functools.partial(Conv, padding=0, use_bias=True, rngs=rngs)
    self.dense = nnx.List([dense(channels, 4096, _GRID), dense(4096, 4096, 1)])
    self.head = layers.Linear(4096, num_classes, rngs=rngs)
    self.sliding = design.sliding
    self.dropout = 0.5 if dropout is None else dropout

  def __call__(self, x: Array, mode: Mode) -> dict:
    features = {}
    for i, stage in enumerate(self.stages):
      for block in stage:
        x = layers.run_block(block, x, mode)
      x = pooling.max_pool(x, 2, 2)
      features[f'stage{i + 1}'] = x
    height, width = x.shape[1:3] if self.sliding else (_GRID, _GRID)
    x = average_pool(x, (max(height, _GRID), max(width, _GRID)))
    x = jax.nn.relu(_dense(self.dense[0], x))
    x = layers.dropout(x, self.dropout, mode)
    x = jax.nn.relu(_dense(self.dense[1], x))
    pooled = x.mean((1, 2))
    logits = self.head(layers.dropout(pooled, self.dropout, mode))
    return {'logits': logits, 'pre_logits': pooled, 'features': features}


def _dense(conv: Conv, x: Array) -> Array:
  """The convolution; a matrix product where the kernel covers the map."""
  kernel = conv.kernel[...]
  if x.shape[1:3] != kernel.shape[:2]:
    return conv(x)
  matrix = kernel.reshape(-1, kernel.shape[3]).astype(x.dtype)
  y = x.reshape(x.shape[0], -1) @ matrix
  if conv.bias is not None:
    y = layers.add_bias(y, conv.bias[...])
  return y[:, None, None]


def _modules(design: Design, dense: tuple[str, str, str]) -> dict[str, str]:
  """Submodule -> prefix; the libraries differ in the linear layers' names."""
  table = dict(zip(('dense.0', 'dense.1', 'head'), dense, strict=True))
  index = 0
  for s, widths in enumerate(design.stages):
    for b in range(len(widths)):
      table[f'stages.{s}.{b}.conv'] = f'features.{index}'
      table[f'stages.{s}.{b}.norm'] = f'features.{index + 1}'
      index += 3 if design.norm else 2
    index += 1
  return table


def _torchvision_leaves() -> dict[str, TorchLeaf]:
  """Linear layers; the first flattens a map in the order C, H, W."""

  def to_grid(x):
    channels = x.shape[1] // _GRID**2
    x = x.reshape(x.shape[0], channels, _GRID, _GRID)
    return x.transpose(2, 3, 1, 0)

  def from_grid(x):
    return x.transpose(3, 2, 0, 1).reshape(x.shape[3], -1)

  return {
    'dense.0.kernel': TorchLeaf('classifier.0.weight', to_grid, from_grid),
    'dense.1.kernel': TorchLeaf(
      'classifier.3.weight', lambda x: x.T[None, None], lambda x: x[0, 0].T
    ),
  }


def _spec(design: Design, dense: tuple[str, str, str], **fields) -> ModelSpec:
  return ModelSpec(
    build=functools.partial(VGG, design),
    torch_modules=functools.partial(_modules, design, dense),
    stem='stages.0.0.conv',
    stages=tuple(f'stage{i + 1}' for i in range(len(design.stages))),
    image_size=224,
    interpolation='bilinear',
    **fields,
  )


_STAGES = {
  'vgg11': ((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2),
  'vgg13': ((64,) * 2, (128,) * 2, (256,) * 2, (512,) * 2, (512,) * 2),
  'vgg16': ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
  'vgg19': ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4),
}
_DESIGNS = {
  name: Design(stages, norm=False) for name, stages in _STAGES.items()
} | {
  f'{name}_bn': Design(stages, norm=True) for name, stages in _STAGES.items()
}

VARIANTS: dict[str, ModelSpec] = {
  f'torchvision/{name}': _spec(
    design,
    ('classifier.0', 'classifier.3', 'classifier.6'),
    torch_leaves=_torchvision_leaves,
  )
  for name, design in _DESIGNS.items()
} | {
  f'timm/{name}': _spec(
    dataclasses.replace(design, sliding=True),
    ('pre_logits.fc1', 'pre_logits.fc2', 'head.fc'),
    weights=f'timm:{name}.tv_in1k',
  )
  for name, design in _DESIGNS.items()
}
