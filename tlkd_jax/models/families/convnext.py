"""ConvNeXt: 7x7 depthwise convolution, LayerNorm, MLP, layer scale.

Liu et al. 2022, arXiv 2201.03545; atto to nano are timm's. Their MLPs are 1x1
convolutions in PyTorch, which is a matter of the checkpoint's layout only.
ConvNeXt V2 (Woo et al. 2023, 2301.00808) has global response normalisation
inside the MLP in place of the layer scale. DINOv3's (Simeoni et al. 2025, arXiv
2508.10104) are ConvNeXts, published without a head.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from tlkd_jax.models.layers import core as layers
from tlkd_jax.models.layers.core import Mode
from tlkd_jax.models.spec import ModelSpec, TorchLeaf

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Design:
  """A variant's numbers; `response_norm` is V2."""

  depths: tuple[int, ...]
  widths: tuple[int, ...]
  epsilon: float = 1e-6
  head_epsilon: float = 1e-6
  response_norm: bool = False


class ResponseNorm(nnx.Module):
  """Scales each channel by its share of the response; equations 1 to 3."""

  def __init__(self, channels):
    self.scale = nnx.Param(jnp.zeros(channels))
    self.bias = nnx.Param(jnp.zeros(channels))

  def __call__(self, x: Array) -> Array:
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # Its gradient is finite where a channel is zero everywhere.
    squares = jnp.sum(wide * wide, (1, 2), keepdims=True)
    norms = jnp.where(squares > 0, jnp.sqrt(jnp.maximum(squares, 1e-30)), 0.0)
    share = norms / (norms.mean(-1, keepdims=True) + 1e-6)
    y = layers.expand(self.scale[...], wide) * (wide * share)
    return (wide + y + layers.expand(self.bias[...], wide)).astype(x.dtype)


class Block(nnx.Module):
  """x + gamma * MLP(LayerNorm(depthwise 7x7 of x)); V2 has no gamma."""

  def __init__(self, channels, *, epsilon, rate, response_norm, rngs):
    self.depthwise = layers.Conv(
      channels, channels, 7, groups=channels, use_bias=True, rngs=rngs
    )
    self.norm = layers.LayerNorm(channels, epsilon=epsilon)
    self.expand = layers.Linear(channels, 4 * channels, rngs=rngs)
    self.project = layers.Linear(4 * channels, channels, rngs=rngs)
    self.response = ResponseNorm(4 * channels) if response_norm else None
    self.gamma = None if response_norm else nnx.Param(1e-6 * jnp.ones(channels))
    self.rate = rate

  def __call__(self, x: Array, mode: Mode) -> Array:
    y = self.norm(self.depthwise(x))
    y = layers.ACTIVATIONS['gelu'](self.expand(y))
    y = self.project(y if self.response is None else self.response(y))
    y = y if self.gamma is None else y * layers.expand(self.gamma[...], y)
    return x + layers.drop_path(y, self.rate, mode)


class Stem(nnx.Module):
  """4x4 patches, then LayerNorm."""

  def __init__(self, in_channels, out_channels, *, epsilon, rngs):
    self.conv = layers.patch_conv(in_channels, out_channels, 4, rngs=rngs)
    self.norm = layers.LayerNorm(out_channels, epsilon=epsilon)

  def __call__(self, x: Array) -> Array:
    return self.norm(self.conv(x))


class Downsample(nnx.Module):
  """LayerNorm, then 2x2 patches."""

  def __init__(self, in_channels, out_channels, *, epsilon, rngs):
    self.norm = layers.LayerNorm(in_channels, epsilon=epsilon)
    self.conv = layers.patch_conv(in_channels, out_channels, 2, rngs=rngs)

  def __call__(self, x: Array) -> Array:
    return self.conv(self.norm(x))


class ConvNeXt(nnx.Module):
  """Stem, four stages, pooling, LayerNorm, linear head.

  Without classes there is no head, and the logits are the pooled features.
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
    options = {'epsilon': design.epsilon, 'rngs': rngs}
    widths = design.widths
    self.stem = Stem(in_channels, widths[0], **options)
    self.downsamples = nnx.List(
      [
        Downsample(before, after, **options)
        for before, after in zip(widths, widths[1:], strict=False)
      ]
    )
    rates = iter(layers.drop_path_rates(drop_path, sum(design.depths)))
    self.stages = nnx.List(
      [
        nnx.List(
          [
            Block(
              width,
              rate=next(rates),
              response_norm=design.response_norm,
              **options,
            )
            for _ in range(depth)
          ]
        )
        for depth, width in zip(design.depths, widths, strict=True)
      ]
    )
    self.norm = layers.LayerNorm(widths[-1], epsilon=design.head_epsilon)
    self.head = (
      layers.Linear(widths[-1], num_classes, rngs=rngs) if num_classes else None
    )
    self.dropout = 0.0 if dropout is None else dropout

  def __call__(self, x: Array, mode: Mode) -> dict:
    x = self.stem(x)
    features = {}
    for i, stage in enumerate(self.stages):
      x = x if i == 0 else self.downsamples[i - 1](x)
      for block in stage:
        x = layers.run_block(block, x, mode)
      features[f'stage{i + 1}'] = x
    pooled = self.norm(x.mean((1, 2)))
    logits = pooled
    if self.head is not None:
      logits = self.head(layers.dropout(pooled, self.dropout, mode))
    return {'logits': logits, 'pre_logits': pooled, 'features': features}


def _blocks(design: Design) -> list[tuple[int, int]]:
  return [(s, b) for s, depth in enumerate(design.depths) for b in range(depth)]


def _timm_modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in timm's ConvNeXt."""
  table = {
    'stem.conv': 'stem.0',
    'stem.norm': 'stem.1',
    'norm': 'head.norm',
    'head': 'head.fc',
  }
  for s in range(1, len(design.depths)):
    table[f'downsamples.{s - 1}.norm'] = f'stages.{s}.downsample.0'
    table[f'downsamples.{s - 1}.conv'] = f'stages.{s}.downsample.1'
  for s, b in _blocks(design):
    ours, theirs = f'stages.{s}.{b}', f'stages.{s}.blocks.{b}'
    table[ours] = theirs
    table[f'{ours}.depthwise'] = f'{theirs}.conv_dw'
    table[f'{ours}.norm'] = f'{theirs}.norm'
    table[f'{ours}.expand'] = f'{theirs}.mlp.fc1'
    table[f'{ours}.project'] = f'{theirs}.mlp.fc2'
    if design.response_norm:
      table[f'{ours}.response'] = f'{theirs}.mlp.grn'
  return table


def _conv_mlp_leaves(design: Design) -> dict[str, TorchLeaf]:
  """Kernels [in, out] that timm keeps as [out, in, 1, 1]."""
  return {
    f'stages.{s}.{b}.{ours}.kernel': TorchLeaf(
      f'stages.{s}.blocks.{b}.mlp.{theirs}.weight',
      lambda x: x[:, :, 0, 0].T,
      lambda x: x.T[:, :, None, None],
    )
    for s, b in _blocks(design)
    for ours, theirs in (('expand', 'fc1'), ('project', 'fc2'))
  }


def _torchvision_modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in torchvision's ConvNeXt."""
  table = {
    'stem.conv': 'features.0.0',
    'stem.norm': 'features.0.1',
    'norm': 'classifier.0',
    'head': 'classifier.2',
  }
  for s in range(1, len(design.depths)):
    table[f'downsamples.{s - 1}.norm'] = f'features.{2 * s}.0'
    table[f'downsamples.{s - 1}.conv'] = f'features.{2 * s}.1'
  for s, b in _blocks(design):
    ours, theirs = f'stages.{s}.{b}', f'features.{2 * s + 1}.{b}.block'
    for part, index in (('depthwise', 0), ('norm', 2)):
      table[f'{ours}.{part}'] = f'{theirs}.{index}'
    for part, index in (('expand', 3), ('project', 5)):
      table[f'{ours}.{part}'] = f'{theirs}.{index}'
  return table


def _torchvision_leaves(design: Design) -> dict[str, TorchLeaf]:
  """Layer scales [C] that torchvision keeps as [C, 1, 1]."""
  return {
    f'stages.{s}.{b}.gamma': TorchLeaf(
      f'features.{2 * s + 1}.{b}.layer_scale',
      lambda x: x[:, 0, 0],
      lambda x: x[:, None, None],
    )
    for s, b in _blocks(design)
  }


def _dinov3_modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in transformers' DINOv3ConvNextModel."""
  table = {'norm': 'layer_norm', 'head': 'classifier'}
  for s in range(len(design.depths)):
    ours = 'stem' if s == 0 else f'downsamples.{s - 1}'
    parts = ('conv', 'norm') if s == 0 else ('norm', 'conv')
    for place, part in enumerate(parts):
      table[f'{ours}.{part}'] = f'stages.{s}.downsample_layers.{place}'
  parts = {
    'depthwise': 'depthwise_conv',
    'norm': 'layer_norm',
    'expand': 'pointwise_conv1',
    'project': 'pointwise_conv2',
  }
  for s, b in _blocks(design):
    ours, theirs = f'stages.{s}.{b}', f'stages.{s}.layers.{b}'
    table[ours] = theirs
    for part, name in parts.items():
      table[f'{ours}.{part}'] = f'{theirs}.{name}'
  return table


# Names in the files of the paper's authors.
_OLD_KEYS = (
  (r'^downsample_layers\.0\.', 'stem.'),
  (r'^downsample_layers\.(\d)\.', r'stages.\1.downsample.'),
  (r'^stages\.(\d)\.(\d+)\.', r'stages.\1.blocks.\2.'),
  (r'\.dwconv\.', '.conv_dw.'),
  (r'\.pwconv([12])\.', r'.mlp.fc\1.'),
  (r'(?<!\.mlp)\.grn\.gamma$', '.mlp.grn.weight'),
  (r'(?<!\.mlp)\.grn\.beta$', '.mlp.grn.bias'),
  (r'^norm\.', 'head.norm.'),
  (r'^head\.(weight|bias)$', r'head.fc.\1'),
)


def _spec(design: Design, modules, leaves=None, **fields) -> ModelSpec:
  return ModelSpec(
    build=functools.partial(ConvNeXt, design),
    image_size=224,
    torch_modules=functools.partial(modules, design),
    torch_leaves=functools.partial(leaves, design) if leaves else dict,
    **fields,
  )


_DESIGNS = {
  'convnext_atto': Design((2, 2, 6, 2), (40, 80, 160, 320)),
  'convnext_femto': Design((2, 2, 6, 2), (48, 96, 192, 384)),
  'convnext_pico': Design((2, 2, 6, 2), (64, 128, 256, 512)),
  'convnext_nano': Design((2, 2, 8, 2), (80, 160, 320, 640)),
  'convnext_tiny': Design((3, 3, 9, 3), (96, 192, 384, 768)),
  'convnext_small': Design((3, 3, 27, 3), (96, 192, 384, 768)),
  'convnext_base': Design((3, 3, 27, 3), (128, 256, 512, 1024)),
  'convnext_large': Design((3, 3, 27, 3), (192, 384, 768, 1536)),
}
_DESIGNS |= {
  name.replace('_', 'v2_'): dataclasses.replace(design, response_norm=True)
  for name, design in _DESIGNS.items()
}

# timm's default weights, where there are any, and their crop fraction.
_TIMM = {
  'convnext_atto': ('d2_in1k', 0.875),
  'convnext_femto': ('d1_in1k', 0.875),
  'convnext_pico': ('d1_in1k', 0.875),
  'convnext_nano': ('in12k_ft_in1k', 0.95),
  'convnext_tiny': ('in12k_ft_in1k', 0.95),
  'convnext_small': ('in12k_ft_in1k', 0.95),
  'convnext_base': ('fb_in22k_ft_in1k', 0.875),
  'convnext_large': ('fb_in22k_ft_in1k', 0.875),
  'convnextv2_atto': ('fcmae_ft_in1k', 0.875),
  'convnextv2_femto': ('fcmae_ft_in1k', 0.875),
  'convnextv2_pico': ('fcmae_ft_in1k', 0.875),
  'convnextv2_nano': ('fcmae_ft_in22k_in1k', 0.875),
  'convnextv2_tiny': ('fcmae_ft_in22k_in1k', 0.875),
  'convnextv2_small': (None, 0.875),
  'convnextv2_base': ('fcmae_ft_in22k_in1k', 0.875),
}
_CONV_MLP = ('_atto', '_femto', '_pico', '_nano')

# torchvision's short side before its crop of 224.
_TORCHVISION = {
  'convnext_tiny': 236,
  'convnext_small': 230,
  'convnext_base': 232,
  'convnext_large': 232,
}
# Sizes that DINOv3 comes in.
_DINOV3 = ('tiny', 'small', 'base', 'large')


def _variants() -> dict[str, ModelSpec]:
  variants = {}
  for name, (tag, crop) in _TIMM.items():
    variants[f'timm/{name}'] = _spec(
      _DESIGNS[name],
      _timm_modules,
      _conv_mlp_leaves if name.endswith(_CONV_MLP) else None,
      crop=crop,
      old_keys=_OLD_KEYS,
      weights=f'timm:{name}.{tag}' if tag else None,
    )
  for name, short_side in _TORCHVISION.items():
    variants[f'torchvision/{name}'] = _spec(
      _DESIGNS[name],
      _torchvision_modules,
      _torchvision_leaves,
      interpolation='bilinear',
      crop=224 / short_side,
    )
  # Hugging Face's implementation: its last LayerNorm has another epsilon.
  for name in (*_TORCHVISION, *(n for n in _TIMM if 'v2' in n)):
    variants[f'transformers/{name}'] = _spec(
      dataclasses.replace(_DESIGNS[name], head_epsilon=1e-12), _timm_modules
    )
  for size in _DINOV3:
    variants[f'transformers/dinov3_convnext_{size}'] = _spec(
      _DESIGNS[f'convnext_{size}'],
      _dinov3_modules,
      crop=1.0,
      interpolation='bilinear',
      # As version 5 names them in memory.
      old_keys=((r'^model\.', ''),),
    )
  return variants


VARIANTS: dict[str, ModelSpec] = _variants()
