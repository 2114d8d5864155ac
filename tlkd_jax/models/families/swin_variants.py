"""Swin Transformers under the names of timm, torchvision and transformers."""

import dataclasses
import functools

import numpy as np

from tlkd_jax.models.families.swin import Design, SwinTransformer
from tlkd_jax.models.families.vit_keys import plain_leaf
from tlkd_jax.models.layers.windows import relative_index
from tlkd_jax.models.spec import ModelSpec, TorchLeaf


def _blocks(design: Design) -> list[tuple[int, int]]:
  return [(s, b) for s, depth in enumerate(design.depths) for b in range(depth)]


def _modules(
  design: Design, table: dict[str, str], merge: str, block: str, parts: dict
) -> dict[str, str]:
  """Submodule -> prefix in a library.

  Args:
    design: says how many blocks there are.
    table: submodules outside stages.
    merge: prefix of what ends a stage, with {0} for the stage's number, {1} for
      the next one's and {2} for twice that.
    block: prefix of a block, with {0} for the stage's number, {1} for one more
      than twice that and {2} for the block's.
    parts: submodules of a block.
  """
  table = dict(table)
  for s in range(len(design.depths) - 1):
    for part in ('norm', 'reduction'):
      prefix = merge.format(s, s + 1, 2 * s + 2)
      table[f'merges.{s}.{part}'] = f'{prefix}.{part}'
  for s, b in _blocks(design):
    prefix = block.format(s, 2 * s + 1, b)
    for ours, theirs in parts.items():
      table[f'stages.{s}.{b}.{ours}'] = f'{prefix}.{theirs}'
  return table


_PARTS = {
  'norm1': 'norm1',
  'attention.qkv': 'attn.qkv',
  'attention.project': 'attn.proj',
  'norm2': 'norm2',
}
_TIMM_BLOCK = 'layers.{0}.blocks.{2}'
_TORCHVISION_BLOCK = 'features.{1}.{2}'
_TRANSFORMERS_BLOCK = 'swin.encoder.layers.{0}.blocks.{2}'


def _timm_modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in timm's SwinTransformer."""
  table = {
    'patch': 'patch_embed.proj',
    'patch_norm': 'patch_embed.norm',
    'norm': 'norm',
    'head': 'head.fc',
  }
  parts = {**_PARTS, 'expand': 'mlp.fc1', 'project': 'mlp.fc2'}
  return _modules(design, table, 'layers.{1}.downsample', _TIMM_BLOCK, parts)


def _torchvision_modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in torchvision's SwinTransformer."""
  table = {
    'patch': 'features.0.0',
    'patch_norm': 'features.0.2',
    'norm': 'norm',
    'head': 'head',
  }
  parts = {**_PARTS, 'expand': 'mlp.0', 'project': 'mlp.3'}
  return _modules(design, table, 'features.{2}', _TORCHVISION_BLOCK, parts)


def _transformers_modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in transformers' SwinForImageClassification."""
  table = {
    'patch': 'swin.embeddings.patch_embeddings.projection',
    'patch_norm': 'swin.embeddings.norm',
    'norm': 'swin.layernorm',
    'head': 'classifier',
  }
  parts = {
    'norm1': 'layernorm_before',
    'attention.query': 'attention.self.query',
    'attention.key': 'attention.self.key',
    'attention.value': 'attention.self.value',
    'attention.project': 'attention.output.dense',
    'norm2': 'layernorm_after',
    'expand': 'intermediate.dense',
    'project': 'output.dense',
  }
  merge = 'swin.encoder.layers.{0}.downsample'
  return _modules(design, table, merge, _TRANSFORMERS_BLOCK, parts)


def _leaves(design: Design, attention: str) -> dict[str, TorchLeaf]:
  """Tables of positions; `attention` is the form of an attention's name."""
  return {
    f'stages.{s}.{b}.attention.table': plain_leaf(
      f'{attention.format(s, 2 * s + 1, b)}.relative_position_bias_table'
    )
    for s, b in _blocks(design)
  }


def _torchvision_constants(design: Design) -> dict[str, np.ndarray]:
  index = relative_index((design.window, design.window)).ravel()
  return {
    f'features.{2 * s + 1}.{b}.attn.relative_position_index': index
    for s, b in _blocks(design)
  }


_DESIGNS = {
  'tiny': Design(96, (2, 2, 6, 2), (3, 6, 12, 24)),
  'small': Design(96, (2, 2, 18, 2), (3, 6, 12, 24)),
  'base': Design(128, (2, 2, 18, 2), (4, 8, 16, 32)),
}
# timm's default weights, and torchvision's short side before its crop of 224.
_PUBLISHED = {
  'tiny': ('ms_in1k', 232),
  'small': ('ms_in22k_ft_in1k', 246),
  'base': ('ms_in22k_ft_in1k', 238),
}


# What follows from the size of a window, in older files.
_INDICES = (r'\.relative_position_index$', r'\.attn_mask$')
# Names of the weights where transformers 5 has them in memory, and those of a
# model without a classifier.
_IN_MEMORY = (
  (r'\.attention\.q_proj\.', '.attention.self.query.'),
  (r'\.attention\.k_proj\.', '.attention.self.key.'),
  (r'\.attention\.v_proj\.', '.attention.self.value.'),
  (r'\.attention\.o_proj\.', '.attention.output.dense.'),
  (r'\.attention\.relative_position_bias\.', '.attention.self.'),
  (r'\.mlp\.fc1\.', '.intermediate.dense.'),
  (r'\.mlp\.fc2\.', '.output.dense.'),
  (r'^(embeddings|encoder|layernorm)\.', r'swin.\1.'),
)


def spec(design: Design, **fields) -> ModelSpec:
  """A variant of a design under timm's keys, where no others are given."""
  tables = {
    'torch_modules': functools.partial(_timm_modules, design),
    'torch_leaves': functools.partial(_leaves, design, f'{_TIMM_BLOCK}.attn'),
    'beside': _INDICES,
  }
  return ModelSpec(
    build=functools.partial(SwinTransformer, design),
    stem='patch',
    **{'image_size': design.native, **tables, **fields},
  )


def _torchvision_spec(design: Design, short_side: int, name: str) -> ModelSpec:
  design = dataclasses.replace(design, library='torchvision')
  return spec(
    design,
    torch_modules=functools.partial(_torchvision_modules, design),
    torch_leaves=functools.partial(
      _leaves, design, f'{_TORCHVISION_BLOCK}.attn'
    ),
    torch_constants=functools.partial(_torchvision_constants, design),
    beside=(),
    crop=224 / short_side,
    weights=f'torchvision:{name}',
  )


def _transformers_spec(design: Design) -> ModelSpec:
  design = dataclasses.replace(design, library='transformers')
  return spec(
    design,
    torch_modules=functools.partial(_transformers_modules, design),
    torch_leaves=functools.partial(
      _leaves, design, f'{_TRANSFORMERS_BLOCK}.attention.self'
    ),
    old_keys=_IN_MEMORY,
    crop=1.0,
  )


def _variants() -> dict[str, ModelSpec]:
  variants = {}
  for size, design in _DESIGNS.items():
    tag, short_side = _PUBLISHED[size]
    short = f'swin_{size[0]}'
    variants[f'torchvision/{short}'] = _torchvision_spec(
      design, short_side, short
    )
    versions = {f'swin_{size}_patch4_window7_224': design}
    if size == 'base':
      wide = dataclasses.replace(design, window=12, native=384)
      versions[f'swin_{size}_patch4_window12_384'] = wide
    for name, version in versions.items():
      crop = 0.9 if version.native == 224 else 1.0
      variants[f'timm/{name}'] = spec(
        version, crop=crop, weights=f'timm:{name}.{tag}'
      )
      variants[f'transformers/{name}'] = _transformers_spec(version)
  return variants


VARIANTS: dict[str, ModelSpec] = _variants()
