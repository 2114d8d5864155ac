"""The arms of the studies: what each trains, under whom, with what changes.

All arms of a group have the same steps, batches, augmentation and number of
trials, unless their changes say otherwise.
"""

import dataclasses

from tlkd_jax import losses
from tlkd_jax.settings import StudyArm

HIGH_RESOLUTION = 5 / 3
GRID_TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
GRID_WEIGHTS = (0.5, 1.0, 2.0, 4.0)
# Group without an arm 'kd' -> that with the defaults of the configuration.
TREATMENTS = {'grid': 'kd_T2_w1', 'smoothed_teachers': 'kd_T2'}

_TEACHER = StudyArm('teacher', 'teacher')
_TL = StudyArm('tl', 'TL')
_SMOOTHED = StudyArm('tl', 'TL + label smoothing', (), {'label_smoothing': 0.1})
# The floor: logistic regression on the features of the pretrained network.
_PROBE = {'student.fit': 'probed'}
_L2_SP = {'transfer.l2_sp': 0.1, 'transfer.l2_sp_head': 0.01}


def _grid() -> dict[str, StudyArm]:
  arms = {'teacher': _TEACHER, 'tl': _TL}
  for temperature in GRID_TEMPERATURES:
    for weight in GRID_WEIGHTS:
      name = f'kd_T{temperature:g}_w{weight:g}'.replace('.', '_')
      arms[name] = StudyArm(
        'kd',
        f'TL+KD, T={temperature:g}, weight={weight:g}',
        ('teacher',),
        {
          'distillation.temperature': temperature,
          'distillation.soft_weight': weight,
        },
      )
  return arms


def _with_unlabelled() -> dict[str, StudyArm]:
  """The same images without labels, with a teacher and without one."""
  rest = {'distillation.unlabelled': 'rest'}
  hard = rest | {'distillation.self_training': 'hard'}
  soft = rest | {'distillation.self_training': 'soft'}
  fixmatch = rest | {'student.fit': 'fixmatch'}
  return {
    'teacher': _TEACHER,
    'tl': _TL,
    'kd': StudyArm('kd', 'TL+KD', ('teacher',)),
    'kd_rest': StudyArm('kd', 'TL+KD, unlabelled', ('teacher',), rest),
    'self_training_rest': StudyArm('kd', 'self-training, hard', ('tl',), hard),
    'self_training_soft_rest': StudyArm(
      'kd', 'self-training, soft', ('tl',), soft
    ),
    'fixmatch_rest': StudyArm('tl', 'FixMatch', (), fixmatch),
  }


def _of_losses() -> dict[str, StudyArm]:
  """An arm for each loss that reads a teacher, with its published settings."""
  arms = {}
  for name, loss in losses.LOSSES.items():
    if loss.same_as or loss.guide != 'teacher':
      continue
    changes: dict = {'distillation.loss': name}
    if name == 'function_matching':
      changes |= {'distillation.hard_weight': 0.0, 'augment.mixup_alpha': 1.0}
    arms[name] = StudyArm('kd', name, ('teacher',), changes)
  return arms


def _fitted(fit: str, label: str) -> StudyArm:
  return StudyArm('teacher', label, (), {'teacher.fit': fit})


def _sham(kind: str) -> StudyArm:
  changes = {'distillation.sham': kind}
  return StudyArm('kd', f'TL+KD, {kind} sham', ('teacher',), changes)


def _kinds_of_teacher() -> dict[str, StudyArm]:
  """Every kind alone and with its students, beside TL in two forms."""
  smoothed = {'teacher.label_smoothing': 0.1}
  teachers = {
    'finetuned': _TEACHER,
    'smoothed': StudyArm('teacher', 'smoothed teacher', (), smoothed),
    'early': _fitted('early', 'early teacher'),
    'probed': _fitted('probed', 'probed teacher'),
    'crossfitted': _fitted('crossfitted', 'cross-fitted teacher'),
    'crossfitted_finetuned': _fitted(
      'crossfitted_finetuned', 'cross-fitted fine-tuned teacher'
    ),
  }
  arms = {
    'tl': _TL,
    'tl_label_smoothing': _SMOOTHED,
    'linear_probe': StudyArm('tl', 'linear probe', (), _PROBE),
  }
  for fit, teacher in teachers.items():
    name = 'teacher' if teacher is _TEACHER else f'teacher_{fit}'
    arms[name] = teacher
    student = 'kd' if teacher is _TEACHER else f'kd_{fit}_teacher'
    label = 'TL+KD' if teacher is _TEACHER else f'TL+KD, {teacher.label}'
    arms[student] = StudyArm('kd', label, (name,))
  return arms


def _smoothed_teachers() -> dict[str, StudyArm]:
  """A teacher with and without smoothed labels, at rising temperatures.

  The claim of Chandrasegaran et al. 2022, arXiv 2206.14532: with temperatures
  above 1 a smoothed teacher does harm, at 1 it does good.
  """
  smoothed = {'teacher.label_smoothing': 0.1}
  teachers = {
    '': _TEACHER,
    '_smoothed': StudyArm('teacher', 'smoothed teacher', (), smoothed),
  }
  arms = {f'teacher{name}': arm for name, arm in teachers.items()}
  arms['tl'] = _TL
  for temperature in (1.0, 2.0, 3.0):
    for name, teacher in teachers.items():
      arms[f'kd{name}_T{temperature:g}'] = StudyArm(
        'kd',
        f'TL+KD, {teacher.label}, T={temperature:g}',
        (f'teacher{name}',),
        {'distillation.temperature': temperature},
      )
  return arms


# As many trials for TL as for TL+KD, on seeds that confirm nothing.
TUNING = {
  'study.tuning_seeds': (100, 101, 102),
  'study.criterion': 'nll',
  'study.grid': {'teacher.fit': ('finetuned', 'probed', 'crossfitted')},
}


def _tuned() -> dict[str, StudyArm]:
  return {
    'teacher': _TEACHER,
    'tl': dataclasses.replace(
      _TL,
      grid={
        'optimizer.learning_rate': (3e-4, 1e-3, 3e-3),
        'label_smoothing': (0.0, 0.05, 0.1, 0.2),
      },
    ),
    'kd': StudyArm(
      'kd',
      'TL+KD',
      ('teacher',),
      {'label_smoothing': 0.1},
      {
        'distillation.temperature': (2.0, 4.0),
        'distillation.soft_weight': (1.0, 4.0),
      },
    ),
  }


def _confirmed() -> dict[str, StudyArm]:
  """The tuned recipes, and what else could be the reason for a gain."""
  smoothed = {'label_smoothing': 0.1}
  probed = {'teacher.fit': 'probed'}
  large = ('teacher_high_res',)
  rest = smoothed | {'distillation.unlabelled': 'rest'}
  pseudo = rest | {'distillation.self_training': 'hard'}
  sham = smoothed | {'distillation.sham': 'permuted'}
  cost = smoothed | probed | {'cost_matched': True}
  return {
    # Its image size is HIGH_RESOLUTION times the student's, see `make_arms`.
    'teacher_high_res': StudyArm('teacher', 'teacher', (), probed),
    'tl': StudyArm('tl', 'TL', (), smoothed),
    'kd': StudyArm('kd', 'TL+KD', large, smoothed),
    'tl_plain': StudyArm('tl', 'TL, labels not smoothed'),
    'kd_sham': StudyArm('kd', 'TL+KD, permuted sham', large, sham),
    'tl_cost_matched': StudyArm('tl', "TL at TL+KD's cost", (), cost),
    'kd_rest': StudyArm('kd', 'TL+KD, unlabelled', large, rest),
    'self_training_rest': StudyArm('kd', 'self-training', ('tl',), pseudo),
    'teacher': StudyArm('teacher', "teacher at the student's size", (), probed),
    'kd_same_size_teacher': StudyArm(
      'kd', "TL+KD, teacher at the student's size", ('teacher',), smoothed
    ),
    'teacher_finetuned': _fitted('finetuned', 'fine-tuned teacher'),
    'kd_finetuned_teacher': StudyArm(
      'kd', 'TL+KD, fine-tuned teacher', ('teacher_finetuned',), smoothed
    ),
  }


def _advised() -> dict[str, StudyArm]:
  """The recipe in question, without its teacher, and at its cost."""
  smoothed = {'label_smoothing': 0.1}
  probed = {'teacher.fit': 'probed'}
  cost = smoothed | probed | {'cost_matched': True}
  return {
    'teacher': StudyArm('teacher', 'teacher', (), probed),
    'tl': StudyArm('tl', 'TL', (), smoothed),
    'kd': StudyArm('kd', 'TL+KD', ('teacher',), smoothed),
    'tl_cost_matched': StudyArm('tl', "TL at TL+KD's cost", (), cost),
  }


# Group of `configs/study.py:arms=GROUP` -> name -> arm.
ARMS: dict[str, dict[str, StudyArm]] = {
  # Does the teacher help?
  'all': {
    'teacher': _TEACHER,
    'linear_probe': StudyArm('tl', 'linear probe', (), _PROBE),
    'tl': _TL,
    'tl_label_smoothing': _SMOOTHED,
    'tl_l2sp': StudyArm('tl', 'TL + L2-SP', (), _L2_SP),
    # Born again: the teacher is the finished TL student of the same seed.
    'tl_self_distillation': StudyArm('kd', 'TL + self-distillation', ('tl',)),
    'kd': StudyArm('kd', 'TL+KD', ('teacher',)),
    'teacher_probed': _fitted('probed', 'probed teacher'),
    'kd_probed_teacher': StudyArm(
      'kd', 'TL+KD, probed teacher', ('teacher_probed',)
    ),
    # Its image size is HIGH_RESOLUTION times the student's, see `make_arms`.
    'teacher_high_res': StudyArm('teacher', 'high-resolution teacher'),
    'kd_high_res_teacher': StudyArm(
      'kd', 'TL+KD, high-resolution teacher', ('teacher_high_res',)
    ),
    # Two networks at two resolutions, each trained anyway.
    'kd_ensemble': StudyArm(
      'kd', 'TL+KD, three teachers', ('teacher', 'teacher_high_res', 'tl')
    ),
  },
  # Which kind of teacher has something to say?
  'teachers': _kinds_of_teacher(),
  # Does a teacher with smoothed labels do harm?
  'smoothed_teachers': _smoothed_teachers(),
  # Which recipe is best, with as many trials for TL?
  'tune': _tuned(),
  # Temperature x soft weight.
  'grid': _grid(),
  # Is it the teacher's knowledge, or would less have done?
  'controls': {
    'teacher': _TEACHER,
    'tl': _TL,
    'tl_label_smoothing': _SMOOTHED,
    'kd': StudyArm('kd', 'TL+KD', ('teacher',)),
    'kd_sham_uniform': _sham('uniform'),
    'kd_sham_permuted': _sham('permuted'),
    'tl_cost_matched': StudyArm(
      'tl', "TL at TL+KD's cost", (), {'cost_matched': True}
    ),
    # As many students as a student and its teacher are networks.
    'tl_ensemble': StudyArm(
      'tl', 'TL, mean of two students', (), {'student.fit': 'ensemble'}
    ),
  },
  # Baselines; `make_arms` adds every loss. L2-SP's weights are its paper's
  # (arXiv 1802.01483). Those of DELTA, BSS, LwF and Co-Tuning are a hundredth
  # of the published ones or less, by validation: these were found for images
  # of 224 pixels, and at 64 a network's features and source logits are five
  # times as large and say little, so that they overrule the labels
  # (docs/methods.md, "Weights of the transfer terms").
  'methods': {
    'teacher': _TEACHER,
    'tl': _TL,
    'linear_probe': StudyArm('tl', 'linear probe', (), _PROBE),
    'label_smoothing': StudyArm(
      'tl', 'label smoothing', (), {'label_smoothing': 0.1}
    ),
    'ema': StudyArm('tl', 'EMA', (), {'ema_decay': 0.98}),
    'one_rate': StudyArm(
      'tl', 'no layer-wise decay', (), {'optimizer.layer_decay': 1.0}
    ),
    'mixup': StudyArm('tl', 'mixup', (), {'augment.mixup_alpha': 0.2}),
    'cutmix': StudyArm('tl', 'CutMix', (), {'augment.cutmix_alpha': 1.0}),
    'randaugment': StudyArm(
      'tl',
      'RandAugment',
      (),
      {'augment.randaugment_ops': 2, 'augment.randaugment_magnitude': 5.0},
    ),
    'l2_sp': StudyArm('tl', 'L2-SP', (), _L2_SP),
    'delta': StudyArm('tl', 'DELTA', (), {'transfer.delta': 1e-7}),
    'bss': StudyArm('tl', 'BSS', (), {'transfer.bss': 1e-5}),
    'lwf': StudyArm('tl', 'LwF', (), {'transfer.lwf': 0.01}),
    'co_tuning': StudyArm('tl', 'Co-Tuning', (), {'transfer.co_tuning': 0.01}),
    'stoch_norm': StudyArm('tl', 'StochNorm', (), {'batch_norm': 'stochastic'}),
    'kd_l2_sp': StudyArm('kd', 'TL+KD, L2-SP', ('teacher',), _L2_SP),
    'born_again': StudyArm('kd', 'born again', ('tl',)),
  },
  # What are images without labels worth, with a teacher and without?
  'unlabelled': _with_unlabelled(),
  # Does the tuned recipe help, on seeds and sizes that did not tune it?
  'confirm': _confirmed(),
  # Is a teacher worth it here? See tlkd_jax/advice.
  'advise': _advised(),
}


def make_arms(group: str, image_size: int) -> dict[str, StudyArm]:
  """The arms of a group, for students that see `image_size` pixels.

  Raises:
    ValueError: a group that does not exist.
  """
  if group not in ARMS:
    raise ValueError(
      f'config argument arms={group!r}; accepted: {", ".join(ARMS)}'
    )
  arms = dict(ARMS[group])
  if group == 'methods':
    arms |= _of_losses()
  larger = {'teacher.image_size': 16 * round(image_size * HIGH_RESOLUTION / 16)}
  of_size = {
    'teacher_high_res': larger,
    # Its steps are counted by what this teacher would take.
    'tl_cost_matched': larger if group == 'confirm' else {},
  }
  for name, changes in of_size.items():
    if name in arms:
      changes = {**arms[name].changes, **changes}
      arms[name] = dataclasses.replace(arms[name], changes=changes)
  return arms
