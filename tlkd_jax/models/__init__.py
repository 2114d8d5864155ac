"""Model variants by name: `create_model('efficientnet_lite0', num_classes=5)`.

A bare name follows torchvision where torchvision has the variant, the
published package for EfficientNet-Lite and timm otherwise; 'timm/NAME' and
'torchvision/NAME' choose that library's conventions and checkpoint keys.
NAME_fused is the form for inference of a network that is trained in branches,
'NAME int8' what int8 arithmetic computes of a network.
"""

from tlkd_jax.models import quantized, side_by_side, zero_shot
from tlkd_jax.models.families import (
  clip,
  convnext,
  densenet,
  dinov2,
  dinov3,
  efficientnet,
  efficientvit,
  eva02,
  fastvit,
  ghostnetv2,
  lcnet,
  mixer,
  mobilenetv2,
  mobilenetv3,
  mobilenetv4_variants,
  mobileone,
  regnet,
  repvit,
  resnet,
  resnetv2,
  shufflenetv2,
  siglip,
  squeezenet,
  swin_variants,
  vgg,
  vit_variants,
)
from tlkd_jax.models.functional import Model, to_functional
from tlkd_jax.models.layers.branches import FUSED
from tlkd_jax.models.spec import ModelSpec
from tlkd_jax.runtime.errors import unknown_name

_NAMED: dict[str, ModelSpec] = {
  **efficientnet.VARIANTS,
  **mobilenetv2.VARIANTS,
  **mobilenetv3.VARIANTS,
  **mobilenetv4_variants.VARIANTS,
  **ghostnetv2.VARIANTS,
  **lcnet.VARIANTS,
  **efficientvit.VARIANTS,
  **mixer.VARIANTS,
  **shufflenetv2.VARIANTS,
  **squeezenet.VARIANTS,
  **resnet.VARIANTS,
  **resnetv2.VARIANTS,
  **regnet.VARIANTS,
  **densenet.VARIANTS,
  **vgg.VARIANTS,
  **convnext.VARIANTS,
  **vit_variants.VARIANTS,
  **dinov2.VARIANTS,
  **clip.VARIANTS,
  **siglip.VARIANTS,
  **repvit.VARIANTS,
  **mobileone.VARIANTS,
  **fastvit.VARIANTS,
  **eva02.VARIANTS,
  **dinov3.VARIANTS,
  **swin_variants.VARIANTS,
}


def _with_bare_names(named: dict[str, ModelSpec]) -> dict[str, ModelSpec]:
  result = dict(named)
  for library in ('torchvision/', 'timm/'):
    for name, spec in named.items():
      if name.startswith(library):
        result.setdefault(name.removeprefix(library), spec)
  return result


MODELS = _with_bare_names(_NAMED)


def create_model(
  name: str,
  *,
  num_classes: int = 1000,
  in_channels: int = 3,
  dropout: float | None = None,
  drop_path: float = 0.0,
) -> Model:
  """Describes a variant without allocating its weights.

  Args:
    name: a key of MODELS, or 'NAME xN' for N of these side by side, 'NAME
      zero-shot' for one under a head of texts, 'NAME int8' for what int8
      arithmetic computes of it.
    num_classes: length of the logits.
    in_channels: channels of the images.
    dropout: rate before the head; None is the published one.
    drop_path: highest rate of stochastic depth, rising linearly with depth.

  Raises:
    ValueError: the name is unknown; the nearest names are given.
  """
  single, count = variant_of(name), side_by_side.parts_of(name)[1]
  if single not in MODELS:
    error = unknown_name('model', name, MODELS)
    raise ValueError(f'{error} (`python -m tlkd_jax.models` lists all)')
  spec = MODELS[single]
  if zero_shot.is_name(name):
    spec = zero_shot.spec_of(spec)
  if quantized.variant_of(name) is not None:
    spec = quantized.spec_of(MODELS[fused_name(single) or single])
  return to_functional(
    name,
    side_by_side.spec_of(spec, count) if count else spec,
    num_classes,
    in_channels=in_channels,
    dropout=dropout,
    drop_path=drop_path,
  )


def variant_of(name: str) -> str:
  """The variant that a network is made of, by its name for `create_model`."""
  rounded = quantized.variant_of(name)
  if rounded is not None:
    return rounded
  return side_by_side.parts_of(zero_shot.variant_of(name))[0]


def fused_name(name: str) -> str | None:
  """The variant that one in branches is fused to; None where it has none."""
  fused = name + FUSED
  return fused if fused in MODELS else None
