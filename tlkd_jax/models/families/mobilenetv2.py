"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381).

The network is in `inverted.py`; here are its numbers and its torch names.
"""

from tlkd_jax.models.families import inverted
from tlkd_jax.models.families.inverted import Design, Row, round_channels
from tlkd_jax.models.spec import ModelSpec

_ROWS = tuple(
  (Row(3, *numbers),)
  for numbers in (
    (1, 1, 16, 1),
    (2, 6, 24, 2),
    (2, 6, 32, 3),
    (2, 6, 64, 4),
    (1, 6, 96, 3),
    (2, 6, 160, 3),
    (1, 6, 320, 1),
  )
)


def _design(
  width: float = 1.0,
  depth: float = 1.0,
  *,
  fixed_ends: bool = False,
  **conventions,
) -> Design:
  """With `fixed_ends`, stem, head and the outer stages' depth stay as at 1."""
  stem = 32 if fixed_ends else round_channels(32 * width)
  neck = 1280 if fixed_ends else max(1280, round_channels(1280 * width))
  return Design(
    stages=inverted.scale(
      _ROWS, stem, width=width, depth=depth, fixed_ends=fixed_ends
    ),
    stem=stem,
    neck=neck,
    dropout=0.2,
    activation='relu6',
    **conventions,
  )


def _torchvision_modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in torchvision, which numbers blocks throughout."""
  table = {'stem.conv': 'features.0.0', 'stem.norm': 'features.0.1'}
  index = 1
  for s, stage in enumerate(design.stages):
    for b, block in enumerate(stage):
      ours, theirs = f'blocks.{s}.{b}', f'features.{index}.conv'
      *parts, last = block.parts
      for i, part in enumerate(parts):
        table[f'{ours}.{part}.conv'] = f'{theirs}.{i}.0'
        table[f'{ours}.{part}.norm'] = f'{theirs}.{i}.1'
      table[f'{ours}.{last}.conv'] = f'{theirs}.{len(parts)}'
      table[f'{ours}.{last}.norm'] = f'{theirs}.{len(parts) + 1}'
      index += 1
  table['neck.conv'] = f'features.{index}.0'
  table['neck.norm'] = f'features.{index}.1'
  table['head'] = 'classifier.1'
  return table


# Design, default weights (timm 1.0; None: it has none).
_TIMM = {
  'mobilenetv2_035': (_design(0.35), None),
  'mobilenetv2_050': (_design(0.5), 'lamb_in1k'),
  'mobilenetv2_075': (_design(0.75), None),
  'mobilenetv2_100': (_design(), 'ra_in1k'),
  'mobilenetv2_110d': (_design(1.1, 1.2, fixed_ends=True), 'ra_in1k'),
  'mobilenetv2_120d': (_design(1.2, 1.4, fixed_ends=True), 'ra_in1k'),
  'mobilenetv2_140': (_design(1.4), 'ra_in1k'),
}

# Side and width of those that transformers has: Google's TensorFlow weights,
# whose classes are ImageNet's after one for the background.
_TRANSFORMERS = {
  '1.0_224': (224, 1.0),
  '1.4_224': (224, 1.4),
  '0.75_160': (160, 0.75),
  '0.35_96': (96, 0.35),
}
_TENSORFLOW = {'epsilon': 1e-3, 'padding': 'same'}

# torchvision's default weights are IMAGENET1K_V2.
VARIANTS: dict[str, ModelSpec] = {
  'torchvision/mobilenet_v2': inverted.spec(
    _design(),
    _torchvision_modules,
    image_size=224,
    crop=224 / 232,
    interpolation='bilinear',
  ),
  **{
    f'timm/{name}': inverted.spec(
      design,
      inverted.timm_modules,
      image_size=224,
      weights=f'timm:{name}.{tag}' if tag else None,
    )
    for name, (design, tag) in _TIMM.items()
  },
  **{
    f'transformers/mobilenet_v2_{name}': inverted.spec(
      _design(width, **_TENSORFLOW),
      inverted.timm_modules,
      image_size=size,
      crop=size / (size + 32),
      interpolation='bilinear',
      mean=(127.5,) * 3,
      std=(127.5,) * 3,
    )
    for name, (size, width) in _TRANSFORMERS.items()
  },
}
