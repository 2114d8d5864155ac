"""What the settings leave open: sizes, images and steps, by the data.

Digits, which are always at hand, stay few and small, so that a first run takes
minutes. Of other data all training images are taken, at the student's native
size, and the steps follow their number.
"""

import math
from typing import Any

import numpy as np

from tlkd_jax import data, models
from tlkd_jax.models.weights import loading
from tlkd_jax.settings import Settings, with_values
from tlkd_jax.settings.networks import OPEN, ZERO_SHOT
from tlkd_jax.training import preparation

# One that is still open is probed, unless a class has too few images.
_PROBES = (OPEN, 'probed', 'crossfitted')
_DIGITS = 'digits'
_DIGITS_PER_CLASS, _DIGITS_STEPS = 20, 200
# What fine-tuning takes, where that is neither too few steps nor too many.
_EPOCHS, _LEAST_STEPS, _MOST_STEPS = 20, 200, 5000
_EVALUATIONS, _LEAST_BETWEEN = 20, 50
# What a teacher that is not fine-tuned sees, of the student's side, as far as
# it was trained at that (docs/results.md).
_TEACHER_SIDE = 5 / 3


def settled(
  settings: Settings, num_images: int | None = None, smallest: int | None = None
) -> Settings:
  """Settings with values for what they leave open.

  Args:
    settings: of a run, or of 'compare'.
    num_images: labelled training images, by which steps are counted; None
      leaves those open that depend on it.
    smallest: those of the smallest class, by which teachers are fitted; None
      likewise.

  Raises:
    WrongSettings: they exclude each other now.
    ValueError: what lies beside the student's weights is damaged.
  """
  steps = settings.num_steps or _steps(settings, num_images)
  fit = _teacher_fit(settings, smallest)
  own = {
    'teacher.fit': fit,
    'teacher.image_size': _teacher_side(settings, fit),
    **_as_published(settings, fit),
    'image_size': preparation.image_size(settings),
    'num_train_per_class': per_class(
      settings.dataset, settings.num_train_per_class, settings.train_fraction
    ),
    'num_steps': steps,
    'eval_every_steps': settings.eval_every_steps
    or (max(_LEAST_BETWEEN, steps // _EVALUATIONS) if steps else 0),
  }
  return with_values(settings, own)


def for_data(settings: Settings, dataset: data.Dataset) -> Settings:
  """The same, by the labelled training images that there are."""
  labels = dataset.splits['train'].labels
  return for_counts(settings, np.bincount(labels[labels >= 0]))


def for_counts(settings: Settings, of_class: np.ndarray) -> Settings:
  """The same, by the labelled training images of each class, int [K]."""
  return settled(settings, int(of_class.sum()), int(of_class.min()))


def per_class(dataset: str, said: int | None, fraction: float) -> int:
  """Training images per class, 0 for all.

  Args:
    dataset: config.dataset.
    said: config.num_train_per_class.
    fraction: config.train_fraction.
  """
  if said is not None:
    return said
  return _DIGITS_PER_CLASS if dataset == _DIGITS and fraction == 1 else 0


def lines(settings: Settings, dataset: data.Dataset) -> list[str]:
  """What a run learns from and for how long, a sentence each.

  Args:
    settings: from `for_data`.
    dataset: of the run.
  """
  count = _count(dataset)
  epochs = settings.num_steps * settings.batch_size / count
  kept = dataset.splits['train'].images.shape[1]
  return [
    f'{count} training images at {dataset.image_size} px (kept at {kept} px), '
    f'{settings.num_steps} steps of {settings.batch_size}: {epochs:.3g} epochs',
    'num_train_per_class, image_size and num_steps change that',
  ]


def _steps(settings: Settings, num_images: int | None) -> int:
  """Of a run that does not say; 0 where that is not known yet."""
  if settings.dataset == _DIGITS:
    return _DIGITS_STEPS
  if num_images is None:
    return 0
  wanted = math.ceil(_EPOCHS * num_images / settings.batch_size)
  return min(max(wanted, _LEAST_STEPS), _MOST_STEPS)


def _teacher_fit(settings: Settings, smallest: int | None) -> str:
  """How a teacher is fitted where that is left open.

  A probe was the best teacher where it was tuned (docs/results.md), and takes
  seconds. Not where nothing is fitted first, or the settings speak of
  fine-tuning, or a probe cannot be fitted.
  """
  teacher, guides = settings.teacher, settings.distillation
  if teacher.fit != OPEN:
    return teacher.fit
  first = settings.is_taught or settings.cost_matched
  if (
    not first
    or guides.mutual
    or guides.self_training != 'none'
    or teacher.checkpoint
    or teacher.head == 'keep'
    or teacher.num_steps
    or teacher.label_smoothing
    or teacher.weights == 'scratch'
    or not models.MODELS[teacher.name].linear_head
  ):
    return 'finetuned'
  if smallest is None:
    return OPEN
  return 'probed' if smallest >= teacher.probe_folds else 'finetuned'


def _as_published(settings: Settings, fit: str) -> dict[str, Any]:
  """How a zero-shot teacher's images are cut, where that is left open.

  As in its training: nothing of it is fitted to other images.
  """
  teacher = settings.teacher
  fitted = settings.arm == 'teacher' or settings.is_taught
  if fit != ZERO_SHOT or teacher.checkpoint or not fitted:
    return {}
  spec = models.MODELS[teacher.name]
  source = preparation.weights_of(teacher)
  known = loading.preprocessing(source) if source else None
  side = known.image_size if known and known.image_size else spec.image_size
  found: dict[str, Any] = {
    'teacher.image_size': teacher.image_size or spec.side_near(side),
    'teacher.interpolation': teacher.interpolation
    or (known and known.interpolation)
    or spec.interpolation,
  }
  if data.default_crop(settings.dataset) < 1:
    # Digits have no margin that could be cut off.
    said = teacher.crop or (known and known.crop)
    found['teacher.crop'] = said or spec.crop
  return found


def _teacher_side(settings: Settings, fit: str) -> int:
  """Side of a teacher's images; 0 for the student's or its own run's.

  In digits, of 8 pixels, there is no more to see. A variant that does not take
  the student's size has the nearest that it takes.
  """
  teacher, guides = settings.teacher, settings.distillation
  spec = models.MODELS[teacher.name]
  fitted = settings.arm == 'teacher' or settings.is_taught
  fitted = fitted and not teacher.checkpoint
  own_views = not guides.mutual and guides.self_training == 'none'
  if teacher.image_size or not fitted or not own_views:
    return teacher.image_size
  own = preparation.image_size(settings)
  alone = settings.arm == 'teacher' or settings.dataset == _DIGITS
  if alone or fit not in _PROBES:
    side = spec.side_near(own)
    return 0 if side == own else side
  larger = 16 * round(own * _TEACHER_SIDE / 16)
  return spec.side_near(max(own, min(larger, spec.image_size)))


def _count(dataset: data.Dataset) -> int:
  return int(np.count_nonzero(dataset.splits['train'].labels >= 0))
