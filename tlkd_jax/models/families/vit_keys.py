"""Names of a Vision Transformer's weights in timm's files, and its spec."""

import functools
from collections.abc import Callable

import numpy as np

from tlkd_jax.models.families.vit import Design, VisionTransformer
from tlkd_jax.models.spec import ModelSpec, TorchLeaf

Modules = Callable[[Design], dict[str, str]]
Leaves = Callable[[Design], dict[str, TorchLeaf]]

HALF = {'mean': (127.5,) * 3, 'std': (127.5,) * 3}

_BLOCK = {
  'norm1': 'norm1',
  'attention.qkv': 'attn.qkv',
  'attention.project': 'attn.proj',
  'norm2': 'norm2',
  'expand': 'mlp.fc1',
  'project': 'mlp.fc2',
}
_POOL = {
  'pool.query': 'attn_pool.q',
  'pool.key_value': 'attn_pool.kv',
  'pool.attended': 'attn_pool.proj',
  'pool.norm': 'attn_pool.norm',
  'pool.expand': 'attn_pool.mlp.fc1',
  'pool.project': 'attn_pool.mlp.fc2',
}


def plain_leaf(key: str) -> TorchLeaf:
  """An entry that has our layout."""
  return TorchLeaf(key, lambda x: x, lambda x: x)


def in_blocks(
  design: Design, parts: dict[str, str], prefix: str
) -> dict[str, str]:
  """Submodule -> prefix, for the parts of every block.

  Args:
    design: says how many blocks there are.
    parts: names in a block, ours -> theirs.
    prefix: of a block, with {} for its number.
  """
  return {
    f'blocks.{i}.{ours}': f'{prefix.format(i)}.{theirs}'
    for i in range(design.depth)
    for ours, theirs in parts.items()
  }


def timm_modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in timm's VisionTransformer."""
  table = {
    'patch': 'patch_embed.proj',
    'norm': 'fc_norm' if design.norm_after_pool else 'norm',
    'head': 'head',
  }
  if design.pre_norm:
    table['pre_norm'] = 'norm_pre'
  if design.distilled:
    table['head_distillation'] = 'head_dist'
  if design.pool == 'attention':
    table |= _POOL
  parts = dict(_BLOCK)
  if design.layer_scale:
    parts |= {'scale1': 'ls1', 'scale2': 'ls2'}
  return table | in_blocks(design, parts, 'blocks.{}')


def timm_leaves(design: Design) -> dict[str, TorchLeaf]:
  """Parameter -> entry of timm's VisionTransformer."""
  del design
  return {
    'class_token': plain_leaf('cls_token'),
    'distillation_token': plain_leaf('dist_token'),
    'register_tokens': plain_leaf('reg_token'),
    'position': plain_leaf('pos_embed'),
    'pool.latent': plain_leaf('attn_pool.latent'),
  }


def row_leaf(key: str) -> TorchLeaf:
  """One row [D] that we have as [1, 1, D]."""
  return TorchLeaf(key, lambda x: x[None, None], lambda x: x[0, 0])


def table_leaf(key: str) -> TorchLeaf:
  """An embedding [N, D] that we have as [1, N, D]."""
  return TorchLeaf(key, lambda x: x[None], lambda x: x[0])


def linear_leaf(key: str) -> TorchLeaf:
  """A linear layer's weight [out, in]."""
  return TorchLeaf(key, np.transpose, np.transpose)


def spec(
  design: Design,
  modules: Modules = timm_modules,
  leaves: Leaves = timm_leaves,
  **fields,
) -> ModelSpec:
  """A variant of these numbers, with timm's keys and preprocessing.

  Args:
    design: its numbers.
    modules: submodule -> prefix, of a design.
    leaves: parameter -> entry, of a design.
    **fields: of ModelSpec, where they are others.
  """
  heads = ('head', 'head_distillation') if design.distilled else ('head',)
  defaults = {
    'image_size': design.image_size,
    'multiple': 1 if design.crops else design.patch,
    'crop': 0.9,
    'head': heads,
    'embeddings': design.embeddings,
    'distilled': design.distilled,
  }
  return ModelSpec(
    build=functools.partial(VisionTransformer, design),
    stem='patch',
    torch_modules=functools.partial(modules, design),
    torch_leaves=functools.partial(leaves, design),
    **{**defaults, **fields},
  )
