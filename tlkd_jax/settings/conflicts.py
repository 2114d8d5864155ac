"""Values that exclude each other: a function for each pair of sections.

Each returns one line per conflict, beginning with a key that takes part in it.
"""

import re

from tlkd_jax import losses, models
from tlkd_jax.settings.distillation import (
  LABELLED_FRACTION,
  SELF_TRAINING,
  Distillation,
)
from tlkd_jax.settings.networks import OPEN, Student, Teacher
from tlkd_jax.settings.sections import (
  Augment,
  Data,
  Optimizer,
  Targets,
  Transfer,
)

# Fits that leave a kept head what it is.
_LEARNED = (OPEN, 'finetuned', 'early', 'fixmatch', 'ensemble')
_MIXING = 'augment.mixup_alpha or augment.cutmix_alpha above 0'


def chosen_losses(section: Distillation) -> dict[str, tuple[str, dict]]:
  """Place of each loss of the sum -> (its name, its options)."""
  found = {'distillation.loss': (section.loss, dict(section.options))}
  for name, extra in section.extra.items():
    found[f'distillation.extra.{name}'] = (name, dict(extra.options))
  return found


def of_losses(section: Distillation, augment: Augment) -> list[str]:
  """Losses that need labels or single images; means over several teachers."""
  lines = []
  for place, (name, _) in chosen_losses(section).items():
    if losses.find(name).needs_labels and augment.mixes:
      lines.append(
        f'{place} is {name!r}, which needs the one class of each image: not '
        f'with {_MIXING}'
      )
    if losses.find(name).needs_labels and section.unlabelled:
      lines.append(
        f'{place} is {name!r}, which needs labels: not with '
        'distillation.unlabelled, which adds images without'
      )
    several = section.more_teachers and section.ensemble == 'probabilities'
    if several and losses.find(name).reads != 'logits':
      lines.append(
        f"distillation.ensemble is 'probabilities', and {place} {name!r} reads "
        'more than logits, of which there is no mean over teachers; accepted: '
        'losses, which averages those'
      )
  return lines


def of_sham(section: Distillation, augment: Augment) -> list[str]:
  """What has no p(label), or none that a sham can keep."""
  if section.sham == 'off':
    return []
  kept = [
    name
    for name, loss in losses.LOSSES.items()
    if loss.p_label_at != 'none' and not loss.same_as
  ]
  lines = [
    f'distillation.sham is {section.sham!r}, and {place} {name!r} reads more '
    "of a teacher than its p(label) at one temperature; accepted: 'off', or a "
    f'loss of {", ".join(kept)}'
    for place, (name, _) in chosen_losses(section).items()
    if losses.find(name).p_label_at == 'none'
  ]
  if augment.mixes:
    lines.append(
      f'distillation.sham is {section.sham!r}, which needs the one class of '
      f'each image: not with {_MIXING}'
    )
  if section.unlabelled:
    lines.append(
      f'distillation.sham is {section.sham!r}, which needs labels: not with '
      'distillation.unlabelled, which adds images without'
    )
  return lines


def of_stages(
  section: Distillation, transfer: Transfer, student: Student, teacher: Teacher
) -> list[str]:
  """Names of feature maps that a network does not have."""
  own = models.MODELS[student.name].stages
  theirs = models.MODELS[teacher.name].stages
  lines = [
    f'transfer.delta_stages names {name!r}; {student.name} has {", ".join(own)}'
    for name in transfer.delta_stages
    if name not in own
  ]
  if section.assistants:
    # Other pairs than these two are compared.
    return lines
  for place, (_, options) in chosen_losses(section).items():
    stages = options.get('stages') or ()
    if isinstance(stages, str):
      stages = [name for name in re.split(r'[,\s]+', stages) if name]
    for name in stages:
      first, _, second = name.partition(':')
      if first in own and (second or first) in theirs:
        continue
      where = place.removesuffix('.loss') + '.options.stages'
      lines.append(
        f'{where} names {name!r}; {student.name} has {", ".join(own)}, '
        f'{teacher.name} has {", ".join(theirs)}'
      )
  return lines


def of_protocols(section: Distillation) -> list[str]:
  """Chains of runs, each of which has the one teacher before it."""
  chained = section.generations > 1 or section.assistants
  if chained and section.more_teachers:
    return [
      'distillation.more_teachers cannot be combined with '
      'distillation.assistants or distillation.generations: each of their runs '
      'has the one teacher before it; accepted: ()'
    ]
  return []


def of_fits(arm: str, student: Student, teacher: Teacher) -> list[str]:
  """A student that no teacher guides; a head that is kept and fitted anew."""
  lines = []
  if student.fit != 'finetuned' and arm not in ('teacher', 'tl'):
    lines.append(
      f'student.fit is {student.fit!r}, of arm tl, which no teacher guides; '
      f'arm is {arm!r}; accepted: finetuned'
    )
  if student.member and arm != 'tl':
    lines.append(
      f'student.member is {student.member}, of a part of an ensemble, which is '
      f'of arm tl; arm is {arm!r}; accepted: 0'
    )
  lines += [
    f"{place}.head is 'keep', and {place}.fit {section.fit!r} fits a last "
    'layer in its place; accepted: new'
    for place, section in (('student', student), ('teacher', teacher))
    if section.head == 'keep' and section.fit not in _LEARNED
  ]
  return lines


def of_cost(
  arm: str,
  student: Student,
  teacher: Teacher,
  section: Distillation,
  targets: Targets,
) -> list[str]:
  """Where the cost of TL+KD is not that of a student and its one teacher."""
  if arm not in ('tl', 'study'):
    return [
      'cost_matched is True, which gives arm tl the steps that a teacher would '
      f'take; arm is {arm!r}; accepted: false'
    ]
  values = {
    'student.fit': (student.fit, 'finetuned'),
    'teacher.checkpoint': (teacher.checkpoint, None),
    'distillation.mutual': (section.mutual, False),
    'distillation.more_teachers': (section.more_teachers, ()),
    'distillation.assistants': (section.assistants, ()),
    'distillation.generations': (section.generations, 1),
    'distillation.self_training': (section.self_training, 'none'),
  }
  if targets.mode != 'online':
    values['distillation.unlabelled'] = (section.unlabelled, '')
  return [
    f'{name} is {value!r}, and cost_matched counts a student that is '
    f'fine-tuned and one teacher that is fitted for it; accepted: {accepted!r}'
    for name, (value, accepted) in values.items()
    if value != accepted
  ]


def of_unlabelled(
  section: Distillation, every: bool, batch_size: int
) -> list[str]:
  """Images without labels, and what is only said of them.

  Args:
    section: of the run.
    every: whether all training images are labelled ones.
    batch_size: of the run.
  """
  if section.unlabelled == 'rest' and every:
    return [
      "distillation.unlabelled is 'rest', and num_train_per_class 0 with "
      'train_fraction 1.0 takes all training images as labelled ones; '
      'accepted: fewer of them'
    ]
  if section.unlabelled and batch_size < 2:
    return [
      f'batch_size is {batch_size}, and with distillation.unlabelled a batch '
      'has images of both kinds; accepted: a whole number >= 2'
    ]
  if section.unlabelled:
    return []
  values = {
    'labelled_fraction': (section.labelled_fraction, LABELLED_FRACTION),
    'taught': (section.taught, 'all'),
    'self_training': (section.self_training, 'none'),
  }
  return [
    f'distillation.{name} is {value!r}, and distillation.unlabelled names no '
    f"images, e.g. 'rest'; accepted: {accepted!r}"
    for name, (value, accepted) in values.items()
    if value != accepted
  ]


def of_fixmatch(section: Distillation, augment: Augment) -> list[str]:
  """What FixMatch learns from, and what it has views of its own for."""
  if not section.unlabelled:
    return [
      "student.fit is 'fixmatch', which learns from images without labels: "
      "give them in distillation.unlabelled, e.g. 'rest'"
    ]
  if augment.mixes:
    return [
      "student.fit is 'fixmatch', which compares two views of one image: not "
      f'with {_MIXING}'
    ]
  return []


def of_views(
  section: Distillation, augment: Augment, *, guided: bool
) -> list[str]:
  """Who sees mixed images; and steps in which nothing would be learned."""
  lines = []
  if guided and section.mixed == 'soft' and not augment.mixes:
    lines.append(
      "distillation.mixed is 'soft', and no image is mixed; accepted: all, or "
      f'{_MIXING}'
    )
  labelled_apart = section.self_training != 'none'
  if section.teacher_view == 'clean' and augment.mixes and not labelled_apart:
    lines.append(
      "distillation.teacher_view is 'clean', and the student sees mixtures of "
      f'several images, with {_MIXING}; accepted: same'
    )
  if guided and section.finish_fraction > 0 and section.hard_weight == 0:
    lines.append(
      f'distillation.finish_fraction is {section.finish_fraction}, in which '
      'labels alone are learned from, and distillation.hard_weight is 0.0; '
      'accepted: 0.0'
    )
  return lines


def _stated_fit(teacher: Teacher) -> str:
  return 'finetuned' if teacher.fit == OPEN else teacher.fit


def of_self_training(
  section: Distillation, augment: Augment, teacher: Teacher
) -> list[str]:
  """A teacher that is the student's own run, with a loss that it brings."""
  if section.self_training == 'none':
    return []
  brought = SELF_TRAINING[section.self_training]
  values = {
    'distillation.mutual': (section.mutual, False),
    'distillation.more_teachers': (section.more_teachers, ()),
    'distillation.assistants': (section.assistants, ()),
    'distillation.generations': (section.generations, 1),
    'teacher.fit': (_stated_fit(teacher), 'finetuned'),
    'teacher.num_steps': (teacher.num_steps, 0),
    'teacher.image_size': (teacher.image_size, 0),
    'teacher.label_smoothing': (teacher.label_smoothing, 0.0),
  }
  lines = [
    f'{name} is {value!r}, and with distillation.self_training the teacher is '
    f"the student's own TL run; accepted: {accepted!r}"
    for name, (value, accepted) in values.items()
    if value != accepted
  ]
  if augment.mixes:
    lines.append(
      f'distillation.self_training is {section.self_training!r}, which labels '
      f'single images: not with {_MIXING}'
    )
  names = [name for name, _ in chosen_losses(section).values()]
  if names not in (['kd'], [brought]):
    lines.append(
      f'distillation.self_training is {section.self_training!r}, which brings '
      f'its own loss, {brought!r}; distillation.loss is {"+".join(names)!r}; '
      'accepted: kd, without further losses'
    )
  return lines


def of_mutual(
  section: Distillation, targets: Targets, teacher: Teacher
) -> list[str]:
  """What mutual learning is combined with: no teacher stays as it is."""
  if not section.mutual:
    return []
  values = {
    'distillation.more_teachers': (section.more_teachers, ()),
    'distillation.assistants': (section.assistants, ()),
    'distillation.generations': (section.generations, 1),
    'distillation.sham': (section.sham, 'off'),
    'distillation.teacher_view': (section.teacher_view, 'same'),
    'targets.mode': (targets.mode, 'online'),
    'teacher.num_steps': (teacher.num_steps, 0),
    'teacher.fit': (_stated_fit(teacher), 'finetuned'),
    'teacher.label_smoothing': (teacher.label_smoothing, 0.0),
  }
  lines = [
    f'{name} is {value!r}, and with distillation.mutual the teacher learns '
    f'beside the student, step by step; accepted: {accepted!r}'
    for name, (value, accepted) in values.items()
    if value != accepted
  ]
  if section.hard_weight == 0:
    lines.append(
      'distillation.hard_weight is 0.0, and with distillation.mutual neither '
      'network would learn from labels; accepted: a number > 0'
    )
  return lines


def of_weights(section: Distillation) -> list[str]:
  """Weights of which none is ever above 0."""
  terms = [(section.soft_weight, section)]
  terms += [(extra.weight, extra) for extra in section.extra.values()]
  used = any(
    weight > 0 or (term.schedule != 'constant' and term.end_weight > 0)
    for weight, term in terms
  )
  if used or section.hard_weight > 0:
    return []
  return [
    'distillation.hard_weight is 0.0, and so are distillation.soft_weight and '
    'the weights of all further losses: nothing would be learned; accepted: '
    'one of them above 0'
  ]


def of_targets(
  targets: Targets, section: Distillation, augment: Augment
) -> list[str]:
  """What stored targets cannot be combined with."""
  if targets.mode == 'online':
    return []
  lines = []
  if augment.mixes:
    lines.append(
      f"targets.mode is 'cached', and with {_MIXING} images are mixed anew in "
      'every step, so that no stored target is theirs; set both to 0, or '
      "targets.mode to 'online'"
    )
  for place, (name, options) in chosen_losses(section).items():
    if losses.find(name).reads_of(options) == 'maps':
      lines.append(
        f"targets.mode is 'cached', and {place} {name!r} compares feature "
        'maps, which are not stored; accepted: online'
      )
  return lines


def of_transfer(
  transfer: Transfer,
  section: Distillation,
  augment: Augment,
  student: Student,
  batch_size: int,
) -> list[str]:
  """What the terms need of the images, the batch and the student's start."""
  lines = []
  if transfer.co_tuning > 0 and (augment.mixes or section.unlabelled):
    lines.append(
      'transfer.co_tuning needs the one class of each image: not with '
      f'{_MIXING}, nor with distillation.unlabelled'
    )
  if transfer.bss_k > batch_size:
    lines.append(
      f'transfer.bss_k is {transfer.bss_k}; accepted: at most batch_size, '
      f'{batch_size}'
    )
  heads = len(models.MODELS[student.name].head)
  weights = {'lwf': transfer.lwf, 'co_tuning': transfer.co_tuning}
  for name in (name for name, weight in weights.items() if weight > 0):
    if student.weights == 'scratch':
      lines.append(
        f'transfer.{name} needs pretrained weights with their head; '
        "student.weights is 'scratch'"
      )
    if heads != 1:
      lines.append(
        f'transfer.{name} needs one head; student.name {student.name} has '
        f'{heads}'
      )
  return lines


def of_balance(section: Data, distillation: Distillation) -> list[str]:
  """Balanced draws are of classes, which some images do not have."""
  if section.balance == 'sampling' and distillation.unlabelled:
    return [
      "data.balance is 'sampling', which draws images by their class: not with "
      'distillation.unlabelled, which adds images without; accepted: none, '
      'logit_adjustment'
    ]
  return []


def of_steps(
  optimizer: Optimizer,
  num_steps: int,
  teacher: Teacher,
  transfer: Transfer,
) -> list[str]:
  """Runs that end before an update, or before all that learns may move."""
  least = optimizer.accumulate_steps
  lengths = {
    'num_steps': num_steps,
    'teacher.num_steps': teacher.num_steps,
    'transfer.probe_steps': transfer.probe_steps,
  }
  lines = [
    f'optimizer.accumulate_steps is {least}, so that {count} steps ({name}) '
    f'make no update; accepted: at most {count}'
    for name, count in lengths.items()
    if 0 < count < least
  ]
  frozen = optimizer.freeze_until_step
  # 0 steps are as many as the data will say.
  if 0 < num_steps <= frozen and optimizer.train_only != 'head':
    lines.append(
      f'optimizer.freeze_until_step is {frozen}, so that in {num_steps} steps '
      '(num_steps) nothing but the head would move; accepted: a whole number '
      "below that, or optimizer.train_only='head', which says so"
    )
  return lines
