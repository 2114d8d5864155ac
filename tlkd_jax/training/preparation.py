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
  return Look(settings.image_size, crop, interpolation)


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
