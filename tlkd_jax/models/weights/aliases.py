"""Checkpoints under other names than the variant's own.

Recognises files of Hugging Face's transformers (ResNet, RegNet, ViT, DeiT,
DINOv2, DINOv3, CLIP, SigLIP, Swin, ConvNeXt, EfficientNet, MobileNetV2), as
stored and as version 5 names them in memory, those of open_clip's CLIP, and the
older names that a variant's spec lists.
`pretrained.from_torch` then checks the result strictly.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tlkd_jax.models import MODELS, create_model
from tlkd_jax.models.families.clip import OTHER_TOWER
from tlkd_jax.models.weights import twins
from tlkd_jax.models.weights.transformers_keys import (
  CLIP,
  FIRST_SWIN,
  HUGGING_FACE,
  OPEN_CLIP,
  Rule,
)

StateDict = dict[str, np.ndarray]


def model_type(name: str, state_dict: Mapping[str, Any]) -> str | None:
  """What transformers calls a file's network, by its keys; else None."""
  found = _style(name, state_dict)
  if found is None:
    return None
  if any('distillation_token' in key for key in state_dict):
    return 'deit'
  if found[0] == 'dinov2' and any('register' in key for key in state_dict):
    return 'dinov2_with_registers'
  second = any('.grn.' in key for key in state_dict)
  return 'convnextv2' if second else found[0]


def _style(name: str, state_dict: Mapping[str, Any]) -> tuple[str, Any] | None:
  if _has_own_keys(name, state_dict):
    return None
  found = [
    style
    for marker, style in HUGGING_FACE.items()
    if any(re.match(marker, key) for key in state_dict)
  ]
  # Names of DINOv2 are more than those of ViT.
  if found and found[0][0] == 'dinov2':
    return found[0]
  # Without their prefixes ResNet and RegNet look alike.
  ours = [style for style in found if style[0] in name]
  return next(iter(ours or found), None)


def _has_own_keys(name: str, state_dict: Mapping[str, Any]) -> bool:
  """Whether the stem of a file is named as that of the variant."""
  if name not in MODELS:
    return False
  spec = MODELS[name]
  own = f'{spec.torch_modules().get(spec.stem)}.weight'
  return any(_new_name(key, spec.old_keys) == own for key in state_dict)


def canonical_keys(name: str, state_dict: StateDict) -> StateDict:
  """Gives a file's entries the keys of a variant.

  Hugging Face's ViTs have separate query, key and value projections, which are
  joined, and may have a pooler over the class token, which no classifier uses
  and which is left out, as are a token for masked patches and a tower of texts.
  LayerNorms of its ViT have an epsilon of 1e-12 for timm's and torchvision's
  1e-6; 'transformers/NAME' variants compute with it. Those of DINOv2, DINOv3,
  CLIP, SigLIP and Swin have its names, and files of them are left as they are.

  Args:
    name: a key of MODELS.
    state_dict: names and arrays of a file, unwrapped (no `module.` prefix).

  Returns:
    A new dict. Entries of an unknown style keep their names, so that
    `pretrained.from_torch` names them in its error.

  Raises:
    ValueError: two entries would get the same name.
  """
  style = _style(name, state_dict)
  if style is not None:
    rules = style[1]
    if callable(rules):
      rules = rules(_repeats(name))
    if rules is CLIP:
      state_dict = _images_tower(state_dict)
    elif rules is OPEN_CLIP:
      state_dict = _open_images_tower(state_dict)
    state_dict = {
      key: value
      for key, value in _renamed(state_dict, rules).items()
      if not key.startswith('pooler.') and key != 'mask_token'
    }
    state_dict = _join_projections(state_dict)
    if rules in (CLIP, OPEN_CLIP):
      state_dict = _as_timms_tower(state_dict)
    timm = twins.timm_name(name)
    if timm not in (None, twins.full_name(name)):
      source, target = create_model(timm), create_model(name)
      state_dict = twins.rename(source, target, state_dict)
  elif 'layers.0.downsample.reduction.weight' in state_dict:
    state_dict = _renamed(state_dict, FIRST_SWIN)
  if name not in MODELS:
    return state_dict
  state_dict = _renamed(state_dict, MODELS[name].old_keys)
  return _folded_position(_same_dimensions(name, state_dict))


def _same_dimensions(name: str, state_dict: StateDict) -> StateDict:
  """Layouts that differ by axes of length 1 alone.

  timm's smaller ConvNeXts have 1x1 convolutions where others have linear
  layers; ConvNeXt V2's response norms are [C] or [1, 1, 1, C].
  """
  wide = {leaf.key for leaf in MODELS[name].torch_leaves().values()}
  result = dict(state_dict)
  for key, value in state_dict.items():
    if re.search(r'\.mlp\.fc[12]\.weight$', key) and key in wide:
      result[key] = value[:, :, None, None] if value.ndim == 2 else value
    elif re.search(r'\.mlp\.grn\.(weight|bias)$', key):
      result[key] = value.reshape(-1)
  return result


def _folded_position(state_dict: StateDict) -> StateDict:
  """A class token's position added to the token, where timm has registers."""
  position = state_dict.get('pos_embed')
  if position is None or not {'reg_token', 'cls_token'} <= state_dict.keys():
    return state_dict
  patches = position.shape[1] - 1
  if math.isqrt(patches) ** 2 != patches:
    return state_dict
  token = state_dict['cls_token'] + position[:, :1]
  return {**state_dict, 'cls_token': token, 'pos_embed': position[:, 1:]}


def _repeats(name: str) -> tuple[int, ...]:
  """Blocks of each stage of a variant."""
  paths = (MODELS[name].torch_modules() if name in MODELS else {}).keys()
  numbers = {
    tuple(map(int, match.groups()))
    for match in (re.match(r'blocks\.(\d+)\.(\d+)\.', path) for path in paths)
    if match
  }
  stages = 1 + max((stage for stage, _ in numbers), default=-1)
  counts = [sum(s == stage for s, _ in numbers) for stage in range(stages)]
  # More blocks than it has are in no stage of its own.
  return (*counts, 10**6)


def _new_name(key: str, rules: tuple[Rule, ...]) -> str:
  for pattern, replacement in rules:
    key = re.sub(pattern, replacement, key)
  return key


def _renamed(state_dict: StateDict, rules: tuple[Rule, ...]) -> StateDict:
  result = {}
  for key, value in state_dict.items():
    new = _new_name(key, rules)
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


def _images_tower(state_dict: StateDict) -> StateDict:
  """A CLIP or SigLIP without its tower of texts."""
  return {
    key: value
    for key, value in state_dict.items()
    if not any(re.search(pattern, key) for pattern in OTHER_TOWER)
  }


def _open_images_tower(state_dict: StateDict) -> StateDict:
  """The same of open_clip, whose projection is [width, embedding]."""
  return {
    key: value.T if key == 'visual.proj' else value
    for key, value in state_dict.items()
    if key.startswith('visual.')
  }


def _as_timms_tower(state_dict: StateDict) -> StateDict:
  """timm's shapes: tokens of rank 3, q apart from k and v, a head's bias."""
  result = dict(state_dict)
  for key in ('cls_token', 'pos_embed'):
    if key in result:
      value = result[key]
      result[key] = value.reshape(1, -1, value.shape[-1])
  for name in ('weight', 'bias'):
    value = result.pop(f'attn_pool.qkv.{name}', None)
    if value is not None:
      width = value.shape[0] // 3
      result[f'attn_pool.q.{name}'] = value[:width]
      result[f'attn_pool.kv.{name}'] = value[width:]
  # A projection of CLIP has none.
  if 'head.weight' in result and 'head.bias' not in result:
    weight = result['head.weight']
    result['head.bias'] = np.zeros(weight.shape[0], weight.dtype)
  return result
