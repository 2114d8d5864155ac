"""Checkpoints under other names than the variant's own.

Recognises files of Hugging Face's transformers (ResNet, RegNet, ViT, DeiT,
DINOv2, DINOv3, CLIP, SigLIP, Swin, ConvNeXt, EfficientNet, MobileNetV2), as
stored and as version 5 names them in memory, and the older names that a
variant's spec lists.
`pretrained.from_torch` then checks the result strictly.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tlkd_jax.models import MODELS, create_model
from tlkd_jax.models.families.clip import OTHER_TOWER
from tlkd_jax.models.weights import twins

StateDict = dict[str, np.ndarray]
Rule = tuple[str, str | Callable[[re.Match], str]]


def _plus_one(form: str, groups: int = 1) -> Callable[[re.Match], str]:
  """A replacement that counts the first groups from one."""

  def replace(match):
    found = match.groups()
    counted = [int(group) + 1 for group in found[:groups]]
    return form.format(*counted, *found[groups:])

  return replace


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

# Meta's own names are timm's but for the registers.
_DINOV2: tuple[Rule, ...] = (
  (r'^dinov2(_with_registers)?\.', ''),
  (r'^embeddings\.mask_token$', 'mask_token'),
  (r'^(embeddings\.)?register_tokens$', 'reg_token'),
  (r'\.layer_scale([12])\.lambda1$', r'.ls\1.gamma'),
  *_VIT,
)

_CLIP: tuple[Rule, ...] = (
  (r'^vision_model\.', ''),
  (r'^embeddings\.class_embedding$', 'cls_token'),
  (r'^embeddings\.position_embedding\.weight$', 'pos_embed'),
  (r'^embeddings\.patch_embedding\.', 'patch_embed.proj.'),
  (r'^pre_layrnorm\.', 'norm_pre.'),
  (r'^encoder\.layers\.(\d+)\.', r'blocks.\1.'),
  (r'\.self_attn\.([qkv])_proj\.', r'.attn.\1.'),
  (r'\.self_attn\.out_proj\.', '.attn.proj.'),
  (r'\.layer_norm([12])\.', r'.norm\1.'),
  (r'^post_layernorm\.', 'norm.'),
  (r'^head\.probe$', 'attn_pool.latent'),
  (r'^head\.attention\.in_proj_', 'attn_pool.qkv.'),
  (r'^head\.attention\.out_proj\.', 'attn_pool.proj.'),
  (r'^head\.layernorm\.', 'attn_pool.norm.'),
  (r'^head\.mlp\.', 'attn_pool.mlp.'),
  (r'^(visual_projection|classifier)\.', 'head.'),
)

_CONVNEXT: tuple[Rule, ...] = (
  (r'^convnext(v2)?\.', ''),
  (r'^embeddings\.patch_embeddings\.', 'stem.0.'),
  (r'^embeddings\.layernorm\.', 'stem.1.'),
  (r'^encoder\.stages\.(\d)\.downsampling_layer\.', r'stages.\1.downsample.'),
  (r'^encoder\.stages\.(\d)\.layers\.', r'stages.\1.blocks.'),
  (r'\.layer_scale_parameter$', '.gamma'),
  (r'\.dwconv\.', '.conv_dw.'),
  (r'\.pwconv([12])\.', r'.mlp.fc\1.'),
  (r'(?<!\.mlp)\.grn\.', '.mlp.grn.'),
  (r'^layernorm\.', 'head.norm.'),
  (r'\.layernorm\.', '.norm.'),
  (r'^classifier\.', 'head.fc.'),
)

_DINOV3_CONVNEXT: tuple[Rule, ...] = (
  (r'^(dinov3_convnext\.)?(model\.)?', ''),
  (r'^stages\.0\.downsample_layers\.', 'stem.'),
  (r'\.downsample_layers\.', '.downsample.'),
  (r'^stages\.(\d)\.layers\.', r'stages.\1.blocks.'),
  (r'\.depthwise_conv\.', '.conv_dw.'),
  (r'\.pointwise_conv([12])\.', r'.mlp.fc\1.'),
  (r'^layer_norm\.', 'head.norm.'),
  (r'\.layer_norm\.', '.norm.'),
  (r'^classifier\.', 'head.fc.'),
)

_DINOV3_VIT: tuple[Rule, ...] = (
  (r'^(dinov3_vit\.)?(model\.)?', ''),
  (r'^embeddings\.(cls|mask)_token$', r'\1_token'),
  (r'^embeddings\.register_tokens$', 'reg_token'),
  (r'^embeddings\.patch_embeddings\.', 'patch_embed.proj.'),
  (r'^layer\.(\d+)\.', r'blocks.\1.'),
  (r'\.attention\.([qv])_proj\.bias$', r'.attn.\1_bias'),
  (r'\.attention\.([qkv])_proj\.', r'.attn.\1.'),
  (r'\.attention\.o_proj\.', '.attn.proj.'),
  (r'\.layer_scale([12])\.lambda1$', r'.gamma_\1'),
  (r'\.mlp\.up_proj\.', '.mlp.fc1.'),
  (r'\.mlp\.down_proj\.', '.mlp.fc2.'),
  (r'^classifier\.', 'head.'),
)
_DINOV3_VIT_GATED: tuple[Rule, ...] = (
  (r'\.mlp\.gate_proj\.', '.mlp.fc1_g.'),
  (r'\.mlp\.up_proj\.', '.mlp.fc1_x.'),
  *_DINOV3_VIT,
)

_SWIN: tuple[Rule, ...] = (
  (r'^swin\.', ''),
  (r'^embeddings\.patch_embeddings\.projection\.', 'patch_embed.proj.'),
  (r'^embeddings\.norm\.', 'patch_embed.norm.'),
  (r'^encoder\.', ''),
  # There it ends a stage, in timm it begins the next.
  (r'^layers\.(\d)\.downsample\.', _plus_one('layers.{}.downsample.')),
  (r'\.attention\.(?:self\.)?([qkv])(?:uery|ey|alue|_proj)\.', r'.attn.\1.'),
  (r'\.attention\.(?:output\.dense|o_proj)\.', '.attn.proj.'),
  (r'\.attention\.(?:self|relative_position_bias)\.', '.attn.'),
  (r'\.intermediate\.dense\.', '.mlp.fc1.'),
  (r'\.output\.dense\.', '.mlp.fc2.'),
  (r'\.layernorm_before\.', '.norm1.'),
  (r'\.layernorm_after\.', '.norm2.'),
  (r'^layernorm\.', 'norm.'),
  (r'^classifier\.', 'head.fc.'),
)
# Names in the files of the paper's authors.
_FIRST_SWIN: tuple[Rule, ...] = (
  (r'^layers\.(\d)\.downsample\.', _plus_one('layers.{}.downsample.')),
  (r'^head\.(weight|bias)$', r'head.fc.\1'),
)

_REGNET: tuple[Rule, ...] = (
  (r'^regnet\.', ''),
  (r'^embedder\.embedder\.convolution\.', 'stem.conv.'),
  (r'^embedder\.embedder\.normalization\.', 'stem.bn.'),
  (r'^encoder\.stages\.(\d+)\.layers\.(\d+)\.', _plus_one('s{}.b{}.', 2)),
  (r'\.layer\.2\.attention\.0\.', '.se.fc1.'),
  (r'\.layer\.2\.attention\.2\.', '.se.fc2.'),
  # The last is at 2 in an X block, at 3 behind squeeze-excite in a Y block.
  (r'\.layer\.3\.', '.layer.2.'),
  (r'\.layer\.(\d)\.convolution\.', _plus_one('.conv{}.conv.')),
  (r'\.layer\.(\d)\.normalization\.', _plus_one('.conv{}.bn.')),
  (r'\.shortcut\.convolution\.', '.downsample.conv.'),
  (r'\.shortcut\.normalization\.', '.downsample.bn.'),
  (r'^classifier\.1\.', 'head.fc.'),
)


def _block(counts: tuple[int, ...], number: int) -> str:
  """timm's name of a block that is numbered throughout: 'blocks.2.0'."""
  stage = 0
  while number >= counts[stage]:
    number -= counts[stage]
    stage += 1
  return f'blocks.{stage}.{number}'


def _mobilenetv2(counts: tuple[int, ...]) -> tuple[Rule, ...]:
  return (
    (r'^mobilenet_v2\.', ''),
    (r'^conv_stem\.first_conv\.convolution\.', 'conv_stem.'),
    (r'^conv_stem\.first_conv\.normalization\.', 'bn1.'),
    (r'^conv_stem\.conv_3x3\.convolution\.', 'blocks.0.0.conv_dw.'),
    (r'^conv_stem\.conv_3x3\.normalization\.', 'blocks.0.0.bn1.'),
    (r'^conv_stem\.reduce_1x1\.convolution\.', 'blocks.0.0.conv_pw.'),
    (r'^conv_stem\.reduce_1x1\.normalization\.', 'blocks.0.0.bn2.'),
    # The first block is in the stem.
    (
      r'^layer\.(\d+)\.',
      lambda match: f'{_block(counts, int(match[1]) + 1)}.',
    ),
    (r'\.expand_1x1\.convolution\.', '.conv_pw.'),
    (r'\.expand_1x1\.normalization\.', '.bn1.'),
    (r'\.conv_3x3\.convolution\.', '.conv_dw.'),
    (r'\.conv_3x3\.normalization\.', '.bn2.'),
    (r'\.reduce_1x1\.convolution\.', '.conv_pwl.'),
    (r'\.reduce_1x1\.normalization\.', '.bn3.'),
    (r'^conv_1x1\.convolution\.', 'conv_head.'),
    (r'^conv_1x1\.normalization\.', 'bn2.'),
  )


def _efficientnet(counts: tuple[int, ...]) -> tuple[Rule, ...]:
  # The first stage's blocks do not expand.
  first = r'^(blocks\.0\.\d+)\.'
  return (
    (r'^efficientnet\.', ''),
    (r'^embeddings\.convolution\.', 'conv_stem.'),
    (r'^embeddings\.batchnorm\.', 'bn1.'),
    (
      r'^encoder\.blocks\.(\d+)\.',
      lambda match: f'{_block(counts, int(match[1]))}.',
    ),
    (first + r'depthwise_conv\.depthwise_norm\.', r'\1.bn1.'),
    (first + r'projection\.project_conv\.', r'\1.conv_pw.'),
    (first + r'projection\.project_bn\.', r'\1.bn2.'),
    (r'\.expansion\.expand_conv\.', '.conv_pw.'),
    (r'\.expansion\.expand_bn\.', '.bn1.'),
    (r'\.depthwise_conv\.depthwise_conv\.', '.conv_dw.'),
    (r'\.depthwise_conv\.depthwise_norm\.', '.bn2.'),
    (r'\.squeeze_excite\.reduce\.', '.se.conv_reduce.'),
    (r'\.squeeze_excite\.expand\.', '.se.conv_expand.'),
    (r'\.projection\.project_conv\.', '.conv_pwl.'),
    (r'\.projection\.project_bn\.', '.bn3.'),
    (r'^encoder\.top_conv\.', 'conv_head.'),
    (r'^encoder\.top_bn\.', 'bn2.'),
  )


# A key that only such a file has -> model_type, and its renaming to timm's
# keys, for some by the number of blocks in each stage.
_HUGGING_FACE: dict[str, tuple[str, Any]] = {
  r'^(resnet\.)?embedder\.embedder\.convolution\.weight$': ('resnet', _RESNET),
  r'^(regnet\.)?embedder\.embedder\.convolution\.weight$': ('regnet', _REGNET),
  # Before ViT, whose names it has too.
  r'^(dinov2(_with_registers)?\.)?encoder\.layer\.0\.layer_scale1\.': (
    'dinov2',
    _DINOV2,
  ),
  r'^((vit|deit)\.)?embeddings\.patch_embeddings\.projection\.weight$': (
    'vit',
    _VIT,
  ),
  r'^(vision_model\.)?pre_layrnorm\.': ('clip', _CLIP),
  r'^(vision_model\.)?head\.probe$': ('siglip', _CLIP),
  r'^(convnext(v2)?\.)?embeddings\.layernorm\.weight$': (
    'convnext',
    _CONVNEXT,
  ),
  r'^(dinov3_convnext\.)?(model\.)?stages\.0\.downsample_layers\.': (
    'dinov3_convnext',
    _DINOV3_CONVNEXT,
  ),
  r'^(dinov3_vit\.)?(model\.)?layer\.0\.mlp\.gate_proj\.weight$': (
    'dinov3_vit',
    _DINOV3_VIT_GATED,
  ),
  r'^(dinov3_vit\.)?(model\.)?layer\.0\.layer_scale1\.lambda1$': (
    'dinov3_vit',
    _DINOV3_VIT,
  ),
  r'^(swin\.)?embeddings\.norm\.weight$': ('swin', _SWIN),
  r'^(mobilenet_v2\.)?conv_stem\.first_conv\.convolution\.weight$': (
    'mobilenet_v2',
    _mobilenetv2,
  ),
  r'^(efficientnet\.)?embeddings\.convolution\.weight$': (
    'efficientnet',
    _efficientnet,
  ),
}


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
    for marker, style in _HUGGING_FACE.items()
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
    if rules is _CLIP:
      state_dict = _images_tower(state_dict)
    state_dict = {
      key: value
      for key, value in _renamed(state_dict, rules).items()
      if not key.startswith('pooler.') and key != 'mask_token'
    }
    state_dict = _join_projections(state_dict)
    if rules is _CLIP:
      state_dict = _as_timms_tower(state_dict)
    timm = twins.timm_name(name)
    if timm not in (None, twins.full_name(name)):
      source, target = create_model(timm), create_model(name)
      state_dict = twins.rename(source, target, state_dict)
  elif 'layers.0.downsample.reduction.weight' in state_dict:
    state_dict = _renamed(state_dict, _FIRST_SWIN)
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
