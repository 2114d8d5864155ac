"""The settings of a study, by the name of its data set and group of arms."""

from typing import Any

import ml_collections

from tlkd_jax import settings
from tlkd_jax.answer.labels import dataset_name
from tlkd_jax.settings import Settings, StudyDataset
from tlkd_jax.study import arms

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
    'data.num_eval_per_class': 200,
  },
}
_SMOKE = {'study.seeds': 2, 'study.sizes': (2, 4)}


def make(
  *,
  dataset: str = 'digits',
  group: str = 'all',
  student: str = 'efficientnet_lite0',
  teacher: str = '',
  smoke: bool = False,
) -> Settings:
  """The settings of a study of one data set.

  Args:
    dataset: as of settings.make; one of DATASETS brings its sizes and arms.
    group: of arms, a key of arms.ARMS.
    student: as of settings.make.
    teacher: likewise.
    smoke: two seeds of a few images and steps.

  Raises:
    ValueError: a name that does not exist.
  """
  name = dataset_name(dataset)
  values: dict[str, Any] = dict(_SMOKE if smoke else DATASETS.get(name, {}))
  if group != 'all':
    values.pop('study.run_arms', None)
  base = settings.make(
    'study', dataset=dataset, student=student, teacher=teacher, smoke=smoke
  )
  image_size = values.get('image_size', base.image_size)
  values |= {
    # Smoothed labels are an arm of their own, the teacher-free rival.
    'label_smoothing': 0.0,
    'study.datasets': {name: StudyDataset(changes={'dataset': dataset})},
    'study.arms': arms.make_arms(group, image_size),
  }
  if group == 'grid':
    values['study.treatment'] = arms.GRID_DEFAULT
  return settings.with_values(base, values)


def config_of(arg: str | None) -> ml_collections.ConfigDict:
  """What configs/study.py returns.

  Args:
    arg: `dataset=NAME,arms=GROUP,student=MODEL,teacher=MODEL,smoke`, in any
      order; GROUP is a key of arms.ARMS.

  Raises:
    ValueError: as settings.parse_arg and `make`.
  """
  options = settings.parse_arg(
    arg,
    dataset='digits',
    arms='all',
    student='efficientnet_lite0',
    teacher='',
    smoke=False,
  )
  group = options.pop('arms')
  return settings.to_config_dict(make(group=group, **options))
