"""Fine-tuning in which the student rounds as its int8 file will.

A run of 'tl' or 'kd' with quantize.mode 'qat' is like any other, but for where
its student starts: `models.weights.folding.to_int8` of a finished student, with
bounds of its tensors from training images. Its network is 'NAME int8', so that
what it is evaluated by are int8's metrics.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
from absl import logging

from tlkd_jax import data
from tlkd_jax import settings as settings_
from tlkd_jax.models import quantized
from tlkd_jax.models.network import Loaded
from tlkd_jax.settings import Settings
from tlkd_jax.training import start as starts
from tlkd_jax.training import workdir as workdirs

GUIDES = ('student', 'teacher', 'none')
# Of the steps and of the learning rate of the run that a student comes from:
# it has learned its task, and learns to round.
_SHARE = 0.1
# With these a student is not what it was, or its run is not one run.
_ALONE: dict[str, Any] = {
  'remat': 'none',
  'compute_dtype': 'float32',
  'cost_matched': False,
  'student.fit': 'finetuned',
  'student.member': 0,
  'optimizer.train_only': 'all',
  'optimizer.freeze_until_step': 0,
  'transfer.probe_steps': 0,
  'transfer.lwf': 0.0,
  'transfer.co_tuning': 0.0,
  'distillation.mutual': False,
  'distillation.assistants': (),
  'distillation.generations': 1,
  'distillation.self_training': 'none',
  'distillation.pretrain_steps': 0,
}


def calibrated(
  settings: Settings,
  learners: dict[str, Loaded],
  dataset: data.Dataset,
  num_steps: int,
) -> dict[str, Loaded]:
  """The learners, of which a student that rounds knows the bounds of tensors.

  They are the mean over batches of the least and greatest values of training
  images as these are evaluated, without rounding: always the same.

  Args:
    settings: of the run.
    learners: as they were loaded.
    dataset: as the student sees it.
    num_steps: length of the run.
  """
  if settings.quantize.mode != 'qat' or 'student' not in learners:
    return learners
  student, section = learners['student'], settings.quantize
  split = dataset.splits['train']
  order = np.random.default_rng(settings.seed).permutation(len(split))
  size = min(settings.batch_size, section.calibration_images, len(split))
  count = min(section.calibration_images, len(split)) // size * size
  images = starts.as_evaluated(dataset, split.take(order[:count])).images
  network = student.network

  @jax.jit
  def look(params, model_state, images):
    prepared = network.prepare(images)
    with quantized.calibrating():
      return network.model.apply(params, model_state, prepared)[1]

  variables = jax.device_put((student.params, student.model_state))
  found = [
    jax.device_get(look(*variables, images[first : first + size]))
    for first in range(0, count, size)
  ]
  mean = jax.tree.map(lambda *values: np.mean(values, axis=0), *found)
  left = np.int32(round(section.observe_fraction * num_steps))
  tensors = {
    name: {'bounds': own['bounds'].astype(np.float32), 'left': left}
    for name, own in mean[quantized.STATE].items()
  }
  logging.info(
    'the bounds of %d tensors are from %d training images, and follow the '
    'batches for %d steps of %d',
    *(len(tensors), count, left, num_steps),
  )
  state = {quantized.STATE: tensors}
  return learners | {'student': dataclasses.replace(student, model_state=state)}


def config_of(arg: str | None) -> Any:
  """What configs/qat.py returns: the configuration of a run, to go on rounded.

  Args:
    arg: `checkpoint=RUN[,guide=student|teacher|none]`, see configs/qat.py.

  Raises:
    ValueError, FileNotFoundError: no such run, or not of a student; a guide
      that is unknown or not there.
  """
  options = settings_.parse_arg(arg, checkpoint='', guide=GUIDES[0])
  place, guide = options['checkpoint'], options['guide']
  if not place:
    raise ValueError(
      'configs/qat.py needs the finished run of a student: '
      '--config=configs/qat.py:checkpoint=RUN'
    )
  if guide not in GUIDES:
    raise ValueError(f'guide={guide!r}; accepted: {", ".join(GUIDES)}')
  before = settings_.from_config(workdirs.read(pathlib.Path(place)))
  if before.arm not in ('tl', 'kd'):
    raise ValueError(
      f'{place} is a run of arm {before.arm!r}; accepted: one of a student, of '
      'arm tl or kd'
    )
  changes = _ALONE | {
    'quantize.mode': 'qat',
    'student.checkpoint': place,
    'num_steps': max(1, round(_SHARE * before.num_steps)),
    'optimizer.learning_rate': _SHARE * before.optimizer.learning_rate,
    # As many as the fewer steps ask for.
    'eval_every_steps': 0,
  }
  return settings_.to_config_dict(
    settings_.with_values(before, changes | _guided(before, place, guide))
  )


def _guided(before: Settings, place: str, guide: str) -> dict[str, Any]:
  """What changes of who teaches, and how."""
  if guide == 'none':
    return {'arm': 'tl'}
  if guide == 'teacher':
    taught = before.arm == 'kd' and not before.distillation.mutual
    if not (taught and before.teacher.checkpoint):
      raise ValueError(
        f'guide=teacher, and no frozen teacher taught {place} (arm '
        f'{before.arm}); accepted: student, none'
      )
    return {}
  plain = settings_.to_dict(Settings())
  return {
    'arm': 'kd',
    'teacher': plain['teacher']
    | {'name': before.student.name, 'checkpoint': place},
    'distillation': plain['distillation'],
    'targets': plain['targets'],
  }
