"""Networks of inverted residual blocks, the body of three families.

MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381), MobileNetV3 (Howard et al.
2019, 1905.02244) and EfficientNet (Tan & Le 2019, 1905.11946; V2: 2104.00298)
differ in the numbers of a `Design`, in their activations and in the names of
their torch weights, not in their structure.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
from flax import nnx

from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers.core import ConvNorm, Mode
from tlkd_jax.models.spec import ModelSpec

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Row:
  """`repeats` blocks, the first of which strides; numbers before scaling.

  Attributes:
    kernel_size: side of the spatial convolution.
    stride: of the first block.
    expand: hidden channels / input channels.
    channels: output channels.
    repeats: number of blocks.
    squeeze: squeeze-excite channels as a share, 0 for none; see
      `scale(squeeze_hidden=...)` for what it is a share of.
    activation: after all but the last convolution of a block.
    fused: one full convolution instead of expansion and depthwise (V2).
  """

  kernel_size: int
  stride: int
  expand: float
  channels: int
  repeats: int
  squeeze: float = 0.0
  activation: str = 'relu6'
  fused: bool = False


@dataclasses.dataclass(frozen=True)
class Block:
  """One block in final numbers; `squeeze` is a channel count."""

  kernel_size: int
  stride: int
  in_channels: int
  hidden: int
  out_channels: int
  squeeze: int
  activation: str
  fused: bool

  @property
  def parts(self) -> tuple[str, ...]:
    """Names of the submodules it has, in the order in which they run."""
    present = {
      'expand': self.hidden != self.in_channels,
      'depthwise': not self.fused,
      'squeeze': self.squeeze > 0,
      'project': True,
    }
    return tuple(name for name, has in present.items() if has)


@dataclasses.dataclass(frozen=True)
class Design:
  """A variant's numbers.

  Attributes:
    stages: the blocks of every stage.
    stem: channels of the first convolution.
    neck: channels of the 1x1 convolution before pooling.
    dropout: published rate before the head.
    activation: of stem, neck and hidden layer.
    hidden: width of a linear layer between pooling and head, 0 for none.
    squeeze_activation: inside squeeze-excite.
    gate: of squeeze-excite.
    epsilon: of BatchNorm.
    momentum: of BatchNorm, torch's meaning.
    padding: of strided convolutions, see `layers.Conv`.
  """

  stages: tuple[tuple[Block, ...], ...]
  stem: int
  neck: int
  dropout: float
  activation: str
  hidden: int = 0
  squeeze_activation: str = 'silu'
  gate: str = 'sigmoid'
  epsilon: float = 1e-5
  momentum: float = 0.1
  padding: str = 'symmetric'


class MBConv(nnx.Module):
  """Expand, depthwise, squeeze-excite, project 1x1, residual.

  A fused block expands with the spatial convolution and has no depthwise one;
  without expansion its projection is the spatial convolution, activated.
  """

  def __init__(self, block: Block, design: Design, *, rate: float, rngs):
    spatial = {
      'kernel_size': block.kernel_size,
      'stride': block.stride,
      'padding': design.padding,
    }
    pointwise = {'kernel_size': 1}
    conv = functools.partial(
      ConvNorm,
      epsilon=design.epsilon,
      momentum=design.momentum,
      rngs=rngs,
    )
    width, act = block.hidden, block.activation
    expands = 'expand' in block.parts
    first = spatial if block.fused else pointwise
    last = pointwise
    if block.fused and not expands:
      last = spatial | {'activation': act}
    self.expand = (
      conv(block.in_channels, width, activation=act, **first)
      if expands
      else None
    )
    self.depthwise = (
      None
      if block.fused
      else conv(width, width, groups=width, activation=act, **spatial)
    )
    self.squeeze = (
      layers.SqueezeExcite(
        width,
        block.squeeze,
        activation=design.squeeze_activation,
        gate=design.gate,
        rngs=rngs,
      )
      if block.squeeze
      else None
    )
    self.project = conv(width, block.out_channels, **last)
    self.residual = (
      block.stride == 1 and block.in_channels == block.out_channels
    )
    self.rate = rate

  def __call__(self, x: Array, mode: Mode) -> Array:
    y = x if self.expand is None else self.expand(x, mode)
    y = y if self.depthwise is None else self.depthwise(y, mode)
    y = y if self.squeeze is None else self.squeeze(y)
    y = self.project(y, mode)
    return x + layers.drop_path(y, self.rate, mode) if self.residual else y


class InvertedResidualNet(nnx.Module):
  """Stem, stages of MBConv, 1x1 convolution, pooling, linear head."""

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
    conv = functools.partial(
      ConvNorm,
      epsilon=design.epsilon,
      momentum=design.momentum,
      activation=design.activation,
      rngs=rngs,
    )
    self.stem = conv(
      in_channels, design.stem, 3, stride=2, padding=design.padding
    )
    total = sum(len(stage) for stage in design.stages)
    index = 0
    stages = []
    for stage in design.stages:
      blocks = []
      for block in stage:
        rate = drop_path * index / total
        blocks.append(MBConv(block, design, rate=rate, rngs=rngs))
        index += 1
      stages.append(nnx.List(blocks))
    self.blocks = nnx.List(stages)
    self.neck = conv(design.stages[-1][-1].out_channels, design.neck, 1)
    width = design.neck
    self.hidden = (
      layers.Linear(width, design.hidden, rngs=rngs) if design.hidden else None
    )
    self.head = layers.Linear(design.hidden or width, num_classes, rngs=rngs)
    self.activation = design.activation
    self.dropout = design.dropout if dropout is None else dropout

  def __call__(self, x: Array, mode: Mode) -> dict:
    x = self.stem(x, mode)
    x, features = layers.run_stages(self.blocks, x, mode)
    pooled = self.neck(x, mode).mean((1, 2))
    if self.hidden is not None:
      pooled = layers.ACTIVATIONS[self.activation](self.hidden(pooled))
    logits = self.head(layers.dropout(pooled, self.dropout, mode))
    return {'logits': logits, 'pre_logits': pooled, 'features': features}


def round_channels(channels: float, limit: float = 0.9) -> int:
  """The nearest multiple of 8, but at least `limit` of the count."""
  rounded = max(8, int(channels + 4) // 8 * 8)
  return rounded + 8 if rounded < limit * channels else rounded


def scale(
  stages: tuple[tuple[Row, ...], ...],
  stem: int,
  *,
  width: float = 1.0,
  depth: float = 1.0,
  fixed_ends: bool = False,
  squeeze_hidden: bool = False,
  limit: float = 0.9,
) -> tuple[tuple[Block, ...], ...]:
  """Blocks of a scaled network.

  Args:
    stages: rows of every stage.
    stem: channels that enter the first block, already scaled.
    width: factor of all channel counts.
    depth: factor of all repeats, rounded up.
    fixed_ends: the first and the last stage keep their depth.
    squeeze_hidden: squeeze-excite widths are a rounded share of the hidden
      channels (MobileNetV3) instead of the block's input (EfficientNet).
    limit: of `round_channels`.
  """
  channels = stem
  result = []
  for i, rows in enumerate(stages):
    fixed = fixed_ends and i in (0, len(stages) - 1)
    blocks = []
    for row in rows:
      for j in range(math.ceil(row.repeats * (1.0 if fixed else depth))):
        hidden = round_channels(channels * row.expand)
        if row.expand == 1:
          hidden = channels
        squeeze = int(channels * row.squeeze)
        if squeeze_hidden and row.squeeze:
          squeeze = round_channels(hidden * row.squeeze)
        out = round_channels(row.channels * width, limit)
        blocks.append(
          Block(
            kernel_size=row.kernel_size,
            stride=row.stride if j == 0 else 1,
            in_channels=channels,
            hidden=hidden,
            out_channels=out,
            squeeze=squeeze,
            activation=row.activation,
            fused=row.fused,
          )
        )
        channels = out
    result.append(tuple(blocks))
  return tuple(result)


def timm_modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in timm, whose three families share a builder."""
  table = {
    'stem.conv': 'conv_stem',
    'stem.norm': 'bn1',
    'neck.conv': 'conv_head',
    'neck.norm': 'bn2',
    'head': 'classifier',
  }
  for s, stage in enumerate(design.stages):
    for b, block in enumerate(stage):
      path = f'blocks.{s}.{b}'
      parts = [part for part in block.parts if part != 'squeeze']
      for i, part in enumerate(parts):
        conv = _timm_convolution(block, part, len(parts))
        table[f'{path}.{part}.conv'] = f'{path}.{conv}'
        table[f'{path}.{part}.norm'] = f'{path}.bn{i + 1}'
      if block.squeeze:
        table[f'{path}.squeeze.reduce'] = f'{path}.se.conv_reduce'
        table[f'{path}.squeeze.expand'] = f'{path}.se.conv_expand'
  return table


def _timm_convolution(block: Block, part: str, count: int) -> str:
  if part == 'depthwise':
    return 'conv_dw'
  if part == 'expand':
    return 'conv_exp' if block.fused else 'conv_pw'
  if count == 1:
    return 'conv'
  return 'conv_pwl' if 'expand' in block.parts else 'conv_pw'


def torchvision_block(ours: str, theirs: str, block: Block) -> dict[str, str]:
  """Submodule -> prefix for a block that torchvision wrote as a sequence."""
  table = {}
  for i, part in enumerate(block.parts):
    if part == 'squeeze':
      table[f'{ours}.squeeze.reduce'] = f'{theirs}.{i}.fc1'
      table[f'{ours}.squeeze.expand'] = f'{theirs}.{i}.fc2'
    else:
      table[f'{ours}.{part}.conv'] = f'{theirs}.{i}.0'
      table[f'{ours}.{part}.norm'] = f'{theirs}.{i}.1'
  return table


def spec(
  design: Design, modules: Callable[[Design], dict[str, str]], **fields
) -> ModelSpec:
  """ModelSpec of a design; `fields` are those of ModelSpec."""
  return ModelSpec(
    build=functools.partial(InvertedResidualNet, design),
    torch_modules=functools.partial(modules, design),
    stages=tuple(f'stage{i + 1}' for i in range(len(design.stages))),
    **fields,
  )
