"""Students that teach: assistants, generations, self-training.

Every part is a run of its own in the workdir of the command, see protocols.
"""

import dataclasses
import pathlib
from typing import Any

from tlkd_jax import losses
from tlkd_jax.settings import Settings, with_values
from tlkd_jax.settings.distillation import SELF_TRAINING
from tlkd_jax.training import preparation


@dataclasses.dataclass(frozen=True)
class Part:
  """One run of a plan.

  Attributes:
    key: of its summary: 'teacher', 'probe', 'assistant1', 'generation1', 'tl',
      'kd'.
    workdir: of the run.
    settings: of the run.
  """

  key: str
  workdir: pathlib.Path
  settings: Settings


def with_arm(settings: Settings, arm: str) -> Settings:
  """The same for another arm."""
  return with_values(settings, {'arm': arm})


def self_trained(settings: Settings) -> Settings:
  """What self-training stands for, said in the keys of distillation.

  Pseudo-labels of the unlabelled images alone, from a teacher that is the
  student's own model and sees each image as it is: Lee, ICML workshop 2013;
  Xie et al., CVPR 2020, arXiv:1911.04252, algorithm 1.
  """
  kind = settings.distillation.self_training
  if kind == 'none':
    return settings
  loss = SELF_TRAINING[kind]
  brought: dict[str, Any] = {
    'teacher.name': settings.student.name,
    'distillation.loss': loss,
    'distillation.taught': 'unlabelled',
    'distillation.teacher_view': 'clean',
  }
  if settings.distillation.loss != loss:
    brought['distillation.options'] = losses.hyperparameters_of(loss)
  if kind == 'soft':
    brought['distillation.temperature'] = 1.0
  return with_values(settings, brought)


def self_training(
  settings: Settings, workdir: pathlib.Path, tl: Part
) -> list[Part]:
  """The student's own TL run, and the one that it teaches."""
  guided = with_arm(self_trained(settings), 'kd')
  compared = settings.arm == 'compare'
  folder = workdir / 'kd' if compared else workdir
  if settings.teacher.checkpoint:
    return [*[tl] * compared, Part('kd', folder, guided)]
  guided = with_values(guided, {'teacher.checkpoint': str(tl.workdir)})
  return [tl, Part('kd', folder, guided)]


def before_the_last(
  guided: Settings, settings: Settings, workdir: pathlib.Path
) -> tuple[list[Part], Settings]:
  """Assistants, then generations; and the last student's settings."""
  parts = []
  for number, name in enumerate(settings.distillation.assistants, 1):
    # A probe, or a student's own start, is of another network.
    assistant = with_values(
      guided, {'student.name': name, 'student.checkpoint': None}
    )
    look = preparation.look_of_data(settings)
    if preparation.look_of_data(assistant) != look:
      # Its own weights were trained otherwise; all see the student's images.
      seen = {'data.crop': look.crop, 'data.interpolation': look.interpolation}
      assistant = with_values(assistant, seen)
    key = f'assistant{number}'
    parts.append(Part(key, workdir / key, _alone(assistant)))
    guided = _taught_by(guided, name, workdir / key)
  for number in range(1, settings.distillation.generations):
    key = f'generation{number}'
    parts.append(Part(key, workdir / key, _alone(guided)))
    guided = _taught_by(guided, settings.student.name, workdir / key)
  return parts, _alone(guided)


def _alone(settings: Settings) -> Settings:
  """Of one run of a chain: its record, taken as it is, repeats that run."""
  return with_values(
    settings, {'distillation.assistants': (), 'distillation.generations': 1}
  )


def _taught_by(guided: Settings, name: str, workdir: pathlib.Path) -> Settings:
  return with_values(
    guided,
    {
      'teacher.name': name,
      'teacher.checkpoint': str(workdir),
      # It was a student: it sees the student's images.
      'teacher.image_size': 0,
      'teacher.crop': None,
      'teacher.interpolation': None,
    },
  )
