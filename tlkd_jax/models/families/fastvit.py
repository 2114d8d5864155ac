"""FastViT: mixing by reparameterised convolutions, attention at the end.

Vasu et al. 2023, arXiv 2303.14189. Trained in branches; NAME_fused is the form
for inference. The MCi networks are image towers of MobileCLIP (Vasu et al.
2024, 2311.17049): their published head projects to the embedding of texts.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from tlkd_jax.models.layers import branches
from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers.attention import attention
from tlkd_jax.models.layers.branches import Arrays, Branched, Branches
from tlkd_jax.models.layers.core import Mode
from tlkd_jax.models.spec import ModelSpec, TorchLeaf

Array = jax.Array

_HEAD_SIZE = 32
_INITIAL_SCALE = 1e-5


@dataclasses.dataclass(frozen=True)
class Design:
  """A variant's numbers.

  Attributes:
    depths: blocks of each of the four stages.
    widths: channels of each.
    expand: hidden channels of an MLP / its input's.
    attends: the last stage has attention, behind a position encoding.
    active: a GELU behind the first convolution of a downsampling, and
      squeeze-excite before it in the last two of them (MCi).
    fused: the form for inference.
  """

  depths: tuple[int, ...]
  widths: tuple[int, ...]
  expand: int = 4
  attends: bool = False
  active: bool = False
  fused: bool = False


class TokenMixer(Branched):
  """x + gamma * (3x3, 1x1 and identity branches - norm(x)); equation 2."""

  def __init__(self, channels, *, fused, rngs):
    self.norm = None if fused else branches.batch_norm(channels)
    self.mixer = (
      None
      if fused
      else Branches(
        channels,
        channels,
        (3, 1),
        groups=channels,
        identity=True,
        fused=False,
        rngs=rngs,
      )
    )
    self.gamma = None if fused else _scale(channels)
    self.conv = (
      layers.Conv(
        channels, channels, 3, groups=channels, use_bias=True, rngs=rngs
      )
      if fused
      else None
    )

  def __call__(self, x: Array, mode: Mode) -> Array:
    if self.conv is not None:
      return self.conv(x)
    assert self.norm and self.mixer and self.gamma is not None
    y = self.mixer(x, mode) - self.norm(x, mode)
    return x + y * layers.expand(self.gamma[...], y)

  def fuse(self, arrays: Arrays) -> Arrays:
    assert self.mixer is not None
    mixer = self.mixer.fuse(branches.below(arrays, 'mixer'))
    scale, shift = branches.affine(arrays, 'norm')
    unit = branches.unit(mixer['conv.kernel'].shape)
    gamma = arrays['gamma']
    return {
      'conv.kernel': unit + gamma * (mixer['conv.kernel'] - unit * scale),
      'conv.bias': gamma * (mixer['conv.bias'] - shift),
    }


class Position(Branched):
  """x + a 7x7 depthwise convolution (Chu et al. 2023, arXiv 2102.10882)."""

  def __init__(self, channels, *, fused, rngs):
    self.conv = layers.Conv(
      channels, channels, 7, groups=channels, use_bias=True, rngs=rngs
    )
    self.fused = fused

  def __call__(self, x: Array) -> Array:
    y = self.conv(x)
    return y if self.fused else x + y

  def fuse(self, arrays: Arrays) -> Arrays:
    kernel = arrays['conv.kernel']
    return {**arrays, 'conv.kernel': kernel + branches.unit(kernel.shape)}


class MLP(nnx.Module):
  """7x7 depthwise convolution with norm, two pointwise ones with a GELU."""

  def __init__(self, channels, hidden, *, rngs):
    self.spatial = branches.conv_norm(
      channels, channels, 7, groups=channels, rngs=rngs
    )
    conv = functools.partial(
      layers.Conv, kernel_size=1, use_bias=True, rngs=rngs
    )
    self.expand = conv(channels, hidden)
    self.project = conv(hidden, channels)

  def __call__(self, x: Array, mode: Mode) -> Array:
    y = layers.ACTIVATIONS['gelu'](self.expand(self.spatial(x, mode)))
    return self.project(y)


class Attention(nnx.Module):
  """Multi-head self-attention over the positions of [B, H, W, C]."""

  def __init__(self, channels, *, rngs):
    self.qkv = layers.Linear(channels, 3 * channels, use_bias=False, rngs=rngs)
    self.project = layers.Linear(channels, channels, rngs=rngs)

  def __call__(self, x: Array) -> Array:
    b, h, w, c = x.shape
    qkv = self.qkv(x.reshape(b, h * w, c))
    qkv = qkv.reshape(b, h * w, 3, c // _HEAD_SIZE, _HEAD_SIZE)
    query, key, value = (qkv[:, :, i] for i in range(3))
    return self.project(attention(query, key, value).reshape(x.shape))


class MixerBlock(nnx.Module):
  """Token mixer, then x + gamma * MLP(x)."""

  def __init__(self, channels, expand, *, fused, rate, rngs):
    self.token_mixer = TokenMixer(channels, fused=fused, rngs=rngs)
    self.mlp = MLP(channels, expand * channels, rngs=rngs)
    self.gamma = _scale(channels)
    self.rate = rate

  def __call__(self, x: Array, mode: Mode) -> Array:
    x = self.token_mixer(x, mode)
    y = self.mlp(x, mode)
    y = y * layers.expand(self.gamma[...], y)
    return x + layers.drop_path(y, self.rate, mode)


class AttentionBlock(nnx.Module):
  """x + gamma1 * attention(norm(x)), then x + gamma2 * MLP(x)."""

  def __init__(self, channels, expand, *, rate, rngs):
    self.norm = branches.batch_norm(channels)
    self.attention = Attention(channels, rngs=rngs)
    self.gamma1 = _scale(channels)
    self.mlp = MLP(channels, expand * channels, rngs=rngs)
    self.gamma2 = _scale(channels)
    self.rate = rate

  def __call__(self, x: Array, mode: Mode) -> Array:
    y = self.attention(self.norm(x, mode))
    y = y * layers.expand(self.gamma1[...], y)
    x = x + layers.drop_path(y, self.rate, mode)
    y = self.mlp(x, mode)
    y = y * layers.expand(self.gamma2[...], y)
    return x + layers.drop_path(y, self.rate, mode)


def _scale(channels: int) -> nnx.Param:
  return nnx.Param(_INITIAL_SCALE * jnp.ones(channels))


class Downsample(nnx.Module):
  """Strided 7x7 and 3x3 depthwise branches, then a pointwise convolution."""

  def __init__(self, before, after, *, active, squeeze, fused, rngs):
    options = {'fused': fused, 'rngs': rngs}
    self.spatial = Branches(
      before,
      after,
      (7, 3),
      stride=2,
      groups=before,
      squeeze=after // 4 if squeeze else 0,
      activation='gelu' if active else 'identity',
      **options,
    )
    self.pointwise = Branches(
      after, after, (1,), identity=True, activation='gelu', **options
    )

  def __call__(self, x: Array, mode: Mode) -> Array:
    return self.pointwise(self.spatial(x, mode), mode)


class Stage(nnx.Module):
  """Downsampling, but in the first stage, position encoding and blocks."""

  def __init__(self, design: Design, number: int, rates, *, rngs):
    width = design.widths[number]
    self.downsample = (
      Downsample(
        design.widths[number - 1],
        width,
        active=design.active,
        squeeze=design.active and number >= 2,
        fused=design.fused,
        rngs=rngs,
      )
      if number
      else None
    )
    attends = design.attends and number == len(design.widths) - 1
    self.position = (
      Position(width, fused=design.fused, rngs=rngs) if attends else None
    )
    block = (
      AttentionBlock
      if attends
      else functools.partial(MixerBlock, fused=design.fused)
    )
    self.blocks = nnx.List(
      [block(width, design.expand, rate=rate, rngs=rngs) for rate in rates]
    )

  def __call__(self, x: Array, mode: Mode) -> Array:
    if self.downsample is not None:
      x = layers.run_block(self.downsample, x, mode)
    x = x if self.position is None else self.position(x)
    for block in self.blocks:
      x = layers.run_block(block, x, mode)
    return x


class FastViT(nnx.Module):
  """Stem, four stages, a squeezed convolution, pooling, linear head."""

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
      Branches, activation='gelu', fused=design.fused, rngs=rngs
    )
    first, last = design.widths[0], design.widths[-1]
    self.stem = nnx.List(
      [
        block(in_channels, first, (3, 1), stride=2),
        block(first, first, (3, 1), stride=2, groups=first),
        block(first, first, (1,), identity=True),
      ]
    )
    rates = iter(layers.drop_path_rates(drop_path, sum(design.depths)))
    self.stages = nnx.List(
      [
        Stage(design, s, [next(rates) for _ in range(depth)], rngs=rngs)
        for s, depth in enumerate(design.depths)
      ]
    )
    self.neck = block(last, 2 * last, (3, 1), groups=last, squeeze=last // 8)
    self.head = layers.Linear(2 * last, num_classes, rngs=rngs)
    self.dropout = dropout or 0.0

  def __call__(self, x: Array, mode: Mode) -> dict:
    for conv in self.stem:
      x = conv(x, mode)
    features = {}
    for i, stage in enumerate(self.stages):
      x = stage(x, mode)
      features[f'stage{i + 1}'] = x
    pooled = self.neck(x, mode).mean((1, 2))
    logits = self.head(layers.dropout(pooled, self.dropout, mode))
    return {'logits': logits, 'pre_logits': pooled, 'features': features}


def _blocks(design: Design) -> list[str]:
  return [
    f'stages.{s}.blocks.{b}'
    for s, depth in enumerate(design.depths)
    for b in range(depth)
  ]


def _modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in timm."""
  table = branches.timm_modules('neck', 'final_conv', 1) | {'head': 'head.fc'}
  for i in range(3):
    table |= branches.timm_modules(f'stem.{i}', f'stem.{i}', 1)
  for s in range(len(design.depths)):
    ours, theirs = f'stages.{s}.downsample', f'stages.{s}.downsample.proj'
    table |= branches.timm_modules(f'{ours}.spatial', f'{theirs}.0', 1)
    for i, name in enumerate(('large_conv', 'small_conv')):
      table[f'{ours}.spatial.convs.{i}.conv'] = f'{theirs}.0.{name}.conv'
      table[f'{ours}.spatial.convs.{i}.norm'] = f'{theirs}.0.{name}.bn'
    table |= branches.timm_modules(f'{ours}.pointwise', f'{theirs}.1', 1)
    position = 'reparam_conv' if design.fused else 'pos_enc'
    table[f'stages.{s}.position.conv'] = f'stages.{s}.pos_emb.{position}'
  for path in _blocks(design):
    mixer = f'{path}.token_mixer'
    table |= branches.timm_modules(f'{mixer}.mixer', f'{mixer}.mixer', 1)
    table |= {
      f'{mixer}.norm': f'{mixer}.norm.identity',
      f'{mixer}.conv': f'{mixer}.reparam_conv',
      f'{path}.norm': f'{path}.norm',
      f'{path}.attention.qkv': f'{mixer}.qkv',
      f'{path}.attention.project': f'{mixer}.proj',
      f'{path}.mlp.spatial.conv': f'{path}.mlp.conv.conv',
      f'{path}.mlp.spatial.norm': f'{path}.mlp.conv.bn',
      f'{path}.mlp.expand': f'{path}.mlp.fc1',
      f'{path}.mlp.project': f'{path}.mlp.fc2',
    }
  return table


def _leaves(design: Design) -> dict[str, TorchLeaf]:
  """Layer scales [C] that timm keeps as [C, 1, 1]."""
  names = {
    'token_mixer.gamma': 'token_mixer.layer_scale',
    'gamma': 'layer_scale',
    'gamma1': 'layer_scale_1',
    'gamma2': 'layer_scale_2',
  }
  return {
    f'{path}.{ours}': TorchLeaf(
      f'{path}.{theirs}.gamma',
      lambda x: x[:, 0, 0],
      lambda x: x[:, None, None],
    )
    for path in _blocks(design)
    for ours, theirs in names.items()
  }


def _spec(design: Design, **fields) -> ModelSpec:
  stem, *others = branches.convolutions('stem.0', 2, design.fused)
  return ModelSpec(
    build=functools.partial(FastViT, design),
    image_size=256,
    torch_modules=functools.partial(_modules, design),
    torch_leaves=functools.partial(_leaves, design),
    stem=stem,
    more_stems=tuple(others),
    **fields,
  )


_WIDTHS = (64, 128, 256, 512)
_12, _24, _36 = (2, 2, 6, 2), (4, 4, 12, 4), (6, 6, 18, 6)


def _mci(depths, widths) -> Design:
  return Design(depths, widths, 3, attends=True, active=True)


# timm's crop and, by timm 1.0, its default weights; there is apple_dist_in1k
# too. Those of the MCi networks are not under timm's name on the hub.
_TIMM = {
  'fastvit_t8': (Design((2, 2, 4, 2), (48, 96, 192, 384), 3), 0.9),
  'fastvit_t12': (Design(_12, _WIDTHS, 3), 0.9),
  'fastvit_s12': (Design(_12, _WIDTHS), 0.9),
  'fastvit_sa12': (Design(_12, _WIDTHS, attends=True), 0.9),
  'fastvit_sa24': (Design(_24, _WIDTHS, attends=True), 0.9),
  'fastvit_sa36': (Design(_36, _WIDTHS, attends=True), 0.9),
  'fastvit_ma36': (Design(_36, (76, 152, 304, 608), attends=True), 0.95),
}
_MCI = {
  'fastvit_mci0': _mci((2, 6, 10, 2), _WIDTHS),
  'fastvit_mci1': _mci((4, 12, 20, 4), _WIDTHS),
  'fastvit_mci2': _mci((4, 12, 24, 4), (80, 160, 320, 640)),
}


def _variants() -> dict[str, ModelSpec]:
  rows = [
    (name, design, f'timm:{name}.apple_in1k', {'crop': crop})
    for name, (design, crop) in _TIMM.items()
  ]
  # Their pixels are in 0..1, neither centred nor scaled.
  raw = {'crop': 0.95, 'mean': (0.0,) * 3, 'std': (255.0,) * 3}
  rows += [(name, design, None, raw) for name, design in _MCI.items()]
  variants = {}
  for name, design, weights, fields in rows:
    variants[f'timm/{name}'] = _spec(design, weights=weights, **fields)
    variants[f'timm/{name}{branches.FUSED}'] = _spec(
      dataclasses.replace(design, fused=True), **fields
    )
  return variants


VARIANTS: dict[str, ModelSpec] = _variants()
