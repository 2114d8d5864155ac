"""Which images of a batch have labels, and which of them guides speak of."""

import numpy as np

from tlkd_jax import data
from tlkd_jax.data import pipeline
from tlkd_jax.settings import Settings


def learns_without_labels(settings: Settings) -> bool:
  """Whether images without labels are among a run's training images."""
  learns = settings.arm == 'kd' or settings.fit == 'fixmatch'
  return learns and settings.distillation.unlabelled != ''


def alone(settings: Settings) -> bool:
  """Whether a run reads no label: its batches are of images without."""
  section = settings.distillation
  without = section.hard_weight == 0 and section.finish_fraction == 0
  guided = settings.arm == 'kd' and section.taught == 'unlabelled'
  return guided and without and learns_without_labels(settings)


def finish_step(settings: Settings) -> int:
  """The step from which on a student learns from labels alone."""
  steps = settings.num_steps
  return steps - round(settings.distillation.finish_fraction * steps)


def of_batch(settings: Settings) -> pipeline.Shares | None:
  """How many images of a batch have labels; None where all of them have."""
  if not learns_without_labels(settings):
    return None
  size = settings.batch_size
  if alone(settings):
    return pipeline.Shares(0, finish_step(settings))
  labelled = round(settings.distillation.labelled_fraction * size)
  return pipeline.Shares(min(max(labelled, 1), size - 1), finish_step(settings))


def taught_from(settings: Settings) -> int:
  """Guides speak of the images of a batch from this one on."""
  found = of_batch(settings)
  alone = settings.distillation.taught == 'unlabelled'
  if found is None or not (alone or settings.fit == 'fixmatch'):
    return 0
  return found.labelled


def images_per_step(settings: Settings) -> int:
  """Images that the student sees in a step, each view counted."""
  mixed = settings.arm == 'kd' and settings.distillation.mixed == 'soft'
  if not (mixed or settings.fit == 'fixmatch'):
    return settings.batch_size
  return 2 * settings.batch_size - taught_from(settings)


def about(settings: Settings, dataset: data.Dataset) -> list[str]:
  """How often images with labels and without are drawn, a sentence each.

  Args:
    settings: of the run.
    dataset: from inputs.training_data.
  """
  found = of_batch(settings)
  if found is None:
    return []
  labels = dataset.splits['train'].labels
  labelled = int(np.count_nonzero(labels >= 0))
  others = labels.size - labelled
  size, steps, end = settings.batch_size, settings.num_steps, found.finish_step
  drawn = end * (size - found.labelled)
  if alone(settings):
    return [
      f'each batch is of {size} of {others} images without label; in {steps} '
      f'steps one is drawn {drawn / others:.3g} times; no label is read'
    ]
  often = (steps * size - drawn) / labelled
  lines = [
    f'each batch of {size} has {found.labelled} of {labelled} labelled images '
    f'and {size - found.labelled} of {others} without label; in {steps} steps '
    f'one of the former is drawn {often:.3g} times, one of the latter '
    f'{drawn / others:.3g} times'
  ]
  if end < steps:
    lines.append(f'the last {steps - end} steps are of labels alone')
  return lines
