"""ViT, DeiT and DeiT III of timm, torchvision and transformers.

Dosovitskiy et al. 2021, arXiv 2010.11929; Touvron et al. 2021, arXiv
2012.12877, and 2022, arXiv 2204.07118 (DeiT III: layer scale, no position for
the class token); Assran et al. 2023, arXiv 2301.08243 (I-JEPA, whose patches
are averaged).
"""

import dataclasses

from tlkd_jax.models.families.vit import Design
from tlkd_jax.models.families.vit_keys import (
  HALF,
  in_blocks,
  linear_leaf,
  plain_leaf,
  spec,
)
from tlkd_jax.models.spec import ModelSpec, TorchLeaf

_VIT = {
  'tiny': (Design(192, 3), 'augreg_in21k_ft_in1k'),
  'small': (Design(384, 6), 'augreg_in21k_ft_in1k'),
  'base': (Design(768, 12), 'augreg2_in21k_ft_in1k'),
}


def _torchvision_modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in torchvision's VisionTransformer."""
  table = {'patch': 'conv_proj', 'norm': 'encoder.ln', 'head': 'heads.head'}
  parts = {
    'norm1': 'ln_1',
    'attention.project': 'self_attention.out_proj',
    'norm2': 'ln_2',
    'expand': 'mlp.0',
    'project': 'mlp.3',
  }
  return table | in_blocks(design, parts, 'encoder.layers.encoder_layer_{}')


def _torchvision_leaves(design: Design) -> dict[str, TorchLeaf]:
  table = {
    'class_token': plain_leaf('class_token'),
    'position': plain_leaf('encoder.pos_embedding'),
  }
  for i in range(design.depth):
    ours = f'blocks.{i}.attention.qkv'
    theirs = f'encoder.layers.encoder_layer_{i}.self_attention.in_proj'
    table[f'{ours}.kernel'] = linear_leaf(f'{theirs}_weight')
    table[f'{ours}.bias'] = plain_leaf(f'{theirs}_bias')
  return table


def _timm_variants() -> dict[str, ModelSpec]:
  variants = {}

  def add(name, tag, design, **fields):
    weights = f'timm:{name}.{tag}'
    variants[f'timm/{name}'] = spec(design, weights=weights, **fields)

  for size, (design, tag) in _VIT.items():
    add(f'vit_{size}_patch16_224', tag, design, **HALF)
    add(f'deit_{size}_patch16_224', 'fb_in1k', design)
    distilled = dataclasses.replace(design, distilled=True)
    add(f'deit_{size}_distilled_patch16_224', 'fb_in1k', distilled)
  large = Design(1024, 16, depth=24)
  add('vit_large_patch16_224', 'augreg_in21k_ft_in1k', large, **HALF)
  for size, width, heads in (
    ('small', 384, 6),
    ('medium', 512, 8),
    ('base', 768, 12),
  ):
    design = Design(width, heads, layer_scale=True, class_position=False)
    # The authors' files name the layer scales so.
    old_keys = ((r'\.gamma_([12])$', r'.ls\1.gamma'),)
    add(f'deit3_{size}_patch16_224', 'fb_in1k', design, old_keys=old_keys)
  return variants


def averaged(design: Design) -> Design:
  """Without a class token: the mean of the normalised patches."""
  return dataclasses.replace(design, class_token=False, pool='mean')


# (width, heads, depth, hidden) of timm's sizes between the usual ones.
_BETWEEN = {
  'wee': (256, 4, 14, 1280),
  'little': (320, 5, 14, 1792),
  'medium': (512, 8, 12, 2048),
  'mediumd': (512, 8, 20, 2048),
  'betwixt': (640, 10, 12, 2560),
}
_FINE_TUNED = 'sbb_in12k_ft_in1k'
# Name, registers, side in pixels, tag.
_WITH_REGISTERS = (
  ('wee', 1, 256, 'sbb_in1k'),
  ('little', 1, 256, _FINE_TUNED),
  ('little', 4, 256, 'sbb_in1k'),
  ('medium', 1, 256, 'sbb_in1k'),
  ('medium', 4, 256, _FINE_TUNED),
  ('mediumd', 4, 256, _FINE_TUNED),
  ('mediumd', 4, 384, 'sbb2_e200_in12k_ft_in1k'),
  ('betwixt', 1, 256, 'sbb_in1k'),
  ('betwixt', 4, 256, _FINE_TUNED),
  ('betwixt', 4, 384, 'sbb2_e200_in12k_ft_in1k'),
)


def _averaged_variants() -> dict[str, ModelSpec]:
  """timm's *_gap_*; its hub has no files of the first four."""
  base = averaged(Design(768, 16))
  huge = averaged(Design(1280, 16, depth=32, patch=14))
  huge448 = dataclasses.replace(huge, patch=16, image_size=448)
  giant = averaged(Design(1408, 16, depth=40, hidden=6144))
  variants = {
    'timm/vit_base_patch16_gap_224': spec(base, **HALF),
    'timm/vit_huge_patch14_gap_224': spec(huge),
    'timm/vit_huge_patch16_gap_448': spec(huge448, crop=1.0),
    'timm/vit_giant_patch16_gap_224': spec(giant),
  }

  def add(name, tag, design, crop=0.95):
    variants[f'timm/{name}'] = spec(
      design, weights=f'timm:{name}.{tag}', crop=crop, **HALF
    )

  medium = averaged(Design(512, 8, layer_scale=True, qkv_bias=False))
  for side in (240, 256, 384):
    tag = 'sw_in12k' if side == 240 else 'sw_in12k_ft_in1k'
    design = dataclasses.replace(medium, image_size=side)
    add(f'vit_medium_patch16_gap_{side}', tag, design)
  for size, registers, side, tag in _WITH_REGISTERS:
    design = Design(
      *_BETWEEN[size],
      image_size=side,
      layer_scale=True,
      registers=registers,
      norm_after_pool=True,
    )
    name = f'vit_{size}_patch16_reg{registers}_gap_{side}'
    add(name, tag, averaged(design), crop=1.0 if side == 384 else 0.95)
  return variants


def _torchvision_variants() -> dict[str, ModelSpec]:
  # At other sizes, which it refuses by itself, it is timm's: their weights are
  # each other's.
  single = spec(
    _VIT['base'][0],
    _torchvision_modules,
    _torchvision_leaves,
    old_keys=(
      (r'\.mlp\.linear_1\.', '.mlp.0.'),
      (r'\.mlp\.linear_2\.', '.mlp.3.'),
    ),
    interpolation='bilinear',
    crop=224 / 256,
  )
  return {'torchvision/vit_b_16': single}


def _transformers_variants() -> dict[str, ModelSpec]:
  """Hugging Face's: timm's but for LayerNorm's epsilon and the filter."""
  variants = {}
  for size, (design, _) in _VIT.items():
    plain = dataclasses.replace(design, epsilon=1e-12, filter='plain_cubic')
    distilled = dataclasses.replace(plain, distilled=True)
    variants |= {
      f'transformers/vit_{size}_patch16_224': spec(
        plain, interpolation='bilinear', **{**HALF, 'crop': 1.0}
      ),
      f'transformers/deit_{size}_distilled_patch16_224': spec(
        distilled, crop=224 / 256
      ),
    }
  return variants


VARIANTS: dict[str, ModelSpec] = {
  **_timm_variants(),
  **_averaged_variants(),
  **_torchvision_variants(),
  **_transformers_variants(),
}
