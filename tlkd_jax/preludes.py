"""What a student learns before its own run: without labels, or its head alone.

Each is a run of its own in the workdir of the command, which students' runs
start from; see protocols.
"""

import pathlib

from tlkd_jax.chains import Part
from tlkd_jax.settings import Settings, with_values
from tlkd_jax.settings.distillation import LABELLED_FRACTION
from tlkd_jax.settings.sections import TRANSFER_TERMS

# Of a prelude, which keeps to no start and has no prelude.
_PLAIN = {
  'transfer.probe_steps': 0,
  'distillation.pretrain_steps': 0,
  'cost_matched': False,
  **{f'transfer.{name}': 0.0 for name in TRANSFER_TERMS},
}


def pretrained(
  settings: Settings, guided: Settings, workdir: pathlib.Path
) -> tuple[list[Part], Settings]:
  """The stage without labels, and the settings that start from it.

  A student learns from images without labels alone what its teacher says of
  them: as hints come before labels in FitNets (Romero et al., ICLR 2015,
  arXiv:1412.6550, section 2.3).

  Args:
    settings: of the command.
    guided: the same of arm 'kd', with the teacher.
    workdir: of the command.
  """
  section = settings.distillation
  folder = workdir / 'pretrain'
  stage = with_values(
    guided,
    _PLAIN
    | {
      'num_steps': section.pretrain_steps,
      'optimizer.train_only': 'all',
      'optimizer.freeze_until_step': 0,
      'distillation.loss': section.pretrain_loss,
      'distillation.options': section.pretrain_options,
      'distillation.extra': {},
      'distillation.soft_weight': 1.0,
      'distillation.schedule': 'constant',
      'distillation.warmup_fraction': 0.0,
      'distillation.temperature_schedule': 'constant',
      # Where these three are so, no label is read: see training/shares.py.
      'distillation.hard_weight': 0.0,
      'distillation.taught': 'unlabelled',
      'distillation.finish_fraction': 0.0,
      'distillation.labelled_fraction': LABELLED_FRACTION,
      'distillation.mixed': 'all',
      'distillation.token': False,
      'distillation.assistants': (),
      'distillation.generations': 1,
    },
  )
  return [Part('pretrain', folder, stage)], with_values(
    settings,
    {'student.checkpoint': str(folder), 'distillation.pretrain_steps': 0},
  )


def probed(
  settings: Settings, workdir: pathlib.Path
) -> tuple[list[Part], Settings]:
  """LP-FT: the probe, and the settings that start from it."""
  if not settings.transfer.probe_steps:
    return [], settings
  fit = settings.student.fit
  folder = workdir / 'probe'
  probe = with_values(
    settings,
    _PLAIN
    | {
      'arm': 'tl',
      'student.fit': 'finetuned' if fit == 'ensemble' else fit,
      'optimizer.train_only': 'head',
      'optimizer.freeze_until_step': 0,
      'num_steps': settings.transfer.probe_steps,
    },
  )
  tuned = with_values(
    settings,
    {'student.checkpoint': str(folder), 'transfer.probe_steps': 0},
  )
  return [Part('probe', folder, probe)], tuned
