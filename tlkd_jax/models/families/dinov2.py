"""DINOv2: ViTs with patches of 14 pixels, trained without labels.

Oquab et al. 2024, arXiv 2304.07193; Darcet et al. 2024, arXiv 2309.16588 (with
registers).
"""

import dataclasses

from tlkd_jax.models.families import vit_keys
from tlkd_jax.models.families.vit import Design
from tlkd_jax.models.families.vit_keys import in_blocks
from tlkd_jax.models.spec import ModelSpec, TorchLeaf

_SIZES = {'small': (384, 6, 12), 'base': (768, 12, 12), 'large': (1024, 16, 24)}
# Names of the weights where transformers 5 has them in memory.
_IN_MEMORY = (
  (r'\.attention\.q_proj\.', '.attention.attention.query.'),
  (r'\.attention\.k_proj\.', '.attention.attention.key.'),
  (r'\.attention\.v_proj\.', '.attention.attention.value.'),
  (r'\.attention\.o_proj\.', '.attention.output.dense.'),
)
# What Meta's own files call otherwise than timm.
_OF_META = ((r'^register_tokens$', 'reg_token'),)


def design(width: int, heads: int, depth: int, **fields) -> Design:
  """A variant at the size of the published positions."""
  numbers = {'patch': 14, 'image_size': 518, 'layer_scale': True} | fields
  return Design(width, heads, depth, **numbers)


def _transformers_modules(single: Design, prefix: str) -> dict[str, str]:
  table = {
    'patch': f'{prefix}embeddings.patch_embeddings.projection',
    'norm': f'{prefix}layernorm',
    'head': 'classifier',
  }
  attention = 'attention.attention'
  parts = {
    'norm1': 'norm1',
    'attention.query': f'{attention}.query',
    'attention.key': f'{attention}.key',
    'attention.value': f'{attention}.value',
    'attention.project': 'attention.output.dense',
    'norm2': 'norm2',
    'expand': 'mlp.fc1',
    'project': 'mlp.fc2',
  }
  return table | in_blocks(single, parts, f'{prefix}encoder.layer.{{}}')


def _transformers_leaves(single: Design, prefix: str) -> dict[str, TorchLeaf]:
  table = {
    ours: vit_keys.plain_leaf(f'{prefix}embeddings.{theirs}')
    for ours, theirs in (
      ('class_token', 'cls_token'),
      ('mask_token', 'mask_token'),
      ('register_tokens', 'register_tokens'),
      ('position', 'position_embeddings'),
    )
  }
  for i in range(single.depth):
    for n in (1, 2):
      key = f'{prefix}encoder.layer.{i}.layer_scale{n}.lambda1'
      table[f'blocks.{i}.scale{n}.gamma'] = vit_keys.plain_leaf(key)
  return table


def transformers_spec(
  single: Design, *, classifier: bool = False, **fields
) -> ModelSpec:
  """A variant with the keys of transformers, of timm's design.

  Its class token has a position, also where there are registers; without them
  it resamples positions without antialiasing, with them as timm does.

  Args:
    single: timm's design.
    classifier: whether it is a Dinov2ForImageClassification, whose head reads
      the class token beside the mean of the patches, and not a Dinov2Model.
    **fields: of ModelSpec, where they are others.
  """
  numbers = dataclasses.replace(
    single,
    class_position=True,
    filter='cubic' if single.registers else 'plain_cubic',
    fused=False,
    mask_token=True,
    pool='token_mean' if classifier else 'token',
  )
  library = 'dinov2_with_registers.' if single.registers else 'dinov2.'
  prefix = library if classifier else ''
  bare = (r'^(embeddings|encoder|layernorm)\.', rf'{prefix}\1.')
  defaults = {'crop': 224 / 256, 'old_keys': (*_IN_MEMORY, bare)}
  return vit_keys.spec(
    numbers,
    lambda single: _transformers_modules(single, prefix),
    lambda single: _transformers_leaves(single, prefix),
    **defaults | fields,
  )


def _variants() -> dict[str, ModelSpec]:
  variants = {}
  for size, numbers in _SIZES.items():
    plain = design(*numbers)
    # timm adds the class token's position to the token itself.
    registers = design(*numbers, registers=4, class_position=False)
    for single, timm, hub in (
      (plain, 'dinov2', 'dinov2'),
      (registers, 'reg4_dinov2', 'dinov2-with-registers'),
    ):
      name = f'vit_{size}_patch14_{timm}'
      variants[f'timm/{name}'] = vit_keys.spec(
        single,
        weights=f'timm:{name}.lvd142m',
        crop=1.0,
        old_keys=_OF_META,
        beside=(r'^mask_token$',),
      )
      weights = f'hf-hub:facebook/{hub}-{size}'
      name = f'transformers/{hub.replace("-", "_")}_{size}'
      variants[name] = transformers_spec(single, weights=weights)
      variants[f'{name}_imagenet1k_1_layer'] = transformers_spec(
        single, classifier=True, weights=f'{weights}-imagenet1k-1-layer'
      )
  return variants


VARIANTS: dict[str, ModelSpec] = _variants()
