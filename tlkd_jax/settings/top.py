"""The configuration of a run or a study: its own keys and its sections."""

import dataclasses

from tlkd_jax.evaluation.metrics import METRICS
from tlkd_jax.models.network import DTYPES
from tlkd_jax.settings.distillation import Distillation
from tlkd_jax.settings.rules import (
  flag,
  key,
  number,
  one_of,
  refuse,
  section,
  settle,
  text,
  whole,
)
from tlkd_jax.settings.sections import (
  Augment,
  Data,
  Optimizer,
  Student,
  Targets,
  Teacher,
  Transfer,
)
from tlkd_jax.settings.study import Study

ARMS = ('teacher', 'tl', 'kd', 'compare', 'study')
BATCH_NORMS = ('frozen', 'train', 'stochastic')
REMAT = ('none', 'blocks')


@dataclasses.dataclass(frozen=True)
class Settings:
  """All that a run or a study is told.

  Raises:
    WrongSettings: a value that is not accepted, or several that exclude each
      other; so no room needs to check one.
  """

  arm: str = key(
    'kd', "'teacher' | 'tl' | 'kd' | 'compare' (all) | 'study'.", one_of(ARMS)
  )
  seed: int = key(
    0,
    'Of data subsets, order, augmentation, dropout, heads.',
    whole(0, 2**31 - 1),
  )
  dataset: str = key('digits', "'digits' | 'folder:PATH' | TFDS name.", text())
  image_size: int = key(64, "Side of the student's images, pixels.", whole(8))
  num_train_per_class: int = key(
    20, 'Training images per class; 0 is all.', whole(0)
  )
  train_fraction: float = key(
    1.0,
    'Stratified fraction of the training images.',
    number(0, 1, above=True),
  )
  batch_size: int = key(32, 'Global, over all devices.', whole(1))
  num_steps: int = key(200, 'Batches the student learns from.', whole(1))
  batch_norm: str = key(
    'frozen',
    "'frozen' statistics | 'train' | 'stochastic' (StochNorm).",
    one_of(BATCH_NORMS),
  )
  compute_dtype: str = key('float32', "'float32' | 'bfloat16'.", one_of(DTYPES))
  memory_check: bool = key(
    True,
    'Before the first step, compare what it needs with the memory there is.',
    flag(),
  )
  remat: str = key(
    'none',
    "What the backward pass computes again rather than keeps: 'none', or of "
    "the student's 'blocks' all but their inputs. XLA on CPU saves nothing by "
    'it.',
    one_of(REMAT),
  )
  label_smoothing: float = key(
    0.1, 'Of the hard loss.', number(0, 1, below=True)
  )
  ema_decay: float = key(
    0.0,
    'Moving average of the weights; 0 is off.',
    number(0, 1, below=True),
  )
  log_every_steps: int = key(
    10, 'Training metrics are averaged and written.', whole(1)
  )
  eval_every_steps: int = key(
    50, 'Validation, choice of best, checkpoint.', whole(1)
  )
  keep_checkpoints: int = key(2, 'Newest kept, beside the best.', whole(1))
  early_stopping: int = key(
    0, 'Evaluations without gain before stopping; 0 off.', whole(0)
  )
  best_metric: str = key(
    'top1', 'Validation metric; ties keep the earlier.', one_of(METRICS)
  )
  data: Data = section(Data)
  augment: Augment = section(Augment)
  optimizer: Optimizer = section(Optimizer)
  student: Student = section(Student)
  teacher: Teacher = section(Teacher)
  distillation: Distillation = section(Distillation)
  targets: Targets = section(Targets)
  transfer: Transfer = section(Transfer)
  study: Study | None = section(Study, absent=True)

  def __post_init__(self):
    refuse(settle(self, ''))
