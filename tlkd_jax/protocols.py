"""Which runs an arm consists of: teachers, chains, generations, probes.

Every part is a run of its own in the workdir, resumed or skipped by itself:

  WORKDIR/teacher       fine-tuned where config.teacher.checkpoint is not set,
                        evaluated as it is where that names weights; with
                        distillation.mutual it is no run of its own
  WORKDIR/pretrain      the student on images without labels alone, where
                        config.distillation.pretrain_steps > 0
  WORKDIR/probe         the head alone, where config.transfer.probe_steps > 0
                        (LP-FT); student runs start from it
  WORKDIR/assistantN    distillation.assistants, taught by the one before
  WORKDIR/generationN   students before the last of distillation.generations
                        (born again), each taught by the one before
  WORKDIR/tl            of distillation.self_training: the student's own TL run,
                        its teacher where config.teacher.checkpoint is not set
  WORKDIR/tl, WORKDIR/kd   of 'compare'; of 'tl' and 'kd' it is WORKDIR itself
"""

import pathlib

from tlkd_jax import chains, preludes
from tlkd_jax.chains import Part
from tlkd_jax.models.weights import hub
from tlkd_jax.settings import Settings, with_values
from tlkd_jax.training import elsewhere
from tlkd_jax.training import workdir as workdirs


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
  first, settings = _pretraining(settings, workdir)
  probe, settings = preludes.probed(settings, workdir)
  if settings.arm == 'tl':
    return [*first, *probe, Part('tl', workdir, settings)]
  tl = Part('tl', workdir / 'tl', chains.with_arm(settings, 'tl'))
  if settings.distillation.self_training != 'none':
    return [*probe, *chains.self_training(settings, workdir, tl)]
  teacher, guided = _teacher(settings, workdir)
  before, guided = chains.before_the_last(guided, settings, workdir)
  teacher = first or teacher
  if settings.arm == 'kd':
    return [*teacher, *probe, *before, Part('kd', workdir, guided)]
  last = Part('kd', workdir / 'kd', guided)
  return [*teacher, *probe, tl, *before, last]


def folders(
  settings: Settings, workdir: pathlib.Path
) -> dict[str, pathlib.Path]:
  """Key of each part of the plan -> its folder."""
  return {part.key: part.workdir for part in plan(settings, workdir)}


def _pretraining(
  settings: Settings, workdir: pathlib.Path
) -> tuple[list[Part], Settings]:
  """The teacher and a stage without labels, and what starts from it."""
  if not settings.distillation.pretrain_steps:
    return [], settings
  # Of a TL student that learns otherwise, it is fine-tuned all the same.
  plain = with_values(settings, {'student.fit': 'finetuned'})
  teacher, guided = _teacher(plain, workdir)
  stage, after = preludes.pretrained(settings, guided, workdir)
  return [*teacher, *stage], after


def _teacher(
  settings: Settings, workdir: pathlib.Path
) -> tuple[list[Part], Settings]:
  guided = chains.with_arm(settings, 'kd')
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
  return [Part('teacher', folder, chains.with_arm(settings, 'teacher'))], guided
