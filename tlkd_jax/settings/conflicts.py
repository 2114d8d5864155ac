"""Values that exclude each other: a function for each pair of sections.

Each returns one line per conflict, beginning with a key that takes part in it.
"""

import re
from collections.abc import Sequence

from tlkd_jax import losses, models
from tlkd_jax.settings.distillation import Distillation
from tlkd_jax.settings.guiding import (
  MIXING,
  all_losses,
  chosen_losses,
  only,
  options_of,
)
from tlkd_jax.settings.networks import (
  FINE_TUNED,
  OPEN,
  ZERO_SHOT,
  Student,
  Teacher,
)
from tlkd_jax.settings.sections import (
  Augment,
  Data,
  Optimizer,
  Targets,
  Transfer,
)

# Fits that leave a kept head what it is.
_LEARNED = (OPEN, 'finetuned', 'early', 'fixmatch', 'ensemble')


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
  for place, (_, options) in all_losses(section).items():
    stages = options.get('stages') or ()
    if isinstance(stages, str):
      stages = [name for name in re.split(r'[,\s]+', stages) if name]
    for name in stages if isinstance(stages, list | tuple) else [stages]:
      first, _, second = str(name).partition(':')
      if first in own and (second or first) in theirs:
        continue
      lines.append(
        f'{options_of(place)}.stages names {name!r}; {student.name} has '
        f'{", ".join(own)}, {teacher.name} has {", ".join(theirs)}'
      )
  return lines


def of_variants(
  image_size: int, student: Student, teacher: Teacher
) -> list[str]:
  """What single variants do not take: another size, a head that is zero."""
  lines = []
  for place, section, key, size in (
    ('student', student, 'image_size', image_size),
    ('teacher', teacher, 'teacher.image_size', teacher.image_size),
  ):
    spec = models.MODELS[section.name]
    if spec.fixed_size and size not in (0, spec.image_size):
      lines.append(
        f'{key} is {size}; {section.name} takes images of one size; accepted: '
        f'{spec.image_size}, or 0'
      )
    elif size % spec.multiple:
      lines.append(
        f'{key} is {size}; {section.name} takes images of whole patches of '
        f'{spec.multiple} pixels; accepted: {spec.side_near(size)}, or another '
        f'multiple of {spec.multiple}'
      )
    fresh = section.head == 'new' and section.weights != 'scratch'
    if (
      spec.rectified
      and fresh
      and section.head_init == 'zero'
      and not section.checkpoint
    ):
      lines.append(
        f"{place}.head_init is 'zero', from which {section.name} does not "
        'learn: it has a ReLU behind its head; accepted: small_random'
      )
  return lines


def guides_of(
  section: Distillation, student: Student, teacher: Teacher
) -> list[str]:
  """Names of the variants that teach in the runs of an arm."""
  guides = [teacher.name, *section.assistants]
  if section.generations > 1 or section.mutual:
    guides.append(student.name)
  return list(dict.fromkeys(guides))


def of_embeddings(section: Distillation, guides: Sequence[str]) -> list[str]:
  """Embeddings that a network which guides does not give.

  Args:
    section: of the run.
    guides: names of variants.
  """
  lines = []
  for place, (_, options) in all_losses(section).items():
    chosen = options.get('embedding', 'pooled')
    for name in guides:
      there = models.MODELS[name].embeddings
      if chosen not in there:
        lines.append(
          f'{options_of(place)}.embedding is {chosen!r}, which {name} does not '
          f'give; accepted: {", ".join(there)}'
        )
  return lines


def of_token(section: Distillation, student: Student) -> list[str]:
  """A distillation token that is not there, or that nothing teaches."""
  if not section.token:
    return []
  lines = [
    f'distillation.token is True, and {name} has no distillation token; '
    'accepted: false, or a student such as '
    'timm/deit_small_distilled_patch16_224'
    for name in dict.fromkeys((student.name, *section.assistants))
    if not models.MODELS[name].distilled
  ]
  found = [name for name, _ in chosen_losses(section).values()]
  if not any(losses.find(name).reads == 'logits' for name in found):
    lines.append(
      'distillation.token is True, and no loss is on logits: '
      f'distillation.loss is {"+".join(found)!r}, so that its head would learn '
      'nothing; accepted: kd or another loss on logits, alone or in the sum'
    )
  return lines


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
  if teacher.fit == ZERO_SHOT:
    lines += _of_zero_shot(arm, teacher)
  return lines


def _of_zero_shot(arm: str, teacher: Teacher) -> list[str]:
  """A network without texts, or one that is not as it was published."""
  said = f'teacher.fit is {teacher.fit!r}'
  lines = []
  if models.MODELS[teacher.name].texts is None:
    lines.append(
      f'{said}, and {teacher.name} was not trained with texts; accepted: a '
      'teacher.name such as transformers/clip_vit_base_patch32, '
      'transformers/siglip_base_patch16_224 (`python -m tlkd_jax.models clip` '
      'and `siglip` list them), or probed'
    )
  if teacher.weights == 'scratch' and not teacher.checkpoint:
    lines.append(
      f'{said}, and teacher.weights are from scratch, which no text goes with; '
      'accepted: pretrained, or a file'
    )
  if arm == 'teacher' and teacher.checkpoint:
    lines.append(
      f'{said}, of weights as they were published, and teacher.checkpoint is '
      f'{teacher.checkpoint!r}; accepted: None, or finetuned'
    )
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
    'distillation.pretrain_steps': (section.pretrain_steps, 0),
  }
  if targets.mode != 'online':
    values['distillation.unlabelled'] = (section.unlabelled, '')
  return only(
    values,
    'cost_matched counts a student that is fine-tuned and one teacher that is '
    'fitted for it',
  )


def of_targets(
  targets: Targets, section: Distillation, augment: Augment
) -> list[str]:
  """What stored targets cannot be combined with."""
  if targets.mode == 'online':
    return []
  lines = []
  if augment.mixes:
    lines.append(
      f"targets.mode is 'cached', and with {MIXING} images are mixed anew in "
      'every step, so that no stored target is theirs; set both to 0, or '
      "targets.mode to 'online'"
    )
  for place, (name, options) in all_losses(section).items():
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
      f'{MIXING}, nor with distillation.unlabelled'
    )
  if transfer.bss_k > batch_size:
    lines.append(
      f'transfer.bss_k is {transfer.bss_k}; accepted: at most batch_size, '
      f'{batch_size}'
    )
  spec = models.MODELS[student.name]
  weights = {'lwf': transfer.lwf, 'co_tuning': transfer.co_tuning}
  for name in (name for name, weight in weights.items() if weight > 0):
    if student.weights == 'scratch':
      lines.append(
        f'transfer.{name} needs pretrained weights with their head; '
        "student.weights is 'scratch'"
      )
    if not spec.linear_head:
      lines.append(
        f'transfer.{name} needs one head; student.name {student.name} has '
        f'{spec.heads_in_words}'
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
  arm: str,
  optimizer: Optimizer,
  num_steps: int,
  teacher: Teacher,
  transfer: Transfer,
  section: Distillation,
) -> list[str]:
  """Runs that end before an update, or before all that learns may move."""
  least = optimizer.accumulate_steps
  lengths = {
    'num_steps': num_steps,
    'teacher.num_steps': teacher.num_steps,
    'transfer.probe_steps': transfer.probe_steps,
    'distillation.pretrain_steps': section.pretrain_steps,
  }
  lines = [
    f'optimizer.accumulate_steps is {least}, so that {count} steps ({name}) '
    f'make no update; accepted: at most {count}'
    for name, count in lengths.items()
    if 0 < count < least
  ]
  frozen = optimizer.freeze_until_step
  if optimizer.train_only == 'head':
    return lines
  moved = {'num_steps': num_steps}
  if arm != 'tl' and not teacher.checkpoint and teacher.fit in FINE_TUNED:
    moved['teacher.num_steps'] = teacher.num_steps
  # 0 steps are as many as the data will say.
  return lines + [
    f'optimizer.freeze_until_step is {frozen}, so that in {count} steps '
    f'({name}) nothing but the head would move; accepted: a whole number '
    "below that, or optimizer.train_only='head', which says so"
    for name, count in moved.items()
    if 0 < count <= frozen
  ]
