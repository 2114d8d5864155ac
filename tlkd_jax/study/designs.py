"""The settings of a study, by the name of its data set and group of arms."""

from typing import Any

import ml_collections

from tlkd_jax import settings
from tlkd_jax.answer.labels import dataset_name
from tlkd_jax.settings import Settings, StudyDataset
from tlkd_jax.study import arms
from tlkd_jax.training import preparation

# Data set -> train sizes, arms (with their teachers), and what differs from
# tlkd_jax/settings; chosen to be small enough for two cores.
# `--config.study.run_arms="()"` runs every arm.
DATASETS: dict[str, dict[str, Any]] = {
  'digits': {
    'study.sizes': (5, 10, 20, 50),
    'study.run_arms': (
      'linear_probe',
      'tl',
      'tl_label_smoothing',
      'tl_self_distillation',
      'kd',
    ),
    'image_size': 32,
    'num_steps': 100,
  },
  'trashnet': {
    # The smallest class has 93 training images.
    'study.sizes': (10, 20, 50, 90),
    'study.run_arms': (
      'tl',
      'tl_label_smoothing',
      'kd',
      'kd_high_res_teacher',
    ),
    'image_size': 64,
    'num_steps': 100,
  },
  'cifar10': {
    'study.sizes': (10, 50),
    'study.run_arms': ('tl', 'tl_label_smoothing', 'kd'),
    'image_size': 64,
    'num_steps': 100,
    'data.num_validation_per_class': 200,
    'data.num_test_per_class': 200,
  },
}
_SMOKE = {'study.seeds': 2, 'study.sizes': (2, 4)}
# What differs where the arms are tuned: one size, and half of the images that
# a choice needs.
_TUNED: dict[str, dict[str, Any]] = {
  'trashnet': {
    'study.sizes': (20,),
    'image_size': 96,
    # Another one is tried by --config.study.datasets.NAME.
    'teacher.image_size': 96,
    'num_steps': 100,
  },
  'cifar10': {
    'study.sizes': (10,),
    'image_size': 64,
    'teacher.image_size': 64,
    'num_steps': 100,
    'data.num_validation_per_class': 100,
    'data.num_test_per_class': 100,
  },
}
# What differs where the tuned recipes are confirmed: seeds that tuned nothing,
# all test images. `--config.study.sizes="(0,)"` is all training images.
_CONFIRMED: dict[str, dict[str, Any]] = {
  'digits': {'study.sizes': (20, 50), 'image_size': 32},
  'trashnet': {'study.sizes': (10, 50), 'image_size': 96},
  'cifar10': {
    'study.sizes': (10, 50),
    'image_size': 64,
    'data.num_validation_per_class': 100,
    'data.num_test_per_class': 0,
  },
}
_CONFIRMING = {
  'seed': 200,
  'study.seeds': 10,
  'study.max_seeds': 10,
  'num_steps': 100,
}


def make(
  *,
  dataset: str = 'digits',
  also: str = '',
  group: str = 'all',
  student: str = 'efficientnet_lite0',
  teacher: str = '',
  smoke: bool = False,
) -> Settings:
  """The settings of a study of one data set, or of two.

  Args:
    dataset: as of settings.make; one of DATASETS brings its sizes and arms.
    also: a second one, beside the first in every mean over data sets.
    group: of arms, a key of arms.ARMS.
    student: as of settings.make.
    teacher: likewise.
    smoke: two seeds of a few images and steps.

  Raises:
    ValueError: a name that does not exist.
  """
  if also:
    return _of_two((dataset, also), group, student, teacher, smoke)
  name = dataset_name(dataset)
  values: dict[str, Any] = _values_of(name, group, smoke)
  base = settings.make(
    'study', dataset=dataset, student=student, teacher=teacher, smoke=smoke
  )
  image_size = values.get('image_size') or preparation.image_size(base)
  values |= {
    # Smoothed labels are an arm of their own, the teacher-free rival.
    'label_smoothing': 0.0,
    'study.datasets': {name: StudyDataset(changes={'dataset': dataset})},
    'study.arms': arms.make_arms(group, image_size),
  }
  if group in arms.TREATMENTS:
    values['study.treatment'] = arms.TREATMENTS[group]
  if group == 'tune':
    values |= arms.TUNING
  if group == 'confirm' and not smoke:
    values = _CONFIRMING | values
  return settings.with_values(base, values)


def _values_of(name: str, group: str, smoke: bool) -> dict[str, Any]:
  """What a data set brings: dotted key -> value."""
  designs = {'tune': _TUNED, 'confirm': _CONFIRMED}.get(group, DATASETS)
  values = dict(_SMOKE if smoke else designs.get(name, {}))
  if group != 'all':
    values.pop('study.run_arms', None)
  return values


def _of_two(
  datasets: tuple[str, str], group: str, student: str, teacher: str, smoke: bool
) -> Settings:
  """Each with its own sizes and changes; what both have is the study's."""
  made = [
    make(
      dataset=dataset,
      group=group,
      student=student,
      teacher=teacher,
      smoke=smoke,
    )
    for dataset in datasets
  ]
  sections = {}
  for one, dataset in zip(made, datasets, strict=True):
    assert one.study is not None
    name = dataset_name(dataset)
    if name in sections:
      raise ValueError(f'{" and ".join(datasets)} are both called {name!r}')
    own = _values_of(name, group, smoke)
    changes = {k: v for k, v in own.items() if not k.startswith('study.')}
    sections[name] = StudyDataset(
      sizes=one.study.sizes, changes={'dataset': dataset} | changes
    )
  return settings.with_values(made[0], {'study.datasets': sections})


def config_of(arg: str | None) -> ml_collections.ConfigDict:
  """What configs/study.py returns.

  Args:
    arg: `dataset=NAME,also=NAME,arms=GROUP,student=MODEL,teacher=MODEL,smoke`,
      in any order; GROUP is a key of arms.ARMS.

  Raises:
    ValueError: as settings.parse_arg and `make`.
  """
  options = settings.parse_arg(
    arg,
    dataset='digits',
    also='',
    arms='all',
    student='efficientnet_lite0',
    teacher='',
    smoke=False,
  )
  group = options.pop('arms')
  return settings.to_config_dict(make(group=group, **options))
