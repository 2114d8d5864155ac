"""How images are prepared for a run, where the settings leave it open."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from tlkd_jax import data, models
from tlkd_jax.data import Look, augment
from tlkd_jax.models.weights import loading
from tlkd_jax.settings import Settings, Student

# Where neither settings nor weights name another.
_INTERPOLATION = 'bicubic'
_DIGITS_SIDE = 64


def weights_of(section: Student) -> str | None:
  """The weights that a section names; None where a variant has none."""
  return _source(section.name, section.weights)


def _source(name: str, weights: str) -> str | None:
  if weights != 'pretrained':
    return weights
  return models.MODELS[name].weights if name in models.MODELS else None


def look_of_data(settings: Settings) -> Look:
  """Of the student: as its weights were trained, where that is left open."""
  section, student = settings.data, settings.student
  crop, interpolation = cut(
    settings.dataset,
    section.crop,
    section.interpolation,
    student.name,
    student.weights,
  )
  return Look(image_size(settings), crop, interpolation)


def image_size(settings: Settings) -> int:
  """Side of the student's images in pixels, where it is left open too."""
  student = settings.student
  return side(
    settings.dataset, settings.image_size, student.name, student.weights
  )


def side(dataset: str, said: int, name: str, weights: str) -> int:
  """config.image_size, where it is 0 the native one of the weights.

  Args:
    dataset: config.dataset.
    said: config.image_size.
    name: of the student's variant.
    weights: student.weights.

  Raises:
    ValueError: what lies beside the weights is damaged.
  """
  if said:
    return said
  if data.default_crop(dataset) == 1:
    # Digits are 8 pixels wide.
    return _DIGITS_SIDE
  source = _source(name, weights)
  known = None
  if source not in (None, 'scratch'):
    known = loading.preprocessing(source).image_size
  return known or models.MODELS[name].image_size


def resampling(dataset: data.Dataset) -> dict[str, Any]:
  """How `augment` resamples training images: as they were decoded."""
  look = dataset.look
  return {
    'square': dataset.square,
    'interpolation': look.interpolation if look else 'bilinear',
  }


def make_evaluated(dataset: data.Dataset) -> Callable[..., jax.Array]:
  """(uint8 training images) -> what would be evaluated of them, as floats."""
  return functools.partial(
    augment.as_evaluated, image_size=dataset.image_size, **resampling(dataset)
  )


def cut(
  dataset: str,
  crop: float | None,
  interpolation: str | None,
  name: str,
  weights: str,
) -> tuple[float, str]:
  """(data.crop, data.interpolation), where they are None those of weights.

  Args:
    dataset: config.dataset.
    crop: data.crop.
    interpolation: data.interpolation.
    name: of the student's variant.
    weights: student.weights.

  Raises:
    ValueError: what lies beside the weights is damaged.
  """
  source = _source(name, weights)
  if source not in (None, 'scratch') and None in (crop, interpolation):
    found = loading.preprocessing(source)
    interpolation = interpolation or found.interpolation
    if data.default_crop(dataset) < 1:
      # Digits have no margin that could be cut off.
      crop = crop or found.crop
  return (
    crop or data.default_crop(dataset),
    interpolation or _INTERPOLATION,
  )
