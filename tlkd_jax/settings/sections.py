"""Sections of the configuration: the keys of each, with what they accept."""

import dataclasses

from tlkd_jax.data import augment, transforms
from tlkd_jax.data.builders import patterns
from tlkd_jax.settings.rules import (
  Rule,
  flag,
  interval,
  key,
  location,
  number,
  one_of,
  optional,
  refuse,
  settle,
  several,
  text,
  whole,
)

OPTIMIZERS = ('sgd', 'adamw')
BALANCES = ('none', 'sampling', 'logit_adjustment')
FLIPS = ('auto', 'on', 'off')
TARGET_MODES = ('online', 'cached')
TARGET_DTYPES = ('float16', 'float32')
# Weights of the section `transfer`, 0 for off.
TRANSFER_TERMS = ('l2_sp', 'l2_sp_head', 'delta', 'bss', 'lwf', 'co_tuning')

_FRACTION = number(0, 1)
_RATE = number(0, 1, below=True)


def _pattern() -> Rule:
  """How names of images hold their class."""

  def accept(value):
    if not isinstance(value, str):
      raise TypeError
    patterns.compile_pattern(value)
    return value

  words = (
    "a name with {class} and *, such as '{class}.*.jpg', or a regular "
    'expression with a group (?P<class>...)'
  )
  return Rule(str, accept, words)


@dataclasses.dataclass(frozen=True)
class Data:
  """How images are found, decoded, cut and drawn."""

  data_dir: str | None = key(
    None,
    "Where prepared data sets lie; None is TFDS's own default.",
    optional(location()),
  )
  cache_dir: str | None = key(
    None,
    "Own copies of digits and folders; None is the user's cache folder.",
    optional(location()),
  )
  num_validation_per_class: int = key(
    0,
    'At most this many validation images per class; 0 is all.',
    whole(0),
  )
  num_test_per_class: int = key(0, 'The same, of test images.', whole(0))
  on_bad_image: str = key(
    'error',
    'What an unreadable image is: an error, or skipped and in the summary.',
    one_of(('error', 'skip')),
  )
  memory_budget_mib: int = key(
    2048,
    'Decoded images beyond this many MiB are memory-mapped, not held.',
    whole(0),
  )
  crop: float | None = key(
    None,
    'image_size / resized short side; None is 1 for digits, else what a file '
    "beside the student's weights says, else 0.875.",
    optional(number(0, 1, above=True)),
  )
  train_size: int | None = key(
    None,
    'Side at which training images are kept, pixels, of the student; other '
    'networks keep theirs as much larger than what they see. None is '
    'image_size / crop, for random resized crops / sqrt(mean of augment.scale) '
    'too, so that one of mean area is not enlarged, as far as the files have '
    'the pixels.',
    optional(whole(8)),
  )
  interpolation: str | None = key(
    None,
    'Of resizing, while images are decoded and cropped; None is that of the '
    "student's weights where it is known, else 'bicubic'.",
    optional(one_of(transforms.INTERPOLATIONS)),
  )
  image_column: str | None = key(
    None,
    'Of csv:, imagefolder: and parquet:, the column of paths or images; None '
    'is the one with a usual name.',
    optional(text()),
  )
  label_column: str | None = key(
    None, 'Likewise, the column of classes.', optional(text())
  )
  split_column: str | None = key(
    None,
    "Likewise, the column of splits ('train', 'test', ...), if there is one.",
    optional(text()),
  )
  pattern: str | None = key(
    None,
    "Of folder:, where the class is in the file's name: '{class}.*.jpg', or a "
    'regular expression with a group (?P<class>...).',
    optional(_pattern()),
  )
  folds: int = key(
    0,
    'Of data without splits of their own: each class is cut into so many '
    'folds, of which one is the test split of a run, so that every image is '
    'tested in one of them; 0 is one split.',
    whole(2, 1000, zero=True),
  )
  fold: int | None = key(
    None,
    'The fold that is test, from 0 on; None is seed mod data.folds, so that '
    'the seeds of a study go through all.',
    optional(whole(0)),
  )
  near_duplicates: bool = key(
    False,
    'Look for images of validation and test that look like those of an earlier '
    'split.',
    flag(),
  )
  balance: str = key(
    'none',
    'Against classes of unequal size, for whatever learns from labels: '
    "'sampling' draws each class equally often, 'logit_adjustment' adds "
    'balance_tau log prior to the logits in the hard loss.',
    one_of(BALANCES),
  )
  balance_tau: float = key(1.0, 'Of logit_adjustment.', number(0))

  def __post_init__(self):
    refuse(settle(self, 'data') or self._wrong())

  def _wrong(self) -> list[str]:
    if self.fold is None or self.fold < self.folds:
      return []
    if not self.folds:
      return [
        f'data.fold is {self.fold} and data.folds is 0: there is one split; '
        'accepted: None, or data.folds >= 2'
      ]
    return [
      f'data.fold is {self.fold}, of {self.folds} folds (data.folds); '
      f'accepted: a whole number in [0, {self.folds - 1}], or None'
    ]


@dataclasses.dataclass(frozen=True)
class Augment:
  """The random views of the training images."""

  crop: str = key(
    'random_resized',
    "How a training image is cut; 'random' keeps its scale.",
    one_of(augment.CROPS),
  )
  scale: tuple[float, float] = key(
    (0.35, 1.0),
    'Area of a random resized crop.',
    interval(number(0, 1, above=True)),
  )
  ratio: tuple[float, float] = key(
    (3 / 4, 4 / 3), 'Its aspect ratio.', interval(number(0, above=True))
  )
  flip: str = key(
    'auto',
    "Mirror half of the images; 'auto' as the data set says.",
    one_of(FLIPS),
  )
  brightness: float = key(0.0, 'Factor in 1 +- this.', _FRACTION)
  contrast: float = key(0.0, 'The same, of the contrast.', _FRACTION)
  saturation: float = key(0.0, 'The same, of the saturation.', _FRACTION)
  randaugment_ops: int = key(
    0, "RandAugment's operations per image; 0 is off.", whole(0)
  )
  randaugment_magnitude: float = key(9.0, 'How strong they are.', number(0, 10))
  mixup_alpha: float = key(
    0.0,
    'Beta(alpha, alpha) of mixup, 0 is off; with CutMix too, each batch draws '
    'one of them. Teachers see the mixed images.',
    number(0),
  )
  cutmix_alpha: float = key(0.0, 'The same, of CutMix.', number(0))

  def __post_init__(self):
    refuse(settle(self, 'augment'))

  @property
  def mixes(self) -> bool:
    """Whether an image may be a mixture of several."""
    return self.mixup_alpha > 0 or self.cutmix_alpha > 0


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """The optimizer, its schedule, and which parameters move how fast."""

  name: str = key('adamw', "'sgd' has Nesterov's momentum.", one_of(OPTIMIZERS))
  learning_rate: float = key(1e-3, 'Peak.', number(0))
  warmup_fraction: float = key(0.1, 'Of the steps, linear from 0.', _FRACTION)
  final_fraction: float = key(
    0.0, 'Of the peak, at the end of the cosine.', _FRACTION
  )
  momentum: float = key(0.9, 'SGD.', _RATE)
  beta1: float = key(0.9, 'AdamW.', _RATE)
  beta2: float = key(0.999, 'AdamW.', _RATE)
  weight_decay: float = key(
    0.0,
    "Kernels only. SGD: coupled, as torch's; AdamW: decoupled, so that a run "
    'takes about learning_rate / 2 x num_steps x this of a kernel away: 0.1 '
    'takes 1 % in 200 steps at 1e-3.',
    number(0),
  )
  clip_norm: float = key(1.0, 'Global gradient norm; 0 is off.', number(0))
  accumulate_steps: int = key(1, 'Batches per update.', whole(1))
  head_multiplier: float = key(
    1.0, 'Of the learning rate, for the head.', number(0)
  )
  layer_decay: float = key(
    0.7,
    'Factor per stage from the head to the stem.',
    number(0, 1, above=True),
  )
  freeze_until_step: int = key(
    0, 'Only the head moves before this step.', whole(0)
  )
  train_only: str = key(
    'all', "'head' is a linear probe.", one_of(('all', 'head'))
  )
  sharding: str = key(
    'none',
    'Of its state and the averaged weights (ema_decay) over several devices: '
    "'none', a copy on each; 'state', a part on each, which updates that part "
    'of the weights and sends it to the others.',
    one_of(('none', 'state')),
  )

  def __post_init__(self):
    refuse(settle(self, 'optimizer'))


@dataclasses.dataclass(frozen=True)
class Targets:
  """Whether the teachers' outputs are computed in the step or stored."""

  mode: str = key(
    'online',
    "The teachers' outputs: 'online', in every step, or 'cached', computed "
    'once for the views of the run, stored, and shared by runs that agree in '
    'them.',
    one_of(TARGET_MODES),
  )
  views: int = key(
    0,
    "An image of the student's training cycles through so many views, whatever "
    "the mode; 0 is a new view each epoch, which 'online' alone can do.",
    whole(0),
  )
  dtype: str = key(
    'float16',
    'Of what is stored.',
    one_of(TARGET_DTYPES),
  )
  top_k: int = key(
    0, 'Store the k largest logits, spread the rest; 0 is all.', whole(0)
  )
  dir: str | None = key(
    None,
    "Where they lie; None is `targets` in the teacher's run.",
    optional(location()),
  )
  features_mib: int = key(
    4096,
    'What a frozen backbone says of the images (of a probe, and of the stored '
    'targets of one) is kept for other runs where it takes at most so many '
    'MiB; more is computed each time, as all is with 0.',
    whole(0),
  )
  features_dtype: str = key(
    'float32',
    "Of what is kept of a backbone; 'float16' takes half.",
    one_of(TARGET_DTYPES),
  )
  features_dir: str | None = key(
    None,
    'Where that lies; None is `features` in data.cache_dir.',
    optional(location()),
  )

  def __post_init__(self):
    refuse(settle(self, 'targets') or self._wrong())

  def _wrong(self) -> list[str]:
    if self.mode == 'cached' and not self.views:
      return [
        'targets.views is 0, a new view each epoch, and targets.mode is '
        "'cached': there is nothing to store; accepted: a whole number >= 1, "
        'e.g. 4'
      ]
    return []


@dataclasses.dataclass(frozen=True)
class Transfer:
  """Terms that keep the student near its start; weights of 0 are off."""

  l2_sp: float = key(
    0.0,
    'alpha/2 |w - start|^2 of the backbone.',
    number(0),
  )
  l2_sp_head: float = key(0.0, 'beta/2 |w|^2 of the head.', number(0))
  delta: float = key(
    0.0,
    '1/2 sum over images and channels of the squared differences of feature '
    'maps, mean over positions (DELTA).',
    number(0),
  )
  delta_stages: tuple[str, ...] = key(
    (), "() is all, else ('stage4',) or the like.", several(text())
  )
  bss: float = key(
    0.0, 'Smallest squared singular values of pre_logits.', number(0)
  )
  bss_k: int = key(1, 'How many of them.', whole(1))
  lwf: float = key(
    0.0,
    'The head of student.weights goes on learning, from its own start (LwF).',
    number(0),
  )
  lwf_temperature: float = key(2.0, 'Of LwF.', number(0, above=True))
  co_tuning: float = key(
    0.0,
    'The head of student.weights goes on learning, from the classes that the '
    'labels resemble (Co-Tuning).',
    number(0),
  )
  co_tuning_temperature: float = key(
    1.0,
    'Of the source probabilities of Co-Tuning, in its table and its loss.',
    number(0, above=True),
  )
  stoch_norm_p: float = key(
    0.5,
    "With batch_norm='stochastic': chance of a channel to use the batch.",
    _FRACTION,
  )
  probe_steps: int = key(
    0,
    'LP-FT: so many steps of the head alone, a run in WORKDIR/probe, before.',
    whole(0),
  )

  def __post_init__(self):
    refuse(settle(self, 'transfer'))
