"""Sections of the configuration: what teachers say, and how it counts."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tlkd_jax import losses, models
from tlkd_jax.losses import shams
from tlkd_jax.settings.options import check_options
from tlkd_jax.settings.rules import (
  flag,
  key,
  location,
  mapping,
  number,
  one_of,
  problem,
  records,
  refuse,
  settle,
  several,
  whole,
)
from tlkd_jax.settings.sections import TRANSFER_TERMS

SCHEDULES = ('constant', 'linear', 'cosine')
ENSEMBLES = ('losses', 'probabilities')

_FRACTION = number(0, 1)


@dataclasses.dataclass(frozen=True)
class ExtraLoss:
  """A further loss of the sum; the section that holds it checks it."""

  weight: float = key(1.0, 'Of the loss.', number(0))
  schedule: str = key('constant', 'Of the weight.', one_of(SCHEDULES))
  end_weight: float = key(0.0, 'At the end of the schedule.', number(0))
  warmup_fraction: float = key(
    0.0,
    'Share of the run in which the weight rises linearly from 0.',
    _FRACTION,
  )
  options: Mapping[str, Any] = key(
    {}, 'Hyper-parameters of the loss.', mapping()
  )


@dataclasses.dataclass(frozen=True)
class Distillation:
  """loss = hard_weight * cross-entropy + soft_weight * distillation loss."""

  hard_weight: float = key(
    1.0,
    'loss = hard_weight * cross-entropy + soft_weight * distillation loss.',
    number(0),
  )
  loss: str = key(
    'kd', 'A key of tlkd_jax.losses.LOSSES.', one_of(losses.LOSSES)
  )
  soft_weight: float = key(1.0, 'Of the distillation loss.', number(0))
  schedule: str = key(
    'constant',
    'Of soft_weight, from it to end_weight over the run.',
    one_of(SCHEDULES),
  )
  end_weight: float = key(0.0, 'At the end of the schedule.', number(0))
  warmup_fraction: float = key(
    0.0,
    'Share of the run in which the weight rises linearly from 0.',
    _FRACTION,
  )
  temperature: float = key(
    2.0, 'Of `loss`, where it has one.', number(0, above=True)
  )
  temperature_schedule: str = key(
    'constant',
    'Of every loss with a temperature, from its own to end_temperature.',
    one_of(SCHEDULES),
  )
  end_temperature: float = key(
    1.0, 'At the end of the schedule.', number(0, above=True)
  )
  assistants: tuple[str, ...] = key(
    (),
    'Models between teacher and student, each taught by the one before.',
    several(one_of(models.MODELS)),
  )
  mutual: bool = key(
    False,
    'The teacher learns beside the student, and from it (mutual learning).',
    flag(),
  )
  generations: int = key(
    1,
    'Born again: so many students in turn, each taught by the one before.',
    whole(1),
  )
  unlabelled: str = key(
    '',
    'Images without labels that the student learns from beside the training '
    "images, by the teacher alone: 'folder:PATH'; '' is none.",
    location(empty=True, start='folder:'),
  )
  more_teachers: tuple[str, ...] = key(
    (),
    'Finished runs (workdirs) that teach beside config.teacher.',
    several(location()),
  )
  ensemble: str = key(
    'probabilities',
    "Of several teachers: mean of the 'probabilities' at the loss's "
    "temperature, or of the 'losses', which is for losses on features too.",
    one_of(ENSEMBLES),
  )
  sham: str = key(
    'off',
    "A control: targets as sure of each label as the teacher's, that know "
    "nothing else: the rest of the probability 'uniform', or the teacher's "
    "'permuted' between the other classes.",
    one_of(shams.SHAMS),
  )
  options: Mapping[str, Any] = key(
    {},
    'Other hyper-parameters of the loss; all are here, with their published '
    'values, when the loss is chosen as `configs/kd.py:loss=NAME`.',
    mapping(),
  )
  extra: Mapping[str, ExtraLoss] = key(
    {},
    'Further losses of the sum, `loss=NAME+NAME`: extra.NAME.weight, '
    '.schedule, .end_weight, .warmup_fraction and .options, as above.',
    records(ExtraLoss),
  )

  def __post_init__(self):
    refuse(settle(self, 'distillation') or self._settle_losses())

  def _settle_losses(self) -> list[str]:
    """Options in the order of their loss, further losses in that of names."""
    problems = _compares_with_start('distillation.loss', self.loss)
    place = 'distillation.options'
    options, wrong = check_options(self.loss, self.options, place)
    object.__setattr__(self, 'options', options)
    problems += wrong
    extra = {}
    for name, loss in sorted(self.extra.items()):
      place = f'distillation.extra.{name}'
      if name not in losses.LOSSES:
        problems.append(problem(place, name, one_of(losses.LOSSES)))
        continue
      if name == self.loss:
        problems.append(f'{place} names {name!r}, as distillation.loss does')
      problems += _compares_with_start(place, name)
      options, wrong = check_options(name, loss.options, f'{place}.options')
      extra[name] = dataclasses.replace(loss, options=options)
      problems += wrong
    object.__setattr__(self, 'extra', extra)
    return problems


def _compares_with_start(place: str, name: str) -> list[str]:
  loss = losses.find(name)
  if loss.guide != 'start':
    return []
  key = next(key for key in (name, 'l2_sp') if key in TRANSFER_TERMS)
  return [
    f'{place} is {name!r}, which compares a student with its own start and not '
    f'with a teacher; set transfer.{key} in its place'
  ]
