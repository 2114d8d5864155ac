"""Variants of two libraries that are one network under different names.

A twin computes the same function of its weights (architecture, epsilon,
padding), so that its files need nothing but other keys. What may differ is
what happens around the weights: the mean and standard deviation of images,
dropout, the momentum of running statistics.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from tlkd_jax import models
from tlkd_jax.models.functional import Model
from tlkd_jax.models.weights import pretrained

# Our name -> timm's. No twins, though their weights have equal shapes, are
# torchvision's and timm's MobileNetV3 and EfficientNetV2 (epsilon, padding),
# VGG (maps above 7x7) and Swin (maps that are no multiple of a window).
TIMM_TWINS: dict[str, str] = {
  **{
    f'efficientnet_lite{i}': f'timm/tf_efficientnet_lite{i}' for i in range(5)
  },
  **{
    f'torchvision/{name}': f'timm/{name}'
    for name in (
      'convnext_base',
      'convnext_large',
      'convnext_small',
      'convnext_tiny',
      'densenet121',
      'densenet161',
      'densenet169',
      'densenet201',
      'efficientnet_b0',
      'efficientnet_b1',
      'efficientnet_b2',
      'efficientnet_b3',
      'efficientnet_b4',
      'resnet101',
      'resnet152',
      'resnet18',
      'resnet34',
      'resnet50',
      'resnext101_32x8d',
      'resnext101_64x4d',
      'resnext50_32x4d',
      'wide_resnet101_2',
      'wide_resnet50_2',
    )
  },
  **{
    f'transformers/dinov3_convnext_{size}': f'timm/convnext_{size}'
    for size in ('tiny', 'small', 'base', 'large')
  },
  'torchvision/mobilenet_v2': 'timm/mobilenetv2_100',
  'torchvision/regnet_x_400mf': 'timm/regnetx_004_tv',
  'torchvision/regnet_x_800mf': 'timm/regnetx_008',
  'torchvision/regnet_x_1_6gf': 'timm/regnetx_016',
  'torchvision/regnet_x_3_2gf': 'timm/regnetx_032',
  'torchvision/regnet_y_400mf': 'timm/regnety_004',
  'torchvision/regnet_y_800mf': 'timm/regnety_008_tv',
  'torchvision/regnet_y_1_6gf': 'timm/regnety_016',
  'torchvision/regnet_y_3_2gf': 'timm/regnety_032',
  'torchvision/vit_b_16': 'timm/vit_base_patch16_224',
}


def full_name(name: str) -> str:
  """A variant's name with its library: 'resnet18' -> 'torchvision/resnet18'.

  Names of the EfficientNet-Lite package and names that have a library already
  stay as they are.
  """
  for library in ('torchvision/', 'timm/'):
    spec = models.MODELS.get(library + name)
    if spec is not None and spec is models.MODELS.get(name):
      return library + name
  return name


def timm_name(name: str) -> str | None:
  """The key of MODELS under which timm has this network; None if it has not."""
  name = full_name(name)
  return name if name.startswith('timm/') else TIMM_TWINS.get(name)


def of(name: str) -> list[str]:
  """All other variants that are the same network, by the table above."""
  name = full_name(name)
  timm = timm_name(name)
  if timm is None:
    return []
  group = [
    timm,
    *(ours for ours, theirs in TIMM_TWINS.items() if theirs == timm),
  ]
  return [twin for twin in group if twin != name]


@functools.cache
def _model(name: str, num_classes: int) -> Model:
  return models.create_model(name, num_classes=num_classes)


def rename(
  source: Model, target: Model, state_dict: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """A state dict under the keys and in the layouts of a twin.

  Args:
    source: whose keys the state dict has.
    target: a twin of it, of any class count.
    state_dict: names and arrays. Entries that `source` does not know keep
      their names.

  Returns:
    A new dict; arrays share memory where the layouts are equal.

  Raises:
    ValueError: an entry has not the dimensions of the source's.
  """
  ours = pretrained.leaf_table(source)
  theirs = pretrained.leaf_table(target)
  names = {
    leaf.key: (leaf, theirs[path][1]) for path, (_, leaf) in ours.items()
  }
  result = {}
  for key, value in state_dict.items():
    module, _, name = key.rpartition('.')
    statistic = f'{module}.running_var'
    if key in names:
      old, new = names[key]
      try:
        value = new.to_torch(old.to_flax(value))
      except ValueError as error:
        raise ValueError(
          f'{key} of shape {value.shape} is not that of {source.name}'
        ) from error
      result[new.key] = np.ascontiguousarray(value)
    elif name == 'num_batches_tracked' and statistic in names:
      new_module = names[statistic][1].key.rpartition('.')[0]
      result[f'{new_module}.{name}'] = value
    else:
      result[key] = value
  return result


def keyed_by(model: Model, state_dict: Mapping[str, Any]) -> str:
  """The name of the model, or of its twin, whose keys a file has."""

  def matches(candidate: Model) -> int:
    keys = {leaf.key for _, leaf in pretrained.leaf_table(candidate).values()}
    return len(keys & state_dict.keys())

  best, most = model.name, matches(model)
  for name in of(model.name):
    found = matches(_model(name, model.num_classes))
    if found > most:
      best, most = name, found
  return best


def adopt(
  model: Model, state_dict: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Renames a file of a twin of `model`; any other is returned unchanged."""
  name = keyed_by(model, state_dict)
  if name == model.name:
    return state_dict
  return rename(_model(name, model.num_classes), model, state_dict)
