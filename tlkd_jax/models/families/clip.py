"""Image towers of CLIP.

Radford et al. 2021, arXiv 2103.00020; Cherti et al. 2023, arXiv 2212.07143
(those that were trained on LAION's images). The last layer is the projection
to the space of the texts, as long as it is not replaced: `logits` are then the
image's embedding there.
"""

import dataclasses

from tlkd_jax.models.families import vit_keys
from tlkd_jax.models.families.vit import Design
from tlkd_jax.models.families.vit_keys import HALF, in_blocks
from tlkd_jax.models.spec import ModelSpec, TextDesign, TorchLeaf

_PIXELS = {
  'mean': (0.48145466 * 255, 0.4578275 * 255, 0.40821073 * 255),
  'std': (0.26862954 * 255, 0.26130258 * 255, 0.27577711 * 255),
}
# Of a model with both towers, what is not of images.
OTHER_TOWER = (
  r'^text_model\.',
  r'^text_projection\.',
  r'^logit_(scale|bias)$',
  r'(^|\.)position_ids$',
)
# Names in a block of either tower, ours -> those of transformers.
BLOCK = {
  'norm1': 'layer_norm1',
  'attention.query': 'self_attn.q_proj',
  'attention.key': 'self_attn.k_proj',
  'attention.value': 'self_attn.v_proj',
  'attention.project': 'self_attn.out_proj',
  'norm2': 'layer_norm2',
  'expand': 'mlp.fc1',
  'project': 'mlp.fc2',
}


def design(width: int, heads: int, depth: int, **fields) -> Design:
  """An image tower: bias-free patches, normalised tokens, exact GELU."""
  numbers = {'epsilon': 1e-5, 'patch_bias': False, 'pre_norm': True} | fields
  return Design(width, heads, depth, **numbers)


def transformers_design(single: Design) -> Design:
  """As CLIP and SigLIP of transformers compute it."""
  return dataclasses.replace(single, fused=False, filter='plain_cubic')


def tower_modules(single: Design) -> dict[str, str]:
  """Submodule -> prefix, of what towers of transformers have in common."""
  table = {
    'patch': 'vision_model.embeddings.patch_embedding',
    'norm': 'vision_model.post_layernorm',
  }
  return table | in_blocks(single, BLOCK, 'vision_model.encoder.layers.{}')


def transformers_modules(single: Design) -> dict[str, str]:
  """Submodule -> prefix in transformers' CLIPVisionModelWithProjection."""
  return tower_modules(single) | {
    # The library spells it so.
    'pre_norm': 'vision_model.pre_layrnorm',
    'head': 'visual_projection',
  }


def transformers_leaves(single: Design) -> dict[str, TorchLeaf]:
  """Parameter -> entry of transformers' CLIPVisionModelWithProjection."""
  del single
  prefix = 'vision_model.embeddings'
  bias = vit_keys.plain_leaf('visual_projection.bias')
  return {
    'class_token': vit_keys.row_leaf(f'{prefix}.class_embedding'),
    'position': vit_keys.table_leaf(f'{prefix}.position_embedding.weight'),
    'head.bias': dataclasses.replace(bias, zero_if_absent=True),
  }


def transformers_spec(single: Design, **fields) -> ModelSpec:
  """A variant with the keys of transformers, of timm's design."""
  defaults = {**_PIXELS, 'crop': 1.0, 'beside': OTHER_TOWER}
  return vit_keys.spec(
    transformers_design(single),
    transformers_modules,
    transformers_leaves,
    **defaults | fields,
  )


_SIZES = {
  'base_patch32': design(768, 12, 12, patch=32),
  'base_patch16': design(768, 12, 12, patch=16),
  'large_patch14': design(1024, 16, 24, patch=14),
}
_TEXTS = {
  'base_patch32': TextDesign(512, 8, 12, embedding=512),
  'base_patch16': TextDesign(512, 8, 12, embedding=512),
  'large_patch14': TextDesign(768, 12, 12, embedding=768),
}


def _texts(size: str, activation: str) -> TextDesign:
  """The other tower, which has the activation of this one."""
  return dataclasses.replace(_TEXTS[size], activation=activation)


def _timm_variants() -> dict[str, ModelSpec]:
  variants = {}

  def add(size, side, tag, *, quick=False, **fields):
    numbers = dataclasses.replace(
      _SIZES[size],
      image_size=side,
      activation='quick_gelu' if quick else 'gelu',
    )
    kind = 'clip_quickgelu' if quick else 'clip'
    variants[f'timm/vit_{size}_{kind}_{side}'] = vit_keys.spec(
      numbers,
      # timm keeps one file for both activations.
      weights=f'timm:vit_{size}_clip_{side}.{tag}',
      texts=_texts(size, numbers.activation),
      **_PIXELS | fields,
    )

  fine_tuned = 'laion2b_ft_in12k_in1k'
  add('base_patch32', 224, 'laion2b')
  add('base_patch32', 256, 'datacompxl', crop=1.0)
  add('base_patch32', 384, fine_tuned, crop=1.0)
  add('base_patch32', 448, fine_tuned, crop=1.0)
  add('base_patch16', 224, 'laion2b', crop=1.0)
  add('base_patch16', 384, fine_tuned, crop=1.0)
  add('large_patch14', 224, 'laion2b', crop=1.0, **HALF)
  add('large_patch14', 336, fine_tuned, crop=1.0, **HALF)
  add('base_patch32', 224, 'openai', quick=True)
  add('base_patch16', 224, 'openai', quick=True)
  add('large_patch14', 224, 'openai', quick=True, crop=1.0)
  add('large_patch14', 336, 'openai', quick=True, crop=1.0)
  return variants


def _transformers_variants() -> dict[str, ModelSpec]:
  large336 = dataclasses.replace(_SIZES['large_patch14'], image_size=336)
  laion = {
    'base_patch32': 'laion/CLIP-ViT-B-32-laion2B-s34B-b79K',
    'base_patch16': 'laion/CLIP-ViT-B-16-laion2B-s34B-b88K',
    'large_patch14': 'laion/CLIP-ViT-L-14-laion2B-s32B-b82K',
  }
  variants = {}
  for size, numbers in {**_SIZES, 'large_patch14_336': large336}.items():
    quick = dataclasses.replace(numbers, activation='quick_gelu')
    name = f'transformers/clip_vit_{size}'
    openai = f'openai/clip-vit-{size.replace("_", "-")}'
    of_texts = size.removesuffix('_336')
    variants[name] = transformers_spec(
      quick,
      weights=f'hf-hub:{openai}',
      texts=_texts(of_texts, quick.activation),
    )
    if size in laion:
      variants[f'{name}_laion2b'] = transformers_spec(
        numbers,
        weights=f'hf-hub:{laion[size]}',
        texts=_texts(of_texts, numbers.activation),
        # Of the three it alone was trained so.
        **(HALF if size == 'large_patch14' else {}),
      )
  return variants


VARIANTS: dict[str, ModelSpec] = {
  **_timm_variants(),
  **_transformers_variants(),
}
