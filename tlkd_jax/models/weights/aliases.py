"""Checkpoints under other names than the variant's own.

Recognises files of Hugging Face's transformers (ResNet, ViT, DeiT, ConvNeXt),
as stored and as version 5 names them in memory, and the older names that a
variant's spec lists. `pretrained.from_torch` then checks the result strictly.
"""

import re
from collections.abc import Callable

import numpy as np

from tlkd_jax.models import MODELS, create_model
from tlkd_jax.models.weights import twins

StateDict = dict[str, np.ndarray]
Rule = tuple[str, str | Callable[[re.Match], str]]


def _plus_one(form: str) -> Callable[[re.Match], str]:
  """A replacement that counts the first group from one."""
  return lambda match: form.format(int(match[1]) + 1, *match.groups()[1:])


_RESNET: tuple[Rule, ...] = (
  (r'^resnet\.', ''),
  (r'^embedder\.embedder\.convolution\.', 'conv1.'),
  (r'^embedder\.embedder\.normalization\.', 'bn1.'),
  (r'^encoder\.stages\.(\d+)\.layers\.(\d+)\.', _plus_one('layer{}.{}.')),
  (r'\.layer\.(\d)\.convolution\.', _plus_one('.conv{}.')),
  (r'\.layer\.(\d)\.normalization\.', _plus_one('.bn{}.')),
  (r'\.shortcut\.convolution\.', '.downsample.0.'),
  (r'\.shortcut\.normalization\.', '.downsample.1.'),
  (r'^classifier\.1\.', 'fc.'),
)

_VIT: tuple[Rule, ...] = (
  (r'^(vit|deit)\.', ''),
  (r'^embeddings\.cls_token$', 'cls_token'),
  (r'^embeddings\.distillation_token$', 'dist_token'),
  (r'^embeddings\.position_embeddings$', 'pos_embed'),
  (r'^embeddings\.patch_embeddings\.projection\.', 'patch_embed.proj.'),
  (r'^(?:encoder\.layer|layers)\.(\d+)\.', r'blocks.\1.'),
  (
    r'\.attention\.(?:attention\.)?([qkv])(?:uery|ey|alue|_proj)\.',
    r'.attn.\1.',
  ),
  (r'\.attention\.(?:output\.dense|o_proj)\.', '.attn.proj.'),
  (r'\.intermediate\.dense\.', '.mlp.fc1.'),
  (r'\.output\.dense\.', '.mlp.fc2.'),
  (r'\.layernorm_before\.', '.norm1.'),
  (r'\.layernorm_after\.', '.norm2.'),
  (r'^layernorm\.', 'norm.'),
  (r'^(cls_)?classifier\.', 'head.'),
  (r'^distillation_classifier\.', 'head_dist.'),
)

_CONVNEXT: tuple[Rule, ...] = (
  (r'^convnext\.', ''),
  (r'^embeddings\.patch_embeddings\.', 'stem.0.'),
  (r'^embeddings\.layernorm\.', 'stem.1.'),
  (r'^encoder\.stages\.(\d)\.downsampling_layer\.', r'stages.\1.downsample.'),
  (r'^encoder\.stages\.(\d)\.layers\.', r'stages.\1.blocks.'),
  (r'\.layer_scale_parameter$', '.gamma'),
  (r'\.dwconv\.', '.conv_dw.'),
  (r'\.pwconv([12])\.', r'.mlp.fc\1.'),
  (r'^layernorm\.', 'head.norm.'),
  (r'\.layernorm\.', '.norm.'),
  (r'^classifier\.', 'head.fc.'),
)

# A key that only such a file has -> its renaming to timm's keys.
_HUGGING_FACE: dict[str, tuple[Rule, ...]] = {
  r'^(resnet\.)?embedder\.embedder\.convolution\.weight$': _RESNET,
  r'^((vit|deit)\.)?embeddings\.patch_embeddings\.projection\.weight$': _VIT,
  r'^(convnext\.)?embeddings\.patch_embeddings\.weight$': _CONVNEXT,
}


def canonical_keys(name: str, state_dict: StateDict) -> StateDict:
  """Gives a file's entries the keys of a variant.

  Hugging Face's ViT has separate query, key and value projections, which are
  joined, and may have a pooler over the class token, which no classifier uses
  and which is left out. Its LayerNorms have an epsilon of 1e-12 for timm's and
  torchvision's 1e-6; 'transformers/NAME' variants compute with it.

  Args:
    name: a key of MODELS.
    state_dict: names and arrays of a file, unwrapped (no `module.` prefix).

  Returns:
    A new dict. Entries of an unknown style keep their names, so that
    `pretrained.from_torch` names them in its error.

  Raises:
    ValueError: two entries would get the same name.
  """
  for marker, rules in _HUGGING_FACE.items():
    if any(re.match(marker, key) for key in state_dict):
      state_dict = {
        key: value
        for key, value in _renamed(state_dict, rules).items()
        if not key.startswith('pooler.')
      }
      state_dict = _join_projections(state_dict)
      timm = twins.timm_name(name)
      if timm not in (None, twins.full_name(name)):
        source, target = create_model(timm), create_model(name)
        state_dict = twins.rename(source, target, state_dict)
      break
  old_keys = MODELS[name].old_keys if name in MODELS else ()
  return _renamed(state_dict, old_keys)


def _renamed(state_dict: StateDict, rules: tuple[Rule, ...]) -> StateDict:
  result = {}
  for key, value in state_dict.items():
    new = key
    for pattern, replacement in rules:
      new = re.sub(pattern, replacement, new)
    if new in result:
      raise ValueError(f'two entries of the file mean {new}, one is {key}')
    result[new] = value
  return result


def _join_projections(state_dict: StateDict) -> StateDict:
  """Stacks `attn.q`, `attn.k`, `attn.v` into `attn.qkv`."""
  result = dict(state_dict)
  for key in state_dict:
    parts = [key.replace('.attn.q.', f'.attn.{part}.') for part in 'qkv']
    if '.attn.q.' in key and all(part in state_dict for part in parts):
      values = [result.pop(part) for part in parts]
      result[key.replace('.attn.q.', '.attn.qkv.')] = np.concatenate(values)
  return result
