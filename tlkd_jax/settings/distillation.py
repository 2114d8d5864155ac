"""Sections of the configuration: what teachers say, and how it counts."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tlkd_jax import losses, models
from tlkd_jax.data import unlabelled
from tlkd_jax.losses import shams
from tlkd_jax.settings.options import check_options
from tlkd_jax.settings.rules import (
  Rule,
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
TAUGHT = ('all', 'unlabelled')
TEACHER_VIEWS = ('same', 'clean')
MIXED = ('all', 'soft')
# Kind of pseudo-labels -> the loss that learns from them.
SELF_TRAINING = {'hard': 'pseudo_label', 'soft': 'kd'}
LABELLED_FRACTION = 0.5

_FRACTION = number(0, 1)


def _unlabelled() -> Rule:
  """Where images without labels are."""
  plain = location(empty=True)

  def accept(value):
    value = plain.accept(value)
    if value and not unlabelled.is_place(value):
      raise ValueError
    return value

  words = (
    "'rest', a text like 'folder:...' or 'tfds:NAME:SPLIT', or '' for none"
  )
  return dataclasses.replace(plain, accept=accept, words=words)


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
    2.0,
    'Of `loss`, where it has one; `loss=NAME` brings the published one.',
    number(0, above=True),
  )
  temperature_schedule: str = key(
    'constant',
    'Of every loss with a temperature, from its own to end_temperature.',
    one_of(SCHEDULES),
  )
  end_temperature: float = key(
    1.0, 'At the end of the schedule.', number(0, above=True)
  )
  token: bool = key(
    False,
    "Of a student with a distillation token (DeiT's *_distilled_*): its head "
    "learns from the teachers' losses on logits, and the class token's head "
    'from labels; else both learn from both. Their mean is the answer.',
    flag(),
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
    "images, by its teachers or by student.fit='fixmatch': 'rest' are the "
    'training images outside the labelled subset; folder:PATH; '
    "tfds:NAME[:SPLIT], by default of its split train; '' is none.",
    _unlabelled(),
  )
  labelled_fraction: float = key(
    LABELLED_FRACTION,
    'With unlabelled images, the share of labelled ones in each batch, rounded '
    'to whole images, at least one of each kind. batch_size counts both.',
    number(0, 1, above=True, below=True),
  )
  finish_fraction: float = key(
    0.0,
    'Share of the steps, the last ones, in which the student learns from '
    'labels alone, and batches are of labelled images.',
    number(0, 1, below=True),
  )
  taught: str = key(
    'all',
    "Images of a batch that the teachers' losses are of: 'all', or the "
    "'unlabelled' ones. With these, hard_weight 0 and finish_fraction 0 no "
    'label is read, and batches are of unlabelled images alone.',
    one_of(TAUGHT),
  )
  pretrain_steps: int = key(
    0,
    'Steps of a run before the others (WORKDIR/pretrain), in which the student '
    'learns from its teachers on the unlabelled images alone, by '
    'pretrain_loss; TL and TL+KD start from it. 0 is none.',
    whole(0),
  )
  pretrain_loss: str = key(
    'cosine',
    'Of that run, in the place of `loss`, with weight 1 and no others.',
    one_of(losses.LOSSES),
  )
  pretrain_options: Mapping[str, Any] = key(
    {},
    'Hyper-parameters of pretrain_loss; all are here, with their published '
    'values, when it is chosen as `configs/kd.py:pretrain=NAME`.',
    mapping(),
  )
  teacher_view: str = key(
    'same',
    "What frozen teachers see: the 'same' view as the student, or the image as "
    "it is evaluated ('clean').",
    one_of(TEACHER_VIEWS),
  )
  mixed: str = key(
    'all',
    "With mixup or CutMix: 'all' losses are of mixed images, or those of the "
    "teachers alone ('soft') and the hard loss of the images as they are, in a "
    'forward pass of its own.',
    one_of(MIXED),
  )
  self_training: str = key(
    'none',
    "The student's own TL run labels the unlabelled images, and no other "
    "teacher: 'hard' pseudo-labels, or 'soft' ones, its probabilities.",
    one_of(('none', *SELF_TRAINING)),
  )
  fixmatch_weight: float = key(
    1.0, "Of student.fit='fixmatch': of its loss.", number(0, above=True)
  )
  fixmatch_threshold: float = key(
    0.95,
    'Likewise: probability from which on its own answer is a target.',
    _FRACTION,
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
    'Other hyper-parameters of the loss; all but temperature are here, with '
    'their published values, when the loss is chosen as '
    '`configs/kd.py:loss=NAME`.',
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
    if 'temperature' in options:
      # As earlier versions had it, which did not read the key then.
      object.__setattr__(self, 'temperature', options.pop('temperature'))
    object.__setattr__(self, 'options', options)
    problems += wrong
    place, name = 'distillation.pretrain_options', self.pretrain_loss
    problems += _compares_with_start('distillation.pretrain_loss', name)
    options, wrong = check_options(name, self.pretrain_options, place)
    object.__setattr__(self, 'pretrain_options', options)
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
