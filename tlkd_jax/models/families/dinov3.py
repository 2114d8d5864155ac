"""DINOv3: ViTs with rotary positions and registers, trained without labels.

Simeoni et al. 2025, arXiv 2508.10104. What stands for an image is the mean of
the patches in timm and the class token in transformers. Its ConvNeXts are in
convnext.py.
"""

from tlkd_jax.models.families import rotary_vit
from tlkd_jax.models.families.rotary_vit import Design
from tlkd_jax.models.families.vit_keys import in_blocks, plain_leaf
from tlkd_jax.models.layers.rotary import Rotary
from tlkd_jax.models.spec import ModelSpec, TorchLeaf

_SIZES = {
  'small': {'width': 384, 'heads': 6},
  'small_plus': {'width': 384, 'heads': 6, 'middle': 'gated'},
  'base': {'width': 768, 'heads': 12},
  'large': {'width': 1024, 'heads': 16, 'depth': 24},
}


def design(width: int, heads: int, **fields) -> Design:
  """A variant's numbers."""
  return Design(
    width,
    heads,
    hidden=4 * width,
    rotary=Rotary(base=100.0, centred=True),
    registers=4,
    layer_scale=True,
    epsilon=1e-5,
    **fields,
  )


def _transformers_modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in transformers' DINOv3ViTModel."""
  table = {
    'patch': 'embeddings.patch_embeddings',
    'norm': 'norm',
    'head': 'classifier',
  }
  parts = {
    'norm1': 'norm1',
    'attention.inputs.query': 'attention.q_proj',
    'attention.inputs.key': 'attention.k_proj',
    'attention.inputs.value': 'attention.v_proj',
    'attention.project': 'attention.o_proj',
    'norm2': 'norm2',
    'middle.expand': 'mlp.up_proj',
    'middle.gate': 'mlp.gate_proj',
    'middle.project': 'mlp.down_proj',
  }
  return table | in_blocks(design, parts, 'layer.{}')


def _transformers_leaves(design: Design) -> dict[str, TorchLeaf]:
  """Parameter -> entry of transformers' DINOv3ViTModel."""
  tokens = {
    'class_token': 'embeddings.cls_token',
    'mask_token': 'embeddings.mask_token',
    'registers': 'embeddings.register_tokens',
  }
  parts = {'gamma1': 'layer_scale1.lambda1', 'gamma2': 'layer_scale2.lambda1'}
  names = tokens | in_blocks(design, parts, 'layer.{}')
  return {ours: plain_leaf(theirs) for ours, theirs in names.items()}


def _variants() -> dict[str, ModelSpec]:
  variants = {}
  for size, numbers in _SIZES.items():
    # timm keeps the weights without biases of queries and values, and with.
    for suffix, biases in (('', False), ('_qkvb', True)):
      name = f'vit_{size}_patch16_dinov3{suffix}'
      variants[f'timm/{name}'] = rotary_vit.spec(
        design(biases=biases, **numbers),
        image_size=256,
        crop=1.0,
        weights=f'timm:{name}.lvd1689m',
        beside=(r'^mask_token$',),
      )
    variants[f'transformers/dinov3_vit_{size}_patch16'] = rotary_vit.spec(
      design(pool='class', split=True, mask_token=True, **numbers),
      _transformers_modules,
      _transformers_leaves,
      image_size=224,
      crop=1.0,
      interpolation='bilinear',
      # As version 5 names them in memory.
      old_keys=((r'^model\.layer\.', 'layer.'),),
    )
  return variants


VARIANTS: dict[str, ModelSpec] = _variants()
