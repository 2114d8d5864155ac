"""What distillation is combined with: losses, guides, images without labels.

As in conflicts.py, one line per conflict, beginning with a key that takes part.
"""

from collections.abc import Mapping
from typing import Any

from tlkd_jax import losses
from tlkd_jax.settings.distillation import (
  LABELLED_FRACTION,
  SELF_TRAINING,
  Distillation,
)
from tlkd_jax.settings.networks import OPEN, Teacher
from tlkd_jax.settings.sections import Augment, Targets, Transfer

MIXING = 'augment.mixup_alpha or augment.cutmix_alpha above 0'


def only(values: Mapping[str, tuple[Any, Any]], why: str) -> list[str]:
  """A line for each key whose value is not the one that goes with something.

  Args:
    values: key -> (value, the accepted one).
    why: what it goes with, the middle of the sentence.
  """
  return [
    f'{name} is {value!r}, and {why}; accepted: {accepted!r}'
    for name, (value, accepted) in values.items()
    if value != accepted
  ]


def chosen_losses(section: Distillation) -> dict[str, tuple[str, dict]]:
  """Place of each loss of the sum -> (its name, its options)."""
  found = {'distillation.loss': (section.loss, dict(section.options))}
  for name, extra in section.extra.items():
    found[f'distillation.extra.{name}'] = (name, dict(extra.options))
  return found


def all_losses(section: Distillation) -> dict[str, tuple[str, dict]]:
  """The same with that of the stage without labels, where there is one."""
  found = chosen_losses(section)
  if section.pretrain_steps:
    options = dict(section.pretrain_options)
    found['distillation.pretrain_loss'] = (section.pretrain_loss, options)
  return found


def of_losses(section: Distillation, augment: Augment) -> list[str]:
  """Losses that need labels or single images; means over several teachers."""
  lines = []
  for place, (name, _) in all_losses(section).items():
    if losses.find(name).needs_labels and augment.mixes:
      lines.append(
        f'{place} is {name!r}, which needs the one class of each image: not '
        f'with {MIXING}'
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
      f'each image: not with {MIXING}'
    )
  if section.unlabelled:
    lines.append(
      f'distillation.sham is {section.sham!r}, which needs labels: not with '
      'distillation.unlabelled, which adds images without'
    )
  return lines


def options_of(place: str) -> str:
  """The key of the options of a loss, by its place."""
  if place == 'distillation.pretrain_loss':
    return 'distillation.pretrain_options'
  return place.removesuffix('.loss') + '.options'


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
    'distillation.labelled_fraction': (
      section.labelled_fraction,
      LABELLED_FRACTION,
    ),
    'distillation.taught': (section.taught, 'all'),
    'distillation.self_training': (section.self_training, 'none'),
  }
  return only(values, "distillation.unlabelled names no images, e.g. 'rest'")


def of_pretraining(section: Distillation, transfer: Transfer) -> list[str]:
  """A stage without labels: its images, its teacher, what is kept after it."""
  if not section.pretrain_steps:
    return []
  stage = f'distillation.pretrain_steps is {section.pretrain_steps}'
  if not section.unlabelled:
    return [
      f'{stage}, of images without labels: give them in '
      "distillation.unlabelled, e.g. 'rest'"
    ]
  values = {
    'distillation.mutual': (section.mutual, False),
    'distillation.self_training': (section.self_training, 'none'),
    'transfer.lwf': (transfer.lwf, 0.0),
    'transfer.co_tuning': (transfer.co_tuning, 0.0),
  }
  return only(
    values,
    'before distillation.pretrain_steps there is no teacher of that kind, and '
    'after them no backbone that the pretrained head goes with',
  )


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
      f'with {MIXING}'
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
      f'{MIXING}'
    )
  labelled_apart = section.self_training != 'none'
  if section.teacher_view == 'clean' and augment.mixes and not labelled_apart:
    lines.append(
      "distillation.teacher_view is 'clean', and the student sees mixtures of "
      f'several images, with {MIXING}; accepted: same'
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
  lines = only(
    values,
    "with distillation.self_training the teacher is the student's own TL run",
  )
  if augment.mixes:
    lines.append(
      f'distillation.self_training is {section.self_training!r}, which labels '
      f'single images: not with {MIXING}'
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
    'distillation.token': (section.token, False),
    'distillation.teacher_view': (section.teacher_view, 'same'),
    'targets.mode': (targets.mode, 'online'),
    'teacher.num_steps': (teacher.num_steps, 0),
    'teacher.fit': (_stated_fit(teacher), 'finetuned'),
    'teacher.label_smoothing': (teacher.label_smoothing, 0.0),
  }
  lines = only(
    values,
    'with distillation.mutual the teacher learns beside the student, step by '
    'step',
  )
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
