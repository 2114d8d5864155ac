"""The configuration of a run or a study: its own keys and its sections."""

import dataclasses

import numpy as np

from tlkd_jax.evaluation.metrics import METRICS
from tlkd_jax.models.network import DTYPES
from tlkd_jax.runtime.errors import unknown_name
from tlkd_jax.settings import conflicts, guiding
from tlkd_jax.settings.distillation import Distillation
from tlkd_jax.settings.networks import NetworkSection, Student, Teacher
from tlkd_jax.settings.quantize import Quantize, of_quantize, values_of
from tlkd_jax.settings.rules import (
  flag,
  key,
  keys_of,
  location,
  number,
  one_of,
  optional,
  refuse,
  section,
  settle,
  whole,
)
from tlkd_jax.settings.sections import (
  Augment,
  Data,
  Optimizer,
  Targets,
  Transfer,
)
from tlkd_jax.settings.study import Study

RUNS = ('teacher', 'tl', 'kd', 'compare', 'study')
BATCH_NORMS = ('frozen', 'train', 'stochastic')
# Of best_metric: chosen by the data, see training/balance.py.
AUTOMATIC = 'auto'
REMAT = ('none', 'blocks')


@dataclasses.dataclass(frozen=True)
class Settings:
  """All that a run or a study is told.

  Raises:
    WrongSettings: a value that is not accepted, or several that exclude each
      other; so no room needs to check one.
  """

  arm: str = key(
    'kd', "What is run; 'compare' is teacher, TL and TL+KD.", one_of(RUNS)
  )
  seed: int = key(
    0,
    'Of data subsets, order, augmentation, dropout, heads.',
    whole(0, 2**31 - 1),
  )
  dataset: str = key(
    'digits',
    "'digits' | 'folder:PATH' | 'csv:PATH' | 'imagefolder:PATH' | "
    "'parquet:PATH' | TFDS name | 'arrays:KEY', of data.Dataset.from_arrays.",
    location(),
  )
  image_size: int = key(
    0,
    "Side of the student's images, pixels; 0 is 64 for digits, else the native "
    'side of its weights.',
    whole(8, zero=True),
  )
  num_train_per_class: int | None = key(
    None,
    'Training images per class; 0 is all, None is 20 for digits, else all.',
    optional(whole(0)),
  )
  train_fraction: float = key(
    1.0,
    'Stratified fraction of the training images.',
    number(0, 1, above=True),
  )
  batch_size: int = key(32, 'Global, over all devices.', whole(1))
  num_steps: int = key(
    0,
    'Batches the student learns from; 0 is 200 for digits, else 20 epochs, but '
    'at least 200 and at most 5,000.',
    whole(1, zero=True),
  )
  cost_matched: bool = key(
    False,
    'Of arm tl: so many steps more as the teacher would take (its fitting, and '
    "what it says in num_steps), counted in multiply-adds: TL at TL+KD's cost.",
    flag(),
  )
  batch_norm: str = key(
    'frozen',
    "Of its statistics: 'frozen', of the batches, or 'stochastic' (StochNorm).",
    one_of(BATCH_NORMS),
  )
  compute_dtype: str = key(
    'float32', 'Of the networks; losses are float32.', one_of(DTYPES)
  )
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
    0,
    'Validation, choice of best, checkpoint; 0 is 50, or a twentieth of '
    'num_steps where that is more.',
    whole(1, zero=True),
  )
  keep_checkpoints: int = key(2, 'Newest kept, beside the best.', whole(1))
  early_stopping: int = key(
    0, 'Evaluations without gain before stopping; 0 off.', whole(0)
  )
  on_nonfinite: str = key(
    'error',
    'What a step is whose loss, gradient or weights are not finite: an error, '
    'or skipped: nothing but its number changes, and it is counted.',
    one_of(('error', 'skip')),
  )
  most_nonfinite: int = key(
    10, 'Steps that a run may skip so; one more is an error.', whole(1)
  )
  best_metric: str = key(
    AUTOMATIC,
    'Validation metric (evaluation.metrics); ties keep the earlier. '
    "'auto' is top1, and macro_f1 where the largest class has more than ten "
    'times the images of the smallest, in train or in validation.',
    one_of((AUTOMATIC, *METRICS)),
  )
  data: Data = section(Data)
  augment: Augment = section(Augment)
  optimizer: Optimizer = section(Optimizer)
  student: Student = section(Student)
  teacher: Teacher = section(Teacher)
  distillation: Distillation = section(Distillation)
  targets: Targets = section(Targets)
  transfer: Transfer = section(Transfer)
  quantize: Quantize = section(Quantize)
  study: Study | None = section(Study, absent=True)

  def __post_init__(self):
    refuse(settle(self, ''))
    refuse(self._conflicts())

  def network(self, role: str) -> NetworkSection:
    """The section of a network: 'student' or 'teacher'."""
    found: dict[str, NetworkSection] = {
      'student': self.student,
      'teacher': self.teacher,
    }
    return found[role]

  @property
  def fit(self) -> str:
    """How the run's own network learns."""
    fits = {'teacher': self.teacher.fit, 'tl': self.student.fit}
    return fits.get(self.arm, 'finetuned')

  @property
  def is_taught(self) -> bool:
    """Whether the command has a teacher: TL too, for a stage without labels."""
    stage = self.arm == 'tl' and self.distillation.pretrain_steps > 0
    return self.arm in ('kd', 'compare') or stage

  @property
  def seed_of_draws(self) -> int:
    """Of order, augmentation, dropout and heads; subsets follow `seed` itself.

    The first member of an ensemble draws what TL of the seed draws.
    """
    member = self.student.member
    if member <= 1:
      return self.seed
    (word,) = np.random.SeedSequence((self.seed, member)).generate_state(1)
    return int(word) >> 1

  def _conflicts(self) -> list[str]:
    guides, mixing = self.distillation, self.augment
    student, teacher = self.student, self.teacher
    guided = self.arm in ('kd', 'compare', 'study')
    lines = guiding.of_losses(guides, mixing)
    lines += guiding.of_sham(guides, mixing)
    lines += conflicts.of_stages(guides, self.transfer, student, teacher)
    lines += conflicts.of_variants(self.image_size, student, teacher)
    who = conflicts.guides_of(guides, student, teacher)
    lines += conflicts.of_embeddings(guides, who)
    lines += conflicts.of_token(guides, student)
    lines += guiding.of_protocols(guides)
    lines += conflicts.of_fits(self.arm, student, teacher)
    if self.cost_matched:
      lines += conflicts.of_cost(
        self.arm, student, teacher, guides, self.targets
      )
    lines += guiding.of_mutual(guides, self.targets, teacher)
    lines += guiding.of_pretraining(guides, self.transfer)
    taught = guides.unlabelled and guides.pretrain_steps > 0
    if self.arm in ('kd', 'compare') or self.fit == 'fixmatch' or taught:
      # None, too, may come to all: that is known with the data.
      every = self.num_train_per_class == 0 and self.train_fraction == 1
      lines += guiding.of_unlabelled(guides, every, self.batch_size)
    if self.fit == 'fixmatch':
      lines += guiding.of_fixmatch(guides, mixing)
    lines += guiding.of_views(guides, mixing, guided=guided)
    lines += guiding.of_self_training(guides, mixing, teacher)
    if guided:
      lines += guiding.of_weights(guides)
    lines += conflicts.of_targets(self.targets, guides, mixing)
    lines += conflicts.of_transfer(
      self.transfer, guides, mixing, student, self.batch_size
    )
    lines += of_quantize(
      self.quantize.mode,
      self.arm,
      student.checkpoint,
      student.name,
      values_of(self),
    )
    lines += conflicts.of_balance(self.data, guides)
    lines += conflicts.of_steps(
      self.arm, self.optimizer, self.num_steps, teacher, self.transfer, guides
    )
    if self.num_train_per_class and self.train_fraction != 1:
      lines.append(
        f'train_fraction is {self.train_fraction} and num_train_per_class is '
        f'{self.num_train_per_class}: give one of them; accepted: 1.0 and any '
        'number per class, or any fraction and 0'
      )
    if (self.arm == 'study') != (self.study is not None):
      lines.append(
        f"arm is {self.arm!r}; accepted: 'study' with the section study, and "
        'only with it'
      )
    if self.study is not None:
      lines += self._wrong_grids(self.study)
    return lines

  def _wrong_grids(self, study: Study) -> list[str]:
    known = tunable()
    grids = {'study': study} | {
      f'study.arms.{name}': arm for name, arm in study.arms.items()
    }
    return [
      f'{place}.grid: {unknown_name("key that can be tried", name, known)}'
      for place, owner in grids.items()
      for name in owner.grid
      if name not in known and not name.startswith('distillation.options.')
    ]


def tunable() -> list[str]:
  """The keys that a study's grid may hold.

  Not those by which the study says which data, size, arm and seed a cell is
  of, nor places.
  """
  sections = {key.rpartition('.')[0] for key in keys_of(Settings)}
  return [
    key
    for key in keys_of(Settings)
    if key not in sections | _OF_CELL
    and not key.startswith(('study.', 'targets.'))
  ]


_OF_CELL = frozenset(
  {
    'study',
    'arm',
    'seed',
    'dataset',
    'num_train_per_class',
    'train_fraction',
    'teacher.checkpoint',
    'distillation.more_teachers',
    'distillation.options',
    'data.data_dir',
    'data.cache_dir',
    'data.folds',
    'data.fold',
  }
)
