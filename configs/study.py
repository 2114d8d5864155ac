"""Does the teacher help, by how much, how sure are we?

python -m tlkd_jax.study --config configs/study.py --workdir runs/study

`configs/study.py:dataset=folder:PATH` is a study of one's own images,
`configs/study.py:arms=grid` of temperature x soft_weight. Several data sets
may share one --workdir, by one command each.
"""

import pathlib

from configs import methods
from tlkd_jax import settings
from tlkd_jax.runtime.trees import nest

# Data set -> train sizes, arms (with their teachers), and what differs from
# tlkd_jax/settings; chosen to be small enough for two cores.
# `--config.study.run_arms="()"` runs every arm.
DATASETS: dict[str, dict] = {
  'digits': {
    'sizes': (5, 10, 20, 50),
    'run_arms': (
      *('linear_probe', 'tl', 'tl_label_smoothing'),
      *('tl_self_distillation', 'kd'),
    ),
    'image_size': 32,
    'num_steps': 100,
  },
  'trashnet': {
    # The smallest class has 93 training images.
    'sizes': (10, 20, 50, 90),
    'run_arms': ('tl', 'tl_label_smoothing', 'kd', 'kd_high_res_teacher'),
    'image_size': 64,
    'num_steps': 100,
  },
  'cifar10': {
    'sizes': (10, 50),
    'run_arms': ('tl', 'tl_label_smoothing', 'kd'),
    'image_size': 64,
    'num_steps': 100,
    'data.num_eval_per_class': 200,
  },
}

# Arm -> kind, label, teachers, and what differs from the defaults. All arms
# have the same steps, batches, augmentation and number of trials.
ARMS: dict[str, tuple] = {
  'teacher': ('teacher', 'teacher', ()),
  'linear_probe': (
    'tl',
    'linear probe',
    (),
    {
      'optimizer.train_only': 'head',
      'optimizer.learning_rate': 1e-2,
    },
  ),
  'tl': ('tl', 'TL', ()),
  'tl_label_smoothing': (
    'tl',
    'TL + label smoothing',
    (),
    {'label_smoothing': 0.1},
  ),
  'tl_l2sp': (
    'tl',
    'TL + L2-SP',
    (),
    {'transfer.l2_sp': 0.1, 'transfer.l2_sp_head': 0.01},
  ),
  # Born again: the teacher is the finished TL student of the same seed.
  'tl_self_distillation': ('kd', 'TL + self-distillation', ('tl',)),
  'kd': ('kd', 'TL+KD', ('teacher',)),
  # A linear probe of the same network.
  'teacher_weak': (
    'teacher',
    'weak teacher',
    (),
    {
      'optimizer.train_only': 'head',
      'optimizer.learning_rate': 1e-2,
    },
  ),
  'kd_weak_teacher': ('kd', 'TL+KD, weak teacher', ('teacher_weak',)),
  # Its teacher.image_size is HIGH_RESOLUTION times the student's.
  'teacher_high_res': ('teacher', 'high-resolution teacher', ()),
  'kd_high_res_teacher': (
    'kd',
    'TL+KD, high-resolution teacher',
    ('teacher_high_res',),
  ),
  # Two networks at two resolutions, each trained anyway.
  'kd_ensemble': (
    'kd',
    'TL+KD, three teachers',
    ('teacher', 'teacher_high_res', 'tl'),
  ),
}

HIGH_RESOLUTION = 5 / 3
GRID_TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
GRID_WEIGHTS = (0.5, 1.0, 2.0, 4.0)
# The cell of the grid with the defaults of the configuration.
_GRID_DEFAULT = 'kd_T2_w1'


def get_config(arg: str | None = None):
  """The study's configuration.

  Args:
    arg: `dataset=NAME,arms=GROUP,student=MODEL,teacher=MODEL,smoke`, in any
      order; GROUP is 'all', 'grid' or
      'methods' (configs/methods.py).
  """
  options = settings.parse_arg(
    arg,
    dataset='digits',
    arms='all',
    student='efficientnet_lite0',
    teacher='',
    smoke=False,
  )
  groups = {'all': ARMS, 'grid': _grid(), 'methods': methods.arms()}
  group = options.pop('arms')
  if group not in groups:
    raise ValueError(
      f'config argument arms={group!r}; accepted: all, grid, methods'
    )
  config = settings.to_config_dict(settings.make('study', **options))
  # Smoothed labels are an arm of their own, the teacher-free rival.
  config.label_smoothing = 0.0
  name = dataset_name(options['dataset'])
  if options['smoke']:
    config.study.update({'seeds': 2, 'sizes': (2, 4)})
  elif name in DATASETS:
    changes = dict(DATASETS[name])
    config.study.sizes = changes.pop('sizes')
    chosen = changes.pop('run_arms')
    if group == 'all':
      config.study.run_arms = chosen
    config.update_from_flattened_dict(changes)
  with config.unlocked():
    config.study.datasets[name] = {
      'sizes': (),
      'changes': {'dataset': options['dataset']},
    }
    for arm, values in groups[group].items():
      config.study.arms[arm] = _arm(*values)
    if group == 'all':
      larger = 16 * round(config.image_size * HIGH_RESOLUTION / 16)
      changes = config.study.arms.teacher_high_res.changes
      changes.teacher = {'image_size': larger}
  if group == 'grid':
    config.study.treatment = _GRID_DEFAULT
  return config


def dataset_name(dataset: str) -> str:
  """Folder name of a data set: 'folder:data/trashnet.zip' is 'trashnet'."""
  kind, _, path = dataset.partition(':')
  return pathlib.Path(path).stem if path else kind


def _grid() -> dict:
  arms: dict[str, tuple] = {name: ARMS[name] for name in ('teacher', 'tl')}
  for temperature in GRID_TEMPERATURES:
    for weight in GRID_WEIGHTS:
      changes = {
        'distillation.temperature': temperature,
        'distillation.soft_weight': weight,
      }
      label = f'TL+KD, T={temperature:g}, weight={weight:g}'
      name = f'kd_T{temperature:g}_w{weight:g}'.replace('.', '_')
      arms[name] = ('kd', label, ('teacher',), changes)
  return arms


def _arm(kind: str, label: str, teachers: tuple, changes: dict | None = None):
  return {
    'kind': kind,
    'label': label,
    'teachers': teachers,
    'changes': nest(changes or {}),
  }
