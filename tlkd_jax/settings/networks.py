"""Sections of the configuration: the networks, and how each learns."""

import dataclasses

from tlkd_jax import models
from tlkd_jax.data import transforms
from tlkd_jax.models.network import DTYPES
from tlkd_jax.models.weights import surgery
from tlkd_jax.settings.rules import (
  Rule,
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

STUDENT_FITS = ('finetuned', 'probed', 'fixmatch', 'ensemble')
# Of teacher.fit: by what the run is, see training/defaults.py.
OPEN = 'auto'
# Fitted to nothing but the names of the classes, see training/zero_shot.py.
ZERO_SHOT = 'zero_shot'
# Those of a teacher whose weights all move.
FINE_TUNED = ('finetuned', 'early', 'crossfitted_finetuned')
# Where a class's name goes in a prompt.
PLACE = '{class}'
TEACHER_FITS = (
  OPEN,
  'finetuned',
  'early',
  'probed',
  'crossfitted',
  'crossfitted_finetuned',
  ZERO_SHOT,
)

SHARDINGS = ('none', 'auto', 'model')

_RATE = number(0, 1, below=True)


def _template() -> Rule:
  """A text in which a class is named."""
  plain = text()

  def accept(value):
    value = plain.accept(value)
    if PLACE not in value:
      raise ValueError
    return value

  return Rule(str, accept, "a text with {class}, like 'a photo of a {class}.'")


@dataclasses.dataclass(frozen=True)
class NetworkSection:
  """A network that is fitted, and where it starts.

  What a student and a teacher have in common; defaults are the student's.
  """

  name: str = key(
    'efficientnet_lite0',
    'A key of tlkd_jax.models.MODELS.',
    one_of(models.MODELS),
  )
  weights: str = key(
    'pretrained',
    "'pretrained' (the variant's own source) | 'scratch' | a file | "
    "'hf-hub:..'.",
    location(),
  )
  checkpoint: str | None = key(
    None,
    'A finished run (its workdir) to start from; replaces `weights`.',
    optional(location()),
  )
  head: str = key(
    'new',
    "The last layer of `weights`: 'new', or 'keep' it where it has the data's "
    "number of classes (in the data's order).",
    one_of(('new', 'keep')),
  )
  classes: tuple[str, ...] = key(
    (),
    'Names of the classes of a head that is kept, in its order; () are those '
    'that a file beside the weights has.',
    several(text()),
  )
  head_init: str = key(
    'zero',
    'Of a new head.',
    one_of(surgery.HEAD_INITS),
  )
  dropout: float | None = key(None, 'None: as published.', optional(_RATE))
  drop_path: float = key(0.0, 'Stochastic depth of the deepest block.', _RATE)
  fit: str = key(
    'finetuned',
    "'probed' leaves the backbone as it starts and fits the last layer by "
    "logistic regression; 'fixmatch' is fine-tuned on distillation.unlabelled "
    "too, each image a target for a strong view of it; 'ensemble' fine-tunes "
    'members of other draws on the same images and says the mean of their '
    'logits. All of arm tl.',
    one_of(STUDENT_FITS),
  )
  probe_views: int = key(
    4,
    'Of a probe: random views of each image, beside the image as evaluated.',
    whole(0),
  )
  probe_folds: int = key(
    5,
    'Of a probe: folds of the cross-validation that chooses its strength; of a '
    'cross-fitted teacher: its own.',
    whole(3),
  )

  def _wrong(self, place: str) -> list[str]:
    if (
      self.head == 'keep' and self.weights == 'scratch' and not self.checkpoint
    ):
      return [
        f"{place}.head is 'keep', and weights from scratch have no head to "
        'keep; accepted: new'
      ]
    if self.classes and self.head != 'keep':
      return [
        f'{place}.classes names the classes of a head that is kept; '
        f"{place}.head is 'new'; accepted: keep"
      ]
    twice = {name for name in self.classes if self.classes.count(name) > 1}
    if twice:
      return [f'{place}.classes has {min(twice)!r} twice; accepted: each once']
    return []


@dataclasses.dataclass(frozen=True)
class Student(NetworkSection):
  """The network that is fine-tuned, and where it starts."""

  members: int = key(
    2,
    'Of an ensemble: its students.',
    whole(2),
  )
  member: int = key(
    0,
    'Of a run that is a part of an ensemble, which sets it: the one of members '
    'that it is, from 1 on; 0 is none.',
    whole(0),
  )

  def __post_init__(self):
    refuse(
      settle(self, 'student') or self._wrong('student') or self._wrong_member()
    )

  def _wrong_member(self) -> list[str]:
    if not self.member:
      return []
    if self.member > self.members:
      return [
        f'student.member is {self.member}; accepted: at most student.members, '
        f'{self.members}'
      ]
    if self.fit != 'finetuned':
      return [
        f'student.member is {self.member}, and student.fit is {self.fit!r}; '
        'accepted: 0, or a student that is fine-tuned'
      ]
    return []


@dataclasses.dataclass(frozen=True)
class Teacher(NetworkSection):
  """The network that teaches, as it is fine-tuned itself."""

  name: str = key(
    'efficientnet_lite2',
    'A key of tlkd_jax.models.MODELS.',
    one_of(models.MODELS),
  )
  checkpoint: str | None = key(
    None,
    'A finished run (its workdir). Or, with head=keep, weights that were '
    "fine-tuned elsewhere (a file, a folder, 'hf-hub:..'): evaluated, and used "
    'as they are.',
    optional(location()),
  )
  num_steps: int = key(
    0,
    "Batches when the teacher is fine-tuned; 0 is as many as the student's.",
    whole(0),
  )
  image_size: int = key(
    0,
    "Side of the teacher's images; 0 is that of its own run where it is "
    "finished, else the student's, of a zero-shot one the weights' own, and of "
    "a probe that kd or compare fits 5/3 of the student's, at most the "
    "variant's own (not on digits); the nearest that a variant takes.",
    whole(8, zero=True),
  )
  crop: float | None = key(
    None,
    "data.crop of the teacher's images; None is that of its own run where it "
    "is finished, of a zero-shot one as published, else the student's.",
    optional(number(0, 1, above=True)),
  )
  interpolation: str | None = key(
    None,
    'The same, for data.interpolation.',
    optional(one_of(transforms.INTERPOLATIONS)),
  )
  compute_dtype: str | None = key(
    None,
    "Of the teacher alone, such as 'bfloat16' for one that is large; None is "
    'compute_dtype.',
    optional(one_of(DTYPES)),
  )
  sharding: str = key(
    'auto',
    "Of a frozen teacher's weights over several devices: 'none', a copy on "
    "each; 'model', a part on each, gathered layer by layer as it is needed; "
    "'auto', the parts where copies do not fit into a device.",
    one_of(SHARDINGS),
  )
  fit: str = key(
    OPEN,
    "How it learns: 'finetuned'; 'early', the step with the least validation "
    "NLL after temperature scaling; 'probed', logistic regression on its "
    "frozen features; 'crossfitted', a probe for each of probe_folds, of which "
    'the one that never saw an image speaks of it; '
    "'crossfitted_finetuned', the same of networks that are fine-tuned; "
    "'zero_shot', of CLIP and SigLIP, not at all: a head of texts with the "
    "classes' names. 'auto' is 'probed' where a run of kd or compare fits it "
    'first, with pretrained weights, one head and probe_folds images of each '
    'class, and neither num_steps nor label_smoothing speaks of fine-tuning; '
    "else 'finetuned'.",
    one_of(TEACHER_FITS),
  )
  label_smoothing: float = key(0.0, "Of the teacher's own fine-tuning.", _RATE)
  prompts: tuple[str, ...] = key(
    ('a photo of a {class}.',),
    'Of a zero-shot teacher: texts in which a class is named; the embeddings '
    'of several are averaged.',
    several(_template(), empty=False),
  )
  text_weights: str | None = key(
    None,
    'Of a zero-shot teacher: a file, a folder or a name on a hub with its '
    'tower of texts; None is `weights`, of which those of timm have none.',
    optional(location()),
  )
  tokenizer: str | None = key(
    None,
    'Of a zero-shot teacher: tokenizer.json, vocab.json with merges.txt or '
    "open_clip's list of merges, or a folder or name on a hub with one; None "
    'is what lies beside the tower of texts.',
    optional(location()),
  )
  without_fold: int = key(
    0,
    'Of a run that is a part of a cross-fitted teacher, which sets it: the one '
    'of probe_folds that it does not see, from 1 on; 0 is none.',
    whole(0),
  )

  def __post_init__(self):
    refuse(
      settle(self, 'teacher') or self._wrong('teacher') or self._wrong_fold()
    )

  def _wrong_fold(self) -> list[str]:
    if not self.without_fold:
      return []
    if self.without_fold > self.probe_folds:
      return [
        f'teacher.without_fold is {self.without_fold}; accepted: at most '
        f'teacher.probe_folds, {self.probe_folds}'
      ]
    if self.fit not in (OPEN, 'finetuned', 'early'):
      return [
        f'teacher.without_fold is {self.without_fold}, and teacher.fit is '
        f'{self.fit!r}; accepted: 0, or a teacher that is fine-tuned'
      ]
    return []
