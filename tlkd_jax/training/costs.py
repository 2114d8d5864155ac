"""TL at the cost of TL+KD: what a teacher takes, in steps of the student.

The unit is the multiply-add of models.describe, counted from shapes, so that a
plan is the same on every machine. An image costs one forward pass where a
network is asked, and three where it learns (forward, and backward by inputs
and by weights); one where its backbone is frozen (optimizer.train_only). Of the
teacher count its fitting and what it says of the student's views. Not counted,
for either arm, are validation, data and a logistic regression on features.
"""

import dataclasses
import math
from typing import Any

from absl import logging

from tlkd_jax.data import Dataset
from tlkd_jax.models import describe
from tlkd_jax.settings import Settings
from tlkd_jax.training import inputs, networks, targets

_LEARN, _SAY = 3, 1


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a teacher takes, and the steps that it is worth.

  Attributes:
    student_step: multiply-adds of one update of the student.
    teacher_fit: of the teacher's own fine-tuning or probing.
    teacher_says: of its forward passes for a student of num_steps.
    num_steps: of that student.
    further_steps: what the teacher would take, in updates of the student,
      rounded up.
  """

  student_step: int
  teacher_fit: int
  teacher_says: int
  num_steps: int
  further_steps: int

  @property
  def total_steps(self) -> int:
    """Of TL at the same cost."""
    return self.num_steps + self.further_steps

  def as_json(self) -> dict[str, Any]:
    """With its unit, for the summary."""
    return {'unit': 'multiply-adds', **dataclasses.asdict(self)}


def count(settings: Settings, dataset: Dataset) -> Cost:
  """What the teacher of the settings would take.

  Args:
    settings: of a run of arm 'tl'; config.teacher, config.distillation and
      config.targets say what TL+KD would do.
    dataset: of the run.
  """
  size, steps = settings.batch_size, settings.num_steps
  own, theirs = (
    _forward(settings, name, len(dataset.class_names))
    for name in ('student', 'teacher')
  )
  learn = passes(settings)
  step = learn * own * size
  if settings.teacher.fit == 'crossfitted_finetuned':
    theirs *= settings.teacher.probe_folds
  fit = theirs * _images_to_fit(settings, dataset, learn)
  says = theirs * _SAY * _images_to_say(settings, dataset)
  further = math.ceil((fit + says) / step)
  return Cost(step, fit, says, steps, further)


def passes(settings: Settings) -> int:
  """Forward passes that a network which learns from an image is worth."""
  return _SAY if settings.optimizer.train_only == 'head' else _LEARN


def say(cost: Cost) -> None:
  """Logs what it came to."""
  logging.info(
    'cost_matched: a teacher would take %.3g multiply-adds to fit and %.3g to '
    'be asked, as much as %d steps of the student (%.3g each): %d + %d = %d '
    'steps',
    *(cost.teacher_fit, cost.teacher_says, cost.further_steps),
    *(cost.student_step, cost.num_steps, cost.further_steps),
    cost.total_steps,
  )


def _forward(settings: Settings, name: str, num_classes: int) -> int:
  """Multiply-adds of one image."""
  found = describe.describe(
    settings.network(name).name,
    networks.look(settings, name).image_size,
    num_classes=num_classes,
  )
  return found.macs + found.attention_macs


def _images_to_fit(settings: Settings, dataset: Dataset, learn: int) -> int:
  """Forward passes, or as much as so many, that the teacher's fit takes."""
  teacher = settings.teacher
  if teacher.fit in ('probed', 'crossfitted'):
    return _SAY * len(dataset.splits['train']) * (1 + teacher.probe_views)
  if teacher.fit == 'zero_shot':
    # A few texts, which are no images.
    return 0
  steps = teacher.num_steps or settings.num_steps
  return learn * steps * settings.batch_size


def _images_to_say(settings: Settings, dataset: Dataset) -> int:
  """Views of which the teacher speaks; stored ones are computed once."""
  return targets.images_seen(
    settings.num_steps * settings.batch_size,
    len(dataset.splits['train']),
    mode=settings.targets.mode,
    views=settings.targets.views,
    balanced=inputs.is_balanced(settings),
  )
