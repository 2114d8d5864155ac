"""Image towers of SigLIP and SigLIP 2: no class token, attention pooling.

Zhai et al. 2023, arXiv 2303.15343; Tschannen et al. 2025, arXiv 2502.14786
(SigLIP 2: the same networks, trained otherwise; its NaFlex takes any aspect).
So400m is the shape of Alabdulmohsin et al. 2023, arXiv 2305.13035.
"""

import dataclasses

import numpy as np

from tlkd_jax.models.families import clip, vit_keys
from tlkd_jax.models.families.vit import Design
from tlkd_jax.models.families.vit_keys import HALF
from tlkd_jax.models.families.vit_variants import averaged
from tlkd_jax.models.spec import ModelSpec, TextDesign, TorchLeaf


def design(width: int, heads: int, depth: int, **fields) -> Design:
  """An image tower with attention pooling and exact GELU."""
  numbers = {'class_token': False, 'pool': 'attention'} | fields
  return Design(width, heads, depth, **numbers)


_BASE = design(768, 12, 12)
_LARGE = design(1024, 16, 24)
_SO400M = design(1152, 16, 27, hidden=4304)
_SIZES = {
  'base_patch32': dataclasses.replace(_BASE, patch=32),
  'base_patch16': _BASE,
  'large_patch16': _LARGE,
  'so400m_patch14': dataclasses.replace(_SO400M, patch=14),
  'so400m_patch16': _SO400M,
}


def text_design(width: int, heads: int, depth: int, **fields) -> TextDesign:
  """A tower of texts, as trained: with the approximation of GELU by tanh."""
  numbers = {
    'embedding': width,
    'activation': 'gelu_tanh',
    'epsilon': 1e-6,
    'length': 64,
    'vocabulary': 32000,
    'causal': False,
  }
  return TextDesign(width, heads, depth, **numbers | fields)


_TEXTS = {
  'base': text_design(768, 12, 12),
  'large': text_design(1024, 16, 24),
  'so400m': text_design(1152, 16, 27, hidden=4304),
}


def _texts(size: str) -> TextDesign:
  """Of 'base_patch16': the other tower."""
  return _TEXTS[size.partition('_')[0]]


# Sides of the published ones, in pixels.
_SIDES = {
  'base_patch32': (256,),
  'base_patch16': (224, 256, 384, 512),
  'large_patch16': (256, 384, 512),
  'so400m_patch14': (224, 378, 384),
  'so400m_patch16': (256, 384, 512),
}
# timm computes the later ones as they were trained, the others with exact GELU.
_TANH = {('large_patch16', 512)} | {
  (size, side)
  for size in ('base_patch32', 'so400m_patch16')
  for side in _SIDES[size]
}
# Those that SigLIP 2 has not.
_FIRST_ALONE = {('so400m_patch14', 384)}


def _head_leaf(part: str) -> str:
  return f'vision_model.head.attention.in_proj_{part}'


def transformers_modules(single: Design) -> dict[str, str]:
  """Submodule -> prefix in transformers' SiglipVisionModel."""
  return clip.tower_modules(single) | {
    'pool.attended': 'vision_model.head.attention.out_proj',
    'pool.norm': 'vision_model.head.layernorm',
    'pool.expand': 'vision_model.head.mlp.fc1',
    'pool.project': 'vision_model.head.mlp.fc2',
    'head': 'classifier',
  }


def transformers_leaves(single: Design) -> dict[str, TorchLeaf]:
  """Parameter -> entry of transformers' SiglipVisionModel."""
  del single
  positions = 'vision_model.embeddings.position_embedding.weight'
  return {
    'position': vit_keys.table_leaf(positions),
    'pool.latent': vit_keys.plain_leaf('vision_model.head.probe'),
    'pool.qkv.kernel': vit_keys.linear_leaf(_head_leaf('weight')),
    'pool.qkv.bias': vit_keys.plain_leaf(_head_leaf('bias')),
  }


def naflex_leaves(single: Design) -> dict[str, TorchLeaf]:
  """Of transformers' Siglip2VisionModel: patches of (row, column, channel)."""
  side, width = single.patch, single.width

  def kernel(weight: np.ndarray) -> np.ndarray:
    return weight.T.reshape(side, side, -1, width)

  def weight(kernel: np.ndarray) -> np.ndarray:
    return kernel.reshape(-1, width).T

  key = 'vision_model.embeddings.patch_embedding.weight'
  leaf = TorchLeaf(key, kernel, weight)
  return transformers_leaves(single) | {'patch.kernel': leaf}


def transformers_spec(
  single: Design, *, naflex: bool = False, **fields
) -> ModelSpec:
  """A variant with the keys of transformers, of timm's design.

  Args:
    single: timm's design.
    naflex: whether it is a Siglip2VisionModel, whose patches go through a
      linear layer and whose positions are interpolated linearly.
    **fields: of ModelSpec, where they are others.
  """
  numbers = dataclasses.replace(
    clip.transformers_design(single), activation='gelu_tanh'
  )
  leaves = transformers_leaves
  if naflex:
    numbers = dataclasses.replace(numbers, filter='linear')
    leaves = naflex_leaves
  # Version 5 of transformers leaves the first name out.
  bare = r'^(embeddings|encoder|post_layernorm|head)\.'
  defaults = {
    **HALF,
    'crop': 1.0,
    'beside': clip.OTHER_TOWER,
    'old_keys': ((bare, r'vision_model.\1.'),),
  }
  return vit_keys.spec(
    numbers, transformers_modules, leaves, **defaults | fields
  )


def _sized(size: str, side: int) -> Design:
  single = dataclasses.replace(_SIZES[size], image_size=side)
  return dataclasses.replace(single, crops=bool(side % single.patch))


def _timm_variants() -> dict[str, ModelSpec]:
  variants = {}
  for size, sides in _SIDES.items():
    for side in sides:
      tanh = (size, side) in _TANH
      single = dataclasses.replace(
        _sized(size, side), activation='gelu_tanh' if tanh else 'gelu'
      )
      tag = 'webli' if (size, side) in _FIRST_ALONE else 'v2_webli'
      for kind, numbers, texts in (
        ('siglip', single, _texts(size)),
        # Nobody has trained texts for the mean of patches.
        ('siglip_gap', averaged(single), None),
      ):
        name = f'vit_{size}_{kind}_{side}'
        # Of its averaged form timm prepares this one otherwise.
        whole = name == 'vit_so400m_patch14_siglip_gap_384'
        variants[f'timm/{name}'] = vit_keys.spec(
          numbers,
          weights=f'timm:{name}.{tag}',
          crop=1.0 if whole else 0.9,
          texts=texts,
          **HALF,
        )
  return variants


def _transformers_variants() -> dict[str, ModelSpec]:
  """Of the weights of SigLIP 2, whose processors resize images linearly.

  Those of the first SigLIP do it cubically.
  """
  variants = {}

  def add(name, single, size, hub, **options):
    variants[f'transformers/{name}'] = transformers_spec(
      single,
      weights=f'hf-hub:google/siglip2-{size.replace("_", "-")}-{hub}',
      texts=_texts(size),
      interpolation='bilinear',
      **options,
    )

  for size, sides in _SIDES.items():
    for side in sides:
      # timm's correction of the next one.
      if side == 378:
        continue
      add(f'siglip_{size}_{side}', _sized(size, side), size, side)
  for size in ('base_patch16', 'so400m_patch16'):
    single = _sized(size, 256)
    add(f'siglip2_{size}_naflex', single, size, 'naflex', naflex=True)
  return variants


VARIANTS: dict[str, ModelSpec] = {
  **_timm_variants(),
  **_transformers_variants(),
}
