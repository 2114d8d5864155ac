"""How images are prepared for a run, where the settings leave it open."""

from tlkd_jax import data, models
from tlkd_jax.data import Look
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
