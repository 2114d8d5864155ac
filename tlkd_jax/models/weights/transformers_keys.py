"""How transformers names the weights that timm names otherwise, as rules.

Each is a regular expression and what stands for what it finds; they are applied
in order. `aliases` decides which of them a file needs.
"""

import re
from collections.abc import Callable
from typing import Any

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

CLIP: tuple[Rule, ...] = (
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

# OpenAI's own names and open_clip's, of the image tower alone.
OPEN_CLIP: tuple[Rule, ...] = (
  (r'^visual\.', ''),
  (r'^class_embedding$', 'cls_token'),
  (r'^positional_embedding$', 'pos_embed'),
  (r'^conv1\.', 'patch_embed.proj.'),
  (r'^ln_pre\.', 'norm_pre.'),
  (r'^ln_post\.', 'norm.'),
  (r'^transformer\.resblocks\.', 'blocks.'),
  (r'\.ln_([12])\.', r'.norm\1.'),
  (r'\.attn\.in_proj_', '.attn.qkv.'),
  (r'\.attn\.out_proj\.', '.attn.proj.'),
  (r'\.mlp\.c_fc\.', '.mlp.fc1.'),
  (r'\.mlp\.c_proj\.', '.mlp.fc2.'),
  (r'^proj$', 'head.weight'),
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
FIRST_SWIN: tuple[Rule, ...] = (
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
HUGGING_FACE: dict[str, tuple[str, Any]] = {
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
  r'^(vision_model\.)?pre_layrnorm\.': ('clip', CLIP),
  r'^(vision_model\.)?head\.probe$': ('siglip', CLIP),
  r'^visual\.class_embedding$': ('clip', OPEN_CLIP),
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
