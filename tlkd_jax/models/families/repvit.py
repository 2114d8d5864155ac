"""RepViT: depthwise and pointwise mixing, trained in branches.

Wang et al. 2024, arXiv 2307.09283. NAME_fused is the form for inference: one
convolution with a bias in the place of each group of branches and norms, one
linear layer in the place of the two heads.
"""

import dataclasses
import functools

import jax
import numpy as np
from flax import nnx

from tlkd_jax.models.families.inverted import round_channels
from tlkd_jax.models.layers import branches
from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers.branches import Arrays, Branched, Branches
from tlkd_jax.models.layers.core import Mode
from tlkd_jax.models.spec import ModelSpec

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Design:
  """A variant's numbers.

  Attributes:
    widths: channels of each of the four stages.
    depths: blocks of each stage, beside those of its downsampling.
    fused: the form for inference.
  """

  widths: tuple[int, ...]
  depths: tuple[int, ...]
  fused: bool = False


class TokenMixer(Branched):
  """norm(3x3 depthwise with norm + 1x1 depthwise with bias + x)."""

  def __init__(self, channels, *, fused, rngs):
    conv = functools.partial(
      layers.Conv,
      channels,
      channels,
      groups=channels,
      use_bias=True,
      rngs=rngs,
    )
    self.spatial = (
      None
      if fused
      else branches.conv_norm(channels, channels, 3, groups=channels, rngs=rngs)
    )
    self.pointwise = None if fused else conv(1)
    self.norm = None if fused else branches.batch_norm(channels)
    self.conv = conv(3) if fused else None

  def __call__(self, x: Array, mode: Mode) -> Array:
    if self.conv is not None:
      return self.conv(x)
    assert self.spatial and self.pointwise and self.norm
    return self.norm(self.spatial(x, mode) + self.pointwise(x) + x, mode)

  def fuse(self, arrays: Arrays) -> Arrays:
    shape = arrays['spatial.conv.kernel'].shape
    scale, bias = branches.affine(arrays, 'spatial.norm')
    kernel = arrays['spatial.conv.kernel'] * scale + branches.unit(shape)
    kernel += branches.centred(arrays['pointwise.kernel'], shape)
    bias = bias + arrays['pointwise.bias']
    scale, shift = branches.affine(arrays, 'norm')
    return {'conv.kernel': kernel * scale, 'conv.bias': bias * scale + shift}


class ChannelMixer(nnx.Module):
  """x + two pointwise convolutions with norms and a GELU between them."""

  def __init__(self, channels, *, fused, rate, rngs):
    block = functools.partial(Branches, sizes=(1,), fused=fused, rngs=rngs)
    self.expand = block(channels, 2 * channels, activation='gelu')
    self.project = block(2 * channels, channels)
    self.rate = rate

  def __call__(self, x: Array, mode: Mode) -> Array:
    y = self.project(self.expand(x, mode), mode)
    return x + layers.drop_path(y, self.rate, mode)


class Block(nnx.Module):
  """Token mixer, squeeze-excite in every second block, channel mixer."""

  def __init__(self, channels, *, squeeze, fused, rate, rngs):
    self.token_mixer = TokenMixer(channels, fused=fused, rngs=rngs)
    self.squeeze = (
      layers.SqueezeExcite(
        channels, round_channels(channels / 4), activation='relu', rngs=rngs
      )
      if squeeze
      else None
    )
    self.channel_mixer = ChannelMixer(
      channels, fused=fused, rate=rate, rngs=rngs
    )

  def __call__(self, x: Array, mode: Mode) -> Array:
    x = self.token_mixer(x, mode)
    x = x if self.squeeze is None else self.squeeze(x)
    return self.channel_mixer(x, mode)


class Downsample(nnx.Module):
  """A block, strided depthwise and pointwise convolutions, a channel mixer."""

  def __init__(self, before, after, *, fused, rngs):
    options = {'fused': fused, 'rngs': rngs}
    self.block = Block(before, squeeze=False, rate=0.0, **options)
    self.spatial = Branches(
      before, before, (3,), stride=2, groups=before, **options
    )
    self.channels = Branches(before, after, (1,), **options)
    self.mixer = ChannelMixer(after, rate=0.0, **options)

  def __call__(self, x: Array, mode: Mode) -> Array:
    x = self.spatial(self.block(x, mode), mode)
    return self.mixer(self.channels(x, mode), mode)


class Stage(nnx.Module):
  """Downsampling, but in the first stage, and blocks."""

  def __init__(self, before, channels, rates, *, fused, rngs):
    options = {'fused': fused, 'rngs': rngs}
    self.downsample = (
      Downsample(before, channels, **options) if before != channels else None
    )
    self.blocks = nnx.List(
      [
        Block(channels, squeeze=i % 2 == 0, rate=rate, **options)
        for i, rate in enumerate(rates)
      ]
    )

  def __call__(self, x: Array, mode: Mode) -> Array:
    if self.downsample is not None:
      x = layers.run_block(self.downsample, x, mode)
    for block in self.blocks:
      x = layers.run_block(block, x, mode)
    return x


class Classifier(Branched):
  """The mean of two linear layers, each behind a norm of its own."""

  def __init__(self, channels, num_classes, *, fused, rngs):
    linear = functools.partial(layers.Linear, channels, num_classes, rngs=rngs)
    self.head = linear()
    self.head_norm = None if fused else branches.batch_norm(channels)
    self.second = None if fused else linear()
    self.second_norm = None if fused else branches.batch_norm(channels)

  def __call__(self, x: Array, mode: Mode) -> Array:
    if self.second is None:
      return self.head(x)
    assert self.head_norm and self.second_norm
    first = self.head(self.head_norm(x, mode))
    return (first + self.second(self.second_norm(x, mode))) / 2

  def fuse(self, arrays: Arrays) -> Arrays:
    kernels, biases = [], []
    for name in ('head', 'second'):
      scale, shift = branches.affine(arrays, f'{name}_norm')
      kernel = arrays[f'{name}.kernel']
      kernels.append(scale[:, None] * kernel)
      biases.append(shift @ kernel + arrays[f'{name}.bias'])
    return {
      'head.kernel': np.mean(kernels, axis=0),
      'head.bias': np.mean(biases, axis=0),
    }


class RepViT(nnx.Module):
  """Stem, four stages, pooling, classifier."""

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
    options = {'fused': design.fused, 'rngs': rngs}
    first = design.widths[0]
    stem = functools.partial(Branches, sizes=(3,), stride=2, **options)
    self.stem = nnx.List(
      [
        stem(in_channels, first // 2, activation='gelu'),
        stem(first // 2, first),
      ]
    )
    rates = iter(layers.drop_path_rates(drop_path, sum(design.depths)))
    self.stages = nnx.List(
      [
        Stage(before, width, [next(rates) for _ in range(depth)], **options)
        for before, width, depth in zip(
          (first, *design.widths), design.widths, design.depths, strict=False
        )
      ]
    )
    self.classifier = Classifier(design.widths[-1], num_classes, **options)
    self.dropout = dropout or 0.0

  def __call__(self, x: Array, mode: Mode) -> dict:
    for conv in self.stem:
      x = conv(x, mode)
    features = {}
    for i, stage in enumerate(self.stages):
      x = stage(x, mode)
      features[f'stage{i + 1}'] = x
    pooled = x.mean((1, 2))
    logits = self.classifier(layers.dropout(pooled, self.dropout, mode), mode)
    return {'logits': logits, 'pre_logits': pooled, 'features': features}


def _conv(ours: str, theirs: str) -> dict[str, str]:
  """A convolution with its norm, in both forms."""
  return {
    f'{ours}.conv': theirs,
    f'{ours}.convs.0.conv': f'{theirs}.c',
    f'{ours}.convs.0.norm': f'{theirs}.bn',
  }


def _mixer(ours: str, theirs: str) -> dict[str, str]:
  return _conv(f'{ours}.expand', f'{theirs}.conv1') | _conv(
    f'{ours}.project', f'{theirs}.conv2'
  )


def _block(ours: str, theirs: str) -> dict[str, str]:
  token, mixer = f'{ours}.token_mixer', f'{theirs}.token_mixer'
  return {
    f'{token}.spatial.conv': f'{mixer}.conv.c',
    f'{token}.spatial.norm': f'{mixer}.conv.bn',
    f'{token}.pointwise': f'{mixer}.conv1',
    f'{token}.norm': f'{mixer}.bn',
    f'{token}.conv': mixer,
    f'{ours}.squeeze.reduce': f'{theirs}.se.fc1',
    f'{ours}.squeeze.expand': f'{theirs}.se.fc2',
    **_mixer(f'{ours}.channel_mixer', f'{theirs}.channel_mixer'),
  }


def _modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in timm."""
  table = {
    'classifier.head': 'head' if design.fused else 'head.head.l',
    'classifier.head_norm': 'head.head.bn',
    'classifier.second': 'head.head_dist.l',
    'classifier.second_norm': 'head.head_dist.bn',
    **_conv('stem.0', 'stem.conv1'),
    **_conv('stem.1', 'stem.conv2'),
  }
  for s, depth in enumerate(design.depths):
    path = f'stages.{s}.downsample'
    table |= _block(f'{path}.block', f'{path}.pre_block')
    table |= _conv(f'{path}.spatial', f'{path}.spatial_downsample')
    table |= _conv(f'{path}.channels', f'{path}.channel_downsample')
    table |= _mixer(f'{path}.mixer', f'{path}.ffn')
    for b in range(depth):
      path = f'stages.{s}.blocks.{b}'
      table |= _block(path, path)
  return table


def _spec(design: Design, **fields) -> ModelSpec:
  (stem,) = branches.convolutions('stem.0', 1, design.fused)
  heads = ('classifier.head', 'classifier.second')
  return ModelSpec(
    build=functools.partial(RepViT, design),
    image_size=224,
    torch_modules=functools.partial(_modules, design),
    crop=0.95,
    head=heads[:1] if design.fused else heads,
    stem=stem,
    **fields,
  )


_DESIGNS = {
  'repvit_m0_9': Design((48, 96, 192, 384), (2, 2, 14, 2)),
  'repvit_m1_0': Design((56, 112, 224, 448), (2, 2, 14, 2)),
  'repvit_m1_1': Design((64, 128, 256, 512), (2, 2, 12, 2)),
  'repvit_m1_5': Design((64, 128, 256, 512), (4, 4, 24, 4)),
  'repvit_m2_3': Design((80, 160, 320, 640), (6, 6, 34, 2)),
}

# timm's default weights; there are dist_450e_in1k too (timm 1.0).
VARIANTS: dict[str, ModelSpec] = {
  f'timm/{name}': _spec(design, weights=f'timm:{name}.dist_300e_in1k')
  for name, design in _DESIGNS.items()
} | {
  f'timm/{name}{branches.FUSED}': _spec(dataclasses.replace(design, fused=True))
  for name, design in _DESIGNS.items()
}
