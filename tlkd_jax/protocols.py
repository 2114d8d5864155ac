"""Which runs an arm consists of: teachers, chains, generations, probes.

Every part is a run of its own in the workdir, resumed or skipped by itself:

  WORKDIR/teacher       fine-tuned where config.teacher.checkpoint is not set,
                        evaluated as it is where that names weights; with
                        distillation.mutual it is no run of its own
  WORKDIR/probe         the head alone, where config.transfer.probe_steps > 0
                        (LP-FT); student runs start from it
  WORKDIR/assistantN    distillation.assistants, taught by the one before
  WORKDIR/generationN   students before the last of distillation.generations
                        (born again), each taught by the one before
  WORKDIR/tl            of distillation.self_training: the student's own TL run,
                        its teacher where config.teacher.checkpoint is not set
  WORKDIR/tl, WORKDIR/kd   of 'compare'; of 'tl' and 'kd' it is WORKDIR itself
"""

import dataclasses
import pathlib
import re
from typing import Any

from tlkd_jax import losses
from tlkd_jax.answer.labels import LABELS
from tlkd_jax.models.weights import hub
from tlkd_jax.settings import Settings, with_values
from tlkd_jax.settings.distillation import SELF_TRAINING
from tlkd_jax.settings.sections import TRANSFER_TERMS
from tlkd_jax.training import elsewhere, preparation
from tlkd_jax.training import workdir as workdirs


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


def label(
  key: str, *, self_trained: bool = False, fixmatch: bool = False
) -> str:
  """A part's name for people."""
  if key == 'kd' and self_trained:
    return 'self-training'
  if key == 'tl' and fixmatch:
    return 'FixMatch'
  return LABELS.get(key, re.sub(r'(\d+)$', r' \1', key))


def plan(settings: Settings, workdir: pathlib.Path) -> list[Part]:
  """The runs of settings.arm, each after those that it reads.

  Args:
    settings: arm is 'teacher', 'tl', 'kd' or 'compare'.
    workdir: of the command.
  """
  elsewhere.check_checkpoints(settings)
  if settings.arm == 'teacher':
    if workdirs.is_adopted(settings):
      settings = elsewhere.adopted(settings)
    return [Part('teacher', workdir, settings)]
  probe, settings = _probe(settings, workdir)
  if settings.arm == 'tl':
    return [*probe, Part('tl', workdir, settings)]
  tl = Part('tl', workdir / 'tl', with_arm(settings, 'tl'))
  if settings.distillation.self_training != 'none':
    return [*probe, *_self_training(settings, workdir, tl)]
  teacher, guided = _teacher(settings, workdir)
  before, guided = _before_the_last(guided, settings, workdir)
  if settings.arm == 'kd':
    return [*teacher, *probe, *before, Part('kd', workdir, guided)]
  last = Part('kd', workdir / 'kd', guided)
  return [*teacher, *probe, tl, *before, last]


def folders(
  settings: Settings, workdir: pathlib.Path
) -> dict[str, pathlib.Path]:
  """Key of each part of the plan -> its folder."""
  return {part.key: part.workdir for part in plan(settings, workdir)}


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


def _self_training(
  settings: Settings, workdir: pathlib.Path, tl: Part
) -> list[Part]:
  guided = with_arm(self_trained(settings), 'kd')
  compared = settings.arm == 'compare'
  folder = workdir / 'kd' if compared else workdir
  if settings.teacher.checkpoint:
    return [*[tl] * compared, Part('kd', folder, guided)]
  guided = with_values(guided, {'teacher.checkpoint': str(tl.workdir)})
  return [tl, Part('kd', folder, guided)]


def _probe(
  settings: Settings, workdir: pathlib.Path
) -> tuple[list[Part], Settings]:
  """LP-FT: the probe, and the settings that start from it."""
  if not settings.transfer.probe_steps:
    return [], settings
  fit = settings.student.fit
  probe = with_values(
    settings,
    {
      'arm': 'tl',
      'student.fit': 'finetuned' if fit == 'ensemble' else fit,
      'optimizer.train_only': 'head',
      'optimizer.freeze_until_step': 0,
      'transfer.probe_steps': 0,
      'cost_matched': False,
      'num_steps': settings.transfer.probe_steps,
      **{f'transfer.{name}': 0.0 for name in TRANSFER_TERMS},
    },
  )
  folder = workdir / 'probe'
  tuned = with_values(
    settings,
    {'student.checkpoint': str(folder), 'transfer.probe_steps': 0},
  )
  return [Part('probe', folder, probe)], tuned


def _teacher(
  settings: Settings, workdir: pathlib.Path
) -> tuple[list[Part], Settings]:
  guided = with_arm(settings, 'kd')
  place = settings.teacher.checkpoint
  folder = workdir / 'teacher'
  if place and not settings.distillation.mutual and hub.is_weights(place):
    own = elsewhere.adopted(settings)
    as_there = {
      f'teacher.{name}': vars(own.teacher)[name]
      for name in ('image_size', 'crop', 'interpolation')
    }
    guided = with_values(
      guided,
      as_there
      | {
        'teacher.checkpoint': str(folder),
        'teacher.head': 'new',
        'teacher.classes': (),
      },
    )
    return [Part('teacher', folder, own)], guided
  if place or settings.distillation.mutual:
    return [], guided
  guided = with_values(guided, {'teacher.checkpoint': str(folder)})
  return [Part('teacher', folder, with_arm(settings, 'teacher'))], guided


def _before_the_last(
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
