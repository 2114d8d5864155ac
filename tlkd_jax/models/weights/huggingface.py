"""What the configuration of a transformers model says of the network.

`config.json` has no name of an architecture but its numbers. Shapes are
checked when weights are read; here are the fields that no shape shows.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

# Epsilons of layer norms up to this differ from each other by rounding.
_SMALL_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Network:
  """Variants that compute a model of transformers.

  Attributes:
    names: regular expression of their full names.
    fields: of config.json -> what it must be; the first is meant where it is
      missing.
  """

  names: str
  fields: Mapping[str, tuple[Any, ...]]


_VIT = {'hidden_act': ('gelu',), 'qkv_bias': (True,), 'patch_size': (16,)}
_CONVNEXT = {'hidden_act': ('gelu',), 'patch_size': (4,)}
_MOBILENET = {
  'hidden_act': ('relu6',),
  'output_stride': (32,),
  'first_layer_is_expansion': (True,),
}

_DINOV2 = {
  'hidden_act': ('gelu',),
  'patch_size': (14,),
  'qkv_bias': (True,),
  'use_swiglu_ffn': (False,),
  'layer_norm_eps': (1e-6,),
}


def _towers(
  names: str, sizes: Collection[str], activation: str, epsilon: float, **fields
) -> tuple[Network, ...]:
  """Image towers, one for each size such as 'base_patch16'."""
  return tuple(
    Network(
      names.format(size),
      {
        'hidden_act': (activation,),
        'patch_size': (int(size.partition('_patch')[2]),),
        'layer_norm_eps': (epsilon,),
        **fields,
      },
    )
    for size in sizes
  )


_CLIP_SIZES = ('base_patch32', 'base_patch16', 'large_patch14')
_CLIP = (
  *_towers(
    r'transformers/clip_vit_{0}(_336)?|timm/vit_{0}_clip_quickgelu_\d+',
    *(_CLIP_SIZES, 'quick_gelu', 1e-5),
  ),
  *_towers(
    r'transformers/clip_vit_{0}_laion2b|timm/vit_{0}_clip_\d+',
    *(_CLIP_SIZES, 'gelu', 1e-5),
  ),
)
_SIGLIP_FIELDS = ('gelu_pytorch_tanh', 1e-6)
_SIGLIP = (
  *_towers(
    r'transformers/siglip_{0}_\d+|timm/vit_{0}_siglip_\d+',
    ('base_patch32', 'so400m_patch16'),
    *_SIGLIP_FIELDS,
    vision_use_head=(True,),
  ),
  # timm computes the others but one with exact GELU.
  *_towers(
    r'transformers/siglip_{0}_\d+|timm/vit_large_patch16_siglip_512',
    ('large_patch16', 'base_patch16', 'so400m_patch14'),
    *_SIGLIP_FIELDS,
    vision_use_head=(True,),
  ),
)
_SIGLIP2 = _towers(
  r'transformers/siglip2_{}_naflex',
  ('base_patch16', 'so400m_patch16'),
  *_SIGLIP_FIELDS,
  vision_use_head=(True,),
)

_DINOV3_VIT = {
  'query_bias': (True,),
  'key_bias': (False,),
  'value_bias': (True,),
  'mlp_bias': (True,),
  'proj_bias': (True,),
  'rope_theta': (100.0,),
  'patch_size': (16,),
  'layer_norm_eps': (1e-5,),
}

# A model_type may stand for several networks.
NETWORKS: dict[str, tuple[Network, ...]] = {
  'resnet': (
    Network(
      r'(torchvision|timm)/resnet\d+',
      {
        'hidden_act': ('relu',),
        'downsample_in_first_stage': (False,),
        'downsample_in_bottleneck': (False,),
      },
    ),
  ),
  'regnet': (
    Network(
      r'(torchvision/regnet_[xy]_|timm/regnet[xy]_).*',
      {'hidden_act': ('relu',), 'downsample_in_first_stage': (True,)},
    ),
  ),
  # Its DeiT without a second token is called a ViT too.
  'vit': (
    Network(
      r'\w+/(vit_[a-z]+_patch16_224|vit_b_16|deit_[a-z]+_patch16_224)', _VIT
    ),
  ),
  'deit': (Network(r'\w+/deit_\w+_distilled_patch16_224', _VIT),),
  'dinov2': (
    Network(
      r'transformers/dinov2_[a-z]+(_imagenet1k_1_layer)?'
      r'|timm/vit_[a-z]+_patch14_dinov2',
      _DINOV2,
    ),
  ),
  'dinov2_with_registers': (
    Network(
      r'transformers/dinov2_with_registers_\w+'
      r'|timm/vit_[a-z]+_patch14_reg4_dinov2',
      _DINOV2,
    ),
  ),
  'clip': _CLIP,
  'clip_vision_model': _CLIP,
  'siglip': _SIGLIP,
  'siglip_vision_model': _SIGLIP,
  'siglip2': _SIGLIP2,
  'siglip2_vision_model': _SIGLIP2,
  'convnext': (Network(r'\w+/convnext_.*', _CONVNEXT),),
  'convnextv2': (Network(r'\w+/convnextv2_.*', _CONVNEXT),),
  # Read by a head, timm's and transformers' differ in how patches are pooled.
  'dinov3_vit': (
    Network(
      r'(timm/vit|transformers/dinov3_vit)_\w+_plus_patch16(_dinov3_qkvb)?',
      _DINOV3_VIT | {'hidden_act': ('silu',), 'use_gated_mlp': (True,)},
    ),
    Network(
      r'(timm/vit|transformers/dinov3_vit)_[a-z]+_patch16(_dinov3_qkvb)?',
      _DINOV3_VIT | {'hidden_act': ('gelu',), 'use_gated_mlp': (False,)},
    ),
  ),
  'dinov3_convnext': (
    Network(
      r'(timm/|transformers/dinov3_)convnext_(tiny|small|base|large)',
      {'hidden_act': ('gelu',)},
    ),
  ),
  'swin': (
    Network(
      r'(timm|transformers)/swin_.*',
      {
        'hidden_act': ('gelu',),
        'qkv_bias': (True,),
        'patch_size': (4,),
        'mlp_ratio': (4.0,),
        'use_absolute_embeddings': (False,),
        'layer_norm_eps': (1e-5,),
      },
    ),
  ),
  'efficientnet': (
    Network(
      r'timm/tf_efficientnet_b\d',
      {
        'hidden_act': ('swish', 'silu'),
        'pooling_type': ('mean',),
        'batch_norm_eps': (1e-3,),
      },
    ),
  ),
  'mobilenet_v2': (
    Network(
      r'transformers/mobilenet_v2_.*',
      _MOBILENET | {'tf_padding': (True,), 'layer_norm_eps': (1e-3,)},
    ),
    Network(
      r'(torchvision/mobilenet_v2|timm/mobilenetv2_\d+)',
      _MOBILENET | {'tf_padding': (False,), 'layer_norm_eps': (1e-5,)},
    ),
  ),
}
# Where transformers means another value than the first above.
_DEFAULTS = {'mobilenet_v2': {'tf_padding': True, 'layer_norm_eps': 1e-3}}


def _of_images(config: Mapping[str, Any]) -> dict[str, Any]:
  """Without a tower of texts, and with what transformers leaves unsaid."""
  flat = {**config, **(config.get('vision_config') or {})}
  if len(config) > 1 and config['model_type'].startswith('clip'):
    flat = {'hidden_act': 'quick_gelu', 'patch_size': 32, **flat}
  return flat


def differences(config: Mapping[str, Any], names: Collection[str]) -> list[str]:
  """What keeps a model of transformers from being a variant.

  Args:
    config: the content of config.json; {'model_type': ...} is enough.
    names: full names of the variant and its twins.

  Returns:
    A clause for each difference, [] where nothing is known against it.
  """
  kind = config.get('model_type')
  if kind not in NETWORKS:
    return [f'its model_type is {kind!r}; read are {", ".join(NETWORKS)}']
  matching = [
    network
    for network in NETWORKS[kind]
    if any(re.fullmatch(network.names, name) for name in names)
  ]
  if not matching:
    return [f'its model_type is {kind!r}']
  found = []
  config = _of_images(config)
  for field, accepted in matching[0].fields.items():
    default = _DEFAULTS.get(kind, {}).get(field, accepted[0])
    value = config.get(field, default)
    if value not in accepted:
      shown = ' or '.join(map(repr, accepted))
      found.append(f'its {field} is {value!r}, here {shown}')
  epsilon = config.get('layer_norm_eps', 0.0)
  if 'layer_norm_eps' not in matching[0].fields and (
    not isinstance(epsilon, float | int) or epsilon > _SMALL_EPSILON
  ):
    found.append(f'its layer_norm_eps is {epsilon!r}, here 1e-06')
  return found


def variants_of(config: Mapping[str, Any], names: Collection[str]) -> list[str]:
  """Those of some full names that a model of transformers may be."""
  return [name for name in names if not differences(config, [name])]
