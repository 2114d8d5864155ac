"""MobileNetV3 large and small (Howard et al. 2019, arXiv 1905.02244).

The network is in `inverted.py`; here are its numbers and its torch names.
"""

from tlkd_jax.models.families import inverted
from tlkd_jax.models.families.inverted import Design, Row, round_channels
from tlkd_jax.models.spec import ModelSpec, TorchLeaf, pointwise_leaf

_HALF = {'mean': (127.5,) * 3, 'std': (127.5,) * 3, 'interpolation': 'bilinear'}
_SE = 0.25

_LARGE = (
  (Row(3, 1, 1, 16, 1, 0.0, 'relu'),),
  (Row(3, 2, 4, 24, 1, 0.0, 'relu'), Row(3, 1, 3, 24, 1, 0.0, 'relu')),
  (Row(5, 2, 3, 40, 3, _SE, 'relu'),),
  (
    Row(3, 2, 6, 80, 1, 0.0, 'hard_swish'),
    Row(3, 1, 2.5, 80, 1, 0.0, 'hard_swish'),
    Row(3, 1, 2.3, 80, 2, 0.0, 'hard_swish'),
  ),
  (Row(3, 1, 6, 112, 2, _SE, 'hard_swish'),),
  (Row(5, 2, 6, 160, 3, _SE, 'hard_swish'),),
)
_SMALL = (
  (Row(3, 2, 1, 16, 1, _SE, 'relu'),),
  (Row(3, 2, 4.5, 24, 1, 0.0, 'relu'), Row(3, 1, 3.67, 24, 1, 0.0, 'relu')),
  (
    Row(5, 2, 4, 40, 1, _SE, 'hard_swish'),
    Row(5, 1, 6, 40, 2, _SE, 'hard_swish'),
  ),
  (Row(5, 1, 3, 48, 2, _SE, 'hard_swish'),),
  (Row(5, 2, 6, 96, 3, _SE, 'hard_swish'),),
)


def _design(size: str, width: float = 1.0, **conventions) -> Design:
  """The stem has 16 channels at every width that is published."""
  rows, neck, hidden = {
    'large': (_LARGE, 960, 1280),
    'small': (_SMALL, 576, 1024),
  }[size]
  return Design(
    stages=inverted.scale(rows, 16, width=width, squeeze_hidden=True),
    stem=16,
    neck=round_channels(neck * width),
    hidden=hidden,
    dropout=0.2,
    activation='hard_swish',
    squeeze_activation='relu',
    gate='hard_sigmoid',
    **conventions,
  )


def _torchvision_modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in torchvision, which numbers blocks throughout."""
  table = {'stem.conv': 'features.0.0', 'stem.norm': 'features.0.1'}
  index = 1
  for s, stage in enumerate(design.stages):
    for b, block in enumerate(stage):
      theirs = f'features.{index}.block'
      table |= inverted.torchvision_block(f'blocks.{s}.{b}', theirs, block)
      index += 1
  table['neck.conv'] = f'features.{index}.0'
  table['neck.norm'] = f'features.{index}.1'
  table['hidden'], table['head'] = 'classifier.0', 'classifier.3'
  return table


def _timm_modules(design: Design) -> dict[str, str]:
  """Submodule -> prefix in timm, where the last stage is our neck."""
  neck = f'blocks.{len(design.stages)}.0'
  return inverted.timm_modules(design) | {
    'neck.conv': f'{neck}.conv',
    'neck.norm': f'{neck}.bn1',
    'hidden': 'conv_head',
  }


def _timm_leaves() -> dict[str, TorchLeaf]:
  return {'hidden.kernel': pointwise_leaf('conv_head.weight')}


def _torchvision_spec(size: str, resize: int) -> ModelSpec:
  return inverted.spec(
    _design(size, epsilon=1e-3, momentum=0.01),
    _torchvision_modules,
    image_size=224,
    crop=224 / resize,
    interpolation='bilinear',
  )


def _timm_spec(
  name: str, design: Design, tag: str | None, **fields
) -> ModelSpec:
  return inverted.spec(
    design,
    _timm_modules,
    torch_leaves=_timm_leaves,
    image_size=224,
    weights=f'timm:{name}.{tag}' if tag else None,
    **fields,
  )


_TENSORFLOW = {'epsilon': 1e-3, 'padding': 'same'}

# Design, default weights (None: timm has none), fields that differ (timm 1.0).
_TIMM = {
  'mobilenetv3_large_075': (
    _design('large', 0.75),
    None,
    {'interpolation': 'bilinear'},
  ),
  'mobilenetv3_large_100': (_design('large'), 'ra_in1k', {}),
  'mobilenetv3_small_050': (_design('small', 0.5), 'lamb_in1k', {}),
  'mobilenetv3_small_075': (_design('small', 0.75), 'lamb_in1k', {}),
  'mobilenetv3_small_100': (_design('small'), 'lamb_in1k', {}),
  'tf_mobilenetv3_large_075': (
    (_design('large', 0.75, **_TENSORFLOW), 'in1k', _HALF)
  ),
  'tf_mobilenetv3_large_100': (
    (_design('large', **_TENSORFLOW), 'in1k', _HALF)
  ),
  'tf_mobilenetv3_small_075': (
    (_design('small', 0.75, **_TENSORFLOW), 'in1k', _HALF)
  ),
  'tf_mobilenetv3_small_100': (
    (_design('small', **_TENSORFLOW), 'in1k', _HALF)
  ),
}

# torchvision's default weights: large IMAGENET1K_V2, small V1.
VARIANTS: dict[str, ModelSpec] = {
  'torchvision/mobilenet_v3_large': _torchvision_spec('large', 232),
  'torchvision/mobilenet_v3_small': _torchvision_spec('small', 256),
  **{
    f'timm/{name}': _timm_spec(name, design, tag, **fields)
    for name, (design, tag, fields) in _TIMM.items()
  },
}
