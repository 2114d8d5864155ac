"""MobileOne: depthwise and pointwise convolutions, each in several branches.

Vasu et al. 2023, arXiv 2206.04040. Trained in branches; NAME_fused is the form
for inference, one convolution with a bias in the place of each.
"""

import dataclasses
import functools

import jax
from flax import nnx

from tlkd_jax.models.layers import branches
from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers.branches import Branches
from tlkd_jax.models.layers.core import Mode
from tlkd_jax.models.spec import ModelSpec

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Design:
  """A variant's numbers.

  Attributes:
    widths: channels of each of the four stages.
    count: branches of the full kernel, in the stages.
    squeezed: pairs of convolutions of each stage, its last ones, that have
      squeeze-excite.
    depths: pairs of convolutions of each stage.
    fused: the form for inference.
  """

  widths: tuple[int, ...]
  count: int = 1
  squeezed: tuple[int, ...] = (0, 0, 0, 0)
  depths: tuple[int, ...] = (2, 8, 10, 1)
  fused: bool = False

  @property
  def stem(self) -> int:
    """Channels of the stem."""
    return min(64, self.widths[0])


class MobileOne(nnx.Module):
  """Stem, four stages, pooling, linear head."""

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
    block = functools.partial(
      Branches,
      identity=True,
      activation='relu',
      fused=design.fused,
      rngs=rngs,
    )
    channels = design.stem
    self.stem = block(in_channels, channels, (3, 1), stride=2)
    rates = iter(layers.drop_path_rates(drop_path, 2 * sum(design.depths)))
    stages = []
    for s, (depth, width) in enumerate(
      zip(design.depths, design.widths, strict=True)
    ):
      stage = []
      for pair in range(depth):
        squeeze = pair >= depth - design.squeezed[s]
        stage += [
          block(
            channels,
            channels,
            (3,) * design.count + (1,),
            stride=2 if pair == 0 else 1,
            groups=channels,
            squeeze=channels // 16 if squeeze else 0,
            rate=next(rates),
          ),
          block(
            channels,
            width,
            (1,) * design.count,
            squeeze=width // 16 if squeeze else 0,
            rate=next(rates),
          ),
        ]
        channels = width
      stages.append(nnx.List(stage))
    self.stages = nnx.List(stages)
    self.head = layers.Linear(channels, num_classes, rngs=rngs)
    self.dropout = dropout or 0.0

  def __call__(self, x: Array, mode: Mode) -> dict:
    x = self.stem(x, mode)
    x, features = layers.run_stages(self.stages, x, mode)
    pooled = x.mean((1, 2))
    logits = self.head(layers.dropout(pooled, self.dropout, mode))
    return {'logits': logits, 'pre_logits': pooled, 'features': features}


def _modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in timm."""
  table = branches.timm_modules('stem', 'stem', 1) | {'head': 'head.fc'}
  for s, depth in enumerate(design.depths):
    for b in range(2 * depth):
      path = f'stages.{s}.{b}'
      table |= branches.timm_modules(path, path, design.count, 'attn')
  return table


def _spec(design: Design, **fields) -> ModelSpec:
  stem, *others = branches.convolutions('stem', 2, design.fused)
  return ModelSpec(
    build=functools.partial(MobileOne, design),
    image_size=224,
    torch_modules=functools.partial(_modules, design),
    interpolation='bilinear',
    stem=stem,
    more_stems=tuple(others),
    **fields,
  )


# Design, crop. Weights are apple_in1k alone (timm 1.0).
_TIMM = {
  'mobileone_s0': (Design((48, 128, 256, 1024), count=4), 0.875),
  'mobileone_s1': (Design((96, 192, 512, 1280)), 0.9),
  'mobileone_s2': (Design((96, 256, 640, 2048)), 0.9),
  'mobileone_s3': (Design((128, 320, 768, 2048)), 0.9),
  'mobileone_s4': (
    Design((192, 448, 896, 2048), squeezed=(0, 0, 5, 1)),
    0.9,
  ),
}

VARIANTS: dict[str, ModelSpec] = {
  f'timm/{name}': _spec(design, crop=crop, weights=f'timm:{name}.apple_in1k')
  for name, (design, crop) in _TIMM.items()
} | {
  f'timm/{name}{branches.FUSED}': _spec(
    dataclasses.replace(design, fused=True), crop=crop
  )
  for name, (design, crop) in _TIMM.items()
}
