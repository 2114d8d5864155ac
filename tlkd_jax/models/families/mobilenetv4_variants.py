"""The published MobileNetV4s, as timm has them (arXiv 2404.10518)."""

from tlkd_jax.models.families.mobilenetv4 import (
  Design,
  Fused,
  Plain,
  Row,
  Shared,
  Universal,
  spec,
)
from tlkd_jax.models.spec import ModelSpec

_HALF = {'mean': (127.5,) * 3, 'std': (127.5,) * 3}


def _rows(stride: int, channels: int, *numbers) -> tuple[Row, ...]:
  """Universal blocks from (first, middle, expand), the first of which strides.

  Attention is given as itself.
  """
  rows = []
  for entry in numbers:
    if isinstance(entry, Shared):
      rows.append(entry)
    else:
      first, middle, expand = entry
      step = 1 if rows else stride
      rows.append(Universal(first, middle, step, expand, channels))
  return tuple(rows)


_SMALL = (
  (Plain(3, 2, 32), Plain(1, 1, 32)),
  (Plain(3, 2, 96), Plain(1, 1, 64)),
  _rows(2, 96, (5, 5, 3), *[(0, 3, 2)] * 4, (3, 0, 4)),
  _rows(
    *(2, 128),
    *((3, 3, 6), (5, 5, 4), (0, 5, 4), (0, 5, 3), (0, 3, 4), (0, 3, 4)),
  ),
)

_MEDIUM_START = (Fused(2, 4, 48),), _rows(2, 80, (3, 5, 4), (3, 3, 2))
_MEDIUM = (
  *_MEDIUM_START,
  _rows(
    *(2, 160),
    *((3, 5, 6), (3, 3, 4), (3, 3, 4), (3, 5, 4)),
    *((3, 3, 4), (3, 0, 4), (0, 0, 2), (3, 0, 4)),
  ),
  _rows(
    *(2, 256),
    *((5, 5, 6), (5, 5, 4), (3, 5, 4), (3, 5, 4), (0, 0, 4), (3, 0, 4)),
    *((3, 5, 2), (5, 5, 4), (0, 0, 4), (0, 0, 4), (5, 0, 2)),
  ),
)
_MQA_160, _MQA_256 = Shared(4, 64, 2, 160), Shared(4, 64, 1, 256)
_HYBRID_MEDIUM = (
  *_MEDIUM_START,
  _rows(
    *(2, 160),
    *((3, 5, 6), (0, 0, 2), (3, 3, 4), (3, 5, 4), _MQA_160),
    *((3, 3, 4), _MQA_160, (3, 0, 4), _MQA_160),
    *((3, 3, 4), _MQA_160, (3, 0, 4)),
  ),
  _rows(
    *(2, 256),
    *((5, 5, 6), (5, 5, 4), (3, 5, 4), (3, 5, 4), (0, 0, 2)),
    *((3, 5, 2), (0, 0, 2), (0, 0, 4), _MQA_256),
    *((3, 0, 4), _MQA_256, (5, 5, 4), _MQA_256),
    *((5, 0, 4), _MQA_256, (5, 0, 4)),
  ),
)

_LARGE_START = (Fused(2, 4, 48),), _rows(2, 96, (3, 5, 4), (3, 3, 4))
_LARGE_THIRD = (3, 5, 4), *[(3, 3, 4)] * 3, (3, 5, 4), (5, 3, 4), (5, 3, 4)
_LARGE_FOURTH = (
  *[(5, 5, 4)] * 4,
  *((5, 0, 4), (5, 3, 4), (5, 0, 4), (5, 0, 4), (5, 3, 4), (5, 5, 4)),
)
_LARGE = (
  *_LARGE_START,
  _rows(2, 192, *_LARGE_THIRD, *[(5, 3, 4)] * 3, (3, 0, 4)),
  _rows(2, 512, *_LARGE_FOURTH, *[(5, 0, 4)] * 3),
)
_MQA_192, _MQA_512 = Shared(8, 48, 2, 192), Shared(8, 64, 1, 512)
_HYBRID_LARGE = (
  *_LARGE_START,
  _rows(
    *(2, 192),
    *_LARGE_THIRD,
    *[_MQA_192, (5, 3, 4)] * 3,
    *(_MQA_192, (3, 0, 4)),
  ),
  _rows(2, 512, *_LARGE_FOURTH, *[_MQA_512, (5, 0, 4)] * 4),
)

# Design, default weights (None: timm has none), native side, crop, fields that
# differ (timm 1.0).
_TIMM = {
  'mobilenetv4_conv_small_035': (
    (Design(_SMALL, width=0.35), None, 224, 0.875, _HALF)
  ),
  'mobilenetv4_conv_small_050': (
    (Design(_SMALL, width=0.5), 'e3000_r224_in1k', 224, 0.875, _HALF)
  ),
  'mobilenetv4_conv_small': (
    (Design(_SMALL), 'e2400_r224_in1k', 224, 0.875, {})
  ),
  'mobilenetv4_conv_medium': (
    (Design(_MEDIUM), 'e500_r256_in1k', 256, 0.95, {})
  ),
  'mobilenetv4_conv_large': (
    (Design(_LARGE, stem=24), 'e600_r384_in1k', 384, 0.95, {})
  ),
  'mobilenetv4_hybrid_medium': (
    Design(_HYBRID_MEDIUM, layer_scale=True),
    'e200_r256_in12k_ft_in1k',
    256,
    0.95,
    {},
  ),
  'mobilenetv4_hybrid_large': (
    Design(_HYBRID_LARGE, stem=24, activation='gelu', layer_scale=True),
    'ix_e600_r384_in1k',
    384,
    0.95,
    {},
  ),
}

VARIANTS: dict[str, ModelSpec] = {
  f'timm/{name}': spec(
    design,
    image_size=size,
    crop=crop,
    weights=f'timm:{name}.{tag}' if tag else None,
    **fields,
  )
  for name, (design, tag, size, crop, fields) in _TIMM.items()
}
