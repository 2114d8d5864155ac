"""EVA-02: ViTs with rotary positions beside learned ones.

Fang et al. 2023, arXiv 2303.11331. The mean of the patches stands for an image.
"""

from tlkd_jax.models.families import rotary_vit
from tlkd_jax.models.families.rotary_vit import Design
from tlkd_jax.models.layers.rotary import Rotary
from tlkd_jax.models.spec import ModelSpec

# Those of CLIP.
_PIXELS = {
  'mean': (0.48145466 * 255, 0.4578275 * 255, 0.40821073 * 255),
  'std': (0.26862954 * 255, 0.26130258 * 255, 0.27577711 * 255),
}
_SIZES = {
  'tiny': {'width': 192, 'heads': 3, 'middle': 'packed'},
  'small': {'width': 384, 'heads': 6, 'middle': 'packed'},
  'base': {'width': 768, 'heads': 12, 'middle': 'normed', 'split': True},
}
# Side of the images, crop fraction and timm's default weights.
_VERSIONS = {
  'tiny': ((224, 0.9, 'mim_in22k'), (336, 1.0, 'mim_in22k_ft_in1k')),
  'small': ((224, 0.9, 'mim_in22k'), (336, 1.0, 'mim_in22k_ft_in1k')),
  'base': ((224, 0.9, 'mim_in22k'), (448, 1.0, 'mim_in22k_ft_in22k_in1k')),
}


def design(width: int, heads: int, native: int, **fields) -> Design:
  """A variant's numbers."""
  return Design(
    width,
    heads,
    hidden=8 * width // 3,
    rotary=Rotary(base=10000.0, centred=False),
    patch=14,
    native=native,
    norm_pooled=True,
    **fields,
  )


def _variants() -> dict[str, ModelSpec]:
  variants = {}
  for size, versions in _VERSIONS.items():
    for side, crop, tag in versions:
      name = f'eva02_{size}_patch14_{side}'
      variants[f'timm/{name}'] = rotary_vit.spec(
        design(native=side, **_SIZES[size]),
        image_size=side,
        crop=crop,
        **_PIXELS,
        weights=f'timm:{name}.{tag}',
        # Files of pretraining have it behind all tokens.
        old_keys=((r'^norm\.', 'fc_norm.'),),
        beside=(r'^mask_token$', r'^lm_head\.'),
      )
  return variants


VARIANTS: dict[str, ModelSpec] = _variants()
